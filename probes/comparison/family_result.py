"""Family comparison: the verdicts on a model's heads and variables in several relatives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from probes.comparison.equivalence import EquivalenceCheck, require_all
from probes.comparison.explanation import Explanation
from probes.comparison.model_facts import lineage_lines
from probes.comparison.result import Comparison
from probes.comparison.verdict import Verdict, error_rate_line, repeat_lines, repeated_verdicts
from probes.errors import SiteError
from probes.observe.result import Gate
from probes.result import Result


@dataclass(frozen=True, eq=False)
class FamilyComparison(Result):
    """Comparisons of a model with several relatives, on the same prompts and null models."""

    comparisons: tuple[Comparison, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the relatives."""
        return tuple(found.other.name for found in self.comparisons)

    def __getitem__(self, name: str) -> Comparison:
        """Return the comparison with one relative."""
        for found in self.comparisons:
            if found.other.name == name:
                return found
        raise SiteError(f"{name!r} was not compared: choose from {', '.join(self.names)}")

    def table(self) -> pd.DataFrame:
        """Verdicts: a row for each path, variable or head, a column for each relative."""
        subjects = dict.fromkeys(
            verdict.subject
            for one in self.comparisons
            for verdict in one.verdicts
            if verdict.subject
        )
        rows = {}
        for subject in subjects:
            rows[subject] = {
                one.other.name: next(
                    (
                        _verdict_text(verdict)
                        for verdict in one.verdicts
                        if verdict.subject == subject
                    ),
                    "",
                )
                for one in self.comparisons
            }
        rows["new"] = {
            one.other.name: ", ".join(f.counterpart for f in one.verdicts if f.label == "new")
            or "–"
            for one in self.comparisons
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(self.names))

    def metrics(self) -> pd.DataFrame:
        """Accuracies, head similarity and interchange accuracies; a column for each model.

        The last columns are the best random-init model, unless the null is permuted, and the
        negative controls.
        """
        first = self.comparisons[0]
        rows: dict[str, dict[str, float]] = {}
        for one in self.comparisons:
            gates = one.gates[len(one.answers) :]
            rows[one.other.name] = {
                **{_score_title(gate): gate.score.value for gate in gates},
                "head similarity": one.mean_pair_score.score.value,
                f"head similarity, {one.method.null} (threshold)": one.mean_pair_score.chance_high,
                "mean interchange accuracy": one.mean_interchange_accuracy,
                **{
                    f"{b.variable} interchange accuracy": b.interchange_accuracy.value
                    for b in one.transfers_to_full
                },
            }
        null_rates = [
            np.array([back.nulls for back in one.transfers_to_full]) for one in self.comparisons
        ]
        if any(rates.size for rates in null_rates):
            known = [rates for rates in null_rates if rates.size]
            rows["best random-init"] = {
                "mean interchange accuracy": float(max(rates.mean(0).max() for rates in known)),
                **{
                    f"{one.variable} interchange accuracy": float(
                        max(rates[k].max() for rates in known)
                    )
                    for k, one in enumerate(first.transfers_to_full)
                },
            }
        if first.transfers_to_full:
            for name in first.transfers_to_full[0].negative_controls:
                rows[name] = {
                    "mean interchange accuracy": float(
                        np.mean([one.negative_controls[name] for one in first.transfers_to_full])
                    ),
                    **{
                        f"{one.variable} interchange accuracy": one.negative_controls[name]
                        for one in first.transfers_to_full
                    },
                }
        return pd.DataFrame.from_dict(rows, orient="index").T

    def summary(self) -> tuple[str, ...]:
        """One line for each relative, and the error rate of all verdicts together."""
        verdicts = [verdict for one in self.comparisons for verdict in one.verdicts]
        full = self.comparisons[0].full
        lines = lineage_lines((full, *(one.other for one in self.comparisons)))
        repeats = (
            f"{one.other.name} – {line}"
            for one in self.comparisons
            for line in repeat_lines(one.repeats)
        )
        return (*map(_summary_line, self.comparisons), *lines, error_rate_line(verdicts), *repeats)

    def stability(self) -> pd.DataFrame:
        """Fraction with the most frequent verdict, by relative; see `Comparison.stability`."""
        return pd.DataFrame({one.other.name: one.stability() for one in self.comparisons})

    def explain(self, subject: str, relative: str) -> Explanation:
        """Interventions behind a verdict; see `Comparison.explain`."""
        return self[relative].explain(subject)

    def equivalence(
        self, margin: float = 0.1, *, heads: bool | None = None
    ) -> tuple[EquivalenceCheck, ...]:
        """Test each relative for equivalence; see `Comparison.assert_equivalent`."""
        return tuple(one.equivalence(margin, heads=heads) for one in self.comparisons)

    def assert_equivalent(self, margin: float = 0.1, *, heads: bool | None = None) -> None:
        """Raise unless every relative is equivalent; see `Comparison.assert_equivalent`.

        Raises:
            EquivalenceError: A part of a relative is not shown to be equivalent.
            NotTestedError: No relative failed, but one was not tested.
        """
        require_all(self.equivalence(margin, heads=heads))

    def __repr__(self) -> str:
        first = self.comparisons[0]
        return (
            f"<FamilyComparison of {first.full.name} on {first.pattern}: {', '.join(self.names)}>"
        )


def gather_repeats(repeats: Sequence[Sequence[Comparison]]) -> FamilyComparison:
    """Comparisons of the first draw of pairs, each with its verdicts in all draws.

    Args:
        repeats: For each draw of pairs, the comparisons with the same relatives.
    """
    if len(repeats) == 1:
        return FamilyComparison(tuple(repeats[0]))
    return FamilyComparison(
        tuple(
            replace(found[0], repeats=repeated_verdicts([one.verdicts for one in found]))
            for found in zip(*repeats, strict=True)
        )
    )


def _verdict_text(verdict: Verdict) -> str:
    return f"{verdict.label} ({verdict.counterpart})" if verdict.counterpart else verdict.label


def _summary_line(comparison: Comparison) -> str:
    by_label: dict[str, list[str]] = {}
    for verdict in comparison.verdicts:
        if verdict.label not in ("no reliable effect",):
            name = verdict.display_name
            if verdict.kind == "head" and not verdict.subject:
                name = f"{comparison.other.name} {name}"
            by_label.setdefault(verdict.label, []).append(name)
    gates = ", ".join(_score_text(gate) for gate in comparison.gates[len(comparison.answers) :])
    if set(by_label) == {"behavior absent"}:
        return f"{comparison.other.name} ({gates}) – behavior absent."
    verdicts = "; ".join(f"{label}: {', '.join(names)}" for label, names in by_label.items())
    notices = dict.fromkeys(f" {gate.notice}" for gate in comparison.gates if gate.notice)
    return f"{comparison.other.name} ({gates}) – {verdicts}.{''.join(notices)}"


def _score_title(gate: Gate) -> str:
    return f"{gate.answer} {'above its foils' if gate.criterion == 'choice' else 'right'}"


def _score_text(gate: Gate) -> str:
    word = "above its foils" if gate.criterion == "choice" else "right"
    return f"{gate.answer} {gate.score.value:.0%} {word}"
