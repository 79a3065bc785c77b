"""Residual streams of models at the tokens of many texts, chunk by chunk, and pairs of texts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import BatchError, ModelError, ProbeError, TokenizerError
from probes.models.model import Model
from probes.observe.activations import record
from probes.prompts.question import Question
from probes.prompts.tokens.batch import pad_prompts, pad_token_id
from probes.prompts.tokens.tokenization import BOS, TokenizedPrompt, tokenize_questions

_LENGTH_NOISE = 0.2  # Texts of the null differ in length by about a fifth.


@dataclass(frozen=True, eq=False)
class TokenStates:
    """States of some texts, one row per token.

    Attributes:
        states: For each model, "layer row d_model": the input of every block, then the output of
            the last, in double precision. Row n of each model is the same token.
        text: Number of the text of each row, counted over all chunks from 0.
    """

    states: tuple[Float[np.ndarray, "_ row _"], ...]
    text: Int[np.ndarray, " row"]

    def of_layers(self, layers: Sequence[Sequence[int]]) -> "TokenStates":
        """States of some layers of each model."""
        states = zip(self.states, layers, strict=True)
        return TokenStates(
            tuple(own if len(kept) == len(own) else own[[*kept]] for own, kept in states), self.text
        )


@dataclass(frozen=True)
class _Text:
    number: int
    question: Question
    prompts: tuple[TokenizedPrompt, ...]  # One for each model.


def read_states(
    models: Sequence[Model], texts: Iterable[str | Question], chunk_tokens: int
) -> Iterator[TokenStates]:
    """Yield the states of texts, in chunks of at least so many tokens but for the last.

    The special tokens before a text are left out, because a causal model's state at them is the
    same in each text.

    Raises:
        BatchError: A text is empty, no text, or longer than the context of a model.
        TokenizerError: The tokenizers read a text as different tokens.
        ModelError: A model has no tokenizer, or states that are not finite.
    """
    chunk: list[_Text] = []
    tokens = 0
    for text in _tokenize_each(models, texts):
        chunk.append(text)
        tokens += len(text.prompts[0].ids)
        if tokens >= chunk_tokens:
            yield _capture(models, chunk)
            chunk, tokens = [], 0
    if chunk:
        yield _capture(models, chunk)


def pair_across_texts(
    text: Int[np.ndarray, " row"], generator: np.random.Generator
) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Pair each text with another of about its length: their first tokens, their second, and so on.

    A random derangement of the texts. The end of the longer text of a pair has no partner.

    Args:
        text: Text of each row; rows of one text are in the order of its tokens.
        generator: Source of the derangement.
    """
    _, text, lengths = np.unique(text, return_inverse=True, return_counts=True)
    if len(lengths) < 2:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    rows = np.argsort(text, kind="stable")
    starts = np.cumsum(lengths) - lengths
    # Each text with the next by length, roughly: so the permutations differ, and few tokens lack a
    # partner.
    order = np.argsort(np.log(lengths) + _LENGTH_NOISE * generator.random(len(lengths)))
    partner = np.roll(order, -1)
    shared = np.minimum(lengths[order], lengths[partner])
    place = np.arange(shared.sum()) - np.repeat(np.cumsum(shared) - shared, shared)
    first, second = (rows[np.repeat(starts[one], shared) + place] for one in (order, partner))
    return first, second


def _tokenize_each(models: Sequence[Model], texts: Iterable[str | Question]) -> Iterator[_Text]:
    for model in models:
        if model.tokenizer is None:
            raise ModelError(f"{model.name!r} has no tokenizer: load it with one")
    if isinstance(texts, str | Question):
        raise BatchError(f"One text is given, {texts!r:.80}: give many of them, such as a list")
    for number, text in enumerate(texts):
        if not isinstance(text, str | Question):
            kind = type(text).__name__
            raise BatchError(f"Text {number} is of type {kind}: give texts, or questions")
        question = Question.from_text(text) if isinstance(text, str) else text
        # Answers are read at places of their own, of which no state is needed here.
        question = replace(question, answers=(), outcomes=())
        by_tokenizer: dict[int, TokenizedPrompt] = {}
        try:
            for tokenizer in {id(model.tokenizer): model.tokenizer for model in models}.values():
                by_tokenizer[id(tokenizer)] = tokenize_questions(tokenizer, (question,))[0]
        except ProbeError as error:
            raise type(error)(f"Text {number}, {question.text!r:.80}: {error}") from error
        read = _Text(number, question, tuple(by_tokenizer[id(m.tokenizer)] for m in models))
        _require_same_tokens(models, read)
        yield read


def _require_same_tokens(models: Sequence[Model], text: _Text) -> None:
    """Refuse a text that is too long for a model, or of which models read different tokens."""
    label = f"Text {text.number}, {text.question.text!r:.80},"
    for model, prompt in zip(models, text.prompts, strict=True):
        if model.shape.context and len(prompt.ids) > model.shape.context:
            raise BatchError(
                f"{label} has {len(prompt.ids)} tokens, and {model.name} takes "
                f"{model.shape.context}: shorten it, or split it into several texts"
            )
    first, *others = (_text_ids(prompt) for prompt in text.prompts)
    for model, ids in zip(models[1:], others, strict=True):
        if ids != first:
            differs = [one != other for one, other in zip(first, ids, strict=False)]
            at = differs.index(True) if any(differs) else len(differs)
            raise TokenizerError(
                f"{label} is {len(first)} tokens for {models[0].name} and {len(ids)} for "
                f"{model.name}, and token {at} is the first that differs: compare models that "
                "read the same tokens, or compare roles with `representation_similarity`"
            )


def _text_ids(prompt: TokenizedPrompt) -> tuple[int, ...]:
    pairs = zip(prompt.ids, prompt.roles, strict=True)
    return tuple(token for token, role in pairs if role != BOS)


def _capture(models: Sequence[Model], chunk: Sequence[_Text]) -> TokenStates:
    # Within a batch no text is twice as long as another: padding would take more memory than
    # tokens where one text is long and many are short.
    lengths = np.array([len(text.prompts[0].ids) for text in chunk])
    octave = np.log2(lengths).astype(np.int64)
    batches = [
        [chunk[int(n)] for n in np.flatnonzero(octave == size)] for size in np.unique(octave)
    ]
    states = tuple(
        np.concatenate([_token_states(model, n, batch) for batch in batches], axis=1)
        for n, model in enumerate(models)
    )
    text = [t.number for batch in batches for t in batch for _ in _text_ids(t.prompts[0])]
    return TokenStates(states, np.array(text, dtype=np.int64))


def _token_states(
    model: Model, index: int, texts: Sequence[_Text]
) -> Float[np.ndarray, "layer row d_model"]:
    """States of one batch at its tokens, text by text."""
    prompts = [text.prompts[index] for text in texts]
    width = max(len(prompt.ids) for prompt in prompts)
    questions = tuple(text.question for text in texts)
    batch = pad_prompts(questions, prompts, width, pad_token_id(model.tokenizer))
    kept = batch.mask
    if BOS in batch.roles:
        kept = kept & ~batch.role_mask(BOS)

    def to_host(value: Tensor, _: Tensor) -> Tensor:
        return value.cpu()

    resid = record(model, batch, ("resid",), to_host)["resid"]
    states = resid[:, kept].to(torch.float64).numpy()
    if not np.isfinite(states).all():
        layer, row, _ = np.argwhere(~np.isfinite(states))[0]
        text = texts[int(kept.nonzero()[int(row), 0])]
        raise ModelError(
            f"The states of {model.name} are not finite in layer {layer} on text {text.number}, "
            f"{text.question.text!r:.80}: load it with a wider dtype, or check the weights"
        )
    return states
