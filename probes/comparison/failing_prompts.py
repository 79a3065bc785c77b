"""The prompts on which two models part most."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from probes.comparison.explanation import FailingPrompt
from probes.comparison.heads.profiles import HeadProfiles, affected_answers
from probes.comparison.measurements import ModelMeasurements
from probes.comparison.variables.held_out_folds import HeldOutFolds
from probes.comparison.variables.result import CrossModelTransfer
from probes.comparison.verdict import Verdict

_SHOWN = 3


def head_failing_prompts(
    full: ModelMeasurements, other: ModelMeasurements, verdict: Verdict
) -> tuple[FailingPrompt, ...]:
    """Return the prompts on which a head and its counterpart part most, where it acts most.

    Effects are shares of what replacing everything moves in their own model.
    """
    if verdict.kind != "head" or not verdict.subject:
        return ()
    a, b = full.profiles, other.profiles
    head = a.heads.index(verdict.subject)
    partners = [b.heads.index(name) for name in verdict.counterpart.split(" + ") if name in b.heads]
    spots = [
        (contrast, at)
        for contrast, answer in affected_answers(a, b)
        for at in range(answer, a.effects[contrast].shape[2], a.total_effects[contrast].shape[1])
    ]
    if not spots:
        return ()
    strength = [abs(_mean_present(_effect_fractions(a, [head], spot))) for spot in spots]
    spot = spots[int(np.argmax(strength))]
    mine, theirs = _effect_fractions(a, [head], spot), _effect_fractions(b, partners, spot)
    gap = np.abs(np.nan_to_num(mine - theirs))
    contrast = spot[0]
    pairs = full.heads.batches[contrast].pairs
    return tuple(
        FailingPrompt(
            pairs[row].clean.text,
            pairs[row].counterfactual.text,
            f"{mine[row]:.2f} of the lead",
            f"{theirs[row]:.2f}",
        )
        for row in np.argsort(-gap)[:_SHOWN].tolist()
        if gap[row] > 0
    )


def variable_failing_prompts(
    transfer: CrossModelTransfer, folds: HeldOutFolds
) -> tuple[FailingPrompt, ...]:
    """Return crossings that the relative's own states turn, and the full model's do not."""
    pairs = folds.interchange_pairs.other
    kind = transfer.variable
    return tuple(
        FailingPrompt(
            pairs[row].clean.text,
            pairs[row].counterfactual.text,
            f"takes up the {kind}",
            "does not",
        )
        for row in transfer.missed_pairs[:_SHOWN]
    )


def _mean_present(values: Float[np.ndarray, " prompt"]) -> float:
    """Average over the prompts that have the role; nothing is 0."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else 0.0


def _effect_fractions(
    profiles: HeadProfiles, heads: Sequence[int], feature: tuple[str, int]
) -> Float[np.ndarray, " prompt"]:
    """Return the summed effects of heads as shares of what replacing everything moves."""
    contrast, at = feature
    totals = profiles.total_effects[contrast]
    whole = float(totals[:, at % totals.shape[1]].mean())
    return profiles.effects[contrast][:, list(heads), at].sum(1) / whole
