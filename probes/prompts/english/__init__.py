"""Free English: number stories are read by rules and word lists, and matched to a pattern."""
