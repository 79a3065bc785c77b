"""One question: matched, answered, and held against a circuit of its pattern."""

from dataclasses import replace

import pytest
import torch

import probes as pb
from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.circuits.question.ask import AskSettings, ask
from probes.circuits.question.result import AnswerReading, QuestionReport
from probes.circuits.result import Faithfulness, FaithfulnessCurve, Trace
from probes.errors import CircuitError, MatchError
from probes.observe.result import Gate
from probes.prompts.english.match import counterfactuals, match_text
from probes.stats.intervals import Estimate
from probes.viz.reports.question import question_page

FOX = "If I have two foxes and I take away one, how many foxes do I have?"
FREE = "Tom has 7 coins. It rains. He loses 3 coins. How many coins are left?"


@pytest.fixture(scope="module")
def full():
    return pb.load("full")


def saved_trace(circuit):
    some = Estimate(0.9, 0.8, 1.0)
    kept = Faithfulness(1, 0.1, some, (0.9,), some, some)
    gate = Gate("full", "take-away", "number", 9, some, "copy x", 0.1, some, some, "open")
    curve = FaithfulnessCurve((1.0,), (1,), (some,), 1.0, 0.0, 1.0, 0.0)
    return Trace(circuit, gate, 0.9, kept, kept, curve, (), 0.9, (), ())


def test_a_text_of_a_template_and_a_free_one_have_roles_answers_and_foils():
    fox, free = match_text(FOX), match_text(FREE)
    assert (fox.pattern, fox.template, fox["op"]) == ("take-away", "if", "take away")
    assert (free.pattern, free.template, free["op"]) == ("take-away", "free text", "lose")
    assert free.text == f"{FREE} Answer:"
    roles = {role: free.text[start:end] for role, start, end in free.roles}
    assert roles == {
        "have": "has", "x": "7", "thing": "coins", "op": "loses", "y": "3", "thing_moved": "coins",
        "ask": "How many", "thing_asked": "coins", "answer": "Answer:",
    }  # fmt: skip
    assert free.outcomes == (("number", ("4", "10", "7", "3")),)


def test_counterfactuals_of_a_free_text_differ_in_one_number():
    free = match_text(FREE)
    others = list(counterfactuals(free, pb.pattern("take-away"), seed=0))
    assert {contrast for contrast, _ in others} == {"x", "y"}
    for contrast, other in others:
        unchanged = "y" if contrast == "x" else "x"
        assert other[unchanged] == free[unchanged]
        old, new = (question.role_text(contrast) for question in (free, other))
        words, others_words = free.text.split(), other.text.split()
        assert [(old, new)] == [
            both for both in zip(words, others_words, strict=True) if len(set(both)) == 2
        ]
        assert other.answer("number") == str(int(other["x"]) - int(other["y"]))
    words = match_text("I have seven coins. I lose three. How many coins are left?")
    texts = [other.text for _, other in counterfactuals(words, pb.pattern("take-away"), seed=0)]
    assert all(not any(mark.isdigit() for mark in text) for text in texts)


def test_probabilities_and_attention_are_those_of_a_plain_pass(full):
    report = ask(full, FOX, AskSettings(trace=False))
    number, noun = report.answers
    text = f"{FOX} Answer:"
    for answer, context in ((number, text), (noun, f"{text} 1")):
        batch = pb.tokenize(full, context)
        with torch.no_grad():
            chances = full.logits(batch.ids, batch.mask)[0, -1].softmax(-1)
        for outcome, probability in zip(answer.outcomes, answer.probabilities, strict=True):
            own = full.tokenizer(f"{context} {outcome}")["input_ids"]
            shared = full.tokenizer(context)["input_ids"]
            if len(own) == len(shared) + 1:
                assert probability == pytest.approx(float(chances[own[-1]]), abs=1e-4)
        assert answer.is_correct
    assert all(sum(head.shares) == pytest.approx(1, abs=1e-4) for head in report.attention)
    assert len(report.attention) == full.shape.layers * full.shape.heads
    assert report.continuation.startswith(" 1 foxes")
    assert report.circuit is None
    assert report.summary()[-1] == "No circuit: it was not asked for."


def test_the_whole_model_keeps_all_of_a_question_and_one_edge_next_to_nothing(full):
    batch = pb.tokenize_pairs(
        full.tokenizer,
        pb.sample_pairs(pb.pattern("take-away"), "x", 4, tokenizers=(full.tokenizer,), seed=0),
    )
    graph = pb.Task.from_pairs(batch, skip_unequal=True).computation_graph(full)
    edges = tuple(graph.edge(n) for n in range(len(graph)))
    ones, nothing = (1.0,) * len(edges), (float("nan"),) * len(edges)
    whole = Circuit("full", graph, edges, ones, nothing)
    settings = AskSettings(circuit=saved_trace(whole))
    use = ask(full, FOX, settings).circuit
    assert {each.contrast for each in use.contrasts} == {"operation", "x", "y"}
    assert all(each.faithfulness.value == pytest.approx(1, abs=1e-3) for each in use.contrasts)
    assert use.inside_share == pytest.approx(1)
    assert len(use.outside) == 0
    single = Circuit("full-b", graph, (Edge("embed", "L0.MLP"),), (1.0,), (0.1,))
    report = ask(full, FOX, AskSettings(circuit=saved_trace(single)))
    assert all(abs(each.faithfulness.value) < 0.5 for each in report.circuit.contrasts)
    assert len(report.circuit.outside) == 10
    assert report.circuit.inside_share < 0.2
    # The circuit of a relative is said to be one.
    assert any("found in full-b" in line for line in report.summary())


def test_a_saved_report_is_read_back_and_has_a_page(full, tmp_path):
    report = ask(full, FOX, AskSettings(trace=False))
    again = pb.load_result(report.save(tmp_path / "ask.json"))
    assert again.summary() == report.summary()
    assert list(again.table().columns) == ["answer", "text", "correct", "probability"]
    page = report.save(tmp_path / "ask.html").read_text(encoding="utf-8")
    assert "One question in full" in page


def test_a_text_without_a_pattern_and_a_trace_of_another_shape_are_refused(full):
    with pytest.raises(MatchError, match="looked for a question with 'how many'"):
        ask(full, "What is the capital of France?")
    other = saved_trace(Circuit("big", ComputationGraph(9, 2, 2), (), (), ()))
    with pytest.raises(CircuitError, match="The trace is of big, with 9 layers of 2 heads"):
        ask(full, FOX, AskSettings(circuit=other))


def test_a_token_behind_what_all_answers_begin_with_is_told_as_that():
    """The two probabilities of '2' are of different texts."""
    one = AnswerReading("number", ("1", "3", "2"), (0.01, 0.03, 0.05), -0.2, "2", 0.25, " ")
    assert one.prediction == "Most likely token behind ' ': '2' (0.25)."
    assert replace(one, forced="").prediction == "Most likely token: '2' (0.25)."


def test_a_saved_answer_of_before_has_no_shared_text(full):
    asked = ask(full, FOX, AskSettings(trace=False))
    plain = asked.to_dict()
    for answer in plain["answers"]:
        del answer["forced"]
    assert QuestionReport.from_dict(plain) == asked


def test_a_model_that_ends_at_once_and_an_answer_that_is_unlikely_are_told(full):
    asked = ask(full, FOX, AskSettings(trace=False))
    assert [answer.forced for answer in asked.answers] == ["", ""]
    green = 'class="pv-note" data-tone="good"'
    assert question_page(asked).body.count(green) == 2
    unlikely = replace(asked.answers[0], probabilities=(0.002, 0.001, 0.0))
    silent = replace(asked, continuation="", answers=(unlikely,))
    assert "It writes nothing: the most likely token ends the text." in silent.summary()
    assert unlikely.is_correct
    assert green not in question_page(silent).body
