"""Quantization schemes by name, and round-to-nearest (RTN) at any bit width."""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int32
from torch import Tensor

from probes.errors import ModelError

Backend = Literal["torchao", "bitsandbytes", "rounding"]

SCHEMES = ("int8", "int4", "int2", "bnb-int8", "nf4", *(f"rtn-{bits}" for bits in range(2, 17)))
"""The names that `quantize` takes."""

# The defaults of the libraries.
_DEFAULT_GROUPS = {"int4": 32, "int2": 32, "nf4": 64}

# bitsandbytes has kernels for these block sizes only.
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Scheme:
    """A quantization scheme.

    Attributes:
        name: One of SCHEMES.
        backend: Library that quantizes; "rounding" is the kit's own reference.
        bits: Bits per weight.
        group: Number of weights that share a scale; None for a whole row.
        symmetric: Whether there are no zero points.
    """

    name: str
    backend: Backend
    bits: int
    group: int | None
    symmetric: bool


def parse_scheme(name: str, *, group: int | None, symmetric: bool, widths: set[int]) -> Scheme:
    """Parse the name of a scheme.

    Args:
        name: One of SCHEMES.
        group: Number of weights that share a scale; 0 for a whole row, None for the default.
        symmetric: Whether there are no zero points.
        widths: Numbers of columns of the matrices.

    Raises:
        ModelError: The scheme is unknown, or does not support the group, zero points or widths.
    """
    if name not in SCHEMES:
        raise ModelError(f"There is no scheme {name!r}: {_suggestion(name)}")
    bits = 4 if name == "nf4" else int(re.sub(r"\D", "", name))
    backend: Backend = "rounding" if name.startswith("rtn") else "torchao"
    if name in ("bnb-int8", "nf4"):
        backend = "bitsandbytes"
    if not symmetric and name in ("int8", "bnb-int8", "nf4"):
        raise ModelError(
            f"{name} has no zero points: use symmetric rounding (symmetric=True), or 'rtn-{bits}'."
        )
    chosen = _block_size(group, widths) if name == "nf4" else _group_size(name, group, widths)
    return Scheme(name, backend, bits, chosen, symmetric)


def _suggestion(name: str) -> str:
    listed = f"use {', '.join(SCHEMES[:5])}, or rtn-2 to rtn-16 for any other bit width."
    if not (found := re.search(r"\d+", name)) or name.startswith("rtn"):
        return listed
    bits = int(found[0])
    return f"use 'rtn-{bits}' for {bits} bits." if 2 <= bits <= 16 else listed


def _group_size(name: str, group: int | None, widths: set[int]) -> int | None:
    if group is None:
        usual = _DEFAULT_GROUPS.get(name)
        return usual if usual and all(width % usual == 0 for width in widths) else None
    if name == "bnb-int8" and group:
        raise ModelError(
            f"bnb-int8 has one scale for each row, and group={group} was given: "
            "leave it out, or use 'int8' or 'rtn-8'."
        )
    if group < 0 or (group and any(width % group for width in widths)):
        raise ModelError(
            f"A group of {group} does not divide the rows, which are "
            f"{', '.join(map(str, sorted(widths)))} wide: give a divisor, or 0 for whole rows."
        )
    return group or None


def _block_size(group: int | None, widths: set[int]) -> int:
    # On a CPU, bitsandbytes 0.50 silently misreads blocks that are longer than a row.
    most = min(widths)
    known = [block for block in _BLOCK_SIZES if block <= most]
    if group is None and known:
        return min(_DEFAULT_GROUPS["nf4"], known[-1])
    if group not in known:
        listed = f"give group={' or '.join(map(str, known))}" if known else "use 'rtn-4'"
        raise ModelError(
            f"nf4 does not support blocks of {_BLOCK_SIZES[0] if group is None else group}: they "
            f"have {', '.join(map(str, _BLOCK_SIZES))} weights, and at most as many as the "
            f"shortest row, which has {most}: {listed}."
        )
    return group


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix rounded to integer levels.

    Attributes:
        levels: Integer level of each weight.
        scales: Step size of each group.
        zero_points: Level of zero in each group; None where it is 0 everywhere.
    """

    levels: Int32[Tensor, "row group member"]
    scales: Float[Tensor, "row group"]
    zero_points: Int32[Tensor, "row group"] | None = None

    def dequantize(self) -> Float[Tensor, "row column"]:
        """Return the matrix as floats."""
        zeros = 0 if self.zero_points is None else self.zero_points[..., None]
        return rearrange(
            (self.levels - zeros) * self.scales[..., None], "row group member -> row (group member)"
        )


def round_to_nearest(
    weight: Float[Tensor, "row column"], *, bits: int, group: int | None, symmetric: bool
) -> QuantizedMatrix:
    """Round a matrix to evenly spaced levels; zeros stay zero.

    Args:
        weight: One row per output.
        bits: Bits per weight, 2 to 16.
        group: Number of weights of a row that share a scale, a divisor of the width; None for all.
        symmetric: Whether to use 2 ** bits - 1 levels around zero, up to the largest magnitude;
            otherwise 2 ** bits levels from the minimum to the maximum, one of which is zero.
    """
    width = group or weight.shape[1]
    groups = rearrange(weight.float(), "row (group member) -> row group member", member=width)
    # Avoids a division by zero in groups of zeros.
    least = torch.finfo(torch.float32).tiny
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scales = groups.abs().amax(-1) / top
        levels = (groups / scales.clamp(min=least)[..., None]).round()
        return QuantizedMatrix(levels.int(), scales)
    top = 2**bits - 1
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = (high - low) / top
    steps = scales.clamp(min=least)
    zeros = (-low / steps).round()
    levels = ((groups / steps[..., None]).round() + zeros[..., None]).clamp(0, top)
    return QuantizedMatrix(levels.int(), scales, zeros.int())
