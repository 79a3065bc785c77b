"""Questions about one model use the store: a trace or a walk-through is measured once."""

import pytest

import probes as pb
from probes.circuits.question.ask import AskSettings
from probes.comparison.walkthrough.explain import ExplainSettings
from probes.scale.store import Store

FOX = "If I have two foxes and I take away one, how many foxes do I have?"


@pytest.mark.slow
def test_a_second_question_reads_the_trace_of_its_pattern(tmp_path):
    first = pb.ask("distilled", FOX, AskSettings(prompts=4, run=tmp_path))
    store = Store(tmp_path)
    again = pb.ask("distilled", FOX, AskSettings(prompts=4, run=store))
    other = FOX.replace("foxes", "dogs")
    pb.ask("distilled", other, AskSettings(prompts=4, run=store))
    assert again.to_dict() == first.to_dict()
    assert (store.measured, store.reused) == (0, 2)


@pytest.mark.slow
def test_a_walk_through_is_read_for_the_same_question_only(tmp_path):
    sizes = {"prompts": 8, "nulls": 1}
    first = pb.explain("distilled", FOX, settings=ExplainSettings(**sizes, run=tmp_path))
    store = Store(tmp_path)
    again = pb.explain("distilled", FOX, settings=ExplainSettings(**sizes, run=store))
    assert again.to_dict() == first.to_dict()
    assert (store.measured, store.reused) == (0, 1)
    pb.explain("distilled", FOX, settings=ExplainSettings(**sizes, seed=1, run=store))
    assert store.measured == 1
