"""Architecture and sizes of a model."""

from dataclasses import dataclass
from typing import Any

_CONTEXT_NAMES = (
    *("max_position_embeddings", "n_positions", "max_seq_len"),
    *("context_length", "seq_length"),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Architecture and sizes of a model.

    Attributes:
        architecture: Class of the Hugging Face model.
        layers, heads, kv_heads: Counts; query heads share a key/value head in groups.
        d_model, d_head, d_vocab: Widths.
        context: Most tokens of a prompt.
        parallel: Whether attention and MLP read the same residual, as in GPT-NeoX.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    context: int
    parallel: bool


def read_context(config: Any) -> int:  # noqa: ANN401
    """Most tokens of a prompt by a text config; 0 with relative positions, which name no limit."""
    return next((int(getattr(config, name)) for name in _CONTEXT_NAMES if hasattr(config, name)), 0)


def read_shape(architecture: str, config: Any, cfg: Any) -> Shape:  # noqa: ANN401
    """Shape from the config of a Hugging Face model and from that of its bridge."""
    config = config.get_text_config()
    return Shape(
        architecture=architecture,
        layers=int(cfg.n_layers),
        heads=int(cfg.n_heads),
        kv_heads=int(cfg.n_key_value_heads or cfg.n_heads),
        d_model=int(cfg.d_model),
        d_head=int(cfg.d_head),
        d_vocab=int(config.vocab_size),
        context=read_context(config) or int(cfg.n_ctx),
        parallel=bool(getattr(cfg, "parallel_attn_mlp", False)),
    )
