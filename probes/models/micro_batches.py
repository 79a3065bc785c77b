"""Micro-batches: prompts of one measurement in several passes, fewer each where memory runs out."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Int
from torch import Tensor

from probes.errors import OutOfMemoryError
from probes.models.files.memory import free_memory, is_out_of_memory, release_memory
from probes.models.model import Model

T = TypeVar("T")

_FLOAT = 4  # Bytes; logits are read in float32 whatever the dtype of the weights.
# Widths of the residual stream that a block holds per token, all of which gradients keep; and those
# of them that stay until the gradients at other points are there.
_UNITS_PER_TOKEN, _UNITS_PER_POINT = 20, 6


class SmallerBatchesWarning(UserWarning):
    """Prompts are run in smaller batches than planned, because memory ran out."""


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """Batches of one kind of pass.

    Attributes:
        what: Kind of pass, in words, such as "activation patching"; each has a limit of its own.
        size: Most prompts, or patched runs, of one pass.
        width: Tokens of each, in which the limit is kept.
    """

    what: str
    size: int
    width: int

    @classmethod
    def of_gradients(
        cls, what: str, model: Model, width: int, floats: int, *, points: int = 1
    ) -> "MicroBatches":
        """Batches whose passes keep about `floats` activations for gradients at some points."""
        units = _UNITS_PER_TOKEN + _UNITS_PER_POINT * (points - 1)
        each = units * width * model.shape.layers * model.shape.d_model
        return cls(what, max(1, floats // each), width)


def run_micro_batches(
    model: Model,
    rows: Int[Tensor, " row"],
    run: Callable[[Int[Tensor, " row"]], T],
    batches: MicroBatches,
) -> Iterator[T]:
    """Results of a function on consecutive rows, in micro-batches.

    Where a call runs out of memory, what it holds is freed, and the same rows run again in batches
    of half the size. The model keeps this limit, for the rest of the rows and for later calls.
    Results are those of larger batches but for rounding.

    Args:
        model: Model that runs.
        rows: Numbers of prompts, or of patched runs.
        run: Function of some of the rows; it may be called again with a part of these.
        batches: Their size, and the kind of pass.

    Raises:
        OutOfMemoryError: One row alone does not fit.
    """
    what, width = batches.what, max(1, batches.width)
    most = model.batch_tokens.get(what, batches.size * width) // width
    size, failed = max(1, min(batches.size, most)), 0
    while len(rows):
        part = rows[:size]
        results, problem = _attempt(run, part)
        if results:
            if failed:
                _warn(model, what, failed, size)
            rows, failed = rows[len(part) :], 0
            yield results.pop()
            continue
        release_memory(model.device)
        if len(part) == 1:
            raise OutOfMemoryError(_describe(model, batches, problem))
        size, failed = len(part) // 2, failed or len(part)
        model.batch_tokens[what] = size * width


def _attempt(
    run: Callable[[Int[Tensor, " row"]], T], rows: Int[Tensor, " row"]
) -> tuple[list[T], str]:
    """The result alone, or none and what was said where memory ran out.

    The error ends here, because its traceback holds the tensors of the failed call.
    """
    try:
        return [run(rows)], ""
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if isinstance(error, OutOfMemoryError) and len(rows) == 1:
            raise  # It names what did not fit within the call.
        return [], " ".join(str(error).split())


def fitting_prompts(model: Model, most: int, *, width: int, read: int = 1, kept: int = 0) -> int:
    """Prompts of a forward pass that take at most half of the free memory, no more than `most`.

    An estimate: the activations of one block, its attention patterns, and float32 logits of the
    positions that are read, with a copy of each. At least 1; `most` where the free memory of the
    device is not known.

    Args:
        model: Model that runs.
        most: Upper limit.
        width: Tokens of each prompt.
        read: Positions whose logits are computed.
        kept: Activations that are kept of each block until the end, in widths of the residual
            stream per token.
    """
    if (free := free_memory(model.device)) is None:
        return most
    shape = model.shape
    floats = width * (_UNITS_PER_TOKEN * shape.d_model + 3 * shape.heads * width)
    floats += width * kept * shape.layers * shape.d_model + 3 * read * shape.d_vocab
    return max(1, min(most, free // 2 // (_FLOAT * floats)))


def _warn(model: Model, what: str, asked: int, size: int) -> None:
    warnings.warn(
        f"Memory ran out in {what} of {model.name} on {model.device} with {asked} prompts in a "
        f"pass: {size} run in a pass from here on, which takes longer and changes results by no "
        "more than rounding",
        SmallerBatchesWarning,
        stacklevel=3,
    )


def _describe(model: Model, batches: MicroBatches, problem: str) -> str:
    half = "" if model.dtype.itemsize < _FLOAT else 'load the model with dtype="bfloat16", '
    return (
        f"Memory ran out in {batches.what} of {model.name} on {model.device} with a single prompt "
        f"of {batches.width} tokens ({problem[:120].rstrip('. ')}): give fewer prompts or shorter "
        f"ones, {half}or use another device"
    )
