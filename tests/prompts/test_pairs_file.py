"""Pairs files: texts exactly as given, and one clear error for every malformed line."""

import json

import pytest

from probes.errors import MatchError, PatternError
from probes.prompts import pairs_file
from probes.prompts.catalog import Pattern, pattern
from probes.prompts.pairs_file import DuplicatePairsWarning
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs

GOOD = {
    "clean": "The girl is glad.",
    "counterfactual": "The boy is glad.",
    "answer": "She",
    "counterfactual_answer": "He",
    "contrast": "gender",
    "outcomes": ["It"],
    "roles": {"who": "girl", "mood": "glad"},
    "counterfactual_roles": {"who": "boy", "mood": "glad"},
}
BARE = {key: GOOD[key] for key in ("clean", "counterfactual", "answer", "counterfactual_answer")}


def write(tmp_path, *lines):
    path = tmp_path / "gender.jsonl"
    entries = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(entries), encoding="utf-8")
    return path


def read_one(tmp_path, **changes):
    """The pair of a file with one line."""
    (pair,) = Pattern.from_pairs(write(tmp_path, BARE | changes)).user_pairs
    return pair


def role_texts(question):
    return {role: question.role_text(role) for role, _, _ in question.roles}


def test_a_pairs_file_is_read(tmp_path):
    path = write(tmp_path, GOOD, "", BARE)
    found = Pattern.from_pairs(path)
    assert (found.name, found.contrasts) == ("gender", ("gender", "given"))
    (pair,) = found.sample_pairs("gender", 1, seed=0)
    assert pair.clean.outcomes == (("answer", ("She", "He", "It")),)
    assert pair.counterfactual.outcomes == (("answer", ("He", "She", "It")),)
    assert role_texts(pair.clean) == {"who": "girl", "mood": "glad"}
    assert role_texts(pair.counterfactual) == {"who": "boy", "mood": "glad"}
    assert pair.changes_answer("answer")
    (bare,) = found.sample_pairs("given", 1, seed=0)
    assert bare.clean.roles == ()
    assert bare.clean.outcomes == (("answer", ("She", "He")),)


def test_the_path_of_a_pairs_file_is_a_pattern(tmp_path):
    path = write(tmp_path, GOOD)
    assert pattern(str(path)) == Pattern.from_pairs(path)
    assert pattern(str(path)).sample_questions(1, seed=0)[0].text == "The girl is glad."


def test_questions_of_a_pairs_file_are_the_distinct_prompts_of_both_sides(tmp_path):
    third = BARE | {"counterfactual": "The man is glad."}
    found = Pattern.from_pairs(write(tmp_path, GOOD, third))
    first, second = found.user_pairs
    wanted = (first.clean, first.counterfactual, second.counterfactual)
    assert found.sample_questions(9, seed=0) == wanted
    assert found.sample_questions(1, seed=0) == wanted[:1]


def test_a_pairs_file_has_no_more_pairs_than_lines_and_matches_no_text(tmp_path):
    found = Pattern.from_pairs(write(tmp_path, GOOD))
    with pytest.raises(PatternError, match="1 pairs of contrast 'gender': request at most"):
        found.sample_pairs("gender", 2, seed=0)
    with pytest.raises(MatchError, match="has pairs, not templates"):
        found.match("If I have two foxes and I take away one, how many foxes do I have?")


# Texts are used exactly as given.


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({}, "The girl is glad. She"),
        ({"clean": "The girl is glad.\n"}, "The girl is glad.\nShe"),
        ({"clean": "  The girl is glad: "}, "  The girl is glad: She"),
        ({"answer": "\nShe"}, "The girl is glad.\nShe"),
        ({"answer": " She "}, "The girl is glad. She "),
        ({"delimiter": ""}, "The girl is glad.She"),
        ({"clean": "彼女は", "answer": "嬉しい", "delimiter": ""}, "彼女は嬉しい"),
        ({"clean": "The girl\u2028is\u0085glad."}, "The girl\u2028is\u0085glad. She"),
    ],
)
def test_prompt_and_answer_are_used_exactly_as_given(tmp_path, changes, whole):
    clean = read_one(tmp_path, **changes).clean
    assert (clean.text, clean.full_text) == ((BARE | changes)["clean"], whole)


def test_outcomes_that_are_written_the_same_are_one(tmp_path):
    pair = read_one(tmp_path, outcomes=[" She", "It", " He", "\nShe"])
    assert pair.clean.outcomes == (("answer", ("She", "He", "It", "\nShe")),)


# Roles.


@pytest.mark.parametrize(
    ("text", "roles", "spans"),
    [
        ("She was there when he came", {"who": "he"}, {"who": (19, 21)}),
        ("He said: 'he', not she.", {"who": "he"}, {"who": (10, 12)}),
        (
            "A dog sees a dog.",
            {"first": "dog", "second": "dog"},
            {"first": (2, 5), "second": (13, 16)},
        ),
        (
            "A dog sees a dog.",
            {"verb": "sees", "object": "dog"},
            {"verb": (6, 10), "object": (13, 16)},
        ),
        ("A dog sees a dog.", {"who": ["dog", 1]}, {"who": (2, 5)}),
        ("A dog sees a dog.", {"who": ["dog", 2]}, {"who": (13, 16)}),
        ("The girl's hat", {"who": "girl"}, {"who": (4, 8)}),
        ("首都是巴黎吗", {"city": "巴黎"}, {"city": (3, 5)}),
        ("la ville, cafe\u0301 ou cafe", {"it": "cafe"}, {"it": (19, 23)}),
    ],
)  # fmt: skip
def test_words_of_a_role_are_found_as_whole_words(tmp_path, text, roles, spans):
    line = {"clean": text, "roles": roles, "counterfactual_roles": {}}
    assert read_one(tmp_path, **line).clean.roles == tuple(
        (role, *span) for role, span in spans.items()
    )


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (["girl"], "roles must map a role to its words, found ['girl']"),
        ({"who": "cat"}, "'cat' of role 'who' are not in 'The girl is glad.'"),
        ({"who": "gir"}, "'gir' of role 'who' are part of another word in 'The girl"),
        ({"mood": "glad", "who": "girl"}, "role 'who' are not in '.': give roles in the order"),
        ({"who": ""}, "role 'who' has no words"),
        ({"who": " "}, "role 'who' has no words"),
        ({"who": None}, "role 'who' needs its words, or [words, number of the occurrence]"),
        ({"who": ["girl", 0]}, "found ['girl', 0]"),
        ({"who": ["girl", True]}, "found ['girl', True]"),
        ({"who": ["girl", 2]}, "'girl' of role 'who' occur 1 times, not 2"),
        ({"bos": "girl"}, "'bos' is reserved (bos, rest, reply_…)"),
        ({"rest": "girl"}, "'rest' is reserved"),
        ({"reply_answer": "girl"}, "'reply_answer' is reserved"),
        ({"a@b": "girl"}, "'a@b' may hold letters, digits, spaces, _ and - only"),
        ({"": "girl"}, "'' may hold letters"),
    ],
)
def test_unusable_roles_are_refused_with_the_reason(tmp_path, roles, said):
    with pytest.raises(PatternError) as error:
        read_one(tmp_path, roles=roles, counterfactual_roles={})
    assert str(error.value).startswith("gender.jsonl, line 1: clean: ")
    assert said in str(error.value)


def test_words_that_occur_twice_are_refused_unless_the_pair_says_which(tmp_path):
    line = {"clean": "A dog sees a dog.", "counterfactual_roles": {}}
    with pytest.raises(PatternError, match=r"occur more than once: say which, as in .*\"dog\", 2"):
        read_one(tmp_path, **line, roles={"who": "dog"})


def test_roles_of_the_clean_prompt_that_the_counterfactual_lacks_are_refused(tmp_path):
    with pytest.raises(PatternError, match=r"counterfactual: .*give .*counterfactual_roles"):
        read_one(tmp_path, roles={"who": "girl"})


# Malformed lines.


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{clean", "gender.jsonl, line 2: not JSON"),
        ("[1, 2]", "line 2: needs the texts clean, counterfactual, answer"),
        ("[1, 2]", "and [1, 2] is no object: write one object a line"),
        (GOOD | {"answer": None}, "none of them empty, and answer is None: write it"),
        ({"clean": "The girl"}, "and counterfactual is missing: write it"),
        ({"clean": "The girl"}, "line 2: needs the texts"),
        (GOOD | {"answer": " "}, "none of them empty"),
        (GOOD | {"answer": 3}, "line 2: needs the texts"),
        (GOOD | {"outcomes": [3]}, "outcomes must be a list of texts"),
        (GOOD | {"outcomes": "It"}, "outcomes must be a list of texts"),
        (GOOD | {"contrast": 3}, "contrast must be a text, found 3"),
        (GOOD | {"delimiter": None}, "delimiter must be a text, found None"),
        (GOOD | {"counterfactual_role": {}}, "did you mean 'counterfactual_roles'?"),
        ({"cleen": "a"} | GOOD, "the key 'cleen' is unknown: did you mean 'clean'?"),
        ({"prompt": "a"}, "the key 'prompt' is unknown: known keys are clean, counterfactual"),
        (json.dumps(GOOD)[:-1] + ', "answer": "It"}', "the key 'answer' occurs twice"),
        (BARE | {"counterfactual": GOOD["clean"]}, "are the same text, so the pair tests nothing"),
        (GOOD | {"counterfactual_answer": "She"}, "both answers are 'She', so the pair tests"),
        (GOOD | {"counterfactual_answer": " She"}, "both answers are 'She', so the pair tests"),
        (GOOD | {"counterfactual": "The cat", "answer": "It", "counterfactual_roles": {}},
         "'The girl is glad.' has the answer 'It' here and another one in line 1"),
        (GOOD | {"clean": "a \ud83e fox"}, "a lone surrogate (U+D83E) is not valid Unicode"),
        ('{"clean": ' + "1" * 5000 + "}", "a number has too many digits"),
        ('{"clean": ' + "[" * 100_000, "nested too deeply"),
        (GOOD | {"clean": "a" * 1_000_000}, "clean has 1000000 characters, at most 500000"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_refused_with_its_number(tmp_path, line, said):
    with pytest.raises(PatternError) as error:
        Pattern.from_pairs(write(tmp_path, GOOD, line))
    assert said in str(error.value)
    assert "line 2" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lines", [(), ("", "  ")])
def test_an_empty_pairs_file_is_refused(tmp_path, lines):
    with pytest.raises(PatternError, match="has no pair: write one JSON object a line"):
        Pattern.from_pairs(write(tmp_path, *lines))


def test_a_missing_pairs_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(PatternError, match="cannot be read: No such file"):
        pattern(str(tmp_path / "none.jsonl"))
    with pytest.raises(PatternError, match="cannot be read: Is a directory"):
        Pattern.from_pairs(tmp_path)
    with pytest.raises(PatternError, match=r"cannot be read: embedded null byte\. Check the path"):
        pattern("pairs\0.jsonl")
    with pytest.raises(PatternError, match=r"cannot be read: File name too long"):
        pattern("x" * 5000 + ".jsonl")


# Files as they come.


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\n\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path, mark, end):
    path = tmp_path / "gender.jsonl"
    path.write_bytes(mark + end.join(json.dumps(line).encode() for line in (GOOD, BARE)) + end)
    assert Pattern.from_pairs(path) == Pattern.from_pairs(write(tmp_path, GOOD, BARE))


def test_line_separators_inside_strings_do_not_end_a_line(tmp_path):
    line = BARE | {"clean": "The\u2028girl\u0085is\x0b glad.\u2029"}
    path = write(tmp_path, json.dumps(line, ensure_ascii=False))
    assert Pattern.from_pairs(path).user_pairs[0].clean.text == line["clean"]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_in_another_encoding_is_refused_in_one_line(tmp_path, encoding):
    path = tmp_path / "gender.jsonl"
    line = json.dumps(BARE | {"clean": "The café"}, ensure_ascii=False)
    path.write_bytes(line.encode(encoding))
    with pytest.raises(PatternError, match=r"line 1: not UTF-8 .byte 0x.* save the file as UTF-8"):
        Pattern.from_pairs(path)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs_file, "_MAX_LINE_BYTES", 100)
    with pytest.raises(PatternError, match="line 1: longer than 100 bytes"):
        Pattern.from_pairs(write(tmp_path, GOOD))


def test_a_large_file_is_read_line_by_line_with_a_progress_bar(tmp_path, monkeypatch, capsys):
    lines = [BARE | {"clean": f"Girl {n}", "counterfactual": f"Boy {n}"} for n in range(500)]
    path = write(tmp_path, *lines)
    monkeypatch.setattr(pairs_file, "_BAR_BYTES", 1000)
    assert len(Pattern.from_pairs(path).user_pairs) == 500
    assert "gender.jsonl: 100%" in capsys.readouterr().err


def test_duplicate_pairs_are_removed_and_counted(tmp_path):
    again = GOOD | {"roles": {}, "counterfactual_roles": {}, "answer": " She"}
    with pytest.warns(DuplicatePairsWarning, match="gender.jsonl: 3 of 5 pairs are duplicates"):
        found = Pattern.from_pairs(write(tmp_path, GOOD, BARE, GOOD, again, BARE))
    assert found.title == "pairs of gender.jsonl (3 duplicates removed)"
    assert [pair.contrast for pair in found.user_pairs] == ["gender", "given"]
    assert Pattern.from_pairs(write(tmp_path, GOOD)).title == "pairs of gender.jsonl"


def test_a_newline_before_the_answer_is_part_of_the_reply(tmp_path, letters):
    path = write(tmp_path, BARE | {"answer": "\nShe", "counterfactual_answer": "\nHe"})
    batch = tokenize_pairs(
        letters, sample_pairs(pattern(str(path)), "given", 1, tokenizers=(letters,), seed=0)
    )
    (readout,) = batch.clean.readouts
    tokens = batch.clean.tokens[0]
    assert "".join(tokens) == "The girl is glad.\nShe"
    assert tokens[int(readout.start[0]) + 1] == "\n"
    assert tokens[int(readout.position[0]) + 1] == "S"
