"""Pictures and pages of results and numpy arrays. Nothing here computes or imports torch."""

from probes.viz.blocks import Matrix, Note, Table, TableCell
from probes.viz.page import page
from probes.viz.picture import Picture
from probes.viz.plots.attention.head_grid import head_grid, head_map
from probes.viz.plots.attention.maps import AttentionMaps
from probes.viz.plots.interval_plot import Interval, IntervalPlot

__all__ = [
    "AttentionMaps",
    "Interval",
    "IntervalPlot",
    "Matrix",
    "Note",
    "Picture",
    "Table",
    "TableCell",
    "head_grid",
    "head_map",
    "page",
]
