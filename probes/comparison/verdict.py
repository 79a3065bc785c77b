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
strongest at another role; the other-seed model has them at the same role |
| lost | no head of the relative is similar above the threshold, no head or set explains 0.5 of its
effect fractions, it explains 0.5 of no head of the relative, and the gate is open |
| not shared between seeds | the same, and the other-seed model has no counterpart either |
| cannot tell | no rule applies |

A head of the relative that none of these rules uses is "new" by the rule of "lost" with the models
exchanged, or has no reliable effect, or "cannot tell".
"""

from collections.abc import Sequence
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
    most: half of what a 95 % interval leaves out.
    """
    tried = [v for v in verdicts if v.label not in ("no reliable effect", "behavior absent")]
    decided = sum(v.label not in UNDECIDED for v in tried)
    chance = len(tried) * (1 - CONFIDENCE_LEVEL) / 2
    return (
        f"{decided} of {len(tried)} verdicts are decided; an interval is wrong on one side with "
        f"probability 0.025, so chance alone would decide about {chance:.1f}."
    )
