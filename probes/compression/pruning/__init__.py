"""Pruning and lottery tickets."""
