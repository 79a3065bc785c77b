"""Settings, prompts and reference models of a comparison."""
