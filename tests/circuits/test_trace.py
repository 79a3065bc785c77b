"""Tracing: the gate before it, the prompts it draws, the cut that finds a planted circuit."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from probes.circuits import trace as tracing
from probes.circuits.attribution import edge_attribution
from probes.circuits.faithfulness import edge_masks, faithfulness_values
from probes.circuits.reference_runs import run_references
from probes.circuits.task import Task, TaskSettings, require_open_gate, sample_tasks
from probes.circuits.trace import prune_circuit, trace
from probes.errors import CircuitError, GateError, PatternError
from probes.models.model import load
from probes.prompts.catalog import pattern
from probes.testing.planted_circuits import induction, noisy_induction
from probes.testing.planted_gates import and_gate, decoy, or_gate
from probes.testing.tiny_models import tiny

# The cut.


@cache
def planted(seed, distractors=2):
    found = induction(seed, distractors=distractors)
    return found, run_references(found.model, found.task), edge_attribution(found.model, found.task)


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_finds_the_planted_circuit_edge_for_edge(seed):
    found, where, graph = planted(seed)
    assert set(prune_circuit(where, graph, 0.9).edges) == found.truth


def test_the_cut_finds_it_even_where_the_scores_order_edges_badly():
    """All edges are as good as each other by their scores: running the model sorts them out."""
    found, where, graph = planted(0)
    draw = torch.Generator().manual_seed(0)
    blind = replace(graph, mean=torch.rand(len(graph), generator=draw))
    assert set(prune_circuit(where, blind, 0.9).edges) == found.truth


@pytest.mark.parametrize("build", [and_gate, decoy, or_gate])
def test_the_cut_keeps_both_heads_if_both_are_needed_and_one_if_one_is_enough(build):
    """Nor does it keep the decoy, whose gradient alone says that it matters."""
    found = build()
    circuit = prune_circuit(
        run_references(found.model, found.task), edge_attribution(found.model, found.task), 0.9
    )
    assert set(circuit.edges) <= found.truth
    assert len(circuit) == (5 if build is and_gate else 3)
    assert circuit == circuit.connected()


def faith(where, circuit):
    return float(faithfulness_values(where, edge_masks(where, [circuit]))[0])


@cache
def noised():
    found = noisy_induction(2, 3.0, distractors=1)
    return run_references(found.model, found.task), edge_attribution(found.model, found.task)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_what_is_cut_out_keeps_what_was_asked_and_could_lose_no_edge_of_its_own(keep):
    where, graph = noised()
    circuit = prune_circuit(where, graph, keep)
    assert faith(where, circuit) >= keep
    assert circuit == circuit.connected()
    for edge in circuit.edges:
        rest = graph.to_circuit(circuit.edge_indices[[other != edge for other in circuit.edges]])
        assert faith(where, rest) < keep


def test_asking_for_more_never_gives_fewer_edges():
    where, graph = noised()
    sizes = [len(prune_circuit(where, graph, keep)) for keep in (0.1, 0.5, 0.8, 0.95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_the_circuit_says_how_it_was_cut_and_keeps_the_scores_of_its_edges():
    _, where, graph = planted(0)
    circuit = prune_circuit(where, graph, 0.9)
    how = dict(circuit.protocol)
    assert len(how) == len(circuit.protocol)
    assert "0.9" in how["selection"]
    assert how["judged by ablation"] == "counterfactual"
    assert how["faithfulness"] == "ratio of means"
    assert how["method"] == "eap-ig, 5 midpoints"
    assert circuit.scores == tuple(graph.mean[circuit.edge_indices.tolist()].tolist())


def test_more_than_all_edges_keep_is_refused_with_the_number():
    _, where, graph = planted(0)
    with pytest.raises(
        CircuitError, match=r"All 110 edges keep 1\.000 of the lead, less than 1\.5"
    ):
        prune_circuit(where, graph, 1.5)


def test_all_of_the_lead_can_be_asked_for():
    found, where, graph = planted(0)
    assert found.truth <= set(prune_circuit(where, graph, 1.0).edges)


def test_prompts_on_which_nothing_changes_have_no_circuit():
    found, _, graph = planted(0)
    same = run_references(found.model, replace(found.task, counterfactual=found.task.clean))
    with pytest.raises(CircuitError, match="lead"):
        prune_circuit(same, graph, 0.9)


def prompts(seed):
    draw = torch.Generator().manual_seed(seed)
    clean, other = torch.randint(3, 90, (2, 4, 4), generator=draw)
    answer, foil = torch.randint(3, 90, (2, 4), generator=draw)
    return Task.from_tokens(clean, other, answer, foil[:, None])


@pytest.mark.parametrize("ablation", ["mean", "zero"])
@pytest.mark.parametrize("seed", [1, 2, 7])
def test_what_is_cut_out_keeps_what_was_asked_whatever_a_cut_edge_carries(ablation, seed):
    """Where cut edges carry means or zeros, even a head that nothing feeds may matter."""
    model, task = tiny("llama", num_hidden_layers=2), prompts(seed)
    where = run_references(model, task, ablation=ablation)
    circuit = prune_circuit(where, edge_attribution(model, task), 0.9)
    assert len(circuit) > 0
    assert faith(where, circuit) >= 0.9
    assert dict(circuit.protocol)["judged by ablation"] == ablation


def test_edges_are_cut_by_role_too():
    found, _, _ = planted(0)
    where = run_references(found.model, found.task, roles=True)
    circuit = prune_circuit(where, edge_attribution(found.model, found.task, roles=True), 0.9)
    assert faith(where, circuit) >= 0.9
    plain = {(edge.source, edge.target) for edge in found.truth}
    assert {(edge.source, edge.target) for edge in circuit.edges} == plain
    asked = {edge.target_role for edge in circuit.edges if edge.target.endswith(".q")}
    assert asked == {"p9"}  # the question is the last token


# The prompts.


@cache
def full():
    return load("full")


def rows(found):
    return {tuple(ids[mask].tolist()) for ids, mask in zip(found.clean, found.mask, strict=True)}


@pytest.mark.parametrize("name", ["take-away", "two-owners"])
def test_no_prompt_that_the_circuit_is_judged_by_is_one_that_it_was_found_by(name):
    settings = TaskSettings(answer="number", contrasts=("operation", "x", "y"), prompts=8)
    finding, judging = sample_tasks(full(), pattern(name), settings)
    assert len(rows(finding)) == len(finding) <= 24
    assert len(rows(judging)) == len(judging) <= 24
    assert min(len(finding), len(judging)) > 12
    assert not rows(finding) & rows(judging)


def test_the_seed_decides_which_prompts_are_drawn():
    one, same, other = (
        rows(
            sample_tasks(
                full(), pattern("take-away"), TaskSettings(contrasts=("y",), prompts=4, seed=seed)
            )[0]
        )
        for seed in (0, 0, 1)
    )
    assert one == same != other


KINDS = {
    ("take-away", "number"): "operation + x + y",
    ("take-away", "noun"): "thing",
    ("taken", "number"): "y",
    ("copy", "number"): "x",
}


@pytest.mark.parametrize(("name", "answer"), KINDS)
def test_only_contrasts_that_change_the_answer_are_drawn(name, answer):
    for found in sample_tasks(full(), pattern(name), TaskSettings(answer=answer, prompts=2)):
        assert found.name == f"{name}: {KINDS[name, answer]}, {answer}"
        # The foil is the counterfactual's answer, which is another.
        assert (found.foils[:, 0] >= 0).all()
        assert not (found.foils == found.answer[:, None]).any()
        assert (found.clean != found.counterfactual).any(1).all()


def test_contrasts_that_are_named_are_taken_as_they_are():
    settings = TaskSettings(contrasts=("filler", "y"), prompts=5)
    both = sample_tasks(full(), pattern("take-away"), settings)
    assert [found.name for found in both] == ["take-away: filler + y, number"] * 2
    assert all(0 < len(found) <= 10 for found in both)
    with pytest.raises(PatternError, match="has no contrast 'color'"):
        sample_tasks(full(), pattern("take-away"), replace(settings, contrasts=("color",)))


def pairs_file(folder, count, clean="fox {} 0", answer="{}", other="{}"):
    lines = [
        {
            "clean": f"{clean.format(k % 8 + 1)}. Answer:",
            "counterfactual": f"cat {k // 8 + 1} {k}. Answer:",
            "answer": answer.format(k % 8 + 1),
            "counterfactual_answer": other.format(k % 8 + 2),
        }
        for k in range(count)
    ]
    place = folder / "own.jsonl"
    place.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return pattern(str(place))


def test_a_pattern_in_which_nothing_changes_the_answer_is_refused(tmp_path):
    same = pairs_file(tmp_path, 8, answer="1", other="1")
    with pytest.raises(CircuitError, match=r"No contrast of 'own' changes 'answer': found given\."):
        sample_tasks(full(), same, TaskSettings(prompts=4))


def test_pairs_of_a_file_that_share_a_prompt_stay_on_one_side(tmp_path):
    """Each of eight prompts has two counterfactuals, one in either half of the file."""
    given = pairs_file(tmp_path, 16)
    finding, judging = sample_tasks(full(), given, TaskSettings(prompts=8))
    assert not rows(finding) & rows(judging)


def test_a_file_of_too_few_pairs_is_refused_with_the_number_that_was_asked_for(tmp_path):
    given = pairs_file(tmp_path, 16)
    with pytest.raises(PatternError) as caught:
        sample_tasks(full(), given, TaskSettings(prompts=32))
    assert "32" in str(caught.value)


# The gate.


@cache
def untrained():
    return load("random-init:full:0")


def test_a_closed_gate_says_what_was_asked_how_it_went_and_what_to_do(monkeypatch):
    monkeypatch.setattr(tracing, "edge_attribution", None)  # no more is done
    with pytest.raises(GateError) as caught:
        trace(untrained())
    said = str(caught.value)
    assert said.startswith("full random-init 0 does not have the behavior: number of 'take-away'")
    assert "has accuracy 0.00 [0.00, 0.02]" in said
    assert "the heuristic 'copy x' 0.12" in said
    assert said.endswith("choose a model or a pattern whose gate is open.")


def test_an_answer_that_the_pattern_lacks_is_refused():
    with pytest.raises(GateError, match="'take-away' has no answer 'color': it has number, noun"):
        require_open_gate(untrained(), pattern("take-away"), "color", seed=0)


def test_the_first_answer_is_traced_unless_another_is_named():
    found = [require_open_gate(full(), pattern("take-away"), name, seed=0) for name in ("", "noun")]
    assert [gate.answer for gate in found] == ["number", "noun"]
    assert {gate.state for gate in found} == {"open"}
    assert {gate.model for gate in found} == {"full"}


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.01, 90.0, float("nan")])
def test_a_share_that_is_none_is_refused_before_any_model_is_loaded(keep):
    with pytest.raises(CircuitError, match=f"Cannot keep {keep} of a behavior"):
        trace("no such model", keep=keep)


# The whole of it.


def strict(text):
    """Read JSON that holds neither NaN nor Infinity."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.slow
def test_a_trace_of_few_prompts_by_role_is_plain_values_and_a_page(tmp_path):
    found = trace("distilled-narrow", prompts=4, other_pattern="", roles=True)
    assert found.specificities == ()
    assert all(edge.source_role for edge in found.circuit.edges)
    assert strict(json.dumps(found.to_dict())) == found.to_dict()
    found.save(tmp_path / "t.json")
    assert strict((tmp_path / "t.json").read_text(encoding="utf-8")) == found.to_dict()
    found.save(tmp_path / "t.html")
    assert (tmp_path / "t.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_pattern_that_others_are_held_against_can_be_traced_itself():
    assert trace("distilled", "taken", prompts=4).summary()


@cache
def whole():
    return trace(full())


@pytest.mark.slow
def test_the_full_model_has_a_small_circuit_that_chance_does_not_reach():
    found = whole()
    assert found.gate.state == "open"
    assert found.held_out.fraction <= 0.15
    assert found.held_out.value.value >= 0.85
    assert found.held_out.value.low <= found.held_out.value.value <= found.held_out.value.high
    assert found.discovery.value.value >= found.keep == 0.9
    paths, edges = found.random_baselines
    assert (paths.kind, len(paths.values), len(edges.values)) == ("paths", 100, 100)
    assert max(paths.values) < found.held_out.value.value
    assert paths.percentile == edges.percentile == 1.0
    assert found.stability >= tracing.STABILITY_THRESHOLD
    assert abs(found.held_out.complement.value) < 0.1
    assert found.held_out.edges == len(found.circuit) == len(found.edge_necessities)
    assert (
        sum(need.p_value < 0.05 for need in found.edge_necessities)
        > len(found.edge_necessities) / 2
    )
    assert found.curve.values[-1].value == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_cutting_the_circuit_leaves_nothing_of_its_task_and_the_page_says_so():
    found = whole()
    left = {(damage.cut_circuit, damage.task): damage.remaining for damage in found.specificities}
    assert len(left) == len(found.specificities) == 6
    assert abs(left["take-away", "take-away"]) < 0.1
    assert left["random paths", "take-away"] > left["take-away", "take-away"]
    assert "'taken'" in found.summary()[-1]
    assert strict(json.dumps(found.to_dict())) == found.to_dict()
