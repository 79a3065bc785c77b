"""Derived models: quantization, pruning, distillation, growth, and their storage cost."""
