"""Pictures and pages. They take results and numpy arrays; nothing here computes or needs torch."""

from probes.view.blocks import Cell, Matrix, Note, Table
from probes.view.heads import head_grid, head_map
from probes.view.intervals import Interval, IntervalPlot
from probes.view.maps import HeadMaps
from probes.view.page import page
from probes.view.picture import Picture

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
