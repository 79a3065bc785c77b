"""What became of every head of a model in a relative: the rules, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

from probes.comparison.heads.head_sets import (
    MIN_EXPLAINED,
    PARTIAL_EXPLAINED,
    HeadSet,
    ModelHeads,
    is_detected,
)
from probes.comparison.heads.measurements import (
    HeadMeasurements,
    NullModels,
    bootstrap_estimate,
    measure_heads,
)
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
from probes.stats.intervals import proportion

SIMILARITY_MARGIN = 0.1
"""How much less alike than to itself a head may be that counts as equivalent."""

STRENGTH_MARGIN = 0.2
"""How far the strength of an equivalent head may differ, as a share."""

_CONFIDENCE = 0.975


@dataclass(frozen=True, eq=False)
class _Assignments:
    """The words given so far, by number of the head, and which heads of the relative are taken."""

    verdicts: dict[int, Verdict] = field(default_factory=dict)
    represents: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """For each head of the relative the heads of the full model that it stands for."""

    def assign(
        self,
        measured: HeadMeasurements,
        head: int,
        label: VerdictLabel,
        partners: Sequence[int],
        reason_and_tests: tuple,
    ) -> None:
        names = " + ".join(measured.b.heads[partner] for partner in partners)
        reason, tests = reason_and_tests
        self.verdicts[head] = Verdict(
            measured.a.heads[head], "head", label, names, reason, tuple(tests)
        )


def head_verdicts(
    full: ModelHeads,
    other: ModelHeads,
    null_models: NullModels,
    *,
    gate: GateState = "open",
    seed: int = 0,
) -> tuple[Verdict, ...]:
    """Say of each head of a model what became of it in a relative; `verdict` holds the rules.

    Heads of the relative that none of them has become follow, each with "" as its subject.

    Args:
        full, other: The models, measured on the same pairs at the same roles.
        chance: The nets that stand for chance.
        gate: The worst of the two models' gates.
        seed: Of the bootstrap.
    """
    heads = full.profiles.heads
    if gate == "closed":
        why = "a model does not have the behavior, so no head has a part in it"
        return tuple(Verdict(head, "head", "behavior absent", "", why) for head in heads)
    seen, told = measure_heads(full, other, null_models, seed=seed), _Assignments()
    for head in (~seen.active_a).nonzero()[0]:
        told.assign(seen, int(head), "no reliable effect", (), (_NO_RELIABLE_EFFECT, ()))
    _assign_sets(seen, told)
    _assign_pairs(seen, told)
    _assign_moved(seen, told)
    _assign_lost(seen, told, gate)
    return (
        *(told.verdicts[number] for number in range(len(heads))),
        *_relative_only_verdicts(seen, told, gate),
    )


_NO_RELIABLE_EFFECT = (
    "its effects do not repeat between halves of the prompts, or move next to nothing"
)


def _assign_sets(measured: HeadMeasurements, assigned: _Assignments) -> None:
    """Give the words "split" and "merged", the largest gain first; no head is used twice."""
    ways: list[tuple[VerdictLabel, HeadSet, float]] = [
        *(("split", found, measured.split_threshold) for found in measured.splits),
        *(("merged", found, measured.merge_threshold) for found in measured.merges),
    ]
    for word, found, bar in sorted(ways, key=lambda way: -way[1].gain.value):
        mine, theirs = (found.target,), found.members
        if word == "merged":
            mine, theirs = theirs, mine
        used = any(head in assigned.verdicts for head in mine) or any(
            t in assigned.represents for t in theirs
        )
        if used or not is_detected(found, bar):
            continue
        tests = (
            check_above(
                "explained together",
                "together they do not do it",
                found.explained,
                MIN_EXPLAINED,
                id="set_explained",
            ),
            check_above(
                "gained over one head", "one head does as much", found.gain, bar, id="set_gain"
            ),
        )
        there = " and ".join(measured.b.heads[partner] for partner in theirs)
        reason = f"{there} do its work together, and none of them alone"
        if word == "merged":
            here = " and ".join(measured.a.heads[head] for head in mine)
            reason = f"{here} do together, and none of them alone, what {there} does"
        tests = (*tests, _same_shape_test(measured, word, found.target))
        for head in mine:
            assigned.assign(measured, head, word, theirs, (reason, tests))
        assigned.represents.update(dict.fromkeys(theirs, mine))


def _same_shape_test(measured: HeadMeasurements, label: VerdictLabel, head: int) -> StatisticalTest:
    """Show what fewer heads, or the task itself, force on nets that never saw the full model."""
    name = f"{label} without the full model"
    if not measured.same_shape_sets:
        return skipped_test(
            name, "no control was given", is_deciding=False, id="same_shape_control"
        )
    if label == "split":
        found = [head in split for split, _ in measured.same_shape_sets]
    else:
        found = [merged for _, merges in measured.same_shape_sets for merged in merges]
    says = "nets that never saw it do the same"
    return check_below(
        name, says, proportion(np.array(found, dtype=bool)), 0.5, id="same_shape_control"
    ).non_deciding()


def _assign_pairs(measured: HeadMeasurements, assigned: _Assignments) -> None:
    """Pair what is left one-to-one, and keep what surely beats the bar."""
    rows = [n for n in range(len(measured.a.heads)) if n not in assigned.verdicts]
    columns = [int(n) for n in measured.active_b.nonzero()[0] if n not in assigned.represents]
    alike = measured.similarity[0][np.ix_(rows, columns)]
    for row, column in zip(*linear_sum_assignment(alike, maximize=True), strict=True):
        head, partner = rows[row], columns[column]
        score = measured.pair_similarity(head, partner)
        whole = bootstrap_estimate(measured.explained[:, head, partner])
        similar = check_above(
            "alike",
            "untrained nets offer such a head too",
            score,
            measured.threshold,
            id="similarity",
        )
        explains = check_above(
            "explained",
            "it carries another share of the answers",
            whole,
            MIN_EXPLAINED,
            id="explained",
        )
        if not similar.passed:
            continue
        tests = [similar, explains]
        word: VerdictLabel = "kept"
        name = measured.b.heads[partner]
        reason = f"looks and acts like {name}, more than chance offers, and as strongly"
        if not explains.passed:
            word = "cannot tell"
            reason = f"looks and acts like {name}, but {name} does not surely carry what it carries"
        if measured.negative_control_similarity is not None:
            more = bootstrap_estimate(
                measured.similarity[:, head, partner]
                - measured.negative_control_similarity[:, head]
            )
            name = "more alike than nets trained for another end"
            specific = check_above(
                name, "they have such a head as well", more, 0.0, id="above_negative_controls"
            )
            tests.append(specific)
            if not specific.passed:
                word, reason = "cannot tell", "nets trained for another end have such a head too"
        assigned.represents[partner] = (head,)
        tests += _equivalence_tests(measured, head, partner)
        assigned.assign(measured, head, word, (partner,), (reason, tests))


def _equivalence_tests(
    measured: HeadMeasurements, head: int, partner: int
) -> list[StatisticalTest]:
    """Show whether the two are the same within margins; the word does not read it."""
    short, strength = measured.shortfall(head, partner), measured.relative_strength(head, partner)
    unlike = "it differs from its partner more than from itself on other prompts"
    return [
        check_above(
            "as alike as to itself", unlike, short, -SIMILARITY_MARGIN, id=SIMILARITY_EQUIVALENCE
        ).non_deciding(),
        check_within(
            "as strong",
            "its partner's share is another",
            strength,
            STRENGTH_MARGIN,
            id=STRENGTH_EQUIVALENCE,
        ).non_deciding(),
    ]


def _assign_moved(measured: HeadMeasurements, assigned: _Assignments) -> None:
    """Find heads that move the same answers from another role."""
    free = [int(n) for n in measured.active_b.nonzero()[0] if n not in assigned.represents]
    for head in range(len(measured.a.heads)):
        left = [n for n in free if n not in assigned.represents]
        if head in assigned.verdicts or not left:
            continue
        partner = max(left, key=lambda n: float(measured.role_free.similarity[0, head, n]))
        score = bootstrap_estimate(measured.role_free.similarity[:, head, partner])
        says = "untrained nets offer such a head too"
        test = check_above(
            "alike, roles summed",
            says,
            score,
            measured.role_free.threshold,
            id="role_free_similarity",
        )
        elsewhere = (
            measured.role_free.strongest_role_a[:, head]
            != measured.role_free.strongest_role_b[:, partner]
        )
        if not test.passed or elsewhere.mean() < _CONFIDENCE:
            continue
        names = [
            measured.a.roles[at[0, n]]
            for at, n in (
                (measured.role_free.strongest_role_a, head),
                (measured.role_free.strongest_role_b, partner),
            )
        ]
        reason = f"moves the same answers at {names[1]}, not at {names[0]}"
        other_seed = _moves_in_other_seed(measured, head)
        word: VerdictLabel = "moved" if other_seed is False else "cannot tell"
        assigned.represents[partner] = (head,)
        if word != "moved":
            reason += "; " + ("another seed does so too" if other_seed else "no seed to compare")
        assigned.assign(measured, head, word, (partner,), (reason, [test]))


def _moves_in_other_seed(measured: HeadMeasurements, head: int) -> bool | None:
    """Say whether another seed has the head at another role; None where there is none."""
    if measured.other_seed_role_free is None:
        return None
    partner = int(measured.other_seed_role_free.similarity[0, head].argmax())
    return bool(
        measured.other_seed_role_free.strongest_role_a[0, head]
        != measured.other_seed_role_free.strongest_role_b[0, partner]
    )


def _assign_lost(measured: HeadMeasurements, assigned: _Assignments, gate: GateState) -> None:
    for head in range(len(measured.a.heads)):
        if head not in assigned.verdicts:
            numbers = measured.similarity[:, head], measured.explained[:, head]
            tests = _absence_tests(measured.threshold, *numbers, measured.active_b)
            tests += _no_set_test([s for s in measured.splits if s.target == head])
            assigned.assign(measured, head, *_lost_or_undecided("lost", tests, gate))


def _relative_only_verdicts(
    measured: HeadMeasurements, assigned: _Assignments, gate: GateState
) -> list[Verdict]:
    """Tell the heads of the relative that no head of the full model has become."""
    verdicts = []
    for partner, name in enumerate(measured.b.heads):
        if not measured.active_b[partner]:
            verdicts.append(Verdict("", "head", "no reliable effect", name, _NO_RELIABLE_EFFECT))
        elif partner not in assigned.represents:
            numbers = measured.similarity[:, :, partner], measured.explained_back[:, partner]
            tests = _absence_tests(measured.threshold, *numbers, measured.active_a)
            tests += _no_set_test([s for s in measured.merges if s.target == partner])
            word, _, (reason, tests) = _lost_or_undecided("new", tests, gate)
            verdicts.append(Verdict("", "head", word, name, reason, tests))
    return verdicts


def _absence_tests(
    threshold: float,
    similarity: Float[np.ndarray, "draw other"],
    explained: Float[np.ndarray, "sample other"],
    active: Bool[np.ndarray, " other"],
) -> tuple[StatisticalTest, ...]:
    """Test that no head is alike, taken or not, and none does the work."""
    names = ("alike to any head", "explained by any head")
    says = ("a head is as alike", "a head does its work")
    if not active.any():
        return (
            StatisticalTest(
                names[0], says[0], None, "all heads are idle", True, id="max_similarity"
            ),
        )
    return (
        check_below(
            names[0],
            says[0],
            bootstrap_estimate(similarity[:, active].max(1)),
            threshold,
            id="max_similarity",
        ),
        check_below(
            names[1],
            says[1],
            bootstrap_estimate(explained[:, active].max(1)),
            PARTIAL_EXPLAINED,
            id="max_explained",
        ),
    )


def _no_set_test(sets: Sequence[HeadSet]) -> tuple[StatisticalTest, ...]:
    free = [found for found in sets if not found.member_matched]
    if not free:
        return ()
    best = max(free, key=lambda found: found.explained.high)
    return (
        check_below(
            "explained together",
            "a set does its work",
            best.explained,
            PARTIAL_EXPLAINED,
            id="max_set_explained",
        ),
    )


def _lost_or_undecided(
    label: VerdictLabel, tests: tuple[StatisticalTest, ...], gate: GateState
) -> tuple[VerdictLabel, tuple[int, ...], tuple[str, tuple[StatisticalTest, ...]]]:
    against = [test.meaning_if_failed for test in tests if not test.passed]
    if against:
        return "cannot tell", (), ("; ".join(f"perhaps {says}" for says in against), tests)
    if gate != "open":
        return "cannot tell", (), ("its work is nowhere, but the gate is not open", tests)
    where = "the relative" if label == "lost" else "the full model"
    return label, (), (f"no head or set of {where} is alike or does its work", tests)
