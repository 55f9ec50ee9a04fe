"""Showing simulations: as a table, as JSON, as a page with plots, and as a picture.

One rule: every figure comes from `sim.figures` as it is; nothing is computed here but where it stands.
"""
