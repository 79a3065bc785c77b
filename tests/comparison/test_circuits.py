"""Comparison of circuits: planted models, noise alone, edge tests and errors."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.faithfulness import faithfulness
from probes.circuits.graph import ComputationGraph
from probes.circuits.task import Task
from probes.comparison.circuits.compare import CircuitComparisonSettings, compare_circuits
from probes.comparison.circuits.edge_tests import (
    MAX_SIGN_FLIPS,
    edge_changes,
    min_detectable_edges,
    sign_flip_test,
)
from probes.comparison.circuits.overlap import (
    edge_overlaps,
    node_overlap,
    sum_by_group,
)
from probes.errors import CircuitError, GateError
from probes.models.model import load
from probes.prompts.splits import split_groups, text_groups
from probes.testing.equivalent_layers import round_weights
from probes.testing.llama_builder import D_HEAD
from probes.testing.planted_circuits import NO, OFF, ON, YES, induction, or_gate
from probes.testing.tiny_models import tiny

FIVE = 0.046  # 5 of 110 edges, which is how many the planted circuit has.


def weights(model, layer, port):
    """A head's rows of q, k, v or columns of o, as something that can be written to."""
    plain = {
        name.replace("._original_component", ""): value.data
        for name, value in model.bridge.original_model.named_parameters()
    }
    found = plain[f"model.layers.{layer}.self_attn.{port}_proj.weight"]
    return found.T if port == "o" else found


@cache
def planted():
    return induction(0, distractors=2)


@cache
def moved(layer, one, other):
    """The planted model with two heads of a layer swapped."""
    model = replace(induction(0, distractors=2).model, name="moved")
    for port in "qkvo":
        both = weights(model, layer, port).unflatten(0, (-1, D_HEAD))
        both[[one, other]] = both[[other, one]]
    return model


@cache
def lookups():
    """Pairs of four planted models, which all read the same tokens: enough for small p-values."""
    tasks = [induction(seed, distractors=2).task for seed in range(4)]
    names = ("clean", "counterfactual", "answer", "foils")
    return Task.from_tokens(*(torch.cat([getattr(task, name) for task in tasks]) for name in names))


@cache
def compared(layer, one, other):
    return compare_circuits(
        planted().model,
        moved(layer, one, other),
        lookups(),
        CircuitComparisonSettings(sizes=(FIVE,), draws=40, random_circuits=3),
    )


def named(edges):
    return {str(edge) for edge in edges}


# A head that moved. L0.H0 and L1.H0 are the circuit; L0.H1 and L1.H2 have no effect.


def test_a_moved_first_head_changes_its_two_edges_and_keeps_three():
    found = compared(0, 0, 1)
    at = found.middle_size
    assert at.overlap.edges == 5
    assert at.overlap.same_prompts == pytest.approx(3 / 7)
    assert at.overlap.chance == pytest.approx(5 / 215)
    gone = {"embed->L0.H0.v", "L0.H0->L1.H0.k"}
    new = {"embed->L0.H1.v", "L0.H1->L1.H0.k"}
    assert {change.edge for change in found.edge_changes} == gone | new
    for change in found.edge_changes:
        assert (change.a > 1 and abs(change.b) < 0.01) == (change.edge in gone)
        assert (change.difference.low > 0) == (change.edge in gone)
        assert change.difference.value == pytest.approx(change.a - change.b)


def test_a_moved_second_head_leaves_one_shared_edge():
    found = compared(1, 0, 2)
    one, two = (named(circuit.edges) for circuit in found.circuits(found.middle_size))
    assert one == named(planted().truth)
    assert one & two == {"embed->L0.H0.v"}
    assert found.middle_size.overlap.same_prompts == pytest.approx(1 / 9)
    assert {change.edge for change in found.edge_changes} == one ^ two
    # Other nodes by hand: embed and L0.H0 of embed, L0.H0, L1.H0, L1.H2.
    assert found.middle_size.node_overlap == pytest.approx(2 / 4)


def test_a_planted_circuit_is_found_on_any_prompts_so_all_difference_is_excess():
    overlap = compared(1, 0, 2).middle_size.overlap
    # Some halves lack a kind of prompt, and another edge takes its place.
    assert overlap.within_a.value == pytest.approx(1, abs=0.01)
    assert overlap.within_b.value == pytest.approx(1, abs=0.01)
    assert overlap.between.value == pytest.approx(1 / 9, abs=0.01)
    assert overlap.excess.low == pytest.approx(8 / 9, abs=0.05)


def test_a_circuit_with_a_moved_head_falls_short_in_the_other_model():
    found = compared(1, 0, 2)
    for into in (found.middle_size.in_a, found.middle_size.in_b):
        assert into.own.value == pytest.approx(1, abs=0.01)
        assert into.transferred.value == pytest.approx(0, abs=0.01)
        assert into.label == "falls short"
    assert any("done by other edges" in line for line in found.summary())


def switches():
    """Two tokens that are both on or both off, after one that makes each text unique."""
    first = range(2, 8)
    rows = [(0, f, a, b) for f in first for a in range(3) for b in range(3)]
    clean, other = (
        torch.tensor([[0, f, kind[a], kind[b], 1] for _, f, a, b in rows]) for kind in (ON, OFF)
    )
    answer, foil = torch.full((len(rows),), YES), torch.full((len(rows), 1), NO)
    return Task.from_tokens(clean, other, answer, foil)


def with_stronger(head):
    """An OR gate of two heads, one of them stronger."""
    model = replace(or_gate().model, name=f"L0.H{head} stronger")
    weights(model, 0, "o").unflatten(0, (-1, D_HEAD))[head] *= 1.2
    return model


def test_low_overlap_is_no_loss_where_each_circuit_works_in_both_models():
    """Either of two heads suffices, and each model's circuit has the stronger one."""
    settings = CircuitComparisonSettings(sizes=(0.028,), draws=40, random_circuits=3)
    found = compare_circuits(with_stronger(0), with_stronger(1), switches(), settings)
    assert found.middle_size.overlap.same_prompts == pytest.approx(1 / 5)
    for into in (found.middle_size.in_a, found.middle_size.in_b):
        assert (into.transferred.value, into.own.value) == pytest.approx((1, 1), abs=0.01)
        assert into.label == "works"
    assert any("nothing is lost" in line for line in found.summary())


# Noise alone.


def scores(seed, noise, *, shift=0.0):
    """Two models' scores of the same prompts: a true part, a part of the prompt, and noise."""
    fixed, draw = (torch.Generator().manual_seed(s) for s in (7, seed))
    true, other = torch.randn(200, generator=fixed) ** 3, torch.randn(200, generator=fixed)
    shared = torch.randn(32, 200, generator=draw)
    one, two = (torch.randn(32, 200, generator=draw) * size for size in noise)
    return true + shared + one, true + shift * other + shared + two


def test_models_that_differ_by_noise_alone_have_no_excess_on_average():
    found = [edge_overlaps(*scores(seed, (3, 3)), [20], times=30, seed=seed) for seed in range(30)]
    for kind in (0, 1):
        excess = np.array([one[kind].excess.value for one in found])
        assert abs(excess.mean()) < 3 * excess.std() / 30**0.5
        assert abs(excess.mean()) < 0.01
        inside = [one[kind].excess.low <= 0 <= one[kind].excess.high for one in found]
        assert np.mean(inside) >= 0.9


@pytest.mark.parametrize("noise,noisier", [((3, 3), ""), ((1, 10), "b"), ((10, 1), "a")])
def test_a_model_that_is_noisier_is_named(noise, noisier):
    """Noise alone gives an excess then."""
    found = [edge_overlaps(*scores(seed, noise), [20], times=30, seed=seed) for seed in range(10)]
    for kind in (0, 1):
        assert [one[kind].noisier for one in found] == [noisier] * 10
        assert all(one[kind].excess.low > 0 for one in found) == bool(noisier)


def test_models_with_different_true_scores_have_excess():
    found = [edge_overlaps(*scores(seed, (3, 3), shift=3.0), [20], times=30) for seed in range(5)]
    assert all(one[kind].excess.low > 0 for one in found for kind in (0, 1))


def test_a_model_has_no_excess_against_itself_at_any_size():
    same, _ = scores(0, (3, 3))
    for one in edge_overlaps(same, same, [1, 20, 100, 200], times=30):
        assert one.same_prompts == pytest.approx(1)
        assert one.within_a == one.within_b == one.between
        assert one.excess.low == one.excess.high == 0


def test_chance_is_the_overlap_of_random_edges():
    """Approximately: the mean of a ratio is not the ratio of means."""
    draw = torch.Generator().manual_seed(0)
    found = [
        edge_overlaps(*torch.randn(2, 4, 200, generator=draw), [20], times=2)[0] for _ in range(100)
    ]
    assert found[0].chance == pytest.approx(20 / 380)
    assert np.mean([one.same_prompts for one in found]) == pytest.approx(20 / 380, abs=0.01)


def test_the_weighted_overlap_equals_that_by_hand_and_respects_signs():
    one = torch.tensor([[2.0, 1.0, 1.0, 0.0]]).repeat(8, 1)
    two = torch.tensor([[1.0, -1.0, 1.0, 1.0]]).repeat(8, 1)
    # Fractions 2, 1, 1, 0 and 1, -1, 1, 1 of four: shared 1 + 0 + 1, of 8 - 2 in either.
    assert edge_overlaps(one, two, [1], times=5)[-1].same_prompts == pytest.approx(2 / 6)
    assert edge_overlaps(one, 5 * one, [1], times=5)[-1].same_prompts == pytest.approx(1)


def test_nodes_are_counted_at_both_ends_of_an_edge():
    graph = ComputationGraph(1, 2, 2)
    kept = torch.zeros(2, len(graph), dtype=torch.bool)
    names = [
        [str(edge) for edge in graph.edges()].index(n) for n in ("embed->L0.H0.q", "L0.H1->logits")
    ]
    kept[0, names[0]] = kept[1, names] = True
    assert node_overlap(graph, kept[:, :])[0] == pytest.approx(2 / 3)


# Edge tests.


def test_few_prompts_use_all_sign_patterns_and_many_prompts_random_ones():
    # With one sign throughout, only this pattern of 32 and its mirror image reach the sum.
    assert sign_flip_test(np.ones((5, 1)))[0] == pytest.approx(2 / 32)
    # 1 + 1 + 1 - 1 = 2: all but the six patterns that sum to 0.
    assert sign_flip_test(np.array([[1.0], [1.0], [1.0], [-1.0]]))[0] == pytest.approx(10 / 16)
    assert sign_flip_test(np.zeros((5, 1)))[0] == 1
    assert sign_flip_test(np.ones((40, 1)))[0] == pytest.approx(1 / MAX_SIGN_FLIPS)


def test_p_values_are_calibrated_under_the_null():
    draw = np.random.default_rng(0)
    p = sign_flip_test(draw.standard_normal((20, 4000)))
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.012)


def test_changed_edges_are_found_with_the_greatest_first():
    draw = np.random.default_rng(0)
    graph = ComputationGraph(2, 2, 2)
    a, b = draw.standard_normal((2, 60, len(graph)))
    a[:, 3] += 2
    a[:, 5] -= 4
    found = edge_changes(graph, a, b)
    assert [change.edge for change in found[:2]] == [str(graph.edge(5)), str(graph.edge(3))]
    assert found[0].difference.high < 0 < found[1].difference.low
    assert len(found) <= 3
    assert edge_changes(graph, a, b, min_difference=9.0) == ()


def test_coarse_p_values_give_a_minimum_number_of_detectable_edges():
    assert min_detectable_edges(8, 479) == 75  # 479 x 2/256 / 0.05 = 74.8
    assert min_detectable_edges(96, 100) == 1
    assert min_detectable_edges(96, 479) == 3


def test_pairs_with_a_common_text_form_one_group():
    group = text_groups([("a", "b"), ("c", "d"), ("b", "e"), ("f", "g"), ("g", "c")])
    assert group[0] == group[2] != group[1]
    assert group[1] == group[3 + 1] == group[3]
    one, two = split_groups(group, seed=0)
    assert {tuple(one.tolist()), tuple(two.tolist())} == {(0, 2), (1, 3, 4)}
    total = sum_by_group(torch.arange(5.0)[:, None], group)
    assert sorted(total[:, 0].tolist()) == [2, 8]


# Whole comparisons.


@cache
def small():
    draw = torch.Generator().manual_seed(3)
    clean, other = torch.randint(3, 90, (2, 40, 4), generator=draw)
    model = tiny("llama")
    with torch.no_grad():
        logits = model.logits(clean, torch.ones_like(clean, dtype=torch.bool))[:, -1]
    # The random-init model's own output is the answer.
    return model, Task.from_tokens(clean, other, logits.argmax(-1), logits.argmin(-1)[:, None])


def test_a_model_compared_with_itself_shares_everything():
    model, task = small()
    settings = CircuitComparisonSettings(sizes=(0.05, 0.2), draws=30, random_circuits=2)
    found = compare_circuits(model, model, task, settings)
    assert found.b == "tiny llama (2)"
    assert found.edge_changes == ()
    for at in found.sizes:
        assert at.overlap.same_prompts == at.node_overlap == 1
        assert at.overlap.excess.low <= 0 <= at.overlap.excess.high
        assert at.in_a.gap.value == at.in_b.gap.value == 0
        assert at.in_a.own == at.in_a.transferred == at.in_b.own
    assert "is not shown to exceed" in " ".join(found.summary())


@pytest.mark.slow
def test_full_differs_from_itself_at_two_bits_and_not_at_eight():
    full = load("full")
    settings = CircuitComparisonSettings(
        sizes=(0.1,), contrasts=("x", "y"), prompts=16, draws=50, random_circuits=2
    )
    coarse, fine = (
        compare_circuits(full, round_weights(full, bits), "take-away", settings) for bits in (2, 8)
    )
    assert coarse.middle_size.overlap.excess.low > 0
    assert coarse.weighted_overlap.excess.low > 0
    assert coarse.edge_changes
    assert any("of the other's logit difference" in line for line in coarse.summary())
    assert fine.middle_size.overlap.excess.low <= 0 < 0.01 > fine.middle_size.overlap.excess.high
    assert fine.middle_size.in_b.label == "works"
    assert fine.edge_changes == ()


def test_transferred_faithfulness_is_that_on_held_out_prompts():
    model, task = small()
    other = round_weights(model, 4)
    settings = CircuitComparisonSettings(sizes=(0.2,), draws=30, random_circuits=2)
    found = compare_circuits(model, other, task, settings)
    rows = [tuple(row) for row in task.clean.tolist()]
    discovery, held_out = (task[rows] for rows in split_groups(np.arange(len(rows)), seed=0))
    assert found.edge_scores[1].mean.tolist() == edge_attribution(other, discovery).mean.tolist()
    own, given = faithfulness(other, held_out, found.circuits(found.middle_size)[::-1])
    for here, there in (
        (found.middle_size.in_b.own, own),
        (found.middle_size.in_b.transferred, given),
    ):
        ends = (there.value.value, there.value.low, there.value.high)
        assert (here.value, here.low, here.high) == pytest.approx(ends, abs=1e-5)


def test_the_table_has_a_row_for_each_size_and_the_dict_is_json():
    found = compared(0, 0, 1)
    table = found.table()
    assert table["edges"].tolist() == [5, "all, by weight"]
    assert table["b in a"][0] == found.middle_size.in_a.transferred.value
    assert len(found.edge_change_table()) == 4
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["sizes"][0]["overlap"]["edges"] == 5
    assert len(again["circuits"][0]) == 5
    assert again["summary"] == list(found.summary())


def test_the_same_seed_gives_the_same_numbers_without_the_global_generator():
    model, task = small()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    settings = CircuitComparisonSettings(sizes=(0.1,), draws=20, random_circuits=2)
    one, two = (compare_circuits(model, round_weights(model, 3), task, settings) for _ in range(2))
    assert one.to_dict() == two.to_dict()
    assert torch.equal(before, torch.get_rng_state())


def test_models_with_different_graphs_are_refused_with_both_shapes():
    model, task = small()
    with pytest.raises(CircuitError, match=r"3 layers, 4 heads, 4 .*2 heads for.*pb.compare"):
        compare_circuits(model, tiny("llama-gqa"), task)
    with pytest.raises(CircuitError, match="parallel"):
        compare_circuits(model, tiny("neox"), task)


def test_a_task_without_the_behavior_or_without_an_effect_is_refused():
    model, task = small()
    swapped = replace(task, answer=task.foils[:, 0], foils=task.answer[:, None])
    with pytest.raises(GateError, match=r"tiny llama does not have the behavior.*not above 0"):
        compare_circuits(model, model, swapped)
    with pytest.raises(GateError, match="do not lower the logit difference"):
        compare_circuits(model, model, replace(task, counterfactual=task.clean))


def test_too_few_pairs_and_impossible_settings_are_refused():
    model, task = small()
    with pytest.raises(CircuitError, match=r"14 pairs without a common text.*16 are needed"):
        compare_circuits(model, model, task[:14])
    with pytest.raises(CircuitError, match="above 0"):
        CircuitComparisonSettings(sizes=(0.0, 0.1))
    with pytest.raises(CircuitError, match="two draws"):
        CircuitComparisonSettings(draws=1)
    one_text = replace(task, counterfactual=task.counterfactual[:1].repeat(len(task), 1))
    with pytest.raises(CircuitError, match="without a common text"):
        compare_circuits(model, model, one_text)
