"""Scores of single edges: attribution and patching."""
