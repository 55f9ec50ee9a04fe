"""Benchmarks: Headgate beside its rivals on the same work in one run, and the ratio.

One rule: what decides is measured here and now; stored figures of other machines are only quoted. How a row is
written stands in `__main__`.
"""
