"""Random odd texts: each is tokenized completely and consistently, or refused in one line."""

import json
import random
import unicodedata
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from probes.errors import PatternError, ProbeError
from probes.files import data_folder, list_models
from probes.prompts.catalog import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.tokenization import BOS, REST, tokenize_questions

PIECES = (
    *("a", "b", "he", "she", " ", "  ", "\n", "\t", ".", ",", "0", "1", "12", "the", "Paris"),
    *("é", "e\u0301", "ß", "İ", "\u200b", "\u2028", "\u0085", "\u00a0", "\ufeff", "\x00"),
    *(
        "首",
        "都",
        "は",
        "ｱ",
        "\u0627",
        "ب",
        "\U0001d54f",
        "🦊",
        "👩\u200d👧",
        "\u202e",
        "<bos>",
        "<s>",
    ),
)


def random_text(rng, most):
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, most)))


def random_question(rng):
    text, answer, foil = random_text(rng, 8), random_text(rng, 3), random_text(rng, 3)
    start = rng.randrange(len(text))
    return Question(
        text=text,
        pattern="",
        template="",
        slots=(),
        numerals="digits",
        answers=(("a", answer),),
        outcomes=(("a", tuple(dict.fromkeys((answer, foil)))),),
        roles=(("role", start, rng.randrange(start, len(text)) + 1),),
        delimiter=rng.choice((" ", "", "\n")),
    )


def squeezed(text):
    """Text without white space, in the form that some tokenizers normalize to."""
    return "".join(unicodedata.normalize("NFC", text).split())


@pytest.mark.parametrize("name", ["own", "gpt2", "pythia", "stories"])
@pytest.mark.filterwarnings("ignore:The tokenizer reads")
def test_tokens_spell_the_text_and_the_answer_ends_it(request, name):
    if name == "own":
        tokenizer = request.getfixturevalue("own")
    else:
        tokenizer = request.getfixturevalue("shared_tokenizer")(name)
    rng, done = random.Random(0), 0
    for _ in range(400):
        question = random_question(rng)
        try:
            (prompt,) = tokenize_questions(tokenizer, (question,))
        except ProbeError as error:
            assert "\n" not in str(error)
            continue
        done += 1
        n = prompt.roles.count(BOS)
        assert prompt.roles[:n] == (BOS,) * n
        assert len(prompt.ids) == len(prompt.roles) == len(prompt.tokens)
        whole = question.full_text
        if tokenizer.bos_token and whole.startswith(tokenizer.bos_token):
            whole = whole.removeprefix(tokenizer.bos_token)
        spelled = tokenizer.decode(list(prompt.ids[n:]), clean_up_tokenization_spaces=False)
        assert squeezed(spelled) == squeezed(whole)
        start, difference, end = (
            each[0] for each in (prompt.answer_starts, prompt.outcome_starts, prompt.answer_ends)
        )
        assert n <= start <= difference < end == len(prompt.ids)
        assert prompt.outcomes[0][0] == prompt.ids[difference]
    assert done > 300


def test_random_lines_of_a_pairs_file_are_read_or_refused_in_one_line(tmp_path):
    rng, read = random.Random(0), 0
    keys = ("clean", "counterfactual", "answer", "counterfactual_answer")
    path = tmp_path / "odd.jsonl"
    for _ in range(400):
        entry = {key: random_text(rng, 4) for key in keys}
        words = entry["clean"][rng.randrange(len(entry["clean"])) :]
        entry |= rng.choice(
            ({}, {"roles": {"r": words}, "counterfactual_roles": {}}, {"outcomes": [words]})
        )
        line = json.dumps(entry, ensure_ascii=rng.random() < 0.5)
        data = bytearray(line.encode())
        if rng.random() < 0.3:  # Damage one byte.
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings(action="error"):
                (pair,) = Pattern.from_pairs(path).user_pairs
        except PatternError as error:
            assert "\n" not in str(error)
            continue
        read += 1
        assert pair.clean.full_text.startswith(pair.clean.text)
        assert pair.clean.full_text.endswith(pair.clean.answer("answer"))
        assert all(pair.clean.text[a:b].strip() for _, a, b in pair.clean.roles)
    assert read > 100


# Properties, for generated texts.

SETTINGS = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), min_size=1, max_size=8)
TEXTS = TEXTS.map("".join).filter(str.strip)
VALID = TEXTS.filter(lambda text: not any(0xD800 <= ord(letter) < 0xE000 for letter in text))


@st.composite
def questions(draw):
    """A question with up to three roles, which do not overlap, at random places of its text."""
    text = draw(VALID)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [
        (f"role{n}", a, b) for n, (a, b) in enumerate(zip(cuts[::2], cuts[1::2], strict=False))
    ]
    answer, foil = draw(st.tuples(VALID, VALID).filter(lambda both: both[0] != both[1]))
    return Question(
        text, "", "", (), "digits", (("a", answer),), (("a", (answer, foil)),), tuple(spans),
        draw(st.sampled_from((" ", "", "\n"))),
    )  # fmt: skip


def distinct_tokenizers():
    """One shipped model for each tokenizer file that is not the same as another."""
    files = {name: data_folder() / "models" / name / "tokenizer.json" for name in list_models()}
    return sorted({path.read_bytes(): name for name, path in files.items()}.values())


@pytest.fixture(scope="module", params=distinct_tokenizers())
def shipped_tokenizer(request):
    return AutoTokenizer.from_pretrained(data_folder() / "models" / request.param)


def check_roles(tokenizer, question):
    """Roles of the tokens against the characters that the tokens cover."""
    try:
        (prompt,) = tokenize_questions(tokenizer, (question,))
    except ProbeError as error:
        assert "\n" not in str(error)
        return False
    whole = question.full_text
    spans = {name: range(a, b) for name, a, b in question.roles}
    spans["reply_a"] = range(len(question.text), len(whole))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    offsets, before = encoded["offset_mapping"], len(prompt.ids) - len(encoded["input_ids"])
    assert prompt.ids[before:] == tuple(encoded["input_ids"])
    assert len(prompt.roles) == len(prompt.ids) == len(prompt.tokens)
    assert set(prompt.roles) <= {BOS, REST, *spans}
    tokens = [
        ({at for at in range(a, b) if not whole[at].isspace()}, role)
        for (a, b), role in zip(offsets, prompt.roles[before:], strict=True)
        if role != BOS
    ]
    for letters, role in tokens:  # A token has a role that it overlaps, or none of them.
        overlapping = [name for name, span in spans.items() if letters & set(span)]
        assert not letters or role in (overlapping or [REST])
    for name, span in spans.items():  # A role has each token of its text that no other shares.
        for at in span:
            owners = {role for letters, role in tokens if at in letters}
            shared = {n for n, s in spans.items() for ls, _ in tokens if at in ls and ls & set(s)}
            assert not owners or owners <= shared
            assert owners == {name} or not owners or shared != {name}
    return True


@SETTINGS
@pytest.mark.filterwarnings("ignore:The tokenizer reads")
@given(question=questions())
def test_every_token_has_one_role_and_roles_cover_their_texts(shipped_tokenizer, question):
    check_roles(shipped_tokenizer, question)


@SETTINGS
@pytest.mark.filterwarnings("ignore:The tokenizer reads")
@given(question=questions())
def test_roles_cover_their_texts_in_each_kind_of_tokenizer(tokenizer, question):
    check_roles(tokenizer, question)


@st.composite
def entries(draw):
    """A line of a pairs file, as a dictionary."""
    clean, other = draw(st.tuples(VALID, VALID).filter(lambda both: both[0] != both[1]))
    answer, foil = draw(
        st.tuples(VALID, VALID).filter(lambda both: both[0].strip() != both[1].strip())
    )
    entry = {"clean": clean, "counterfactual": other, "answer": answer}
    entry["counterfactual_answer"] = foil
    words = clean.split()
    places = st.sets(st.sampled_from(range(len(words))), max_size=2)  # In the order of the text.
    extras = st.fixed_dictionaries(
        {},
        optional={
            "contrast": VALID,
            "delimiter": st.sampled_from(("", " ", "\n")),
            "outcomes": st.lists(VALID, max_size=2),
            "roles": places.map(lambda at: {"ab"[k]: words[n] for k, n in enumerate(sorted(at))}),
        },
    )
    return entry | draw(extras) | {"counterfactual_roles": {}}


# Most are read: a prompt has one answer in all lines.
FILES = st.lists(
    entries(),
    min_size=1,
    max_size=3,
    unique_by=(lambda line: line["clean"], lambda line: line["counterfactual"]),
)


@SETTINGS
@given(lines=FILES, escaped=st.booleans())
def test_a_pairs_file_gives_back_its_texts_or_one_line(tmp_path, lines, escaped):
    path = tmp_path / "generated.jsonl"
    path.write_text(
        "\n".join(json.dumps(line, ensure_ascii=escaped) for line in lines),
        encoding="utf-8",
        newline="",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = Pattern.from_pairs(path).user_pairs
        except PatternError as error:
            assert "\n" not in str(error)
            return
    assert 1 <= len(found) <= len(lines)
    texts = [(line["clean"], line["counterfactual"], line["answer"]) for line in lines]
    for pair in found:
        line = lines[
            texts.index((pair.clean.text, pair.counterfactual.text, pair.clean.answer("answer")))
        ]
        assert pair.counterfactual.answer("answer") == line["counterfactual_answer"]
        for role, words in line.get("roles", {}).items():
            assert pair.clean.role_text(role) == words
    # What was read, written again, reads the same.
    again = [
        {
            "contrast": pair.contrast,
            "clean": pair.clean.text,
            "counterfactual": pair.counterfactual.text,
            "answer": pair.clean.answer("answer"),
            "counterfactual_answer": pair.counterfactual.answer("answer"),
            "outcomes": list(dict(pair.clean.outcomes)["answer"]),
            "delimiter": pair.clean.delimiter,
        }
        for pair in found
    ]
    path.write_text("\n".join(map(json.dumps, again)), encoding="utf-8")
    second = Pattern.from_pairs(path).user_pairs
    assert [(p.contrast, p.clean.full_text, p.counterfactual.full_text) for p in second] == [
        (p.contrast, p.clean.full_text, p.counterfactual.full_text) for p in found
    ]
    assert [p.clean.outcomes for p in second] == [p.clean.outcomes for p in found]
