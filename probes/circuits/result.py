"""Results of tracing a circuit: faithfulness, random baselines, edge necessity, specificity."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.circuits.circuit import Circuit
from probes.circuits.specificity import Specificity, specificity_lines
from probes.errors import ResultError
from probes.observe.result import Gate
from probes.plan import budget_lines
from probes.result import Result
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """How much of a behavior a set of edges keeps.

    Attributes:
        edges: Number of kept edges.
        fraction: Of all edges.
        value: f, the ratio of mean logit differences, with its bootstrap interval over prompts.
        per_prompt: f of each prompt; unstable where the prompt's own gap between the clean and the
            ablated run is small, and NaN where it has none. Leave NaN out of means and pictures.
        positive_fraction: Fraction of prompts with a logit difference above 0 (Wilson interval).
        complement: f of all other edges; near 0 where the circuit is complete.
    """

    edges: int
    fraction: float
    value: Estimate
    per_prompt: tuple[float, ...]
    positive_fraction: Estimate
    complement: Estimate


@dataclass(frozen=True, slots=True)
class FaithfulnessCurve:
    """Faithfulness of the highest-scoring edges at growing sizes.

    Attributes:
        fractions: Sizes as fractions of all edges.
        edges: Sizes as counts, at least 1.
        values: f at each size.
        cpr: Area under f over the fraction (MIB's circuit performance ratio; higher is better).
        cmd: Area between f and 1 over the fraction (MIB's circuit-model distance; lower is
            better).
        log_cpr, log_cmd: Means over the logarithm of the fraction: sizes of 1 % to 2 % count as
            much as sizes of 50 % to 100 %.
    """

    fractions: tuple[float, ...]
    edges: tuple[int, ...]
    values: tuple[Estimate, ...]
    cpr: float
    cmd: float
    log_cpr: float
    log_cmd: float


@dataclass(frozen=True, slots=True)
class RandomBaseline:
    """Random circuits with the same number of edges.

    Attributes:
        kind: "edges": any edges; "paths": random paths from the embedding to the logits, so that
            every edge can have an effect.
        values: f of each random circuit.
        percentile: Fraction of them that the circuit exceeds.
    """

    kind: str
    values: tuple[float, ...]
    percentile: float


@dataclass(frozen=True, slots=True)
class EdgeNecessity:
    """Whether one edge of a circuit is necessary.

    Attributes:
        edge: Its name.
        faithfulness_drop: Drop of f when the edge is removed from the circuit.
        p_value: One-sided paired t-test over prompts, Holm-corrected: removing the edge lowers the
            logit difference more than removing a random edge that was added to the circuit.
    """

    edge: str
    faithfulness_drop: float
    p_value: float


@dataclass(frozen=True, slots=True)
class PublishedOverlap:
    """Heads of a published circuit that a circuit of the same model has.

    Attributes:
        source: Publication.
        heads: Number of published heads.
        found: Those from which an edge of the circuit begins, by their published function.
        expected: Mean number for as many random heads of the model.
        p_value: Chance that as many random heads contain so many (hypergeometric).
    """

    source: str
    heads: int
    found: dict[str, tuple[str, ...]]
    expected: float
    p_value: float

    @classmethod
    def of(cls, circuit: Circuit, published: Mapping[str, Any]) -> "PublishedOverlap":
        """Overlap of a circuit with a published one, as `prompts.catalog` describes it."""
        from scipy.stats import hypergeom

        own = {edge.source for edge in circuit.edges if ".H" in edge.source}
        groups = {name: tuple(heads) for name, heads in published["heads"].items()}
        found = {name: tuple(h for h in heads if h in own) for name, heads in groups.items()}
        heads = sum(map(len, groups.values()))
        hits = sum(map(len, found.values()))
        every = published["layers"] * published["heads_per_layer"]
        return cls(
            source=published["source"],
            heads=heads,
            found=found,
            expected=heads * len(own) / every,
            p_value=float(hypergeom.sf(hits - 1, every, heads, len(own))),
        )

    @property
    def hits(self) -> int:
        """Number of published heads in the circuit."""
        return sum(map(len, self.found.values()))


STABILITY_THRESHOLD = 0.8
"""Mean Jaccard index over resampled prompts that reports ask for (Méloux et al. 2025)."""


@dataclass(frozen=True, slots=True, repr=False)
class Trace(Result):
    """A circuit and its evidence.

    Attributes:
        circuit: The pruned circuit.
        gate: The capability check.
        keep: The requested faithfulness.
        discovery: Faithfulness on the prompts that the circuit was found with.
        held_out: Faithfulness on the held-out prompts.
        curve: Faithfulness of the highest-scoring edges at growing sizes, on held-out prompts.
        random_baselines: Random circuits with as many edges, on held-out prompts.
        stability: Mean Jaccard index of as many highest-scoring edges over resampled prompts.
        edge_necessities: Necessity of each edge, on held-out prompts.
        specificities: Effect of ablating this circuit, and that of another pattern, on both; empty
            where this was not tested.
        format: Prompt format.
        published: Overlap with a published circuit of this model and pattern, or None.
        left_out: What a budget left out, in words; empty for the whole measurement.
        specificity_skipped: Why specificity was not tested; empty where it was, and in files of
            earlier versions.
    """

    circuit: Circuit
    gate: Gate
    keep: float
    discovery: Faithfulness
    held_out: Faithfulness
    curve: FaithfulnessCurve
    random_baselines: tuple[RandomBaseline, ...]
    stability: float
    edge_necessities: tuple[EdgeNecessity, ...]
    specificities: tuple[Specificity, ...]
    format: str = "plain"
    published: PublishedOverlap | None = None
    left_out: tuple[str, ...] = ()
    specificity_skipped: str = ""

    def summary(self) -> tuple[str, ...]:
        """The findings, one sentence each."""
        circuit, held = self.circuit, self.held_out
        task = dict(circuit.protocol).get("task", "the task")
        task += f" in the format {self.format}" if self.format != "plain" else ""
        notice = [self.gate.notice] if self.gate.notice else []
        lines = [
            *notice,
            f"{circuit.model} on {task}: {self.gate.score_name} {self.gate.score.value:.0%}; the "
            f"gate is {self.gate.state}.",
            f"{held.edges} of {len(circuit.graph)} edges ({held.fraction:.2%}) keep {held.value} "
            f"of the logit difference on held-out prompts ({self.discovery.value} on the discovery "
            f"prompts; requested {self.keep}). It stays positive in "
            f"{held.positive_fraction.value:.0%} of the prompts.",
            f"All other edges keep {held.complement}.",
        ]
        for null in self.random_baselines:
            if not null.values:
                raise ResultError(
                    f"The baseline of random {null.kind} has 0 circuits: measure it again"
                )
            middle, highest = np.median(null.values), max(null.values)
            lines.append(
                f"{len(null.values)} circuits of as many random {null.kind}: median "
                f"{format_fraction(middle)}, highest {format_fraction(highest)}; the circuit "
                f"exceeds {null.percentile:.0%} of them."
            )
        word = "stable" if self.stability >= STABILITY_THRESHOLD else "not stable"
        necessary = sum(edge.p_value < 0.05 for edge in self.edge_necessities)
        return (
            *lines,
            f"As many highest-scoring edges of resampled prompts have a mean Jaccard index of "
            f"{self.stability:.2f} (threshold {STABILITY_THRESHOLD}): {word}.",
            f"{necessary} of {len(self.edge_necessities)} edges are necessary (t-test against "
            "randomly added edges, Holm-corrected).",
            *specificity_lines(self.specificities, self.specificity_skipped),
            *self._published_summary(),
            *self._budget_summary(),
        )

    def table(self) -> "pd.DataFrame":
        """One row for each edge of the circuit: see `Circuit.table`."""
        return self.circuit.table()

    def _published_summary(self) -> tuple[str, ...]:
        if (known := self.published) is None:
            return ()
        return (
            f"It has {known.hits} of the {known.heads} heads of the published circuit "
            f"({known.source}); as many random heads have {known.expected:.1f} "
            f"(p = {known.p_value:.2g}).",
        )

    def _budget_summary(self) -> tuple[str, ...]:
        pruning = dict(self.circuit.protocol).get("pruning")
        less = (*self.left_out, *([f"pruning, which {pruning}"] if pruning else ()))
        return budget_lines(less)

    def __repr__(self) -> str:
        held = self.held_out
        return f"<Trace of {self.circuit.model}: {held.edges} edges keep {held.value}>"


def format_fraction(value: float) -> str:
    """A fraction with two decimals, and no minus sign before 0.00."""
    return f"{round(float(value), 2) + 0.0:.2f}"
