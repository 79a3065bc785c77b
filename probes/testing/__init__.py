"""Ground truth: models with known circuits, and function-preserving rewrites of models."""
