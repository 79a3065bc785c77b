"""One model beside several relatives: what became of each head and variable, in one table."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probes.comparison.explanation import Explanation
from probes.comparison.result import Comparison
from probes.errors import EquivalenceError, SiteError
from probes.result import Result


@dataclass(frozen=True, eq=False)
class FamilyComparison(Result):
    """A model compared with its relatives, on the same prompts and against the same nets.

    Attributes:
        comparisons: One for each relative.
    """

    comparisons: tuple[Comparison, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The relatives."""
        return tuple(found.other.name for found in self.comparisons)

    def __getitem__(self, name: str) -> Comparison:
        """Return the comparison with one relative."""
        for found in self.comparisons:
            if found.other.name == name:
                return found
        raise SiteError(f"{name!r} was not compared: there are {', '.join(self.names)}")

    def table(self) -> pd.DataFrame:
        """Return the words: a variable or head to a row, a relative to a column."""
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
        rows["new heads"] = {
            one.other.name: ", ".join(f.counterpart for f in one.verdicts if f.label == "new")
            or "–"
            for one in self.comparisons
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(self.names))

    def metrics(self) -> pd.DataFrame:
        """Return the numbers beside the words: gates, matches and kinship, nulls as columns too.

        Kinship is how much a relative's states turn the full model's answers, gate or no gate.
        """
        first = self.comparisons[0]
        rows: dict[str, dict[str, float]] = {}
        for one in self.comparisons:
            gates = one.gates[len(one.answers) :]
            rows[one.other.name] = {
                **{f"{gate.answer} right": gate.accuracy.value for gate in gates},
                "head similarity": one.mean_pair_score.score.value,
                "head similarity, random-init (95th percentile)": one.mean_pair_score.chance_high,
                "mean interchange accuracy": one.mean_interchange_accuracy,
                **{
                    f"{b.variable} interchange accuracy": b.interchange_accuracy.value
                    for b in one.transfers_to_full
                },
            }
        if first.transfers_to_full:
            nets = [
                np.array([back.nulls for back in one.transfers_to_full]) for one in self.comparisons
            ]
            rows["best random-init"] = {
                "mean interchange accuracy": float(max(net.mean(0).max() for net in nets)),
                **{
                    f"{one.variable} interchange accuracy": float(max(net[k].max() for net in nets))
                    for k, one in enumerate(first.transfers_to_full)
                },
            }
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
        """Say in plain sentences what was found, relative by relative."""
        return tuple(_summary_line(one) for one in self.comparisons)

    def explain(self, subject: str, relative: str) -> Explanation:
        """Show the interventions behind a word; see `Comparison.why`."""
        return self[relative].explain(subject)

    def assert_equivalent(self, margin: float = 0.1, *, heads: bool = False) -> None:
        """Raise unless every relative is surely the full model's equal; see `Comparison`.

        Raises:
            EquivalenceError: One is not; the message says which, and why.
        """
        against = []
        for one in self.comparisons:
            try:
                one.assert_equivalent(margin, heads=heads)
            except EquivalenceError as error:
                against.append(str(error))
        if against:
            raise EquivalenceError("\n".join(against))

    def __repr__(self) -> str:
        first = self.comparisons[0]
        return f"<Relatives of {first.full.name} on {first.pattern}: {', '.join(self.names)}>"


def _verdict_text(verdict: Any) -> str:  # noqa: ANN401
    return f"{verdict.label} ({verdict.counterpart})" if verdict.counterpart else verdict.label


def _summary_line(comparison: Comparison) -> str:
    words: dict[str, list[str]] = {}
    for verdict in comparison.verdicts:
        if verdict.label not in ("no reliable effect",):
            words.setdefault(verdict.label, []).append(verdict.subject or verdict.counterpart)
    gates = ", ".join(
        f"{gate.answer} {gate.accuracy.value:.0%} right"
        for gate in comparison.gates[len(comparison.answers) :]
    )
    if set(words) == {"behavior absent"}:
        return f"{comparison.other.name} ({gates}) – behavior absent."
    told = "; ".join(f"{word}: {', '.join(names)}" for word, names in words.items())
    return f"{comparison.other.name} ({gates}) – {told}."
