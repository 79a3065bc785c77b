"""The ways to quantize by name, and which of their dials each of them has."""

import re
from dataclasses import dataclass
from typing import Literal

from probes.errors import ModelError

Backend = Literal["torchao", "bitsandbytes", "rounding"]

SCHEMES = ("int8", "int4", "int2", "bnb-int8", "nf4", *(f"rtn-{bits}" for bits in range(2, 17)))
"""The names that `quantize` takes."""

# How many weights share a scale where nobody says: what the libraries do on their own.
_DEFAULT_GROUPS = {"int4": 32, "int2": 32, "nf4": 64}

# bitsandbytes has kernels for these alone.
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are rounded.

    Attributes:
        name: As in SCHEMES.
        backend: The library that does it; "rounding" is the kit's own reference.
        bits: For each weight.
        group: How many weights share a scale; None for a row.
        symmetric: Whether there are no zero points.
    """

    name: str
    backend: Backend
    bits: int
    group: int | None
    symmetric: bool


def parse_scheme(name: str, *, group: int | None, symmetric: bool, widths: set[int]) -> Scheme:
    """Read a scheme for matrices of these widths.

    Args:
        name: As in SCHEMES.
        group: How many weights share a scale; 0 for a whole row, None for what the scheme does
            on its own.
        symmetric: Whether to do without zero points.
        widths: How many columns the matrices have.

    Raises:
        ModelError: There is no such scheme, or it does not come so.
    """
    if name not in SCHEMES:
        raise ModelError(f"There is no scheme {name!r}: {_suggestion(name)}")
    bits = 4 if name == "nf4" else int(re.sub(r"\D", "", name))
    backend: Backend = "rounding" if name.startswith("rtn") else "torchao"
    if name in ("bnb-int8", "nf4"):
        backend = "bitsandbytes"
    if not symmetric and name in ("int8", "bnb-int8", "nf4"):
        raise ModelError(f"{name} has no zero points: leave symmetric=True, or take 'rtn-{bits}'.")
    chosen = _block_size(group, widths) if name == "nf4" else _group_size(name, group, widths)
    return Scheme(name, backend, bits, chosen, symmetric)


def _suggestion(name: str) -> str:
    listed = f"take {', '.join(SCHEMES[:5])}, or rtn-2 to rtn-16 for any other bit width."
    if not (found := re.search(r"\d+", name)) or name.startswith("rtn"):
        return listed
    bits = int(found[0])
    return f"take 'rtn-{bits}' for {bits} bits." if 2 <= bits <= 16 else listed


def _group_size(name: str, group: int | None, widths: set[int]) -> int | None:
    if group is None:
        usual = _DEFAULT_GROUPS.get(name)
        return usual if usual and all(width % usual == 0 for width in widths) else None
    if name == "bnb-int8" and group:
        raise ModelError(
            f"bnb-int8 has one scale for each row, but group={group} was asked for: "
            "leave it out, or take 'int8' or 'rtn-8'."
        )
    if group < 0 or (group and any(width % group for width in widths)):
        raise ModelError(
            f"A group of {group} does not divide the rows, which are "
            f"{', '.join(map(str, sorted(widths)))} wide: give a divisor, or 0 for whole rows."
        )
    return group or None


def _block_size(group: int | None, widths: set[int]) -> int:
    # Its blocks run on from row to row, but on a processor it reads those that are longer than
    # a row wrongly, and says nothing (0.50).
    most = min(widths)
    known = [block for block in _BLOCK_SIZES if block <= most]
    if group is None and known:
        return min(_DEFAULT_GROUPS["nf4"], known[-1])
    if group not in known:
        listed = f"give group={' or '.join(map(str, known))}" if known else "take 'rtn-4'"
        raise ModelError(
            f"nf4 cannot take blocks of {_BLOCK_SIZES[0] if group is None else group}: they have "
            f"{', '.join(map(str, _BLOCK_SIZES))} weights, and none may be longer than the shortest "
            f"row, which has {most}: {listed}."
        )
    return group
