"""Weights of one decoder block, head by head, read from the modules of the bridge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from probes.models.model import Model
from probes.models.norm import Norm, read_norm


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """Weights of one block.

    Attributes:
        attn_norm, mlp_norm: Norms before attention and before the MLP.
        q, k, v: Matrices from the residual stream into each head.
        o: Matrix out of each head. Its bias belongs to no head.
        q_bias, k_bias, v_bias, o_bias: Zero where the model has none.
        mlp: Maps the normalized input to the output of the MLP.
        scale: Factor of attention scores.
        q_norm, k_norm: Norms of each head's queries and keys, as in Qwen3; None without.
        window: Number of keys that a query may attend to, itself among them (sliding-window
            attention); None for all before it.
    """

    attn_norm: Norm
    mlp_norm: Norm
    q: Float[Tensor, "head d_model d_head"]
    k: Float[Tensor, "kv_head d_model d_head"]
    v: Float[Tensor, "kv_head d_model d_head"]
    o: Float[Tensor, "head d_head d_model"]
    q_bias: Float[Tensor, "head d_head"]
    k_bias: Float[Tensor, "kv_head d_head"]
    v_bias: Float[Tensor, "kv_head d_head"]
    o_bias: Float[Tensor, " d_model"]
    mlp: Callable[[Tensor], Tensor]
    scale: float
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    window: int | None = None

    def project(self, port: str, x: Tensor, heads: Sequence[int] = ()) -> Tensor:
        """Project normalized residuals "... d_model" to q, k or v of some heads, or of all.

        Queries and keys are normalized where the model does so.
        """
        weight, bias = getattr(self, port), getattr(self, f"{port}_bias")
        if heads and list(heads) != list(range(len(weight))):
            weight, bias = weight[list(heads)], bias[list(heads)]
        flat = rearrange(weight, "head d_model d_head -> d_model (head d_head)")
        return self.normalize(port, (x @ flat).unflatten(-1, tuple(bias.shape)) + bias)

    def normalize(self, port: str, value: Tensor) -> Tensor:
        """Apply the norm of queries or keys, if there is one."""
        norm = {"q": self.q_norm, "k": self.k_norm}.get(port)
        return value if norm is None else norm(value)

    def visible_keys(
        self, attention_mask: Bool[Tensor, "prompt query key"]
    ) -> Bool[Tensor, "prompt query key"]:
        """Keys of the attention mask that lie within the window."""
        if self.window is None:
            return attention_mask
        query, key = (
            torch.arange(n, device=attention_mask.device) for n in attention_mask.shape[1:]
        )
        return attention_mask & (query[:, None] - key < self.window)


def read_layer(model: Model, block: Any) -> DecoderLayer:  # noqa: ANN401
    """Weights of one block of a bridge.

    Raises:
        ModelError: A norm is not supported.
    """
    attn = block.attn
    q, k, v, o = (getattr(attn, name).detach() for name in ("W_Q", "W_K", "W_V", "W_O"))
    return DecoderLayer(
        attn_norm=read_norm(block.ln1),
        mlp_norm=read_norm(block.ln2),
        q=q,
        k=k,
        v=v,
        o=o,
        q_bias=_read_bias(attn, "Q", q),
        k_bias=_read_bias(attn, "K", k),
        v_bias=_read_bias(attn, "V", v),
        o_bias=_read_bias(attn, "O", o),
        mlp=_read_mlp(block),
        q_norm=_read_head_norm(attn, "q_norm", model.shape.d_head),
        k_norm=_read_head_norm(attn, "k_norm", model.shape.d_head),
        window=_read_window(attn.original_component, model.config),
        scale=float(getattr(attn.original_component, "scaling", model.shape.d_head**-0.5)),
    )


def _read_mlp(block: Any) -> Callable[[Tensor], Tensor]:  # noqa: ANN401
    """MLP of a block as a function of its normalized input."""
    inner = block.original_component
    if hasattr(inner, "fc1") and hasattr(inner, "activation_fn"):
        # OPT has no module of its own for the MLP.
        first, second = block.mlp._modules["in"], block.mlp.out
        return lambda x: second(inner.activation_fn(first(x)))
    return block.mlp


def _read_head_norm(attn: Any, name: str, d_head: int) -> Norm | None:  # noqa: ANN401
    module = getattr(attn, name, None)
    if module is None:
        return None
    norm = read_norm(module)
    if norm.weight is None or norm.weight.shape != (d_head,):
        raise AttributeError(f"{name} does not normalize each head by itself")
    return norm


def _read_window(attn: Any, config: Any) -> int | None:  # noqa: ANN401
    """Sliding window of one layer's attention."""
    if hasattr(attn, "sliding_window"):
        return attn.sliding_window
    if getattr(config, "layer_types", None) is not None:
        return None
    return getattr(config, "sliding_window", None)


def _read_bias(attn: Any, name: str, weight: Tensor) -> Tensor:  # noqa: ANN401
    bias = getattr(attn, f"b_{name}", None)
    shape = weight.shape[-1:] if name == "O" else (weight.shape[0], weight.shape[2])
    return weight.new_zeros(shape) if bias is None else bias.detach().reshape(shape)
