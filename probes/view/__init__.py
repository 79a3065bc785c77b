"""Pictures and pages. They take results and numpy arrays; nothing here computes or needs torch."""

from probes.view.heatmap import head_grid, head_map
from probes.view.maps import HeadMaps
from probes.view.picture import Picture

__all__ = ["HeadMaps", "Picture", "head_grid", "head_map"]
