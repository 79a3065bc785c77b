"""Circuits of two models: overlap, edge tests, transfer."""
