"""Measures along training."""
