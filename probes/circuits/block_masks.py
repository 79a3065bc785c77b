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
    roles = max(1, len(graph.roles))
    blocks = []
    for begin, end in reader_blocks(graph):
        edges = slice(int(graph.edge_offsets[begin]), int(graph.edge_offsets[end]))
        source, target, source_role, target_role = table[:, edges]
        rows = torch.zeros_like(target)
        size = 0
        for reader in range(begin, end):
            count = roles if graph.port(reader) in ("k", "v") else 1
            own = target == reader
            rows[own] = size + (target_role[own] if count > 1 else 0)
            size += count
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
    roles = max(1, len(graph.roles))
    blocks = list(zip(reader_blocks(graph), block_masks, strict=True))
    for (begin, end), mask in reversed(blocks):
        used = mask.any(0).any(0).cpu()  # row writer
        row = 0
        for reader in range(begin, end):
            count = roles if graph.port(reader) in ("k", "v") else 1
            fed = graph.writers_fed_by(reader)
            if not fed or bool(needed[list(fed)].any()):
                own = used[row : row + count].any(0)
                needed[: len(own)] |= own
                if graph.port(reader) in ("k", "v") or bool(anywhere[list(fed)].any()):
                    anywhere[: len(own)] |= own
            row += count
    return needed, anywhere
