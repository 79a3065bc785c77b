"""Hotspot maps of one or several models: which place hands over which variable."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from probes.interventions.result import Hotspot, Hotspots
from probes.prompts.interchange_pairs import OBJECT
from probes.viz.picture import Picture
from probes.viz.plots.hotspot_grid import (
    HotspotMap,
    HotspotMapBlock,
    ModelHotspotMaps,
    hotspot_map_picture,
)


def hotspot_map(results: Sequence[Hotspots], *, title: str = "") -> Picture:
    """Draw what every place of some models hands over, roles by layers, models side by side.

    A cell is the share of prompts that took up one variable and nothing else, 0 to 1, beside what
    untrained nets reach; rings mark the places that were chosen by other prompts.
    """
    return hotspot_map_picture(hotspot_block(results), title=title)


def hotspot_block(results: Sequence[Hotspots]) -> HotspotMapBlock:
    """Lay the maps out for a page."""
    roles = merged_roles(results)
    caption = "How often a place hands over one variable and nothing else"
    return HotspotMapBlock([_model_maps(hot, roles) for hot in results], caption)


def merged_roles(results: Sequence[Hotspots]) -> list[str]:
    """Merge the roles of several models in the order of their texts; chosen joined ones last."""
    plain: list[str] = []
    for hot in results:
        for at, role in enumerate(own := [role for role in hot.roles if "+" not in role]):
            if role not in plain:
                plain.insert(plain.index(own[at - 1]) + 1 if at else 0, role)
    chosen = [spot.site.role for hot in results for spot in hot.hotspots]
    return plain + list(dict.fromkeys(role for role in chosen if "+" in role))


def _model_maps(result: Hotspots, roles: Sequence[str]) -> ModelHotspotMaps:
    layers = max(cell.layer for cell in result.sites)
    number, noun = result.accuracy
    return ModelHotspotMaps(
        name=result.model,
        roles=roles,
        layers=(*map(str, range(layers)), "out"),
        maps=[_variable_map(result, spot, roles) for spot in result.hotspots],
        caption=f"number right {number.value:.2f}, noun {noun.value:.2f}",
    )


def _variable_map(result: Hotspots, hotspot: Hotspot, roles: Sequence[str]) -> HotspotMap:
    own = result.map(hotspot.variable)
    shares: Float[np.ndarray, "role layer"] = np.full((len(roles), own.shape[1]), np.nan)
    for row, role in enumerate(roles):
        if role in result.roles:
            shares[row] = own[result.roles.index(role)]
    # Below half a prompt is none: it is not more than chance, however low chance is.
    null = max(0.5 / result.prompts, result.thresholds[hotspot.variable])
    ring = (roles.index(hotspot.site.role), hotspot.site.layer)
    counts = np.full(shares.shape, result.prompts)
    return HotspotMap(display_variable(hotspot.variable), shares, null, [ring], counts)


def display_variable(name: str) -> str:
    """Return what readers call a variable."""
    return "object" if name == OBJECT else name
