"""A search finds what was planted, in as few directions as it has, and what chance gives beside."""

from functools import cache

import pytest

from probes.interventions.das_search import object_decodable, search
from probes.interventions.interchange import cross
from probes.models.site import Cell
from probes.prompts.interchange_pairs import crossings
from probes.testing.planted_patterns import SEEN, planted_fox

HERE = Cell(1, "resid", "op")


@cache
def fox():
    return planted_fox("template")


def drawn(count, seed, words=None):
    tokenizers = (fox().model.tokenizer,)
    return crossings(fox().pattern, count, tokenizers=tokenizers, seed=seed, words=words)


@cache
def found():
    finding, judging = (cross(fox().model, drawn(16, seed)) for seed in (1, 0))
    return search(finding, judging, HERE)


def test_the_planted_state_is_found_in_one_direction_and_the_search_stops_there():
    assert (found().whole.value, found().smallest, found().sizes) == (1, 1, (1,))
    assert found().shares[0].value == 1
    held = found().space.basis[:, list(fox().state)].square().sum()
    assert held > 0.5
    assert (found().space.layer, found().space.role) == (1, "op")


def test_the_direction_between_means_is_as_good_and_what_is_not_there_is_not_found():
    assert found().means.value == 1
    assert found().permuted.value < found().shares[0].value
    assert found().untrained.value == 0
    elsewhere = found().elsewhere
    assert elsewhere is not None
    assert elsewhere.value < 0.2


def test_states_along_the_means_are_of_finite_dimension_and_distance():
    assert 1 <= found().dimensions.participation < 10
    assert found().distance > 0


@pytest.mark.parametrize(("role", "there"), [("op", True), ("bos", False)])
def test_the_object_is_read_behind_it_and_not_before_it(role, there):
    """A head brings the noun to the verb; the first token sees no other."""
    few = drawn(32, 5, {"thing": SEEN[:4]})
    read = object_decodable(fox().model, few, Cell(1, "resid", role))
    assert read.classes == 4
    assert read.decodable == there
    assert (read.accuracy > 0.9) == there
