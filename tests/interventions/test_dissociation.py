"""Two paths are told apart in a planted model, and rivals and knock-outs are what they say."""

from functools import cache

import numpy as np
import pytest
import torch

from probes.interventions.dissociation import (
    _control_direction,
    ablate_heads,
    dissociate,
    necessity,
    output_heads,
)
from probes.interventions.hotspots.result import Hotspot, Hotspots
from probes.interventions.interchange import (
    interchange_intervention,
    run_interchange_pairs,
)
from probes.interventions.interchange_outcomes import NUMBER_READOUT, OBJECT_READOUT
from probes.interventions.subspaces.das import Subspace
from probes.models.site import Site
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.stats.intervals import Estimate
from probes.testing.planted_patterns import planted_fox

HERE, THERE = Site(1, "resid", "op"), Site(1, "resid", "thing")
NONE = Estimate(0.0, 0.0, 0.0)


@cache
def fox():
    return planted_fox("template")


@cache
def runs():
    drawn = sample_interchange_pairs(fox().pattern, 12, tokenizers=(fox().model.tokenizer,), seed=3)
    return run_interchange_pairs(fox().model, drawn)


def hot(operation=HERE, thing=THERE):
    """Hotspots of which only the runs and the two sites are looked at."""
    made = object.__new__(Hotspots)
    sites = {"operation": operation, "thing": thing}
    spots = tuple(Hotspot(name, cell, NONE, NONE, NONE, {}) for name, cell in sites.items())
    object.__setattr__(made, "runs", runs())
    object.__setattr__(made, "hotspots", spots)
    return made


@cache
def state():
    basis = torch.eye(runs().clean.resid.shape[-1])[list(fox().state)]
    return Subspace(1, "op", "means", basis)


def test_the_operation_moves_the_number_alone_and_the_object_the_noun_alone():
    found = dissociate(hot())
    assert (found.operation.number.value, found.operation.object.value) == (1, 0)
    assert (found.object.number.value, found.object.object.value) == (0, 1)
    # Each site turns its own lead around, which is twice what just ties; the other is untouched.
    assert found.crossover.value == pytest.approx(4, abs=0.01)


def test_sites_that_were_exchanged_cross_over_the_other_way():
    mine, other = dissociate(hot()), dissociate(hot(THERE, HERE))
    assert other.crossover.value == pytest.approx(-mine.crossover.value)
    assert other.operation.object == mine.object.object


def test_resampling_the_planted_state_costs_the_number_and_not_the_noun():
    found = necessity(runs(), state(), n_draws=3)
    assert found.number.low > 0
    assert found.object.value == pytest.approx(0, abs=1e-3)
    assert found.null_percentile == 1
    assert len(found.null_excesses) == 3
    again = necessity(runs(), state(), n_draws=3)
    assert (again.excess, again.null_excesses) == (found.excess, found.null_excesses)


@pytest.mark.parametrize("size", [1, 3])
def test_rivals_hold_nothing_of_the_subspace_and_as_much_variance(size):
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(60, 12, generator=draw) * torch.linspace(0.5, 2, 12)
    basis = torch.eye(12)[:size]
    rival = _control_direction(basis, states, seed=1)
    assert (rival @ basis.T).abs().max() < 1e-6
    torch.testing.assert_close(rival @ rival.T, torch.eye(len(rival)), atol=1e-6, rtol=0)
    centered = states - states.mean(0)
    held = (centered @ rival.T).square().sum(0).cumsum(0)
    wanted = (centered @ basis.T).square().sum()
    assert held[-1] >= wanted
    assert len(rival) == 1 or held[-2] < wanted


def test_a_subspace_of_most_variance_has_all_other_directions_for_a_rival():
    states = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    states[:, 0] *= 100
    rival = _control_direction(torch.eye(6)[:1], states, seed=0)
    assert rival.shape == (5, 6)
    assert rival[:, 0].abs().max() < 1e-6


def test_the_heads_that_bring_each_answer_are_those_that_break_it_and_no_other():
    found = output_heads(runs(), runs())
    assert found.object_heads
    assert not {*found.object_heads} & {*found.number_heads}
    assert [one.value for one in found.without_object] == [1, 0]
    assert [one.value for one in found.without_number] == [0, 1]
    assert set(found.head_fractions) == {
        f"L{layer}.H{head}" for layer in range(2) for head in range(8)
    }


def test_knocking_out_no_head_changes_nothing():
    assert [one.value for one in ablate_heads(runs(), ())] == [1, 1]


def test_knocking_out_every_head_everywhere_is_worse_than_where_answers_are_read():
    every = [f"L{layer}.H{head}" for layer in range(2) for head in range(8)]
    found = ablate_heads(runs(), every, all_positions=True)
    assert (found[NUMBER_READOUT].value, found[OBJECT_READOUT].value) == (0, 0)


def test_heads_are_knocked_out_in_batches_to_the_same_effect():
    heads = [f"L1.H{head}" for head in range(4)]
    whole, model = ablate_heads(runs(), heads), runs().model
    model.batch_tokens["ablation of heads"] = 5 * runs().clean.ids.shape[1]
    try:
        assert ablate_heads(runs(), heads) == whole
    finally:
        del model.batch_tokens["ablation of heads"]
    assert [one.value for one in whole] != [1, 1]


def test_one_place_is_not_measured_against_a_lead_that_is_nought():
    """The noun cannot be read where the number is: there is no lead to take a share of."""
    lead = np.abs(
        interchange_intervention(runs(), []).logit_shift(
            "thing", OBJECT_READOUT, at_other_readout=True
        )
    ).mean()
    assert lead < 1e-6
    assert dissociate(hot()).crossover_at_number.value == pytest.approx(2, abs=0.1)
