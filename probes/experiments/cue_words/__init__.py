"""Cue words."""
