"""Screens of large models: gradients choose what is then measured exactly."""
