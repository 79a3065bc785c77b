"""Measures over training, from the measurements of the checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from probes.circuits.faithfulness import sample_random_circuits
from probes.circuits.runs.reference import run_references
from probes.experiments.training_dynamics.checkpoints import (
    CheckpointMeasurements,
    FinalModelReference,
    edge_overlap,
)
from probes.experiments.training_dynamics.emergence import MeasureOverTraining
from probes.models.model import Model
from probes.prompts.interchange_pairs import OBJECT
from probes.stats.intervals import (
    CONFIDENCE_LEVEL,
    Estimate,
    bootstrap_weights,
    percentile_interval,
    proportion,
)

DRAWS, RANDOM_EDGE_SETS = 1000, 200
INTERCHANGE_ACCURACY, LOGIT_SHIFT = "interchange accuracy", "logit shift"
AT_OWN_SITE = "interchange accuracy at own site"
LOGIT_DIFF, CIRCUIT_ONLY, EDGE_OVERLAP = "logit diff", "circuit only", "edge overlap"

_QUANTILES = ((1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2)
_BINARY_THRESHOLD, _MIN_LOGIT_DIFF_FRACTION = 0.5, 0.1


@dataclass(frozen=True, eq=False)
class CheckpointLog:
    """Measurements of all models of one trajectory.

    Attributes:
        checkpoints, final: Checkpoints, and the final model.
        nulls: Random-init models.
        other_seeds: Other-seed models by name.
        seed: Seed of the bootstrap.
    """

    checkpoints: Sequence[CheckpointMeasurements]
    final: CheckpointMeasurements
    nulls: Sequence[CheckpointMeasurements]
    other_seeds: Mapping[str, CheckpointMeasurements]
    seed: int

    def measure(
        self,
        name: str,
        accuracy_name: str,
        values_of: Callable[[CheckpointMeasurements], Float[np.ndarray, " prompt"]],
        unit: Float[np.ndarray, " prompt"] | None = None,
    ) -> MeasureOverTraining:
        """Means over prompts, divided by the mean of `unit` in the same bootstrap sample.

        Without a unit, the values of prompts are 0 or 1.
        """
        per_prompt = [values_of(one) for one in (*self.checkpoints, self.final, *self.nulls)]
        prompts, count = len(per_prompt[0]), len(self.checkpoints)
        weights = bootstrap_weights(prompts, DRAWS, seed=self.seed) / prompts
        scale = 1.0 if unit is None else float(unit.mean())
        bootstrap_scale = 1.0 if unit is None else weights @ unit
        bootstrap = [weights @ one / bootstrap_scale for one in per_prompt]
        means = [float(one.mean()) / scale for one in per_prompt]
        # At 0 and 1 the bootstrap of a proportion has no width; Wilson's interval has.
        values = (
            [proportion(one > _BINARY_THRESHOLD) for one in per_prompt]
            if unit is None
            else [percentile_interval(*both) for both in zip(means, bootstrap, strict=True)]
        )
        return MeasureOverTraining(
            name=name,
            accuracy_name=accuracy_name,
            values=tuple(values[:count]),
            final=values[count],
            bootstrap=np.stack(bootstrap[:count]),
            final_bootstrap=bootstrap[count],
            nulls=tuple(means[count + 1 :]),
            other_seeds={
                model: percentile_interval(
                    float(values_of(one).mean()) / scale,
                    weights @ values_of(one) / bootstrap_scale,
                )
                for model, one in self.other_seeds.items()
            },
        )


def measures_over_training(
    log: CheckpointLog, reference: FinalModelReference, final_model: Model
) -> tuple[MeasureOverTraining, ...]:
    """All measures; see `TrainingTrajectory`."""
    first, final = _accuracy_name(reference.answers[0]), log.final
    measures = []
    for answer in reference.answers:
        name = _accuracy_name(answer)
        measures.append(log.measure(name, name, lambda one, a=answer: one.correct[a]))
    for name, values_of in (
        (LOGIT_DIFF, lambda one: one.logit_diff),
        (CIRCUIT_ONLY, lambda one: one.circuit_logit_diff),
    ):
        measures.append(log.measure(name, first, values_of, final.logit_diff))
    for variable in reference.sites:
        accuracy = _accuracy_name(reference.answers[-1 if variable == OBJECT else 0])
        interchange = log.measure(
            f"{variable} {INTERCHANGE_ACCURACY}",
            accuracy,
            lambda one, v=variable: one.interchange_hits[v],
        )
        measures.append(interchange)
        if not interchange.is_present:  # A fraction of almost nothing would end at 1 all the same.
            continue
        shift = log.measure(
            f"{variable} {LOGIT_SHIFT}",
            accuracy,
            lambda one, v=variable: one.logit_shift[v],
            final.logit_shift[variable],
        )
        own = log.measure(
            f"{variable} {AT_OWN_SITE}", accuracy, lambda one, v=variable: one.own_site_hits[v]
        )
        sites = tuple(one.own_sites[variable] for one in log.checkpoints)
        measures += [shift, replace(own, notes=sites)]
    return (*measures, _edge_overlap_measure(log, reference, final_model))


def _accuracy_name(answer: str) -> str:
    return f"{answer} accuracy"


def _edge_overlap_measure(
    log: CheckpointLog, reference: FinalModelReference, final_model: Model
) -> MeasureOverTraining:
    """Overlap of the strongest edges, as many as the circuit has, with those of the final model."""
    final_edges, count = log.final.edge_scores, len(reference.circuit)
    weights = bootstrap_weights(len(final_edges), DRAWS // 5, seed=log.seed)
    all_prompts = np.ones((1, len(final_edges)))
    top = final_edges.sum(0).abs().topk(count).indices
    runs = run_references(final_model, reference.tasks[0][:1])
    random = sample_random_circuits(runs, count, "paths", RANDOM_EDGE_SETS, seed=log.seed)
    both = random[:, top].sum(1).double()
    random_overlaps = both / (2 * count - both)
    low, high = torch.quantile(random_overlaps, torch.tensor(_QUANTILES).double())

    def overlap(one: CheckpointMeasurements) -> tuple[Estimate, Float[np.ndarray, " draw"]]:
        value = float(edge_overlap(one.edge_scores, final_edges, count, all_prompts)[0])
        bootstrap = edge_overlap(one.edge_scores, final_edges, count, weights)
        return percentile_interval(value, bootstrap), bootstrap

    overlaps = [overlap(one) for one in log.checkpoints]
    final, final_bootstrap = overlap(log.final)
    return MeasureOverTraining(
        name=EDGE_OVERLAP,
        accuracy_name=_accuracy_name(reference.answers[0]),
        values=tuple(value for value, _ in overlaps),
        final=final,
        bootstrap=np.stack([bootstrap for _, bootstrap in overlaps]),
        final_bootstrap=final_bootstrap,
        nulls=tuple(overlap(one)[0].value for one in log.nulls),
        random_mean=float(random_overlaps.mean()),
        random_interval=(float(low), float(high)),
        other_seeds={model: overlap(one)[0] for model, one in log.other_seeds.items()},
    )


def circuit_faithfulness(
    checkpoint: CheckpointMeasurements, final: CheckpointMeasurements, seed: int
) -> Estimate | None:
    """Circuit's fraction of a checkpoint's own logit difference; None where that is near 0."""
    weights = bootstrap_weights(len(checkpoint.logit_diff), DRAWS, seed=seed)
    whole = weights @ checkpoint.logit_diff
    least = _MIN_LOGIT_DIFF_FRACTION * len(checkpoint.logit_diff) * final.logit_diff.mean()
    if not np.quantile(whole, _QUANTILES[0]) > least:
        return None
    return percentile_interval(
        float(checkpoint.circuit_logit_diff.mean() / checkpoint.logit_diff.mean()),
        (weights @ checkpoint.circuit_logit_diff) / whole,
    )
