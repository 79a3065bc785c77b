"""Rounding to the nearest of evenly spaced steps, at any bit width, by rows or by groups."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int32
from torch import Tensor


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix as whole numbers, with what turns them back.

    Attributes:
        levels: Whole numbers of so many bits, a weight each.
        scales: What one step is worth, for each group of each row.
        zeros: The level that stands for zero; None where that is 0 everywhere.
    """

    levels: Int32[Tensor, "row group member"]
    scales: Float[Tensor, "row group"]
    zero_points: Int32[Tensor, "row group"] | None = None

    def dequantize(self) -> Float[Tensor, "row column"]:
        """Turn it back."""
        zeros = 0 if self.zero_points is None else self.zero_points[..., None]
        return rearrange(
            (self.levels - zeros) * self.scales[..., None], "row group member -> row (group member)"
        )


def round_to_nearest(
    weight: Float[Tensor, "row column"], *, bits: int, group: int | None, symmetric: bool
) -> QuantizedMatrix:
    """Round a matrix to the nearest step; what is zero stays zero.

    Args:
        weight: One output a row.
        bits: 2 to 16.
        group: How many weights of a row share a scale, a divisor of its width; None for all.
        symmetric: Whether steps lie evenly about zero: 2 ** bits - 1 of them, of which the
            greatest weight is the last. Otherwise 2 ** bits steps lie from the least weight to
            the greatest, and zero is one of them.
    """
    width = group or weight.shape[1]
    cells = rearrange(weight.float(), "row (group member) -> row group member", member=width)
    # A group of zeros has no step: any will do.
    least = torch.finfo(torch.float32).tiny
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scales = cells.abs().amax(-1) / top
        levels = (cells / scales.clamp(min=least)[..., None]).round()
        return QuantizedMatrix(levels.int(), scales)
    top = 2**bits - 1
    low, high = cells.amin(-1).clamp(max=0), cells.amax(-1).clamp(min=0)
    scales = (high - low) / top
    steps = scales.clamp(min=least)
    zeros = (-low / steps).round()
    levels = ((cells / steps[..., None]).round() + zeros[..., None]).clamp(0, top)
    return QuantizedMatrix(levels.int(), scales, zeros.int())
