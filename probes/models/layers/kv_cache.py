"""Key/value caches: the argument's name in each release, and caches replaced block by block."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from probes.errors import ModelError

CACHE_ARGUMENTS = ("cache", "past_key_values", "layer_past")


@contextmanager
def replaced_caches(blocks: Any, caches: Sequence[object]) -> Iterator[list[dict]]:  # noqa: ANN401
    """Call each block with its own cache; yields the other arguments of each call."""
    calls: list[dict] = []

    def before(block: Any, args: tuple, kwargs: dict) -> tuple[tuple[Tensor], dict]:  # noqa: ANN401
        arguments = dict(zip(_block_arguments(block), args, strict=False)) | kwargs
        hidden = arguments.pop("hidden_states")
        arguments.pop(name := block_cache_argument(block), None)
        calls.append(arguments)
        return (hidden,), arguments | {name: caches[len(calls) - 1]}

    handles = [
        block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks[: len(caches)]
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _block_arguments(block: Any) -> list[str]:  # noqa: ANN401
    return list(inspect.signature(block.original_component.forward).parameters)


def block_cache_argument(block: Any) -> str:  # noqa: ANN401
    """Name of a bridge block's argument for its key/value cache."""
    return cache_argument(block.original_component)


def cache_argument(module: nn.Module) -> str:
    """Name of the key/value cache argument of a Hugging Face model or block.

    Raises:
        ModelError: There is none under a known name.
    """
    known = inspect.signature(module.forward).parameters
    argument = next((slot for slot in CACHE_ARGUMENTS if slot in known), None)
    if argument is None:
        raise ModelError(
            f"{type(module).__name__} takes no key/value cache under a known name: "
            f"{', '.join(known)} found, one of {', '.join(CACHE_ARGUMENTS)} wanted. Use a "
            "decoder such as Llama, GPT-2 or GPT-NeoX, or another release of transformers."
        )
    return argument
