"""Odd texts and pairs files."""

import json
import unicodedata
from functools import cache
from pathlib import Path

import probes as pb
from benchmarks.faults.trial import OddInput
from probes.errors import BatchError, OutcomeError, PatternError, TokenizerError
from probes.models.model import Model
from probes.prompts.catalog import Pattern, pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs

PAIR = {
    "clean": "The girl is glad.",
    "counterfactual": "The boy is glad.",
    "answer": "She",
    "counterfactual_answer": "He",
}


@cache
def full() -> Model:
    """The shipped model on which texts are tried."""
    return pb.load("full")


TEXTS = {
    "a byte order mark": "\ufeffTom has 2 foxes.",
    "Windows line ends": "Tom has 2 foxes.\r\nHe has a hat.\r\n",
    "a line separator": "Tom has\u20282 foxes.",
    "a next-line character": "Tom has\u00852 foxes.",
    "a no-break space": "Tom\u00a0has 2 foxes.",
    "a zero-width space": "Tom has\u200b 2 foxes.",
    "a soft hyphen": "Tom has fo\u00adxes.",
    "Arabic": "\u0643\u0645 \u062b\u0639\u0644\u0628\u0627 \u0644\u062f\u064a\u061f",
    "a right-to-left override": "Tom \u202ehas\u202c 2 foxes.",
    "an emoji of three characters": "I like 👩\u200d👧 and 🦊.",
    "flags": "🇩🇪🇯🇵",
    "combining marks": "Cafe\u0301 with a\u0308 and n\u0303",
    "sixty combining marks": "a" + "\u0301" * 60,
    "Japanese": "首都はパリですか",
    "Thai": "ฉันมีแมวสองตัว",
    "mathematical letters": "\U0001d54f has 2 foxes",
    "a trailing newline": "Tom has 2 foxes.\n",
    "leading spaces": "   Tom has 2 foxes.",
    "tabs": "Tom\thas\t2 foxes.",
    "a null character": "Tom\x00has 2 foxes.",
    "one character": "T",
    "a number of 100 digits": "9" * 100,
    "another model's special token": "Hello <|endoftext|> you",
}


def spell(text: str) -> bool:
    """Whether tokens of a text spell it, each with one role."""
    tokenizer = full().tokenizer
    batch = tokenize(tokenizer, text)
    ids = batch.ids[0][batch.mask[0]].tolist()
    begins = ids[0] == tokenizer.bos_token_id
    spelled = tokenizer.decode(ids[begins:], clean_up_tokenization_spaces=False)
    forms = [unicodedata.normalize("NFC", one).replace("\u00a0", " ") for one in (spelled, text)]
    return forms[0].split() == forms[1].split() and len(batch.tokens[0]) == len(ids)


def literal_bos(text: str) -> list[int]:
    """Positions of the BOS token in a text that has its name."""
    ids = tokenize(full().tokenizer, text).ids[0]
    return (ids == full().tokenizer.bos_token_id).nonzero()[:, 0].tolist()


def read_raw(folder: Path, raw: bytes) -> tuple:
    """Pairs of a file with these bytes."""
    path = folder / "odd.jsonl"
    path.write_bytes(raw)
    return Pattern.from_pairs(path).user_pairs


def read(folder: Path, *lines: object) -> tuple:
    """Pairs of a file with these lines: texts, or changes of `PAIR`."""
    texts = [x if isinstance(x, str) else json.dumps(PAIR | x, ensure_ascii=False) for x in lines]
    return read_raw(folder, "\n".join(texts).encode("utf-8", "surrogatepass"))


def whole(pairs: tuple) -> str:
    """First clean prompt with its answer."""
    return pairs[0].clean.full_text


def tokenized(folder: Path, change: dict) -> object:
    """Readout of the one pair of a file, on the shipped model."""
    path = folder / "odd.jsonl"
    path.write_text(json.dumps(PAIR | change), encoding="utf-8")
    tokenizer = full().tokenizer
    pairs = sample_pairs(pattern(str(path)), "given", 1, tokenizers=(tokenizer,), seed=0)
    return tokenize_pairs(tokenizer, pairs).clean.readouts[0]


LINE = json.dumps(PAIR)
ESCAPED = LINE.replace("glad", "glad \\ud83e\\udd8a")
NEW = {"answer": "New York", "counterfactual_answer": "New Zealand"}

READ_FILES = {
    "a byte order mark": (lambda f: read_raw(f, b"\xef\xbb\xbf" + LINE.encode()), len),
    "Windows line ends": (lambda f: read_raw(f, f"{LINE}\r\n\r\n".encode()), len),
    "no line end": (lambda f: read_raw(f, LINE.encode()), len),
    "blank lines": (lambda f: read_raw(f, f"\n  \n{LINE}\n\n".encode()), len),
    "a line separator in a text": (
        lambda f: read(f, {"clean": "The\u2028girl\u0085 is"}),
        lambda p: whole(p) == "The\u2028girl\u0085 is She",
    ),
    "an escaped emoji": (lambda f: read_raw(f, ESCAPED.encode()), lambda p: "🦊" in whole(p)),
    "a prompt that ends in a newline": (
        lambda f: read(f, {"clean": "Q: who?\n"}),
        lambda p: whole(p) == "Q: who?\nShe",
    ),
    "an answer that begins with a newline": (
        lambda f: read(f, {"answer": "\nShe"}),
        lambda p: whole(p).endswith(".\nShe"),
    ),
    "a language without spaces": (
        lambda f: read(f, {"clean": "彼女は", "answer": "嬉しい", "delimiter": ""}),
        lambda p: whole(p) == "彼女は嬉しい",
    ),
    "right-to-left text": (
        lambda f: read(f, {"clean": "שלום לך", "roles": {"who": "לך"}, "counterfactual_roles": {}}),
        lambda p: p[0].clean.role_text("who") == "לך",
    ),
    "a role with combining marks": (
        lambda f: read(
            f, {"clean": "cafe\u0301 ou cafe", "roles": {"it": "cafe"}, "counterfactual_roles": {}}
        ),
        lambda p: p[0].clean.roles == (("it", 9, 13),),
    ),
    "a role in Japanese": (
        lambda f: read(
            f, {"clean": "首都は巴里", "roles": {"c": "巴里"}, "counterfactual_roles": {}}
        ),
        lambda p: p[0].clean.roles == (("c", 3, 5),),
    ),
    "words that stand twice, numbered": (
        lambda f: read(
            f, {"clean": "A dog sees a dog", "roles": {"w": ["dog", 2]}, "counterfactual_roles": {}}
        ),
        lambda p: p[0].clean.roles == (("w", 13, 16),),
    ),
    "four copies of a pair": (lambda f: read(f, {}, {}, {}, {}), lambda p: len(p) == 1),
    "20,000 lines": (
        lambda f: read(
            f, *({"clean": f"Girl {n}", "counterfactual": f"Boy {n}"} for n in range(20_000))
        ),
        lambda p: len(p) == 20_000,
    ),
    "answers that share their first word": (
        lambda f: tokenized(f, NEW),
        lambda r: bool((r.position > r.start).all()),
    ),
    "a file of one pair on the gate": (
        lambda f: pb.gate(full(), _one_pair(f), prompts=8)[0].state,
        "too few to tell".__eq__,
    ),
}


def _one_pair(folder: Path) -> Pattern:
    read(folder, {})
    return Pattern.from_pairs(folder / "odd.jsonl")


def _loop(folder: Path) -> Path:
    path = folder / "loop.jsonl"
    path.symlink_to(path)
    return path


ROLES = {"counterfactual_roles": {}}
REFUSED_FILES = {
    "a misspelt key": {"counterfactual_role": {}},
    "an unknown key": {"prompt": "a"},
    "a null answer": {"answer": None},
    "a number as an answer": {"answer": 7},
    "an empty answer": {"answer": ""},
    "an answer of white space": {"answer": " \n"},
    "an empty prompt": {"clean": ""},
    "equal answers": {"answer": "He"},
    "answers that differ in a space": {"answer": " He"},
    "clean = counterfactual": {"clean": PAIR["counterfactual"]},
    "a lone surrogate": {"clean": "a \ud83e fox"},
    "a prompt of 1 MB": {"clean": "fox " * 250_000},
    "outcomes that are no list": {"outcomes": "It"},
    "a contrast that is a number": {"contrast": 3},
    "a delimiter that is null": {"delimiter": None},
    "roles as a list": {"roles": ["girl"]},
    "a role that stands twice": {"clean": "A dog sees a dog", "roles": {"w": "dog"}, **ROLES},
    "a role inside a word": {"roles": {"who": "gir"}, **ROLES},
    "a role that is not in the text": {"roles": {"who": "cat"}, **ROLES},
    "a role that only the clean text has": {"roles": {"who": "girl"}},
    "roles in another order": {"roles": {"mood": "glad", "who": "girl"}, **ROLES},
    "roles that overlap": {"roles": {"a": "The girl", "b": "girl is"}, **ROLES},
    "an empty role": {"roles": {"who": ""}, **ROLES},
    "a role of white space": {"roles": {"who": " "}, **ROLES},
    "the role 0 of an occurrence": {"roles": {"who": ["girl", 0]}, **ROLES},
    "a role that is reserved": {"roles": {"rest": "girl"}, **ROLES},
    "a role without a name": {"roles": {"": "girl"}, **ROLES},
    "a role with @ in its name": {"roles": {"a@b": "girl"}, **ROLES},
}
RAW_FILES = {
    "an empty file": b"",
    "blank lines only": b"\n \n",
    "Latin-1": '{"clean": "café"}'.encode("latin-1"),
    "UTF-16": LINE.encode("utf-16"),
    "old Mac line ends": f"{LINE}\r{LINE}".encode(),
    "a JSON array": f"[{LINE}]".encode(),
    "an object over several lines": json.dumps(PAIR, indent=1).encode(),
    "a truncated line": LINE[:-9].encode(),
    "a duplicate key": (LINE[:-1] + ', "answer": "It"}').encode(),
    "NaN as an answer": LINE.replace('"She"', "NaN").encode(),
    "a number of 5,000 digits": LINE.replace('"She"', "1" * 5000).encode(),
    "100,000 brackets": b'{"clean": ' + b"[" * 100_000,
    "a line of 9 MB": b" " * 9_000_000 + LINE.encode(),
    "CSV": b"clean,counterfactual\nThe girl,The boy\n",
    "null bytes": b"\x00" * 100,
    "an escaped lone surrogate": LINE.replace("girl", "\\ud83e").encode(),
}


def inputs() -> list[OddInput]:
    """All odd texts and pairs files."""
    found = [OddInput(f"text: {name}", lambda _, t=text: spell(t)) for name, text in TEXTS.items()]
    tokenizer = full().tokenizer
    found += [
        OddInput("text: a special token inside", lambda _: literal_bos("a <bos> b") == [0, 3]),
        OddInput("text: a special token in front", lambda _: literal_bos("<bos>a b") == [0]),
    ]
    for name, text in {
        "nothing": "",
        "white space": " \n\t",
        "a lone surrogate": "a \ud83e fox",
        "1 MB": "fox " * 250_000,
        "more than the context": "fox " * 300,
    }.items():
        run = lambda _, t=text: tokenize(full(), t)  # noqa: E731
        found.append(OddInput(f"text: {name}", run, BatchError))
    one = Question.from_text("Tom has 2 foxes.")
    found += [
        OddInput("text: no prompt at all", lambda _: tokenize(tokenizer, []), BatchError),
        OddInput(
            "text: a tokenizer without offsets",
            lambda _: tokenize_pairs(_Slow(), _pairs(one)),
            TokenizerError,
        ),
    ]
    found += [
        OddInput(f"pairs: {name}", run, check=lambda value, test=test: bool(test(value)))
        for name, (run, test) in READ_FILES.items()
    ]
    found += [
        OddInput(f"pairs: {name}", lambda f, c=change: read(f, c), PatternError)
        for name, change in REFUSED_FILES.items()
    ]
    found += [
        OddInput(f"pairs: {name}", lambda f, r=raw: read_raw(f, r), PatternError)
        for name, raw in RAW_FILES.items()
    ]
    other = {"counterfactual": "The cat", "answer": "It"}
    prefix = {"answer": "New", "counterfactual_answer": "New York"}
    found += [
        OddInput("pairs: one prompt, two answers", lambda f: read(f, {}, other), PatternError),
        OddInput("pairs: an answer inside another", lambda f: tokenized(f, prefix), OutcomeError),
        OddInput("pairs: a missing file", lambda f: pattern(str(f / "no.jsonl")), PatternError),
        OddInput("pairs: a folder", lambda f: Pattern.from_pairs(f), PatternError),
        OddInput("pairs: a symlink loop", lambda f: Pattern.from_pairs(_loop(f)), PatternError),
        OddInput("pairs: a null in the name", lambda _: pattern("a\0.jsonl"), PatternError),
        OddInput(
            "pairs: a name of 5,000 letters", lambda _: pattern("a" * 5000 + ".jsonl"), PatternError
        ),
        OddInput("pairs: a .json name", lambda _: pattern("pairs.json"), PatternError),
        OddInput("pairs: more than there are", lambda f: _sample(f, "given", 9), PatternError),
        OddInput("pairs: an unknown contrast", lambda f: _sample(f, "gender", 1), PatternError),
    ]
    return found


class _Slow:
    """A tokenizer without offsets."""

    is_fast = False


def _pairs(question: Question) -> list:
    return [type("Pair", (), {"clean": question, "counterfactual": question})()]


def _sample(folder: Path, contrast: str, count: int) -> tuple:
    read(folder, {})
    path = folder / "odd.jsonl"
    return sample_pairs(pattern(str(path)), contrast, count, tokenizers=(), seed=0)
