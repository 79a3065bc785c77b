"""What became of every head of a model in a relative: the rules, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

from probes.comparison.heads.head_sets import EXPLAINS, STANDS_FOR, HeadSet, HeadView, is_found
from probes.comparison.heads.measurements import Chance, Look, estimate, look
from probes.comparison.verdict import AS_ALIKE, AS_STRONG, Fate, Word
from probes.observe.gate import State
from probes.stats.evidence import Evidence, above, below, untested, within
from probes.stats.intervals import share

MARGIN = 0.1
"""How much less alike than to itself a head may be that counts as equivalent."""

STRENGTH = 0.2
"""How far the strength of an equivalent head may differ, as a share."""

_SURELY = 0.975


@dataclass(frozen=True, eq=False)
class _Told:
    """The words given so far, by number of the head, and which heads of the relative are taken."""

    fates: dict[int, Fate] = field(default_factory=dict)
    by: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """For each head of the relative the heads of the full model that it stands for."""

    def give(self, seen: Look, head: int, word: Word, there: Sequence[int], says: tuple) -> None:
        names = " + ".join(seen.b.heads[partner] for partner in there)
        reason, tests = says
        self.fates[head] = Fate(seen.a.heads[head], "head", word, names, reason, tuple(tests))


def head_fates(
    full: HeadView, other: HeadView, chance: Chance, *, gate: State = "open", seed: int = 0
) -> tuple[Fate, ...]:
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
        why = "a model does not have the behaviour, so no head has a part in it"
        return tuple(Fate(head, "head", "behaviour absent", "", why) for head in heads)
    seen, told = look(full, other, chance, seed=seed), _Told()
    for head in (~seen.busy_a).nonzero()[0]:
        told.give(seen, int(head), "idle", (), (_IDLE, ()))
    _tell_sets(seen, told)
    _tell_pairs(seen, told)
    _tell_moved(seen, told)
    _tell_lost(seen, told, gate)
    return (*(told.fates[number] for number in range(len(heads))), *_own(seen, told, gate))


_IDLE = "its effects do not repeat between halves of the prompts, or move next to nothing"


def _tell_sets(seen: Look, told: _Told) -> None:
    """Give the words "split" and "merged", the largest gain first; no head is used twice."""
    ways: list[tuple[Word, HeadSet, float]] = [
        *(("split", found, seen.split_bar) for found in seen.splits),
        *(("merged", found, seen.merge_bar) for found in seen.merges),
    ]
    for word, found, bar in sorted(ways, key=lambda way: -way[1].gain.value):
        mine, theirs = (found.target,), found.members
        if word == "merged":
            mine, theirs = theirs, mine
        used = any(head in told.fates for head in mine) or any(t in told.by for t in theirs)
        if used or not is_found(found, bar):
            continue
        tests = (
            above("explained together", "together they do not do it", found.explains, STANDS_FOR),
            above("gained over one head", "one head does as much", found.gain, bar),
        )
        there = " and ".join(seen.b.heads[partner] for partner in theirs)
        reason = f"{there} do its work together, and none of them alone"
        if word == "merged":
            here = " and ".join(seen.a.heads[head] for head in mine)
            reason = f"{here} do together, and none of them alone, what {there} does"
        tests = (*tests, _forced(seen, word, found.target))
        for head in mine:
            told.give(seen, head, word, theirs, (reason, tests))
        told.by.update(dict.fromkeys(theirs, mine))


def _forced(seen: Look, word: Word, head: int) -> Evidence:
    """Show what fewer heads, or the task itself, force on nets that never saw the full model."""
    name = f"{word} without the full model"
    if not seen.controls:
        return untested(name, "no control was given", decides=False)
    if word == "split":
        found = [head in split for split, _ in seen.controls]
    else:
        found = [merged for _, merges in seen.controls for merged in merges]
    says = "nets that never saw it do the same"
    return below(name, says, share(np.array(found, dtype=bool)), 0.5, decides=False)


def _tell_pairs(seen: Look, told: _Told) -> None:
    """Pair what is left one-to-one, and keep what surely beats the bar."""
    rows = [n for n in range(len(seen.a.heads)) if n not in told.fates]
    columns = [int(n) for n in seen.busy_b.nonzero()[0] if n not in told.by]
    alike = seen.alike[0][np.ix_(rows, columns)]
    for row, column in zip(*linear_sum_assignment(alike, maximize=True), strict=True):
        head, partner = rows[row], columns[column]
        score = seen.score(head, partner)
        whole = estimate(seen.explains[:, head, partner])
        tests = [
            above("alike", "untrained nets offer such a head too", score, seen.bar),
            above("explained", "it carries another share of the answers", whole, STANDS_FOR),
        ]
        if not tests[0].passed:
            continue
        word: Word = "kept"
        name = seen.b.heads[partner]
        reason = f"looks and acts like {name}, more than chance offers, and as strongly"
        if not tests[1].passed:
            word = "cannot tell"
            reason = f"looks and acts like {name}, but {name} does not surely carry what it carries"
        if seen.stranger is not None:
            more = estimate(seen.alike[:, head, partner] - seen.stranger[:, head])
            name = "more alike than nets trained for another end"
            tests.append(above(name, "they have such a head as well", more, 0.0))
            if not tests[-1].passed:
                word, reason = "cannot tell", "nets trained for another end have such a head too"
        told.by[partner] = (head,)
        tests += _equivalence(seen, head, partner)
        told.give(seen, head, word, (partner,), (reason, tests))


def _equivalence(seen: Look, head: int, partner: int) -> list[Evidence]:
    """Show whether the two are the same within margins; the word does not read it."""
    short, strength = seen.shortfall(head, partner), seen.strength(head, partner)
    unlike = "it differs from its partner more than from itself on other prompts"
    return [
        above(AS_ALIKE, unlike, short, -MARGIN, decides=False),
        within(AS_STRONG, "its partner's share is another", strength, STRENGTH, decides=False),
    ]


def _tell_moved(seen: Look, told: _Told) -> None:
    """Find heads that move the same answers from another role."""
    free = [int(n) for n in seen.busy_b.nonzero()[0] if n not in told.by]
    for head in range(len(seen.a.heads)):
        left = [n for n in free if n not in told.by]
        if head in told.fates or not left:
            continue
        partner = max(left, key=lambda n: float(seen.moves.alike[0, head, n]))
        score = estimate(seen.moves.alike[:, head, partner])
        says = "untrained nets offer such a head too"
        test = above("alike, roles summed", says, score, seen.moves.bar)
        elsewhere = seen.moves.at[:, head] != seen.moves.at_b[:, partner]
        if not test.passed or elsewhere.mean() < _SURELY:
            continue
        names = [
            seen.a.roles[at[0, n]] for at, n in ((seen.moves.at, head), (seen.moves.at_b, partner))
        ]
        reason = f"moves the same answers at {names[1]}, not at {names[0]}"
        other_seed = _seed_moves(seen, head)
        word: Word = "moved" if other_seed is False else "cannot tell"
        told.by[partner] = (head,)
        if word != "moved":
            reason += "; " + ("another seed does so too" if other_seed else "no seed to compare")
        told.give(seen, head, word, (partner,), (reason, [test]))


def _seed_moves(seen: Look, head: int) -> bool | None:
    """Say whether another seed has the head at another role; None where there is none."""
    if seen.twin_moves is None:
        return None
    partner = int(seen.twin_moves.alike[0, head].argmax())
    return bool(seen.twin_moves.at[0, head] != seen.twin_moves.at_b[0, partner])


def _tell_lost(seen: Look, told: _Told, gate: State) -> None:
    for head in range(len(seen.a.heads)):
        if head not in told.fates:
            numbers = seen.alike[:, head], seen.explains[:, head]
            tests = _nowhere(seen.bar, *numbers, seen.busy_b)
            tests += _no_set([s for s in seen.splits if s.target == head])
            told.give(seen, head, *_lost_or_open("lost", tests, gate))


def _own(seen: Look, told: _Told, gate: State) -> list[Fate]:
    """Tell the heads of the relative that no head of the full model has become."""
    fates = []
    for partner, name in enumerate(seen.b.heads):
        if not seen.busy_b[partner]:
            fates.append(Fate("", "head", "idle", name, _IDLE))
        elif partner not in told.by:
            numbers = seen.alike[:, :, partner], seen.explains_back[:, partner]
            tests = _nowhere(seen.bar, *numbers, seen.busy_a)
            tests += _no_set([s for s in seen.merges if s.target == partner])
            word, _, (reason, tests) = _lost_or_open("new", tests, gate)
            fates.append(Fate("", "head", word, name, reason, tests))
    return fates


def _nowhere(
    bar: float,
    alike: Float[np.ndarray, "draw other"],
    explains: Float[np.ndarray, "sample other"],
    busy: Bool[np.ndarray, " other"],
) -> tuple[Evidence, ...]:
    """Test that no head is alike, taken or not, and none does the work."""
    names = ("alike to any head", "explained by any head")
    says = ("a head is as alike", "a head does its work")
    if not busy.any():
        return (Evidence(names[0], says[0], None, "all heads are idle", True),)
    return (
        below(names[0], says[0], estimate(alike[:, busy].max(1)), bar),
        below(names[1], says[1], estimate(explains[:, busy].max(1)), EXPLAINS),
    )


def _no_set(sets: Sequence[HeadSet]) -> tuple[Evidence, ...]:
    free = [found for found in sets if not found.claimed]
    if not free:
        return ()
    best = max(free, key=lambda found: found.explains.high)
    return (below("explained together", "a set does its work", best.explains, EXPLAINS),)


def _lost_or_open(
    word: Word, tests: tuple[Evidence, ...], gate: State
) -> tuple[Word, tuple[int, ...], tuple[str, tuple[Evidence, ...]]]:
    against = [test.says for test in tests if not test.passed]
    if against:
        return "cannot tell", (), ("; ".join(f"perhaps {says}" for says in against), tests)
    if gate != "open":
        return "cannot tell", (), ("its work is nowhere, but the gate is not open", tests)
    where = "the relative" if word == "lost" else "the full model"
    return word, (), (f"no head or set of {where} is alike or does its work", tests)
