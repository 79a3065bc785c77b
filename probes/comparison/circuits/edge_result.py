"""Edges of two models with the same graph as part of a comparison, without torch."""

from dataclasses import dataclass
from typing import Literal

from probes.circuits.result import format_fraction
from probes.stats.intervals import Estimate

TransferLabel = Literal["works", "falls short", "cannot tell", "no circuit"]

MARGIN = 0.1
"""A transferred circuit works if its faithfulness is at most this much below the own one's."""

MIN_OWN_FRACTION = 0.5
"""Faithfulness that the interval of a model's own circuit must exceed to count as a circuit."""


_TRANSFER_SENTENCES = {
    "works": "it works there as well",
    "falls short": "it falls short",
    "cannot tell": "these prompts cannot tell whether it works as well",
    "no circuit": "so few edges are no circuit of the model, and nothing follows",
}


@dataclass(frozen=True, slots=True)
class CircuitTransfer:
    """Faithfulness of two circuits of one size in one model, on held-out prompts.

    Attributes:
        model: The model in which they run.
        own: Faithfulness of the model's own circuit.
        transferred: Faithfulness of the other model's circuit.
        gap: `transferred` minus `own`, both capped at 1.
        chance, chance_high: Median and maximum over as many edges of random paths.
        label: "works" if the 95 % interval of the gap is above -0.1, "falls short" if it is below,
            else "cannot tell"; "no circuit" if the interval of `own` does not exceed both 0.5 and
            `chance_high`, so that the gap says nothing.
    """

    model: str
    own: Estimate
    transferred: Estimate
    gap: Estimate
    chance: float
    chance_high: float
    label: TransferLabel

    def sentence(self, other: str) -> str:
        """What the circuit of the other model keeps here, beside its own and random paths."""
        return (
            f"In {self.model} the circuit of {other} keeps {self.transferred} of the logit "
            f"difference, its own {self.own}, random paths {format_fraction(self.chance)} "
            f"(highest {format_fraction(self.chance_high)}): {_TRANSFER_SENTENCES[self.label]}."
        )


@dataclass(frozen=True, slots=True)
class EdgeCircuits:
    """Circuits of the highest-scoring edges of both models, and how they work in either.

    Attributes:
        edges: Number of edges of each circuit.
        jaccard, chance: Jaccard index of their edges (0 to 1), and that of random edges.
        excess: Jaccard index within the models minus that between them, over halves of the prompts.
        own_full, other_in_full: Faithfulness in the full model of its own circuit and of the
            relative's, on held-out prompts.
        full_in_other, own_other: The same in the relative.
        label_full, label_other: Whether the other model's circuit works there, as of
            `CircuitTransfer`.
        random: Highest faithfulness of random circuits of this size in the relative.
    """

    edges: int
    jaccard: float
    chance: float
    excess: Estimate
    own_full: Estimate
    other_in_full: Estimate
    full_in_other: Estimate
    own_other: Estimate
    label_full: str
    label_other: str
    random: float


@dataclass(frozen=True, slots=True)
class EdgeComparison:
    """Comparison of two models with the same graph edge by edge, from one gradient each.

    Attributes:
        all_edges: Number of edges of the graph.
        pairs, held_out: Pairs that the edges are scored on, and pairs that circuits are run on.
        circuits: Circuits by size.
        changed: Number of edges whose scores differ (sign-flip test, false discovery rate 5 %).
        most_changed: Such edges with the difference (full minus relative, logits), the greatest
            first, ten at most.
        min_detectable: Number of edges that must change together before any is significant.
        skip_reason: Why nothing was measured; "" where it was.
    """

    all_edges: int = 0
    pairs: int = 0
    held_out: int = 0
    circuits: tuple[EdgeCircuits, ...] = ()
    changed: int = 0
    most_changed: tuple[tuple[str, Estimate], ...] = ()
    min_detectable: int = 0
    skip_reason: str = ""

    def lines(self, full: str, other: str) -> tuple[str, ...]:
        """Overlap, transfer and changed edges, or why there are none."""
        if self.skip_reason:
            return (f"Circuits are not compared edge by edge: {self.skip_reason}",)
        at = self.circuits[len(self.circuits) // 2]
        most = ", ".join(f"{edge} by {difference}" for edge, difference in self.most_changed[:3])
        power = f"; fewer than {self.min_detectable} cannot be told" * (self.min_detectable > 1)
        return (
            f"Of {self.all_edges} edges the {at.edges} highest-scoring in either model have a "
            f"Jaccard index of {at.jaccard:.2f} (chance {at.chance:.2f}; excess over the noise of "
            f"prompts {at.excess}). The circuit of {full} keeps {at.full_in_other} of the logit "
            f"difference in {other}, its own {at.own_other}, random ones at most {at.random:.2f}: "
            f"{at.label_other}.",
            f"{self.changed} edges have changed{': ' + most if most else ''}{power}.",
        )
