"""Number stories in free English are read by rules, or refused with what was looked for."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import MatchError
from probes.prompts.english.story import read_story
from probes.prompts.english.words import verb_forms
from probes.stats.intervals import proportion

LABELS = json.loads(Path(__file__).with_name("svamp_labels.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text,reading",
    [
        ("I have two foxes. I take one away. How many foxes are left?", (2, "-", 1, "take away")),
        ("How many foxes do I have if I have two and take away one?", (2, "-", 1, "take away")),
        ("There are 20 birds. 6 flew away. How many birds remain?", (20, "-", 6, "fly")),
        ("Sara had 9 balloons. Five popped. How many does she have left?", (9, "-", 5, "pop")),
        ("A baker made 30 pies and sold 12. How many pies are left?", (30, "-", 12, "sell")),
        ("I had twenty-one candles, but 4 of them melted. How many candles do I still have?",
         (21, "-", 4, "melt")),
        ("If you have $ 10 and spend $ 4, how much money do you have left?", (10, "-", 4, "spend")),
        ("He ate 8 nuts. He had 30 nuts initially. How many nuts are left?", (30, "-", 8, "eat")),
        ("We bought six eggs. We already had 3 eggs. How many eggs do we have now?",
         (3, "+", 6, "buy")),
    ],
)  # fmt: skip
def test_a_story_has_an_amount_and_one_change_of_it(text, reading):
    story = read_story(text)
    sign = {"minus": "-", "plus": "+"}[story.change.kind]
    assert (story.have.value, sign, story.change.value, story.change.verb) == reading


@pytest.mark.parametrize(
    "told,result",
    [
        # Another owner, another object, and a sentence without an amount do not count.
        ("Ben has 7 nuts. Ann has 3 nuts. It rains. Ben loses 2 nuts.", 5),
        ("Ben has 7 nuts and 4 pears. He eats 2 nuts and 1 pear.", 5),
        ("Ben has 7 ripe nuts and 9 green nuts. He eats 2 ripe nuts and 3 green nuts.", 6),
        # Who gives and who is given.
        ("Ben has 7 nuts. He gives his sister 2 nuts.", 5),
        ("Ben has 7 nuts. His sister gives him 2 nuts.", 9),
        ("Ben has 7 nuts. His sister buys 2 nuts from him.", 5),
    ],
)
def test_owners_objects_and_givers_are_told_apart(told, result):
    asked = "green nuts" if "green" in told else "nuts"
    assert read_story(f"{told} How many {asked} does Ben have now?").result == result


@pytest.mark.parametrize(
    "text,said",
    [
        ("What is the capital of France?", "a question with 'how many' or 'how much'"),
        ("I have two foxes. How many foxes do I have?", "change of it of 'fox', and found none"),
        ("I take away 2 foxes. How many foxes are left?", "one amount of 'fox', and found none"),
        ("I have 9 nuts. I eat 2 nuts and lose 1 nut. How many nuts are left?",
         "one change of it of 'nut', and found 2"),
        ("I have 9 nuts. I eat some nuts and lose 1. How many nuts are left?", "without 'some'"),
        ("I have 9 nuts. I eat 2 nuts a day. How many nuts are left?", "and 'each'"),
        ("I have 9 nuts. I eat 2. How many nuts did I eat?", "what is there after the change"),
        ("I have 9 nuts. I eat 2. How many nuts did I have at first?", "what is there after"),
        ("I have 9 nuts. Ann has 7. How many more nuts do I have than Ann?", "what is there after"),
        ("I have 3 foxes and take away 5. How many foxes are left?", "at most 3, not 5"),
        ("I have 3 foxes. I paint 2 foxes and sell 1 fox. How many foxes are left?",
         "a known verb for each number"),
    ],
)  # fmt: skip
def test_other_texts_are_refused_with_what_was_looked_for(text, said):
    with pytest.raises(MatchError, match=said) as error:
        read_story(text)
    assert "\n" not in str(error.value)


WORDS = "how many much foxes have I take away 5 two $ . ? , and from him more of a left it some"


@given(
    st.text(max_size=80)
    | st.lists(st.sampled_from(WORDS.split(" ")), max_size=30).map(lambda words: " ".join(words))
)
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        assert read_story(text).result >= 0
    except MatchError as error:
        assert str(error)


def test_tens_of_verbs_are_known_in_all_their_forms():
    bases = {base for kind, base in verb_forms().values() if kind != "have"}
    assert len(bases) > 70
    for form in ("dropped", "carries off", "flies", "gave", "taking", "sold", "uses up", "spent"):
        assert (form in verb_forms()) != (form == "carries off")


@pytest.fixture(scope="module")
def svamp(shared_data):
    entries = json.loads(shared_data("svamp", "SVAMP.json").read_text(encoding="utf-8"))
    found = {}
    for entry in entries:
        body = entry["Body"].strip()
        text = f"{body if body[-1] in '.?!' else body + ','} {entry['Question']}"
        try:
            story = read_story(text)
        except MatchError:
            story = None
        found[entry["ID"]] = (story, re.sub(r"\.0|\s", "", entry["Equation"]))
    return found


def test_what_is_claimed_of_svamp_has_the_equation_given_there(svamp):
    claims = [(s, equation) for s, equation in svamp.values() if s is not None]
    right = {"minus": [], "plus": []}
    for story, equation in claims:
        x, y = story.have.value, story.change.value
        equations = {"minus": (f"({x}-{y})",), "plus": (f"({x}+{y})", f"({y}+{x})")}
        right[story.change.kind].append(equation in equations[story.change.kind])
    precision = proportion(np.array(right["minus"]))
    assert len(right["minus"]) >= 30
    assert precision.value >= 0.95
    assert precision.low >= 0.85  # Wilson interval.
    assert all(right["plus"])


@pytest.mark.parametrize("half", ["tuning", "test"])
def test_most_take_away_questions_of_svamp_are_found(svamp, half):
    labels = LABELS[half]
    matched = {ID for ID in labels if (story := svamp[ID][0]) and story.change.kind == "minus"}
    positive = {ID for ID, label in labels.items() if label}
    assert len(matched & positive) / len(positive) >= 0.6
    assert not matched - positive
