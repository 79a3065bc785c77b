"""Edge scores: the attribution of a logit difference to every edge of a model."""

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


_BLOCK = 8_000_000  # Floats of the bootstrap draws of all edges that are held at once.


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """Scores of all edges of a model for one task.

    Attributes:
        model: Name of the model.
        graph: The graph that numbers the edges.
        prompts: Number of scored pairs of prompts.
        mean: Drop of the logit difference (logits) when the edge carries the counterfactual's
            value, mean over prompts. Positive edges support the answer.
        error: Standard error of the mean over prompts; NaN for a single prompt.
        per_prompt: Scores of each prompt, or None if they were not kept.
        protocol: How the scores were measured, as pairs of names and values.
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
        """Circuit of the `count` edges with the greatest absolute scores."""
        return self.to_circuit(top_edges(self.mean.numpy(), count), "top")

    def above_threshold(self, threshold: float) -> "Circuit":
        """Circuit of the edges with absolute scores >= `threshold` (logits)."""
        return self.to_circuit(edges_above(self.mean.numpy(), threshold), "threshold")

    def greedy(self, count: int) -> "Circuit":
        """Circuit of a greedy search from the logits; see `selection.greedy_edges`."""
        return self.to_circuit(greedy_edges(self.graph, self.mean.numpy(), count), "greedy")

    def all_edges(self) -> "Circuit":
        """Circuit of every edge."""
        return self.to_circuit(np.arange(len(self)), "all")

    def to_circuit(self, indices: np.ndarray, selection: str = "by hand") -> "Circuit":
        """Circuit of the edges with these numbers; `selection` is noted in the protocol."""
        from probes.circuits.circuit import Circuit

        scores = np.full(len(self), np.nan)
        scores[indices] = self.mean[indices]
        protocol = (*self.protocol, ("selection", selection))
        return Circuit.from_scores(self.model, self.graph, scores, self.error.numpy(), protocol)

    def node_scores(self) -> dict[str, tuple[float, float]]:
        """Score and standard error of each writer: the sum over its outgoing edges.

        This equals node attribution (Nanda 2023): the change of the writer's output times the
        gradient of the residual stream. The error is NaN without per-prompt scores.
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
        """Mean pairwise Jaccard index of the top `count` edges over bootstrap draws of prompts.

        Reports ask for at least 0.8 (Méloux et al. 2025, 2510.00845).

        Raises:
            CircuitError: There are no per-prompt scores, or the numbers are out of range.
        """
        if self.per_prompt is None:
            raise CircuitError(
                "Stability needs the scores of each prompt, which were not kept: call "
                "edge_attribution with per_prompt=True"
            )
        if count < 1 or draws < 2:
            raise CircuitError(
                f"Cannot compare circuits of {count} edges in {draws} draws: use at least one edge "
                "and two draws"
            )
        rng = np.random.default_rng(seed)
        uniform = np.full(self.prompts, 1 / self.prompts)
        weights = torch.from_numpy(rng.multinomial(self.prompts, uniform, size=draws)).float()
        most = min(count, len(self))
        top = torch.cat(
            [
                (part @ self.per_prompt).abs_().topk(most, dim=1, sorted=False).indices
                for part in weights.split(max(1, _BLOCK // len(self)))
            ]
        )
        distinct, column = top.unique(return_inverse=True)
        member = torch.zeros(draws, len(distinct)).scatter_(1, column, 1.0)
        both = member @ member.T
        jaccard = both / (2 * top.shape[1] - both)
        return float((jaccard.sum() - draws) / (draws * (draws - 1)))


class RunningMoments:
    """Mean and standard error of a stream of rows, in double precision (Chan et al. 1983)."""

    def __init__(self, size: int) -> None:
        self.count, self.mean = 0, torch.zeros(size, dtype=torch.float64)
        self.squared_deviations = torch.zeros(size, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "prompt edge"]) -> None:
        """Add rows of scores."""
        rows = rows.cpu().double()
        before, self.count = self.count, self.count + len(rows)
        shift = rows.mean(0) - self.mean
        spread = (rows - rows.mean(0)).square().sum(0)
        self.squared_deviations += spread + shift.square() * before * len(rows) / self.count
        self.mean += shift * len(rows) / self.count

    def result(self) -> tuple[Float[Tensor, " edge"], Float[Tensor, " edge"]]:
        """Mean and standard error (NaN for one row)."""
        if self.count < 2:
            return self.mean.float(), torch.full_like(self.mean, torch.nan).float()
        error = (self.squared_deviations / (self.count * (self.count - 1))).sqrt()
        return self.mean.float(), error.float()
