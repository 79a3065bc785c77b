"""Verdicts on role paths, variables and heads, and the rules for heads.

The rules for variables are in `probes.comparison.variables.verdicts`, those for paths in
`probes.comparison.paths.verdicts`.

Effect fractions of a head: the effect of patching it, by contrast, answer and role, divided by the
effect of replacing all components. Similarity: mean of the cosines of effects and of attention.
Threshold: score that the same search exceeds in a further random-init model with probability 0.05
or less from 19 models on (`probes.stats.null_threshold`).
"Above" and "below" mean that the 95 % interval excludes the limit. The rules are tried in this
order; the first that applies gives the verdict.

| verdict | rule for a head |
|---|---|
| behavior absent | the gate of one model is closed |
| no reliable effect | split-half reliability below 0.5, or no effect fraction of 0.01 |
| split | two or three heads of the relative, patched together, explain above 0.7 of its effect
fractions, and above 0.1 and the threshold more than the best single head, on prompts that the set
was not chosen on; no member alone explains another head |
| merged | the same with the models exchanged |
| kept | its partner in the one-to-one pairing of the remaining heads is more similar than the
threshold and than the best head of the negative controls, and explains above 0.7 of its effect
fractions |
| moved | its effects, summed over roles, are more similar than the threshold of that search, and
strongest at another role; a head of the other-seed model is as similar, at the same role |
| lost | no head of the relative is similar above the threshold, no head or set explains 0.5 of its
effect fractions, it explains 0.5 of no head of the relative, and the gate is open |
| not shared between seeds | the same, and the other-seed model has no counterpart either |
| cannot tell | no rule applies |

A head of the relative that none of these rules uses is "new" by the rule of "lost" with the models
exchanged, or has no reliable effect, or "cannot tell".
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from probes.stats.evidence import StatisticalTest
from probes.stats.intervals import CONFIDENCE_LEVEL

VerdictLabel = Literal[
    "kept",
    "weaker",
    "stronger",
    "merged",
    "split",
    "moved",
    "lost",
    "not shared between seeds",
    "new",
    "no reliable effect",
    "behavior absent",
    "cannot tell",
]
SubjectKind = Literal["head", "variable", "path"]

ABSENCES: tuple[VerdictLabel, ...] = ("new", "lost", "not shared between seeds")
"""Verdicts that say what one model lacks; they need open gates."""

_CHANGED = ("weaker", "stronger", "moved", "split", "merged")
_SURVIVES = ("kept", *_CHANGED)
_GONE = ("lost", "behavior absent")
UNDECIDED = ("no reliable effect", "behavior absent", "cannot tell")
"""Labels that claim nothing about a mechanism."""

SIMILARITY_EQUIVALENCE = "similarity_equivalence"
STRENGTH_EQUIVALENCE = "strength_equivalence"
NON_INFERIORITY = "non_inferiority"
PATH_EQUIVALENCE = "path_equivalence"
REFERENCE_SITE = "reference_site"
"""Ids of the tests that `Verdict.equivalent` and `Comparison` read."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on a head or a variable in one relative.

    Attributes:
        subject: Head of the full model, such as "L2.H3", variable, or role path with its contrast;
            "" for a new head or path of the relative.
        kind: "path", "variable" or "head".
        label: The verdict.
        counterpart: Site in the relative, such as "L1.H0" or "L1.H0 + L1.H2"; "" if none.
        reason: One sentence.
        tests: All tests, deciding or not.
    """

    subject: str
    kind: SubjectKind
    label: VerdictLabel
    counterpart: str
    reason: str
    tests: tuple[StatisticalTest, ...] = ()

    @property
    def display_name(self) -> str:
        """Name in sentences; the object variable is called "thing" in patterns."""
        return "object" if self.subject == "thing" else self.subject or self.counterpart

    @property
    def equivalent(self) -> bool | None:
        """Whether the two are equivalent within the margins; None where it is undecided.

        Two one-sided tests (Schuirmann 1987): similarity and strength of a head must both pass;
        a variable needs non-inferiority of the full model's states, a path equivalence of its
        fractions.
        """
        ids = {
            "head": (SIMILARITY_EQUIVALENCE, STRENGTH_EQUIVALENCE),
            "variable": (NON_INFERIORITY,),
            "path": (PATH_EQUIVALENCE,),
        }
        tests = [self.test(id) for id in ids[self.kind]]
        if any(test and test.passed is False for test in tests):
            return False
        return True if all(test and test.passed for test in tests) else None

    def test(self, id: str) -> StatisticalTest | None:
        """The test with an id; None where it was not done."""
        return next((test for test in self.tests if test.id == id), None)


def error_rate_line(verdicts: Sequence[Verdict]) -> str:
    """Sentence with the number of decided verdicts and how many of them chance alone may decide.

    A verdict needs every deciding test to pass, and each passes wrongly with probability 0.025 at
    most: half of what a 95 % interval leaves out. A path may be weaker or stronger: both halves.
    """
    tried = [v for v in verdicts if v.label not in ("no reliable effect", "behavior absent")]
    decided = sum(v.label not in UNDECIDED for v in tried)
    sides = sum(2 if v.kind == "path" else 1 for v in tried)
    chance = sides * (1 - CONFIDENCE_LEVEL) / 2
    return (
        f"{decided} of {len(tried)} verdicts are decided; an interval is wrong on one side with "
        f"probability 0.025 (a path's on either side), so chance alone would decide about "
        f"{chance:.1f}."
    )


def survival_line(relative: str, verdicts: Sequence[Verdict]) -> str:
    """Which parts of the circuit survive, which do not, and which cannot be told and why."""
    survives = _names(v for v in verdicts if v.subject and v.label in _SURVIVES)
    gone = _names(v for v in verdicts if v.subject and v.label in _GONE)
    unshared = _names(v for v in verdicts if v.label == "not shared between seeds")
    unknown = [v for v in verdicts if v.subject and v.label == "cannot tell"]
    line = f"In {relative} survive: {survives or 'none'}; lost: {gone or 'none'}; "
    if unshared:
        line += f"not shared between seeds: {unshared}; "
    if not unknown:
        return line + "cannot tell: none."
    reasons = Counter(verdict.reason for verdict in unknown).most_common()
    shown = "; ".join(f"{reason} ({count} of {len(unknown)})" for reason, count in reasons[:2])
    more = f"; and {len(reasons) - 2} other reasons" if len(reasons) > 2 else ""
    return line + f"cannot tell: {_names(unknown)}, because {shown}{more}."


def _names(verdicts: Iterable[Verdict]) -> str:
    return ", ".join(
        f"{one.display_name} ({one.label})" if one.label in _CHANGED else one.display_name
        for one in verdicts
    )


@dataclass(frozen=True, slots=True)
class RepeatedVerdict:
    """Verdicts on one path, variable or head in comparisons with other prompts.

    Attributes:
        kind: "path", "variable" or "head".
        subject: As in `Verdict`; "(new) " and the counterpart for what only the relative has.
        labels: Label in each comparison; "no verdict" where it found no such path, or where a head
            of the relative is the counterpart of another.
    """

    kind: SubjectKind
    subject: str
    labels: tuple[str, ...]

    @property
    def decided(self) -> tuple[str, ...]:
        """Labels that claim something about a mechanism."""
        return tuple(label for label in self.labels if label not in (*UNDECIDED, NO_VERDICT))

    @property
    def stability(self) -> float:
        """Fraction of the comparisons with the most frequent label."""
        return max(Counter(self.labels).values()) / len(self.labels)


NO_VERDICT = "no verdict"
"""Label of a subject that a repeated comparison did not test."""


def repeated_verdicts(comparisons: Sequence[Sequence[Verdict]]) -> tuple[RepeatedVerdict, ...]:
    """Labels of each subject over the verdicts of several comparisons."""
    by_comparison: list[dict[tuple[SubjectKind, str], str]] = [
        {(v.kind, v.subject or f"(new) {v.counterpart}"): v.label for v in verdicts}
        for verdicts in comparisons
    ]
    subjects = dict.fromkeys(key for labels in by_comparison for key in labels)
    return tuple(
        RepeatedVerdict(*key, tuple(labels.get(key, NO_VERDICT) for labels in by_comparison))
        for key in subjects
    )


def repeat_lines(repeats: Sequence[RepeatedVerdict]) -> tuple[str, ...]:
    """For each kind, how many verdicts are decided and how many hold in all comparisons."""
    lines = []
    for kind in dict.fromkeys(one.kind for one in repeats):
        own = [one for one in repeats if one.kind == kind and one.decided]
        labels = [label for one in repeats if one.kind == kind for label in one.labels]
        tested = sum(label not in (NO_VERDICT, "no reliable effect") for label in labels)
        decided = sum(len(one.decided) for one in own)
        agreeing = sum(len({*one.decided}) == 1 for one in own)
        everywhere = sum({*one.labels} == {*one.decided[:1]} for one in own)
        lines.append(
            f"{len(repeats[0].labels)} comparisons with other prompts: {decided} of {tested} "
            f"verdicts on {kind}s are decided; of {len(own)} {kind}s with a decided one, "
            f"{agreeing} have no other decided one, {everywhere} the same verdict in all."
        )
    return tuple(lines)
