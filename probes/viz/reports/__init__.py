"""Pages: one module for each type of result."""
