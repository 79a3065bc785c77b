"""Rate against distortion of answers and mechanism."""
