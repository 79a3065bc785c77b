"""Result: the base of every value that a measurement returns and that a file can hold.

A result is a frozen dataclass of plain numbers. It prints itself, gives a table, and saves itself
as JSON, CSV or a page. `load_result` reads the JSON back, without torch. Pages register for a type
of result in `probes.viz.registry`. This file finds them late and by name, so that no result
imports a page.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from probes.errors import ResultError
from probes.files import to_jsonable, write_atomic, write_frame

if TYPE_CHECKING:
    import pandas as pd
    from cattrs import Converter

R = TypeVar("R", bound="Result")

SCHEMA = 3
"""Version of the saved form of all results."""

HOMES = {
    "Circuit": "circuits.circuit",
    "ClaimsReport": "claims.result",
    "ClaimsReports": "claims.result",
    "Comparison": "comparison.result",
    "FamilyComparison": "comparison.family_result",
    "FormatFit": "observe.format.result",
    "ModelCheck": "testing.contract.check_result",
    "ModelChecks": "testing.contract.check_result",
    "QuestionReport": "circuits.question.result",
    "RateDistortionCurve": "comparison.rate_distortion.result",
    "TokenSimilarity": "comparison.representations.token_result",
    "Trace": "circuits.result",
    "TraceComparison": "comparison.circuits.trace_result",
    "Walkthrough": "comparison.walkthrough.result",
}
"""Module of each type of result that `load_result` reads."""


class Result(ABC):
    """Base of results: `summary`, `table`, `to_dict`, `save`, `load`, and a page in notebooks."""

    __slots__ = ()

    @abstractmethod
    def summary(self) -> tuple[str, ...]:
        """Return the finding in plain sentences, each with its numbers."""

    @abstractmethod
    def table(self) -> "pd.DataFrame":
        """Return the numbers as a table."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain JSON values; NaN and infinity become null.

        Arrays are rounded to four decimals. `from_dict` is the inverse.
        """
        head = {"result": type(self).__name__, "schema": SCHEMA, "summary": list(self.summary())}
        return head | {
            item.name: to_jsonable(getattr(self, item.name))
            for item in fields(self)  # pyright: ignore[reportArgumentType]
            if is_saved(item)
        }

    @classmethod
    def from_dict(cls: type[R], plain: object) -> R:
        """Return the result that `to_dict` wrote.

        Raises:
            ResultError: It is another type of result, of another schema, or broken.
        """
        found = _from_dict(plain)
        if not isinstance(found, cls):
            raise ResultError(
                f"Expected a saved {cls.__name__}, found a {type(found).__name__}: read it with "
                "probes.load_result"
            )
        return found

    def to_dataframe(self) -> "pd.DataFrame":
        """Return `table()` under the name that pandas users expect."""
        return self.table()

    def picture(self) -> Any:  # noqa: ANN401
        """Return the page about this result, a `probes.viz.picture.Picture`."""
        return page_of(self)

    def save(self, path: str | Path) -> Path:
        """Write the numbers (.json), the table (.csv), the page (.html) or the picture (others).

        Returns the path.

        Raises:
            FigureError: The file cannot be written; then nothing is written.
        """
        path = Path(path)
        match path.suffix.lower():
            case ".json":
                write_atomic(path, json.dumps(self.to_dict(), indent=1).encode())
            case ".csv":
                table = self.table()
                write_frame(table, path, index=table.index.inferred_type == "string")
            case ".html":
                page_of(self).save(path)
            case _:
                self.picture().save(path)
        return path

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read a result that `save` wrote as JSON, without torch.

        Raises:
            ResultError: The file cannot be read, or holds no such result.
        """
        try:
            return cls.from_dict(_read_json(Path(path)))
        except ResultError as error:
            raise ResultError(f"{str(path)[-200:]!r}: {error}") from error

    def _repr_html_(self) -> str:
        return page_of(self)._repr_html_()


def load_result(path: str | Path) -> Result:
    """Read any saved result (.json at `path`), without torch; the file says which type it is.

    Raises:
        ResultError: The file cannot be read, or holds no result of this version.
    """
    return Result.load(path)


def page_of(result: object) -> Any:  # noqa: ANN401
    """Return the page that is registered for a type of result."""
    return import_module("probes.viz.registry").report(result)


def figure_of(result: object, **options: object) -> Any:  # noqa: ANN401
    """Return the drawing that is registered for a type of result."""
    return import_module("probes.viz.registry").figure(result, **options)


def not_saved() -> Any:  # noqa: ANN401
    """Field of a result that `save` leaves out, such as a model's runs; None in a loaded result."""
    return field(default=None, repr=False, metadata={"saved": False})


def is_saved(item: Any) -> bool:  # noqa: ANN401
    """Whether `save` writes a dataclass field."""
    return item.init and item.metadata.get("saved", True)


def _read_json(path: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(
            f"cannot be read as JSON ({getattr(error, 'strerror', None) or error}): give a file "
            "that Result.save has written"
        ) from error


def _from_dict(plain: object) -> Result:
    kind = plain.get("result") if isinstance(plain, dict) else None
    if not isinstance(plain, dict) or not isinstance(kind, str) or kind not in HOMES:
        raise ResultError(
            f"This JSON is no saved result (result: {kind!r}): give a file that Result.save has "
            f"written for one of {', '.join(HOMES)}"
        )
    if plain.get("schema") != SCHEMA:
        raise ResultError(
            f"This {kind} has schema {plain.get('schema')!r}, and this version reads {SCHEMA}: "
            "read it with the version of probes that wrote it, or measure again"
        )
    own = getattr(import_module(f"probes.{HOMES[kind]}"), kind)
    try:
        result = _converter().structure(plain, own)
    except ResultError:
        raise
    except Exception as error:  # A broken file can raise anything in a conversion.
        raise ResultError(
            f"This {kind} is broken ({_first_cause(error)}): save it again"
        ) from error
    try:
        result.summary()  # Each saved result has one: parts without it do not fit together.
    except ResultError:
        raise
    except Exception as error:
        raise ResultError(
            f"The parts of this {kind} do not fit together ({error!r:.200} found): save it again"
        ) from error
    return result


def _first_cause(error: BaseException) -> str:
    """Return the innermost message of nested conversion errors, with the field's path."""
    from cattrs import transform_error
    from cattrs.v import format_exception

    def describe(cause: BaseException, kind: type | None) -> str:
        # The hooks below say what they found.
        return str(cause) if type(cause) is ValueError else format_exception(cause, kind)

    try:
        lines = transform_error(error, format_exception=describe)  # pyright: ignore[reportArgumentType]
        return " ".join("; ".join(lines[:1]).split()) or f"{error!r:.200}"
    except Exception:
        return f"{error!r:.200}"


def _converter() -> "Converter":
    """Return the converter from plain JSON values to dataclasses."""
    import numpy as np
    from cattrs import Converter

    converter = Converter()
    converter.register_structure_hook(float, lambda value, _: _to_float(value))
    converter.register_structure_hook(str, lambda value, _: _checked(value, str))
    converter.register_structure_hook(bool, lambda value, _: _checked(value, bool))
    converter.register_structure_hook(int, lambda value, _: _checked(value, int))
    converter.register_structure_hook_func(
        lambda kind: getattr(kind, "array_type", None) is np.ndarray,
        lambda value, _: np.array(value, dtype=float),
    )
    # A dataclass with `parse` is saved as its text, such as a `Site`.
    converter.register_structure_hook_func(
        lambda kind: isinstance(kind, type) and hasattr(kind, "parse"),
        lambda value, kind: kind.parse(value),
    )
    # A result may be saved in a form of its own, such as a `Circuit`.
    converter.register_structure_hook_func(
        lambda kind: (
            isinstance(kind, type)
            and issubclass(kind, Result)
            and kind.from_dict.__func__ is not Result.from_dict.__func__
        ),  # pyright: ignore[reportFunctionMemberAccess]
        lambda value, kind: kind.from_dict(value),
    )
    return converter


def _to_float(value: object) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.80} is not a number")
    return float(value)


def _checked(value: object, kind: type) -> Any:  # noqa: ANN401
    if type(value) is not kind:
        raise ValueError(f"{value!r:.80} is not of type {kind.__name__}")
    return value
