"""Result of comparing role paths: the fraction of an effect that each path carries."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from probes.comparison.verdict import Verdict
from probes.stats.intervals import Estimate

_ROUNDING = 1e-4


@dataclass(frozen=True, slots=True)
class PathEffect:
    """One role path in both models, on pairs that it was not chosen on.

    Fractions are of the effect of the whole contrast on the answer's logit difference.

    Attributes:
        contrast, answer: What is changed, and the answer whose logit difference is measured.
        roles: Roles along the path.
        full, other: Fraction in the full model and in the relative.
        other_seed: Fraction in the other-seed model; None without one.
        shortfall: Fraction in the full model minus that in the relative, paired by prompt.
        logits: Effect in the relative, in logits.
        random_init: Threshold of the absolute effect in the null, in logits: in random-init models,
            or with clean and counterfactual prompts exchanged at random.
        pairs: Number of pairs.
    """

    contrast: str
    answer: str
    roles: tuple[str, ...]
    full: Estimate
    other: Estimate
    other_seed: Estimate | None
    shortfall: Estimate
    logits: Estimate
    random_init: float
    pairs: int

    @property
    def is_forced(self) -> bool:
        """Whether the path carries the whole effect in both models, to rounding.

        So does the only way from a contrast to an answer, in any model.
        """
        ends = [end for one in (self.full, self.other) for end in (one.low, one.high)]
        return all(abs(end - 1) < _ROUNDING for end in ends)

    @property
    def subject(self) -> str:
        """Name of the path in verdicts."""
        return f"{self.contrast}: {' → '.join(self.roles)}"

    def row(self) -> dict[str, str | float]:
        """Row of a table."""
        return {
            "path": self.subject,
            "answer": self.answer,
            "full": self.full.value,
            "other": self.other.value,
            "other seed": self.other_seed.value if self.other_seed else float("nan"),
            "shortfall": self.shortfall.value,
            "logits": self.logits.value,
            "null": self.random_init,
        }


@dataclass(frozen=True, slots=True)
class PathCircuit:
    """All paths of the full model for one contrast, patched together in both models.

    Attributes:
        contrast, answer: What is changed, and the answer.
        paths: Names of the paths.
        full, other: Faithfulness: fraction of the effect when only these paths are patched.
        other_seed: The same in the other-seed model; None without one.
        random: Mean faithfulness in the relative of as many other paths, chosen at random.
        rest_full, rest_other: Fraction of the effect when all edges but these are patched; 0 for a
            complete circuit.
    """

    contrast: str
    answer: str
    paths: tuple[str, ...]
    full: Estimate
    other: Estimate
    other_seed: Estimate | None
    random: float
    rest_full: Estimate
    rest_other: Estimate


def paths_line(
    full: str, other: str, verdicts: Sequence[Verdict], circuits: Sequence[PathCircuit]
) -> str:
    """Numbers of verdicts on role paths, and what the paths of the full model carry together."""
    counts = Counter(v.label for v in verdicts if v.kind == "path")
    paths = ", ".join(f"{n} {label}" for label, n in counts.most_common()) or "none was tested"
    line = f"Role paths of {full} in {other}: {paths}"
    whole = ", ".join(f"{one.contrast} {one.other} (paths: {len(one.paths)})" for one in circuits)
    if not whole:
        return f"{line}."
    return (
        f"{line}; the paths that the search found in {full} carry together, of the effect in "
        f"{other}: {whole}."
    )
