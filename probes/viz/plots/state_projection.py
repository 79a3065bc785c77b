"""Scatter plots of states at a site: principal components, then the operation's direction."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from probes.errors import FigureError
from probes.interventions.result import StateProjection
from probes.viz.plots.scatter import Labels, PointCloud, ScatterBlock

MAX_OBJECTS = 8
"""Number of objects with a color of their own, the rest counted as one."""
# Sorts behind all words, where the palette has gray.
_OTHER_OBJECTS = "… others"


def projection_block(projections: Sequence[StateProjection]) -> ScatterBlock:
    """States of each model, colored by operation, verb, number and object.

    Raises:
        FigureError: There is no projection, or they are of different prompts.
    """
    if not projections:
        raise FigureError("There is nothing to draw: give a projection")
    first = projections[0]
    for one in projections:
        if one.prompts != first.prompts:
            raise FigureError(
                f"{one.model!r} and {first.model!r} show different prompts: project the states of "
                "the same interchange pairs"
            )
    clouds = [
        _point_cloud(one, on_operation=on_operation)
        for on_operation in (False, True)
        for one in projections
    ]
    return ScatterBlock(first.prompts, clouds)


def _point_cloud(projection: StateProjection, *, on_operation: bool) -> PointCloud:
    names = [name for name in ("operation", "verb") if name in projection.labels]
    colors: dict[str, Labels] = {name: list(map(str, projection.labels[name])) for name in names}
    # A color scale: numbers depend on the operation, because sums exceed differences.
    colors["number"] = np.array(projection.labels["number"])
    if "object" in projection.labels:
        colors["object"] = group_rare_objects(list(map(str, projection.labels["object"])))
    model, site = projection.model, projection.site
    if on_operation:
        fractions, axes = projection.direction_fractions, ("operation", "orthogonal")
        caption = f"{site!s}, operation's direction and the principal component orthogonal to it"
        return PointCloud(model, projection.direction_xy, fractions, colors, caption, axes)
    caption = f"{site!s}, principal components"
    fractions = projection.principal_fractions
    return PointCloud(model, projection.principal_xy, fractions, colors, caption)


def group_rare_objects(objects: Sequence[str]) -> list[str]:
    """Objects with the rarer ones grouped, so that at most `MAX_OBJECTS` remain."""
    counts = Counter(objects)
    if len(counts) <= MAX_OBJECTS:
        return list(objects)
    common = sorted(counts, key=lambda word: (-counts[word], word))[: MAX_OBJECTS - 1]
    return [word if word in common else _OTHER_OBJECTS for word in objects]
