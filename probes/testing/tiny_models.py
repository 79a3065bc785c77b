"""Tiny random models, and a counter of hooks."""

from torch import nn

from probes.models.model import Model, wrap
from probes.models.process_state import seeded_init
from probes.models.run_checks import hook_count as hook_count

KINDS = ("gpt2", "llama", "llama-gqa", "neox")
"""Kinds of tiny models: absolute and rotary positions, grouped queries, parallel blocks."""

POST_NORM_KINDS = ("gemma2", "gemma3", "olmo2")
"""Kinds with norms behind attention and MLP: 1 + weight and soft caps, local and global rotary
positions with norms of each head's queries and keys, norms of the queries of all heads."""

OTHER_KINDS = ("qwen2", "qwen3", "mistral", "phi3")
"""Kinds with biases of queries, keys and values, with norms of each head's queries and keys, with a
sliding window, and with joint matrices of queries, keys and values and of the gated MLP."""

SIZE = {"vocab_size": 97, "max_position_embeddings": 48, "num_hidden_layers": 3, "hidden_size": 32}


def tiny_hf(kind: str, seed: int, **overrides: object) -> nn.Module:
    """Random Hugging Face model with 3 layers, 4 heads and width 32.

    `kind` is one of KINDS, POST_NORM_KINDS or OTHER_KINDS.
    """
    from transformers import (
        AutoModelForCausalLM,
        Gemma2Config,
        Gemma3TextConfig,
        GPT2Config,
        GPTNeoXConfig,
        LlamaConfig,
        MistralConfig,
        Olmo2Config,
        Phi3Config,
        Qwen2Config,
        Qwen3Config,
    )

    layers = int(str(overrides.get("num_hidden_layers", SIZE["num_hidden_layers"])))
    types = ["sliding_attention", "full_attention"] * layers
    grouped = {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    gemma = grouped | {"query_pre_attn_scalar": 8, "sliding_window": 4}
    config_class, options = {
        "gpt2": (GPT2Config, {}),
        "llama": (LlamaConfig, {"intermediate_size": 64}),
        "llama-gqa": (LlamaConfig, {"intermediate_size": 64, "num_key_value_heads": 2}),
        "gemma2": (
            Gemma2Config,
            gemma | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 8.0},
        ),
        "gemma3": (Gemma3TextConfig, gemma | {"layer_types": types[:layers]}),
        "olmo2": (Olmo2Config, grouped),
        "qwen2": (Qwen2Config, {"intermediate_size": 64, "num_key_value_heads": 2}),
        "qwen3": (Qwen3Config, grouped),
        "mistral": (MistralConfig, grouped | {"sliding_window": 4}),
        "phi3": (Phi3Config, {"intermediate_size": 64, "num_key_value_heads": 2}),
        "neox": (GPTNeoXConfig, {"intermediate_size": 64, "rotary_pct": 0.25}),
    }[kind]
    common = {**SIZE, "num_attention_heads": 4, "initializer_range": 0.15}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = config_class(**(common | options | tokens | overrides))
    with seeded_init(seed):
        hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        # Initial biases are 0, which would hide a dropped bias.
        for name, weight in hf_model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(weight, std=0.1)
            elif kind not in KINDS and weight.ndim == 1:
                nn.init.normal_(weight, mean=float(weight.detach().mean()), std=0.2)
    return hf_model


def tiny(kind: str, seed: int = 0, **overrides: object) -> Model:
    """`tiny_hf`, wrapped."""
    return wrap(tiny_hf(kind, seed, **overrides), name=f"tiny {kind}")
