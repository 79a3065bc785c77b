"""Tiny random models of the causal architectures of transformers."""

from collections.abc import Mapping

import torch
from torch import nn

_SMALL: Mapping[str, object] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 3,
    "num_layers": 3,
    "n_layer": 3,
    "n_layers": 3,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "ffn_hidden_size": 64,
    "ffn_dim": 64,
    "n_inner": 64,
    "max_position_embeddings": 48,
    "n_positions": 48,
    "n_ctx": 48,
    "max_seq_len": 48,
    "seq_length": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "rotary_dim": 8,
    "sliding_window": 4,
    "initializer_range": 0.15,
    "init_std": 0.15,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Sizes by the names that configurations use; those that a configuration lacks are left out."""


_MAX_PARAMETERS = 5_000_000


def causal_architectures() -> dict[str, str]:
    """Causal model types of transformers, each with the name of its architecture."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {
        kind: name if isinstance(name, str) else name[0]
        for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    }


def tiny_architecture(model_type: str, *, seed: int = 0, **overrides: object) -> nn.Module:
    """Random Hugging Face model of a type, as small as its configuration allows.

    Raises:
        Exception: What transformers raises for a type that cannot be made so small.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    default = AutoConfig.for_model(model_type)
    known = default.to_dict()
    sizes = {name: value for name, value in _SMALL.items() if name in known} | overrides
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = known.get(name)
        if isinstance(kinds, list) and name not in overrides:
            sizes[name] = [*kinds, *kinds[:1] * 3][:3]
    config = AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > _MAX_PARAMETERS:
        raise ValueError(f"{model_type} has {size:,} parameters at its smallest here")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        # Fresh biases and norms are constant, and would hide one that is dropped.
        for weight in hf_model.parameters():
            if weight.ndim == 1:
                nn.init.normal_(weight, mean=float(weight.mean()), std=0.1)
    return hf_model
