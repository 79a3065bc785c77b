"""The null of a comparison: random-init models of each shape, or permuted measurements."""

from collections.abc import Sequence
from functools import partial

from probes.comparison.measurements import (
    ModelMeasurements,
    NullDraw,
    NullGroup,
    measure_null,
    permute_measurements,
    prepare_nulls,
)
from probes.comparison.pair_transfers import architecture_key
from probes.comparison.paths.measure import PathMeasurements
from probes.comparison.setup.parallel import RunAll
from probes.comparison.setup.prompts import ComparisonPrompts


def measure_nulls(
    prompts: ComparisonPrompts,
    measured: Sequence[ModelMeasurements],
    paths: PathMeasurements,
    nulls: int,
    run_all: RunAll,
) -> dict[object, list[NullDraw]]:
    """Measure the random-init models of each architecture, or permute what was measured."""
    if prompts.permuted_null:
        return {
            one.name: [
                permute_measurements(one, paths.runs[one.name], prompts.seed + n)
                for n in range(nulls)
            ]
            for one in measured[1:]
        }
    jobs = [(group, n) for group in _null_groups(prompts, measured) for n in range(nulls)]
    measure = partial(measure_null, prompts=prompts, plan=paths.plan)
    results = run_all(measure, jobs, "random-init models")
    by_architecture: dict[object, list[NullDraw]] = {}
    for (group, _), null in zip(jobs, results, strict=True):
        by_architecture.setdefault(architecture_key(group.template_model), []).append(null)
    return by_architecture


def _null_groups(
    prompts: ComparisonPrompts, measured: Sequence[ModelMeasurements]
) -> list[NullGroup]:
    """Groups of random-init models, one for each shape.

    Models of the first shape are donors into the others; models of the others' shapes are donors
    into the first.
    """
    first, *others = measured
    templates = {architecture_key(one.model): one.model for one in reversed(measured)}
    compared = {architecture_key(one.model) for one in others}
    groups = []
    for key, template in templates.items():
        recipients = [first] if key in compared else []
        recipients += others if key == architecture_key(first.model) else []
        open_recipients = [one.recipient for one in recipients if one.recipient]
        groups.append(
            prepare_nulls(template, prompts, open_recipients, states_only=key not in compared)
        )
    return groups
