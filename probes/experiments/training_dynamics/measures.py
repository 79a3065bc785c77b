"""One measure after another along training, made of what the checkpoints did prompt by prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from probes.circuits.faithfulness import sample_random_circuits
from probes.circuits.reference_runs import run_references
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
    """All readings, from which one course after another is made."""

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
        """Make a course of means over prompts, over the mean of `unit` in the same draw if given.

        Without a unit, prompts are 0 or 1 and the mean is a share.
        """
        every = [values_of(one) for one in (*self.checkpoints, self.final, *self.nulls)]
        weights = bootstrap_weights(len(every[0]), DRAWS, seed=self.seed) / len(every[0])
        below = 1.0 if unit is None else float(unit.mean())
        drawn_below = 1.0 if unit is None else weights @ unit
        drawn = [weights @ one / drawn_below for one in every]
        found = [float(one.mean()) / below for one in every]
        # At 0 and at 1 the draws of a share have no width; Wilson's interval has.
        values = (
            [proportion(one > _BINARY_THRESHOLD) for one in every]
            if unit is None
            else [
                percentile_interval(value, draw) for value, draw in zip(found, drawn, strict=True)
            ]
        )
        count = len(self.checkpoints)
        return MeasureOverTraining(
            name=name,
            accuracy_name=accuracy_name,
            values=tuple(values[:count]),
            final=values[count],
            bootstrap=np.stack(drawn[:count]),
            final_bootstrap=drawn[count],
            nulls=tuple(found[count + 1 :]),
            other_seeds={
                model: percentile_interval(
                    float(values_of(one).mean()) / below, weights @ values_of(one) / drawn_below
                )
                for model, one in self.other_seeds.items()
            },
        )


def measures_over_training(
    log: CheckpointLog, reference: FinalModelReference, final_model: Model
) -> tuple[MeasureOverTraining, ...]:
    """Make all courses; see `Trajectory` for what they are."""
    first, end, found = reference.answers[0], log.final, []
    for answer in reference.answers:
        name = _accuracy_name(answer)
        found.append(log.measure(name, name, lambda one, a=answer: one.correct[a]))
    found.append(
        log.measure(LOGIT_DIFF, _accuracy_name(first), lambda one: one.logit_diff, end.logit_diff)
    )
    found.append(
        log.measure(
            CIRCUIT_ONLY, _accuracy_name(first), lambda one: one.circuit_logit_diff, end.logit_diff
        )
    )
    for variable in reference.sites:
        served = _accuracy_name(reference.answers[-1] if variable == OBJECT else first)
        taken = log.measure(
            f"{variable} {INTERCHANGE_ACCURACY}",
            served,
            lambda one, v=variable: one.interchange_hits[v],
        )
        found.append(taken)
        if not taken.is_present:  # A share of nearly nothing would be 1 in the end all the same.
            continue
        pull = log.measure(
            f"{variable} {LOGIT_SHIFT}",
            served,
            lambda one, v=variable: one.logit_shift[v],
            end.logit_shift[variable],
        )
        own = log.measure(
            f"{variable} {AT_OWN_SITE}", served, lambda one, v=variable: one.own_site_hits[v]
        )
        sites = tuple(one.own_sites[variable] for one in log.checkpoints)
        found += [pull, replace(own, notes=sites)]
    return (*found, _edge_overlap_measure(log, reference, final_model))


def _accuracy_name(answer: str) -> str:
    return f"{answer} accuracy"


def _edge_overlap_measure(
    log: CheckpointLog, reference: FinalModelReference, final_model: Model
) -> MeasureOverTraining:
    """Compare the strongest edges, as many as the circuit has, beside edges drawn by lot."""
    end, count = log.final.edge_scores, len(reference.circuit)
    weights = bootstrap_weights(len(end), DRAWS // 5, seed=log.seed)
    whole = np.ones((1, len(end)))
    top = end.sum(0).abs().topk(count).indices
    random = sample_random_circuits(
        run_references(final_model, reference.tasks[0][:1]),
        count,
        "paths",
        RANDOM_EDGE_SETS,
        seed=log.seed,
    )
    both = random[:, top].sum(1).double()
    chance = torch.quantile(both / (2 * count - both), torch.tensor(_QUANTILES).double())

    def of(one: CheckpointMeasurements) -> tuple[Estimate, Float[np.ndarray, " draw"]]:
        drawn = edge_overlap(one.edge_scores, end, count, weights)
        return percentile_interval(
            float(edge_overlap(one.edge_scores, end, count, whole)[0]), drawn
        ), drawn

    found = [of(one) for one in log.checkpoints]
    final = of(log.final)
    return MeasureOverTraining(
        name=EDGE_OVERLAP,
        accuracy_name=_accuracy_name(reference.answers[0]),
        values=tuple(value for value, _ in found),
        final=final[0],
        bootstrap=np.stack([drawn for _, drawn in found]),
        final_bootstrap=final[1],
        nulls=tuple(of(one)[0].value for one in log.nulls),
        random_interval=(float(chance[0]), float(chance[1])),
        other_seeds={model: of(one)[0] for model, one in log.other_seeds.items()},
    )


def circuit_faithfulness(
    checkpoint: CheckpointMeasurements, final: CheckpointMeasurements, seed: int
) -> Estimate | None:
    """Return the circuit's share of a checkpoint's own lead; None where that is next to nothing."""
    weights = bootstrap_weights(len(checkpoint.logit_diff), DRAWS, seed=seed)
    whole = weights @ checkpoint.logit_diff
    if (
        not np.quantile(whole, _QUANTILES[0])
        > _MIN_LOGIT_DIFF_FRACTION * len(checkpoint.logit_diff) * final.logit_diff.mean()
    ):
        return None
    return percentile_interval(
        float(checkpoint.circuit_logit_diff.mean() / checkpoint.logit_diff.mean()),
        (weights @ checkpoint.circuit_logit_diff) / whole,
    )
