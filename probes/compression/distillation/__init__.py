"""Distillation: targets, texts, trainer."""
