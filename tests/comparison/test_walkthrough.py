"""Walk-through of one question: every number is what an intervention by hand gives."""

import pytest
import torch
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from probes import load_result
from probes.cli.app import app
from probes.comparison.walkthrough.explain import ExplainSettings, explain
from probes.comparison.walkthrough.prompts import BOTH, sample_walkthrough_prompts
from probes.errors import GateError, MatchError, ModelError
from probes.interventions.role_paths.graph import path_role_texts
from probes.models.model import load
from probes.models.site import Site
from probes.prompts.catalog import pattern
from probes.prompts.english.match import match_text

pytestmark = pytest.mark.slow

FOX = "If I have two foxes and I take away one, how many foxes do I have?"
FREE = "Tom has 7 coins. He loses 3 coins. How many coins does he have left?"
SMALL = ExplainSettings(prompts=8, nulls=1)


@pytest.fixture(scope="module")
def distilled():
    return load("distilled")


@pytest.fixture(scope="module")
def walk(distilled):
    return explain(distilled, FOX, settings=SMALL)


@pytest.fixture(scope="module")
def prompts(distilled):
    return sample_walkthrough_prompts(
        match_text(FOX), pattern("take-away"), [distilled.tokenizer], prompts=8, seed=0
    )


def written(model, text):
    return model.generate(text, max_new_tokens=4)[len(text) :].split()


def test_stretches_cover_the_question_in_order():
    question = match_text(FOX)
    texts = path_role_texts(question)
    assert " ".join(words for _, words in texts).replace(" ,", ",") == question.text
    assert dict(texts)["after thing_asked"] == "do I have?" and dict(texts)["op"] == "take away"


def test_a_swap_of_words_says_what_the_model_writes_behind_the_changed_question(
    distilled, walk, prompts
):
    for swap in walk.models[0].words:
        text = prompts.own[swap.variable].counterfactual.text
        at = 1 if swap.variable == "thing" else 0
        assert swap.says == written(distilled, text)[at].strip("."), swap
        assert swap.old != swap.new and swap.rate.value > 0.9
        assert swap.elsewhere == 0  # All other words are those of the question itself.


def test_a_swap_of_a_state_is_an_edit_of_the_residual_stream_there(distilled, walk, prompts):
    swap = walk.models[0].noun
    site = Site.parse(swap.site)
    pair = prompts.own["thing"]
    rows = []
    for side in (pair.clean, pair.counterfactual):
        answer = side.text + " " + pair.clean.answer("number")
        rows.append(torch.tensor(distilled.tokenizer(answer)["input_ids"])[None])
    kept = []
    with distilled.hooked({site.hook_name: kept.append}):
        distilled.logits(rows[1], torch.ones_like(rows[1], dtype=torch.bool))
    tokens = distilled.tokenizer.convert_ids_to_tokens(rows[0][0].tolist())
    place = [n for n, token in enumerate(tokens) if "foxes" in token][-1]

    def exchange(resid):
        resid = resid.clone()
        resid[:, place] = kept[0][:, place]
        return resid

    with distilled.editing({site.hook_name: exchange}):
        logits = distilled.logits(rows[0], torch.ones_like(rows[0], dtype=torch.bool))
    says = distilled.tokenizer.decode([int(logits[0, -1].argmax())]).strip()
    assert swap.role == "thing_asked" and says == swap.says == swap.new


def test_other_questions_are_of_the_same_form_and_apart_from_the_search(prompts):
    for name, pairs in prompts.others.test.items():
        assert {pair.clean.template for pair in pairs} == {"if"}
        searched = {pair.clean.text for pair in prompts.others.search.get(name, ())}
        assert not searched & {pair.clean.text for pair in pairs}
        assert match_text(FOX).text not in {pair.clean.text for pair in pairs}
    changed = prompts.own[BOTH].counterfactual
    assert int(changed["x"]) - int(changed["y"]) == int(changed.answer("number"))


def test_a_text_that_fits_no_template_is_tested_with_numbers_that_are_not_shown(distilled):
    question = match_text(FREE)
    made = sample_walkthrough_prompts(
        question, pattern("take-away"), [distilled.tokenizer], prompts=8, seed=0
    )
    assert made.same_question and not made.left_out and set(made.others.test) == {"x", "y", BOTH}
    for name, pairs in made.others.test.items():
        assert {pair.clean.text for pair in pairs} == {question.text}
        searched = [p.counterfactual.text for p in made.others.search.get(name, ())]
        tested = [pair.counterfactual.text for pair in pairs]
        assert len(tested) >= 4 and len({*tested, *searched}) == len(tested) + len(searched)
        assert made.own[name].counterfactual.text not in tested
        assert name == BOTH or made.own[name].counterfactual.text == searched[0]


def test_a_number_with_too_few_changed_versions_is_named(distilled):
    """From 2 coins at most 2 can be lost."""
    question = match_text(FREE.replace("7", "2").replace("3", "1"))
    made = sample_walkthrough_prompts(
        question, pattern("take-away"), [distilled.tokenizer], prompts=8, seed=0
    )
    assert made.left_out == ("y",) and set(made.others.test) == {"x"}


def test_a_walk_through_of_a_free_text_says_how_many_numbers_it_found(distilled):
    walk = explain(distilled, FREE, settings=SMALL)
    assert walk.same_question
    assert all(count < 8 for count in walk.too_few.values()) and "y" in walk.too_few
    assert walk.summary()[-1].startswith("Fewer other numbers in this same question than the 8")


def test_attention_is_compared_with_equal_weights(walk):
    looks = walk.models[0].looks
    assert all(0 < look.uniform < 1 and 0 <= look.weight <= 1 for look in looks)
    assert all(look.query != look.key for look in looks)


def test_both_models_stand_beside_each_other_with_the_same_questions(distilled):
    both = explain(distilled, FOX, distilled, SMALL)
    one, other = both.models
    for name in one.maps:
        assert_allclose(one.maps[name], other.maps[name])
    assert set(both.path_labels.values()) <= {"kept", "cannot tell"}


def test_a_relative_without_the_behavior_is_left_out_with_the_reason(distilled):
    walk = explain(distilled, FOX, "copying", SMALL)
    assert [one.model for one in walk.models] == ["distilled"]
    assert walk.skipped.startswith("copying does not have the behavior")
    assert walk.summary()[-1] == walk.skipped


def test_zero_random_init_models_are_refused_before_a_model_is_loaded():
    with pytest.raises(ModelError, match="nulls=0 found"):
        explain("no such model", FOX, settings=ExplainSettings(nulls=0))


def test_a_model_without_the_behavior_is_refused():
    with pytest.raises(GateError, match="copying does not have the behavior of 'take-away'"):
        explain("copying", FOX, settings=SMALL)


def test_a_walk_through_is_saved_and_read_again(walk, tmp_path):
    walk.save(tmp_path / "w.json")
    again = load_result(tmp_path / "w.json")
    assert again.summary() == walk.summary()
    assert list(again.table()["says"]) == list(walk.table()["says"])


def test_a_text_that_is_no_question_is_refused_in_one_line(tmp_path):
    found = CliRunner().invoke(
        app, ["explain", "distilled", "What is love?", "--out", str(tmp_path / "e.html")]
    )
    assert found.exit_code == 1 and len(found.output.strip().splitlines()) == 1
    assert found.output.startswith("MatchError")
    with pytest.raises(MatchError):
        explain("distilled", "What is love?")
