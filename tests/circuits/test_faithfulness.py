"""Circuits are judged by numbers that can be worked out by hand on models of a known circuit."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from probes.circuits.attribution import edge_attribution
from probes.circuits.circuit import Circuit
from probes.circuits.edge_patching import run_circuits
from probes.circuits.edge_scores import EdgeScores
from probes.circuits.faithfulness import (
    FRACTIONS,
    edge_masks,
    evaluate_masks,
    faithfulness,
    faithfulness_curve,
    faithfulness_estimate,
    faithfulness_values,
    minimality,
    random_baseline,
    sample_random_circuits,
    specificity,
)
from probes.circuits.graph import ComputationGraph, Edge
from probes.circuits.reference_runs import run_references
from probes.circuits.selection import connected_edges, greedy_edges, random_paths
from probes.circuits.task import Task
from probes.errors import CircuitError
from probes.stats.intervals import proportion
from probes.stats.multiple_testing import holm
from probes.testing.planted_circuits import induction
from probes.testing.planted_gates import or_gate
from probes.testing.tiny_models import tiny

BUILDS = {
    "induction": lambda: induction(0, distractors=2),
    "other seed": lambda: induction(5, distractors=1),
    "sharp": lambda: induction(1, distractors=1, sharpness=25.0),
}
ROLES = ("bos", "x", "op", "y", "answer")
BY_ROLE = ComputationGraph(
    2, 3, 3, roles=ROLES, readouts=("answer",),
    role_pairs=tuple((a, b) for at, a in enumerate(ROLES) for b in ROLES[at:]),
)  # fmt: skip


@cache
def build(name):
    return BUILDS[name]()


@cache
def staged(name):
    return run_references(build(name).model, build(name).task)


@cache
def scored(name):
    return edge_attribution(build(name).model, build(name).task)


def circuit(name, edges):
    return scored(name).to_circuit(build(name).graph.indices_of(edges))


def mark(name, *sets):
    """Mark sets of edges."""
    return edge_masks(staged(name), [circuit(name, edges) for edges in sets])


def truth(name):
    return sorted(build(name).truth)


def ends(name):
    """The edge into the logits, and the others."""
    last = [edge for edge in truth(name) if edge.target == "logits"]
    return last, [edge for edge in truth(name) if edge.target != "logits"]


def about(value, expected, tolerance=1e-3):
    assert value == pytest.approx(expected, abs=tolerance)


# Faithfulness.


@pytest.mark.parametrize("name", BUILDS)
def test_the_whole_model_has_1_no_edge_at_all_0_and_the_planted_path_is_all_of_it(name):
    rows = torch.stack([torch.ones(len(build(name).graph), dtype=torch.bool)] * 2)
    rows[1] = False
    whole, none, path = evaluate_masks(staged(name), torch.cat([rows, mark(name, truth(name))]))
    about(whole.value.value, 1.0, 1e-6)
    assert none.value.value == 0.0
    about(path.value.value, 1.0)
    for found, rest in ((whole, 0.0), (none, 1.0), (path, 0.0)):
        about(found.complement.value, rest)
        assert found.complement.low <= found.complement.value <= found.complement.high
    assert (whole.edges, none.edges, path.edges) == (len(rows[0]), 0, len(truth(name)))
    assert path.fraction == pytest.approx(len(truth(name)) / len(rows[0]))
    assert (
        whole.positive_fraction.value,
        none.positive_fraction.value,
        path.positive_fraction.value,
    ) == (1.0, 0.0, 1.0)


def test_every_prompt_has_its_own_share_and_half_a_path_holds_some_prompts_only():
    """Without its edge from the question, the model still answers where other things differ."""
    part = [edge for edge in truth("induction") if not edge.target.endswith(".q")]
    where, kept = staged("induction"), mark("induction", part)
    (found,) = evaluate_masks(where, kept)
    asked = [number for number in range(24) if number % 3 == 1]
    others = [number for number in range(24) if number % 3 != 1]
    assert np.array(found.per_prompt)[asked] == pytest.approx(np.zeros(8), abs=1e-3)
    assert np.array(found.per_prompt)[others] == pytest.approx(np.ones(16), abs=1e-3)
    about(found.value.value, 2 / 3, 0.01)
    assert found.value.low < 2 / 3 < found.value.high
    assert found.positive_fraction == proportion(
        np.array([number % 3 != 1 for number in range(24)])
    )
    leads = run_circuits(where, kept)[0]
    each = (leads - where.ablated_logit_diffs) / (
        where.clean_logit_diffs - where.ablated_logit_diffs
    )
    assert found.per_prompt == tuple(each.tolist())


def leads_of(seed, count=400):
    """A stage with made-up leads, and what some circuit keeps of them."""
    draw = torch.Generator().manual_seed(seed)
    floor = torch.randn(count, generator=draw)
    whole = floor + 4 + torch.randn(count, generator=draw)
    inside = floor + 0.7 * (whole - floor) + torch.randn(count, generator=draw)
    return replace(staged("induction"), clean_logit_diffs=whole, ablated_logit_diffs=floor), inside


def test_f_is_the_ratio_of_means_and_not_the_mean_of_ratios():
    where = replace(
        staged("induction"),
        clean_logit_diffs=torch.tensor([2.0, 11.0]),
        ablated_logit_diffs=torch.tensor([1.0, 1.0]),
    )
    found = faithfulness_estimate(where, torch.tensor([0.0, 9.0]), seed=0)
    assert found.value == pytest.approx((-1 + 8) / (1 + 10))
    # The only samples of two prompts: either one twice, or both.
    assert found.low == pytest.approx(-1.0)
    assert found.high == pytest.approx(0.8)


def test_the_interval_of_f_is_that_of_prompts_drawn_anew():
    where, inside = leads_of(1)
    found = faithfulness_estimate(where, inside, seed=0)
    above, whole = (
        (inside - where.ablated_logit_diffs).numpy(),
        (where.clean_logit_diffs - where.ablated_logit_diffs).numpy(),
    )
    assert found.value == pytest.approx(above.mean() / whole.mean(), rel=1e-5)
    rows = np.random.default_rng(99).integers(400, size=(4000, 400))
    drawn = above[rows].mean(1) / whole[rows].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)
    # As theory has it: the spread of a ratio of means.
    error = (above - found.value * whole).std() / np.sqrt(400) / whole.mean()
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_seed_alone_decides_the_interval():
    where, inside = leads_of(2)
    assert faithfulness_estimate(where, inside, seed=3) == faithfulness_estimate(
        where, inside, seed=3
    )
    assert (
        faithfulness_estimate(where, inside, seed=3).low
        != faithfulness_estimate(where, inside, seed=4).low
    )


def test_faithfulness_runs_each_circuit_and_takes_the_ablation_it_is_told():
    name = "induction"
    found = build(name)
    _, first = ends(name)
    given = [circuit(name, truth(name)), circuit(name, first), scored(name).all_edges()]
    path, headless, whole = faithfulness(found.model, found.task, given)
    about(path.value.value, 1.0)
    about(headless.value.value, 0.0)
    about(whole.value.value, 1.0, 1e-6)
    assert (path, headless) == evaluate_masks(staged(name), mark(name, truth(name), first))
    (mean,) = faithfulness(found.model, found.task, given[:1], ablation="mean")
    (there,) = evaluate_masks(
        run_references(found.model, found.task, ablation="mean"), mark(name, truth(name))
    )
    assert mean == there


def test_circuits_that_are_none_or_of_two_kinds_are_refused():
    model, task = tiny("llama", num_hidden_layers=2), prompts(("a", "b", "c", "d"))
    plain, by_role = (edge_attribution(model, task, roles=roles).top(3) for roles in (False, True))
    with pytest.raises(CircuitError, match=r"0 circuits were given.*give at least one"):
        faithfulness(model, task, [])
    with pytest.raises(CircuitError, match=r"2 circuits were given, some of them.*all of one kind"):
        faithfulness(model, task, [plain, by_role])
    with pytest.raises(CircuitError, match="use models of one shape"):
        faithfulness(build("sharp").model, build("sharp").task, [plain])


# Circuits found by other prompts.


def prompts(roles, seed=0):
    draw = torch.Generator().manual_seed(seed)
    clean, other = torch.randint(3, 90, (2, 4, len(roles)), generator=draw)
    answer, foil = torch.randint(3, 90, (2, 4), generator=draw)
    return Task.from_tokens(clean, other, answer, foil[:, None], roles=roles)


HERE, THERE = ("bos", "x", "y", "answer"), ("bos", "thing", "x", "answer")


@cache
def two_tasks():
    """A model, stages of prompts with two sets of roles, and some edges found by the first."""
    model = tiny("llama", num_hidden_layers=2)
    stages = [run_references(model, prompts(roles), roles=True) for roles in (HERE, THERE)]
    scores = edge_attribution(model, prompts(HERE), roles=True)
    return model, *stages, scores.to_circuit(np.arange(0, len(scores), 7))


def test_a_circuit_is_carried_over_to_prompts_of_other_roles_by_the_names_of_its_edges():
    _, here, there, found = two_tasks()
    assert here.graph != there.graph
    (kept,) = edge_masks(there, [found])
    names = {there.graph.edge(int(number)) for number in kept.nonzero()[:, 0]}
    assert names == set(found.edges) & set(there.graph.edges())
    assert 10 < len(names) < len(found)
    assert not any("y" in (edge.source_role, edge.target_role) for edge in names)
    (back,) = edge_masks(here, [found])
    assert back.nonzero()[:, 0].tolist() == found.edge_indices.tolist()


def test_edges_that_the_prompts_lack_count_for_nothing():
    model, _, there, found = two_tasks()
    (whole,) = faithfulness(model, prompts(THERE), [found])
    kept = edge_masks(there, [found])
    assert whole == evaluate_masks(there, kept)[0]
    assert whole.edges == int(kept.sum()) < len(found)


def test_the_damage_says_how_many_edges_were_cut():
    _, here, there, found = two_tasks()
    given = {"one": here, "other": there}
    (own, _, other, _) = specificity(given, {"one": found})
    assert own.edges == len(found)
    assert other.edges == int(edge_masks(there, [found]).sum())


# The curve.


def ranked(name, first):
    """Scores by which some edges come first, and all others in their own order."""
    size = len(build(name).graph)
    mean = -torch.arange(1.0, size + 1) / size  # the sign is no matter: the size is
    order = build(name).graph.indices_of(first)
    mean = -1 - mean
    mean[order] = 2.0
    return replace(scored(name), mean=mean)


def test_the_sizes_of_the_curve_are_those_of_mib():
    assert FRACTIONS == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    found = faithfulness_curve(staged("induction"), scored("induction"))
    assert found.fractions == FRACTIONS
    assert found.edges == (1, 1, 1, 1, 2, 5, 11, 22, 55, 110)
    about(found.values[-1].value, 1.0, 1e-6)
    about(found.values[5].value, 1.0)  # the planted path has five edges


def test_the_areas_of_two_points_are_what_they_are_by_hand():
    """One edge by itself holds nothing, all hold everything: f runs from 0 to 1."""
    last, _ = ends("induction")
    found = faithfulness_curve(
        staged("induction"), ranked("induction", last), fractions=(0.01, 1.0)
    )
    assert found.edges == (1, 110)
    about(found.values[0].value, 0.0)
    about(found.cpr, 0.5 * 0.99, 1e-3)
    about(found.cmd, 0.5 * 0.99, 1e-3)
    about(found.log_cpr, 0.5)
    about(found.log_cmd, 0.5)


def test_three_points_weigh_by_their_share_and_by_its_logarithm():
    """The planted path, the strongest five, holds everything: f is 0, 1, 1."""
    _, first = ends("induction")
    graph = ranked("induction", truth("induction"))
    graph.mean[build("induction").graph.indices_of(first[:1])] = 3.0
    found = faithfulness_curve(staged("induction"), graph, fractions=(0.01, 0.05, 1.0))
    assert found.edges == (1, 5, 110)
    assert [round(f.value, 2) for f in found.values] == [0, 1, 1]
    about(found.cpr, 0.5 * 0.04 + 0.95)
    about(found.cmd, 0.5 * 0.04)
    step = np.log(5) / np.log(100)
    about(found.log_cpr, 0.5 * step + 1 - step)
    about(found.log_cmd, 0.5 * step)


def test_the_curve_takes_edges_by_the_size_of_their_score_and_not_by_its_sign():
    graph = ranked("induction", truth("induction"))
    turned = replace(graph, mean=-graph.mean)
    one, other = (
        faithfulness_curve(staged("induction"), g, fractions=(0.05, 1.0)) for g in (graph, turned)
    )
    assert one == other
    about(one.values[0].value, 1.0)


# Chance.


def test_f_without_intervals_is_the_same_f():
    kept = sample_random_circuits(staged("induction"), 40, "edges", 4, seed=0)
    kept = torch.cat([kept, mark("induction", truth("induction"))])
    with_intervals = [found.value.value for found in evaluate_masks(staged("induction"), kept)]
    assert faithfulness_values(staged("induction"), kept).tolist() == pytest.approx(
        with_intervals, abs=1e-6
    )


def test_the_percentile_is_the_share_of_circuits_below_and_a_tie_is_not_below():
    where = staged("sharp")
    none = torch.zeros(3, len(where.graph), dtype=torch.bool)
    kept = torch.cat([none, mark("sharp", truth("sharp"))])
    found = random_baseline(where, kept, 0.5, "edges")
    assert (found.kind, found.percentile) == ("edges", 0.75)
    assert found.values == pytest.approx((0.0, 0.0, 0.0, 1.0), abs=1e-3)
    assert random_baseline(where, kept, 0.0, "edges").percentile == 0.0
    assert random_baseline(where, kept, 2.0, "paths").percentile == 1.0


@pytest.mark.parametrize("kind", ["edges", "paths"])
@pytest.mark.parametrize("count", [0, 1, 7, 40, 110])
def test_circuits_drawn_by_lot_have_the_size_that_was_asked_for(kind, count):
    kept = sample_random_circuits(staged("induction"), count, kind, 6, seed=0)
    assert kept.sum(1).tolist() == [count] * 6
    assert torch.equal(kept, sample_random_circuits(staged("induction"), count, kind, 6, seed=0))
    if 1 < count < 100:
        assert len(kept.unique(dim=0)) == 6
        assert not torch.equal(
            kept, sample_random_circuits(staged("induction"), count, kind, 6, seed=1)
        )


def test_random_edges_are_any_and_random_paths_join_up():
    wiring = build("induction").graph
    joined = {}
    for kind in ("edges", "paths"):
        rows = sample_random_circuits(staged("induction"), 30, kind, 20, seed=0)
        joined[kind] = [len(connected_edges(wiring, row.nonzero()[:, 0].numpy())) for row in rows]
    # The last way stops where the size is reached: at most 4 of the 5 edges of the longest way.
    assert min(joined["paths"]) >= 26
    assert np.mean(joined["edges"]) < 20
    edges = sample_random_circuits(staged("induction"), 30, "edges", 400, seed=0).float().mean(0)
    assert (edges - 30 / 110).abs().max() < 0.12


@pytest.mark.parametrize(
    "wiring", [ComputationGraph(3, 4, 4), ComputationGraph(2, 4, 2), BY_ROLE], ids=lambda w: ""
)
def test_random_ways_lead_back_from_the_logits_to_the_embedding(wiring):
    longest = 2 * wiring.layers + 1
    for seed in range(10):
        found = random_paths(wiring, 40, np.random.default_rng(seed))
        assert len(found) == len(set(found.tolist())) == 40
        assert (np.diff(found) > 0).all()
        # Every edge has a way to the logits, and all but the last way one from the embedding.
        scores = np.full(len(wiring), np.nan)
        scores[found] = 1.0
        assert greedy_edges(wiring, scores, 40).tolist() == found.tolist()
        whole = connected_edges(wiring, found)
        assert len(whole) > 40 - longest
        assert any(wiring.edge(int(number)).source == "embed" for number in whole)


def test_random_ways_hang_on_the_generator_alone():
    wiring = ComputationGraph(3, 4, 4)
    one, same, other = (random_paths(wiring, 25, np.random.default_rng(k)) for k in (5, 5, 6))
    assert one.tolist() == same.tolist() != other.tolist()
    rng = np.random.default_rng(5)
    assert random_paths(wiring, 25, rng).tolist() == one.tolist()
    assert random_paths(wiring, 25, rng).tolist() != one.tolist()


def test_random_ways_of_no_edge_of_all_edges_and_of_more_than_there_are():
    wiring, rng = ComputationGraph(2, 2, 2), np.random.default_rng(0)
    assert random_paths(wiring, 0, rng).tolist() == []
    for count in (len(wiring), len(wiring) + 5):
        assert random_paths(wiring, count, rng).tolist() == list(range(len(wiring)))
    with pytest.raises(CircuitError, match="-1 edges were asked for"):
        random_paths(wiring, -1, rng)


# Need.


@cache
def kinds():
    """Stages of the prompts in which keys change places, the question differs, or a value does."""
    found = build("induction")
    names = ("keys", "question", "value")
    return {name: run_references(found.model, found.task[at::3]) for at, name in enumerate(names)}


def test_every_edge_that_these_prompts_need_is_needed_and_no_other_is():
    """Where two keys change places, neither the question nor the values make a difference."""
    path, twin = truth("induction"), sorted(build("induction").distractors)[0]
    added = Edge("embed", f"{twin}.v")
    found = minimality(kinds()["keys"], circuit("induction", [*path, added]))
    assert [need.edge for need in found] == list(
        map(str, circuit("induction", [*path, added]).edges)
    )
    needs = {need.edge: need for need in found}
    finder = ends("induction")[0][0].source
    idle = {f"embed->{finder}.q", f"embed->{finder}.v", str(added)}
    assert idle < set(needs)
    for edge, need in needs.items():
        about(need.faithfulness_drop, 0.0 if edge in idle else 1.0)
        if edge in idle:
            assert need.p_value > 0.05
        else:
            assert need.p_value < 0.001


def test_the_fall_is_that_of_f_when_the_edge_is_cut_out_of_the_circuit():
    path = truth("induction")
    found = {
        need.edge: need for need in minimality(staged("induction"), circuit("induction", path))
    }
    for edge in path:
        rest = [other for other in path if other != edge]
        both = faithfulness_values(staged("induction"), mark("induction", path, rest))
        about(found[str(edge)].faithfulness_drop, float(both[0] - both[1]), 1e-5)


def test_of_two_heads_either_of_which_is_enough_neither_is_needed():
    """Cutting one changes the lead by rounding alone."""
    found = or_gate()
    where, graph = (
        run_references(found.model, found.task),
        edge_attribution(found.model, found.task),
    )
    path = graph.to_circuit(found.graph.indices_of(sorted(found.truth)))
    for need in minimality(where, path):
        about(need.faithfulness_drop, 1.0 if need.edge == "L1.MLP->logits" else 0.0)
        assert (need.p_value < 0.05) == (need.faithfulness_drop > 0.5)


def test_an_edge_that_only_some_prompts_need_is_needed():
    """Two thirds of the prompts do not hang on the question: they say nothing for or against it."""
    found = minimality(staged("induction"), circuit("induction", truth("induction")))
    assert max(need.p_value for need in found) < 0.05


def test_the_need_of_edges_of_the_whole_model_is_said_or_refused():
    try:
        assert len(minimality(staged("sharp"), scored("sharp").all_edges())) == len(scored("sharp"))
    except CircuitError as error:
        assert "edges" in str(error)


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_fewer_and_never_steps_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


# Specificity.


def test_cutting_the_circuit_of_one_task_destroys_it_and_leaves_the_other_alone():
    finder = next(edge.source for edge in truth("induction") if edge.target == "logits")
    ways = {"question": f"{finder}.q", "value": f"{finder}.v"}
    circuits = {name: circuit("induction", [Edge("embed", end)]) for name, end in ways.items()}
    found = specificity({task: kinds()[task] for task in ways}, circuits)
    left = {(damage.cut_circuit, damage.task): damage.remaining for damage in found}
    for task in ways:
        for cut in ways:
            about(left[cut, task], 0.0 if cut == task else 1.0)
    assert [(d.cut_circuit, d.task) for d in found] == [
        (cut, task) for task in ways for cut in (*ways, "random paths")
    ]
    assert {damage.edges for damage in found} == {1}


def test_cutting_what_two_tasks_share_destroys_both():
    shared = circuit("induction", ends("induction")[0])
    for damage in specificity(kinds(), {"shared": shared}):
        if damage.cut_circuit == "shared":
            about(damage.remaining, 0.0)


def test_the_control_is_the_median_of_twenty_circuits_of_random_paths_of_the_largest_size():
    small, large = (scored("induction").top(count) for count in (3, 40))
    found = specificity(kinds(), {"small": small, "large": large}, seed=7)
    for task, where in kinds().items():
        (control,) = [d for d in found if d.task == task and d.cut_circuit == "random paths"]
        assert control.edges == 40
        rows = [torch.ones(len(where.graph), dtype=torch.bool) for _ in range(20)]
        rng = np.random.default_rng(7)
        for row in rows:
            row[random_paths(where.graph, 40, rng)] = False
        left = sorted(faithfulness_values(where, torch.stack(rows)).tolist())
        assert left[9] - 1e-6 <= control.remaining <= left[10] + 1e-6


def test_a_graph_of_no_score_at_all_is_still_ranked():
    """Ties go by the number of the edge: the same scores give the same circuits."""
    graph = scored("sharp")
    flat = EdgeScores(graph.model, graph.graph, 1, 0 * graph.mean, 0 * graph.error, None, ())
    found = faithfulness_curve(staged("sharp"), flat, fractions=(0.1, 1.0))
    count = int(0.1 * len(graph))
    kept = torch.zeros(1, len(graph), dtype=torch.bool)
    kept[0, :count] = True
    about(found.values[0].value, float(faithfulness_values(staged("sharp"), kept)[0]), 1e-6)


def test_a_saved_circuit_is_judged_as_it_was(tmp_path):
    path = circuit("sharp", truth("sharp"))
    read = Circuit.load(path.save(tmp_path / "c.json"))
    assert evaluate_masks(staged("sharp"), edge_masks(staged("sharp"), [read])) == evaluate_masks(
        staged("sharp"), edge_masks(staged("sharp"), [path])
    )
