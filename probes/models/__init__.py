"""Loading, wrapping and addressing one model."""
