"""Measures over training."""
