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

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.circuits.block_masks import block_masks, writers_reaching_logits
from probes.circuits.edges.messages import MessageSum
from probes.circuits.edges.writer_changes import WriterChanges, change_key
from probes.circuits.runs.held import HeldRuns, ablation_changes, readout_logit_diffs
from probes.models.layers.decoder import apply_rotary
from probes.models.layers.norm import IDENTITY

_UNCHANGED = -1
"""Index of an input that is that of the starting run."""


class PatchedPass:
    """One pass of some circuits over some prompts.

    Starts from the clean run if `cut_masks` are given, else from the ablated one. Only `changes`
    grows during the pass. A pass of one circuit takes from `runs.known` what earlier ones computed.
    """

    def __init__(
        self,
        runs: HeldRuns,
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
        heads_sums = [
            layer.sum_heads(z[prompts]).flatten(0, 1)
            for layer, z in zip(layers, self.start.z, strict=True)
            if any(each.attn_post_norm is not IDENTITY for each in layers)
        ]
        post_norms = [layer.attn_post_norm for layer in layers]
        self.messages = MessageSum(self.shape.heads, post_norms, heads_sums)
        role_of = self._slice(runs.task.role_of).flatten()
        self.role_tokens = [
            (role_of == role).nonzero()[:, 0] for role in range(len(self.graph.roles))
        ]
        self.block_masks = block_masks(self.graph, masks)
        self.needed, self.anywhere = writers_reaching_logits(self.graph, self.block_masks)
        # The readout of each prompt: its position in the span, and its token in all of the batch.
        self.readout = runs.task.readout[prompts] - runs.first_position
        every = torch.arange(len(self.readout), device=self.readout.device)
        self.readout_tokens = every * self._slice(runs.task.role_of).shape[1] + self.readout
        embed = self.start.embed[prompts]
        size = (len(masks), int(self.needed.sum()), *embed.shape)
        self.changes = WriterChanges(torch.empty(size, device=embed.device, dtype=runs.model.dtype))
        self.shares_changes = len(masks) == 1 and cut_masks is None
        self.cut_block_masks = self.block_masks
        self.cut_changes = WriterChanges(embed[None, None][:, :0])
        if cut_masks is not None:
            self.cut_block_masks = block_masks(self.graph, cut_masks)
            self.cut_changes = ablation_changes(runs, self.cut_block_masks, prompts)

    def logit_diffs(self) -> Float[Tensor, "circuit prompt"]:
        """Run all layers."""
        if self.start is self.runs.ablated and self.needed[0]:
            embed = (self.runs.clean.embed - self.start.embed)[self.prompts]
            self.changes.add(0, embed, change_key(0))
        for layer in range(self.shape.layers):
            self._run_attention(layer)
            self._run_mlp(layer)
        final = self._at_readout(self.start.activations.resid_final[self.prompts])
        block, tokens = 2 * self.shape.layers, self.readout_tokens
        _, inputs = self._reader_inputs(block, final, self._row_edges(block), tokens)
        final = final[None] if inputs is None else inputs[:, 0]
        task, weights = self.runs.task[self.prompts], self.runs.weights
        return readout_logit_diffs(weights, task, final[:, :, 0]).expand(self.circuits, -1)

    def _slice(self, value: Tensor) -> Tensor:
        """Part of a value that stands at all positions."""
        return value[self.prompts, self.span]

    def _at_readout(
        self, value: Float[Tensor, "prompt position d_model"]
    ) -> Float[Tensor, "prompt 1 d_model"]:
        return value.flatten(0, 1)[self.readout_tokens, None]

    def _row_edges(self, block: int) -> Bool[Tensor, "row circuit role writer"]:
        """Edges from changed writers into each row of a block's readers, then the cut ones."""
        mask = self.block_masks[block]  # circuit role row writer
        writers, _ = self.changes.upstream(mask.shape[-1])
        cut_writers, _ = self.cut_changes.upstream(mask.shape[-1])
        cut_mask = self.cut_block_masks[block][..., cut_writers]
        return torch.cat([mask[..., writers], cut_mask], -1).permute(2, 0, 1, 3)

    def _row_keys(self, edges: Bool[Tensor, "row circuit role writer"]) -> list[bytes]:
        """Key of what each row reads, empty where that is unchanged."""
        read: list[list[bytes | int]] = [[] for _ in range(len(edges))]
        for row, _, role, writer in edges.nonzero().tolist():
            read[row] += [role, self.changes.writers[writer], self.changes.keys[writer]]
        return [change_key(*parts) if parts else b"" for parts in read]

    def _known_change(self, writer: int, row_keys: Sequence[bytes]) -> tuple[bytes, Tensor | None]:
        """Key of a change from those of the rows that its writer reads, and the change if known."""
        if not self.shares_changes:
            return b"", None
        part = (self.prompts.start, self.prompts.stop, int(self.anywhere[writer]))
        key = change_key(writer, *part, *row_keys)
        return key, self.runs.known.get(key)

    def _add_change(self, writer: int, key: bytes, change: Tensor) -> None:
        if self.shares_changes:
            self.runs.known.put(key, change)
        self.changes.add(writer, change, key)

    def _reader_inputs(
        self,
        block: int,
        base: Tensor,
        edges: Bool[Tensor, "row circuit role writer"],
        at: Tensor | None = None,
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, "circuit input prompt position d_model"] | None]:
        """Index of each row's input, and the inputs; rows with equal edges share one.

        Rows whose input is `base` have the index `_UNCHANGED`. There are no inputs if all have it.
        `base` is that of the tokens `at`, by default of all.
        """
        count = self.block_masks[block].shape[-1]
        writers, changes = self.changes.upstream(count)
        cut_writers, cut_changes = self.cut_changes.upstream(count)
        if not bool(edges.any()):
            return torch.full((len(edges),), _UNCHANGED), None
        distinct, group = edges.flatten(1).unique(dim=0, return_inverse=True)
        changed = distinct.any(1)
        index = torch.where(changed, changed.cumsum(0) - 1, _UNCHANGED)[group]
        weights = distinct[changed].unflatten(1, edges.shape[1:]).permute(1, 2, 0, 3)
        weights = weights.to(base.dtype)  # circuit role input writer
        inputs = base.expand(self.circuits, weights.shape[2], *base.shape).clone()
        flat = inputs.view(*inputs.shape[:2], -1, base.shape[-1])
        for role, tokens in enumerate(self.role_tokens or [None]):
            kept, cut = weights[:, role].split([len(writers), len(cut_writers)], -1)
            messages = [(kept, writers, changes), (cut, cut_writers, cut_changes)]
            own = slice(None) if tokens is None else tokens
            if at is None:
                self.messages.add(flat, messages, count, (own, own))
                continue
            into = slice(None) if tokens is None else torch.isin(at, tokens).nonzero()[:, 0]
            self.messages.add(flat, messages, count, (into, at[into]))
        return index, inputs

    def _run_attention(self, layer: int) -> None:
        heads, kv_heads, start = self.shape.heads, self.shape.kv_heads, self.start
        edges = self._row_edges(2 * layer)
        roles = max(1, len(self.graph.roles))
        numbers = torch.arange(len(edges)).split([heads, kv_heads * roles, kv_heads * roles])
        k_rows, v_rows = (rows.view(kv_heads, roles).tolist() for rows in numbers[1:])
        changed = edges.flatten(1).any(1).tolist()
        keys = self._row_keys(edges) if self.shares_changes else []
        first = 1 + layer * (heads + 1)
        needed = self.needed[first : first + heads].nonzero()[:, 0].tolist()
        found: dict[int, tuple[bytes, Tensor | None]] = {}
        for head in needed:
            kv_head = head * kv_heads // heads
            rows = [head, *k_rows[kv_head], *v_rows[kv_head]]
            if any(changed[row] for row in rows):
                own_keys = [keys[row] for row in rows] if keys else ()
                found[head] = self._known_change(first + head, own_keys)
        missing = [head for head, (_, change) in found.items() if change is None]
        before, unchanged = start.z[layer][self.prompts], start.activations.z[layer][self.prompts]
        z = self._run_missing_heads(layer, missing, edges, numbers) if missing else before
        output = self.runs.weights.layers[layer].o
        for head in needed:
            key, known = found.get(head, (b"", None))
            if head in missing:
                change = (z[..., missing.index(head), :] - before[..., head, :]) @ output[head]
                self._add_change(first + head, key, change)
            elif known is not None:
                self.changes.add(first + head, known, key)
            elif not start.is_consistent:
                change = (unchanged[..., head, :] - before[..., head, :]) @ output[head]
                self.changes.add(first + head, change, change_key(first + head))

    def _run_missing_heads(
        self, layer: int, heads: list[int], edges: Tensor, numbers: Sequence[Tensor]
    ) -> Float[Tensor, "circuit prompt position head d_head"]:
        """z of some heads, whose inputs alone are built."""
        q, k, v = (edges.new_zeros(len(rows), dtype=torch.bool) for rows in numbers)
        kv_heads, roles = self.shape.kv_heads, max(1, len(self.graph.roles))
        q[heads] = True
        owners = [head * kv_heads // self.shape.heads for head in heads]
        for rows in (k, v):
            rows.view(kv_heads, roles)[owners] = True
        base = self.start.activations.resid_pre[layer][self.prompts]
        edges = edges & torch.cat([q, k, v])[:, None, None, None]
        index, inputs = self._reader_inputs(2 * layer, base, edges)
        q, k, v = (index[rows] for rows in numbers)
        k, v = (rows.view(kv_heads, roles) for rows in (k, v))
        normed = self.runs.weights.layers[layer].attn_norm(base if inputs is None else inputs)
        return self._run_heads(layer, heads, (q, k, v), normed)

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
        span = slice(None) if port == "q" else self.span
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
        edges, before = self._row_edges(2 * layer + 1), start.mlp_out[layer][self.prompts]
        if bool(edges.any()):
            keys = self._row_keys(edges) if self.shares_changes else []
            key, change = self._known_change(writer, keys)
            if change is not None:
                self.changes.add(writer, change, key)
                return
            base, at = start.activations.resid_mid[layer][self.prompts], None
            if not self.anywhere[writer]:
                base, at = self._at_readout(base), self.readout_tokens
            _, inputs = self._reader_inputs(2 * layer + 1, base, edges, at)
            weights = self.runs.weights.layers[layer]
            x = base[None] if inputs is None else inputs[:, 0]
            new = weights.mlp(weights.mlp_norm(x).flatten(0, 1)).view_as(x)
            if at is None:
                self._add_change(writer, key, new - before)
                return
            change = torch.zeros_like(before).expand(len(x), *before.shape).clone()
            change.flatten(1, 2)[:, at] = (new - self._at_readout(before)).flatten(1, 2)
            self._add_change(writer, key, change)
        elif not start.is_consistent:
            change = start.activations.mlp_out[layer][self.prompts] - before
            self.changes.add(writer, change, change_key(writer))
