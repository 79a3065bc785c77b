"""Pruning of weights, and lottery tickets."""
