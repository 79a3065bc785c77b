"""Tasks of random tokens."""

import torch

from probes.circuits.task import Task


def pairs(count=2, width=5, at=1, seed=0):
    """Pairs that differ at one position."""
    draw = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, 90, (count, width), generator=draw)
    other = clean.clone()
    other[:, at] = (clean[:, at] + torch.randint(1, 80, (count,), generator=draw) - 3) % 87 + 3
    answer, foil = torch.randint(3, 90, (2, count), generator=draw)
    return Task.from_tokens(clean, other, answer, foil[:, None])
