"""compression.storage."""

import copy
from typing import Any

import torch

from probes.compression.derived_model import dense_storage, zero_fraction
from probes.models.model import Model
from probes.models.provenance import Rate


def measure_rate(model: Model) -> Rate:
    """Count what a model takes to store."""
    inside = to_hf_model(model)
    return Rate(
        storage=model.provenance.storage if model.provenance else dense_storage(inside, bits=16),
        density=1 - zero_fraction(inside),
        parameters=sum(weight.numel() for weight in inside.parameters()),
        is_recorded=model.provenance is not None,
    )


def to_hf_model(model: Model) -> Any:  # noqa: ANN401
    """Return a plain Hugging Face model with a model's weights, each named once."""
    from transformers import AutoModelForCausalLM

    weights = {
        name.replace("._original_component", ""): weight
        for name, weight in model.bridge.original_model.state_dict().items()
    }
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]):  # Fresh weights are drawn only to be overwritten.
        hf_model = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    # The wrapper may list parts of a matrix beside it.
    hf_model.load_state_dict({name: weights[name] for name in hf_model.state_dict()})
    return hf_model.eval()
