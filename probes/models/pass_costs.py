"""Time of a model's passes, measured on a few real prompts."""

import time

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probes.models.model import Model

_FEW = 2


def seconds_per_prompt(
    model: Model,
    ids: Int[Tensor, "prompt position"],
    mask: Bool[Tensor, "prompt position"],
    at: Int[Tensor, "prompt answer"],
    *,
    limit: float = 1.5,
) -> float:
    """Seconds of a forward pass for each of its prompts: of one CPU core, or of the device.

    The least of repeated passes, as other processes slow some of them. They take about `limit`
    seconds, on as many of the given prompts as that allows.
    """
    ids, mask, at = (value.to(model.device) for value in (ids, mask, at))
    is_cpu = model.device.type == "cpu"
    clock = time.thread_time if is_cpu else time.perf_counter

    def timed(rows: int) -> float:
        start = clock()
        model.logits(ids[:rows], mask[:rows], at[:rows])
        if not is_cpu:
            torch.accelerator.synchronize(model.device)
        return clock() - start

    timed(_FEW)  # The first pass is slower.
    rows = int(min(len(ids), max(_FEW, _FEW * limit / 2 / max(timed(_FEW), 1e-6))))
    first = timed(rows)
    repeats = max(1, int(limit / max(first, 1e-6)) - 1)
    return min([first, *(timed(rows) for _ in range(repeats))]) / rows


def device_name(model: Model) -> str:
    """What the seconds are of: "CPU", or the device of the weights."""
    return "CPU" if model.device.type == "cpu" else str(model.device)
