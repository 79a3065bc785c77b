"""Gaussian weight noise, scaled to give the parent the same KL divergence as a relative."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probes.compression.storage import to_hf_model
from probes.models.files.provenance import storage_part
from probes.models.model import Model, wrap

_TOLERANCE = 0.03
_STEPS = 16
_MIN_SCALE, _MAX_SCALE = 1e-4, 4.0


@dataclass(frozen=True, eq=False)
class NoisyModel:
    """A model that gets weight noise repeatedly, in a copy.

    Attributes:
        original: The model; it is never changed.
        hf_model: The copy, a Hugging Face model.
        original_weights: Weight matrices of the layers of the original, by name.
        measured: For each seed the measured value at each scale that was tried.
    """

    original: Model
    hf_model: Any
    original_weights: Mapping[str, Tensor]
    measured: dict[int, dict[float, float]] = field(default_factory=dict)

    @torch.no_grad()
    def add_noise(self, scale: float, seed: int) -> Model:
        """Add Gaussian noise of `scale` standard deviations of each matrix."""
        generator = torch.Generator().manual_seed(seed)
        weights = dict(self.hf_model.named_parameters())
        for name, original in self.original_weights.items():
            noise = torch.randn(original.shape, generator=generator).to(original)
            weights[name].copy_(original + scale * original.float().std().to(original) * noise)
        name = f"{self.original.name} noise {seed}"
        return wrap(self.hf_model, name=name, tokenizer=self.original.tokenizer)


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """Scale of noise (standard deviations of each matrix), and the value measured there."""

    scale: float
    value: float


def noisy_model(model: Model) -> NoisyModel:
    """Copy a model for adding noise."""
    hf_model = to_hf_model(model).to(model.device)
    original_weights = {
        name: weight.detach().clone()
        for name, weight in hf_model.named_parameters()
        if storage_part(name, weight.ndim) == "weights"
    }
    return NoisyModel(model, hf_model, original_weights)


def match_noise(
    noisy: NoisyModel, target: float, seed: int, measure: Callable[[Model], float]
) -> NoiseScale | None:
    """Scale at which a measure that grows with noise reaches a target, within 3 %.

    None if the target is 0 or not finite, or if no scale from 1e-4 to 4 reaches it.
    """
    if not target > 0 or not math.isfinite(target):
        return None
    measured = noisy.measured.setdefault(seed, {})

    def measure_at(scale: float) -> NoiseScale:
        if scale not in measured:
            measured[scale] = measure(noisy.add_noise(scale, seed))
        return NoiseScale(scale, measured[scale])

    low, high = _bracket(measured, target)
    while low is None:
        point = measure_at(high.scale / 8 if high else 0.02)
        if point.value <= target:
            low = point
        elif point.scale < _MIN_SCALE:
            return None
        else:
            high = point
    while high is None:
        point = measure_at(min(low.scale * 2, _MAX_SCALE))
        if point.value > target:
            high = point
        elif point.scale >= _MAX_SCALE:
            return None
        else:
            low = point
    return _search(measure_at, low, high, target)


def _search(
    measure_at: Callable[[float], NoiseScale], low: NoiseScale, high: NoiseScale, target: float
) -> NoiseScale | None:
    """Interpolate between a lower and an upper scale until one is within the tolerance."""
    for step in range(_STEPS):
        best = min((low, high), key=lambda point: abs(point.value - target))
        if abs(best.value - target) <= _TOLERANCE * target:
            return best
        point = measure_at(_between(low, high, target, bisect=step % 3 == 2))
        low, high = (low, point) if point.value > target else (point, high)
    return None


def _bracket(
    measured: Mapping[float, float], target: float
) -> tuple[NoiseScale | None, NoiseScale | None]:
    """Nearest measured scales below and above a target."""
    points = [NoiseScale(scale, value) for scale, value in sorted(measured.items())]
    above = next((point for point in points if point.value > target), None)
    below = [p for p in points if p.value <= target and (not above or p.scale < above.scale)]
    return (below[-1] if below else None), above


def _between(low: NoiseScale, high: NoiseScale, target: float, *, bisect: bool) -> float:
    """Scale between two, by log-log interpolation, because KL is about a power of the scale."""
    start, stop = math.log(low.scale), math.log(high.scale)
    part = 0.5
    if not bisect and low.value > 0:
        rise = math.log(high.value) - math.log(low.value)
        part = (math.log(target) - math.log(low.value)) / rise if rise > 0 else 0.5
    return math.exp(start + min(max(part, 0.02), 0.98) * (stop - start))
