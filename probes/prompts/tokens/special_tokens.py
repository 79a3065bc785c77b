"""Special tokens before a text, and inside it: those that the tokenizer itself writes."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from probes.errors import TokenizerError


class SpecialTokenWarning(UserWarning):
    """A text contains the literal text of a special token."""


def special_prefix(tokenizer: Any, *, add_bos: bool | None = None) -> tuple[int, ...]:  # noqa: ANN401
    """Special tokens that a tokenizer writes before a text: BOS, several tokens, or none.

    Args:
        tokenizer: Fast tokenizer.
        add_bos: True for the declared BOS alone, False for none, None for the tokenizer's own.

    Raises:
        TokenizerError: `add_bos` is True and the tokenizer declares no BOS.
    """
    if add_bos is None:
        encoded = tokenizer("a", return_special_tokens_mask=True)
        return leading_tokens(encoded["input_ids"], encoded["special_tokens_mask"])
    if add_bos and not isinstance(tokenizer.bos_token_id, int):
        raise TokenizerError(
            f"{type(tokenizer).__name__} declares no BOS token: leave add_bos out, or set bos_token"
        )
    return (tokenizer.bos_token_id,) if add_bos else ()


def set_bos(tokenizer: Any, add_bos: bool) -> None:  # noqa: ANN401
    """Make a fast tokenizer write its declared BOS token before each text, or nothing.

    Raises:
        TokenizerError: The tokenizer declares no BOS token to add.
    """
    special_prefix(tokenizer, add_bos=add_bos)
    tokenizer.add_bos_token = add_bos  # Replaces the post-processor.


def leading_tokens(ids: Sequence[int], added: Sequence[int]) -> tuple[int, ...]:
    """Ids before the first one that was not added; `added` is 1 for special tokens."""
    return tuple(ids[: added.index(0) if 0 in added else len(added)])


def warn_about_special_tokens(
    tokenizer: Any,  # noqa: ANN401
    tokens: Iterable[tuple[int, str]],
) -> None:
    """Warn where the text of a token, by its id, is the literal text of a special token."""
    special = set(tokenizer.all_special_ids)
    literal = {
        text.strip(): None
        for token, text in tokens
        if token in special and text.strip() == str(tokenizer.convert_ids_to_tokens(token)).strip()
    }
    if literal:
        warnings.warn(
            f"The tokenizer reads {', '.join(literal)} in a text as a special token, not as "
            "words: this is right for a chat template only",
            SpecialTokenWarning,
            stacklevel=3,
        )
