"""Tiny models and counters for the tests."""

from torch import nn

from probes.models.model import Model, wrap
from probes.models.process_state import seeded_init
from probes.testing.equivalent_models import (
    EquivalentModel,
    duplicate_heads,
    group_heads,
    insert_silent_layer,
    merge_heads,
    permute_heads,
    permute_neurons,
    rotate_residual,
    round_weights,
    split_heads,
    swap_direction,
    ungroup_heads,
    zero_heads,
)

__all__ = [
    "KINDS",
    "SIZE",
    "EquivalentModel",
    "duplicate_heads",
    "group_heads",
    "hook_count",
    "insert_silent_layer",
    "merge_heads",
    "permute_heads",
    "permute_neurons",
    "rotate_residual",
    "round_weights",
    "split_heads",
    "swap_direction",
    "tiny",
    "tiny_hf",
    "ungroup_heads",
    "zero_heads",
]

# Names of the four kinds of tiny model: attention with and without groups, parallel blocks.
KINDS = ("gpt2", "llama", "llama-gqa", "neox")

SIZE = {"vocab_size": 97, "max_position_embeddings": 48, "num_hidden_layers": 3, "hidden_size": 32}


def tiny_hf(kind: str, seed: int, **overrides: object) -> nn.Module:
    """Build a random Hugging Face model small enough to check by hand; `kind` is one of KINDS."""
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        GPTNeoXConfig,
        LlamaConfig,
    )

    wide = {**SIZE, "num_attention_heads": 4, "initializer_range": 0.15}
    build = {
        "gpt2": lambda **more: GPT2Config(**{**wide, **more}),
        "llama": lambda **more: LlamaConfig(**{**wide, "intermediate_size": 64, **more}),
        "llama-gqa": lambda **more: LlamaConfig(
            **{**wide, "intermediate_size": 64, "num_key_value_heads": 2, **more}
        ),
        "neox": lambda **more: GPTNeoXConfig(
            **{**wide, "intermediate_size": 64, "rotary_pct": 0.25, **more}
        ),
    }[kind]
    config = build(bos_token_id=1, eos_token_id=2, pad_token_id=0, **overrides)
    with seeded_init(seed):
        hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        # Fresh biases are zero and would hide a bias that is dropped.
        for name, weight in hf_model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(weight, std=0.1)
    return hf_model


def tiny(kind: str, seed: int = 0, **overrides: object) -> Model:
    """Wrap a tiny random model."""
    return wrap(tiny_hf(kind, seed, **overrides), name=f"tiny {kind}")


def hook_count(model: Model) -> int:
    """Count the hooks on the bridge: torch's, and those that hook points list, not its own."""
    # A block wires these itself, at its first pass and for good.
    count = -sum(len(block._capture_hook_handles) for block in model.bridge.blocks)
    for module in model.bridge.modules():
        count += len(module._forward_hooks) + len(module._forward_pre_hooks)
        count += len(module._backward_hooks) + len(module._backward_pre_hooks)
        count += len(getattr(module, "fwd_hooks", ())) + len(getattr(module, "bwd_hooks", ()))
    return count
