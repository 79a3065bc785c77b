"""Odd files of saved results and circuits."""

import copy
import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import probes as pb
from benchmarks.faults.trial import OddInput, is_clear
from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.circuits.result import Trace
from probes.circuits.trace import TraceSettings
from probes.comparison.setup.references import ComparisonSettings
from probes.errors import CircuitError, FigureError, ProbeError, ResultError
from probes.result import SCHEMA, Result, load_result

Json = Any

_MOST_FIELDS = 40  # Fields of a kind that are changed.

VALUES = {
    "null": None,
    "a text": "x",
    "-1": -1,
    "a huge number": 10**30,
    "infinity": float("inf"),
    "true": True,
    "an empty list": [],
    "an empty object": {},
    "nested lists": [[[["x"]]]],
}


@cache
def saved(kind: str) -> dict[str, Any]:
    """Plain JSON of a small result of each kind."""
    graph = ComputationGraph(2, 2, 2)
    edges = (Edge.parse("embed->L0.H1.q"), Edge.parse("L0.H1->logits"))
    if kind == "Circuit":
        return Circuit("m", graph, edges, (0.5, -0.25), (0.125, float("nan"))).to_dict()
    if kind == "Trace":
        return pb.trace("full", settings=TraceSettings(prompts=4)).to_dict()
    settings = ComparisonSettings(prompts=4, draws=1, nulls=1)
    return pb.compare("scratch", "distilled", settings=settings).to_dict()


def paths(plain: Json, path: tuple = ()) -> Iterator[tuple]:
    """Path of each value, with the first entry of each list alone."""
    if path:
        yield path
    items = plain.items() if isinstance(plain, dict) else enumerate(plain[:1])
    for key, value in items:
        if isinstance(value, dict | list):
            yield from paths(value, (*path, key))
        else:
            yield (*path, key)


def changed(plain: Json, path: tuple, value: object) -> Json:
    """Copy with another value at a path."""
    plain = copy.copy(plain)
    plain[path[0]] = changed(plain[path[0]], path[1:], value) if path[1:] else value
    return plain


def faults(kind: str, value: object) -> list[str]:
    """What goes wrong where each field in turn has an odd value: nothing, if all is right.

    The file is refused in one clear line, or read; then all that it says must be had.
    """
    found = []
    known = sorted(paths(saved(kind)), key=str)
    for path in random.Random(0).sample(known, min(len(known), _MOST_FIELDS)):
        try:
            use(Result.from_dict(changed(saved(kind), path, value)))
        except ProbeError as error:
            if not is_clear(str(error)):
                found.append(f"{path}: vague: {error}")
        except Exception as error:
            found.append(f"{path}: {type(error).__name__}: {error!s:.100}")
    return found


def use(result: Result) -> Result:
    """Have all that a result says."""
    result.summary()
    result.table()
    repr(result)
    json.dumps(result.to_dict(), allow_nan=False)
    return result


def read(folder: Path, content: bytes) -> Result:
    """Load a result from a file with this content."""
    path = folder / "result.json"
    path.write_bytes(content)
    return use(load_result(path))


def same(kind: str) -> bool:
    """Whether a result is as it was when it has been saved and loaded."""
    loaded = Result.from_dict(json.loads(json.dumps(saved(kind))))
    return loaded.to_dict() == saved(kind)


def circuit(**graph: object) -> dict[str, Any]:
    """Plain JSON of a circuit whose graph has other sizes."""
    plain = saved("Circuit")
    return plain | {"graph": plain["graph"] | graph}


def edges(*rows: object) -> dict[str, Any]:
    """Plain JSON of a circuit with these edges."""
    return saved("Circuit") | {"edges": list(rows)}


ROW = ["embed", "L0.H1.q", "", "", 0.5, None]
CIRCUITS = {
    "a million layers": lambda: circuit(layers=10**6),
    "10**30 heads": lambda: circuit(heads=10**30, kv_heads=1),
    "0 layers": lambda: circuit(layers=0),
    "a layer and a half": lambda: circuit(layers=1.5),
    "true layers": lambda: circuit(layers=True),
    "groups that do not divide": lambda: circuit(heads=3, kv_heads=2),
    "roles that occur twice": lambda: circuit(roles=["a", "a"]),
    "a readout without a role": lambda: circuit(readouts=["x"]),
    "an edge backwards": lambda: edges(["L1.H0", "L0.H1.q", "", "", 0.5, None]),
    "an edge of a head that is absent": lambda: edges(["embed", "L0.H7.q", "", "", 0.5, None]),
    "an edge of 5,000 digits": lambda: edges(
        ["embed", "L" + "9" * 5000 + ".MLP", "", "", 0.5, None]
    ),
    "an edge without a name": lambda: edges(["", "", "", "", 0.5, None]),
    "an edge twice": lambda: edges(ROW, ROW),
    "an edge with a score of a text": lambda: edges([*ROW[:4], "0.5", None]),
    "an edge with a score of null": lambda: edges([*ROW[:4], None, None]),
    "an edge with a NaN score": lambda: edges([*ROW[:4], float("nan"), None]),
    "an edge with a score of 400 digits": lambda: edges([*ROW[:4], 10**400, None]),
    "an edge with an error below 0": lambda: edges([*ROW[:5], -1.0]),
    "an edge of five": lambda: edges(ROW[:5]),
    "no edges": lambda: {k: v for k, v in saved("Circuit").items() if k != "edges"},
}


def inputs() -> list[OddInput]:
    """All odd results and circuits."""
    text = json.dumps(saved("Circuit")).encode()
    files = {
        "an empty file": b"",
        "half of a file": text[: len(text) // 2],
        "all but the last byte": text[:-1],
        "a file twice": text + text,
        "null bytes": b"\0" * 100,
        "Latin-1": text.replace(b'"m"', b'"\xe9"'),
        "UTF-16": text.decode().encode("utf-16"),
        "a list": b"[]",
        "null": b"null",
        "100,000 brackets": b"[" * 100_000,
        "a number of 5,000 digits": b'{"result": ' + b"1" * 5000 + b"}",
        "another kind of JSON": b'{"result": "os.system"}',
        "a kind that is a list": b'{"result": ["Trace"]}',
        "a schema of the past": b'{"result": "Trace", "schema": 1}',
        "a schema of the future": b'{"result": "Trace", "schema": 99}',
        "a schema that is a text": f'{{"result": "Trace", "schema": "{SCHEMA}"}}'.encode(),
        "nothing but a head": f'{{"result": "Trace", "schema": {SCHEMA}}}'.encode(),
        "an HTML page": b"<!doctype html>",
    }
    found = [
        OddInput(f"result: {name}", lambda f, c=content: read(f, c), ResultError)
        for name, content in files.items()
    ]
    found += [
        OddInput("result: a byte order mark", lambda f: read(f, b"\xef\xbb\xbf" + text)),
        OddInput("result: Windows line ends", lambda f: read(f, text.replace(b"\n", b"\r\n"))),
        OddInput("result: a folder", load_result, ResultError),
        OddInput("result: a missing file", lambda f: load_result(f / "no.json"), ResultError),
        OddInput("result: a symlink loop", _loop, ResultError),
        OddInput("result: a null in the name", lambda _: load_result("a\0b"), ResultError),
        OddInput("result: a name of 5,000 letters", lambda _: load_result("a" * 5000), ResultError),
        OddInput("result: a circuit read as a trace", lambda f: _as_trace(f, text), ResultError),
        OddInput(
            "result: saved in a folder that is absent",
            lambda f: _save(f / "no" / "c.json"),
            FigureError,
        ),
        OddInput("result: saved as a folder", _save_as_folder, FigureError),
        OddInput(
            "result: saved with a null in the name", lambda _: _save(Path("a\0.json")), FigureError
        ),
        OddInput("result: saved without a suffix", lambda f: _save(f / "circuit"), FigureError),
        OddInput("result: saved as .xlsx", lambda f: _save(f / "circuit.xlsx"), FigureError),
    ]
    found += [
        OddInput(
            f"circuit: {name}", lambda _, m=make: Circuit.from_json(json.dumps(m())), CircuitError
        )
        for name, make in CIRCUITS.items()
    ]
    for kind in ("Circuit", "Trace", "Comparison"):
        saved(kind)  # Measured before the time of the inputs begins.
        found.append(OddInput(f"{kind}: saved and loaded", lambda _, k=kind: same(k)))
        found += [
            OddInput(
                f"{kind}: each field as {name}",
                lambda _, k=kind, v=value: faults(k, v),
                check=lambda faults: not faults,
            )
            for name, value in VALUES.items()
        ]
    return found


def _loop(folder: Path) -> Result:
    (folder / "loop.json").symlink_to(folder / "loop.json")
    return load_result(folder / "loop.json")


def _as_trace(folder: Path, text: bytes) -> object:
    (folder / "c.json").write_bytes(text)
    return Trace.load(folder / "c.json")


def _save_as_folder(folder: Path) -> Path:
    (folder / "c.json").mkdir()
    return _save(folder / "c.json")


def _save(path: Path) -> Path:
    return Circuit.from_dict(saved("Circuit")).save(path)
