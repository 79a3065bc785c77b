"""Answers are read where they first differ, however a tokenizer splits numbers."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from probes.errors import OutcomeError
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.question import Pair, Question
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import (
    UnreadableTextsWarning,
    sample_pairs,
    sample_readable_questions,
    tokenize_pairs,
)


def byte_level(digits):
    """Tokenizer of single bytes but for " 1" to " 99"; with "single" digits are split before.

    GPT-2 has " 12" as one token, Qwen writes " ", "1", "2", and Llama-3 " ", "12".
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = [str(n) for n in range(10, 100)]
    vocab = {piece: index for index, piece in enumerate([*alphabet, *numbers])}
    merges = [(n[0], n[1]) for n in numbers]
    if digits == "whole":
        vocab |= {f"Ġ{n}": len(vocab) + k for k, n in enumerate(map(str, range(10)))}
        vocab |= {f"Ġ{n}": len(vocab) + k for k, n in enumerate(numbers)}
        merges = [("Ġ", str(n)) for n in range(10)] + [(f"Ġ{n[0]}", n[1]) for n in numbers]
        merges += [(n[0], n[1]) for n in numbers]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    split = {"single": r"\p{N}", "groups": r"\p{N}{1,3}", "whole": r" ?\p{N}+"}[digits]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


REAL = [pytest.param(name, marks=pytest.mark.real) for name in ("smollm2", "qwen")]
KINDS = ["single", "groups", "whole", "gpt2", "pythia", "stories", *REAL]


@pytest.fixture(scope="module", params=KINDS)
def digits(request):
    """Each way to split numbers: one digit, up to three, whole, and those of real tokenizers."""
    if request.param in ("single", "groups", "whole"):
        return byte_level(request.param)
    if request.param in ("smollm2", "qwen"):
        return AutoTokenizer.from_pretrained(request.getfixturevalue("real_folder")(request.param))
    return request.getfixturevalue("shared_tokenizer")(request.param)


def question(text, name="given", **answers):
    """Question from a text and the outcomes of each answer, the correct one first."""
    return Question(
        text,
        name,
        "given",
        (),
        "digits",
        tuple((key, outcomes[0]) for key, outcomes in answers.items()),
        tuple((key, tuple(outcomes)) for key, outcomes in answers.items()),
        (),
    )


def pair(clean, other):
    """Pair about two numbers, each followed by the same noun."""
    return Pair(
        "x",
        question("5 + 7 =", number=(clean, other), noun=("foxes", "cats")),
        question("5 + 8 =", number=(other, clean), noun=("foxes", "cats")),
    )


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


numbers = st.integers(0, 999).map(str)


@given(numbers, numbers)
@settings(max_examples=30, deadline=None)
def test_two_numbers_are_read_where_their_tokens_first_differ(digits, a, b):
    if a == b:
        return
    pairs = tokenize_pairs(digits, [pair(a, b)])
    for side, (text, own, other) in (
        (pairs.clean, ("5 + 7 =", a, b)),
        (pairs.counterfactual, ("5 + 8 =", b, a)),
    ):
        with_own, with_other = (ids_of(digits, f"{text} {n} foxes") for n in (own, other))
        at = next(
            k for k, both in enumerate(zip(with_own, with_other, strict=False)) if len({*both}) > 1
        )
        readout, shift = (
            side.readout("number"),
            side.ids.shape[1] - len(ids_of(digits, f"{text} {a} foxes")),
        )
        assert int(readout.position[0]) == shift + at - 1
        assert readout.outcomes[0] == (with_own[at], with_other[at])
        # The shared prefix is forced: both prompts have it before the read-out.
        assert side.ids[0, shift : shift + at].tolist() == with_own[:at]
    assert pairs.fully_aligned.all()


@given(numbers, numbers)
@settings(max_examples=20, deadline=None)
def test_prefix_and_answer_give_the_text_again(digits, a, b):
    if a == b:
        return
    batch = tokenize(digits, [pair(a, b).clean])
    readout, noun = batch.readouts
    whole = digits.decode(batch.ids[0], skip_special_tokens=True)
    assert whole.strip() == f"5 + 7 = {a} foxes"
    start, end = int(readout.start[0]) + 1, int(readout.end[0])
    assert digits.decode(batch.ids[0, start:end]).strip() == a
    assert start - 1 <= int(readout.position[0]) < end
    assert digits.decode(batch.ids[0, int(noun.start[0]) + 1 : int(noun.end[0])]).strip() == "foxes"


def test_foils_of_a_number_differ_at_their_own_digits():
    """17 against 12, 7 and 5: 7 and 5 differ at the first digit, 12 at the second."""
    tokenizer = byte_level("single")
    (readout,) = tokenize(tokenizer, [question("20 - 3 =", a=("17", "12", "7", "5"))]).readouts
    assert tokenizer.convert_ids_to_tokens(list(readout.outcomes[0])) == ["1", "7", "5"]
    first = int(readout.position[0])
    read = [(at, *tokenizer.convert_ids_to_tokens(both)) for at, *both in readout.choices[0]]
    assert read == [(first + 1, "7", "2"), (first, "1", "7"), (first, "1", "5")]


def test_one_and_twelve_are_told_apart_by_what_follows():
    tokenizer = byte_level("single")
    pairs = tokenize_pairs(tokenizer, [pair("1", "12"), pair("12", "1")])
    read = [
        tokenizer.convert_ids_to_tokens(list(row)) for row in pairs.clean.readout("number").outcomes
    ]
    assert read == [["Ġ", "2"], ["2", "Ġ"]]
    last = [question("5 + 7 =", a=("1", "12")), question("5 + 7 =", a=("12", "1"))]
    for one in last:
        with pytest.raises(OutcomeError, match=r"'1' .* start with the same token"):
            tokenize(tokenizer, [one])


def write_pairs(path, answers):
    lines = [
        {
            "clean": f"Case {k}: 5 + 7 =",
            "counterfactual": f"Case {k}: 5 + 8 =",
            "answer": a,
            "counterfactual_answer": b,
        }
        for k, (a, b) in enumerate(answers)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return pattern(str(path))


def test_pairs_that_cannot_be_read_are_left_out_with_their_number(tmp_path):
    found = write_pairs(tmp_path / "sums.jsonl", [("12", "13"), ("1", "13"), ("9", "12")])
    tokenizers = (byte_level("single"),)
    with pytest.warns(UnreadableTextsWarning, match="sums: 1 of 3 'given' pairs are left out"):
        kept = sample_pairs(found, "given", 3, tokenizers=tokenizers, seed=0)
    assert [one.clean.answer("answer") for one in kept] == ["12", "9"]
    with pytest.warns(UnreadableTextsWarning, match="sums: 2 of 6 questions are left out"):
        assert len(sample_readable_questions(found, 6, tokenizers=tokenizers, seed=0)) == 4
    # A tokenizer with whole numbers reads them all.
    assert len(sample_pairs(found, "given", 3, tokenizers=(byte_level("whole"),), seed=0)) == 3


def test_pairs_of_which_none_can_be_read_are_refused(tmp_path):
    found = write_pairs(tmp_path / "sums.jsonl", [("1", "13"), ("2", "20")])
    with pytest.raises(OutcomeError, match="start with the same token"):
        sample_pairs(found, "given", 2, tokenizers=(byte_level("single"),), seed=0)
    with pytest.raises(OutcomeError, match="start with the same token"):
        sample_readable_questions(found, 4, tokenizers=(byte_level("single"),), seed=0)


@pytest.mark.filterwarnings("error")
def test_no_question_of_the_pattern_language_is_left_out(digits):
    """Two-digit answers and their foils are read, too."""
    for name in ("take-away", "distractor"):
        found = sample_readable_questions(pattern(name), 40, tokenizers=(digits,), seed=0)
        assert any(len(one.answer("number")) == 2 for one in found)


def test_outcomes_of_interchange_must_all_differ_at_one_token(own):
    """An outcome is known by its first token, so digits are too few for them."""
    pairs = sample_interchange_pairs(pattern("take-away"), 2, tokenizers=(own,), seed=0)
    assert len(pairs) == 2
    with pytest.raises(Exception, match="outcomes that are all different tokens"):
        sample_interchange_pairs(
            pattern("take-away"), 1, tokenizers=(byte_level("single"),), seed=0
        )
