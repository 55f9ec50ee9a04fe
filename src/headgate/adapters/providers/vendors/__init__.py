"""Vendors: who can stand behind an account, one small file each, and the catalogue of them.

How to add one is told in docs/how-to/add-a-provider.md.
"""
