"""Hotspot maps of one or several models, from their search results."""

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
    """Interchange accuracy of each variable by role and layer, models side by side.

    A cell is the fraction of prompts in which only this variable changed, with the null of
    random-init models. Rings mark the hotspots, which were selected on other prompts.
    """
    return hotspot_map_picture(hotspot_block(results), title=title)


def hotspot_block(results: Sequence[Hotspots]) -> HotspotMapBlock:
    """Hotspot maps as a part of a page."""
    roles = merged_roles(results)
    caption = "Interchange accuracy: fraction of prompts in which only this variable changes"
    return HotspotMapBlock([_model_maps(result, roles) for result in results], caption)


def merged_roles(results: Sequence[Hotspots]) -> list[str]:
    """Roles of several models in the order of their texts, then the joined roles of hotspots."""
    roles: list[str] = []
    for result in results:
        own = [role for role in result.roles if "+" not in role]
        for at, role in enumerate(own):
            if role not in roles:
                roles.insert(roles.index(own[at - 1]) + 1 if at else 0, role)
    hotspot_roles = [hotspot.site.role for result in results for hotspot in result.hotspots]
    return roles + list(dict.fromkeys(role for role in hotspot_roles if "+" in role))


def display_variable(name: str) -> str:
    """Name of a variable on pages."""
    return "object" if name == OBJECT else name


def _model_maps(result: Hotspots, roles: Sequence[str]) -> ModelHotspotMaps:
    number, noun = result.accuracy
    return ModelHotspotMaps(
        name=result.model,
        roles=roles,
        layers=(*map(str, range(max(site.layer for site in result.sites))), "out"),
        maps=[_variable_map(result, hotspot, roles) for hotspot in result.hotspots],
        caption=f"accuracy: number {number.value:.2f}, object {noun.value:.2f}",
    )


def _variable_map(result: Hotspots, hotspot: Hotspot, roles: Sequence[str]) -> HotspotMap:
    values = result.map(hotspot.variable)
    fractions: Float[np.ndarray, "role layer"] = np.full((len(roles), values.shape[1]), np.nan)
    for row, role in enumerate(roles):
        if role in result.roles:
            fractions[row] = values[result.roles.index(role)]
    # The null is at least half a prompt: below it, not even one prompt has changed.
    null = max(0.5 / result.prompts, result.thresholds[hotspot.variable])
    ring = (roles.index(hotspot.site.role), hotspot.site.layer)
    counts = np.full(fractions.shape, result.prompts)
    return HotspotMap(display_variable(hotspot.variable), fractions, null, [ring], counts)
