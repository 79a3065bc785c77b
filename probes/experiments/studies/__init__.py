"""Studies: relatives that differ in one thing, measured alike, one table each."""
