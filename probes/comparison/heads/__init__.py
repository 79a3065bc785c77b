"""Heads of two models: profiles, matching, verdicts."""
