"""Prompt formats: few-shot examples, chat templates and forms of the answer."""
