"""Prompts on which two models differ most."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from probes.comparison.explanation import FailingPrompt
from probes.comparison.heads.profiles import HeadProfiles, affected_answers
from probes.comparison.measurements import ModelMeasurements
from probes.comparison.variables.held_out_folds import HeldOutFolds
from probes.comparison.variables.result import CrossModelTransfer
from probes.comparison.verdict import Verdict

_MAX_PROMPTS = 3


def head_failing_prompts(
    full: ModelMeasurements, other: ModelMeasurements, verdict: Verdict
) -> tuple[FailingPrompt, ...]:
    """Prompts with the largest difference between a head and its counterpart, if it has one.

    Effect fractions are compared at the contrast, role and answer of the head's largest mean
    effect.
    """
    if verdict.kind != "head" or not verdict.subject:
        return ()
    a, b = full.profiles, other.profiles
    head = [a.heads.index(verdict.subject)]
    partners = [b.heads.index(name) for name in verdict.counterpart.split(" + ") if name in b.heads]
    if not partners:
        return ()
    features = [
        (contrast, feature)
        for contrast, answer in affected_answers(a, b)
        for feature in range(
            answer, a.effects[contrast].shape[2], a.total_effects[contrast].shape[1]
        )
    ]
    if not features:
        return ()
    strength = [abs(_mean_present(_effect_fractions(a, head, feature))) for feature in features]
    strongest = features[int(np.argmax(strength))]
    expected = _effect_fractions(a, head, strongest)
    observed = _effect_fractions(b, partners, strongest)
    gap = np.abs(np.nan_to_num(expected - observed))
    pairs = full.heads.batches[strongest[0]].pairs
    return tuple(
        FailingPrompt(
            pairs[row].clean.text,
            pairs[row].counterfactual.text,
            f"{expected[row]:.2f} of the total effect",
            f"{observed[row]:.2f}",
        )
        for row in np.argsort(-gap)[:_MAX_PROMPTS].tolist()
        if gap[row] > 0
    )


def variable_failing_prompts(
    transfer: CrossModelTransfer, folds: HeldOutFolds
) -> tuple[FailingPrompt, ...]:
    """Interchange pairs that succeed with the relative's own states and fail with the donor's."""
    pairs = folds.interchange_pairs.other
    return tuple(
        FailingPrompt(
            pairs[row].clean.text,
            pairs[row].counterfactual.text,
            f"the {transfer.variable} of the source",
            "another output",
        )
        for row in transfer.missed_pairs[:_MAX_PROMPTS]
    )


def _mean_present(values: Float[np.ndarray, " prompt"]) -> float:
    """Mean over the prompts that have the role; 0 without any."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else 0.0


def _effect_fractions(
    profiles: HeadProfiles, heads: Sequence[int], feature: tuple[str, int]
) -> Float[np.ndarray, " prompt"]:
    """Summed effects of heads divided by the mean total effect, by prompt."""
    contrast, number = feature
    totals = profiles.total_effects[contrast]
    mean_total = float(totals[:, number % totals.shape[1]].mean())
    return profiles.effects[contrast][:, list(heads), number].sum(1) / mean_total
