"""Runs of a task from which circuits are run, and passes that start from them."""
