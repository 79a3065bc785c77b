"""Verdicts on heads without a counterpart: lost in the relative, or new there."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.heads.head_sets import PARTIAL_EXPLAINED, HeadSet
from probes.comparison.heads.measurements import Counterparts, HeadMeasurements
from probes.comparison.heads.result import MAX_THRESHOLD
from probes.comparison.verdict import Verdict, VerdictLabel
from probes.observe.result import GateState
from probes.stats.evidence import StatisticalTest, check_below, skipped_test
from probes.stats.intervals import bootstrap_estimate

NO_RELIABLE_EFFECT = "its effects are near zero or not reproducible between halves of the prompts"


def lost_verdict(measured: HeadMeasurements, head: int, gate: GateState) -> Verdict:
    """Verdict on a head of the full model that no other rule assigned."""
    tests = _absence_tests(
        measured.threshold,
        measured.similarity[:, head],
        (measured.explained[:, head], measured.explained_back[:, :, head]),
        measured.active_b,
        [found for found in measured.splits if found.target == head],
    )
    label, reason = _absence("lost", "the relative", tests, gate)
    if label == "lost" and measured.other_seed is not None:
        label, reason = _lost_or_unshared(measured.threshold, measured.other_seed, head, reason)
    return Verdict(measured.a.heads[head], "head", label, "", reason, tests)


def _lost_or_unshared(
    threshold: float, other_seed: Counterparts, head: int, reason: str
) -> tuple[VerdictLabel, str]:
    """Verdict on a head that the relative lacks, by whether the other-seed model has it."""
    tests = _absence_tests(
        threshold,
        other_seed.similarity[:, head],
        (other_seed.explained[:, head], other_seed.explained_back[:, :, head]),
        other_seed.active,
        [found for found in other_seed.sets if found.target == head],
    )
    if all(test.passed for test in tests):
        return "not shared between seeds", f"{reason}; the other-seed model lacks it as well"
    if any(test.passed is False for test in tests):
        return "lost", reason
    return "cannot tell", f"{reason}; whether the other-seed model has it is open"


def new_verdict(measured: HeadMeasurements, partner: int, gate: GateState) -> Verdict:
    """Verdict on a head of the relative that no other rule used."""
    name = measured.b.heads[partner]
    if not measured.active_b[partner]:
        return Verdict("", "head", "no reliable effect", name, NO_RELIABLE_EFFECT)
    tests = _absence_tests(
        measured.threshold,
        measured.similarity[:, :, partner],
        (measured.explained_back[:, partner], measured.explained[:, :, partner]),
        measured.active_a,
        [found for found in measured.merges if found.target == partner],
    )
    label, reason = _absence("new", "the full model", tests, gate)
    return Verdict("", "head", label, name, reason, tests)


def _absence_tests(
    threshold: float,
    similarity: Float[np.ndarray, "draw other"],
    explained: tuple[Float[np.ndarray, "sample other"], Float[np.ndarray, "sample other"]],
    active: Bool[np.ndarray, " other"],
    sets: Sequence[HeadSet],
) -> tuple[StatisticalTest, ...]:
    """Tests that no active head of the other model is similar, and none does the work of the other.

    Args:
        explained: Fraction of the head that each head of the other model explains, and fraction of
            each of these that the head explains.
    """
    texts = ("similarity to any head with a reliable effect", "a head is as similar")
    if threshold > MAX_THRESHOLD:
        reason = (
            f"a head is as similar: the null reaches {threshold:.2f}, so every head is below it"
        )
        return (skipped_test(texts[0], reason, id="max_similarity"),)
    if active.any():
        most_similar = bootstrap_estimate(similarity[:, active].max(1))
        most_explained, explains_most = (
            bootstrap_estimate(fractions[:, active].max(1)) for fractions in explained
        )
        tests = [
            check_below(*texts, most_similar, threshold, id="max_similarity"),
            check_below(
                "explained by any head",
                "a head does its work",
                most_explained,
                PARTIAL_EXPLAINED,
                id="max_explained",
            ),
            check_below(
                "explains any head",
                "it does the work of a head",
                explains_most,
                PARTIAL_EXPLAINED,
                id="max_explains",
            ),
        ]
    else:
        tests = [StatisticalTest(*texts, None, "no head is active", True, id="max_similarity")]
    free = [found.explained for found in sets if not found.member_matched]
    if free:
        best = max(free, key=lambda explained: explained.high)
        texts = ("explained by any set", "a set does its work")
        tests.append(check_below(*texts, best, PARTIAL_EXPLAINED, id="max_set_explained"))
    return tuple(tests)


def _absence(
    label: VerdictLabel, model: str, tests: Sequence[StatisticalTest], gate: GateState
) -> tuple[VerdictLabel, str]:
    not_excluded = [test.meaning_if_failed for test in tests if not test.passed]
    if not_excluded:
        return "cannot tell", "; ".join(f"perhaps {meaning}" for meaning in not_excluded)
    if gate != "open":
        return "cannot tell", "nothing does its work, but the gate is not open"
    return label, f"no head or set of {model} is similar or does its work"
