"""Weights in bfloat16 give what float32 gives, but for the rounding of 8 bits."""

import pytest
import torch
from measurements import MEASUREMENTS

from probes import ComparisonSettings, TraceSettings, compare, trace
from probes.models.model import load

DRAWN = ("a sampled continuation",)  # A token that is nearly as likely may be drawn in its place.


@pytest.fixture(scope="module")
def wide():
    return load("full")


@pytest.fixture(scope="module")
def half():
    return load("full", dtype="bfloat16")


def rms(values):
    return float(values.double().square().nanmean().sqrt())


@pytest.mark.parametrize("name", [name for name in MEASUREMENTS if name not in DRAWN])
def test_a_measurement_in_bfloat16_is_within_2_percent_and_a_rounded_logit(name, wide, half):
    expected = torch.as_tensor(MEASUREMENTS[name](wide)).float()
    found = torch.as_tensor(MEASUREMENTS[name](half)).float()
    assert torch.equal(found.isnan(), expected.isnan())
    assert rms(found - expected) <= 0.02 * rms(expected) + 0.03


def test_logit_differences_are_taken_in_float32(half):
    for name in ("answers", "logit lens", "activation patching", "attribution patching"):
        assert MEASUREMENTS[name](half).dtype == torch.float32


def test_a_trace_in_bfloat16_finds_nearly_the_same_circuit(wide, half):
    settings = TraceSettings(prompts=8, random_circuits=20, added_edges=10, other_pattern="")
    first, second = (trace(model, "take-away", settings=settings) for model in (wide, half))
    edges = [{*map(str, result.circuit.edges)} for result in (first, second)]
    assert len(edges[0] & edges[1]) >= 0.8 * len(edges[0] | edges[1])


@pytest.mark.slow
def test_a_comparison_in_bfloat16_gives_verdicts_and_a_file(half, tmp_path):
    settings = ComparisonSettings(prompts=4, null="permuted", draws=1)
    result = compare(half, "distilled", "take-away", settings)
    assert "gate open" in next(iter(result.summary()))
    result.save(tmp_path / "result.json")
