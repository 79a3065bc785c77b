"""Scores of all wires of a model, as tensors: a circuit is chosen from them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.circuits.graph import ComputationGraph
from probes.circuits.selection import edges_above, greedy_edges, top_edges
from probes.errors import CircuitError

if TYPE_CHECKING:
    from probes.circuits.circuit import Circuit


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """Every wire of a model with what it is worth to one answer.

    Attributes:
        model: Name of the model.
        wiring: What an edge's number means.
        prompts: How many pairs of prompts were scored.
        mean: Fall of the answer's lead (logits) when the edge carries the counterfactual's value,
            mean over prompts. Positive: the edge holds the answer up.
        error: Standard error of the mean over prompts; NaN for a single prompt.
        each: The scores prompt by prompt, or None where only the moments were kept.
        protocol: How it was measured.
    """

    model: str
    graph: ComputationGraph
    prompts: int
    mean: Float[Tensor, " edge"]
    error: Float[Tensor, " edge"]
    per_prompt: Float[Tensor, "prompt edge"] | None
    protocol: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.mean)

    def top(self, count: int) -> "Circuit":
        """Take the edges of greatest magnitude."""
        return self.to_circuit(top_edges(self.mean.numpy(), count), "top")

    def above_threshold(self, threshold: float) -> "Circuit":
        """Take the edges whose magnitude is at least the threshold (logits)."""
        return self.to_circuit(edges_above(self.mean.numpy(), threshold), "threshold")

    def greedy(self, count: int) -> "Circuit":
        """Grow a circuit back from the logits, the strongest adjoining edge at a time."""
        return self.to_circuit(greedy_edges(self.graph, self.mean.numpy(), count), "greedy")

    def all_edges(self) -> "Circuit":
        """Take every edge."""
        return self.to_circuit(np.arange(len(self)), "all")

    def to_circuit(self, indices: np.ndarray, selection: str = "by hand") -> "Circuit":
        """Take edges by their numbers."""
        from probes.circuits.circuit import Circuit

        chosen = np.sort(indices)
        return Circuit(
            model=self.model,
            graph=self.graph,
            edges=tuple(self.graph.edge(int(number)) for number in chosen),
            scores=tuple(self.mean[chosen].tolist()),
            errors=tuple(self.error[chosen].tolist()),
            protocol=(*self.protocol, ("selection", selection)),
        )

    def node_scores(self) -> dict[str, tuple[float, float]]:
        """Return each writer's score with its standard error: the sum of its outgoing edges.

        That sum is what node attribution gives (Nanda 2023): the change of the writer times the
        gradient of the residual it writes to. The error is NaN where no prompt's score was kept.
        """
        source = torch.from_numpy(self.graph.edge_table[0])
        size = len(self.graph.writers)
        mean = torch.zeros(size).index_add(0, source, self.mean)
        error = torch.full((size,), torch.nan)
        if self.per_prompt is not None and self.prompts > 1:
            rows = torch.zeros(self.prompts, size).index_add(1, source, self.per_prompt)
            error = rows.std(0) / self.prompts**0.5
        pairs = zip(mean.tolist(), error.tolist(), strict=True)
        return dict(zip(self.graph.writers, pairs, strict=True))

    def stability(self, count: int, *, draws: int = 1000, seed: int = 0) -> float:
        """Return how alike the top circuits of resampled prompts are: mean pairwise Jaccard.

        Prompts are drawn anew with replacement `draws` times; the field's bar for a report is 0.8
        (Méloux et al. 2025, 2510.00845).

        Raises:
            CircuitError: The scores of single prompts were not kept.
        """
        if self.per_prompt is None:
            raise CircuitError(
                "Stability needs the score of every prompt, and only the moments were kept: call "
                "attribute with each=True"
            )
        if count < 1 or draws < 2:
            raise CircuitError(
                f"Cannot compare circuits of {count} edges in {draws} draws: take at least one "
                "edge and two draws"
            )
        rng = np.random.default_rng(seed)
        even = np.full(self.prompts, 1 / self.prompts)
        weights = torch.from_numpy(rng.multinomial(self.prompts, even, size=draws)).float()
        found = (
            (weights @ self.per_prompt)
            .abs()
            .topk(min(count, len(self)), dim=1, sorted=False)
            .indices
        )
        ever, place = found.unique(return_inverse=True)
        member = torch.zeros(draws, len(ever)).scatter_(1, place, 1.0)
        both = member @ member.T
        jaccard = both / (2 * found.shape[1] - both)
        return float((jaccard.sum() - draws) / (draws * (draws - 1)))
