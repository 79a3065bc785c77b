"""A screen predicts the derivative of an interchange, and leaves the sites that all sites give."""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch

from probes.interventions.dissociation import MIN_HEAD_FRACTION, head_shifts
from probes.interventions.hotspots.measure import HotspotSettings, hotspots
from probes.interventions.interchange import (
    LazyRuns,
    interchange_intervention,
    run_interchange_pairs,
    with_residual,
)
from probes.interventions.interchange_outcomes import NUMBER_READOUT, OBJECT_READOUT
from probes.interventions.screening import heads
from probes.interventions.screening.heads import screened_head_shifts
from probes.interventions.screening.sites import SiteScreen, predict_answers, screen_sites
from probes.interventions.site_search import choose_sites, search_all_sites, variables_of
from probes.models.model import load
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import sample_interchange_pairs

SETTINGS = HotspotSettings(bases=24, nulls=3, null_bases=8)


@cache
def runs(count=24):
    model = load("full")
    pairs = sample_interchange_pairs(
        pattern("take-away"), count, tokenizers=(model.tokenizer,), seed=1
    )
    return run_interchange_pairs(model, pairs)


@cache
def exact():
    return hotspots(load("full"), pattern("take-away"), SETTINGS)


@cache
def screened():
    settings = replace(SETTINGS, screened=True, null="permuted")
    return hotspots(load("full"), pattern("take-away"), settings)


def test_a_predicted_change_is_the_derivative_of_the_interchange():
    few = runs(4)
    predicted, step = predict_answers(few), 1e-2
    sizes = [tokens.shape[1] for tokens in few.outcome_tokens]
    for kind in ("same", "other"):
        for n in (0, len(predicted.sites) // 2, len(predicted.sites) - 1):
            site = predicted.sites[n]
            own, other = (run.resid[site.layer] for run in (few.clean, few.sources[kind]))
            source = with_residual(few, site.layer, own.lerp(other, step))
            after = interchange_intervention(few, [site], source=source)
            logits = torch.cat([part[0] for part in after.logits], -1)
            found = (logits - predicted.clean) / step
            wanted = predicted.changes[kind][:, n]
            assert found.shape[-1] == sum(sizes)
            assert torch.allclose(found, wanted, atol=0.05 * max(1.0, float(wanted.abs().max())))


def test_a_screen_leaves_the_site_of_each_variable():
    variables = variables_of(runs().interchange_pairs)
    every = search_all_sites(runs())
    left = screen_sites(runs(), variables, SiteScreen(bases=12, top=3, random=2, kept=2))
    assert len(left.sites) < len(every.sites) / 2
    assert choose_sites(left, variables) == choose_sites(every, variables)


def test_cells_of_a_screened_map_are_those_of_the_whole_map():
    found, whole = screened(), exact()
    for variable in found.maps:
        own, other = (each.hotspot(variable).site for each in (found, whole))
        # Of two roles that the whole search joins, a screen may have left one.
        assert own.layer == other.layer
        assert {*own.role.split("+")} <= {*other.role.split("+")}
        for site in set(found.sites) & set(whole.sites):
            cell = found.map(variable)[found.roles.index(site.role), site.layer]
            assert cell == whole.map(variable)[whole.roles.index(site.role), site.layer]
        measured = int(np.isfinite(found.map(variable)).sum())
        assert measured <= len(found.sites) < len(whole.sites)


def test_a_screened_map_names_the_error_of_its_screen():
    assert exact().screens == ()
    assert [check.contrast for check in screened().screens] == list(screened().maps)
    for check in screened().screens:
        assert 0 < check.random <= check.exact <= check.cells
        assert -1 <= check.spearman <= 1
        assert "cells patched exactly" in str(check)


def test_permuted_answers_hit_by_chance_only():
    found = screened()
    assert found.null == "permuted"
    assert tuple(found.thresholds) == tuple(exact().thresholds)
    for variable, threshold in found.thresholds.items():
        assert 0 <= threshold <= 0.5
        if variable in found.maps:
            assert threshold < found.hotspot(variable).other_object.value


@pytest.mark.parametrize("answer", [NUMBER_READOUT, OBJECT_READOUT])
def test_screened_heads_have_the_output_heads_of_exact_ones(answer):
    few = runs()
    found, whole = screened_head_shifts(few, answer), head_shifts(few, answer)
    equal = np.ones((1, len(few)))
    wanted, own = (each.fractions(equal)[0] for each in (whole, found))
    assert found.heads == whole.heads
    assert ((own >= MIN_HEAD_FRACTION) == (wanted >= MIN_HEAD_FRACTION)).all()
    assert found.screen is not None and whole.screen is None


def test_the_seed_draws_the_heads_that_a_screen_interchanges_exactly(monkeypatch):
    patched = []

    def patch(runs, sites, **options):
        patched.append(frozenset(map(str, sites)))
        return interchange_intervention(runs, sites, **options)

    monkeypatch.setattr(heads, "_STRONGEST", 1)
    monkeypatch.setattr(heads, "_RANDOM", 3)
    monkeypatch.setattr(heads, "interchange_intervention", patch)
    for seed in (0, 0, 1, 2):
        heads.head_measure(screened=True, seed=seed)(runs(4), NUMBER_READOUT)
    first, again, *others = filter(None, patched)
    assert first == again
    assert len({first, *others}) > 1
    assert heads.head_measure(screened=False, seed=1) is head_shifts


def test_a_run_that_nothing_reads_is_not_recorded():
    recorded = []

    def record(name):
        recorded.append(name)
        return runs(4).clean

    found = LazyRuns({name: partial(record, name) for name in "ab"})
    assert list(found) == ["a", "b"]
    assert not recorded
    assert found["b"] is found["b"]
    assert recorded == ["b"]


def test_a_screen_that_predicts_no_effect_still_leaves_sites(monkeypatch):
    variables, whole = variables_of(runs(4).interchange_pairs), predict_answers(runs(4))
    flat = replace(whole, changes={kind: 0 * each for kind, each in whole.changes.items()})
    monkeypatch.setattr("probes.interventions.screening.sites.predict_answers", lambda _: flat)
    left = screen_sites(runs(4), variables, SiteScreen(bases=4, top=2, random=2, kept=2))
    assert left.sites
    assert len(choose_sites(left, variables)) == len(variables)
