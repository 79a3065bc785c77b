"""What a comparison found: plain numbers, each beside its chance level and its ceiling."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from probes.comparison.estimates import Estimate
from probes.comparison.gating import Gate
from probes.comparison.matching import Match
from probes.files import write_whole

SCHEMA = 1

_BLIND = 0.95
"""Above this bar no score means anything: chance all but reaches 1."""


@dataclass(frozen=True, slots=True)
class Relative:
    """One of the compared models: its name, where it came from, and its size."""

    name: str
    origin: str
    layers: int
    heads: int
    d_model: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Overall:
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
    ceiling: float


@dataclass(frozen=True, slots=True)
class Solved:
    """How far an answer leads on the items that both models solve."""

    model: str
    answer: str
    items: int
    lead: Estimate | None


@dataclass(frozen=True, eq=False)
class View:
    """What the pictures of one model are drawn from, averaged over prompts.

    Attributes:
        attention, attention_error: Attention pooled from role to role.
        components: The rows of the effects: heads and MLPs.
        effects, effect_errors: For each contrast, what patching each component moves (logits).
    """

    attention: Float[np.ndarray, "layer head role role_key"]
    attention_error: Float[np.ndarray, "layer head role role_key"]
    components: tuple[str, ...]
    effects: Mapping[str, Float[np.ndarray, "component role answer"]]
    effect_errors: Mapping[str, Float[np.ndarray, "component role answer"]]


@dataclass(frozen=True, eq=False)
class Comparison:
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
        matches: One for each head of `full`.
        unmatched: Reliable heads of `other` that no head of `full` is matched with.
        overall: The mean of the match scores.
        views: What the pictures are drawn from, by model name.
    """

    full: Relative
    other: Relative
    pattern: str
    title: str
    example: str
    contrasts: Mapping[str, float]
    roles: tuple[str, ...]
    answers: tuple[str, ...]
    prompts: int
    seed: int
    nulls: int
    ceiling: str
    gates: tuple[Gate, ...]
    untrained_accuracy: tuple[float, ...]
    solved: tuple[Solved, ...]
    matches: tuple[Match, ...]
    unmatched: tuple[str, ...]
    overall: Overall
    views: Mapping[str, View]

    @property
    def withheld(self) -> bool:
        """Whether a closed gate withholds the words: no circuit of an absent behaviour."""
        return any(gate.state == "closed" for gate in self.gates)

    def count(self, word: str) -> int:
        """Count the heads of `full` with a word."""
        return sum(match.word == word for match in self.matches)

    def table(self) -> pd.DataFrame:
        """Return the matches as a table, one head of `full` to a row."""
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
                    "bar": match.chance_high,
                    "ceiling": match.ceiling,
                    "reliability": match.reliability,
                    "word": "behaviour absent" if self.withheld else match.word,
                }
            )
        return pd.DataFrame(rows)

    def summary(self) -> tuple[str, ...]:
        """Say in plain sentences what was found and how sure it is."""
        return (*(_gate_line(gate) for gate in self.gates), *self._match_lines())

    def _match_lines(self) -> tuple[str, ...]:
        if self.withheld:
            absent = sorted({gate.model for gate in self.gates if gate.state == "closed"})
            return (
                f"Behaviour absent in {' and '.join(absent)}: heads are scored, but no word is "
                "given to them.",
            )
        busy = len(self.matches) - self.count("idle")
        bar = self.matches[0].chance_high
        if bar > _BLIND:
            return (
                f"Untrained nets offer matches of {bar:.2f}: these prompts have too few roles and "
                "contrasts to tell heads apart. Name more of them.",
            )
        ceiling = ""
        if self.ceiling:
            reach = sum(m.word != "idle" and m.ceiling > bar for m in self.matches)
            ceiling = f" In {self.ceiling} (another seed, n = 1) {reach} of {busy} beat the bar."
        return (
            f"{self.count('matched')} of {busy} heads of {self.full.name} that repeat themselves "
            f"have a match in {self.other.name}: their score beats {bar:.2f}, the 95th percentile "
            f"of the best match that {self.nulls} untrained nets offer.{ceiling}",
            f"Mean score of all pairs {self.overall.score}; untrained nets "
            f"{self.overall.chance:.2f} (95th percentile {self.overall.chance_high:.2f})"
            + (f"; {self.ceiling} {self.overall.ceiling:.2f}." if self.ceiling else "."),
            f"A match says that two heads look and act alike on these prompts. It does not yet "
            f"say that {self.other.name} computes with the same circuit.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values; NaN becomes null."""
        plain = asdict(self) | {"schema": SCHEMA, "summary": list(self.summary())}
        return _plain(plain)

    def save(self, path: str | Path) -> None:
        """Write the page (.html) or the numbers (.json), whole or not at all."""
        from probes.view.report import report

        if Path(path).suffix == ".json":
            write_whole(Path(path), json.dumps(self.to_dict(), indent=1).encode())
        else:
            report(self).save(path)

    def _repr_html_(self) -> str:
        from probes.view.report import report

        return report(self)._repr_html_()

    def __repr__(self) -> str:
        return (
            f"<Comparison {self.full.name} | {self.other.name} on {self.pattern}: "
            f"{self.count('matched')} matched, {self.count('unmatched')} unmatched, "
            f"{self.count('idle')} idle>"
        )


def _gate_line(gate: Gate) -> str:
    return (
        f"{gate.model}, {gate.answer}: {gate.accuracy.value:.0%} right "
        f"[{gate.accuracy.low:.0%}, {gate.accuracy.high:.0%}], best heuristic "
        f"({gate.heuristic}) {gate.heuristic_accuracy:.0%}: gate {gate.state}."
    )


def _plain(value: object) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return _plain(np.round(value.astype(float), 4).tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 6)
    return value
