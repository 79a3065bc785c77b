"""Hotspots: the sites at which each variable is interchanged most often."""
