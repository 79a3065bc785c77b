"""AUROC of each score between students of one teacher and equally accurate ones of another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from probes.stats.auroc import GroupAUROC, group_auroc
from probes.stats.multiple_testing import holm

SCORES: Mapping[str, bool] = {
    "accuracy_number": True,
    "accuracy_noun": True,
    "accuracy_held_out": True,
    "kl_number": False,
    "kl_noun": False,
    "error_consistency": True,
    "margin_correlation": True,
    "operation": True,
    "x": True,
    "y": True,
    "object": True,
    "interchange": True,
    "cka_embedding": True,
    "cka": True,
    "cka_given_token": True,
    "rsa": True,
    "weights_ov": True,
    "weights_qk": True,
}
"""Scores by column, and whether a higher value is nearer to the reference.

- `accuracy_number`, `accuracy_noun`: on questions as in training; `accuracy_held_out` of the number
  on number pairs that training left out. The plainest baseline: the reference plays no part in it.
- `kl_number`, `kl_noun`: KL(reference || student) at the readouts of these answers, in bits, on the
  held-out questions. The plainest comparison with the reference.
- `error_consistency`: Cohen's kappa of the correct held-out questions.
- `margin_correlation`: Spearman's correlation of the number's logit difference over the held-out
  questions.
- `operation`, `x`, `y`, `object`: interchange accuracy of the student's states in the reference, by
  a linear map that saw none of the words; `interchange` is their mean.
- `cka_embedding`: debiased CKA of the token embeddings at the roles of the pattern.
- `cka`, `cka_given_token`, `rsa`: mean over the student's layers of the best match among the
  reference's layers, over prompts at each role.
- `weights_ov`, `weights_qk`: mean over the student's heads of the largest cosine of their effective
  maps between tokens with those of the reference's heads.
"""


@dataclass(frozen=True, slots=True)
class ScoreSeparation:
    """How well one score tells the students of the reference from those of the other teacher.

    Attributes:
        score: Column of the table.
        reference: Teacher that all students are scored against, or "A − B" for the difference of
            their scores against two.
        kin, others: Mean score of its own students, and of the other teacher's.
        auroc: Probability that a student of the reference is nearer to it than one of the other
            teacher, with its interval.
        p_corrected: Its p-value, corrected by Holm's method for all scores of this reference.
        undefined: Number of students without a score.
    """

    score: str
    reference: str
    kin: float
    others: float
    auroc: GroupAUROC
    p_corrected: float
    undefined: int


def score_separations(rows: Sequence[Mapping[str, float | str]]) -> tuple[ScoreSeparation, ...]:
    """AUROC of every score for every reference that has students of both kinds.

    With two references there is a third comparison, by the difference of a student's scores against
    them. A better student may be nearer to both, which cancels there.

    Args:
        rows: Rows of the table of the study.
    """
    references = dict.fromkeys(str(row["reference"]) for row in rows)
    groups = {name: [row for row in rows if row["reference"] == name] for name in references}
    if len(groups) == 2:
        (first, own), (second, others) = groups.items()
        against = {row["model"]: row for row in others}
        groups[f"{first} − {second}"] = [
            {**row, **_differences(row, against[row["model"]])}
            for row in own
            if row["model"] in against
        ]
    separations = []
    for reference, group in groups.items():
        made = [one for score in SCORES if (one := _separation(score, reference, group))]
        corrected = holm([one.auroc.p_value for one in made])
        separations += [replace(one, p_corrected=p) for one, p in zip(made, corrected, strict=True)]
    return tuple(separations)


def _differences(
    row: Mapping[str, float | str], other: Mapping[str, float | str]
) -> dict[str, float]:
    return {score: float(row[score]) - float(other[score]) for score in SCORES}


def _separation(
    score: str, reference: str, rows: Sequence[Mapping[str, float | str]]
) -> ScoreSeparation | None:
    """AUROC of one score; None without a student of each kind."""
    groups = [np.array([float(row[score]) for row in rows if row["kin"] == kin]) for kin in (1, 0)]
    kin, others = (group[np.isfinite(group)] for group in groups)
    if not len(kin) or not len(others):
        return None
    sign = 1 if SCORES[score] else -1
    auroc = group_auroc(sign * kin, sign * others)
    return ScoreSeparation(
        score=score,
        reference=reference,
        kin=float(kin.mean()),
        others=float(others.mean()),
        auroc=auroc,
        p_corrected=auroc.p_value,
        undefined=sum(map(len, groups)) - len(kin) - len(others),
    )
