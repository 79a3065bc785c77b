"""The space of a site as points: models side by side, on the widest axes and on the operation's."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from probes.errors import FigureError
from probes.interventions.result import StateProjection
from probes.viz.plots.scatter import Labels, PointCloud, ScatterBlock

MAX_OBJECTS = 8
"""Objects that are told apart by color, the rest included."""
# The mark puts it last among words, where the color is gray.
_OTHER_OBJECTS = "… others"


def projection_block(projections: Sequence[StateProjection]) -> ScatterBlock:
    """Draw spaces: each model on its two widest axes and on the operation's, by several colorings.

    Numbers go with the operation, as sums are larger than differences.

    Raises:
        FigureError: There is no space, or they are of different prompts.
    """
    if not projections:
        raise FigureError("There is nothing to draw: give a space")
    for one in projections:
        if one.prompts != projections[0].prompts:
            raise FigureError(
                f"{one.model!r} and {projections[0].model!r} show different prompts: make their spaces "
                "from the same crossings"
            )
    clouds = [
        _point_cloud(one, on_operation=found) for found in (False, True) for one in projections
    ]
    return ScatterBlock(projections[0].prompts, clouds)


def _point_cloud(projection: StateProjection, *, on_operation: bool) -> PointCloud:
    words = [name for name in ("operation", "verb") if name in projection.labels]
    colors: dict[str, Labels] = {name: list(map(str, projection.labels[name])) for name in words}
    colors["number"] = np.array(projection.labels["number"])
    if "object" in projection.labels:
        colors["object"] = group_rare_objects(list(map(str, projection.labels["object"])))
    if not on_operation:
        says = f"{projection.site!s}, the widest axes"
        return PointCloud(
            projection.model, projection.principal_xy, projection.principal_fractions, colors, says
        )
    says = f"{projection.site!s}, operation and what is widest across it"
    axes = ("operation", "across")
    return PointCloud(
        projection.model,
        projection.direction_xy,
        projection.direction_fractions,
        colors,
        says,
        axes,
    )


def group_rare_objects(objects: Sequence[str]) -> list[str]:
    """Return the objects with the rarer ones put together, so that no more than eight remain."""
    counts = Counter(objects)
    if len(counts) <= MAX_OBJECTS:
        return list(objects)
    common = sorted(counts, key=lambda word: (-counts[word], word))[: MAX_OBJECTS - 1]
    return [word if word in common else _OTHER_OBJECTS for word in objects]
