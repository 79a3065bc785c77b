"""Hotspots of planted models stand where the operation was planted, and chance stays near 0."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from probes.errors import ModelError, ProbeError, SiteError
from probes.interventions import hotspots as hotspot
from probes.interventions.hotspots import (
    all_sites,
    hotspots,
    inner_sites,
    search_words,
    takes_only,
    unseen_sampling,
    variables_of,
)
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.variance import FACTORS, omega_squared, variance_fractions
from probes.models.model import wrap
from probes.models.site import Site
from probes.prompts.catalog import list_patterns
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.testing.planted_patterns import fox_pattern, planted_fox
from probes.testing.tiny_models import hook_count, tiny_hf

FOX = fox_pattern()
OP = Site(1, "resid", "op")
VARIABLES = ("operation", "x", "y", "thing")


@cache
def fox(kind):
    return planted_fox(kind).model


@pytest.fixture(scope="module")
def template():
    """The template's hotspots, and what was hooked and weighed before and after."""
    model = fox("template")
    hotspots(model, FOX, variables=["operation"], bases=1, nulls=0)  # Blocks wire themselves.
    before = hook_count(model), [p.clone() for p in model.bridge.parameters()]
    draws = torch.get_rng_state()
    found = hotspots(model, FOX, bases=24, nulls=3, null_bases=8)
    assert torch.equal(draws, torch.get_rng_state())
    return found, before


def strangers(name, count=12, **how):
    """Bases of one of the groups."""
    draw = unseen_sampling(FOX)[name] | how
    return sample_interchange_pairs(
        FOX, count, tokenizers=(fox("template").tokenizer,), seed=3, **draw
    )


# Where a planted variable is found.


def test_each_variable_is_found_at_its_own_token_where_it_was_planted(template):
    found, _ = template
    assert tuple(spot.variable for spot in found.hotspots) == VARIABLES
    assert found.hotspot("operation").site == OP
    for variable in VARIABLES:
        spot = found.hotspot(variable)
        assert spot.site.layer == 1
        assert (spot.other_object.value, spot.same_object.value) == (1, 1)
        assert (spot.difference.value, spot.difference.low <= 0 <= spot.difference.high) == (
            0,
            True,
        )
        assert spot.site.role == {"operation": "op"}.get(variable, variable)
    assert [accuracy.value for accuracy in found.accuracy] == [1, 1]


@pytest.mark.slow
def test_a_code_of_each_noun_serves_its_own_object_only():
    found = hotspots(fox("rotated"), FOX, variables=["operation"], bases=24, nulls=0)
    (spot,) = found.hotspots
    assert spot.site == OP
    assert (spot.other_object.value, spot.same_object.value) == (0, 1)
    assert spot.difference.value == 1
    assert 0 < spot.difference.low <= spot.difference.high <= 1


def test_a_table_hands_over_the_operation_in_the_cells_that_it_was_shown():
    unseen = unseen_sampling(FOX)["untrained cells"]["keep"]
    shown = strangers("untrained cells", keep=lambda base: not unseen(base))
    for drawn, share in ((strangers("untrained cells"), 0), (shown, 1)):
        found = interchange_intervention(run_interchange_pairs(fox("lookup"), drawn), [OP])
        assert found.takes_variable("operation")[0].mean() == share
        assert found.is_outcome("other")[0].mean() == 1 - share


@pytest.mark.slow
def test_the_untrained_cells_are_a_group_of_their_own():
    found = hotspots(fox("lookup"), FOX, variables=["operation"], bases=16, nulls=0)
    (spot,) = found.hotspots
    assert set(spot.unseen_groups) == {"new objects", "untrained objects", "untrained cells"}
    assert spot.site == OP
    assert spot.unseen_groups["untrained cells"].value == 0
    assert min(spot.unseen_groups["new objects"].value, spot.other_object.value) >= 0.5


def test_untrained_nets_hand_over_next_to_nothing(template):
    assert tuple(template[0].thresholds) == VARIABLES
    assert all(0 <= bar <= 1 / 8 for bar in template[0].thresholds.values())


def test_nothing_is_left_hooked_and_no_weight_is_changed(template):
    _, (hooks, weights) = template
    assert hook_count(fox("template")) == hooks
    assert all(map(torch.equal, weights, fox("template").bridge.parameters()))


def test_a_map_holds_the_share_of_every_site(template):
    found, _ = template
    for variable in VARIABLES:
        drawn = found.map(variable)
        assert drawn.shape == (len(found.roles), 3)
        for cell in found.sites:
            wanted = takes_only(found.other_outcomes, variable)[
                found.other_outcomes.site_index(str(cell))
            ].mean()
            assert drawn[found.roles.index(cell.role), cell.layer] == wanted
    at = found.roles.index("op")
    # In the embedding, the verb's word stands for the operation, too; at the end none is read.
    assert found.map("operation")[at].tolist() == [1, 1, 0]
    assert np.delete(found.map("operation"), at, 0).max() == 0


def test_a_spot_repeats_what_the_exchanges_say(template):
    found, _ = template
    for spot in found.hotspots:
        row = found.other_outcomes.site_index(str(spot.site))
        assert (
            spot.other_object.value == takes_only(found.other_outcomes, spot.variable)[row].mean()
        )
    assert (
        found.other_outcomes.site_names
        == found.same_outcomes.site_names
        == tuple(map(str, found.sites))
    )
    assert (found.other_outcomes.source_object, found.same_outcomes.source_object) == (
        "other",
        "same",
    )
    assert set(found.roles) == set(found.runs.roles)


def test_all_cells_are_the_embedding_and_what_each_block_writes(template):
    cells = all_sites(template[0].runs)
    assert inner_sites(template[0].runs) == [cell for cell in cells if cell.layer == 1]
    assert {cell.layer for cell in cells} == {0, 1, 2}
    assert {cell.component for cell in cells} == {"resid"}
    assert len(cells) == len(set(cells)) == 3 * len(template[0].runs.roles)


def test_variables_are_single_and_the_object_comes_last(template):
    assert variables_of(template[0].runs.interchange_pairs) == VARIABLES


def test_a_variable_that_was_not_looked_for_has_no_spot(template):
    with pytest.raises(SiteError, match="not looked for"):
        template[0].hotspot("z")


def test_a_model_of_one_block_has_no_site_to_look_at():
    words = fox("template").tokenizer
    one = tiny_hf("llama", 0, vocab_size=len(words), num_hidden_layers=1)
    with pytest.raises(ModelError, match="one block"):
        hotspots(wrap(one, name="short", tokenizer=words), FOX)


# Halves and groups.


def test_groups_hold_what_was_not_met_before():
    words, split = search_words(FOX), family_split()
    assert words == {"thing": list(FOX.lexicon.words("noun")[::2])}
    for name in unseen_sampling(FOX):
        for pair in strangers(name).other:
            here, there = (dict(q.slots) for q in (pair.clean, pair.counterfactual))
            nouns = {here["thing"], there["thing"]}
            known = {
                "new objects": not nouns & set(words["thing"]),
                "untrained objects": nouns <= split.nouns,
                "untrained cells": ("plus", here["x"], here["y"]) in split.number_pairs,
            }
            assert known[name]


def test_sites_are_found_without_the_new_objects():
    tokenizers = (fox("template").tokenizer,)
    words = search_words(FOX)
    found = sample_interchange_pairs(FOX, 24, tokenizers=tokenizers, seed=1, allowed_words=words)
    spoken = {q["thing"] for p in found.other for q in (p.clean, p.counterfactual)}
    assert spoken <= set(words["thing"])


@pytest.mark.slow
def test_sites_are_found_on_other_prompts_than_they_are_judged_on(monkeypatch):
    """Few frames, verbs and nouns, so that a text that is drawn twice is no rare thing."""
    lexicon = FOX.lexicon
    few = replace(
        lexicon, verbs=lexicon.verbs[:1], choices=(("noun", ("foxes", "coins", "eggs", "cats")),)
    )
    pattern, drawn = replace(FOX, templates=FOX.templates[:1], lexicon=few), []

    def kept(*args, **how):
        drawn.append(sample_interchange_pairs(*args, **how))
        return drawn[-1]

    monkeypatch.setattr(hotspot, "sample_interchange_pairs", kept)
    hotspots(fox("template"), pattern, variables=["operation"], bases=40, nulls=0)
    finding, judging = ({pair.clean.text for pair in half.same} for half in drawn[:2])
    assert not finding & judging


def test_new_objects_stand_in_no_prompt_that_sites_are_found_by(own):
    pattern = list_patterns()["distractor"]
    words = search_words(pattern)
    found = sample_interchange_pairs(pattern, 12, tokenizers=(own,), seed=1, allowed_words=words)
    spoken = {q[s] for p in found.same for q in (p.clean,) for s in ("thing", "other_thing")}
    assert spoken <= set(words["thing"])


def test_a_variable_that_the_pattern_lacks_is_refused_by_name():
    with pytest.raises(ProbeError, match="nothing"):
        hotspots(fox("template"), FOX, variables=["nothing"], bases=8, nulls=0)


def test_without_untrained_nets_there_is_no_bar():
    found = hotspots(fox("template"), FOX, variables=["operation"], bases=8, nulls=0)
    assert all(np.isnan(bar) for bar in found.thresholds.values())


# Shares of variance.


def test_a_pure_factor_has_all_the_variance_and_a_constant_state_none():
    levels = np.array(list("abcabcabcabc"))
    means = {"a": [1.0, 0, 2], "b": [0.0, 3, 2], "c": [-1.0, 1, 2]}
    states = torch.tensor([means[level] for level in levels], dtype=torch.float64)
    assert omega_squared(states, levels) == pytest.approx(1, abs=1e-12)
    assert omega_squared(torch.ones(12, 3, dtype=torch.float64), levels) == 0


def test_a_share_is_what_the_textbook_makes_of_a_table_worked_by_hand():
    """Two groups, 0 2 and 4 6: 16 between, 4 within over 2; (16 - 2) / (20 + 2)."""
    states = torch.tensor([[0.0], [2.0], [4.0], [6.0]], dtype=torch.float64)
    assert omega_squared(states, np.array(list("aabb"))) == pytest.approx(14 / 22)
    # A dimension more adds to both sums: 16 + 0 between, 4 + 4 within.
    both = torch.cat([states, torch.tensor([[1.0], [-1], [1], [-1]], dtype=torch.float64)], 1)
    assert omega_squared(both, np.array(list("aabb"))) == pytest.approx((16 - 4) / (24 + 4))


def test_labels_that_say_nothing_have_no_share_on_average():
    rng = np.random.default_rng(0)
    states = torch.from_numpy(rng.normal(size=(60, 5)))
    levels = np.repeat(np.arange(12), 5)
    found = [omega_squared(states, rng.permutation(levels)) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20
    assert min(found) < 0 < max(found)


def test_a_known_part_of_the_variance_is_found_whatever_the_basis():
    rng = np.random.default_rng(1)
    levels = np.repeat(np.arange(2), 2000)
    states = rng.normal(size=(4000, 6))
    states[:, 0] += np.where(levels, 2.0, -2.0)  # 4 of 10.
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    one, other = (torch.from_numpy(s) for s in (states, 3 * states @ turned + 7))
    assert omega_squared(one, levels) == pytest.approx(0.4, abs=0.02)
    assert omega_squared(other, levels) == pytest.approx(omega_squared(one, levels))


@pytest.mark.parametrize("levels", [["a"] * 4, list("abcd")])
def test_a_factor_of_one_level_or_one_for_each_row_has_no_share(levels):
    assert np.isnan(omega_squared(torch.eye(4), np.array(levels)))


def test_words_explain_their_own_tokens_and_the_operation_its_planted_state(template):
    runs = template[0].runs
    cells = [Site(0, "resid", "thing"), Site(0, "resid", "op"), OP, Site(0, "resid", "ask")]
    found = variance_fractions(runs, cells)
    assert tuple(found) == FACTORS
    assert found["thing"][0] == pytest.approx(1)
    assert found["verb"][1] == pytest.approx(1)
    assert found["frame"][3] == pytest.approx(1)
    # 16 of the state, one of the verb's word and one of the noun's copy.
    assert 0.8 < found["operation"][2] < 1
    assert found["operation"][2] > found["operation"][1] + 0.5
    assert abs(found["operation"][0]) < 0.1
    assert np.isnan(found["name"]).all()
