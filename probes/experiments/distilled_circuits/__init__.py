"""The published alignment score of Distilled Circuits, as a baseline."""
