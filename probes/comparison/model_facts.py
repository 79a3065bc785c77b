"""The plain facts of a compared model, and what its pictures are drawn from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One of the compared models: its name, where it came from, and its size."""

    name: str
    origin: str
    layers: int
    heads: int
    d_model: int
    parameters: int


@dataclass(frozen=True, eq=False)
class PlotData:
    """What the pictures of one model are drawn from, averaged over prompts.

    Attributes:
        attention, attention_error: Attention pooled from role to role.
        components: The rows of the effects: heads and MLPs.
        effects, effect_errors: For each contrast, what patching each component moves (logits).
    """

    attention: Float[np.ndarray, "layer head role role_key"]
    attention_error: Float[np.ndarray, "layer head role role_key"]
    components: tuple[str, ...]
    effects: Mapping[str, Float[np.ndarray, "component role answer"]]
    effect_errors: Mapping[str, Float[np.ndarray, "component role answer"]]
