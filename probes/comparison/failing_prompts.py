"""The prompts on which two models part most."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from probes.comparison.explanation import Item
from probes.comparison.heads.profiles import Profiles, live
from probes.comparison.measurements import Measured
from probes.comparison.variables.held_out_folds import Trials
from probes.comparison.variables.transfer import Transfer
from probes.comparison.verdict import Fate

_SHOWN = 3


def head_items(full: Measured, other: Measured, fate: Fate) -> tuple[Item, ...]:
    """Return the prompts on which a head and its counterpart part most, where it acts most.

    Effects are shares of what replacing everything moves in their own model.
    """
    if fate.kind != "head" or not fate.subject:
        return ()
    a, b = full.profiles, other.profiles
    head = a.heads.index(fate.subject)
    partners = [b.heads.index(name) for name in fate.there.split(" + ") if name in b.heads]
    spots = [
        (contrast, at)
        for contrast, answer in live(a, b)
        for at in range(answer, a.effects[contrast].shape[2], a.totals[contrast].shape[1])
    ]
    if not spots:
        return ()
    strength = [abs(_over(_shares(a, [head], spot))) for spot in spots]
    spot = spots[int(np.argmax(strength))]
    mine, theirs = _shares(a, [head], spot), _shares(b, partners, spot)
    gap = np.abs(np.nan_to_num(mine - theirs))
    contrast = spot[0]
    pairs = full.heads.batches[contrast].pairs
    return tuple(
        Item(
            pairs[row].clean.text,
            pairs[row].counterfactual.text,
            f"{mine[row]:.2f} of the lead",
            f"{theirs[row]:.2f}",
        )
        for row in np.argsort(-gap)[:_SHOWN].tolist()
        if gap[row] > 0
    )


def variable_items(carried: Transfer, trials: Trials) -> tuple[Item, ...]:
    """Return crossings that the relative's own states turn, and the full model's do not."""
    pairs = trials.crossings.other
    kind = carried.variable
    return tuple(
        Item(
            pairs[row].clean.text,
            pairs[row].counterfactual.text,
            f"takes up the {kind}",
            "does not",
        )
        for row in carried.missed[:_SHOWN]
    )


def _over(values: Float[np.ndarray, " prompt"]) -> float:
    """Average over the prompts that have the role; nothing is 0."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else 0.0


def _shares(
    profiles: Profiles, heads: Sequence[int], spot: tuple[str, int]
) -> Float[np.ndarray, " prompt"]:
    """Return the summed effects of heads as shares of what replacing everything moves."""
    contrast, at = spot
    totals = profiles.totals[contrast]
    whole = float(totals[:, at % totals.shape[1]].mean())
    return profiles.effects[contrast][:, list(heads), at].sum(1) / whole
