"""Plain weight noise: the parent, shaken until it is as far from itself as a relative is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probes.compression.storage import unwrapped
from probes.models.model import Model, wrap
from probes.models.provenance import part_of

_TOLERANCE = 0.03  # How near a KL must come, as a share of it.
_STEPS = 16
_LEAST, _MOST = 1e-4, 4.0  # Standard deviations of a matrix; beyond, nothing of it is left.


@dataclass(frozen=True, eq=False)
class Shaken:
    """A model that can be shaken, again and again.

    Attributes:
        like: The model itself.
        plain: A copy of it as Hugging Face has it.
        still: The matrices of the layers as they are in the model itself.
        tried: For each seed the scales that were tried, with what was measured there.
    """

    like: Model
    plain: Any
    still: Mapping[str, Tensor]
    tried: dict[int, dict[float, float]] = field(default_factory=dict)

    @torch.no_grad()
    def shake(self, scale: float, seed: int) -> Model:
        """Add normal noise, so many times each matrix's own standard deviation."""
        rng = torch.Generator().manual_seed(seed)
        weights = dict(self.plain.named_parameters())
        for name, still in self.still.items():
            drawn = torch.randn(still.shape, generator=rng).to(still)
            weights[name].copy_(still + scale * still.float().std().to(still) * drawn)
        name = f"{self.like.name} shaken {seed}"
        return wrap(self.plain, name=name, tokenizer=self.like.tokenizer)


@dataclass(frozen=True, slots=True)
class Match:
    """A scale of noise (standard deviations of each matrix), and what was measured there."""

    scale: float
    value: float


def shaken(model: Model) -> Shaken:
    """Prepare a model to be shaken; it is never changed."""
    plain = unwrapped(model).to(model.device)
    still = {
        name: weight.detach().clone()
        for name, weight in plain.named_parameters()
        if part_of(name, weight.ndim) == "weights"
    }
    return Shaken(model, plain, still)


def match(
    noisy: Shaken, target: float, seed: int, measure: Callable[[Model], float]
) -> Match | None:
    """Shake a model until a measure that grows with noise comes to a target.

    Returns:
        What was found, within 3 % of the target; None where the target is 0, or where no noise
        reaches it.
    """
    if not target > 0 or not math.isfinite(target):
        return None
    known = noisy.tried.setdefault(seed, {})

    def at(scale: float) -> Match:
        if scale not in known:
            known[scale] = measure(noisy.shake(scale, seed))
        return Match(scale, known[scale])

    low, high = _bracket(known, target)
    while low is None:
        found = at(high.scale / 8 if high else 0.02)
        if found.value <= target:
            low = found
        elif found.scale < _LEAST:
            return None
        else:
            high = found
    while high is None:
        found = at(min(low.scale * 2, _MOST))
        if found.value > target:
            high = found
        elif found.scale >= _MOST:
            return None
        else:
            low = found
    return _nearest(at, low, high, target)


def _nearest(at: Callable[[float], Match], low: Match, high: Match, target: float) -> Match | None:
    """Draw a scale below and one above together until one of them is near enough."""
    for step in range(_STEPS):
        best = min((low, high), key=lambda one: abs(one.value - target))
        if abs(best.value - target) <= _TOLERANCE * target:
            return best
        found = at(_between(low, high, target, even=step % 3 == 2))
        low, high = (low, found) if found.value > target else (found, high)
    return None


def _bracket(known: Mapping[float, float], target: float) -> tuple[Match | None, Match | None]:
    """Return the nearest scales tried below and above a target."""
    tried = [Match(scale, value) for scale, value in sorted(known.items())]
    above = next((one for one in tried if one.value > target), None)
    below = [one for one in tried if one.value <= target and (not above or one.scale < above.scale)]
    return (below[-1] if below else None), above


def _between(low: Match, high: Match, target: float, *, even: bool) -> float:
    """Return a scale between two; KL grows about as a power of it, so that logs are straight."""
    start, stop = math.log(low.scale), math.log(high.scale)
    part = 0.5
    if not even and low.value > 0:
        rise = math.log(high.value) - math.log(low.value)
        part = (math.log(target) - math.log(low.value)) / rise if rise > 0 else 0.5
    return math.exp(start + min(max(part, 0.02), 0.98) * (stop - start))
