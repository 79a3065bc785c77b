import re
from dataclasses import replace
from functools import cache

import jaxtyping
import numpy as np
import pytest
import torch

from probes.errors import BatchError, FigureError, SiteError
from probes.experiments.nearest_texts import TokenStates, capture_token_states, nearest_texts
from probes.experiments.neighbor_agreement import (
    VARIABLES,
    NeighborSettings,
    neighbor_agreement,
    sample_corpus_texts,
)
from probes.interventions.interchange import run_interchange_pairs
from probes.interventions.subspaces.das import Subspace
from probes.interventions.subspaces.directions import operation_direction
from probes.interventions.subspaces.projection import project_states
from probes.models.model import load
from probes.models.site import Site
from probes.prompts.catalog import list_patterns
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.viz.plots.state_projection import MAX_OBJECTS, group_rare_objects, projection_block

CELL = Site(1, "resid", "op")
COUNT = 16


@cache
def distilled():
    return load("distilled")


@cache
def crossed(seed=0):
    model, pattern = distilled(), list_patterns()["take-away"]
    return run_interchange_pairs(
        model, sample_interchange_pairs(pattern, COUNT, tokenizers=(model.tokenizer,), seed=seed)
    )


@cache
def shown():
    return project_states(crossed(), CELL, operation_direction(crossed(1), CELL))


@cache
def lines():
    return sample_corpus_texts(120, seed=0)


def planted(states, axis=0):
    """Crossings whose bases and sources have just these states at the cell, and a direction."""
    runs = crossed()
    width = runs.model.shape.d_model
    wide = torch.zeros(2 * COUNT, width)
    wide[:, : states.shape[1]] = torch.as_tensor(states, dtype=torch.float32)

    def put(run, rows):
        resid = run.resid.clone()
        resid[CELL.layer] = rows[:, None]
        return replace(run, resid=resid)

    clean, other = put(runs.clean, wide[:COUNT]), put(runs.sources["other"], wide[COUNT:])
    found = replace(runs, clean=clean, sources={**runs.sources, "other": other})
    return found, Subspace(1, "op", "means", torch.eye(width)[axis : axis + 1])


@pytest.fixture
def unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# --- the space --------------------------------------------------------------------------------


def test_planted_axes_come_back_with_their_shares_of_the_variance():
    """Variances 9, 4 and 1 on three axes that do not go together; the second is the direction."""
    draw = np.random.default_rng(0)
    free, _ = np.linalg.qr(np.column_stack([np.ones(2 * COUNT), draw.normal(size=(2 * COUNT, 3))]))
    states = free[:, 1:] * [3, 2, 1]
    runs, direction = planted(states, axis=1)
    found = project_states(runs, CELL, direction)
    assert found.principal_fractions == pytest.approx((9 / 14, 4 / 14), abs=1e-5)
    assert found.direction_fractions == pytest.approx((4 / 14, 9 / 14), abs=1e-5)
    assert np.allclose(np.abs(found.principal_xy), np.abs(states[:, :2]), atol=1e-5)
    assert np.allclose(np.abs(found.direction_xy), np.abs(states[:, [1, 0]]), atol=1e-5)


def test_sources_stand_right_of_bases_and_larger_answers_higher():
    sides = np.repeat([-1.0, 1.0], COUNT)
    numbers = np.array(shown().labels["number"], dtype=float)
    for sign in (1, -1):
        across = np.tile(np.arange(COUNT), 2) / 40
        runs, direction = planted(sign * np.column_stack([sides, across]))
        found = project_states(runs, CELL, direction)
        for xy in (found.principal_xy, found.direction_xy):
            assert xy[COUNT:, 0].mean() > 0 > xy[:COUNT, 0].mean()
            assert xy[:, 1] @ (numbers - numbers.mean()) >= 0


def test_no_two_axes_hold_more_variance_than_the_principal_ones():
    found = shown()
    assert sum(found.principal_fractions) >= sum(found.direction_fractions) - 1e-6
    assert found.principal_fractions[0] >= found.principal_fractions[1]
    for xy in (found.principal_xy, found.direction_xy):
        assert np.allclose(xy.mean(0), 0, atol=1e-5)


def test_the_first_found_axis_is_the_given_direction():
    direction = operation_direction(crossed(1), CELL)
    states = torch.cat([crossed().states(CELL), crossed().states(CELL, "other")])
    wanted = ((states - states.mean(0)) @ direction.basis[0]).cpu().numpy()
    assert np.allclose(np.abs(shown().direction_xy[:, 0]), np.abs(wanted), atol=1e-4)


def test_labels_belong_to_their_prompts():
    found = shown()
    assert found.labels["operation"] == ("minus",) * COUNT + ("plus",) * COUNT
    for at, text in enumerate(found.prompts):
        told = {name: values[at] for name, values in found.labels.items()}
        y = int(told["y"]) * (1 if told["operation"] == "plus" else -1)
        assert told["number"] == int(told["x"]) + y
        assert f" {told['object']} " in text


@pytest.mark.parametrize(
    ("cell", "direction", "says"),
    [
        (Site(1, "mlp", "op"), (1, "op", 1), "give a 'resid' site"),
        (CELL, (0, "op", 1), "at that site"),
        (CELL, (1, "y", 1), "at that site"),
        (CELL, (1, "op", 2), "has 2 rows"),
    ],
)
def test_a_direction_of_another_site_is_refused(cell, direction, says):
    layer, role, rows = direction
    basis = torch.eye(distilled().shape.d_model)[:rows]
    with pytest.raises(SiteError, match=says):
        project_states(crossed(), cell, Subspace(layer, role, "means", basis))


# --- lines of the corpus ----------------------------------------------------------------------


def test_corpus_lines_are_half_statements_say_what_they_say_and_hold_nothing_held_out():
    found = lines()
    assert len({line.text for line in found}) == 120
    assert sum("How many" in one.text or "how many" in one.text for one in found) == 60
    split = family_split()
    for line in found:
        assert line.object in line.text
        assert (line.operation, line.x, line.y) not in split.number_pairs
    assert {line.operation for line in found} == {"minus", "plus"}
    assert sample_corpus_texts(8, seed=0) != sample_corpus_texts(8, seed=1)


def test_what_a_line_says_stands_in_it():
    lexicon = list_patterns()["take-away"].lexicon
    for line in lines():
        side, forms = lexicon.verb_forms(line.verb)
        assert side == line.operation
        assert any(f" {form} " in line.text for form in forms.values())
        for number in (line.x, line.y):
            told = (str(number), lexicon.render("x", number, "", "words"))
            assert any(re.search(rf"\b{one}\b", line.text) for one in told)


# --- neighbors -------------------------------------------------------------------------------


def by_hand():
    """Three lines of two tokens each in the plane; the mean is nought."""
    states = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1], [0.6, 0.8], [-0.6, -0.8]])
    line = torch.tensor([0, 0, 1, 1, 2, 2])
    tokens = ("right", "left", "up", "down", "slant", "back")
    return TokenStates(("a", "b", "c"), line, tokens, torch.zeros(2), states)


def test_a_line_counts_once_by_its_nearest_token():
    found = nearest_texts(distilled(), by_hand(), 1, torch.tensor([2.0, 0.0]), count=3)
    assert [(one.text, one.token) for one in found] == [("a", "right"), ("c", "slant"), ("b", "up")]
    assert [one.similarity for one in found] == pytest.approx([1, 0.6, 0])
    assert found[:2] == nearest_texts(distilled(), by_hand(), 1, torch.tensor([2.0, 0.0]), count=2)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_prompt_among_the_lines_is_nearest_to_its_own_state(layer):
    texts = [line.text for line in lines()[30:90]]
    cell = Site(layer, "resid", "y")
    for n in range(3):
        asked = crossed().interchange_pairs.other[n].clean
        found = nearest_texts(
            distilled(), [*texts, asked.text], layer, crossed().states(cell)[n], count=1
        )[0]
        assert found.similarity == pytest.approx(1, abs=1e-4)
        if layer:
            assert found.text == asked.text
            assert found.token.strip() == asked.role_text("y")


def test_states_do_not_depend_on_what_a_line_is_padded_with(monkeypatch):
    texts = [line.text for line in lines()[30:90]]
    together = capture_token_states(distilled(), [*texts, *texts], 1)
    assert together.texts == tuple(texts)
    for n, text in enumerate(texts):
        own = (together.text_index == n).nonzero()[:, 0].tolist()
        assert "".join(together.tokens[at] for at in own).replace(" ", "") == text.replace(" ", "")
    monkeypatch.setattr("probes.experiments.nearest_texts.TOKENS_PER_BATCH", 1)
    alone = capture_token_states(distilled(), texts, 1)
    assert alone.tokens == together.tokens
    assert torch.allclose(alone.normalized, together.normalized, atol=1e-4)


def test_neighbors_that_are_all_lines_but_few_agree_as_often_as_any():
    """Of n + 1 lines the nearest n differ from all by one line at most."""
    some = lines()[:41]
    found = neighbor_agreement(crossed(), CELL, some, NeighborSettings(count=40))
    assert [share.variable for share in found] == list(VARIABLES)
    for share in found:
        assert abs(share.neighbor_rate.value - share.base_rate.value) <= 1 / 40
        assert share.difference.value == pytest.approx(
            share.neighbor_rate.value - share.base_rate.value
        )


def test_lines_near_the_operation_share_it_even_with_other_verbs():
    nearest = neighbor_agreement(crossed(), CELL, lines(), NeighborSettings(count=4))
    share = {one.variable: one for one in nearest}
    assert share["operation"].neighbor_rate.value > 0.95 and share["verb"].difference.low > 0.2
    assert share["operation"].base_rate.value == pytest.approx(0.5, abs=0.1)
    other = neighbor_agreement(crossed(), CELL, lines(), NeighborSettings(other_verbs=True))
    unlike = {one.variable: one for one in other}
    assert unlike["verb"].neighbor_rate.value == unlike["verb"].base_rate.value == 0
    assert unlike["operation"].difference.low > 0.3


def test_what_comes_after_the_site_cannot_make_lines_near():
    """The second number stands behind the operation, so a state there does not hold it."""
    share = {one.variable: one for one in neighbor_agreement(crossed(), CELL, lines())}
    assert share["y"].difference.value < 0.1


def test_too_few_lines_and_wrong_sites_are_refused():
    with pytest.raises(BatchError, match="give more texts"):
        neighbor_agreement(crossed(), CELL, lines()[:10])
    with pytest.raises(BatchError, match="0 of 0"):
        neighbor_agreement(crossed(), CELL, [])
    with pytest.raises(SiteError, match="give one of the residual stream"):
        neighbor_agreement(crossed(), Site(1, "mlp", "op"), lines())
    with pytest.raises(SiteError, match="layers 0 to 2"):
        capture_token_states(distilled(), ["a"], 3)
    with pytest.raises(BatchError, match="1 texts are empty"):
        capture_token_states(distilled(), [" "], 1)


# --- the picture ------------------------------------------------------------------------------


def test_models_stand_side_by_side_in_both_projections():
    block = projection_block([shown(), replace(shown(), model="other")])
    assert [cloud.model for cloud in block.clouds] == ["distilled", "other"] * 2
    assert np.array_equal(block.clouds[0].xy, shown().principal_xy)
    assert np.array_equal(block.clouds[3].xy, shown().direction_xy)
    assert set(block.clouds[0].color_labels) == {"operation", "verb", "number", "object"}
    assert f"operation: {100 * shown().direction_fractions[0]:.0f} % of variance" in block.body


def test_rare_objects_are_put_together():
    words = [chr(97 + n) for n in range(12) for _ in range(12 - n)]
    found = group_rare_objects(words)
    assert len(set(found)) == MAX_OBJECTS and max(found) == found[-1] == "… others"
    assert [a == b for a, b in zip(words, found, strict=True)] == [w < "h" for w in words]
    assert group_rare_objects(list("abcdefgh")) == list("abcdefgh")


def test_spaces_of_different_prompts_are_refused(unchecked):
    with pytest.raises(FigureError, match="nothing to draw"):
        projection_block([])
    with pytest.raises(FigureError, match="different prompts"):
        projection_block([shown(), replace(shown(), prompts=("a",) * 2 * COUNT)])
