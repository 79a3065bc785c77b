"""Trace: the gate, the sampled prompts, and the whole analysis of a trained model."""

import json
from dataclasses import replace
from functools import cache

import pytest

from probes.circuits import trace as tracing
from probes.circuits.circuit import Circuit
from probes.circuits.result import STABILITY_THRESHOLD, Trace
from probes.circuits.task import TaskSettings, require_open_gate, sample_tasks
from probes.circuits.trace import TraceSettings, trace
from probes.errors import BatchError, CircuitError, GateError, PatternError, ResultError
from probes.models.model import load
from probes.prompts.catalog import pattern

# Prompts.


@cache
def full():
    return load("full")


def rows(found):
    return {tuple(ids[mask].tolist()) for ids, mask in zip(found.clean, found.mask, strict=True)}


@pytest.mark.parametrize("name", ["take-away", "two-owners"])
def test_no_held_out_prompt_is_a_discovery_prompt(name):
    settings = TaskSettings(answer="number", contrasts=("operation", "x", "y"), prompts=8)
    discovery, held_out = sample_tasks(full(), pattern(name), settings)
    assert len(rows(discovery)) == len(discovery) <= 24
    assert len(rows(held_out)) == len(held_out) <= 24
    assert min(len(discovery), len(held_out)) > 12
    assert not rows(discovery) & rows(held_out)


def test_the_seed_decides_which_prompts_are_sampled():
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
def test_only_contrasts_that_change_the_answer_are_sampled(name, answer):
    for found in sample_tasks(full(), pattern(name), TaskSettings(answer=answer, prompts=2)):
        assert found.name == f"{name}: {KINDS[name, answer]}, {answer}"
        # The foil is the counterfactual's answer, which differs.
        assert (found.foils[:, 0] >= 0).all()
        assert not (found.foils == found.answer[:, None]).any()
        assert (found.clean != found.counterfactual).any(1).all()


def test_named_contrasts_are_used_even_if_they_keep_the_answer():
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


def test_a_pattern_whose_contrasts_keep_the_answer_is_refused(tmp_path):
    given = pairs_file(tmp_path, 8)
    pairs = [
        replace(pair, counterfactual=replace(pair.counterfactual, answers=pair.clean.answers))
        for pair in given.user_pairs
    ]
    same = replace(given, user_pairs=tuple(pairs))
    with pytest.raises(CircuitError, match=r"No contrast of 'own' changes 'answer': found given\."):
        sample_tasks(full(), same, TaskSettings(prompts=4))


def test_pairs_of_a_file_that_share_a_prompt_stay_in_one_half(tmp_path):
    """Each of eight prompts has two counterfactuals, one in either half of the file."""
    given = pairs_file(tmp_path, 16)
    discovery, held_out = sample_tasks(full(), given, TaskSettings(prompts=8))
    assert not rows(discovery) & rows(held_out)


def test_a_file_of_too_few_pairs_is_refused_with_the_requested_number(tmp_path):
    given = pairs_file(tmp_path, 16)
    with pytest.raises(PatternError) as caught:
        sample_tasks(full(), given, TaskSettings(prompts=32))
    assert "32" in str(caught.value)


# Gate.


@cache
def untrained():
    return load("random-init:full:0")


def test_a_closed_gate_names_the_answer_the_accuracy_and_what_to_do(monkeypatch):
    monkeypatch.setattr(tracing, "edge_attribution", None)  # nothing else runs
    with pytest.raises(GateError) as caught:
        trace(untrained())
    message = str(caught.value)
    assert message.startswith(
        "full random-init 0 does not have the behavior: number of 'take-away'"
    )
    assert "has accuracy 0.00 [0.00, 0.02]" in message
    assert "the heuristic 'copy x' 0.12" in message
    assert message.endswith("choose a model or a pattern whose gate is open, or the gate none.")


def test_an_answer_that_the_pattern_lacks_is_refused():
    with pytest.raises(GateError, match="'take-away' has no answer 'color': it has number, noun"):
        require_open_gate(untrained(), pattern("take-away"), "color", seed=0)


def test_the_first_answer_is_traced_unless_another_is_named():
    found = [require_open_gate(full(), pattern("take-away"), name, seed=0) for name in ("", "noun")]
    assert [gate.answer for gate in found] == ["number", "noun"]
    assert {gate.state for gate in found} == {"open"}
    assert {gate.model for gate in found} == {"full"}


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.01, 90.0, float("nan")])
def test_a_faithfulness_out_of_range_is_refused_before_a_model_is_loaded(keep):
    with pytest.raises(CircuitError, match=f"Cannot keep {keep} of a behavior"):
        trace("no such model", keep=keep)


# Another pattern.


@cache
def own_part():
    """A circuit of `full`, and its held-out runs."""
    _, held_out = sample_tasks(full(), pattern("take-away"), TaskSettings(prompts=2))
    graph = held_out.computation_graph(full())
    found = Circuit("full", graph, (graph.edge(0),), (1.0,), (0.1,))
    return found, tracing.HeldOutRuns(full(), held_out, False, "counterfactual")


def cross(own="take-away", other="taken"):
    other = pattern(other) if isinstance(other, str) and other else other
    settings = TraceSettings(prompts=2, method="eap", other_pattern=other)
    return tracing._cross_specificity(pattern(own), *own_part(), settings)


def test_a_pattern_whose_gate_is_closed_is_skipped_with_what_the_gate_found():
    tests, reason = cross(other="induction")
    assert tests == ()
    assert reason.startswith("full does not have the behavior: ")
    assert "answer of 'induction' has answer above its foils 0." in reason
    assert "choose" not in reason  # It is no advice for this trace.


@pytest.mark.parametrize("kind", [CircuitError, PatternError, BatchError])
@pytest.mark.parametrize("place", ["pattern_in_format", "measure_gate", "sample_tasks"])
def test_what_is_wrong_with_the_other_pattern_is_the_reason_and_ends_no_trace(
    kind, place, monkeypatch
):
    def refuse(*_, **__):
        raise kind("it has 3 pairs:\nadd more")

    monkeypatch.setattr(tracing, place, refuse)
    assert cross() == ((), "'taken' cannot be traced, as it has 3 pairs: add more")


def test_a_pattern_whose_answers_no_contrast_changes_ends_no_trace(tmp_path, monkeypatch):
    given = pairs_file(tmp_path, 8)
    gate = replace(require_open_gate(full(), pattern("take-away"), seed=0), answer="answer")
    monkeypatch.setattr(tracing, "measure_gate", lambda *_, **__: (gate,))
    pairs = [
        replace(pair, counterfactual=replace(pair.counterfactual, answers=pair.clean.answers))
        for pair in given.user_pairs
    ]
    tests, reason = cross(other=replace(given, user_pairs=tuple(pairs)))
    assert tests == ()
    assert reason.startswith("'own' cannot be traced, as No contrast of 'own' changes 'answer'")


def test_without_another_pattern_the_reason_says_so(tmp_path):
    assert cross(other="") == ((), "no other pattern was named")
    assert cross("taken") == ((), "the other pattern is 'taken' itself")
    tests, reason = tracing._cross_specificity(
        pairs_file(tmp_path, 8), *own_part(), TraceSettings(other_pattern=pattern("taken"))
    )
    assert (tests, reason) == ((), "a file of pairs is not held against a pattern")


def test_another_pattern_with_a_gate_has_a_row_for_each_circuit_in_each_task():
    tests, reason = cross()
    assert reason == ""
    assert {(test.cut_circuit, test.task) for test in tests} == {
        (cut, task) for cut in ("take-away", "taken") for task in ("take-away", "taken")
    }
    assert all(len(test.random) == 20 and test.edges == 1 for test in tests)


# Whole traces.


def strict(text):
    """Parse JSON without NaN and Infinity."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.slow
def test_a_small_trace_by_roles_is_saved_as_json_and_as_a_page(tmp_path):
    found = trace(
        "distilled-narrow", roles=True, settings=TraceSettings(prompts=4, other_pattern="")
    )
    assert found.specificities == ()
    assert found.summary()[-1] == "Specificity was not tested: no other pattern was named."
    assert all(edge.source_role for edge in found.circuit.edges)
    assert strict(json.dumps(found.to_dict())) == found.to_dict()
    found.save(tmp_path / "t.json")
    assert strict((tmp_path / "t.json").read_text(encoding="utf-8")) == found.to_dict()
    assert found.table().equals(found.circuit.table())
    broken = found.to_dict()
    broken["random_baselines"][0]["values"] = []
    with pytest.raises(ResultError, match=r"random .* has 0 circuits: measure it again"):
        Trace.from_dict(broken)
    found.save(tmp_path / "t.html")
    assert (tmp_path / "t.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_default_other_pattern_can_be_traced_itself():
    assert trace("distilled", "taken", settings=TraceSettings(prompts=4)).summary()


@cache
def whole():
    return trace(full())


@pytest.mark.slow
def test_the_full_model_has_a_small_circuit_that_random_circuits_do_not_reach():
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
    assert found.stability >= STABILITY_THRESHOLD
    assert abs(found.held_out.complement.value) < 0.1
    assert found.held_out.edges == len(found.circuit) == len(found.edge_necessities)
    assert (
        sum(need.p_value < 0.05 for need in found.edge_necessities)
        > len(found.edge_necessities) / 2
    )
    assert found.curve.values[-1].value == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_ablating_the_circuit_leaves_nothing_of_its_task_and_the_summary_says_so():
    found = whole()
    tests = {(s.cut_circuit, s.task): s for s in found.specificities}
    assert len(tests) == len(found.specificities) == 4
    assert abs(tests["take-away", "take-away"].remaining) < 0.1
    assert tests["take-away", "take-away"].damage == "more"
    assert {test.edges for test in tests.values()} == {len(found.circuit)}
    assert "'taken'" in found.summary()[-1]
    assert strict(json.dumps(found.to_dict())) == found.to_dict()
