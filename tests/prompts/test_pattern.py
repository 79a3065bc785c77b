"""Patterns sample questions with their answers, and match the same texts."""

import random
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

from probes.errors import MatchError, PatternError
from probes.prompts import draws
from probes.prompts.catalog import list_patterns, pattern
from probes.prompts.pattern import Pattern
from probes.prompts.question import evaluate_expression
from probes.prompts.template import parse_template

FOX = "If I have two foxes and I take away one, how many foxes do I have?"
SHIPPED = Path(__file__).parents[2] / "data" / "patterns.toml"
NAMES = tuple(list_patterns(SHIPPED))
NUMBER_WORDS = list_patterns()["take-away"].lexicon.number_words
CONTRASTS_OF = [(name, contrast) for name in NAMES for contrast in pattern(name).contrasts]
SAME_FRAME = [pair for pair in CONTRASTS_OF if pair[1] not in ("paraphrase", "order")]


def frames_of(names):
    return [(name, frame) for name in names for frame in pattern(name).templates]


def draw(found, frame, count):
    """Draw questions of one frame."""
    rng = random.Random(0)
    drawn = (found.sample_question(rng, (frame,)) for _ in range(100))
    return list(islice((question for question in drawn if question), count))


def texts(question):
    return {role: question.role_text(role) for role, _, _ in question.roles}


# The fox sentence.


def test_the_fox_sentence_matches_with_its_answers():
    question = pattern("take-away").match(FOX)
    assert dict(question.answers) == {"number": "1", "noun": "foxes"}
    assert dict(question.slots) == {"x": 2, "thing": "foxes", "op": "take away", "y": 1}
    assert question.numerals == "words"
    assert question.text == FOX + " Answer:"
    assert question.full_text == FOX + " Answer: 1 foxes"


def test_roles_of_the_fox_sentence_have_the_right_character_spans():
    assert pattern("take-away").match(FOX).roles == (
        ("have", 5, 9),
        ("x", 10, 13),
        ("thing", 14, 19),
        ("op", 26, 35),
        ("y", 36, 39),
        ("ask", 41, 49),
        ("thing_asked", 50, 55),
        ("answer", 67, 74),
    )
    assert (FOX[10:13], FOX[14:19], FOX[26:35], FOX[36:39]) == ("two", "foxes", "take away", "one")


def test_outcomes_of_the_fox_sentence_are_answer_sum_and_copies():
    outcomes = dict(pattern("take-away").match(FOX).outcomes)
    assert outcomes["number"] == ("1", "3", "2")
    assert outcomes["noun"][0] == "foxes"
    assert len(set(outcomes["noun"])) == 2


def test_a_noun_outside_the_lexicon_matches():
    question = pattern("take-away").match(FOX.replace("foxes", "gryphons").replace("two", "12"))
    assert dict(question.answers) == {"number": "11", "noun": "gryphons"}


# Sampling and matching.


@pytest.mark.parametrize("name,frame", frames_of(NAMES), ids=lambda v: getattr(v, "name", v))
def test_a_sampled_text_matches_as_the_same_question(name, frame):
    drawn = draw(pattern(name), frame, 4)
    assert len(drawn) == 4
    for question in drawn:
        assert pattern(name).match(question.text) == question


@pytest.mark.parametrize("name", NAMES)
def test_each_role_is_the_text_of_its_slot(name):
    found = pattern(name)
    for question in found.sample_questions(15, seed=1):
        frame = next(frame for frame in found.templates if frame.name == question.template)
        parts = [part for part in frame.parts if part.role]
        assert [role for role, _, _ in question.roles] == [part.role for part in parts]
        for part in parts:
            value = question[part.slot] if part.slot else None
            written = question.role_text(part.role)
            if isinstance(value, int):
                words = NUMBER_WORDS[value] if question.numerals == "words" else str(value)
                assert written == words
            elif part.slot == "op":
                assert written == found.lexicon.verb_forms(value)[1][part.form]
            else:
                assert written == (part.text if value is None else value)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_computed_from_the_slots(name):
    plus = pattern(name).operation == "plus"
    stem = name.removesuffix("-told").removesuffix("-more")
    for question in pattern(name).sample_questions(15, seed=2):
        x, y = question["x"], question["y"]
        number = {
            "copy": x,
            "taken": y,
            "gotten": y,
            "bystander": question["d"] if stem == "bystander" else None,
        }.get(stem, x + y if plus else x - y)
        assert question.answer("number") == str(number)
        assert (
            question.answer("noun") == question["other_thing" if stem == "bystander" else "thing"]
        )


@pytest.mark.parametrize("name", NAMES)
def test_numbers_and_results_are_in_range(name):
    sign = 1 if pattern(name).operation == "plus" else -1
    for question in pattern(name).sample_questions(30, seed=3):
        numbers = [value for _, value in question.slots if isinstance(value, int)]
        left = question["x"] + sign * question["y"]
        assert all(0 <= number <= 20 for number in [*numbers, left])


def test_the_seed_decides_the_questions():
    take = pattern("take-away")
    assert take.sample_questions(20, seed=5) == take.sample_questions(20, seed=5)
    assert not set(take.sample_questions(20, seed=5)) & set(take.sample_questions(20, seed=6))
    assert take.sample_pairs("x", 20, seed=5) == take.sample_pairs("x", 20, seed=5)
    assert take.sample_pairs("x", 20, seed=5) != take.sample_pairs("x", 20, seed=6)


def test_a_smaller_sample_is_the_start_of_a_larger_one():
    take = pattern("take-away")
    assert take.sample_questions(5, seed=5) == take.sample_questions(20, seed=5)[:5]


def test_no_question_is_sampled_twice():
    drawn = pattern("take-away").sample_questions(150, seed=0)
    assert len({question.text for question in drawn}) == 150


def test_numbers_are_written_in_digits_and_in_words():
    drawn = pattern("take-away").sample_questions(60, seed=0)
    for numerals in ("digits", "words"):
        some = [question for question in drawn if question.numerals == numerals]
        assert len(some) > 10
        assert all(q.role_text("x").isdigit() == (numerals == "digits") for q in some)
    assert all(question.answer("number").isdigit() for question in drawn)


def test_two_nouns_or_two_names_of_one_question_differ():
    for question in pattern("two-owners").sample_questions(40, seed=0):
        assert question["thing"] != question["other_thing"]
        assert question["name"] != question["other"]


def test_too_many_questions_are_refused_with_the_number_found():
    with pytest.raises(PatternError, match="yielded 0 of 1 questions"):
        pattern("take-away").sample_questions(1, seed=0, keep=lambda question: False)


# Contrasts.


@cache
def pairs_of(name, contrast):
    return pattern(name).sample_pairs(contrast, 4, seed=11)


def changed(pair):
    """The slots that differ between the sides of a pair."""
    assert [slot for slot, _ in pair.clean.slots] == [s for s, _ in pair.counterfactual.slots] or (
        pair.contrast == "order"
    )
    other = dict(pair.counterfactual.slots)
    return {slot for slot, value in pair.clean.slots if other[slot] != value}


@pytest.mark.parametrize("name,contrast", CONTRASTS_OF)
def test_a_contrast_changes_only_its_own_slot(name, contrast):
    slot = {"operation": {"op"}, "paraphrase": {"op"}, "order": set()}.get(contrast, {contrast})
    for pair in pairs_of(name, contrast):
        assert pair.contrast == contrast
        assert changed(pair) == slot
        assert pair.clean.numerals == pair.counterfactual.numerals
        assert (pair.clean.template != pair.counterfactual.template) == (
            contrast in ("paraphrase", "order")
        )
        assert pair.clean.text != pair.counterfactual.text


@pytest.mark.parametrize("name,contrast", SAME_FRAME)
def test_only_the_words_of_the_changed_roles_differ(name, contrast):
    slot = "op" if contrast == "operation" else contrast
    for pair in pairs_of(name, contrast):
        frame = pattern(name)._find_template(pair.clean.template)
        moved = {part.role for part in frame.parts if part.slot == slot}
        clean, other = texts(pair.clean), texts(pair.counterfactual)
        assert clean.keys() == other.keys()
        assert {role for role in clean if clean[role] != other[role]} == moved
        assert slot in moved


@pytest.mark.parametrize("name,contrast", CONTRASTS_OF)
def test_a_contrast_changes_only_the_answer_that_depends_on_it(name, contrast):
    rules = dict(pattern(name).answers)
    number_moves = contrast in rules["number"].split() or (
        contrast == "operation" and rules["number"] in ("x - y", "x + y")
    )
    for pair in pairs_of(name, contrast):
        assert pair.changes_answer("number") == number_moves
        assert pair.changes_answer("noun") == (contrast == rules["noun"])


def test_the_operation_contrast_changes_a_difference_to_a_sum():
    for pair in pairs_of("take-away", "operation"):
        x, y = pair.clean["x"], pair.clean["y"]
        assert pair.clean.answer("number") == str(x - y)
        assert pair.counterfactual.answer("number") == str(x + y)
        assert pair.counterfactual.pattern == "get-more"


def test_the_operation_contrast_keeps_the_initial_number():
    assert "operation" in pattern("copy").contrasts
    for pair in pairs_of("copy", "operation"):
        assert pair.clean.answers == pair.counterfactual.answers


def test_the_order_contrast_swaps_the_clauses():
    for pair in pairs_of("take-away", "order"):
        before = [role for role, _, _ in pair.clean.roles].index("op")
        after = [role for role, _, _ in pair.counterfactual.roles].index("op")
        assert {before, after} == {0, 3}


@pytest.mark.parametrize("name,contrast", CONTRASTS_OF)
def test_both_sides_of_a_pair_have_the_same_outcomes_own_answer_first(name, contrast):
    for pair in pairs_of(name, contrast):
        for answer, outcomes in pair.clean.outcomes:
            others = dict(pair.counterfactual.outcomes)[answer]
            assert set(outcomes) == set(others)
            assert len(set(outcomes)) == len(outcomes)
            assert outcomes[0] == pair.clean.answer(answer)
            assert others[0] == pair.counterfactual.answer(answer)


@pytest.mark.parametrize("name,contrast", CONTRASTS_OF)
def test_no_pair_has_the_answer_one_or_takes_zero(name, contrast):
    for pair in pairs_of(name, contrast):
        assert pair.clean.answer("number") != "1"
        assert pair.counterfactual.answer("number") != "1"
        assert pair.clean["y"] != 0


def test_questions_outside_pairs_can_have_the_answer_one():
    drawn = pattern("take-away").sample_questions(60, seed=0)
    assert any(question.answer("number") == "1" for question in drawn)


@pytest.mark.parametrize("contrast", ["d", "color", ""])
def test_an_unknown_contrast_is_refused_with_the_known_ones(contrast):
    with pytest.raises(PatternError, match=r"no contrast .*'operation', 'x', 'y'"):
        pattern("take-away").sample_pairs(contrast, 1, seed=0)


# Answer expressions.


@pytest.mark.parametrize(
    "text,value",
    [("x - y", 3), ("x + y", 7), ("x * y", 10), ("2 * (x + 1) - y", 10), ("thing", "foxes")],
)
def test_an_expression_is_evaluated_over_slots(text, value):
    assert evaluate_expression(text, {"x": 5, "y": 2, "thing": "foxes"}) == value


@pytest.mark.parametrize(
    "text",
    [
        "abs(x)",
        "x.real",
        "x ** y",
        "x / y",
        "x // y",
        "-x",
        "1.5",
        "x if y else 1",
        "[x][0]",
        "'foxes'",
        "True",
        "None",
        "x < y",
        "__import__('os')",
    ],
)
def test_an_expression_with_anything_but_sums_and_products_is_refused(text):
    with pytest.raises(PatternError, match="may hold slots, whole numbers"):
        evaluate_expression(text, {"x": 5, "y": 2})


def test_an_expression_with_an_unknown_slot_is_refused_with_the_known_ones():
    with pytest.raises(PatternError, match=r"names slot 'z': use one of x, y"):
        evaluate_expression("x - z", {"x": 5, "y": 2})


def test_adding_words_is_refused():
    with pytest.raises(PatternError, match="add numbers only"):
        evaluate_expression("x + thing", {"x": 5, "thing": "foxes"})


@pytest.mark.parametrize("text", ["x -", "", "x; y"])
def test_an_expression_with_a_syntax_error_is_refused(text):
    with pytest.raises(PatternError, match="is not an expression"):
        evaluate_expression(text, {"x": 5})


# Matching free text.


def test_a_text_without_a_match_is_refused_with_the_longest_match():
    with pytest.raises(MatchError) as error:
        pattern("take-away").match("If I have two foxes and I juggle one, how many are left?")
    said = str(error.value)
    assert "Nearest is 'if'" in said
    assert "after 'If I have two foxes and I '" in said
    assert "'take away', 'give away', 'lose', 'sell', 'drop'] for op" in said
    assert "finds 'juggle one, how many are left?'" in said


@pytest.mark.parametrize(
    "text,expected",
    [
        (FOX.replace("two", "many"), "a number for x"),
        (FOX.replace("foxes do", "coins do"), "'foxes' again, for thing_asked"),
        (FOX + " Tell me.", "expects 'Answer:', and finds 'Tell me.'"),
        (FOX + " Answer: 1", "the end of the text"),
        (FOX.replace("take away", "pick up"), "for op"),
        (FOX.replace("foxes and", "2 and"), "a noun for thing"),
        ("", "expects 'If I '"),
    ],
)
def test_the_first_mismatch_is_named(text, expected):
    with pytest.raises(MatchError) as error:
        pattern("take-away").match(text)
    assert expected in str(error.value)


def test_a_negative_answer_is_refused():
    with pytest.raises(MatchError, match=r"has no number: x - y is -2\. Take away no more"):
        pattern("take-away").match(FOX.replace("one", "four"))


def test_the_opposite_pattern_matches_the_other_operation():
    text = FOX.replace("take away", "pick up")
    assert pattern("get-more").match(text).answer("number") == "3"


def test_unknown_slots_and_roles_of_a_question_are_refused():
    question = pattern("take-away").match(FOX)
    with pytest.raises(PatternError, match=r"Slot 'd' is not in .*it has \['x', 'thing'"):
        question["d"]
    with pytest.raises(PatternError, match="Role 'name' is not in"):
        question.role_text("name")


# The pattern file.


def test_an_unknown_pattern_is_refused_with_the_known_ones():
    with pytest.raises(PatternError, match=r"'take-awya' is unknown: known are take-away, .*jsonl"):
        pattern("take-awya")


@pytest.mark.parametrize(
    "template", ["I have {x {thing}.", "I [have|have {x}.", "I have x} foxes.", "I [have] {x}."]
)
def test_an_unclosed_bracket_is_refused(template):
    with pytest.raises(PatternError, match="'now' has a bracket that does not close"):
        parse_template("now", template)


def test_a_template_with_a_duplicate_role_is_refused():
    with pytest.raises(PatternError, match=r"uses role \['thing'\] twice: name each occurrence"):
        parse_template("now", "I have {x} {thing}. How many {thing} are there?")


def file_with(tmp_path, old, new):
    text = SHIPPED.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "patterns.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def test_a_user_pattern_file_is_read(tmp_path):
    path = file_with(tmp_path, '"foxes", "coins"', '"gryphons", "coins"')
    words = {q["thing"] for q in list_patterns(path)["take-away"].sample_questions(120, seed=0)}
    assert "gryphons" in words
    assert "foxes" not in words


@pytest.mark.parametrize(
    "old,new,said",
    [
        ("[slots]", "[slots", "is not TOML"),
        ('frames = "copy"', "", "lacks 'frames'"),
        ('minus = "x - y"', "", "lacks 'minus'"),
        ("low = 0", "", "lacks 'low'"),
        ("low = 0", "low = 30", "Numbers from 30 to 20 found"),
        ("low = 0", 'low = "none"', "Numbers from 'none' to 20 found"),
        ("low = 0", f"low = {'1' * 5000}", "is malformed .* digits"),
        ("low = 0", f"low = {'[' * 100_000}", "is malformed .*recursion"),
        ('name = ["Tom"', 'name = []\nmore = ["Tom"', r"words of 'name' are \[\]: give a list"),
        ('noun = ["foxes"', 'noun = "fox"\nmore = ["foxes"', "words of 'noun' are 'fox'"),
        ('x = "number"', 'x = "numeral"', "Slot 'x' has the kind 'numeral': known are number"),
        ('{ base = "take away", s', "{ s", "'base' among them"),
        ('plus = { base = "buy", s = "buys", ed = "bought" }', "", "the same sides"),
        ("[[verbs]]", "[[verb]]", "lacks 'verbs'"),
        ('frames = "moved"', 'frames = "move"', "has the frames 'move': use one of have"),
        ('frames = "moved"', "frames = 3", "is malformed"),
        ('order = "swapped"', 'order = "nobody"', "has the order 'nobody': use one of if, now"),
        ('number = "x - y"', 'number = "x - z"', "names slot 'z': use one of"),
        ('number = "x - y"', f'number = "{"(" * 100_000}"', "is not an expression"),
        ('now = "I [have|have] {x} {thing}. I {op} {y}. [ask|So]', "now = 3 #", "must be text"),
    ],
)
def test_a_malformed_pattern_file_is_refused(tmp_path, old, new, said):
    with pytest.raises(PatternError, match=said):
        list_patterns(file_with(tmp_path, old, new))


def test_a_pattern_file_may_have_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "patterns.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SHIPPED.read_bytes().replace(b"\n", b"\r\n"))
    assert list_patterns(path) == list_patterns(SHIPPED)


def test_draws_end_where_there_are_no_more(monkeypatch):
    monkeypatch.setattr(draws, "_MAX_IN_VAIN", 2_000)
    take = pattern("take-away")
    with pytest.raises(PatternError, match="yielded 0 of 1000000000 questions"):
        take.sample_questions(10**9, seed=0, keep=lambda _: False)
    with pytest.raises(PatternError, match="yielded 0 of 1000000000 pairs"):
        take.sample_pairs("operation", 10**9, seed=0, keep=lambda _: False)
    for draw_some in (take.sample_questions, lambda n, seed: take.sample_pairs("x", n, seed=seed)):
        assert draw_some(0, seed=0) == ()
        with pytest.raises(PatternError, match=r"-1 questions or pairs .* request 0 or more"):
            draw_some(-1, seed=0)


def test_a_number_of_thousands_of_digits_is_no_number_of_a_question():
    with pytest.raises(MatchError, match="expects a number for x"):
        pattern("take-away").match(FOX.replace("two", "2" * 5000))


def test_a_missing_pattern_file_is_refused(tmp_path):
    with pytest.raises(PatternError, match=r"none\.toml' cannot be read: No such file"):
        list_patterns(tmp_path / "none.toml")


def test_a_binary_pattern_file_is_refused(tmp_path):
    (tmp_path / "patterns.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PatternError, match=r"is not UTF-8 .* save it as UTF-8"):
        list_patterns(tmp_path / "patterns.toml")


def test_an_undeclared_slot_is_refused(tmp_path):
    path = file_with(
        tmp_path, 'if = "If I [have|have] {x} {thing}', 'if = "If I {size} {x} {thing}'
    )
    with pytest.raises(PatternError, match="Slot 'size' is unknown: declare it under"):
        list_patterns(path)["take-away"].sample_questions(20, seed=0)


def test_an_undeclared_verb_form_is_refused(tmp_path):
    path = file_with(
        tmp_path,
        'if-named = "If {name} [have|has] {x} {thing} and {op:s}',
        'if-named = "If {name} [have|has] {x} {thing} and {op:ing}',
    )
    with pytest.raises(PatternError, match="has no form 'ing': it has"):
        list_patterns(path)["take-away"].sample_questions(20, seed=0)


@pytest.mark.parametrize("name", [*list_patterns()])
def test_the_repr_of_a_pattern_is_short(name):
    assert len(repr(pattern(name))) <= 120


def test_the_repr_of_a_pattern_says_what_it_asks():
    assert repr(pattern("copy-told", format="few-shot-4")) == (
        "Pattern('copy-told': minus; contrasts operation, x, y, thing, name; format few-shot-4)"
    )
    assert repr(pattern("ioi")) == "Pattern('ioi': 256 pairs; contrasts s2, io; format plain)"
    (pair, *_) = pattern("ioi").user_pairs
    many = tuple(replace(pair, contrast=f"contrast {n}") for n in range(1000))
    assert len(repr(Pattern.of_pairs("name" * 100, "", many))) <= 300
