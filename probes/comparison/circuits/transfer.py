"""Whether a circuit of one model does the job in another, beside that model's own circuit.

gap = f(given) - f(own)        f: share of the lead kept, counted as 1 where above it
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.circuits.edge_patching import run_circuits
from probes.circuits.faithfulness import (
    faithfulness_estimate,
    faithfulness_values,
    sample_random_circuits,
)
from probes.circuits.reference_runs import ReferenceRuns, run_references
from probes.circuits.task import Task
from probes.errors import GateError
from probes.models.model import Model
from probes.stats.intervals import BOOTSTRAP_DRAWS, Estimate, bootstrap_weights, percentile_interval

TransferLabel = Literal["works", "falls short", "cannot tell", "no circuit"]

MARGIN = 0.1
"""A given circuit works if it surely keeps no more than this less of the lead than the own one."""

MIN_OWN_FRACTION = 0.5
"""Share of the lead that a model's own circuit must surely keep: less is hardly a circuit."""


@dataclass(frozen=True, slots=True)
class CircuitTransfer:
    """What two circuits of one size keep in one model, on prompts that neither was found by.

    Attributes:
        model: The model in which they are run.
        own: Share of the lead that the model's own circuit keeps: 1 the whole, 0 nothing.
        given: The share that the other model's circuit keeps.
        gap: `given` less `own`, both counted as 1 where above it; below 0 the own one is better.
        chance, chance_high: Median and highest share of as many edges of random paths.
        word: "works" where the gap is surely above -0.1, "falls short" where it is surely below
            that, else "cannot tell"; "no circuit" where the own edges do not surely keep half of
            the lead and more than the highest chance: too few, so that nothing follows.
    """

    model: str
    own: Estimate
    transferred: Estimate
    gap: Estimate
    chance: float
    chance_high: float
    label: TransferLabel


def stage_task(model: Model, task: Task) -> ReferenceRuns:
    """Run the prompts that circuits are judged by.

    Raises:
        GateError: The answer does not lead, or its counterfactuals do not lower its lead.
    """
    found = run_references(model, task)
    leads, floor = float(found.clean_logit_diffs.mean()), float(found.ablated_logit_diffs.mean())
    if not leads > 0:
        raise GateError(
            f"{model.name} does not have the behavior: over {len(task)} prompts its answer's lead "
            f"is {leads:.2f} logits, not above 0. There is no circuit to compare; choose a model "
            "or a task whose gate is open."
        )
    if not leads > floor:
        raise GateError(
            f"The counterfactuals do not lower the lead of {model.name}: {leads:.2f} logits "
            f"before, {floor:.2f} after. There is nothing for a circuit to keep; choose contrasts "
            "that change the answer."
        )
    return found


def evaluate_transfer(
    stage: ReferenceRuns,
    own: Bool[Tensor, " edge"],
    transferred: Bool[Tensor, " edge"],
    *,
    random_circuits: int = 10,
    seed: int = 0,
) -> CircuitTransfer:
    """Run a model's own circuit and another's of as many edges, each by itself.

    Args:
        stage: The model on prompts that neither circuit was found by.
        own, given: The edges of each.
        controls: How many circuits of random paths give the chance level.
        seed: Of the draws and the random paths.
    """
    leads = run_circuits(stage, torch.stack([own, transferred]))
    mine, theirs = (faithfulness_estimate(stage, one, seed=seed) for one in leads)
    gap = percentile_interval(
        min(theirs.value, 1.0) - min(mine.value, 1.0), _bootstrap_gaps(stage, leads, seed)
    )
    chance = faithfulness_values(
        stage, sample_random_circuits(stage, int(own.sum()), "paths", random_circuits, seed=seed)
    )
    highest = float(chance.max())
    word: TransferLabel = "cannot tell"
    if mine.low <= max(highest, MIN_OWN_FRACTION):
        word = "no circuit"
    elif gap.low > -MARGIN:
        word = "works"
    elif gap.high < -MARGIN:
        word = "falls short"
    return CircuitTransfer(
        model=stage.model.name,
        own=mine,
        transferred=theirs,
        gap=gap,
        chance=float(chance.median()),
        chance_high=highest,
        label=word,
    )


def _bootstrap_gaps(
    stage: ReferenceRuns, logit_diffs: Float[Tensor, "circuit prompt"], seed: int
) -> Float[np.ndarray, " draw"]:
    """Draw the prompts anew: the given circuit's share less the own one's, both at most 1."""
    weights = bootstrap_weights(logit_diffs.shape[1], BOOTSTRAP_DRAWS, seed=seed)
    both, whole, none = (
        t.double().cpu().numpy()
        for t in (logit_diffs, stage.clean_logit_diffs, stage.ablated_logit_diffs)
    )
    own, given = np.minimum((both - none) @ weights.T / ((whole - none) @ weights.T), 1.0)
    return given - own
