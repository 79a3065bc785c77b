"""Adaptation to new words."""
