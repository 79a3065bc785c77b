"""Hotspot maps of one or several models: which place hands over which variable."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from probes.interventions.hotspots import Hotspots, Spot
from probes.prompts.interchange_pairs import OBJECT
from probes.viz.picture import Picture
from probes.viz.plots.hotspot_grid import HotMap, HotMapBlock, HotModel, hotmap_picture


def hotspot_map(found: Sequence[Hotspots], *, title: str = "") -> Picture:
    """Draw what every place of some models hands over, roles by layers, models side by side.

    A cell is the share of prompts that took up one variable and nothing else, 0 to 1, beside what
    untrained nets reach; rings mark the places that were chosen by other prompts.
    """
    return hotmap_picture(hotspot_block(found), title=title)


def hotspot_block(found: Sequence[Hotspots]) -> HotMapBlock:
    """Lay the maps out for a page."""
    roles = roles_of(found)
    caption = "How often a place hands over one variable and nothing else"
    return HotMapBlock([_hot(hot, roles) for hot in found], caption)


def roles_of(found: Sequence[Hotspots]) -> list[str]:
    """Merge the roles of several models in the order of their texts; chosen joined ones last."""
    plain: list[str] = []
    for hot in found:
        for at, role in enumerate(own := [role for role in hot.roles if "+" not in role]):
            if role not in plain:
                plain.insert(plain.index(own[at - 1]) + 1 if at else 0, role)
    chosen = [spot.cell.role for hot in found for spot in hot.spots]
    return plain + list(dict.fromkeys(role for role in chosen if "+" in role))


def _hot(hot: Hotspots, roles: Sequence[str]) -> HotModel:
    layers = max(cell.layer for cell in hot.cells)
    number, noun = hot.accuracy
    return HotModel(
        name=hot.model,
        roles=roles,
        layers=(*map(str, range(layers)), "out"),
        maps=[_map(hot, spot, roles) for spot in hot.spots],
        caption=f"number right {number.value:.2f}, noun {noun.value:.2f}",
    )


def _map(hot: Hotspots, spot: Spot, roles: Sequence[str]) -> HotMap:
    own = hot.map(spot.variable)
    shares: Float[np.ndarray, "role layer"] = np.full((len(roles), own.shape[1]), np.nan)
    for row, role in enumerate(roles):
        if role in hot.roles:
            shares[row] = own[hot.roles.index(role)]
    # Below half a prompt is none: it is not more than chance, however low chance is.
    null = max(0.5 / len(hot.crossed), hot.bars[spot.variable])
    ring = (roles.index(spot.cell.role), spot.cell.layer)
    counts = np.full(shares.shape, len(hot.crossed))
    return HotMap(shown_variable(spot.variable), shares, null, [ring], counts)


def shown_variable(name: str) -> str:
    """Return what readers call a variable."""
    return "object" if name == OBJECT else name
