"""Comparison of a model with one relative: verdicts on paths, variables and heads, with numbers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from probes.comparison.circuits.edge_result import EdgeComparison
from probes.comparison.equivalence import EquivalenceCheck, check_equivalence
from probes.comparison.explanation import Explanation, FailingPrompt, strongest_effects
from probes.comparison.heads.result import HeadMatch, MeanPairScore
from probes.comparison.model_facts import ModelFacts, PlotData, SolvedLogitDiff, lineage_lines
from probes.comparison.paths.result import PathCircuit, PathEffect, paths_line
from probes.comparison.setup.method import ComparisonMethod
from probes.comparison.variables.result import CrossModelTransfer, VariableDraw
from probes.comparison.verdict import (
    RepeatedVerdict,
    Verdict,
    error_rate_line,
    repeat_lines,
    survival_line,
)
from probes.errors import SiteError
from probes.observe.result import Gate
from probes.result import Result
from probes.stats.intervals import Estimate


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """Comparison of a model with one relative on one pattern.

    Attributes:
        full, other: The model and the relative.
        pattern, title, format: Name of the pattern, its description and the prompt format.
        example: One question with its answers.
        contrasts: Contrasts that were patched, each with the fraction of its pairs whose tokens
            all have a counterpart.
        roles, answers: Axes of the plots.
        prompts, seed, nulls: Pairs of each contrast, seed, number of draws of the null.
        other_seed: Name of the other-seed model, or "".
        gates: Gates of `full`, then of `other`, one for each answer.
        random_init_accuracy: Mean over the random-init models of the fraction of questions in which
            each answer is right as the gate counts it (`Behavior.counted`): the whole answer, or
            the answer above its foils. Empty where the null is permuted.
        solved_logit_diffs: Logit differences on the questions that both models solve.
        matches: Partner and pairing score of each head of `full`.
        mean_pair_score: Mean of the pairing scores.
        plot_data: Data of the plots, by model name.
        accuracy_changes: For each answer the accuracy of `other` minus that of `full`, paired by
            question.
        verdicts: On each role path, variable and head of `full`, and on what is new in `other`.
        transfers_to_other, transfers_to_full: Cross-model interchange from `full` into `other`,
            and back, over all draws.
        paths: Role paths that were found in either model, with their effects in both.
        path_circuits: All paths of `full` together, for each contrast.
        draws: Each variable in each draw of prompts, held-out words, folds and sites.
        transfer_skip_reason: Why there is no cross-model interchange; "" where there is.
        failing_prompts: For each variable and head, prompts on which the models differ most.
        method: How effects and the null were measured.
        edges: Comparison edge by edge; None where it was not made.
        repeats: Verdicts in this comparison and in those with other prompts; empty without these.
    """

    full: ModelFacts
    other: ModelFacts
    pattern: str
    title: str
    example: str
    contrasts: Mapping[str, float]
    roles: tuple[str, ...]
    answers: tuple[str, ...]
    prompts: int
    seed: int
    nulls: int
    other_seed: str
    gates: tuple[Gate, ...]
    random_init_accuracy: tuple[float, ...]
    solved_logit_diffs: tuple[SolvedLogitDiff, ...]
    matches: tuple[HeadMatch, ...]
    mean_pair_score: MeanPairScore
    plot_data: Mapping[str, PlotData]
    accuracy_changes: tuple[Estimate, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    paths: tuple[PathEffect, ...] = ()
    path_circuits: tuple[PathCircuit, ...] = ()
    transfers_to_other: tuple[CrossModelTransfer, ...] = ()
    transfers_to_full: tuple[CrossModelTransfer, ...] = ()
    draws: tuple[VariableDraw, ...] = ()
    transfer_skip_reason: str = ""
    failing_prompts: Mapping[str, tuple[FailingPrompt, ...]] = field(default_factory=dict)
    format: str = "plain"
    method: ComparisonMethod = field(default_factory=ComparisonMethod)
    edges: EdgeComparison | None = None
    repeats: tuple[RepeatedVerdict, ...] = ()

    @property
    def mean_interchange_accuracy(self) -> float:
        """Mean cross-model interchange accuracy from `other` into `full`, over variables, 0 to 1.

        It ranks models that fail the task as well.
        """
        rates = [one.interchange_accuracy.value for one in self.transfers_to_full]
        return float(np.mean(rates)) if rates else np.nan

    @property
    def partners(self) -> dict[str, str]:
        """Head of `other` that each head of `full` is paired with, whatever its verdict."""
        return {match.head: match.partner for match in self.matches if match.partner}

    @property
    def behavior_absent(self) -> bool:
        """Whether a gate is closed, so that there are no verdicts."""
        return any(gate.state == "closed" for gate in self.gates)

    @property
    def head_labels(self) -> dict[str, str]:
        """Verdict on each head of `full`."""
        return {v.subject: v.label for v in self.verdicts if v.kind == "head" and v.subject}

    def verdict(self, subject: str) -> Verdict:
        """Return the verdict on a path, a variable, a head of `full`, or a new head of `other`.

        A new head is named with its model where `full` has a head of that name: "distilled L0.H2".

        Raises:
            SiteError: There is no verdict on this subject.
        """
        names = {v.display_name: v for v in self.verdicts if v.subject}
        names |= {v.subject or f"{self.other.name} {v.counterpart}": v for v in self.verdicts}
        names = {v.counterpart: v for v in self.verdicts if not v.subject} | names
        if subject not in names:
            known = ", ".join(v.subject or v.counterpart for v in self.verdicts)
            raise SiteError(f"There is no verdict on {subject!r}: choose from {known or 'none'}")
        return names[subject]

    def explain(self, subject: str) -> Explanation:
        """Return the interventions behind a verdict, and prompts on which the models differ.

        Args:
            subject: Such as "operation", "L2.H3", or "operation: op → answer".
        """
        verdict = self.verdict(subject)
        if verdict.kind == "variable":
            table = self.transfer_table().query("variable == @verdict.subject")
        elif verdict.kind == "path":
            table = self.path_table().query("path == @subject")
        else:
            data = (self.plot_data[self.full.name], self.plot_data[self.other.name])
            table = strongest_effects(data, verdict, self.roles, self.answers)
        return Explanation(verdict, table, self.failing_prompts.get(verdict.subject, ()))

    def transfer_table(self) -> pd.DataFrame:
        """Cross-model interchange accuracies: a row for each variable and direction."""
        every = (*self.transfers_to_other, *self.transfers_to_full)
        return pd.DataFrame([one.row() for one in every])

    def path_table(self) -> pd.DataFrame:
        """Role paths: the fraction of the effect that each carries in both models."""
        verdicts = {v.subject or v.counterpart: v.label for v in self.verdicts if v.kind == "path"}
        return pd.DataFrame(
            [{**one.row(), "verdict": verdicts.get(one.subject, "")} for one in self.paths]
        )

    def stability(self) -> dict[str, float]:
        """Fraction of comparisons, or of draws, with the most frequent verdict.

        With `repeats`: for each path, variable and head over whole comparisons with other prompts.
        Without: for each variable over its draws, as heads and role paths are drawn once.
        """
        if self.repeats:
            return {one.subject: one.stability for one in self.repeats}
        labels: dict[str, Counter[str]] = {}
        for draw in self.draws:
            labels.setdefault(draw.variable, Counter())[draw.label] += 1
        return {name: max(n.values()) / n.total() for name, n in labels.items()}

    def draw_table(self) -> pd.DataFrame:
        """Sites, interchange accuracy and verdict of each variable in each draw."""
        rows = [
            {
                "variable": draw.variable,
                "seed": draw.seed,
                f"site in {self.full.name}": draw.full_site,
                f"site in {self.other.name}": draw.site,
                "interchange accuracy": draw.interchange_accuracy.value,
                "verdict": draw.label,
            }
            for draw in self.draws
        ]
        return pd.DataFrame(rows)

    def repeat_table(self) -> pd.DataFrame:
        """Verdicts in repeated comparisons: a row for each path, variable and head."""
        rows = [
            {
                "kind": one.kind,
                "subject": one.subject,
                **{str(k + 1): label for k, label in enumerate(one.labels)},
                "stability": one.stability,
            }
            for one in self.repeats
        ]
        return pd.DataFrame(rows)

    def equivalence(self, margin: float = 0.1, *, heads: bool | None = None) -> EquivalenceCheck:
        """Test each answer, path, variable and head for equivalence; see `assert_equivalent`."""
        return check_equivalence(self, margin, heads=heads)

    def assert_equivalent(self, margin: float = 0.1, *, heads: bool | None = None) -> None:
        """Raise unless `other` is equivalent to `full`: a regression test for compression.

        Equivalent means, each with its whole 95 % interval: no answer loses `margin` of accuracy;
        each variable that `full` holds at one site is held by `other` at the same; states of
        `full`, interchanged there, lose at most `margin` of interchange accuracy; the fraction that
        each role path carries changes by at most `margin`.

        Args:
            margin: A fraction, 0 to 1.
            heads: Whether every head of `full` with a reliable effect must be equivalent as well.
                By default the heads decide where no variable was tested, as with a pairs file.

        Raises:
            EquivalenceError: A part is not shown to be equivalent.
            NotTestedError: No path, variable or head was tested.
        """
        self.equivalence(margin, heads=heads).require()

    def table(self) -> pd.DataFrame:
        """Pairing score and verdict of each head of `full`."""
        rows = [
            {
                "head": match.head,
                "partner": match.partner,
                "score": match.score.value,
                "low": match.score.low,
                "high": match.score.high,
                "chance": match.chance,
                "threshold": match.threshold,
                "other_seed": match.other_seed_score,
                "reliability": match.reliability,
                "verdict": self.head_labels.get(match.head, ""),
            }
            for match in self.matches
        ]
        return pd.DataFrame(rows)

    def summary(self) -> tuple[str, ...]:
        """Gates, verdicts on paths, variables and heads, pairing score, then what survives."""
        # Gates first: pages mark the first lines by the state of each gate.
        gates = (
            *(gate.sentence for gate in self.gates),
            *(gate.notice for gate in self.gates if gate.notice),
            *lineage_lines((self.full, self.other)),
        )
        if self.behavior_absent:
            note = "Heads have pairing scores, but no verdicts."
            return (*gates, note, self._survival_line())
        rate = error_rate_line(self.verdicts)
        return (*gates, *self._verdict_lines(), rate, self._survival_line())

    def _verdict_lines(self) -> tuple[str, ...]:
        variables = ", ".join(
            f"{v.display_name} {v.label}" for v in self.verdicts if v.kind == "variable"
        )
        if not variables:
            variables = f"no verdicts ({self.transfer_skip_reason or 'none was tested'})"
        null = f"{self.nulls} {self.method.null_name}"
        threshold = max((match.threshold for match in self.matches), default=0.0)
        return (
            paths_line(self.full.name, self.other.name, self.verdicts, self.path_circuits),
            f"Variables of {self.full.name} in {self.other.name}: {variables}.",
            f"Heads of {self.full.name} in {self.other.name}: {self._head_counts()}.",
            self.mean_pair_score.line(null, threshold, self.other_seed),
            *(self.edges.lines(self.full.name, self.other.name) if self.edges else ()),
            *self.method.lines(),
            *repeat_lines(self.repeats),
        )

    def _survival_line(self) -> str:
        if self.behavior_absent:
            absent = " and ".join(sorted({g.model for g in self.gates if g.state == "closed"}))
            return f"Behavior absent in {absent}: nothing can be said about the circuit."
        return survival_line(self.other.name, self.verdicts)

    def _head_counts(self) -> str:
        counts = Counter(self.head_labels.values())
        return ", ".join(f"{n} {label}" for label, n in counts.most_common()) or "no verdicts"

    def __repr__(self) -> str:
        names = f"{self.full.name} | {self.other.name} on {self.pattern}"
        return f"<Comparison {names}: {self._head_counts()}>"
