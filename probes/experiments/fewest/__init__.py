"""Fewest parameters."""
