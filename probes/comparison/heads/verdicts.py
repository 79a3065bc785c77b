"""Verdicts on heads; `probes.comparison.verdict` describes the rules."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from probes.comparison.heads.absence import NO_RELIABLE_EFFECT, lost_verdict, new_verdict
from probes.comparison.heads.head_sets import MIN_EXPLAINED, HeadSet, ModelHeads, is_detected
from probes.comparison.heads.measurements import HeadMeasurements, NullModels, measure_heads
from probes.comparison.verdict import (
    SIMILARITY_EQUIVALENCE,
    STRENGTH_EQUIVALENCE,
    Verdict,
    VerdictLabel,
)
from probes.observe.result import GateState
from probes.stats.evidence import (
    StatisticalTest,
    check_above,
    check_below,
    check_within,
    skipped_test,
)
from probes.stats.intervals import Estimate, bootstrap_estimate, proportion

SIMILARITY_MARGIN = 0.1
"""Largest loss of similarity of an equivalent head, compared with itself on other prompts."""

STRENGTH_MARGIN = 0.2
"""Largest relative difference in strength of an equivalent head."""

_CONFIDENCE = 0.975
_TEXTS = {
    "set_explained": ("explained by the set", "the set does not do the work"),
    "set_gain": ("gain over the best single head", "one head explains as much"),
    "similarity": ("similarity", "the null has a head as similar"),
    "explained": ("explained fraction", "the partner does not do its work"),
    "above_negative_controls": (
        "similarity above negative controls",
        "a negative control has a head as similar",
    ),
    SIMILARITY_EQUIVALENCE: (
        "similarity minus similarity to itself",
        "it is less similar to its partner than to itself on other prompts",
    ),
    STRENGTH_EQUIVALENCE: ("relative strength", "its partner is stronger or weaker"),
    "role_free_similarity": (
        "similarity, roles summed out",
        "the null has a head as similar",
    ),
}
"""Name of each test and the meaning of its failure, by id."""


@dataclass(frozen=True)
class _Assigned:
    """Verdicts so far, by number of the full model's head, and heads of the relative in use."""

    verdicts: Mapping[int, Verdict]
    used: frozenset[int] = frozenset()

    def add(self, verdicts: Mapping[int, Verdict], partners: Iterable[int] = ()) -> "_Assigned":
        return _Assigned({**self.verdicts, **verdicts}, self.used | frozenset(partners))

    def free_heads(self, measured: HeadMeasurements) -> list[int]:
        return [head for head in range(len(measured.a.heads)) if head not in self.verdicts]

    def free_partners(self, measured: HeadMeasurements) -> list[int]:
        return [int(n) for n in measured.active_b.nonzero()[0] if n not in self.used]


def head_verdicts(
    full: ModelHeads,
    other: ModelHeads,
    null_models: NullModels,
    *,
    gate: GateState = "open",
    seed: int = 0,
) -> tuple[Verdict, ...]:
    """Verdicts on all heads of the full model, then on unused heads of the relative.

    Args:
        full, other: The models, measured on the same pairs at the same roles.
        null_models: Random-init models and controls.
        gate: The worse of the two models' gates.
        seed: Seed of the bootstrap.
    """
    heads = full.profiles.heads
    if gate == "too few to tell":
        why = "too few questions to tell whether both models have the behavior"
        return tuple(Verdict(head, "head", "cannot tell", "", why) for head in heads)
    if gate == "closed":
        reason = "the gate of one model is closed"
        return tuple(Verdict(head, "head", "behavior absent", "", reason) for head in heads)
    measured = measure_heads(full, other, null_models, seed=seed)
    inactive = [int(head) for head in (~measured.active_a).nonzero()[0]]
    assigned = _Assigned(
        {
            head: Verdict(heads[head], "head", "no reliable effect", "", NO_RELIABLE_EFFECT)
            for head in inactive
        }
    )
    for rule in (_split_or_merged, _kept, _moved):
        assigned = rule(measured, assigned)
    lost = {head: lost_verdict(measured, head, gate) for head in assigned.free_heads(measured)}
    verdicts = assigned.add(lost).verdicts
    new = [
        new_verdict(measured, partner, gate)
        for partner in range(len(measured.b.heads))
        if partner not in assigned.used or not measured.active_b[partner]
    ]
    return (*(verdicts[head] for head in range(len(heads))), *new)


def _verdict(
    measured: HeadMeasurements,
    head: int,
    label: VerdictLabel,
    partners: Sequence[int],
    reason_and_tests: tuple[str, Sequence[StatisticalTest]],
) -> Verdict:
    reason, tests = reason_and_tests
    names = " + ".join(measured.b.heads[partner] for partner in partners)
    return Verdict(measured.a.heads[head], "head", label, names, reason, tuple(tests))


def _split_or_merged(measured: HeadMeasurements, assigned: _Assigned) -> _Assigned:
    """Assign detected sets, the largest gain first; no head is used twice."""
    candidates: list[tuple[VerdictLabel, HeadSet, float]] = [
        *(("split", found, measured.split_threshold) for found in measured.splits),
        *(("merged", found, measured.merge_threshold) for found in measured.merges),
    ]
    for label, found, threshold in sorted(candidates, key=lambda one: -one[1].gain.value):
        heads, partners = (found.target,), found.members
        if label == "merged":
            heads, partners = partners, heads
        taken = assigned.verdicts.keys() & set(heads) or assigned.used & set(partners)
        if taken or not is_detected(found, threshold):
            continue
        here = " and ".join(measured.a.heads[head] for head in heads)
        there = " and ".join(measured.b.heads[partner] for partner in partners)
        reason = f"{there} together do its work; none of them does alone"
        if label == "merged":
            reason = f"{here} together do the work of {there}; none of them does alone"
        tests = (
            _above("set_explained", found.explained, MIN_EXPLAINED),
            _above("set_gain", found.gain, threshold),
            _same_shape_test(measured, label, found.target),
        )
        verdicts = {
            head: _verdict(measured, head, label, partners, (reason, tests)) for head in heads
        }
        assigned = assigned.add(verdicts, partners)
    return assigned


def _same_shape_test(measured: HeadMeasurements, label: VerdictLabel, head: int) -> StatisticalTest:
    """How often the same happens without the full model, by the smaller shape or the task alone."""
    name, id = f"{label} in same-shape controls", "same_shape_control"
    if not measured.same_shape_sets:
        return skipped_test(name, "no same-shape control was given", is_deciding=False, id=id)
    if label == "split":
        hits = [head in split for split, _ in measured.same_shape_sets]
    else:
        hits = [merged for _, merges in measured.same_shape_sets for merged in merges]
    fraction = proportion(np.array(hits, dtype=bool))
    return check_below(name, "controls show the same", fraction, 0.5, id=id).non_deciding()


def _kept(measured: HeadMeasurements, assigned: _Assigned) -> _Assigned:
    """Pair the remaining heads one-to-one and assign the pairs above the threshold."""
    rows, columns = assigned.free_heads(measured), assigned.free_partners(measured)
    similarity = measured.similarity[0][np.ix_(rows, columns)]
    for row, column in zip(*linear_sum_assignment(similarity, maximize=True), strict=True):
        head, partner = rows[row], columns[column]
        draws = measured.similarity[:, head, partner]
        similar = _above("similarity", bootstrap_estimate(draws), measured.threshold)
        if not similar.passed:
            continue
        fraction = bootstrap_estimate(measured.explained[:, head, partner])
        explains = _above("explained", fraction, MIN_EXPLAINED)
        tests, name = [similar, explains], measured.b.heads[partner]
        label: VerdictLabel = "kept"
        reason = f"more similar to {name} than the null allows, and {name} does its work"
        if not explains.passed:
            label = "cannot tell"
            reason = f"similar to {name}, but the fraction that {name} explains is {fraction}"
        if measured.negative_control_similarity is not None:
            excess = bootstrap_estimate(draws - measured.negative_control_similarity[:, head])
            specific = _above("above_negative_controls", excess, 0.0)
            tests.append(specific)
            if not specific.passed:
                label, reason = "cannot tell", "a negative control may have a head as similar"
        tests += _equivalence_tests(measured, head, partner)
        verdict = _verdict(measured, head, label, (partner,), (reason, tests))
        assigned = assigned.add({head: verdict}, (partner,))
    return assigned


def _equivalence_tests(
    measured: HeadMeasurements, head: int, partner: int
) -> tuple[StatisticalTest, ...]:
    loss, strength = measured.shortfall(head, partner), measured.relative_strength(head, partner)
    texts = _TEXTS[STRENGTH_EQUIVALENCE]
    return (
        _above(SIMILARITY_EQUIVALENCE, loss, -SIMILARITY_MARGIN).non_deciding(),
        check_within(*texts, strength, STRENGTH_MARGIN, id=STRENGTH_EQUIVALENCE).non_deciding(),
    )


def _moved(measured: HeadMeasurements, assigned: _Assigned) -> _Assigned:
    """Assign heads that affect the same answers at another role."""
    role_free = measured.role_free
    for head in assigned.free_heads(measured):
        free = assigned.free_partners(measured)
        if not free:
            break
        partner = max(free, key=lambda n: float(role_free.similarity[0, head, n]))
        score = bootstrap_estimate(role_free.similarity[:, head, partner])
        test = _above("role_free_similarity", score, role_free.threshold)
        role_a, role_b = role_free.strongest_role_a[:, head], role_free.strongest_role_b[:, partner]
        if not test.passed or (role_a != role_b).mean() < _CONFIDENCE:
            continue
        roles = measured.a.roles
        reason = f"affects the same answers at {roles[role_b[0]]}, not at {roles[role_a[0]]}"
        label: VerdictLabel = "cannot tell"
        doubt = _doubt_of_other_seed(measured, head)
        if doubt:
            reason += f"; {doubt}"
        else:
            label = "moved"
        verdict = _verdict(measured, head, label, (partner,), (reason, [test]))
        assigned = assigned.add({head: verdict}, (partner,))
    return assigned


def _doubt_of_other_seed(measured: HeadMeasurements, head: int) -> str:
    """Why the other-seed model does not show the head at its role; "" where it does."""
    other_seed, counterparts = measured.other_seed_role_free, measured.other_seed
    if other_seed is None or counterparts is None:
        return "there is no other-seed model to compare"
    similarity = np.where(counterparts.active, other_seed.similarity[0, head], -np.inf)
    partner = int(similarity.argmax())
    score = bootstrap_estimate(other_seed.similarity[:, head, partner])
    # A partner by noise has some role, too: it must be one by the rule for the relative.
    if not counterparts.active[partner] or not score.low > measured.role_free.threshold:
        return "no head of the other-seed model affects the same answers"
    if other_seed.strongest_role_a[0, head] != other_seed.strongest_role_b[0, partner]:
        return "the other-seed model differs as well"
    return ""


def _above(id: str, value: Estimate, threshold: float) -> StatisticalTest:
    return check_above(*_TEXTS[id], value, threshold, id=id)
