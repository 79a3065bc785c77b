"""Comparison of circuits: overlap, edge tests and transfer."""
