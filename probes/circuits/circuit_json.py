"""Circuits as JSON: written with an edge a line, and read back with every mistake named."""

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, fields
from itertools import pairwise
from typing import Any

from probes.circuits.graph import ComputationGraph, Edge
from probes.circuits.head_roles import HeadRole
from probes.errors import CircuitError
from probes.result import SCHEMA

EdgeRow = tuple[Edge, float, float]
"""An edge, its score, and its error; NaN if unknown."""

_SIZES = ("layers", "heads", "kv_heads")

# Bounds of what a file may ask for: a graph allocates names and offsets for all heads.
_MAX_SIZE = 1_000
_MAX_HEADS = 50_000


def serialize_circuit(
    model: str,
    graph: ComputationGraph,
    rows: Sequence[EdgeRow],
    protocol: tuple[tuple[str, str], ...],
    head_roles: Sequence[HeadRole] = (),
) -> str:
    """Put a circuit into JSON; an unknown error is null, and roles of heads are there if known."""
    names = (*_SIZES, "parallel", "roles", "role_pairs", "readouts")
    head = {
        "result": "Circuit",
        "schema": SCHEMA,
        "model": model,
        "protocol": protocol,
        "graph": {name: getattr(graph, name) for name in names},
    }
    head |= {"head_roles": [astuple(role) for role in head_roles]} if head_roles else {}
    lines = [
        json.dumps(
            [e.source, e.target, e.source_role, e.target_role, s, None if math.isnan(x) else x],
            allow_nan=False,
        )
        for e, s, x in rows
    ]
    # An edge a line: short to read, and to compare by git.
    edges = ",\n".join(f"  {line}" for line in lines)
    return f'{json.dumps(head, indent=1)[:-2]},\n "edges": [\n{edges}\n ]\n}}\n'


def parse_circuit(
    text: str,
) -> tuple[str, ComputationGraph, list[EdgeRow], tuple[tuple[str, str], ...], tuple[HeadRole, ...]]:
    """Take a circuit out of JSON: model, graph, rows, protocol and roles, as they went in.

    Raises:
        CircuitError: It is no circuit, or one of another schema, or broken.
    """
    try:
        plain = json.loads(text)
    # Brackets without end run out of stack.
    except (ValueError, RecursionError) as error:
        raise CircuitError(f"It is broken JSON, no circuit ({error}): save it again") from error
    if not isinstance(plain, dict) or plain.get("result") != "Circuit":
        raise CircuitError("It is JSON but no circuit: give what Circuit.save has written")
    if plain.get("schema") != SCHEMA:
        raise CircuitError(
            f"It is a circuit of schema {plain.get('schema')!r}, and this version reads {SCHEMA}: "
            "read it with the version of probes that wrote it"
        )
    return (
        _require_text(_require_key(plain, "model"), "model"),
        _parse_graph(_require_key(plain, "graph")),
        [_parse_edge(row) for row in _require_list(_require_key(plain, "edges"), "edges")],
        _parse_pairs(_require_key(plain, "protocol"), "protocol"),
        # Files that were written before heads had roles lack them.
        tuple(map(_parse_head_role, _require_list(plain.get("head_roles", []), "head_roles"))),
    )


def _require_key(plain: object, name: str) -> Any:  # noqa: ANN401
    if not isinstance(plain, dict) or name not in plain:
        raise CircuitError(f"The circuit lacks {name!r}, so it was not saved whole: save it again")
    return plain[name]


def _invalid_value(name: str, value: object, wanted: str) -> CircuitError:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return CircuitError(f"{name!r} of the circuit is {shown}: it must be {wanted}")


def _require_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _invalid_value(name, value, "text")
    return value


def _require_list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise _invalid_value(name, value, "a list")
    return value


def _parse_pairs(value: object, name: str) -> tuple[tuple[str, str], ...]:
    found = []
    for pair in _require_list(value, name):
        if len(_require_list(pair, name)) != 2:
            raise _invalid_value(name, pair, "a list of two")
        found.append((_require_text(pair[0], name), _require_text(pair[1], name)))
    return tuple(found)


def _parse_names(value: object, name: str) -> tuple[str, ...]:
    names = tuple(_require_text(entry, name) for entry in _require_list(value, name))
    if len(set(names)) < len(names) or "" in names:
        raise _invalid_value(name, value, "a list of different names")
    return names


def _parse_graph(plain: object) -> ComputationGraph:
    sizes = [_require_key(plain, name) for name in _SIZES]
    for name, size in zip(_SIZES, sizes, strict=True):
        if type(size) is not int or size < 1:
            raise _invalid_value(name, size, "a whole number of 1 or more")
        if size > _MAX_SIZE:
            raise _invalid_value(name, size, f"at most {_MAX_SIZE:,}")
    layers, heads, kv_heads = sizes
    if layers * heads > _MAX_HEADS:
        raise CircuitError(
            f"The circuit's graph has {layers * heads:,} heads, and at most {_MAX_HEADS:,} are "
            "supported: check its 'layers' and 'heads'"
        )
    if heads % kv_heads:
        raise _invalid_value("kv_heads", kv_heads, f"a divisor of {heads}, the number of heads")
    parallel = _require_key(plain, "parallel")
    if not isinstance(parallel, bool):
        raise _invalid_value("parallel", parallel, "true or false")
    roles = _parse_names(_require_key(plain, "roles"), "roles")
    role_pairs = _parse_pairs(_require_key(plain, "role_pairs"), "role_pairs")
    readouts = _parse_names(_require_key(plain, "readouts"), "readouts")
    unknown = {*(role for pair in role_pairs for role in pair), *readouts} - set(roles)
    if unknown:
        raise CircuitError(
            f"The circuit names the roles {', '.join(map(repr, sorted(unknown)))}, which its graph "
            "lacks: save it again"
        )
    if any(one == other for one, other in pairwise(sorted(role_pairs))):
        raise _invalid_value("role_pairs", role_pairs, "a list of different pairs")
    return ComputationGraph(layers, heads, kv_heads, parallel, roles, role_pairs, readouts)


def _parse_edge(row: object) -> EdgeRow:
    wanted = "source, target, their two roles, a score, and an error or null"
    if not isinstance(row, list) or len(row) != 6:
        raise _invalid_value("edges", row, f"lists of {wanted}")
    *names, score, error = row
    if not all(isinstance(name, str) for name in names) or type(score) not in (int, float):
        raise _invalid_value("edges", row, f"lists of {wanted}")
    if error is not None and type(error) not in (int, float):
        raise _invalid_value("edges", row, f"lists of {wanted}")
    try:
        return Edge(*names), float(score), math.nan if error is None else float(error)
    except OverflowError as overflow:
        raise _invalid_value("edges", row, f"lists of {wanted}") from overflow


def _parse_head_role(row: object) -> HeadRole:
    wanted = "lists of a head, the roles that it writes for and reads from, and two numbers"
    if not isinstance(row, list) or len(row) != len(fields(HeadRole)):
        raise _invalid_value("head_roles", row, wanted)
    head, query, key, fraction, attention = row
    is_number = type(fraction) in (int, float) and type(attention) in (int, float)
    if not all(isinstance(name, str) for name in (head, query, key)) or not is_number:
        raise _invalid_value("head_roles", row, wanted)
    return HeadRole(head, query, key, float(fraction), float(attention))
