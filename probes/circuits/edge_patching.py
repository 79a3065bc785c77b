"""Runs in which chosen edges carry the clean run's values, and all others a replacement's.

What reader v sees when the edges C are kept (Hanna et al. 2024, 2403.17806, eq. 2, made sparse):

    x_v = sum over u of (a_u if u→v is kept, else r_u)        a_u: recomputed, r_u: replacement
        = x'_v + sum over kept u of (a_u - r_u)               x'_v: all edges replaced

So a run begins with x', adds what the kept edges bring, and leaves out every part that no kept
edge changes; where most edges are kept it begins with the clean run instead, and takes away what
the cut edges carried. Circuits share both runs, and several go through one pass.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.circuits.graph import ComputationGraph
from probes.circuits.reference_runs import ReferenceRuns, ablation_change
from probes.errors import CircuitError
from probes.models.decoder import apply_rotary, attend

# Floats of the writers' changes in one pass: enough for the matrix products, few enough for RAM.
_MAX_FLOATS = 1 << 25
# Floats of one writer's changes up to which circuits share a pass: beyond, sharing saves nothing.
_MAX_SHARED_FLOATS = 1 << 18


@torch.no_grad()
def run_circuits(
    runs: ReferenceRuns,
    masks: Bool[Tensor, "circuit edge"],
    *,
    cut_masks: Bool[Tensor, "circuit edge"] | None = None,
    start_from: Literal["auto", "clean", "replaced"] = "auto",
) -> Float[Tensor, "circuit prompt"]:
    """Return the lead (logits) of every prompt when only the kept edges carry clean values.

    All other edges are cut, and carry their replacement. Beginning with the clean run, `cut` may
    name fewer: an edge that is neither kept nor cut carries what it does in the clean run, come
    what may before it.
    """
    for marked in (masks, masks if cut_masks is None else cut_masks):
        if marked.shape != (len(masks), len(runs.graph)):
            raise CircuitError(
                f"Edges were marked as {tuple(marked.shape)}, and {len(masks)} circuits of "
                f"{len(runs.graph)} edges are wanted: mark edges by this stage's wiring"
            )
    if start_from not in ("auto", "clean", "replaced") or (
        cut_masks is not None and start_from != "clean"
    ):
        raise CircuitError(
            f"A run cannot begin {start_from!r}: use 'auto', 'clean' or 'replaced', and 'clean' where "
            "the cut edges are named"
        )
    masks = masks.to(runs.model.device)
    cut_masks = ~masks if cut_masks is None else cut_masks.to(runs.model.device)
    few = 2 * masks.sum(1) <= masks.shape[1]
    if start_from != "auto" or not runs.ablated.is_consistent:
        # Means and zeros leave residuals so small that taking much away loses their digits.
        few = torch.full_like(few, start_from != "clean")
    each = (runs.entry.embed.shape[1] - runs.first_position) * runs.model.shape.d_model
    together = max(1, _MAX_SHARED_FLOATS // (each * len(runs.task)))
    result = torch.empty(len(masks), len(runs.task), device=runs.model.device)
    for replaced in (True, False):
        numbers = (few == replaced).nonzero()[:, 0]
        for rows in numbers.split(together) if len(numbers) else ():
            step = max(1, _MAX_FLOATS // (len(rows) * len(runs.graph.writers) * each))
            for start in range(0, len(runs.task), step):
                part = slice(start, min(start + step, len(runs.task)))
                found = _EdgePatchingPass(
                    runs, masks[rows], cut_masks[rows], part, from_ablated=replaced
                ).logit_diffs()
                result[rows, part] = found.float()
    return result


class _EdgePatchingPass:
    """One pass of some circuits over some prompts: what changed so far, writer by writer."""

    def __init__(
        self,
        runs: ReferenceRuns,
        masks: Tensor,
        cut_masks: Tensor,
        prompts: slice,
        *,
        from_ablated: bool,
    ) -> None:
        self.runs, self.edge_masks, self.prompts = runs, masks, prompts
        self.start = runs.ablated if from_ablated else runs.clean
        self.shape, self.graph = runs.model.shape, runs.graph
        task, device = runs.task, runs.model.device
        self.span = slice(runs.first_position, None)
        self.readout = task.readout[prompts] - runs.first_position
        angles = runs.entry.rotary
        self.angles = None if angles is None else (self._slice(angles[0]), self._slice(angles[1]))
        roles = task.role_of[prompts, self.span].flatten()
        known = range(len(self.graph.roles))
        self.role_tokens = [(roles == role).nonzero()[:, 0] for role in known]
        self.token_groups: Sequence[Tensor | slice] = self.role_tokens or [slice(None)]
        self.block_masks = _block_masks(self.graph, masks)
        self.cut_block_masks = (
            self.block_masks if from_ablated else _block_masks(self.graph, cut_masks)
        )
        self.sources = _writers_reaching_logits(self.graph, self.block_masks)
        self.changed: list[int] = []
        size = (len(masks), int(self.sources.sum()), *self._slice(self.start.embed).shape)
        self.buffer = torch.empty(size, device=device, dtype=runs.model.dtype)
        self.cut_writers, self.cut_changes = (
            ([], self.buffer[0, :0]) if from_ablated else self._cut_writer_changes()
        )

    def logit_diffs(self) -> Float[Tensor, "circuit prompt"]:
        """Go through all layers."""
        if self.start is self.runs.ablated and self.sources[0]:
            self._add_change(0, self._slice(self.runs.clean.embed - self.start.embed))
        for layer in range(self.shape.layers):
            self._run_attention(layer)
            self._run_mlp(layer)
        return self._final_logit_diffs()

    def _slice(self, value: Tensor) -> Tensor:
        return value[self.prompts, self.span]

    def _add_change(self, writer: int, change: Tensor) -> None:
        self.buffer[:, len(self.changed)] = change
        self.changed.append(writer)

    def _cut_writer_changes(self) -> tuple[list[int], Tensor]:
        """List what cut edges no longer carry, for the writers that have any and differ."""
        cut = torch.zeros(len(self.graph.writers), dtype=torch.bool)
        for mask in self.cut_block_masks:
            cut[: mask.shape[-1]] |= mask.flatten(0, -2).any(0).cpu()
        found = {
            w: self._slice(ablation_change(self.runs, w)) for w in cut.nonzero()[:, 0].tolist()
        }
        found = {writer: change for writer, change in found.items() if bool(change.any())}
        return list(found), torch.stack([*found.values()]) if found else self.buffer[0, :0]

    def _reader_inputs(self, block: int, base: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sum what rows of readers see: the rows' groups of equal masks, and each group's input.

        Group -1 sees what the run to begin with sees.
        """
        mask = self.block_masks[block]  # circuit place row writer
        seen = mask.shape[-1]
        live = sum(writer < seen for writer in self.changed)  # they stand in order
        keep = mask[..., self.changed[:live]]
        lost = sum(writer < seen for writer in self.cut_writers)
        drop = self.cut_block_masks[block][..., self.cut_writers[:lost]]
        both = torch.cat([keep, drop], -1).permute(2, 0, 1, 3)
        if not bool(both.any()):
            return torch.full((len(both),), -1), None
        distinct, group = both.flatten(1).unique(dim=0, return_inverse=True)
        active = distinct.any(1)
        order = torch.where(active, active.cumsum(0) - 1, -1)
        weights = distinct[active].unflatten(1, both.shape[1:]).permute(1, 2, 0, 3).to(base.dtype)
        total = base.expand(len(mask), weights.shape[2], *base.shape).clone()
        flat = total.view(*total.shape[:2], -1, base.shape[-1])
        for place, spots in enumerate(self.token_groups):
            here = weights[:, place]
            for some, values in (
                (here[..., :live], self.buffer[:, :live]),
                (here[..., live:], self.cut_changes[None, :lost]),
            ):
                if bool(some.any()):
                    values = values.flatten(2, 3)[:, :, spots]
                    added = some @ values.flatten(2)
                    flat[:, :, spots] += added.unflatten(-1, values.shape[2:])
        return order[group], total

    def _run_attention(self, layer: int) -> None:
        shape, side = self.shape, self.start
        base = self._slice(side.activations.resid_pre[layer])
        group, total = self._reader_inputs(2 * layer, base)
        first = 1 + layer * (shape.heads + 1)
        wanted = self.sources[first : first + shape.heads].nonzero()[:, 0].tolist()
        dests = max(1, len(self.graph.roles))
        q, k, v = group.split([shape.heads, shape.kv_heads * dests, shape.kv_heads * dests])
        k, v = (t.view(shape.kv_heads, dests) for t in (k, v))
        each = shape.heads // shape.kv_heads
        live = [
            h
            for h in wanted
            if q[h] >= 0 or bool((k[h // each] >= 0).any()) or bool((v[h // each] >= 0).any())
        ]
        parts, z = self.runs.weights.layers[layer], self.buffer
        if total is not None and live:
            z = self._run_heads(layer, live, (q, k, v), parts.attn_norm(total))
        before, still = self._slice(side.z[layer]), self._slice(side.activations.z[layer])
        for head in wanted:
            if head in live or not side.is_consistent:
                made = z[..., live.index(head), :] if head in live else still[..., head, :]
                self._add_change(first + head, (made - before[..., head, :]) @ parts.o[head])

    def _run_heads(
        self, layer: int, heads: list[int], groups: tuple[Tensor, ...], normed: Tensor
    ) -> Tensor:
        """Return z "circuit prompt position head d_head" of the live heads."""
        parts, run = self.runs.weights.layers[layer], self.start.activations
        each = self.shape.heads // self.shape.kv_heads
        allowed = self.runs.entry.attention_mask[self.prompts, self.span]
        owner = [head // each for head in heads]
        q = self._project(layer, "q", normed, groups[0], heads)
        if not self.graph.roles:
            k = self._project(layer, "k", normed, groups[1][:, 0], owner)
            v = self._project(layer, "v", normed, groups[2][:, 0], owner)
            return attend(q, k, v, allowed, parts.scale)
        size = (len(self.edge_masks), -1, -1, -1, -1)
        k, v = (value[layer][self.prompts][..., owner, :].expand(size) for value in (run.k, run.v))
        z = attend(q, k, v, allowed, parts.scale)
        for role, spots in enumerate(self.role_tokens):
            changed = (groups[1][owner, role] >= 0) | (groups[2][owner, role] >= 0)
            some = changed.nonzero()[:, 0].tolist()
            if len(spots) == 0 or not some:
                continue
            # What these positions read was changed for them alone.
            mine = [owner[slot] for slot in some]
            k = self._project(layer, "k", normed, groups[1][:, role], mine)
            v = self._project(layer, "v", normed, groups[2][:, role], mine)
            prompt, position = spots // z.shape[2], spots % z.shape[2]
            asked, mask = q[:, prompt, position].unsqueeze(2), allowed[prompt, position][:, None]
            here = attend(asked[..., some, :], k[:, prompt], v[:, prompt], mask, parts.scale)
            z[:, prompt[:, None], position[:, None], torch.tensor(some)] = here.squeeze(2)
        return z

    def _project(
        self, layer: int, port: str, normed: Tensor, group: Tensor, heads: list[int]
    ) -> Tensor:
        """Make q, k or v of some heads from each one's own input; k and v from all positions."""
        parts = self.runs.weights.layers[layer]
        part = getattr(self.start.activations, port)[layer][self.prompts][..., heads, :]
        span = slice(None) if port == "q" else self.span
        part = part[:, self.span] if port == "q" else part
        found = part.expand(len(self.edge_masks), *part.shape).clone()
        numbers = [int(group[head]) for head in heads]
        for number in sorted({n for n in numbers if n >= 0}):
            slots = [slot for slot, n in enumerate(numbers) if n == number]
            made = parts.project(port, normed[:, number], [heads[slot] for slot in slots])
            turned = made if port == "v" else apply_rotary(made, self.angles)
            found[:, :, span, slots] = turned
        return found

    def _run_mlp(self, layer: int) -> None:
        side, writer = self.start, (layer + 1) * (self.shape.heads + 1)
        if not self.sources[writer]:
            return
        base = self._slice(side.activations.resid_mid[layer])
        _, total = self._reader_inputs(2 * layer + 1, base)
        before = self._slice(side.mlp_out[layer])
        if total is not None:
            parts = self.runs.weights.layers[layer]
            made = parts.mlp(parts.mlp_norm(total[:, 0]).flatten(0, 1)).view_as(total[:, 0])
            self._add_change(writer, made - before)
        elif not side.is_consistent:
            self._add_change(writer, self._slice(side.activations.mlp_out[layer]) - before)

    def _final_logit_diffs(self) -> Tensor:
        at = torch.arange(len(self.readout), device=self.readout.device)
        _, total = self._reader_inputs(
            2 * self.shape.layers, self._slice(self.start.activations.resid_final)
        )
        if total is None:
            total = self._slice(self.start.activations.resid_final)[None, None]
        anatomy, task = self.runs.weights, self.runs.task[self.prompts]
        logits = anatomy.unembed(anatomy.final_norm(total[:, 0][:, at, self.readout]))
        leads = torch.stack([task.logit_diff(row) for row in logits])
        return leads.expand(len(self.edge_masks), -1)


def _block_masks(graph: ComputationGraph, masks: Tensor) -> list[Tensor]:
    """Lay kept edges out as "circuit place row writer", for attention and MLP by turns."""
    table = torch.from_numpy(graph.edge_table).to(masks.device)
    places = max(1, len(graph.roles))
    found = []
    for begin, end in _reader_blocks(graph):
        edges = slice(int(graph.edge_offsets[begin]), int(graph.edge_offsets[end]))
        source, target, here, there = table[:, edges]
        rows = torch.zeros_like(target)
        size = 0
        for reader in range(begin, end):
            spread = places if graph.port(reader) in ("k", "v") else 1
            mine = target == reader
            rows[mine] = size + (there[mine] if spread > 1 else 0)
            size += spread
        mask = masks.new_zeros(len(masks), places, size, graph.upstream_count(begin))
        mask[:, here, rows, source] = masks[:, edges]
        found.append(mask)
    return found


def _reader_blocks(graph: ComputationGraph) -> Iterator[tuple[int, int]]:
    """Yield the readers that read one residual together: attention, MLP, …, logits."""
    per = graph.readers_per_layer
    for layer in range(graph.layers):
        yield layer * per, (layer + 1) * per - 1
        yield (layer + 1) * per - 1, (layer + 1) * per
    yield graph.layers * per, graph.layers * per + 1


def _writers_reaching_logits(
    graph: ComputationGraph, masks: Sequence[Tensor]
) -> Bool[Tensor, " writer"]:
    """Say which writers reach the logits through kept edges of some circuit."""
    needed = torch.zeros(len(graph.writers), dtype=torch.bool)
    places = max(1, len(graph.roles))
    for (begin, end), mask in reversed(list(zip(_reader_blocks(graph), masks, strict=True))):
        used = mask.any(0).any(0).cpu()  # row writer
        row = 0
        for reader in range(begin, end):
            spread = places if graph.port(reader) in ("k", "v") else 1
            owners = graph.writers_fed_by(reader)
            if not owners or bool(needed[list(owners)].any()):
                needed[: used.shape[1]] |= used[row : row + spread].any(0)
            row += spread
    return needed
