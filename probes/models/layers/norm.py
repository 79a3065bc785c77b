"""Norms of a decoder as plain functions, with their gradients."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from probes.errors import ModelError

# Difference of a norm from the module that it was read from, relative to the largest output.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}


@dataclass(frozen=True, eq=False)
class Norm:
    """Layer norm, RMS norm (not centered), or the identity (no weight).

    Attributes:
        weight: Factor of each unit; 1 is added already where the model stores it without.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    centered: bool

    def __call__(self, x: Float[Tensor, "*_ d_model"]) -> Float[Tensor, "*_ d_model"]:
        """Normalize the last axis."""
        if self.weight is None:
            return x
        wide = x.to(self.weight.dtype)
        if self.centered:
            return layer_norm(wide, x.shape[-1:], self.weight, self.bias, self.eps).to(x.dtype)
        return rms_norm(wide, x.shape[-1:], self.weight, self.eps).to(x.dtype)

    def backward(
        self, grad: Float[Tensor, "*_ d_model"], x: Float[Tensor, "*_ d_model"]
    ) -> Float[Tensor, "*_ d_model"]:
        """Gradient at the input x, which may broadcast, from the gradient at the output.

        With y = w x̂ + b and x̂ = (x - mean) / s: (1/s) (g - mean(g) - x̂ mean(x̂ g)), g = w grad;
        an RMS norm lacks mean(g). `grad` is overwritten.
        """
        return grad if self.weight is None else self._derivative(grad.mul_(self.weight), x)

    def forward_change(
        self, change: Float[Tensor, "*_ d_model"], x: Float[Tensor, "*_ d_model"]
    ) -> Float[Tensor, "*_ d_model"]:
        """Change of the output for a small change of the input x, which may broadcast.

        The Jacobian of `backward`, from the other side. `change` is overwritten.
        """
        return change if self.weight is None else self._derivative(change, x).mul_(self.weight)

    def _derivative(self, value: Tensor, x: Tensor) -> Tensor:
        """Product of a vector with the derivative of x̂ at x, a symmetric matrix, in place."""
        center = x - x.mean(-1, keepdim=True) if self.centered else x
        scale = (center.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        unit = center * scale
        along = (value * unit).mean(-1, keepdim=True)
        if self.centered:
            value.sub_(value.mean(-1, keepdim=True))
        return value.addcmul_(unit, along, value=-1).mul_(scale)


IDENTITY = Norm(None, None, 0.0, centered=False)


@torch.no_grad()
def read_norm(module: Any) -> Norm:  # noqa: ANN401
    """Norm of a bridge component; it gives what the component's module gives.

    Raises:
        ModelError: It is neither a layer norm nor an RMS norm with a weight w or 1 + w.
    """
    inner = module.original_component
    if isinstance(inner, nn.Identity):
        return IDENTITY
    kind = type(inner).__name__
    eps = getattr(inner, "eps", getattr(inner, "variance_epsilon", None))
    if eps is None or not ("LayerNorm" in kind or "RMSNorm" in kind):
        raise ModelError(
            f"The norm {kind} is not supported: use a model with layer norms or RMS norms"
        )
    bias = getattr(inner, "bias", None)
    bias = None if bias is None else bias.detach()
    weight = inner.weight.detach()
    # Gemma and others store w - 1. No attribute says so: the module itself is tried. In 16 bits, a
    # large w and 1 + w are both within the tolerance, so the nearer one is taken.
    x = torch.linspace(-1, 2, weight.shape[-1], device=weight.device).to(weight.dtype)
    expected, gaps = inner(x), list[tuple[Norm, Tensor]]()
    for factor in (weight, 1 + weight.float()):
        norm = Norm(
            factor, None if bias is None else bias.to(factor), float(eps), "RMSNorm" not in kind
        )
        gaps.append((norm, (norm(x).float() - expected.float()).abs()))
    norm, gap = min(gaps, key=lambda found: float(found[1].sum()))
    allowed = _TOLERANCE.get(x.dtype, 1e-4) * max(1.0, float(expected.abs().max()))
    if float(gap.max()) <= allowed:
        return norm
    raise ModelError(
        f"The norm {kind} is not supported: it scales neither by its weight w nor by 1 + w"
    )
