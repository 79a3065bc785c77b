"""The repr of every public value has at most 2,000 characters, whatever its size."""

import numpy as np
import pytest
import torch

from probes.interventions.hotspots.measure import HotspotSettings, hotspots
from probes.interventions.result import (
    DASResult,
    DirectionComparison,
    Dissociation,
    InterchangeEffect,
    IntrinsicDimension,
    Necessity,
    OutputHeads,
    UnseenVerbs,
)
from probes.interventions.subspaces.das_search import interchange_objective
from probes.interventions.subspaces.directions import operation_direction
from probes.interventions.subspaces.projection import project_states
from probes.interventions.sweep import PatchingEffects
from probes.models.site import Site
from probes.stats.intervals import Estimate
from probes.testing.planted_patterns import planted_fox

OP = Site(1, "resid", "op")
RATE = Estimate(1 / 3, 2 / 7, 3 / 7)
HEADS = tuple(f"L{layer}.H{head}" for layer in range(12) for head in range(12))


def large_results():
    effect = InterchangeEffect("operation", RATE, RATE)
    dimension = IntrinsicDimension(10 / 3, 20 / 3, 400)
    return [
        Dissociation(effect, effect, RATE, RATE),
        Necessity(RATE, RATE, RATE, tuple(np.random.default_rng(0).normal(size=1000))),
        OutputHeads(
            HEADS[:9],
            HEADS[9:18],
            (RATE, RATE),
            (RATE, RATE),
            (RATE, RATE),
            dict.fromkeys(HEADS, (1 / 3, 2 / 3)),
        ),
        DASResult(RATE, (1, 2, 4, 8), (RATE,) * 4, 8, RATE, RATE, RATE, RATE, 1 / 3, dimension),
        DirectionComparison(RATE, RATE, RATE, RATE, RATE, (100 / 3,) * 4, (("fox", "cup"),) * 4),
        UnseenVerbs(RATE, RATE, RATE, (("take away", "put back"),) * 20, {"lose / find": RATE}),
        PatchingEffects(
            "gpt2",
            "operation",
            HEADS,
            tuple(f"role {n}" for n in range(20)),
            ("number", "noun"),
            torch.zeros(100, 144, 20, 2),
            torch.zeros(100, 2),
            1.0,
        ),
    ]


@pytest.fixture(scope="module")
def values():
    """One value of every public type, from a planted model or with the sizes of GPT-2."""
    fox = planted_fox("template")
    hot = hotspots(
        fox.model, fox.pattern, HotspotSettings(bases=8, nulls=0), variables=["operation"]
    )
    direction = operation_direction(hot.runs, OP)
    return [
        *(hot, *hot.hotspots, hot.example, hot.runs, hot.runs.clean, hot.other_outcomes),
        *(direction, interchange_objective(hot.runs, OP, "operation")),
        project_states(hot.runs, OP, direction),
        *large_results(),
    ]


def test_the_repr_of_a_public_value_is_short(values):
    sizes = {type(value).__name__: len(repr(value)) for value in values}
    assert len(sizes) == len(values)
    assert {name: size for name, size in sizes.items() if size > 2000} == {}
    # A repr names its value.
    assert "L1.resid@op" in repr(values[0])
