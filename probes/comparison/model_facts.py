"""Facts about a compared model, its logit differences, and the data of its plots."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.stats.intervals import Estimate


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Name, origin and size of a compared model.

    Attributes:
        name, origin: Its name, and where it was loaded from.
        layers, heads, d_model, parameters: Its sizes.
        lineage: How it was made and from what, in words; "" where it is not known.
    """

    name: str
    origin: str
    layers: int
    heads: int
    d_model: int
    parameters: int
    lineage: str = ""


def lineage_lines(models: Iterable[ModelFacts]) -> list[str]:
    """How each distilled model was made, which says what "distilled" means there."""
    return [f"{one.name} is {one.lineage}." for one in models if "distilled from" in one.lineage]


@dataclass(frozen=True, eq=False)
class PlotData:
    """Data of the plots of one model, averaged over prompts.

    Attributes:
        attention, attention_error: Role-to-role attention and its standard error.
        components: Heads and MLPs.
        effects, effect_errors: Patching effects by contrast (logits) and their standard errors.
    """

    attention: Float[np.ndarray, "layer head role role_key"]
    attention_error: Float[np.ndarray, "layer head role role_key"]
    components: tuple[str, ...]
    effects: Mapping[str, Float[np.ndarray, "component role answer"]]
    effect_errors: Mapping[str, Float[np.ndarray, "component role answer"]]


@dataclass(frozen=True, slots=True)
class SolvedLogitDiff:
    """Logit difference of one model and answer on the questions that both models solve.

    Attributes:
        model, answer: Their names.
        items: Number of questions that both solve.
        logit_diff: Its mean, in logits; None without such questions.
    """

    model: str
    answer: str
    items: int
    logit_diff: Estimate | None
