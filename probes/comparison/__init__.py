"""Comparing relatives: what each can do, and which of their heads do the same."""
