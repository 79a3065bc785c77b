"""Norms of a decoder as plain functions, with their gradients."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from probes.errors import ModelError


@dataclass(frozen=True, eq=False)
class Norm:
    """Layer norm, RMS norm (not centered), or the identity (no weight)."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    centered: bool

    def __call__(self, x: Float[Tensor, "*_ d_model"]) -> Float[Tensor, "*_ d_model"]:
        """Normalize the last axis."""
        if self.weight is None:
            return x
        if self.centered:
            return layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return rms_norm(x, x.shape[-1:], self.weight, self.eps)

    def backward(
        self, grad: Float[Tensor, "*_ d_model"], x: Float[Tensor, "*_ d_model"]
    ) -> Float[Tensor, "*_ d_model"]:
        """Gradient at the input x, which may broadcast, from the gradient at the output.

        With y = w x̂ + b and x̂ = (x - mean) / s: (1/s) (g - mean(g) - x̂ mean(x̂ g)), g = w grad;
        an RMS norm lacks mean(g). `grad` is overwritten.
        """
        if self.weight is None:
            return grad
        center = x - x.mean(-1, keepdim=True) if self.centered else x
        scale = (center.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        unit = center * scale
        grad.mul_(self.weight)
        along = (grad * unit).mean(-1, keepdim=True)
        if self.centered:
            grad.sub_(grad.mean(-1, keepdim=True))
        return grad.addcmul_(unit, along, value=-1).mul_(scale)


def read_norm(module: Any) -> Norm:  # noqa: ANN401
    """Norm of a bridge component.

    Raises:
        ModelError: It is neither a layer norm nor an RMS norm.
    """
    inner = module.original_component
    if isinstance(inner, nn.Identity):
        return Norm(None, None, 0.0, centered=False)
    kind = type(inner).__name__
    eps = getattr(inner, "eps", getattr(inner, "variance_epsilon", None))
    if eps is None or not ("LayerNorm" in kind or "RMSNorm" in kind):
        raise ModelError(
            f"The norm {kind} is not supported: use a model with layer norms or RMS norms"
        )
    bias = getattr(inner, "bias", None)
    weight = inner.weight.detach()
    return Norm(weight, None if bias is None else bias.detach(), float(eps), "RMSNorm" not in kind)
