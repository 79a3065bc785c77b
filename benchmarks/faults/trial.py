"""One odd input, what must come of it, and the judgment of what came."""

import re
import signal
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probes.errors import ProbeError

Outcome = Literal["right", "clear", "vague", "wrong", "crash"]

_SECONDS = 120  # Most that one input may take.

# What was found: something quoted, a number, or the name of a file, key, class or model.
_FOUND = re.compile(r"\b(?:none|scratch)\b|'[^']*'|\"[^\"]*\"|\d|\w+\.\w+|\w+_\w+|--\w+|\$\.\w+")
# What to do: an imperative at the start of a clause, a rule, or what there is to choose from.
_ADVICE = re.compile(
    r"(?:^|[:.;,)] |\b(?:and|or) )(?:add|ask|call|change|check|choose|close|compare|copy|"
    r"correct|count|create|declare|decode|delete|draw|end|fetch|filter|give|"
    r"install|keep|leave|let|load|make|measure|merge|move|"
    r"name|pick|put|read|remove|rename|request|return|run|save|say|set|shorten|start|take|train|"
    r"try|use|write)\b|did you mean|\b(?:must|may|needs?|known are|known keys are|at most|it has|"
    r"it expects)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class OddInput:
    """An input that people have, and what must come of it.

    Attributes:
        name: The input in words.
        run: Gives it to the kit, in an empty folder.
        error: Kind of error that refuses it; None where it is used.
        check: Whether the value of `run` is right; only without an error.
    """

    name: str
    run: Callable[[Path], object]
    error: type[ProbeError] | None = None
    check: Callable[[object], bool] = bool


@dataclass(frozen=True, slots=True)
class Judgment:
    """What came of an input; `detail` is the message or the reason."""

    name: str
    outcome: Outcome
    detail: str


def judge(odd: OddInput, folder: Path) -> Judgment:
    """Try one input.

    "right": the value is right. "clear": one line of the expected kind says what was found and
    what to do. "vague": it does not. "wrong": another value, another kind, or no refusal.
    "crash": an exception that is no `ProbeError`, or no end.
    """
    signal.signal(signal.SIGALRM, _end)
    signal.alarm(_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = odd.run(folder)
    except ProbeError as error:
        text = str(error)
        if odd.error is None or not isinstance(error, odd.error):
            return Judgment(odd.name, "wrong", f"{type(error).__name__}: {text}")
        return Judgment(odd.name, "clear" if is_clear(text) else "vague", text)
    except (Exception, _NoEndError):
        return Judgment(odd.name, "crash", traceback.format_exc(limit=-3))
    finally:
        signal.alarm(0)
    if odd.error is not None:
        return Judgment(odd.name, "wrong", f"not refused: {value!r:.200}")
    right = odd.check(value)
    return Judgment(odd.name, "right" if right else "wrong", "" if right else f"{value!r:.300}")


class _NoEndError(BaseException):
    """The time is up; no `Exception`, which the code under test may catch."""


def _end(*_: object) -> None:
    raise _NoEndError(f"no end after {_SECONDS} s")


def is_clear(message: str) -> bool:
    """Whether an error is one line that says what was found and what to do."""
    one_line = "\n" not in message and len(message) < 1200
    return one_line and bool(_FOUND.search(message)) and bool(_ADVICE.search(message))
