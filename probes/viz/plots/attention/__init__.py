"""Attention heatmaps."""
