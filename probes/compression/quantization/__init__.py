"""Quantization of weights and the reference kernels of other libraries."""
