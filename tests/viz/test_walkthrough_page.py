"""Page of a walk-through: plain without scripts, a player with them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from probes import load_result
from probes.comparison.paths.result import PathEffect
from probes.comparison.walkthrough.result import Fetch, Look, ModelWalk, Swap, Walkthrough
from probes.observe.result import Gate
from probes.stats.intervals import Estimate
from probes.viz.reports.walkthrough.page import walkthrough_page
from probes.viz.reports.walkthrough.texts import Texts

SURE, NONE = Estimate(0.9, 0.8, 1.0), Estimate(0.0, 0.0, 0.1)
ROLES = ("x", "thing", "op", "y", "ask", "after ask", "answer", "reply_number")
STRETCHES = (
    ("x", "two"), ("thing", "foxes"), ("op", "take away"), ("y", "one"), ("ask", "how many"),
    ("after ask", "do I have?"), ("answer", "Answer:"),
)  # fmt: skip
NASTY = "</script><img src=x onerror=alert(1)>"


def swap(variable, site, role, layer, **changes):
    words = {"x": ("two", "nine", "8"), "thing": ("foxes", "nuts", "nuts")}
    old, new, says = words.get(variable, ("one", "four", "5"))
    one = Swap(
        variable,
        site,
        role,
        layer,
        old,
        new,
        says,
        says,
        SURE,
        Estimate(1.0, 0.9, 1.0),
        0.05,
        0.0,
        32,
    )
    return replace(one, **changes)


def model_walk(name, layers, reply="1 foxes."):
    gate = Gate(name, "take-away", "number", 200, SURE, "copy x", 0.12, SURE, SURE, "open")
    rates = np.linspace(0, 1, len(ROLES) * (layers + 1)).reshape(len(ROLES), layers + 1)
    look = Look(layers - 1, f"L{layers - 1}.H0", "answer", "after ask", 0.98, 0.2)
    return ModelWalk(
        model=name,
        layers=layers,
        heads=2,
        reply=reply,
        gates=(gate, replace(gate, answer="noun")),
        words=tuple(swap(v, f"L0.resid@{v}", v, 0) for v in ("x", "y", "thing")),
        looks=(look, Look(0, "L0.H1", "op", "x", 0.6, 0.3)),
        maps={"x": rates, "y": rates[::-1], "operation": rates**2, "thing": 1 - rates},
        meeting=(swap("x", "L1.resid@after ask", "after ask", 1),) if layers > 2 else (),
        noun=swap("thing", "L1.resid@thing", "thing", 1),
        fetch=(Fetch(look, (swap("x", f"L{layers - 1}.H0@answer", "answer", layers - 1),)),),
    )


def path(contrast, roles, full, other, answer="number"):
    shares = (Estimate(full, full, full), Estimate(other, other, other))
    return PathEffect(contrast, answer, roles, *shares, None, NONE, shares[1], 0.01, 32)


def walk(**changes):
    paths = (
        path("x", ("x", "after ask", "answer"), 0.8, 0.0),
        path("x", ("x", "answer"), 0.2, 0.9),
        path("thing", ("thing", "reply_number"), 0.9, 0.9, "noun"),
    )
    labels = dict(
        zip(
            [one.subject for one in paths],
            ["not shared between seeds", "stronger", "kept"],
            strict=True,
        )
    )
    made = Walkthrough(
        text="I have two foxes. Answer:",
        pattern="take-away",
        stretches=STRETCHES,
        answers=(("number", "1"), ("noun", "foxes")),
        roles=ROLES,
        models=(model_walk("full", 4), model_walk("distilled", 2)),
        paths=paths,
        path_labels=labels,
        other_seed="full-b",
        skipped="",
        prompts=32,
        nulls=5,
        seed=0,
    )
    return replace(made, **changes)


def test_each_exchange_has_its_number_its_control_and_its_null():
    body = walkthrough_page(walk()).body
    tries = re.findall(r"<li><button.*?</li>", body)
    assert len(tries) == sum(len(one.swaps()) for one in walk().models)
    for text in tries:
        assert (
            "right in 29 of 32 other questions (interval 80–100" in text
            and "untrained models: 0" in text
        )
        assert "the noun stays in 100" in text or "the number stays in 100" in text
        assert "other words of this layer" in text or "other heads" in text or "layer" not in text


def test_numbers_of_one_question_are_not_called_other_questions_and_have_no_interval():
    weak = replace(model_walk("full", 4).fetch[0].swaps[0], rate=NONE)
    fetch = (replace(model_walk("full", 4).fetch[0], swaps=(weak,)),)
    made = walk(same_question=True, models=(replace(model_walk("full", 4), fetch=fetch),))
    body = walkthrough_page(made).body
    assert "right with 29 of 32 other numbers in this same question; untrained models" in body
    assert "chosen on other numbers in this same question" in body
    assert "at least 90\N{NO-BREAK SPACE}% of the other numbers in this same question" in body
    assert "the best on the numbers of the search, sets it with 0" in body
    gate = "In 200 other questions its number is right"
    assert gate in body and "other questions" not in body.replace(gate, "")
    exchanges = body[body.index("Does the answer follow") :]
    assert "interval 8" not in exchanges and "95 % interval" not in exchanges
    summary = [line for line in made.summary() if "with the state" in line]
    assert all("other numbers in this same question 0." in line for line in summary)
    assert not any("[" in line or "other questions" in line for line in summary)
    assert made.table()[["low", "high"]].isna().all(axis=None)


def test_fewer_pairs_than_asked_for_are_said_on_the_page_and_in_the_summary():
    text = "Fewer other questions than the 32 asked for"
    assert text not in walkthrough_page(walk()).body
    one = model_walk("full", 4)
    words = (replace(one.words[0], prompts=4), *one.words[1:], replace(one.words[0], prompts=3))
    words = (*words[:-1], replace(words[-1], variable="x and y"))
    made = walk(models=(replace(one, words=words),), skipped="why")
    assert f"{text}: x 4, x and y 3." in made.summary()
    assert made.summary()[-1] == "why"
    labels = "4 for the first number, 3 for the first number and the second number."
    assert f"{text}: {labels}" in walkthrough_page(made).body
    made = walk(left_out=("operation",))
    assert f"{text}: operation too few to test." in made.summary()
    assert f"{text}: too few to test for the verb." in walkthrough_page(made).body


def test_a_saved_walk_through_without_the_flag_is_of_other_questions(tmp_path):
    walk().save(tmp_path / "w.json")
    saved = json.loads((tmp_path / "w.json").read_text())
    assert '"same_question": false' in json.dumps(saved)
    text = json.dumps(saved).replace('"same_question": false, ', "")
    text = text.replace(', "same_question": false', "")
    (tmp_path / "w.json").write_text(text)
    again = load_result(tmp_path / "w.json")
    assert not again.same_question and again.summary() == walk().summary()


def test_a_place_that_no_state_holds_is_said_to_be_none():
    body = walkthrough_page(walk()).body
    assert "The first number and the second number meet at “do I have?” after layer 1 of 4" in body
    assert "No single state apart from the words themselves holds the first number and" in body


def test_what_meets_in_the_output_of_the_last_layer_has_met_nowhere_before_the_answer():
    one = replace(model_walk("full", 4), layers=1)
    body = walkthrough_page(walk(models=(one,))).body
    assert "No meeting place before the answer was found. Only in the output" in body
    assert "No place before the answer was found where the first number and the" in body


def test_equal_words_are_told_apart_by_their_number():
    twice = (*STRETCHES[:-1], ("after thing", "foxes"), STRETCHES[-1])
    texts = Texts(walk(stretches=twice))
    assert texts.quoted("after thing") == "“foxes” (no. 2)"


def test_a_single_part_has_nothing_to_meet():
    one = model_walk("full", 4)
    body = walkthrough_page(walk(models=(replace(one, words=one.words[:1], meeting=()),))).body
    assert "meet" not in body


def test_what_another_seed_lacks_is_not_called_lost_in_the_relative():
    body = walkthrough_page(walk()).body
    assert "lacks 1, as does full-b, another seed of full" in body
    assert "lost in the relative" not in body


def test_a_weak_head_is_not_said_to_bring_the_answer():
    one = model_walk("full", 4)
    weak = replace(one.fetch[0], swaps=(replace(one.fetch[0].swaps[0], rate=NONE),))
    body = walkthrough_page(walk(models=(replace(one, fetch=(weak,)),))).body
    assert "No head alone brings the number: head L3.H0" in body


def test_a_question_without_a_noun_and_a_relative_left_out():
    one = replace(model_walk("full", 4, "1"), noun=None)
    made = walk(models=(one,), answers=(("number", "1"),), paths=(), path_labels={}, skipped="why")
    body = walkthrough_page(made).body
    assert "Which way the noun goes" not in body and "why" in body


def test_hostile_texts_stay_texts():
    made = walk(text=NASTY, stretches=(("x", NASTY), *STRETCHES[1:]))
    made = replace(made, models=(replace(model_walk(NASTY, 4, NASTY)),))
    body = walkthrough_page(made).body
    assert "<img" not in body and "</script>" not in body


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_one_step_is_shown_at_a_time_and_fits_the_window(visit, width, scheme):
    tab = visit(walkthrough_page(walk()), width, color_scheme=scheme)
    steps = tab.locator(".pv-step")
    assert [steps.nth(n).is_visible() for n in range(8)] == [True] + [False] * 7
    for at in range(1, 8):
        tab.get_by_role("button", name="Next").click()
        assert steps.nth(at).is_visible() and not steps.nth(at - 1).is_visible()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.get_by_role("status").first.inner_text() == "Step 8 of 8"
    assert tab.get_by_role("button", name="Next").is_disabled()


@pytest.mark.slow
def test_the_keyboard_walks_and_tries(visit):
    tab = visit(walkthrough_page(walk()))
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowRight")
    assert tab.locator(".pv-step").nth(1).is_visible()
    button = tab.locator(".pv-step:not([data-off]) .pv-try").first
    button.focus()
    tab.keyboard.press("Enter")
    reply = tab.locator(".pv-step:not([data-off]) .pv-reply text").first
    assert reply.text_content() == "8" and button.get_attribute("aria-pressed") == "true"
    tab.keyboard.press("Enter")
    assert reply.text_content() == "1" and button.get_attribute("aria-pressed") == "false"


@pytest.mark.slow
def test_all_steps_show_without_scripts_and_on_paper(visit):
    plain = visit(walkthrough_page(walk()), java_script_enabled=False)
    assert all(plain.locator(".pv-step").nth(n).is_visible() for n in range(8))
    tab = visit(walkthrough_page(walk()))
    tab.emulate_media(media="print")
    assert all(tab.locator(".pv-step").nth(n).is_visible() for n in range(8))
    assert not tab.locator(".pv-walkbar").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, violations, scheme):
    tab = visit(walkthrough_page(walk()), color_scheme=scheme)
    tab.get_by_role("button", name="All steps").click()
    assert violations(tab) == []
