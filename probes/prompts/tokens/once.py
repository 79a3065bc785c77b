"""Context in which each prompt is tokenized once: models that read the same prompts share them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

_KEPT: ContextVar[dict[tuple, Any] | None] = ContextVar("tokenized prompts", default=None)


@contextmanager
def tokenize_once() -> Iterator[None]:
    """Tokenize each prompt once for each tokenizer inside; tokenizers must not change meanwhile.

    Threads take part that run in a copy of this context. A context inside another shares its
    prompts.
    """
    kept = _KEPT.get()
    before = _KEPT.set({} if kept is None else kept)
    try:
        yield
    finally:
        _KEPT.reset(before)


def tokenizing_once() -> Context:
    """A copy of the context, which is as inside `tokenize_once` for as long as it exists."""
    context = copy_context()
    context.run(_KEPT.set, {})
    return context


def each_once(
    tokenize: Callable[[Sequence[tuple]], Sequence[T]], reader: tuple, prompts: Sequence[tuple]
) -> tuple[T, ...]:
    """Tokenize prompts, in such a context only those that were not tokenized before.

    Args:
        tokenize: Tokenizes some of the prompts.
        reader: All else that the result depends on, such as the tokenizer.
        prompts: Prompts.
    """
    kept = _KEPT.get()
    if kept is None:
        return tuple(tokenize(prompts))
    keys = [(reader, prompt) for prompt in prompts]
    new = [key for key in dict.fromkeys(keys) if key not in kept]
    if new:
        kept.update(zip(new, tokenize([prompt for _, prompt in new]), strict=True))
    return tuple(kept[key] for key in keys)
