"""The alignment score of distilled circuits."""
