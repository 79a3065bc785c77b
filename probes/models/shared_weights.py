"""Weights that several models have in common, kept once."""

from collections.abc import Sequence

import torch

from probes.models.files.memory import release_memory
from probes.models.model import Model


@torch.no_grad()
def share_weights(models: Sequence[Model]) -> int:
    """Let each model use the weights of the models before it that equal its own, by name.

    A relative in few bits has the embeddings and norms of its parent, which are a large part of a
    small model. No measurement changes weights in place; do not do so with models that share them.

    Returns:
        Bytes that are freed.
    """
    known: dict[str, list[torch.Tensor]] = {}
    freed = 0
    for model in models:
        before, own = freed, []
        for name, weight in model.bridge.named_parameters():
            others = known.setdefault(name, [])
            same = next((one for one in others if _is_equal(one, weight)), None)
            if same is None:
                others.append(weight)
                own.append(weight)
            elif same.data_ptr() != weight.data_ptr():
                freed += weight.numel() * weight.element_size()
                weight.data = same.data
        # The file that they were read from stays in memory while any weight is a part of it.
        for weight in own if freed > before and model.device.type == "cpu" else ():
            weight.data = weight.data.clone()
    if freed:
        release_memory()
    return freed


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two weights are the same numbers on one device; most differ in the first of them."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    start = (one.flatten()[:1000], other.flatten()[:1000])
    return torch.equal(*start) and torch.equal(one, other)
