"""Interchange pairs: the answer of each mix of base and source, recomputed from the slots."""

from dataclasses import replace
from functools import cache

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from probes.errors import PatternError
from probes.prompts import interchange_sampler as interchange_sampler
from probes.prompts.catalog import list_patterns
from probes.prompts.interchange_pairs import BaseFilter, sample_interchange_pairs
from probes.prompts.tokens.pair_batch import tokenize_pairs
from probes.prompts.tokens.tokenization import tokenize_questions
from probes.testing.planted_patterns import MINUS, PLUS, fox_pattern, planted_fox

MIXES = (
    "base", "operation", "x", "y", "operation + x", "operation + y", "x + y", "operation + x + y",
)  # fmt: skip
COPIES = ("copies x", "copies y", "copies source x", "copies source y")
FOX = fox_pattern()
assert FOX.opposite is not None
OPPOSITE = FOX.opposite

# A tokenizer and a pattern; in the last pattern a second person owns objects, too.
CASES = [
    ("fox", "fox"),
    ("own", "get-more"),
    pytest.param(("gpt2", "take-away"), marks=pytest.mark.slow),
    pytest.param(("pythia", "two-owners-more"), marks=pytest.mark.slow),
]


@cache
def fox_tokenizer():
    return planted_fox("template").model.tokenizer


def draw(count=8, *, pattern=FOX, seed=0, **allowed):
    return sample_interchange_pairs(
        pattern, count, tokenizers=(fox_tokenizer(),), seed=seed, base_filter=BaseFilter(**allowed)
    )


@pytest.fixture(scope="module")
def drawn():
    return draw(60)


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request, own, shared_tokenizer):
    """A tokenizer, the pattern of the bases, and their interchange pairs."""
    name, asked = request.param
    if name in ("fox", "own"):
        tokenizer = fox_tokenizer() if name == "fox" else own
    else:
        tokenizer = shared_tokenizer(name)
    pattern = FOX if asked == "fox" else list_patterns()[asked]
    return (
        tokenizer,
        pattern,
        sample_interchange_pairs(pattern, 20, tokenizers=(tokenizer,), seed=0),
    )


def sides(found):
    """Slots of base, source about its object, and source about another."""
    for same, other in zip(found.same, found.other, strict=True):
        assert same.clean == other.clean
        yield tuple(dict(q.slots) for q in (same.clean, same.counterfactual, other.counterfactual))


def expected_number(label, here, there, less):
    """Number of a label, computed from its words; `less` is True where the base subtracts."""
    if label.startswith("copies source "):
        return there[label.split()[-1]]
    if label.startswith("copies "):
        return here[label.split()[-1]]
    taken = label.split(" + ")
    x, y = ((there if slot in taken else here)[slot] for slot in "xy")
    return x - y if less != ("operation" in taken) else x + y


# Outcomes.


def test_number_labels_are_all_mixes_and_all_copies(case):
    _, pattern, found = case
    bystander = ("copies d",) if "two-owners" in pattern.name else ()
    assert found.number_labels == (*MIXES, *COPIES, *bystander)
    assert found.object_labels == ("base", "thing", *(("other_thing",) if bystander else ()))
    assert found.pattern == pattern.name
    assert found.source_label == "operation + x + y"


def test_each_label_has_the_number_of_its_mix(case):
    _, pattern, found = case
    for index, (here, _, there) in enumerate(sides(found)):
        for label in found.number_labels:
            wanted = expected_number(label, here, there, pattern.operation == "minus")
            assert found.target_number(index, label) == str(wanted)


def test_ten_numbers_leave_all_mixes_of_base_and_source_and_no_copies():
    """Tokenizers that read digits one by one have ten numbers, and all outcomes are twelve."""
    narrow = replace(FOX, lexicon=replace(FOX.lexicon, number_range=(0, 9)))
    found = draw(12, pattern=narrow)
    assert found.number_labels == MIXES
    assert found.merged_copies == COPIES
    for pair in found.same:
        numbers = dict(pair.clean.outcomes)["number"]
        assert len(set(numbers)) == len(MIXES)
        assert {int(number) for number in numbers} <= {0, *range(2, 10)}
        assert 1 not in (dict(pair.clean.slots)["x"], dict(pair.counterfactual.slots)["x"])


def test_all_copies_are_outcomes_where_the_range_has_as_many_numbers(drawn):
    assert drawn.merged_copies == ()


def test_object_outcomes_are_those_of_base_source_and_bystander(case):
    _, _, found = case
    for pair, (here, _, there) in zip(found.other, sides(found), strict=True):
        wanted = {"base": here["thing"], "thing": there["thing"]}
        if "other_thing" in here:
            wanted["other_thing"] = here["other_thing"]
        nouns = dict(pair.clean.outcomes)["noun"]
        assert dict(zip(found.object_labels, nouns, strict=True)) == wanted


def test_all_outcomes_of_a_pair_are_different_tokens(case):
    tokenizer, _, found = case
    bases = tokenize_questions(tokenizer, [pair.clean for pair in found.same])
    for row in bases:
        assert [len(tokens) for tokens in row.outcomes] == [
            len(found.number_labels),
            len(found.object_labels),
        ]
        assert all(len(set(tokens)) == len(tokens) for tokens in row.outcomes)


def test_no_number_is_one_or_out_of_range_and_no_operand_is_zero(drawn):
    low, high = FOX.lexicon.number_range
    for index in range(len(drawn)):
        numbers = {label: int(drawn.target_number(index, label)) for label in drawn.number_labels}
        assert all(low <= number <= high and number != 1 for number in numbers.values())
        assert all(numbers[label] > 0 for label in COPIES)


def test_the_first_outcome_is_the_own_answer_on_both_sides(case):
    _, _, found = case
    for pair in (*found.same, *found.other):
        for question in (pair.clean, pair.counterfactual):
            assert [t[0] for _, t in question.outcomes] == [t for _, t in question.answers]
        for (_, here), (_, there) in zip(
            pair.clean.outcomes, pair.counterfactual.outcomes, strict=True
        ):
            assert set(here) == set(there)


def test_all_variables_of_the_source_give_its_answer(case):
    _, _, found = case
    for index, (same, other) in enumerate(zip(found.same, found.other, strict=True)):
        assert found.target_number(index, "base") == same.clean.answer("number")
        for pair in (same, other):
            assert found.target_number(index, found.source_label) == pair.counterfactual.answer(
                "number"
            )


# Differences between base and source.


def test_sources_differ_in_numbers_verb_and_object_and_share_template_and_numerals(case):
    _, pattern, found = case
    own, turned = (set(p.lexicon.verbs_of(p.operation)) for p in (pattern, pattern.flipped()))
    for pair, (here, same, there) in zip(found.other, sides(found), strict=True):
        assert all(here[slot] != there[slot] for slot in ("x", "y", "op", "thing"))
        assert (here["op"] in own, there["op"] in turned) == (True, True)
        assert same == {**there, "thing": here["thing"]}
        assert all(here[slot] == there[slot] for slot in ("d", "other_thing") if slot in here)
        base, source = pair.clean, pair.counterfactual
        assert (base.template, base.numerals) == (source.template, source.numerals)
        assert (base.pattern, source.pattern) == (pattern.name, pattern.flipped().name)


def test_the_flipped_pattern_matches_each_source(drawn):
    for pair in (*drawn.same, *drawn.other):
        read = FOX.flipped().match(pair.counterfactual.text)
        assert (read.slots, read.answers) == (
            pair.counterfactual.slots,
            pair.counterfactual.answers,
        )
        assert FOX.match(pair.clean.text).answers == pair.clean.answers


def test_every_role_has_equal_token_counts_in_base_and_source(case):
    tokenizer, _, found = case
    for pairs in (found.same, found.other):
        batch = tokenize_pairs(tokenizer, pairs)
        assert batch.fully_aligned.all()
        assert batch.clean.role_of.equal(batch.counterfactual.role_of)


def test_pairs_are_aligned_in_all_given_tokenizers(own):
    both = (fox_tokenizer(), own)
    found = sample_interchange_pairs(FOX, 10, tokenizers=both, seed=0)
    assert all(tokenize_pairs(tokenizer, found.other).fully_aligned.all() for tokenizer in both)


@pytest.mark.slow
def test_a_source_is_about_another_person(shared_tokenizer):
    tokenizer = (shared_tokenizer("gpt2"),)
    pattern = list_patterns()["two-owners"]
    found = sample_interchange_pairs(pattern, 24, tokenizers=tokenizer, seed=0)
    for here, _, there in sides(found):
        assert (here["name"] != there["name"], here["other"] != there["other"]) == (True, True)


# Filters.


def test_bases_are_different_texts_that_pass_the_filter():
    found = draw(20, keep=lambda question: int(question["x"]) > 9 and question.template == "now")
    texts = {pair.clean.text for pair in found.same}
    assert len(texts) == len(found) == 20
    assert all(int(here["x"]) > 9 for here, _, _ in sides(found))
    assert {pair.clean.template for pair in found.same} == {"now"}


def test_allowed_words_apply_to_bases_and_sources():
    few = {"thing": ["foxes", "kites", "eggs"], "op": ["lose", "drop", "buy"]}
    for here, same, there in sides(draw(20, allowed_words=few)):
        assert {here["thing"], same["thing"], there["thing"]} <= set(few["thing"])
        assert here["op"] in ("lose", "drop")
        assert same["op"] == there["op"] == "buy"


def test_all_verbs_nouns_templates_and_numerals_occur_without_filters(drawn):
    slots = [(here, there) for here, _, there in sides(drawn)]
    assert {here["op"] for here, _ in slots} == set(MINUS)
    assert {there["op"] for _, there in slots} == set(PLUS)
    nouns = {noun for here, there in slots for noun in (here["thing"], there["thing"])}
    assert nouns == set(FOX.lexicon.words("noun"))
    kinds = {(pair.clean.template, pair.clean.numerals) for pair in drawn.same}
    assert kinds == {(f, n) for f in ("now", "own") for n in ("digits", "words")}


def test_a_seed_fixes_the_sample_and_a_longer_sample_starts_with_the_shorter(drawn):
    one = draw(20)
    assert one == draw(20)
    assert one == drawn.select(range(20))
    texts = {pair.clean.text for pair in one.same}
    assert not texts & {pair.clean.text for pair in draw(20, seed=1).same}


def test_select_keeps_labels_and_sources_in_the_given_order(drawn):
    some = drawn.select([5, 2])
    assert len(some) == 2
    assert (some.number_labels, some.object_labels, some.pattern) == (
        drawn.number_labels,
        drawn.object_labels,
        drawn.pattern,
    )
    assert some.same == (drawn.same[5], drawn.same[2])
    assert some.other == (drawn.other[5], drawn.other[2])
    assert some.target_number(1, "operation") == drawn.target_number(2, "operation")


# Errors.


def answered(number, opposite=None, noun="thing"):
    """The fox pattern with other answers."""
    turned = (("number", opposite or number), ("noun", noun))
    return replace(
        FOX,
        answers=(("number", number), ("noun", noun)),
        opposite=replace(OPPOSITE, answers=turned),
    )


@pytest.mark.parametrize("name", ["copy", "taken", "bystander"])
def test_a_pattern_whose_answer_is_a_copy_is_refused(name):
    with pytest.raises(PatternError, match=f"outcomes of '{name}' collide"):
        draw(pattern=list_patterns()[name])


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (replace(FOX, opposite=None), "has no opposite operation"),
        (replace(FOX, user_pairs=draw(1).same), "has no opposite operation"),
        (replace(FOX, answers=(("noun", "thing"),)), "interchange pairs need a number"),
        (replace(FOX, answers=(("number", "x - y"),)), "then a noun slot"),
        (answered("x - y", "x + y", noun="op"), "then a noun slot"),
        (
            replace(FOX, lexicon=replace(FOX.lexicon, number_range=(0, 6))),
            r"no numbers from \(0, 6\)",
        ),
    ],
)
def test_a_pattern_without_interchange_pairs_is_refused_with_the_reason(pattern, reason):
    with pytest.raises(PatternError, match=reason):
        draw(pattern=pattern)


def test_too_few_different_bases_are_refused_with_their_number(drawn):
    only = drawn.same[0].clean
    with pytest.raises(PatternError, match="Only 1 of 2 bases of 'take-away'"):
        draw(2, keep=lambda question: question == replace(only, outcomes=question.outcomes))


@pytest.mark.slow
def test_a_tokenizer_without_distinct_numbers_has_no_pairs():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "foxes": 1, "eggs": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    blind = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(PatternError, match="Only 0 of 2"):
        sample_interchange_pairs(FOX, 2, tokenizers=(blind,), seed=0)


def test_a_single_noun_is_refused(monkeypatch):
    fill, calls = interchange_sampler.PairSampler._fill_slots, []

    def counted(*args):
        calls.append(None)
        if len(calls) > 5000:
            raise RuntimeError("it never ends")
        return fill(*args)

    monkeypatch.setattr(interchange_sampler.PairSampler, "_fill_slots", counted)
    with pytest.raises(PatternError):
        draw(2, allowed_words={"thing": ["foxes"]})


@pytest.mark.parametrize("words", [{"thing": ["zebras"]}, {"op": ["find"]}])
def test_allowed_words_that_leave_a_slot_empty_are_refused(words):
    with pytest.raises(PatternError):
        draw(2, allowed_words=words)


@pytest.mark.parametrize("words", [{"verb": ["lose"]}, {"x": ["7"]}])
def test_allowed_words_for_an_unknown_or_number_slot_are_refused(words):
    with pytest.raises(PatternError):
        draw(2, allowed_words=words)


def longer_verbs():
    """Verbs that add have two words each, those that take away one."""
    verbs = tuple(
        (("minus", (("base", less),)), ("plus", (("base", f"{more} up"),)))
        for less, more in zip(MINUS, PLUS, strict=True)
    )
    return replace(FOX, lexicon=replace(FOX.lexicon, verbs=verbs))


@pytest.mark.parametrize(
    ("pattern", "words"), [(FOX, {"op": ["lose"]}), (longer_verbs(), {})], ids=["words", "lengths"]
)
def test_a_source_never_has_the_verb_of_its_base(pattern, words):
    try:
        found = draw(4, pattern=pattern, allowed_words=words)
    except PatternError:
        return  # A refusal is correct, too.
    for here, _, there in sides(found):
        assert here["op"] != there["op"]


def test_a_filter_that_keeps_nothing_is_named_in_the_error():
    with pytest.raises(PatternError, match="keep"):
        draw(2, keep=lambda question: False)


@pytest.mark.parametrize(
    "pattern",
    [
        replace(
            FOX,
            answers=FOX.answers[::-1],
            opposite=replace(OPPOSITE, answers=OPPOSITE.answers[::-1]),
        ),
        replace(
            FOX,
            answers=(*FOX.answers, ("moved", "y")),
            opposite=replace(OPPOSITE, answers=(*OPPOSITE.answers, ("moved", "y"))),
        ),
        answered("5", "6"),
    ],
    ids=["noun first", "a third answer", "no number slot"],
)
def test_answers_of_another_form_are_refused_or_sampled(pattern):
    try:
        assert len(draw(2, pattern=pattern)) == 2
    except PatternError as refused:
        assert str(refused)


def test_an_unknown_label_is_refused_with_the_known_ones(drawn):
    with pytest.raises(PatternError, match="operation"):
        drawn.target_number(0, "nothing")
