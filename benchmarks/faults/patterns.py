"""Odd pattern files, and odd questions to patterns."""

from functools import cache
from pathlib import Path

from benchmarks.faults.trial import OddInput
from probes.errors import MatchError, PatternError, ProbeError
from probes.files import data_folder
from probes.prompts.catalog import list_patterns, pattern
from probes.prompts.question import evaluate_expression

FOX = "If I have two foxes and I take away one, how many foxes do I have?"


@cache
def shipped() -> str:
    """Text of the shipped pattern file."""
    return (data_folder() / "patterns.toml").read_text(encoding="utf-8")


def changed(folder: Path, old: str, new: str) -> str:
    """First question of take-away, from the shipped file with one change."""
    assert old in shipped(), old
    return written(folder, shipped().replace(old, new, 1).encode())


def written(folder: Path, content: bytes) -> str:
    """First question of take-away, from a file with this content; pairs are drawn as well."""
    path = folder / "patterns.toml"
    path.write_bytes(content)
    found = list_patterns(path)["take-away"]
    for contrast in found.contrasts:
        found.sample_pairs(contrast, 2, seed=0)
    return found.sample_questions(20, seed=0)[0].text


FRAME = 'if = "If I [have|have] {x} {thing} and I {op} {y}, [ask|how many]'
REFUSED = {
    "a slot that is not declared": (FRAME, FRAME.replace("{x}", "{xx}")),
    "a bracket that does not close": (FRAME, FRAME.replace("{x}", "{x")),
    "a role that occurs twice": (FRAME, FRAME.replace("{y}", "{x}")),
    "a verb form that no verb has": (FRAME, FRAME.replace("{op}", "{op:ing}")),
    "a frame that is a number": (
        FRAME + ' {thing_asked=thing} do I have? [answer|Answer:]"',
        "if = 3",
    ),
    "a frame that is empty": (
        FRAME + ' {thing_asked=thing} do I have? [answer|Answer:]"',
        'if = ""',
    ),
    "an answer with code": ('number = "x - y"', "number = \"__import__('os').getcwd()\""),
    "an answer with a division": ('number = "x - y"', 'number = "x / y"'),
    "an answer with an unknown slot": ('number = "x - y"', 'number = "x - z"'),
    "an answer that adds words": ('number = "x - y"', 'number = "x + thing"'),
    "an answer that is no expression": ('number = "x - y"', 'number = "x -"'),
    "an answer that is a number": ('number = "x - y"', "number = 7"),
    "an answer of 5,000 digits": ('number = "x - y"', f'number = "{"1" * 5000}"'),
    "an answer of 100,000 brackets": ('number = "x - y"', f'number = "{"(" * 100_000}"'),
    "an opposite that does not exist": ('opposite = "get-more"', 'opposite = "get-less"'),
    "an operation that does not exist": ('operation = "minus"', 'operation = "times"'),
    "frames that do not exist": ('frames = "have"', 'frames = "having"'),
    "frames that are a number": ('frames = "have"', "frames = 3"),
    "a pattern without a title": ('title = "have x, take away y"', ""),
    "an order that names no frame": ('order = "swapped"', 'order = "nobody"'),
    "numbers from high to low": ("low = 0\nhigh = 20", "low = 20\nhigh = 0"),
    "numbers that are words": ("low = 0", 'low = "none"'),
    "no number words at all": ("[numbers]", "[nothing]"),
    "a list of names that is empty": ('name = ["Tom"', 'name = []\nname2 = ["Tom"'),
    "nouns that are one text": ('noun = ["foxes"', 'noun = "foxes"\nnoun2 = ["foxes"'),
    "a verb without its opposite": (
        'plus = { base = "pick up", s = "picks up", ed = "picked up" }',
        "",
    ),
    "a verb without a base form": ('{ base = "take away", s', "{ s"),
    "a kind of slot that does not exist": ('x = "number"', 'x = "numeral"'),
    "a key that occurs twice": ("low = 0", "low = 0\nlow = 1"),
    "a verb that is one text": (
        'minus = { base = "take away", s = "takes away", ed = "took away" }',
        'minus = "take away"',
    ),
}
FILES = {
    "an empty file": b"",
    "Latin-1": "title = 'café'".encode("latin-1"),
    "JSON": b'{"pattern": {}}',
    "numbers for all tables": b"pattern = 3\nframes = 3\nslots = 3\nnumbers = 3\nverbs = "
    b"3\nwords = 3",
    "deep nesting": b"a = " + b"[" * 100_000,
    "a number of 5,000 digits": b"a = " + b"1" * 5000,
}
QUESTIONS = {
    "another question": "How old are you?",
    "an empty text": "",
    "more taken than there is": FOX.replace("two", "one").replace("take away one", "take away two"),
    "a number of 5,000 digits": FOX.replace("two", "2" * 5000),
    "a negative number": FOX.replace("two", "-2"),
    "100,000 letters": "If I have " + "a" * 100_000,
    "a text behind the question": FOX + " And why?",
}
EXPRESSIONS = ("x ** y", "x if y else 1", "f(x)", "x.real", "[x]", "1e999", "True", "'a'", "x @ y")


def _loop(folder: Path) -> object:
    path = folder / "loop.toml"
    path.symlink_to(path)
    return list_patterns(path)


def inputs() -> list[OddInput]:
    """All odd pattern files and questions."""
    found = [
        OddInput(f"pattern: {name}", lambda f, c=change: changed(f, *c), PatternError)
        for name, change in REFUSED.items()
    ]
    found += [
        OddInput(f"pattern file: {name}", lambda f, c=content: written(f, c), PatternError)
        for name, content in FILES.items()
    ]
    found += [
        OddInput(
            "pattern file: Windows line ends",
            lambda f: written(f, shipped().replace("\n", "\r\n").encode()),
        ),
        OddInput(
            "pattern file: a byte order mark",
            lambda f: written(f, b"\xef\xbb\xbf" + shipped().encode()),
        ),
        OddInput(
            "pattern file: a missing file", lambda f: list_patterns(f / "no.toml"), PatternError
        ),
        OddInput("pattern file: a folder", list_patterns, PatternError),
        OddInput("pattern file: a symlink loop", _loop, PatternError),
        OddInput("pattern: an unknown name", lambda _: pattern("fox"), PatternError),
        OddInput("pattern: an empty name", lambda _: pattern(""), PatternError),
        OddInput(
            "question: numbers as digits",
            lambda _: pattern("take-away").match(
                FOX.replace("two", "2").replace("away one", "away 1")
            ),
        ),
        OddInput(
            "question: Arabic digits",
            lambda _: pattern("take-away").match(FOX.replace("two", "\u0662"))["x"] == 2,
        ),
    ]
    found += [
        OddInput(f"question: {name}", lambda _, t=text: pattern("take-away").match(t), MatchError)
        for name, text in QUESTIONS.items()
    ]
    found += [
        OddInput(
            f"expression: {text}",
            lambda _, t=text: evaluate_expression(t, {"x": 3, "y": 2}),
            ProbeError,
        )
        for text in EXPRESSIONS
    ]
    found += [
        OddInput(f"questions: {count}", lambda _, n=count: _sample(n), PatternError)
        for count in (-1, 10**9)
    ]
    return found


def _sample(count: int) -> tuple:
    keep = (lambda _: False) if count > 0 else None  # More than there are.
    return pattern("take-away").sample_questions(count, seed=0, keep=keep)
