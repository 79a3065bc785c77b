"""Tokenized prompts and their roles."""
