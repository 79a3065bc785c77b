"""The fewest parameters that do the task."""
