"""Weights of one decoder block, head by head, read from the modules of the bridge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from probes.models.layers.norm import IDENTITY, Norm, read_norm
from probes.models.model import Model


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """Weights of one block.

    Attributes:
        attn_norm, mlp_norm: Norms before attention and before the MLP, the identity without.
        q, k, v: Matrices from the residual stream into each head.
        o: Matrix out of each head. Its bias belongs to no head.
        q_bias, k_bias, v_bias, o_bias: Zero where the model has none.
        mlp: Maps the normalized input to what the MLP writes, behind its post-norm if any.
        scale: Factor of attention scores.
        softcap: Bound of attention scores, as in Gemma-2; None without.
        q_norm, k_norm: Norms of queries and keys, of each head by itself (Qwen3) or of all heads
            at once (OLMo-2); the identity without.
        attn_post_norm: Norm of the sum of heads before it enters the residual stream, as in
            Gemma-2 and OLMo-2; the identity without.
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
    softcap: float | None = None
    q_norm: Norm = IDENTITY
    k_norm: Norm = IDENTITY
    attn_post_norm: Norm = IDENTITY
    window: int | None = None

    def project(self, port: str, x: Tensor, heads: Sequence[int] = ()) -> Tensor:
        """Project normalized residuals "... d_model" to q, k or v of some heads, or of all.

        Queries and keys are normalized where the model does so.
        """
        if heads and self._norm_of_all_heads(port) is not None:
            return self.project(port, x)[..., list(heads), :]
        weight, bias = getattr(self, port), getattr(self, f"{port}_bias")
        if heads and list(heads) != list(range(len(weight))):
            weight, bias = weight[list(heads)], bias[list(heads)]
        flat = rearrange(weight, "head d_model d_head -> d_model (head d_head)")
        return self.normalize(port, (x @ flat).unflatten(-1, tuple(bias.shape)) + bias)

    def normalize(self, port: str, value: Tensor) -> Tensor:
        """Apply the norm of queries or keys "... head d_head", if there is one."""
        if (norm := self._norm_of_all_heads(port)) is not None:
            return norm(value.flatten(-2)).view_as(value)
        return self._head_norm(port)(value)

    def _head_norm(self, port: str) -> Norm:
        return {"q": self.q_norm, "k": self.k_norm}.get(port, IDENTITY)

    def _norm_of_all_heads(self, port: str) -> Norm | None:
        """Norm of queries or keys that takes all heads at once."""
        norm = self._head_norm(port)
        of_each = norm.weight is None or len(norm.weight) == self.q.shape[-1]
        return None if of_each else norm

    def gradient_hook(self, port: str) -> str:
        """Hook of an attention at which `input_gradient` takes its gradient."""
        return f"hook_{port}" if self._norm_of_all_heads(port) is None else f"{port}_norm.hook_out"

    def input_gradient(
        self, port: str, grad: Float[Tensor, "prompt position head d_head"], resid: Tensor
    ) -> Float[Tensor, "prompt head position d_model"]:
        """Gradient at each head's own copy of the normalized residual, from that at its q, k or v.

        Behind a norm of all heads, `grad` is that of the norm's output, and what the other heads
        make of the same copy of `resid` is part of the norm.
        """
        matrix, norm = getattr(self, port), self._norm_of_all_heads(port)
        if norm is None or norm.weight is None:
            return rearrange(grad, "b t h e -> b h t e") @ matrix.transpose(1, 2)
        flat = rearrange(matrix, "head d_model d_head -> d_model (head d_head)")
        raw = self.attn_norm(resid) @ flat + getattr(self, f"{port}_bias").flatten()
        scale = (raw.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
        unit = raw * scale
        grad = grad * norm.weight.view(grad.shape[-2:])
        along = (grad * unit.view_as(grad)).sum(-1) / unit.shape[-1]
        own = rearrange(grad, "b t h e -> b h t e") @ matrix.transpose(1, 2)
        shared = (unit @ flat.T)[:, None] * rearrange(along, "b t h -> b h t 1")
        return (own - shared) * scale[:, None]

    def attend(
        self,
        q: Float[Tensor, "*b query head d_head"],
        k: Float[Tensor, "*b key kv_head d_head"],
        v: Float[Tensor, "*b key kv_head d_head"],
        attention_mask: Bool[Tensor, "prompt query key"],
    ) -> Float[Tensor, "*b query head d_head"]:
        """Softmax attention over the allowed keys; a softcap c makes scores c tanh(score / c)."""
        q, k, v = (t.transpose(-2, -3) for t in (q, k, v))
        mask, grouped = attention_mask[:, None], q.shape[-3] != k.shape[-3]
        if self.softcap is None:
            z = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=grouped
            )
            return z.transpose(-2, -3)
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
        scores = self.softcap * ((q @ k.mT) * self.scale / self.softcap).tanh()
        pattern = scores.masked_fill(~mask, -torch.inf).softmax(-1, torch.float32)
        return (pattern.to(v.dtype) @ v).transpose(-2, -3)

    def sum_heads(self, z: Float[Tensor, "*_ head d_head"]) -> Float[Tensor, "*_ d_model"]:
        """Sum of what heads write, with the bias, before the post-norm."""
        return einsum(z, self.o, "... h e, h e d -> ... d") + self.o_bias

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
        attn_norm=_read_optional_norm(block, "ln1"),
        mlp_norm=_read_optional_norm(block, "ln2"),
        q=q,
        k=k,
        v=v,
        o=o,
        q_bias=_read_bias(attn, "Q", q),
        k_bias=_read_bias(attn, "K", k),
        v_bias=_read_bias(attn, "V", v),
        o_bias=_read_bias(attn, "O", o),
        mlp=_read_mlp(block),
        softcap=getattr(attn.original_component, "attn_logit_softcapping", None),
        q_norm=_read_head_norm(attn, "q_norm", q),
        k_norm=_read_head_norm(attn, "k_norm", k),
        attn_post_norm=_read_optional_norm(block, "ln1_post"),
        window=_read_window(attn.original_component, model.config),
        scale=float(getattr(attn.original_component, "scaling", model.shape.d_head**-0.5)),
    )


def _read_mlp(block: Any) -> Callable[[Tensor], Tensor]:  # noqa: ANN401
    """MLP of a block, with its post-norm, as a function of its normalized input."""
    inner = block.original_component
    if hasattr(inner, "fc1") and hasattr(inner, "activation_fn"):
        # OPT has no module of its own for the MLP.
        first, second = block.mlp._modules["in"], block.mlp.out
        return lambda x: second(inner.activation_fn(first(x)))
    post_norm = _read_optional_norm(block, "ln2_post")
    return block.mlp if post_norm is IDENTITY else lambda x: post_norm(block.mlp(x))


def _read_optional_norm(block: Any, name: str) -> Norm:  # noqa: ANN401
    """Norm of a block; the identity where the architecture has none of this name."""
    return read_norm(getattr(block, name)) if name in block.submodules else IDENTITY


def _read_head_norm(attn: Any, name: str, weight: Tensor) -> Norm:  # noqa: ANN401
    module = getattr(attn, name, None)
    norm, (heads, _, d_head) = IDENTITY if module is None else read_norm(module), weight.shape
    if norm.weight is None:
        return norm
    size = tuple(norm.weight.shape)
    if size != (d_head,) and (size != (heads * d_head,) or norm.centered):
        raise AttributeError(f"{name} is neither a norm of each head nor an RMS norm of all heads")
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
