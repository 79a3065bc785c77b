"""Subspaces and directions of states."""
