"""Plain weight noise: the parent, shaken until it is as far from itself as a relative is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probes.compression.storage import to_hf_model
from probes.models.model import Model, wrap
from probes.models.provenance import storage_part

_TOLERANCE = 0.03  # How near a KL must come, as a share of it.
_STEPS = 16
_MIN_SCALE, _MAX_SCALE = (
    1e-4,
    4.0,
)  # Standard deviations of a matrix; beyond, nothing of it is left.


@dataclass(frozen=True, eq=False)
class NoisyModel:
    """A model that can be shaken, again and again.

    Attributes:
        like: The model itself.
        plain: A copy of it as Hugging Face has it.
        still: The matrices of the layers as they are in the model itself.
        tried: For each seed the scales that were tried, with what was measured there.
    """

    original: Model
    hf_model: Any
    original_weights: Mapping[str, Tensor]
    measured: dict[int, dict[float, float]] = field(default_factory=dict)

    @torch.no_grad()
    def add_noise(self, scale: float, seed: int) -> Model:
        """Add normal noise, so many times each matrix's own standard deviation."""
        rng = torch.Generator().manual_seed(seed)
        weights = dict(self.hf_model.named_parameters())
        for name, still in self.original_weights.items():
            drawn = torch.randn(still.shape, generator=rng).to(still)
            weights[name].copy_(still + scale * still.float().std().to(still) * drawn)
        name = f"{self.original.name} shaken {seed}"
        return wrap(self.hf_model, name=name, tokenizer=self.original.tokenizer)


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """A scale of noise (standard deviations of each matrix), and what was measured there."""

    scale: float
    value: float


def noisy_model(model: Model) -> NoisyModel:
    """Prepare a model to be shaken; it is never changed."""
    plain = to_hf_model(model).to(model.device)
    still = {
        name: weight.detach().clone()
        for name, weight in plain.named_parameters()
        if storage_part(name, weight.ndim) == "weights"
    }
    return NoisyModel(model, plain, still)


def match_noise(
    noisy: NoisyModel, target: float, seed: int, measure: Callable[[Model], float]
) -> NoiseScale | None:
    """Shake a model until a measure that grows with noise comes to a target.

    Returns:
        What was found, within 3 % of the target; None where the target is 0, or where no noise
        reaches it.
    """
    if not target > 0 or not math.isfinite(target):
        return None
    known = noisy.measured.setdefault(seed, {})

    def at(scale: float) -> NoiseScale:
        if scale not in known:
            known[scale] = measure(noisy.add_noise(scale, seed))
        return NoiseScale(scale, known[scale])

    low, high = _bracket(known, target)
    while low is None:
        found = at(high.scale / 8 if high else 0.02)
        if found.value <= target:
            low = found
        elif found.scale < _MIN_SCALE:
            return None
        else:
            high = found
    while high is None:
        found = at(min(low.scale * 2, _MAX_SCALE))
        if found.value > target:
            high = found
        elif found.scale >= _MAX_SCALE:
            return None
        else:
            low = found
    return _nearest(at, low, high, target)


def _nearest(
    at: Callable[[float], NoiseScale], low: NoiseScale, high: NoiseScale, target: float
) -> NoiseScale | None:
    """Draw a scale below and one above together until one of them is near enough."""
    for step in range(_STEPS):
        best = min((low, high), key=lambda one: abs(one.value - target))
        if abs(best.value - target) <= _TOLERANCE * target:
            return best
        found = at(_between(low, high, target, even=step % 3 == 2))
        low, high = (low, found) if found.value > target else (found, high)
    return None


def _bracket(
    known: Mapping[float, float], target: float
) -> tuple[NoiseScale | None, NoiseScale | None]:
    """Return the nearest scales tried below and above a target."""
    tried = [NoiseScale(scale, value) for scale, value in sorted(known.items())]
    above = next((one for one in tried if one.value > target), None)
    below = [one for one in tried if one.value <= target and (not above or one.scale < above.scale)]
    return (below[-1] if below else None), above


def _between(low: NoiseScale, high: NoiseScale, target: float, *, even: bool) -> float:
    """Return a scale between two; KL grows about as a power of it, so that logs are straight."""
    start, stop = math.log(low.scale), math.log(high.scale)
    part = 0.5
    if not even and low.value > 0:
        rise = math.log(high.value) - math.log(low.value)
        part = (math.log(target) - math.log(low.value)) / rise if rise > 0 else 0.5
    return math.exp(start + min(max(part, 0.02), 0.98) * (stop - start))
