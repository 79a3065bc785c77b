"""Key/value caches: the argument's name in each release, and caches replaced block by block."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from probes.errors import ModelError

_NEW_NAME, _OLD_NAME = "cache", "past_key_values"
CACHE_ARGUMENTS = (_NEW_NAME, _OLD_NAME, "layer_past")


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


def accept_cache_argument(blocks: Any) -> None:  # noqa: ANN401
    """Let attention find the cache that transformers 5.24 and later call `cache`.

    TransformerLens 4.3 looks for it under the earlier names only, and would attend to the new
    tokens alone.
    """
    for block in blocks:
        attention: Any = getattr(block, "attn", None)
        update = getattr(attention, "_update_kv_cache", None)
        known = inspect.signature(block.original_component.forward).parameters
        if update is not None and _NEW_NAME in known:
            attention._update_kv_cache = partial(_update_under_new_name, update)


def _update_under_new_name(
    update: Callable[..., tuple[Tensor, Tensor]], keys: Tensor, values: Tensor, **given: object
) -> tuple[Tensor, Tensor]:
    if given.get(_OLD_NAME) is None:
        given[_OLD_NAME] = given.get(_NEW_NAME)
    return update(keys, values, **given)


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
