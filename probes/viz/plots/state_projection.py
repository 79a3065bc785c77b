"""The space of a site as points: models side by side, on the widest axes and on the operation's."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from probes.errors import FigureError
from probes.interventions.projection import Space
from probes.models.site import site_name
from probes.viz.plots.scatter import Cloud, Labels, ScatterBlock

MOST_OBJECTS = 8
"""Objects that are told apart by colour, the rest included."""
# The mark puts it last among words, where the colour is grey.
_REST = "… others"


def space_block(spaces: Sequence[Space]) -> ScatterBlock:
    """Draw spaces: each model on its two widest axes and on the operation's, by several colourings.

    Numbers go with the operation, as sums are larger than differences.

    Raises:
        FigureError: There is no space, or they are of different prompts.
    """
    if not spaces:
        raise FigureError("There is nothing to draw: give a space")
    for one in spaces:
        if one.prompts != spaces[0].prompts:
            raise FigureError(
                f"{one.model!r} and {spaces[0].model!r} show different prompts: make their spaces "
                "from the same crossings"
            )
    clouds = [_cloud(one, found=found) for found in (False, True) for one in spaces]
    return ScatterBlock(spaces[0].prompts, clouds)


def _cloud(one: Space, *, found: bool) -> Cloud:
    words = [name for name in ("operation", "verb") if name in one.labels]
    colours: dict[str, Labels] = {name: list(map(str, one.labels[name])) for name in words}
    colours["number"] = np.array(one.labels["number"])
    if "object" in one.labels:
        colours["object"] = grouped(list(map(str, one.labels["object"])))
    if not found:
        says = f"{site_name(one.cell)}, the widest axes"
        return Cloud(one.model, one.principal_xy, one.principal_shares, colours, says)
    says = f"{site_name(one.cell)}, operation and what is widest across it"
    axes = ("operation", "across")
    return Cloud(one.model, one.found_xy, one.found_shares, colours, says, axes)


def grouped(objects: Sequence[str]) -> list[str]:
    """Return the objects with the rarer ones put together, so that no more than eight remain."""
    counts = Counter(objects)
    if len(counts) <= MOST_OBJECTS:
        return list(objects)
    common = sorted(counts, key=lambda word: (-counts[word], word))[: MOST_OBJECTS - 1]
    return [word if word in common else _REST for word in objects]
