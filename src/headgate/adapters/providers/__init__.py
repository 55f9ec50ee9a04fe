"""Providers: how to talk HTTP to them, and what their bytes mean.

Bytes pass through as they are; only the few fields that are needed are read.
"""
