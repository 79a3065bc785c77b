"""Verdicts on role paths: does the contrast reach the answer by way of the same words?

A fraction is the effect of patching a path alone, divided by the effect of the whole contrast.
"Above" and "below" mean that the 95 % interval excludes the limit. The rules are tried in this
order; the first that applies gives the verdict.

| verdict | rule for a path |
|---|---|
| behavior absent | a gate of one model is closed |
| cannot tell | it carries the whole effect in both models: the only way from the contrast to the
answer does so in any model |
| new | its fraction is below 0.05 in the full model and above 0.05 in the relative |
| cannot tell | its fraction in the full model is not above 0.05 |
| kept | both fractions are above 0.05 and differ by less than 0.2 |
| weaker | both are above 0.05, and that in the relative is lower |
| stronger | both are above 0.05, and that in the relative is higher |
| lost | its fraction in the relative is below 0.05 |
| not shared between seeds | the same, and it is below 0.05 in the other-seed model as well |
| cannot tell | no rule applies, or it would be new, lost or not shared, and a gate of its answer is
not open |

A path that the relative has must also exceed the threshold of the null, in logits. Paths
are found on pairs that are not those of the tests. The pairs are drawn independently, so that
intervals over pairs cover further draws.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil

import numpy as np

from probes.comparison.paths.measure import (
    MIN_PATH_FRACTION,
    ContrastAnswer,
    PathNull,
    PathPlan,
    PathRuns,
    found_paths,
)
from probes.comparison.paths.result import PathCircuit, PathEffect
from probes.comparison.verdict import (
    ABSENCES,
    PATH_EQUIVALENCE,
    REFERENCE_SITE,
    Verdict,
    VerdictLabel,
)
from probes.interventions.role_paths.graph import RolePath
from probes.observe.result import Gate
from probes.stats.evidence import StatisticalTest, check_above, check_within
from probes.stats.intervals import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_ratio_difference,
)
from probes.stats.null_threshold import conformal_threshold

PATH_MARGIN = 0.2
"""Largest difference of a kept path, as a fraction of the effect of the contrast."""


def path_effects(
    plan: PathPlan,
    found: Sequence[Mapping[ContrastAnswer, Mapping[RolePath, float]]],
    runs: tuple[PathRuns, PathRuns, PathRuns | None],
    nulls: Sequence[PathNull],
    *,
    seed: int,
) -> tuple[PathEffect, ...]:
    """Effects of the paths that were found in one of two models.

    Args:
        plan: What was measured.
        found: Paths of the full model and of the relative, by their search.
        runs: Effects in the full model, in the relative and in the other-seed model.
        nulls: Absolute effects in each draw of the null: a random-init model of the relative's
            shape, or the relative's own effects with random signs.
        seed: Seed of the bootstrap.
    """
    full, other, _ = runs
    rows = []
    for key in plan.paths:
        for path in dict.fromkeys(p for one in found for p in found_paths(one, key)):
            at = (key, path)
            fraction = partial(_fraction, at=at, seed=seed)
            rows.append(
                PathEffect(
                    contrast=key[0],
                    answer=key[1],
                    roles=path.roles,
                    full=fraction(full),
                    other=fraction(other),
                    other_seed=fraction(runs[2]) if runs[2] else None,
                    shortfall=bootstrap_ratio_difference(
                        (full.effects[at], full.totals[key]),
                        (other.effects[at], other.totals[key]),
                        seed=seed,
                    ),
                    logits=bootstrap_mean(other.effects[at], seed=seed),
                    random_init=float(conformal_threshold([null[at] for null in nulls])),
                    pairs=len(other.totals[key]),
                )
            )
    return tuple(rows)


def _fraction(runs: PathRuns, at: tuple[ContrastAnswer, RolePath], *, seed: int) -> Estimate:
    return bootstrap_ratio(runs.effects[at], runs.totals[at[0]], seed=seed)


def path_circuits(
    plan: PathPlan,
    full_paths: Mapping[ContrastAnswer, Mapping[RolePath, float]],
    runs: tuple[PathRuns, PathRuns, PathRuns | None],
    *,
    seed: int,
) -> tuple[PathCircuit, ...]:
    """Faithfulness of all paths of the full model together."""
    rows = []
    for key in plan.circuits:
        ratios = []
        for one in runs:
            values, total = one.circuits[key] if one else (np.zeros((0, 0)), np.zeros(0))
            ratios.append([bootstrap_ratio(value, total, seed=seed) for value in values])
        full, other, other_seed = ratios
        rows.append(
            PathCircuit(
                contrast=key[0],
                answer=key[1],
                paths=tuple(map(str, found_paths(full_paths, key))),
                full=full[0],
                other=other[0],
                other_seed=other_seed[0] if other_seed else None,
                random=float(np.mean([one.value for one in other[2:]])),
                rest_full=full[1],
                rest_other=other[1],
            )
        )
    return tuple(rows)


def path_verdicts(effects: Sequence[PathEffect], gates: Sequence[Gate]) -> tuple[Verdict, ...]:
    """Verdict on each path of the full model, and on the new ones of the relative."""
    closed = next((gate for gate in gates if gate.state == "closed"), None)
    if closed:
        reason = f"the gate of {closed.answer} is closed ({closed.score_name} {closed.score})"
        own = [effect for effect in effects if effect.full.low > MIN_PATH_FRACTION]
        return tuple(Verdict(e.subject, "path", "behavior absent", "", reason) for e in own)
    not_open = {gate.answer for gate in gates if gate.state != "open"}
    verdicts = (_verdict(effect, is_open=effect.answer not in not_open) for effect in effects)
    return tuple(verdict for verdict in verdicts if verdict)


def _verdict(effect: PathEffect, *, is_open: bool) -> Verdict | None:
    """None for a path that neither model is shown to have."""
    carries = effect.other.low > MIN_PATH_FRACTION and effect.logits.low > effect.random_init
    found = _label(effect, carries)
    if found is None:
        return None
    label, reason = found
    if label in ABSENCES and not is_open:
        label, reason = "cannot tell", f"{reason}, but a gate is not open"
    # A path of both models has one name in both.
    names = ("", effect.subject) if found[0] == "new" else (effect.subject, "")
    return Verdict(names[0], "path", label, names[1], reason, tuple(_tests(effect)))


def _label(effect: PathEffect, carries: bool) -> tuple[VerdictLabel, str] | None:
    full, other, numbers = effect.full, effect.other, _numbers(effect)
    if effect.is_forced:
        return (
            "cannot tell",
            "no other way leads to the answer: any model has its whole effect here",
        )
    if carries and full.high < MIN_PATH_FRACTION:
        return "new", f"only in the relative: {numbers}"
    if not full.low > MIN_PATH_FRACTION:
        if full.high < MIN_PATH_FRACTION and other.high < MIN_PATH_FRACTION:
            return None
        more = _pairs_to_decide(full, (MIN_PATH_FRACTION,), effect.pairs)
        return "cannot tell", f"open whether the full model has it: {numbers}{more}"
    if carries:
        return _size_label(effect)
    if other.high < MIN_PATH_FRACTION:
        seed = effect.other_seed
        if seed and seed.high < MIN_PATH_FRACTION:
            return "not shared between seeds", f"{numbers}, {seed} in the other seed"
        return "lost", numbers
    more = _pairs_to_decide(other, (MIN_PATH_FRACTION,), effect.pairs)
    return "cannot tell", f"open whether the relative has it: {numbers}{more}"


def _size_label(effect: PathEffect) -> tuple[VerdictLabel, str]:
    """Both models have the path: does it carry as much?"""
    difference, numbers = effect.shortfall, _numbers(effect)
    if difference.low > -PATH_MARGIN and difference.high < PATH_MARGIN:
        return "kept", numbers
    if difference.low > 0 or difference.high < 0:
        return ("weaker" if difference.low > 0 else "stronger"), numbers
    more = _pairs_to_decide(difference, (-PATH_MARGIN, 0.0, PATH_MARGIN), effect.pairs)
    return "cannot tell", f"open whether it carries as much: {numbers}{more}"


def _pairs_to_decide(estimate: Estimate, limits: Sequence[float], pairs: int) -> str:
    """Number of pairs with which the interval would exclude the nearest limit, as a half sentence.

    The width falls with the square root of the number. "" where that is undefined or no help.
    """
    distance = min(abs(estimate.value - limit) for limit in limits)
    half = max(estimate.high - estimate.value, estimate.value - estimate.low)
    if not distance > 0 or not half > distance:
        return ""
    return f"; about {ceil(pairs * (half / distance) ** 2)} pairs would decide"


def _numbers(effect: PathEffect) -> str:
    return f"it carries {effect.full} of the effect in the full model, {effect.other} here"


def _tests(effect: PathEffect) -> list[StatisticalTest]:
    fraction, logits = "fraction of the effect", "effect in logits"
    return [
        check_above(
            f"{fraction} in the full model", "the full model does not have the path",
            effect.full, MIN_PATH_FRACTION, id=REFERENCE_SITE,
        ),
        check_above(
            f"{fraction} in the relative", "the relative does not have the path",
            effect.other, MIN_PATH_FRACTION, id="fraction",
        ),
        check_above(
            f"{logits} above the null", "the null has as much",
            effect.logits, effect.random_init, id="above_null",
        ),
        check_within(
            "shortfall from the full model", ("it carries more", "it carries less"),
            effect.shortfall, PATH_MARGIN, id=PATH_EQUIVALENCE,
        ),
    ]  # fmt: skip
