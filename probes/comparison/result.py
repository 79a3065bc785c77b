"""What a comparison found: plain numbers, each beside its chance level and its ceiling."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from probes.comparison.explanation import Explanation, FailingPrompt, strongest_effects
from probes.comparison.heads.result import HeadMatch
from probes.comparison.model_facts import ModelFacts, PlotData
from probes.comparison.variables.result import CrossModelTransfer
from probes.comparison.verdict import NON_INFERIORITY, REFERENCE_SITE, Verdict
from probes.errors import EquivalenceError, SiteError
from probes.observe.result import Gate
from probes.result import Result
from probes.stats.intervals import Estimate

_MAX_THRESHOLD = 0.95
"""Above this bar no score means anything: chance all but reaches 1."""


@dataclass(frozen=True, slots=True)
class MeanPairScore:
    """The mean score of all paired heads, beside chance and ceiling.

    Attributes:
        score: The mean over the pairs, with its interval over prompts.
        chance, chance_high: Mean and 95th percentile of the same mean in untrained nets.
        ceiling: The mean of as many pairs, the best, of another seed of the first model, or
            NaN; n = 1.
    """

    score: Estimate
    chance: float
    chance_high: float
    other_seed: float


@dataclass(frozen=True, slots=True)
class SolvedLogitDiff:
    """How far an answer leads on the items that both models solve."""

    model: str
    answer: str
    items: int
    logit_diff: Estimate | None


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """Two relatives on one pattern: can they do it, and which heads do the same.

    Attributes:
        full, other: The models.
        pattern, title: The pattern and what it says.
        example: One question of the pattern with its answers.
        contrasts: The contrasts that were patched, each with the share of its pairs whose tokens
            all had a counterpart.
        roles, answers: The axes of the views.
        prompts, seed, nulls: Pairs a contrast, the seed, and how many untrained nets gave chance.
        ceiling: Name of the other seed, or "".
        gates: Full's gates, then the other's, one for each answer.
        untrained_accuracy: Mean accuracy of the untrained nets for each answer.
        solved: Leads on the items that both models solve.
        matches: Partner and pairing score of each head of `full`.
        overall: The mean of the match scores.
        views: What the pictures are drawn from, by model name.
        changes: For each answer the other's accuracy less full's, paired by question.
        fates: What became of each variable, of each head of full, and of what the other alone has.
        forth, back: What full's states turn in the other, and the other's in full.
        untried: Why no state was carried over; "" where it was.
        items: For each variable and head, prompts on which the models part most.
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
    transfers_to_other: tuple[CrossModelTransfer, ...] = ()
    transfers_to_full: tuple[CrossModelTransfer, ...] = ()
    transfer_skip_reason: str = ""
    failing_prompts: Mapping[str, tuple[FailingPrompt, ...]] = field(default_factory=dict)

    @property
    def mean_interchange_accuracy(self) -> float:
        """How much the other's states turn full's answers: the mean over variables, 0 to 1.

        It does not ask whether the other can do the task, and so ranks nets that cannot.
        """
        return (
            float(np.mean([one.interchange_accuracy.value for one in self.transfers_to_full]))
            if self.transfers_to_full
            else np.nan
        )

    @property
    def partners(self) -> dict[str, str]:
        """The head of the other that each head of full was paired with, word or no word."""
        return {match.head: match.partner for match in self.matches if match.partner}

    @property
    def behavior_absent(self) -> bool:
        """Whether a closed gate withholds the words: no circuit of an absent behavior."""
        return any(gate.state == "closed" for gate in self.gates)

    @property
    def head_labels(self) -> dict[str, str]:
        """Verdict on each head of `full`."""
        return {v.subject: v.label for v in self.verdicts if v.kind == "head" and v.subject}

    def verdict(self, subject: str) -> Verdict:
        """Return what became of a variable, a head of full, or a head that the other alone has.

        The last is named by its model as well where full has a head of that number:
        "distilled L0.H2".

        Raises:
            SiteError: There is no such thing.
        """
        for found in self.verdicts:
            if subject == (found.subject or f"{self.other.name} {found.counterpart}"):
                return found
        for found in self.verdicts:
            if subject and not found.subject and subject == found.counterpart:
                return found
        known = ", ".join(found.subject or found.counterpart for found in self.verdicts)
        raise SiteError(f"Nothing was said of {subject!r}: there are {known or 'no words at all'}")

    def explain(self, subject: str) -> Explanation:
        """Show the interventions behind a word, and the prompts on which the models part.

        Args:
            subject: A variable such as "operation", or a head such as "L2.H3".
        """
        verdict = self.verdict(subject)
        if verdict.kind == "variable":
            table = self.transfer_table().query("variable == @verdict.subject")
        else:
            views = (self.plot_data[self.full.name], self.plot_data[self.other.name])
            table = strongest_effects(views, verdict, self.roles, self.answers)
        return Explanation(verdict, table, self.failing_prompts.get(verdict.subject, ()))

    def transfer_table(self) -> pd.DataFrame:
        """Return what each model's states turn in the other, one variable and way to a row."""
        rows = []
        for one in (*self.transfers_to_other, *self.transfers_to_full):
            rows.append(
                {
                    "variable": one.variable,
                    "donor": one.donor,
                    "recipient": one.recipient,
                    "site": one.site,
                    "read at": " + ".join(one.donor_sites),
                    "own": one.own_accuracy.value,
                    "ceiling": one.own_ridge_accuracy.value,
                    **{kind: value.value for kind, value in one.maps.items()},
                    **{name: value.value for name, value in one.controls.items()},
                    "strangers": max(one.negative_controls.values(), default=np.nan),
                    "excess": one.excess.value,
                    "excess low": one.excess.low,
                    "best stand-in": one.best_control,
                    "shortfall": one.shortfall.value,
                    "shortfall high": one.shortfall.high,
                    "items": one.pairs,
                }
            )
        return pd.DataFrame(rows)

    def assert_equivalent(self, margin: float = 0.1, *, heads: bool = False) -> None:
        """Raise unless the other is surely full's equal: a regression test for compression.

        Equal means, each with its whole 95 % interval: no answer is right less often by the margin
        or more; every variable that full holds at a place is held by the other at the same, and
        full's states, put in there, turn at most the margin less than its own.

        Args:
            margin: In shares, 0 to 1.
            heads: Whether every head of full that repeats itself must have its equal as well.

        Raises:
            EquivalenceError: Something is not surely equal; the message says what.
        """
        against = [*self._behavior_failures(margin), *self._variable_failures(margin)]
        if heads:
            against += [
                f"{verdict.subject}: {verdict.label}, not surely as strong and as alike"
                for verdict in self.verdicts
                if verdict.kind == "head" and verdict.subject and verdict.label != "no reliable effect"
                and not verdict.equivalent
            ]  # fmt: skip
        if against:
            raise EquivalenceError(
                f"{self.other.name} is not surely equal to {self.full.name} within {margin}: "
                + "; ".join(against)
            )

    def _behavior_failures(self, margin: float) -> list[str]:
        found = []
        for gate in self.gates[: len(self.answers)]:
            if gate.state == "closed":
                found.append(f"{gate.answer} is right in {gate.accuracy} of {gate.model} itself")
        for answer, change in zip(self.answers, self.accuracy_changes, strict=True):
            if change.low <= -margin:
                found.append(f"{answer}: accuracy changes by {change}")
        return found

    def _variable_failures(self, margin: float) -> list[str]:
        if self.transfer_skip_reason:
            return []
        variables = {
            verdict.subject: verdict for verdict in self.verdicts if verdict.kind == "variable"
        }
        if not variables:
            return ["no variable could be judged, as a gate is closed"]
        transfers_to_other = {one.variable: one for one in self.transfers_to_other}
        found = []
        for name, verdict in variables.items():
            held = verdict.test(REFERENCE_SITE)
            if held and held.passed is not True:
                continue  # The full model itself holds it at no one place: nothing to keep.
            against = [verdict.reason]
            # Nothing was put into a relative with a closed gate.
            surely = name in transfers_to_other and verdict.label not in (
                "split",
                "merged",
                "moved",
            )
            surely &= all(
                t.passed or t.id == NON_INFERIORITY for t in verdict.tests if t.is_deciding
            )
            one = transfers_to_other.get(name)
            if one and (one.shortfall.high >= margin or one.own_ridge_accuracy.low <= margin):
                against.append(
                    f"states of {self.full.name} fall short by {one.shortfall} of {one.own_ridge_accuracy}"
                )
            if not surely or len(against) > 1:
                found.append(f"{name}: {verdict.label} ({', '.join(against)})")
        return found

    def table(self) -> pd.DataFrame:
        """Pairing score and verdict of each head of `full`."""
        rows = []
        for match in self.matches:
            rows.append(
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
            )
        return pd.DataFrame(rows)

    def summary(self) -> tuple[str, ...]:
        """Say in plain sentences what was found and how sure it is."""
        return (*(_gate_line(gate) for gate in self.gates), *self._match_lines())

    def _match_lines(self) -> tuple[str, ...]:
        if self.behavior_absent:
            absent = sorted({gate.model for gate in self.gates if gate.state == "closed"})
            return (
                f"Behavior absent in {' and '.join(absent)}: heads have pairing scores, but no "
                "verdicts.",
            )
        threshold = self.matches[0].threshold
        if threshold > _MAX_THRESHOLD:
            return (
                f"Random-init models reach pairing scores of {threshold:.2f}: these prompts have "
                "too few roles and contrasts to tell heads apart. Add roles or contrasts.",
            )
        mean = self.mean_pair_score
        other_seed = f"; {self.other_seed} {mean.other_seed:.2f}" if self.other_seed else ""
        return (
            f"Heads of {self.full.name} in {self.other.name}: {self._head_counts()}.",
            f"Mean pairing score {mean.score}; {self.nulls} random-init models {mean.chance:.2f} "
            f"(95th percentile {mean.chance_high:.2f}){other_seed}.",
        )

    def _head_counts(self) -> str:
        counts = Counter(self.head_labels.values())
        return ", ".join(f"{n} {label}" for label, n in counts.most_common()) or "no verdicts"

    def __repr__(self) -> str:
        return (
            f"<Comparison {self.full.name} | {self.other.name} on {self.pattern}: "
            f"{self._head_counts()}>"
        )


def _gate_line(gate: Gate) -> str:
    return (
        f"{gate.model}, {gate.answer}: {gate.accuracy.value:.0%} right "
        f"[{gate.accuracy.low:.0%}, {gate.accuracy.high:.0%}], best heuristic "
        f"({gate.heuristic}) {gate.heuristic_accuracy:.0%}: gate {gate.state}."
    )
