"""Layers of a decoder: hooks, attention, norms, the key/value cache."""
