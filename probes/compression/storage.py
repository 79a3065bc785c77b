"""Storage cost of a loaded model."""

import copy
from typing import Any

from probes.compression.derived_model import dense_storage, zero_fraction
from probes.models.files.provenance import Rate
from probes.models.model import Model
from probes.models.process_state import seeded_init


def measure_rate(model: Model) -> Rate:
    """Return the storage cost of a model."""
    hf_model, made = to_hf_model(model), model.provenance
    return Rate(
        storage=made.storage if made else dense_storage(hf_model, bits=16),
        density=1 - zero_fraction(hf_model),
        parameters=sum(weight.numel() for weight in hf_model.parameters()),
        is_recorded=made is not None and made.states_storage,
    )


def to_hf_model(model: Model) -> Any:  # noqa: ANN401
    """Return a new Hugging Face model with the weights of a `Model`."""
    from transformers import AutoModelForCausalLM

    weights = {
        name.replace("._original_component", ""): weight
        for name, weight in model.bridge.original_model.state_dict().items()
    }
    config = copy.deepcopy(model.config)
    with seeded_init(0):  # The weights are overwritten below.
        hf_model = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    # The bridge may list parts of a matrix as well.
    hf_model.load_state_dict({name: weights[name] for name in hf_model.state_dict()})
    return hf_model.eval()
