"""Hotspots of planted models are at the planted sites, and thresholds are near 0."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from probes.errors import ModelError, ProbeError, SiteError
from probes.interventions.hotspots import measure as hotspots_module
from probes.interventions.hotspots.measure import HotspotSettings, hotspots, unseen_bases
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.site_search import (
    all_sites,
    inner_sites,
    search_words,
    takes_only,
    variables_of,
)
from probes.interventions.subspaces.geometry import FACTORS, variance_fractions
from probes.models.model import load, wrap
from probes.models.site import Site
from probes.prompts.catalog import list_patterns
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import BaseFilter, sample_interchange_pairs
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
    """Hotspots of the template model, with its hooks and weights before."""
    model = fox("template")
    # The first pass adds permanent hooks.
    hotspots(model, FOX, HotspotSettings(bases=1, nulls=0), variables=["operation"])
    before = hook_count(model), [p.clone() for p in model.bridge.parameters()]
    rng_state = torch.get_rng_state()
    found = hotspots(model, FOX, HotspotSettings(bases=24, nulls=3, null_bases=8))
    assert torch.equal(rng_state, torch.get_rng_state())
    return found, before


def unseen_pairs(group, count=12, **changes):
    """Interchange pairs of one group of unseen values."""
    base_filter = replace(unseen_bases(FOX)[group], **changes)
    return sample_interchange_pairs(
        FOX, count, tokenizers=(fox("template").tokenizer,), seed=3, base_filter=base_filter
    )


# Sites of planted variables.


def test_each_variable_is_found_at_its_planted_token(template):
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
def test_a_code_specific_to_each_noun_works_for_its_own_object_only():
    found = hotspots(fox("rotated"), FOX, HotspotSettings(24, nulls=0), variables=["operation"])
    (spot,) = found.hotspots
    assert spot.site == OP
    assert (spot.other_object.value, spot.same_object.value) == (0, 1)
    assert spot.difference.value == 1
    assert 0 < spot.difference.low <= spot.difference.high <= 1


def test_a_lookup_table_transfers_the_operation_for_its_trained_cells_only():
    unseen = unseen_bases(FOX)["other sums"].keep
    trained = unseen_pairs("other sums", keep=lambda base: not unseen(base))
    for pairs, rate in ((unseen_pairs("other sums"), 0), (trained, 1)):
        found = interchange_intervention(run_interchange_pairs(fox("lookup"), pairs), [OP])
        assert found.takes_variable("operation")[0].mean() == rate
        assert found.is_outcome("other")[0].mean() == 1 - rate


@pytest.mark.slow
def test_other_sums_are_a_separate_group():
    found = hotspots(fox("lookup"), FOX, HotspotSettings(16, nulls=0), variables=["operation"])
    (spot,) = found.hotspots
    assert set(spot.unseen_groups) == {"new objects", "other objects", "other sums"}
    assert spot.site == OP
    assert spot.unseen_groups["other sums"].value == 0
    assert min(spot.unseen_groups["new objects"].value, spot.other_object.value) >= 0.5


def test_thresholds_of_random_init_models_are_near_zero(template):
    assert tuple(template[0].thresholds) == (*VARIABLES, "operation + x + y")
    assert all(0 <= level <= 1 / 8 for level in template[0].thresholds.values())


def test_hooks_are_removed_and_weights_unchanged(template):
    _, (hooks, weights) = template
    assert hook_count(fox("template")) == hooks
    assert all(map(torch.equal, weights, fox("template").bridge.parameters()))


def test_a_map_holds_the_rate_of_every_site(template):
    found, _ = template
    for variable in VARIABLES:
        rates = found.map(variable)
        assert rates.shape == (len(found.roles), 3)
        for site in found.sites:
            wanted = takes_only(found.other_outcomes, variable)[
                found.other_outcomes.site_index(str(site))
            ].mean()
            assert rates[found.roles.index(site.role), site.layer] == wanted
    at = found.roles.index("op")
    # The embedding of the verb determines the operation, too; after the last block it is unused.
    assert found.map("operation")[at].tolist() == [1, 1, 0]
    assert np.delete(found.map("operation"), at, 0).max() == 0


def test_hotspot_rates_agree_with_the_outcomes(template):
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


def test_sites_are_the_embedding_and_the_output_of_each_block(template):
    sites = all_sites(template[0].runs)
    assert inner_sites(template[0].runs) == [site for site in sites if site.layer == 1]
    assert {site.layer for site in sites} == {0, 1, 2}
    assert {site.component for site in sites} == {"resid"}
    assert len(sites) == len(set(sites)) == 3 * len(template[0].runs.roles)


def test_variables_are_single_and_the_object_is_last(template):
    assert variables_of(template[0].runs.interchange_pairs) == VARIABLES


def test_a_variable_that_was_not_requested_is_an_error(template):
    with pytest.raises(SiteError, match="No hotspot of 'z'"):
        template[0].hotspot("z")


def test_a_model_with_one_block_is_an_error():
    tokenizer = fox("template").tokenizer
    one = tiny_hf("llama", 0, vocab_size=len(tokenizer), num_hidden_layers=1)
    with pytest.raises(ModelError, match="one block"):
        hotspots(wrap(one, name="short", tokenizer=tokenizer), FOX)


# Search prompts and unseen groups.


def test_unseen_groups_hold_unseen_values_only():
    words, split = search_words(FOX), family_split()
    assert words == {"thing": list(FOX.lexicon.words("noun")[::2])}
    for group in unseen_bases(FOX):
        for pair in unseen_pairs(group).other:
            base, source = (dict(q.slots) for q in (pair.clean, pair.counterfactual))
            nouns = {base["thing"], source["thing"]}
            expected = {
                "new objects": not nouns & set(words["thing"]),
                "other objects": nouns <= split.nouns,
                "other sums": ("plus", base["x"], base["y"]) in split.number_pairs,
            }
            assert expected[group]


def test_the_search_excludes_new_objects():
    tokenizers = (fox("template").tokenizer,)
    words = search_words(FOX)
    found = sample_interchange_pairs(
        FOX, 24, tokenizers=tokenizers, seed=1, base_filter=BaseFilter(allowed_words=words)
    )
    used = {q["thing"] for p in found.other for q in (p.clean, p.counterfactual)}
    assert used <= set(words["thing"])


@pytest.mark.slow
def test_search_and_evaluation_share_no_prompt(monkeypatch):
    """One template, one verb pair and four nouns, so that repeated texts are frequent."""
    lexicon = FOX.lexicon
    few = replace(
        lexicon, verbs=lexicon.verbs[:1], choices=(("noun", ("foxes", "coins", "eggs", "cats")),)
    )
    pattern, samples = replace(FOX, templates=FOX.templates[:1], lexicon=few), []

    def recorded(*args, **options):
        samples.append(sample_interchange_pairs(*args, **options))
        return samples[-1]

    monkeypatch.setattr(hotspots_module, "sample_interchange_pairs", recorded)
    hotspots(fox("template"), pattern, HotspotSettings(40, nulls=0), variables=["operation"])
    search, evaluation = ({pair.clean.text for pair in pairs.same} for pairs in samples[:2])
    assert not search & evaluation


def test_the_search_excludes_new_objects_in_every_slot(own):
    pattern = list_patterns()["distractor"]
    words = search_words(pattern)
    found = sample_interchange_pairs(
        pattern, 12, tokenizers=(own,), seed=1, base_filter=BaseFilter(allowed_words=words)
    )
    used = {q[s] for p in found.same for q in (p.clean,) for s in ("thing", "other_thing")}
    assert used <= set(words["thing"])


def test_a_variable_that_the_pattern_lacks_is_an_error():
    with pytest.raises(ProbeError, match="nothing"):
        hotspots(fox("template"), FOX, HotspotSettings(8, nulls=0), variables=["nothing"])


def test_without_nulls_thresholds_are_nan():
    found = hotspots(fox("template"), FOX, HotspotSettings(8, nulls=0), variables=["operation"])
    assert all(np.isnan(level) for level in found.thresholds.values())


def test_factors_explain_their_own_tokens_and_the_planted_state(template):
    runs = template[0].runs
    sites = [Site(0, "resid", "thing"), Site(0, "resid", "op"), OP, Site(0, "resid", "ask")]
    found = variance_fractions(runs, sites)
    assert tuple(found) == FACTORS
    assert found["thing"][0] == pytest.approx(1)
    assert found["verb"][1] == pytest.approx(1)
    assert found["template"][3] == pytest.approx(1)
    # Variance: 16 of the state, one of the verb's embedding and one of the copied noun.
    assert 0.8 < found["operation"][2] < 1
    assert found["operation"][2] > found["operation"][1] + 0.5
    assert abs(found["operation"][0]) < 0.1
    assert np.isnan(found["name"]).all()


def test_hotspots_are_those_of_a_model_and_a_pattern_by_their_names():
    settings = HotspotSettings(bases=4, nulls=0)
    by_name = hotspots("full", "take-away", settings, variables=["operation"])
    given = hotspots(load("full"), list_patterns()["take-away"], settings, variables=["operation"])
    ((one,), (other,)) = by_name.hotspots, given.hotspots
    assert (one.site, one.other_object) == (other.site, other.other_object)
    assert (by_name.model, by_name.pattern) == ("full", "take-away")
