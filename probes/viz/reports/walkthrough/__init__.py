"""The page of a walk-through: its steps, its role paths, its sentences."""
