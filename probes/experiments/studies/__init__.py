"""Studies: models that differ in one factor, measured alike, one table each."""
