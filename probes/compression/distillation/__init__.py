"""Distillation: targets, texts, plans and training."""
