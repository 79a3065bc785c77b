"""The forward pass of edge patching, which computes only what the kept edges change.

The input of reader v when the edges C are kept (Hanna et al. 2024, 2403.17806, eq. 2, made sparse):

    x_v = sum over u of (a_u if u→v is kept, else r_u)        a_u: recomputed, r_u: ablated
        = x'_v + sum over kept u of (a_u - r_u)               x'_v: all edges ablated

A pass starts from x', adds what the kept edges bring, and skips every component that no kept edge
changes. Where most edges are kept it starts from the clean run instead and adds what the cut edges
change. Circuits share both runs, and several go through one pass.

A norm N behind attention (Gemma-2, OLMo-2) acts on the sum of a layer's heads, so their messages do
not add up. Each reader then reads the residual in which N acts on the heads' outputs that its own
edges carry, and x_v has N(sum over heads u of a_u or r_u) in place of the heads' sum.
"""

from bisect import bisect_left
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.circuits.block_masks import block_masks, writers_reaching_logits
from probes.circuits.reference_runs import ReferenceRuns, ablation_change
from probes.models.layers.decoder import apply_rotary
from probes.models.layers.norm import IDENTITY

_UNCHANGED = -1
"""Index of an input that is that of the starting run."""


class _Changes:
    """Changes of writers' outputs against the starting run, in ascending order of writers.

    `values` is "circuit writer prompt position d_model", filled writer by writer.
    """

    def __init__(self, values: Tensor, writers: Sequence[int] = ()) -> None:
        self.values, self.writers = values, list(writers)

    def add(self, writer: int, change: Tensor) -> None:
        self.values[:, len(self.writers)] = change
        self.writers.append(writer)

    def upstream(self, count: int) -> tuple[list[int], Tensor]:
        """The changed writers below `count`, and their changes."""
        end = bisect_left(self.writers, count)
        return self.writers[:end], self.values[:, :end]


class PatchedPass:
    """One pass of some circuits over some prompts.

    Starts from the clean run if `cut_masks` are given, else from the ablated one. Only `changes`
    grows during the pass.
    """

    def __init__(
        self,
        runs: ReferenceRuns,
        prompts: slice,
        masks: Bool[Tensor, "circuit edge"],
        cut_masks: Bool[Tensor, "circuit edge"] | None,
    ) -> None:
        self.runs, self.prompts, self.circuits = runs, prompts, len(masks)
        self.start = runs.ablated if cut_masks is None else runs.clean
        self.shape, self.graph = runs.model.shape, runs.graph
        self.span = slice(runs.first_position, None)
        self.rotary = [
            angles and (self._slice(angles[0]), self._slice(angles[1]))
            for angles in runs.entry.rotary
        ]
        layers = runs.weights.layers
        self.heads_sums = [
            layer.sum_heads(self._slice(z)).flatten(0, 1)
            for layer, z in zip(layers, self.start.z, strict=True)
            if any(each.attn_post_norm is not IDENTITY for each in layers)
        ]
        role_of = self._slice(runs.task.role_of).flatten()
        self.role_tokens = [
            (role_of == role).nonzero()[:, 0] for role in range(len(self.graph.roles))
        ]
        self.block_masks = block_masks(self.graph, masks)
        self.needed = writers_reaching_logits(self.graph, self.block_masks)
        embed = self._slice(self.start.embed)
        size = (len(masks), int(self.needed.sum()), *embed.shape)
        self.changes = _Changes(torch.empty(size, device=embed.device, dtype=runs.model.dtype))
        self.cut_block_masks, self.cut_changes = (
            self.block_masks,
            _Changes(embed[None, None][:, :0]),
        )
        if cut_masks is not None:
            self.cut_block_masks = block_masks(self.graph, cut_masks)
            self.cut_changes = self._cut_changes()

    def logit_diffs(self) -> Float[Tensor, "circuit prompt"]:
        """Run all layers."""
        if self.start is self.runs.ablated and self.needed[0]:
            self.changes.add(0, self._slice(self.runs.clean.embed - self.start.embed))
        for layer in range(self.shape.layers):
            self._run_attention(layer)
            self._run_mlp(layer)
        final = self._slice(self.start.activations.resid_final)
        _, inputs = self._reader_inputs(2 * self.shape.layers, final)
        final = final[None] if inputs is None else inputs[:, 0]
        task, weights = self.runs.task[self.prompts], self.runs.weights
        at = torch.arange(len(task), device=final.device)
        final = final[:, at, task.readout - self.runs.first_position]
        logits = weights.unembed(weights.final_norm(final))
        return torch.stack([task.logit_diff(row) for row in logits]).expand(self.circuits, -1)

    def _slice(self, value: Tensor) -> Tensor:
        return value[self.prompts, self.span]

    def _cut_changes(self) -> _Changes:
        """What the cut edges change, for writers that have any and differ between the runs."""
        has_cut = torch.zeros(len(self.graph.writers), dtype=torch.bool)
        for mask in self.cut_block_masks:
            has_cut[: mask.shape[-1]] |= mask.flatten(0, -2).any(0).cpu()
        changes = {
            writer: self._slice(ablation_change(self.runs, writer))
            for writer in has_cut.nonzero()[:, 0].tolist()
        }
        changes = {writer: change for writer, change in changes.items() if bool(change.any())}
        if not changes:
            return self.cut_changes
        return _Changes(torch.stack([*changes.values()])[None], [*changes])

    def _reader_inputs(
        self, block: int, base: Tensor
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, "circuit input prompt position d_model"] | None]:
        """Index of each row's input, and the inputs; rows with equal masks share one.

        Rows whose input is `base` have the index `_UNCHANGED`. There are no inputs if all have it.
        """
        mask = self.block_masks[block]  # circuit role row writer
        writers, changes = self.changes.upstream(mask.shape[-1])
        cut_writers, cut_changes = self.cut_changes.upstream(mask.shape[-1])
        cut_mask = self.cut_block_masks[block][..., cut_writers]
        edges = torch.cat([mask[..., writers], cut_mask], -1).permute(2, 0, 1, 3)
        if not bool(edges.any()):
            return torch.full((len(edges),), _UNCHANGED), None
        distinct, group = edges.flatten(1).unique(dim=0, return_inverse=True)
        changed = distinct.any(1)
        index = torch.where(changed, changed.cumsum(0) - 1, _UNCHANGED)[group]
        weights = distinct[changed].unflatten(1, edges.shape[1:]).permute(1, 2, 0, 3)
        weights = weights.to(base.dtype)  # circuit role input writer
        inputs = base.expand(len(mask), weights.shape[2], *base.shape).clone()
        flat = inputs.view(*inputs.shape[:2], -1, base.shape[-1])
        for role, tokens in enumerate(self.role_tokens or [slice(None)]):
            kept, cut = weights[:, role].split([len(writers), len(cut_writers)], -1)
            messages = [(kept, writers, changes), (cut, cut_writers, cut_changes)]
            for group in self._writer_groups(mask.shape[-1]):
                self._add_messages(flat, messages, group, tokens)
        return index, inputs

    def _writer_groups(self, count: int) -> list[range | None]:
        """The first writers, in groups whose messages add up: None for all that no post-norm sums.

        Other groups are the heads of a layer.
        """
        each = self.shape.heads + 1
        starts = range(1, count, each) if self.heads_sums else ()
        return [None, *(range(start, start + each - 1) for start in starts)]

    def _add_messages(
        self,
        flat: Float[Tensor, "circuit input token d_model"],
        messages: Sequence[tuple[Tensor, list[int], Tensor]],
        group: range | None,
        tokens: Tensor | slice,
    ) -> None:
        """Add what some writers' edges bring, given as (weights, writers, changes)."""
        heads = self.shape.heads
        total, layer = None, 0 if group is None else group.start // (heads + 1)
        for part, writers, changes in messages:
            if self.heads_sums:
                own = [
                    slot
                    for slot, writer in enumerate(writers)
                    if (writer in group if group else writer % (heads + 1) == 0)
                ]
                part, changes = part[..., own], changes[:, own]
            if not bool(part.any()):
                continue
            values = changes.flatten(2, 3)[:, :, tokens]
            added = (part @ values.flatten(2)).unflatten(-1, values.shape[2:])
            if group is None:
                flat[:, :, tokens] += added
            else:
                total = added if total is None else total + added
        if total is not None:
            norm, before = self.runs.weights.layers[layer].attn_post_norm, self.heads_sums[layer]
            flat[:, :, tokens] += norm(before[tokens] + total) - norm(before[tokens])

    def _run_attention(self, layer: int) -> None:
        heads, kv_heads, start = self.shape.heads, self.shape.kv_heads, self.start
        base = self._slice(start.activations.resid_pre[layer])
        index, inputs = self._reader_inputs(2 * layer, base)
        roles = max(1, len(self.graph.roles))
        q, k, v = index.split([heads, kv_heads * roles, kv_heads * roles])
        k, v = (rows.view(kv_heads, roles) for rows in (k, v))
        from_keys = ((k != _UNCHANGED) | (v != _UNCHANGED)).any(1)
        changed = (q != _UNCHANGED) | from_keys.repeat_interleave(heads // kv_heads)
        first = 1 + layer * (heads + 1)
        needed = self.needed[first : first + heads].nonzero()[:, 0].tolist()
        live = [head for head in needed if changed[head]]
        weights, z = self.runs.weights.layers[layer], base
        if inputs is not None and live:
            z = self._run_heads(layer, live, (q, k, v), weights.attn_norm(inputs))
        before, unchanged = self._slice(start.z[layer]), self._slice(start.activations.z[layer])
        for head in needed:
            if head in live or not start.is_consistent:
                new = z[..., live.index(head), :] if head in live else unchanged[..., head, :]
                self.changes.add(first + head, (new - before[..., head, :]) @ weights.o[head])

    def _run_heads(
        self, layer: int, heads: list[int], indices: tuple[Tensor, ...], normed: Tensor
    ) -> Float[Tensor, "circuit prompt position head d_head"]:
        """z of some heads from their normalized inputs and the indices of q, k and v."""
        weights = self.runs.weights.layers[layer]
        allowed = self._slice(weights.visible_keys(self.runs.entry.attention_mask))
        kv_head = [head * self.shape.kv_heads // self.shape.heads for head in heads]
        q_index, k_index, v_index = indices
        q = self._project(layer, "q", normed, q_index, heads)
        if not self.graph.roles:
            k = self._project(layer, "k", normed, k_index[:, 0], kv_head)
            v = self._project(layer, "v", normed, v_index[:, 0], kv_head)
            return weights.attend(q, k, v, allowed)
        size = (self.circuits, -1, -1, -1, -1)
        run = self.start.activations
        k, v = (
            value[layer][self.prompts][..., kv_head, :].expand(size) for value in (run.k, run.v)
        )
        z = weights.attend(q, k, v, allowed)
        for role, tokens in enumerate(self.role_tokens):
            changed = (k_index[kv_head, role] != _UNCHANGED) | (
                v_index[kv_head, role] != _UNCHANGED
            )
            slots = changed.nonzero()[:, 0].tolist()
            if len(tokens) == 0 or not slots:
                continue
            # Queries of this role have keys and values of their own.
            owners = [kv_head[slot] for slot in slots]
            k = self._project(layer, "k", normed, k_index[:, role], owners)
            v = self._project(layer, "v", normed, v_index[:, role], owners)
            prompt, position = tokens // z.shape[2], tokens % z.shape[2]
            queries, mask = q[:, prompt, position].unsqueeze(2), allowed[prompt, position][:, None]
            new = weights.attend(queries[..., slots, :], k[:, prompt], v[:, prompt], mask)
            z[:, prompt[:, None], position[:, None], torch.tensor(slots)] = new.squeeze(2)
        return z

    def _project(
        self, layer: int, port: str, normed: Tensor, index: Tensor, heads: list[int]
    ) -> Float[Tensor, "circuit prompt _ head d_head"]:
        """q, k or v of some heads, each from its own input; k and v at all positions."""
        weights = self.runs.weights.layers[layer]
        run = getattr(self.start.activations, port)[layer][self.prompts][..., heads, :]
        run, span = (run[:, self.span], slice(None)) if port == "q" else (run, self.span)
        values = run.expand(self.circuits, *run.shape).clone()
        rotary = self.rotary[layer]
        of_head = [int(index[head]) for head in heads]
        for number in sorted(set(of_head) - {_UNCHANGED}):
            slots = [slot for slot, own in enumerate(of_head) if own == number]
            new = weights.project(port, normed[:, number], [heads[slot] for slot in slots])
            values[:, :, span, slots] = new if port == "v" else apply_rotary(new, rotary)
        return values

    def _run_mlp(self, layer: int) -> None:
        start, writer = self.start, (layer + 1) * (self.shape.heads + 1)
        if not self.needed[writer]:
            return
        _, inputs = self._reader_inputs(
            2 * layer + 1, self._slice(start.activations.resid_mid[layer])
        )
        before = self._slice(start.mlp_out[layer])
        if inputs is not None:
            weights, x = self.runs.weights.layers[layer], inputs[:, 0]
            new = weights.mlp(weights.mlp_norm(x).flatten(0, 1)).view_as(x)
            self.changes.add(writer, new - before)
        elif not start.is_consistent:
            self.changes.add(writer, self._slice(start.activations.mlp_out[layer]) - before)
