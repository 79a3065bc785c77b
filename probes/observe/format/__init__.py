"""Prompt formats of a model: fit, trials, and those that are kept."""
