"""The embedded family: its corpus, its tokenizer, and the recipes that make its models."""
