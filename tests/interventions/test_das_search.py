"""A search finds what was planted, in as few directions as it has, and what chance gives beside."""

from functools import cache

import pytest

from probes.interventions.interchange import run_interchange_pairs
from probes.interventions.subspaces import das_search
from probes.interventions.subspaces.das import das
from probes.interventions.subspaces.das_search import decode_object, search_subspace
from probes.models.site import Site
from probes.prompts.interchange_pairs import BaseFilter, sample_interchange_pairs
from probes.testing.planted_patterns import SEEN_NOUNS, planted_fox

HERE = Site(1, "resid", "op")


@cache
def fox():
    return planted_fox("template")


def drawn(count, seed, words=None):
    tokenizers = (fox().model.tokenizer,)
    return sample_interchange_pairs(
        fox().pattern,
        count,
        tokenizers=tokenizers,
        seed=seed,
        base_filter=BaseFilter(allowed_words=words or {}),
    )


@cache
def found():
    finding, judging = (run_interchange_pairs(fox().model, drawn(16, seed)) for seed in (1, 0))
    return search_subspace(finding, judging, HERE)


def test_the_planted_state_is_found_in_one_direction_and_the_search_stops_there():
    assert (found().full_state.value, found().min_dimensions, found().dimensions_tried) == (
        1,
        1,
        (1,),
    )
    assert found().accuracies[0].value == 1
    held = found().subspace.basis[:, list(fox().state)].square().sum()
    assert held > 0.5
    assert (found().subspace.layer, found().subspace.role) == (1, "op")


def of_verbs(kind, count, seed, *verbs):
    drawn_pairs = drawn(count, seed, {"op": verbs} if verbs else None)
    return run_interchange_pairs(planted_fox(kind).model, drawn_pairs)


def test_the_number_of_directions_is_chosen_on_the_search_and_only_scored_on_the_evaluation():
    """One pair of verbs has one state, and all six have six: one direction misses the others."""
    searched, judged = of_verbs("lexical", 24, 1, "lose", "find"), of_verbs("lexical", 24, 0)
    result = search_subspace(searched, judged, HERE, dimensions=(1, 2))
    assert (result.dimensions_tried, result.min_dimensions) == ((1,), 1)
    assert result.full_state.value == 1
    assert result.accuracies[0].value < 0.5


@pytest.mark.parametrize(("count", "left_out"), [(24, 8), (23, 0)])
def test_a_third_of_the_search_chooses_the_number_if_that_leaves_enough(
    monkeypatch, count, left_out
):
    sizes = []

    def count_prompts(objective, *args, **options):
        sizes.append(int(objective.token_mask.any(-1).sum()))
        return das(objective, *args, **options)

    monkeypatch.setattr(das_search, "das", count_prompts)
    runs = of_verbs("template", count, 1)
    result = search_subspace(runs, runs, HERE, dimensions=(1,))
    assert result.left_out == left_out
    assert sizes == [count - left_out] * 4  # The search and its three controls.


def test_the_direction_between_means_is_as_good_and_what_is_not_there_is_not_found():
    assert found().mean_difference.value == 1
    assert found().permuted_labels.value < found().accuracies[0].value
    assert found().random_init.value == 0
    elsewhere = found().control_site
    assert elsewhere is not None
    assert elsewhere.value < 0.2


def test_states_along_the_means_are_of_finite_dimension_and_distance():
    assert 1 <= found().state_dimension.participation_ratio < 10
    assert found().off_manifold_distance > 0


@pytest.mark.parametrize(("role", "there"), [("op", True), ("bos", False)])
def test_the_object_is_read_behind_it_and_not_before_it(role, there):
    """A head brings the noun to the verb; the first token sees no other."""
    few = drawn(32, 5, {"thing": SEEN_NOUNS[:4]})
    read = decode_object(fox().model, few, Site(1, "resid", role))
    assert read.n_classes == 4
    assert read.is_decodable == there
    assert (read.accuracy > 0.9) == there
