"""Random odd texts: each is tokenized completely and consistently, or refused in one line."""

import json
import random
import unicodedata
import warnings

import pytest

from probes.errors import PatternError, ProbeError
from probes.prompts.catalog import Pattern
from probes.prompts.question import Question
from probes.prompts.tokenization import BOS, tokenize_questions

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
