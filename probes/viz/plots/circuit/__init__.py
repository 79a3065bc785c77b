"""Diagrams of circuits."""
