"""One question: its answer, its attention, and its use of a circuit of the pattern."""
