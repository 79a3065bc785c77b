"""Pictures and pages. They take results and numpy arrays; nothing here computes or needs torch."""

from probes.viz.blocks import Cell, Matrix, Note, Table
from probes.viz.page import page
from probes.viz.picture import Picture
from probes.viz.plots.attention.head_grid import head_grid, head_map
from probes.viz.plots.attention.maps import HeadMaps
from probes.viz.plots.interval_plot import Interval, IntervalPlot

__all__ = [
    "Cell",
    "HeadMaps",
    "Interval",
    "IntervalPlot",
    "Matrix",
    "Note",
    "Picture",
    "Table",
    "head_grid",
    "head_map",
    "page",
]
