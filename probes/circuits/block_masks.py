"""Masks of circuits, cut into the blocks of readers that see one residual."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from probes.circuits.graph import ComputationGraph


def block_masks(
    graph: ComputationGraph, masks: Bool[Tensor, "circuit edge"]
) -> list[Bool[Tensor, "circuit role row writer"]]:
    """Masks of each block of readers; k and v have a row for each querying role."""
    table = torch.from_numpy(graph.edge_table).to(masks.device)
    roles, heads = max(1, len(graph.roles)), graph.heads
    blocks = []
    for begin, end in reader_blocks(graph):
        edges = slice(int(graph.edge_offsets[begin]), int(graph.edge_offsets[end]))
        source, target, source_role, target_role = table[:, edges]
        rows, size = torch.zeros_like(target), 1
        if end - begin > 1:
            reader = target - begin
            rows = torch.where(
                reader < heads, reader, heads + (reader - heads) * roles + target_role
            )
            size = heads + 2 * graph.kv_heads * roles
        mask = masks.new_zeros(len(masks), roles, size, graph.upstream_count(begin))
        mask[:, source_role, rows, source] = masks[:, edges]
        blocks.append(mask)
    return blocks


def reader_blocks(graph: ComputationGraph) -> Iterator[tuple[int, int]]:
    """Ranges of readers with the same residual: attention and MLP of each layer, then logits."""
    per_layer = graph.readers_per_layer
    for layer in range(graph.layers):
        yield layer * per_layer, (layer + 1) * per_layer - 1
        yield (layer + 1) * per_layer - 1, (layer + 1) * per_layer
    yield graph.layers * per_layer, graph.layers * per_layer + 1


def writers_reaching_logits(
    graph: ComputationGraph, block_masks: Sequence[Tensor]
) -> tuple[Bool[Tensor, " writer"], Bool[Tensor, " writer"]]:
    """Whether each writer reaches the logits through kept edges of some circuit, and from where.

    Returns:
        Writers that reach them, and those that do so from any token. The others reach them from
        the token of the readout only: through queries and MLPs of that token, never keys or values.
    """
    needed, anywhere = torch.zeros(2, len(graph.writers), dtype=torch.bool)
    heads, groups = graph.heads, graph.kv_heads
    blocks = list(zip(reader_blocks(graph), block_masks, strict=True))
    for (begin, end), mask in reversed(blocks):
        used = mask.any(0).any(0).cpu()  # row writer
        count, layer = used.shape[1], begin // graph.readers_per_layer
        if end - begin == 1:
            own, is_last = (layer + 1) * (heads + 1), layer == graph.layers
            if is_last or bool(needed[own]):
                needed[:count] |= used[0]
                anywhere[:count] |= used[0] & (not is_last and bool(anywhere[own]))
            continue
        first = 1 + layer * (heads + 1)
        is_needed, is_anywhere = needed[first : first + heads], anywhere[first : first + heads]
        queries, keys_values = used[:heads], used[heads:].view(2, groups, -1, count).any(2).any(0)
        from_keys = keys_values[is_needed.view(groups, -1).any(1)].any(0)
        needed[:count] |= queries[is_needed].any(0) | from_keys
        anywhere[:count] |= queries[is_needed & is_anywhere].any(0) | from_keys
    return needed, anywhere
