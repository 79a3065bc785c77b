"""Summary of the study `growing`: each way to grow over its seeds, beside training alone."""

from collections.abc import Mapping, Sequence
from math import isnan

import pandas as pd

from probes.stats.intervals import Estimate, pool_groups

CONTROL = "distilled"
"""Start of the models that were trained as long without growing."""

WAYS = {
    "identity:distilled": "identity blocks",
    "stack:distilled": "stacked",
    "wider:distilled": "wider",
    CONTROL: "not grown",
}
"""Ways to grow `distilled`, by the start of their recipes, and the control."""

Rows = Sequence[Mapping[str, float | str]]
BySeed = Mapping[float | str, Estimate]


def growth_table(
    rows: Rows,
    measure: str = "mean_interchange_accuracy",
    *,
    bounds: tuple[float | int, float | int] = (0, 1),
) -> pd.DataFrame:
    """A measure of each way to grow over seeds, and its difference from training alone.

    The interval of a mean covers the prompts and, from two seeds on, the seeds (Student's t), that
    of a difference the seeds, with one variance between seeds for all ways. A grown model is
    compared with the control of its own seed, which read the same texts. Ways without the measure
    are left out, such as those of another shape for "circuit_faithfulness".

    Args:
        rows: Rows of the study.
        measure: Column with an interval, such as "mean_interchange_accuracy" or "cells".
        bounds: Smallest and largest value of the measure.
    """
    measured = [row for row in rows if row["start"] in WAYS and _has(row, measure)]
    by_way: dict[str, BySeed] = {
        way: {row["seed"]: _estimate(row, measure) for row in measured if row["start"] == way}
        for way in WAYS
        if any(row["start"] == way for row in measured)
    }
    control = by_way.get(CONTROL, {})
    means = pool_groups([list(found.values()) for found in by_way.values()], bounds=bounds)
    size = bounds[1] - bounds[0]
    differences = {w: _gains(found, control) for w, found in by_way.items() if w != CONTROL}
    differences = {way: found for way, found in differences.items() if found}
    gains = pool_groups(list(differences.values()), bounds=(-size, size))
    # One seed has no spread, and so no interval.
    gain_of = {
        way: str(gain) if len(found) > 1 else f"{gain.value:.2f}"
        for (way, found), gain in zip(differences.items(), gains, strict=True)
    }
    return pd.DataFrame(
        [
            {
                "way": WAYS[way],
                "models": len(found),
                "by seed": ", ".join(f"{one.value:.2f}" for one in found.values()),
                "mean": str(mean),
                "minus not grown": gain_of.get(way, ""),
            }
            for (way, found), mean in zip(by_way.items(), means, strict=True)
        ]
    )


def _has(row: Mapping[str, float | str], measure: str) -> bool:
    value = row.get(measure, "")
    return value != "" and not isnan(float(value))


def _gains(found: BySeed, control: BySeed) -> list[Estimate]:
    """Differences from the control of the same seed, where there is one."""
    gains = [one.value - control[seed].value for seed, one in found.items() if seed in control]
    return [Estimate(gain, gain, gain) for gain in gains]


def circuit_table(rows: Rows) -> pd.DataFrame:
    """Faithfulness of the parent's circuit in each model of its shape, beside random paths."""
    return pd.DataFrame(
        [
            {
                "model": row["model"],
                "circuit of the parent": str(_estimate(row, "circuit_faithfulness")),
                "random paths, median": row["random_paths_median"],
                "random paths, 95th percentile": row["random_paths_high"],
                "above": row["above_random_paths"],
            }
            for row in rows
            if _has(row, "random_paths")
        ]
    )


def _estimate(row: Mapping[str, float | str], measure: str) -> Estimate:
    return Estimate(*(float(row[f"{measure}{end}"]) for end in ("", "_low", "_high")))
