"""Query patterns, questions, pairs, tokenization and role axes; no model is known here."""
