"""Random paths as the control of a parent's circuit in its relatives."""

from probes.circuits.faithfulness import (
    edge_masks,
    faithfulness_values,
    random_baseline,
    sample_random_circuits,
)
from probes.circuits.result import RandomBaseline
from probes.circuits.runs.reference import run_references
from probes.experiments.scorecard import ScorecardReference
from probes.models.model import ModelSpec, load

_RANDOM_CIRCUITS = 100


def random_path_faithfulness(reference: ScorecardReference, relative: ModelSpec) -> RandomBaseline:
    """Faithfulness, in a relative, of circuits of as many random paths as the parent's circuit has.

    Args:
        reference: The parent, from `prepare_scorecard_reference`.
        relative: Model of the parent's shape.
    """
    runs = run_references(load(relative), reference.held_out_task)
    (own,) = faithfulness_values(runs, edge_masks(runs, [reference.circuit])).tolist()
    masks = sample_random_circuits(
        runs, len(reference.circuit), "paths", _RANDOM_CIRCUITS, seed=reference.seed
    )
    return random_baseline(runs, masks, own, "paths")
