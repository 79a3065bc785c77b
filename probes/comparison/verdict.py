"""What became of a head or a variable of one model in a relative, in one word with its reasons.

The rules for variables stand in `variablefates`; these are the rules for heads.

A head's *share profile* is what patching it moves, by contrast, answer and role, over what
replacing everything moves. What a set does is measured by patching its heads together. *Alike* is
the mean of the cosines of effects and of attention. The *bar* is the 95th percentile of the best
match that the same search finds in untrained nets; for sets, of its best gain. Rules are tried
from top to bottom, and a head has the first word whose rule it meets.

| word | rule for a head |
|---|---|
| behavior absent | the gate of one model is closed: there is nothing to have a part in |
| idle | its effects repeat less than 0.5 (cosine) between halves of the prompts, or move nowhere
0.01 of an answer |
| split | two or three heads of the relative, patched together, explain surely more than 0.7 of its
share profile as they stand, and surely more beyond the best single head than 0.1 and the bar, on
prompts that the set was not chosen on; no member stands alone for another head |
| merged | the same turned round: with others, patched together, it explains one head there |
| kept | its partner in the best one-to-one pairing of the rest is surely more alike than the bar,
and than the best head of nets trained for another end, and explains surely more than 0.7 of its
share profile as it stands |
| moved | its effects summed over roles are surely more alike than that search's own bar, surely
strongest at another role, and another seed of the model has them where it has |
| lost | surely no head of the relative, taken or not, is alike above the bar, and no head or set
explains 0.5 of its share profile; the gate is open |
| cannot tell | none of these |

A head of the relative that has no part in any of these is *new* by the rule of "lost" turned
round, or idle, or cannot be told. A word says nothing of why: that a head is lost does not say that
what it computed is. While the gate is open, that is somewhere.
"""

from dataclasses import dataclass
from typing import Literal

from probes.stats.evidence import StatisticalTest

VerdictLabel = Literal[
    "kept",
    "merged",
    "split",
    "moved",
    "lost",
    "new",
    "no reliable effect",
    "behavior absent",
    "cannot tell",
]
SubjectKind = Literal["head", "variable"]

SIMILARITY_EQUIVALENCE = "similarity_equivalence"
STRENGTH_EQUIVALENCE = "strength_equivalence"
NON_INFERIORITY = "non_inferiority"
REFERENCE_SITE = "reference_site"
"""Ids of the tests that `Verdict.equivalent` and `Comparison` read."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one thing in a relative.

    Attributes:
        subject: A head of the full model, such as "L2.H3", or a variable; "" for a head that the
            relative alone has.
        kind: Which of the two.
        word: The verdict; the rules stand at the top of this module.
        there: Where it is in the relative, such as "L1.H0" or "L1.H0 + L1.H2"; "" if nowhere.
        reason: Why, in one sentence.
        evidence: The tests that were read, and those shown beside.
    """

    subject: str
    kind: SubjectKind
    label: VerdictLabel
    counterpart: str
    reason: str
    tests: tuple[StatisticalTest, ...] = ()

    @property
    def equivalent(self) -> bool | None:
        """Whether the two are surely the same within the margins; None where it is open.

        Two one-sided tests (Schuirmann 1987): of a head on alikeness and on strength, which must
        both pass; of a variable on what the full model's states do where its own stood.
        """
        ids = (
            (NON_INFERIORITY,)
            if self.kind == "variable"
            else (SIMILARITY_EQUIVALENCE, STRENGTH_EQUIVALENCE)
        )
        tests = [self.test(id) for id in ids]
        if any(test and test.passed is False for test in tests):
            return False
        return True if all(test and test.passed for test in tests) else None

    def test(self, id: str) -> StatisticalTest | None:
        """The test with an id; None where it was not done."""
        return next((test for test in self.tests if test.id == id), None)
