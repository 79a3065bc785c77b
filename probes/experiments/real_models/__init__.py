"""Quantized and pruned relatives of two pretrained models: answers, circuits and states."""
