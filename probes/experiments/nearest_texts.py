"""Texts nearest to a state: nearest neighbors among the states of all tokens of many texts.

texts → states of all their tokens at one layer → nearest texts
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import BatchError, ModelError, SiteError
from probes.interventions.activation_patching import TOKENS_PER_BATCH
from probes.models.model import Model
from probes.models.readout import last_token
from probes.models.site import RESID, RESID_OUT
from probes.prompts.tokens.batch import pad_token_id
from probes.prompts.tokens.special_tokens import special_prefix


@dataclass(frozen=True, slots=True)
class NearestToken:
    """Token of a text that is nearest to a state.

    Attributes:
        text: Text.
        token: Token, as it is in the text.
        similarity: Cosine of both states minus the mean state of all tokens, -1 to 1.
    """

    text: str
    token: str
    similarity: float


@dataclass(frozen=True, eq=False)
class TokenStates:
    """States of all tokens of many texts at one layer.

    Attributes:
        texts: Texts, all different.
        text_index: Index of the text of each token.
        tokens: Tokens, text by text, without special tokens.
        mean: Mean state.
        normalized: States minus the mean, at norm 1.
    """

    texts: tuple[str, ...]
    text_index: Int[Tensor, " row"]
    tokens: tuple[str, ...]
    mean: Float[Tensor, " d_model"]
    normalized: Float[Tensor, "row d_model"]

    def cosines(self, states: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt row"]:
        """Cosine of each state and each token."""
        return _normalize(states.to(self.mean) - self.mean) @ self.normalized.T


@torch.no_grad()
def capture_token_states(model: Model, texts: Sequence[str], layer: int) -> TokenStates:
    """Residual stream before a block at every token of some texts; repeated texts count once.

    Args:
        model: Decoder with a fast tokenizer.
        texts: Texts.
        layer: Block, from 0; the number of blocks for the output of the last one.

    Raises:
        SiteError: The model has no such layer.
        BatchError: There is no text.
        ModelError: The model has no tokenizer, or a text is too long for it.
    """
    texts = tuple(dict.fromkeys(texts))
    if not 0 <= layer <= model.shape.layers:
        raise SiteError(f"{model.name} has layers 0 to {model.shape.layers}, not {layer}")
    if not any(text.strip() for text in texts):
        raise BatchError(f"All {len(texts)} texts are empty: give at least one text")
    ids, tokens = _tokenize(model, texts)
    order = sorted(range(len(texts)), key=lambda n: len(ids[n]))
    kept: dict[int, Tensor] = {}
    while order:
        # Texts of similar length are one batch, to save padding.
        size = _batch_size(ids, order)
        batch, order = order[:size], order[size:]
        rows = _layer_states(model, [ids[n] for n in batch], layer)
        for n, states in zip(batch, rows, strict=True):
            kept[n] = states[len(states) - len(tokens[n]) :]
    states = torch.cat([kept[n] for n in range(len(texts))]).float()
    sizes = torch.tensor([len(row) for row in tokens], device=states.device)
    text_index = torch.arange(len(texts), device=states.device).repeat_interleave(sizes)
    mean = states.mean(0)
    flat = tuple(token for row in tokens for token in row)
    return TokenStates(texts, text_index, flat, mean, _normalize(states - mean))


def nearest_texts(
    model: Model,
    texts: Sequence[str] | TokenStates,
    layer: int,
    state: Float[Tensor, " d_model"],
    *,
    count: int = 5,
) -> tuple[NearestToken, ...]:
    """Texts with the tokens nearest to a state of the same layer, nearest first.

    A text counts once, with its nearest token. For many states give the result of
    `capture_token_states` in place of texts; errors as there.
    """
    known = texts if isinstance(texts, TokenStates) else capture_token_states(model, texts, layer)
    cosines = known.cosines(rearrange(state, "d_model -> 1 d_model"))
    best = max_per_text(known, cosines)[0]
    nearest = []
    for text in best.argsort(descending=True, stable=True)[:count].tolist():
        token = int(torch.where(known.text_index == text, cosines[0], -torch.inf).argmax())
        nearest.append(NearestToken(known.texts[text], known.tokens[token], float(best[text])))
    return tuple(nearest)


def max_per_text(
    states: TokenStates, cosines: Float[Tensor, "prompt row"]
) -> Float[Tensor, "prompt text"]:
    """Largest cosine of each text."""
    lowest = cosines.new_full((len(cosines), len(states.texts)), -torch.inf)
    index = repeat(states.text_index, "row -> prompt row", prompt=len(cosines))
    return lowest.scatter_reduce(1, index, cosines, "amax")


def _normalize(states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    return torch.nn.functional.normalize(states, dim=-1)


def _tokenize(model: Model, texts: Sequence[str]) -> tuple[list[list[int]], list[list[str]]]:
    """Token ids of each text with the tokenizer's special tokens, and its tokens without them."""
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{model.name} has no fast tokenizer: load it with one")
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    start = list(special_prefix(tokenizer))
    tokens = [
        [text[a:b] for a, b in offsets]
        for text, offsets in zip(texts, encoded["offset_mapping"], strict=True)
    ]
    return [start + ids for ids in encoded["input_ids"]], tokens


def _batch_size(ids: list[list[int]], order: list[int]) -> int:
    """Number of the shortest texts that fit one batch."""
    size = 1
    while size < len(order) and (size + 1) * len(ids[order[size]]) <= TOKENS_PER_BATCH:
        size += 1
    return size


def _layer_states(
    model: Model, rows: list[list[int]], layer: int
) -> list[Float[Tensor, "row d_model"]]:
    width = max(map(len, rows))
    pad = pad_token_id(model.tokenizer)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    padding = torch.tensor([width - len(row) for row in rows], device=model.device)
    mask = torch.arange(width, device=model.device) >= padding[:, None]
    kept: list[Tensor] = []
    last = layer == model.shape.layers
    name = f"blocks.{layer - 1}.{RESID_OUT}" if last else f"blocks.{layer}.{RESID}"
    with model.editing({name: kept.append}):
        model.logits(ids, mask, last_token(mask))
    return [states[is_text] for states, is_text in zip(kept[0], mask, strict=True)]
