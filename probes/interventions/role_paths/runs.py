"""Runs of role graphs: copies of a clean run that compute the tokens of one role each.

In the copy of role B, B's own tokens read all other tokens in the copies of their roles where the
graph has the edge, and in the clean run elsewhere. Graphs share the copies of roles that depend on
the same edges. Only own tokens are computed, with the keys and values of the other copies; models
whose blocks cannot restart compute whole copies.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.interventions.activation_patching import run_batch_with_cache
from probes.interventions.cached_run import CachedRun
from probes.interventions.role_paths.graph import RoleGraph
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.model import Model
from probes.models.readout import last_token
from probes.models.site import RESID
from probes.prompts.tokens.pair_batch import PairBatch

_FLOATS_PER_PASS = 8_000_000  # Keys of all tokens of a pass.


@dataclass(frozen=True, eq=False)
class RoleRuns:
    """Clean run of some pairs, and what its tokens are exchanged with.

    Attributes:
        clean: Run of the clean prompts, read where their answers are.
        counterfactual: Input of the first block in the counterfactual run.
        counterfactual_ids: Tokens of the counterfactual prompts.
        masks: Tokens of each role; each token is in one mask.
    """

    clean: CachedRun
    counterfactual: Float[Tensor, "prompt position d_model"]
    counterfactual_ids: Int[Tensor, "prompt position"]
    masks: Mapping[str, Bool[Tensor, "prompt position"]]


@torch.no_grad()
def record_role_runs(
    model: Model, pairs: PairBatch, masks: Mapping[str, Bool[Tensor, "prompt position"]]
) -> RoleRuns:
    """Run both sides of aligned pairs once; errors and warnings as in `run_with_cache`."""
    clean = run_batch_with_cache(model, pairs.clean)
    ids, embedded = pairs.counterfactual.ids.to(model.device), list[Tensor]()

    def embed(rows: Int[Tensor, " row"]) -> Tensor:
        embedded.clear()
        mask = clean.mask[rows]
        with model.hooked({f"blocks.0.{RESID}": embedded.append}):
            model.logits(ids[rows], mask, last_token(mask))
        return embedded.pop()

    batches = MicroBatches("recording a run", len(ids), ids.shape[1])
    parts = [*run_micro_batches(model, torch.arange(len(ids)), embed, batches)]
    on_device = {role: own.to(model.device) for role, own in masks.items()}
    return RoleRuns(clean, torch.cat(parts), ids, on_device)


@torch.no_grad()
def run_role_graphs(
    runs: RoleRuns, graphs: Sequence[RoleGraph]
) -> Iterator[Float[Tensor, "prompt answer vocab"]]:
    """Logits of each graph at the read-outs; the clean run's where no edge reaches them."""
    left = list(graphs)
    while left:
        copies = _Copies(runs)
        while left and copies.add(left[0]):
            del left[0]
        yield from copies.logits()


class _Copies:
    """Copies of the clean run that are computed in one pass.

    Copy 0 is the clean run itself; the others have one role each.
    """

    def __init__(self, runs: RoleRuns) -> None:
        self.runs = runs
        self.numbers: dict[tuple[str, RoleGraph], int] = {}
        self.planned: list[dict[str, int]] = []  # Copy of each role, for each graph.
        self.roles: list[str] = []
        self.starts: list[bool] = []
        # Copy in which each token is read.
        self.sources: list[Int[Tensor, "prompt position"]] = []

    def add(self, graph: RoleGraph) -> bool:
        """Plan a graph, unless the pass is full."""
        tokens = sum(int(self.runs.masks[role].sum()) for role in self.roles)
        if self.planned and tokens * self.runs.counterfactual[0].numel() > _FLOATS_PER_PASS:
            return False
        masks = self.runs.masks
        roles = [role for role in masks if any(role in edge for edge in graph.edges)]
        keys = {role: (role, graph.before(role)) for role in roles}
        new = [role for role in roles if keys[role] not in self.numbers]
        copies = {
            role: self.numbers.setdefault(keys[role], len(self.numbers) + 1) for role in roles
        }
        for role in new:
            source = torch.zeros_like(self.runs.clean.ids)
            for other in roles:
                if other == role or (other, role) in graph.edges:
                    source[masks[other]] = copies[other]
            self.roles.append(role)
            self.starts.append(role in graph.starts)
            self.sources.append(source)
        self.planned.append(copies)
        return True

    def logits(self) -> Iterator[Float[Tensor, "prompt answer vocab"]]:
        """Logits of each planned graph, in the copy of the role of each read-out's token."""
        clean = self.runs.clean
        run = self._run_own_tokens if clean.restarts else self._run_whole
        logits = run() if self.roles else clean.logits[None]
        prompt, answer = (
            torch.arange(size, device=clean.ids.device) for size in clean.readout.shape
        )
        for copies in self.planned:
            copy = torch.zeros_like(clean.readout)
            for role, own in copies.items():
                copy[self.runs.masks[role].gather(1, clean.readout)] = own
            yield logits[copy, prompt[:, None], answer]

    def _run_own_tokens(self) -> Float[Tensor, "copy prompt answer vocab"]:
        """Logits of copies whose own tokens alone are computed, one row for each token."""
        clean, model = self.runs.clean, self.runs.clean.model
        own = torch.stack([self.runs.masks[role] for role in self.roles])
        copy, prompt, position = own.nonzero(as_tuple=True)
        row = torch.zeros_like(own, dtype=torch.long)
        row[copy, prompt, position] = torch.arange(len(copy), device=copy.device)
        # Keys and values: first those of the clean run, then those of the rows.
        source = torch.stack(self.sources)[copy, prompt]
        every, width = torch.arange(source.shape[1], device=copy.device), source.shape[1]
        of_rows = clean.ids.numel() + row[(source - 1).clamp(min=0), prompt[:, None], every]
        index = torch.where(source > 0, of_rows, prompt[:, None] * width + every)
        is_start = torch.tensor(self.starts, device=copy.device)[copy, None]
        hidden = torch.where(
            is_start,
            self.runs.counterfactual[prompt, position],
            clean.resid[0][prompt, position],
        )[:, None]
        with model.locked():
            for layer in range(model.shape.layers):
                given = clean.block_arguments(layer, prompt, position[:, None])
                cache = _SharedCache(clean.keys_values(layer), index)
                hidden = model.run_block(layer, hidden, given, cache)
        logits = clean.logits.expand(len(own) + 1, *clean.logits.shape).clone()
        is_read = (clean.readout[prompt] == position[:, None]).nonzero(as_tuple=True)
        at, answer = is_read
        logits[copy[at] + 1, prompt[at], answer] = model.unembed(hidden[at])[:, 0]
        return logits

    def _run_whole(self) -> Float[Tensor, "copy prompt answer vocab"]:
        """Logits of whole copies, whose tokens are exchanged at the input of every block."""
        clean, model = self.runs.clean, self.runs.clean.model
        rows = torch.arange(len(clean.ids), device=clean.ids.device)[:, None]
        sources = torch.stack([torch.zeros_like(clean.ids), *self.sources])
        sources = rearrange(
            sources * len(rows) + rows, "copy prompt position -> (copy prompt) position"
        )
        given = [self.runs.counterfactual_ids if start else clean.ids for start in self.starts]
        position = torch.arange(clean.ids.shape[1], device=rows.device)
        names = [f"blocks.{layer}.{RESID}" for layer in range(model.shape.layers)]
        mask, at = (each.repeat(len(given) + 1, 1) for each in (clean.mask, clean.readout))
        with model.editing({name: lambda resid: resid[sources, position] for name in names}):
            logits = model.logits(torch.cat([clean.ids, *given]), mask, at)
        return logits.unflatten(0, (-1, len(rows)))


class _SharedCache:
    """Keys and values of one block: the clean run's, and those of the tokens that are computed."""

    def __init__(self, clean: tuple[Tensor, ...], index: Int[Tensor, "row position"]) -> None:
        self.clean, self.index = clean, index

    def update(
        self, keys: Tensor, values: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values that each row attends to, given those of its own token."""
        kept_keys, kept_values = self.clean
        return self._gather(kept_keys, keys), self._gather(kept_values, values)

    def _gather(
        self, kept: Float[Tensor, "prompt head position d"], own: Float[Tensor, "row head 1 d"]
    ) -> Float[Tensor, "row head position d"]:
        flat = rearrange(kept, "prompt head position d -> (prompt position) head d")
        every = torch.cat([flat, own[:, :, 0]])
        return rearrange(every[self.index], "row position head d -> row head position d")
