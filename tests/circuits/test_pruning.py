"""Pruning finds planted circuits, and necessity marks the edges that some prompt depends on."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from probes.circuits.edges.edge_attribution import EAPIG, edge_attribution
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.faithfulness import edge_masks, faithfulness_values
from probes.circuits.graph import Edge
from probes.circuits.pruning import PruningRule, minimality, prune_circuit
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task
from probes.errors import CircuitError
from probes.testing.planted_circuits import and_gate, decoy, induction, noisy_induction, or_gate
from probes.testing.tiny_models import tiny


@cache
def planted(seed=0):
    """A planted model, its runs and its edge scores."""
    found = induction(seed, distractors=2)
    return found, run_references(found.model, found.task), edge_attribution(found.model, found.task)


def faithfulness_of(runs, circuit):
    return float(faithfulness_values(runs, edge_masks(runs, [circuit]))[0])


# Pruning.


@pytest.mark.parametrize("seed", range(3))
def test_pruning_finds_the_planted_circuit_edge_for_edge(seed):
    found, runs, scores = planted(seed)
    assert set(prune_circuit(runs, scores, 0.9).edges) == found.truth


@pytest.mark.parametrize("build", [induction, and_gate, decoy, or_gate])
@pytest.mark.parametrize("errors", [0.0, 1.64])
def test_it_is_found_if_supporting_edges_are_tried_first(build, errors):
    found = build(0) if build is induction else build()
    runs = run_references(found.model, found.task)
    scores = edge_attribution(found.model, found.task, method=EAPIG(steps=1))
    rule = PruningRule(supporting_first=True, standard_errors=errors)
    circuit = prune_circuit(runs, scores, 0.9, rule)
    if build is or_gate:
        assert set(circuit.edges) < found.truth
        assert len(circuit) == 3
    elif build is decoy:
        assert set(circuit.edges) == set(prune_circuit(runs, scores, 0.9).edges)
    else:
        assert set(circuit.edges) == found.truth


@pytest.mark.parametrize("supporting_first", [False, True])
def test_faithfulness_is_above_what_is_kept_by_the_requested_standard_errors(supporting_first):
    runs, scores = noisy()
    rule = PruningRule(supporting_first=supporting_first, standard_errors=2.0)
    circuit = prune_circuit(runs, scores, 0.8, rule)
    kept = run_circuits(runs, edge_masks(runs, [circuit]))[0] - runs.ablated_logit_diffs
    gap = runs.clean_logit_diffs - runs.ablated_logit_diffs
    value = float(kept.mean() / gap.mean())
    residuals = (kept - value * gap).double().numpy() / float(gap.mean())
    assert value - 2 * residuals.std(ddof=1) / len(gap) ** 0.5 >= 0.8 - 1e-4
    assert "2 standard errors" in dict(circuit.protocol)["selection"]


def test_pruning_finds_it_even_if_the_scores_are_random():
    found, runs, scores = planted()
    draw = torch.Generator().manual_seed(0)
    blind = replace(scores, mean=torch.rand(len(scores), generator=draw))
    assert set(prune_circuit(runs, blind, 0.9).edges) == found.truth


@pytest.mark.parametrize("build", [and_gate, decoy, or_gate])
def test_both_heads_stay_if_both_are_necessary_and_one_if_one_suffices(build):
    """The decoy is removed, although its gradient alone says that it matters."""
    found = build()
    circuit = prune_circuit(
        run_references(found.model, found.task), edge_attribution(found.model, found.task), 0.9
    )
    assert set(circuit.edges) <= found.truth
    assert len(circuit) == (5 if build is and_gate else 3)
    assert circuit == circuit.connected()


@cache
def noisy():
    found = noisy_induction(2, 3.0, distractors=1)
    return run_references(found.model, found.task), edge_attribution(found.model, found.task)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_the_pruned_circuit_keeps_enough_and_no_edge_can_be_removed(keep):
    runs, scores = noisy()
    circuit = prune_circuit(runs, scores, keep)
    assert faithfulness_of(runs, circuit) >= keep
    assert circuit == circuit.connected()
    for edge in circuit.edges:
        rest = scores.to_circuit(circuit.edge_indices[[other != edge for other in circuit.edges]])
        assert faithfulness_of(runs, rest) < keep


def test_requesting_more_never_gives_fewer_edges():
    runs, scores = noisy()
    sizes = [len(prune_circuit(runs, scores, keep)) for keep in (0.1, 0.5, 0.8, 0.95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_the_protocol_says_how_the_circuit_was_pruned_and_the_scores_are_those_of_its_edges():
    _, runs, scores = planted()
    circuit = prune_circuit(runs, scores, 0.9)
    protocol = dict(circuit.protocol)
    assert len(protocol) == len(circuit.protocol)
    assert "0.9" in protocol["selection"]
    assert protocol["judged by ablation"] == "counterfactual"
    assert protocol["faithfulness"] == "ratio of means"
    assert protocol["method"] == "eap-ig, 5 midpoints"
    assert circuit.scores == tuple(scores.mean[circuit.edge_indices.tolist()].tolist())


def test_a_request_for_more_than_all_edges_keep_is_refused_with_the_number():
    _, runs, scores = planted()
    message = r"All 110 edges keep 1\.000 of the logit difference, less than 1\.5"
    with pytest.raises(CircuitError, match=message):
        prune_circuit(runs, scores, 1.5)


def test_all_of_the_logit_difference_can_be_requested():
    found, runs, scores = planted()
    assert found.truth <= set(prune_circuit(runs, scores, 1.0).edges)


def test_prompts_on_which_nothing_changes_have_no_circuit():
    found, _, scores = planted()
    same = run_references(found.model, replace(found.task, counterfactual=found.task.clean))
    with pytest.raises(CircuitError, match="logit difference"):
        prune_circuit(same, scores, 0.9)


def prompts(seed):
    draw = torch.Generator().manual_seed(seed)
    clean, other = torch.randint(3, 90, (2, 4, 4), generator=draw)
    answer, foil = torch.randint(3, 90, (2, 4), generator=draw)
    return Task.from_tokens(clean, other, answer, foil[:, None])


@pytest.mark.parametrize("ablation", ["mean", "zero"])
@pytest.mark.parametrize("seed", [1, 2, 7])
def test_the_pruned_circuit_keeps_enough_with_means_and_zeros_too(ablation, seed):
    """Where ablated edges carry means or zeros, even a head without any input may matter."""
    model, task = tiny("llama", num_hidden_layers=2), prompts(seed)
    runs = run_references(model, task, ablation=ablation)
    circuit = prune_circuit(runs, edge_attribution(model, task), 0.9)
    assert len(circuit) > 0
    assert faithfulness_of(runs, circuit) >= 0.9
    assert dict(circuit.protocol)["judged by ablation"] == ablation


def test_edges_resolved_by_roles_are_pruned_too():
    found, _, _ = planted()
    runs = run_references(found.model, found.task, roles=True)
    circuit = prune_circuit(runs, edge_attribution(found.model, found.task, roles=True), 0.9)
    assert faithfulness_of(runs, circuit) >= 0.9
    plain = {(edge.source, edge.target) for edge in found.truth}
    assert {(edge.source, edge.target) for edge in circuit.edges} == plain
    query_roles = {edge.target_role for edge in circuit.edges if edge.target.endswith(".q")}
    assert query_roles == {"p9"}  # the question is the last token


# Necessity.


def truth():
    return sorted(planted()[0].truth)


def circuit_of(edges):
    return planted()[2].to_circuit(planted()[0].graph.indices_of(edges))


def test_every_edge_that_these_prompts_depend_on_is_necessary_and_no_other_is():
    """Where two keys change places, neither the question nor the values make a difference."""
    found = planted()[0]
    keys = run_references(found.model, found.task[0::3])
    added = Edge("embed", f"{sorted(found.distractors)[0]}.v")
    circuit = circuit_of([*truth(), added])
    necessities = {edge.edge: edge for edge in minimality(keys, circuit)}
    assert list(necessities) == list(map(str, circuit.edges))
    head = next(edge.source for edge in truth() if edge.target == "logits")
    unnecessary = {f"embed->{head}.q", f"embed->{head}.v", str(added)}
    assert unnecessary < set(necessities)
    for edge, necessity in necessities.items():
        drop = 0.0 if edge in unnecessary else 1.0
        assert necessity.faithfulness_drop == pytest.approx(drop, abs=1e-3)
        assert necessity.p_value > 0.05 if edge in unnecessary else necessity.p_value < 0.001


def test_edges_are_as_necessary_where_ablation_raises_the_logit_difference():
    """With the runs exchanged the whole model has the lower logit difference."""
    found, circuit = planted()[0], circuit_of(truth())
    task = found.task[0::3]
    exchanged = replace(task, clean=task.counterfactual, counterfactual=task.clean)
    runs = run_references(found.model, exchanged)
    assert (runs.clean_logit_diffs - runs.ablated_logit_diffs).mean() < 0
    one, other = (
        {edge.edge for edge in minimality(each, circuit) if edge.p_value < 0.001}
        for each in (runs, run_references(found.model, task))
    )
    assert one == other != set()


def test_the_drop_is_that_of_f_when_the_edge_is_removed_from_the_circuit():
    runs, path = planted()[1], truth()
    drops = {n.edge: n.faithfulness_drop for n in minimality(runs, circuit_of(path))}
    for edge in path:
        rest = [other for other in path if other != edge]
        whole, without = faithfulness_values(
            runs, edge_masks(runs, [circuit_of(path), circuit_of(rest)])
        )
        assert drops[str(edge)] == pytest.approx(float(whole - without), abs=1e-5)


def test_of_two_heads_that_each_suffice_neither_is_necessary():
    """Removing one changes the logit difference by rounding alone."""
    found = or_gate()
    runs = run_references(found.model, found.task)
    scores = edge_attribution(found.model, found.task)
    circuit = scores.to_circuit(found.graph.indices_of(sorted(found.truth)))
    for edge in minimality(runs, circuit):
        drop = 1.0 if edge.edge == "L1.MLP->logits" else 0.0
        assert edge.faithfulness_drop == pytest.approx(drop, abs=1e-3)
        assert (edge.p_value < 0.05) == (edge.faithfulness_drop > 0.5)


def test_an_edge_that_only_some_prompts_depend_on_is_necessary():
    """Two thirds of the prompts do not depend on the question."""
    found = minimality(planted()[1], circuit_of(truth()))
    assert max(edge.p_value for edge in found) < 0.05


def test_edges_of_the_whole_model_are_tested_although_none_can_be_added():
    found = induction(1, distractors=1, sharpness=25.0)
    scores = edge_attribution(found.model, found.task)
    runs = run_references(found.model, found.task)
    assert len(minimality(runs, scores.all_edges())) == len(scores)
