"""Similarity of two models' residual streams over the tokens of many texts, in bounded memory.

Only sums over tokens are kept, from which debiased CKA follows exactly. So any number of texts
takes the memory of one chunk and the sums.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student

from probes.comparison.representations.token_chunks import (
    TokenStates,
    pair_across_texts,
    read_states,
)
from probes.comparison.representations.token_result import LayerSimilarity, TokenSimilarity
from probes.comparison.representations.token_sums import (
    CrossSums,
    LayerPairs,
    TokenSums,
    require_room,
    row_features,
    same_layers,
    sums_bytes,
)
from probes.errors import BatchError, ModelError, SiteError
from probes.models.model import Model
from probes.models.run_checks import require_unedited
from probes.prompts.question import Question
from probes.stats.intervals import Estimate
from probes.stats.null_threshold import conformal_threshold

_MOST_BYTES = 10**9  # Of sums for which all pairs of layers are the default.
_CHUNK_BYTES, _MOST_CHUNK_TOKENS = 2**26, 4096
_TEXTS_PER_BLOCK, _MIN_TOKENS = 2, 4


@dataclass(frozen=True)
class TokenSimilaritySettings:
    """Settings of `token_similarity`.

    Attributes:
        layers: "all" pairs of layers, "matched" for the pairs of equal depth, or the pairs. By
            default all pairs where the sums of a and b take at most 1 GB, else the matched ones.
        blocks: Blocks of texts of the jackknife, at least 2. Each has its own sums.
        neighbors: Number of successive texts that depend on each other, such as the paragraphs of
            a document or variants of a question. They enter one block.
        permutations: Permutations of the null, at least 1. Each has its own sums.
        chunk_tokens: Tokens that are in memory together, at least. By default up to 4096 of which
            the states of both models take 64 MB.
        seed: Seed of the permutations.
    """

    layers: Literal["all", "matched"] | Sequence[tuple[int, int]] | None = None
    blocks: int = 8
    neighbors: int = 1
    permutations: int = 4
    chunk_tokens: int | None = None
    seed: int = 0


def token_similarity(
    a: Model,
    b: Model,
    texts: Iterable[str | Question],
    *,
    other_seed: Model | None = None,
    settings: TokenSimilaritySettings = TokenSimilaritySettings(),
) -> TokenSimilarity:
    """Compare the residual streams of two models at every token of many texts.

    Debiased linear CKA (Kornblith et al. 2019, arXiv:1905.00414; Song et al. 2012, JMLR 13:1393;
    Murphy et al. 2024, arXiv:2405.01012), about -0.1 to 1, exact over all tokens: in one pass, with
    sums in double precision about a fixed shift, the mean of the first chunk. Texts are read once
    and never held, so a generator of any length will do. The special tokens before a text are left
    out: a causal model's state at them is the same in each text, and would count as agreement.

    The null permutes the texts of b within a chunk: each token of a is paired with the token at the
    same place of another text of about the same length. This keeps the states of both models, what
    depends on the place alone (such as the first token's massive activation), and the dependence
    of the tokens of one text, which leaves a bias of the order of 1 / texts. It removes only that
    both models read the same text. It is a weak null, because any two models that read the same
    tokens share what the token alone gives: compare with `random_init` models, and `other_seed`.

    The interval is a jackknife over blocks of texts, because tokens of one text depend on each
    other (Busing et al. 1999).

    Args:
        a, b: The models. Their tokenizers must read each text as the same tokens.
        texts: Texts, or questions, which are read without their answers; any iterable.
        other_seed: Model that differs from `a` only in its seed.
        settings: Layers, blocks, permutations, memory and seed.

    Raises:
        BatchError: No text, fewer than 2 texts a block, a text longer than a context, too few
            tokens, a setting out of range, or sums that do not fit into memory.
        TokenizerError: The tokenizers read a text as different tokens.
        SiteError: A pair of layers is not in the models.
        ModelError: Layers of unequal depth are to be matched, or a model has no tokenizer, edits in
            effect, or states that are not finite.
    """
    _check_settings(settings)
    models = [model for model in (a, b, other_seed) if model is not None]
    for model in models:
        require_unedited(model)
    if other_seed is not None and other_seed.shape.layers != a.shape.layers:
        raise ModelError(
            f"{other_seed.name} has {other_seed.shape.layers} blocks and {a.name} "
            f"{a.shape.layers}: give as other seed a model of the shape of {a.name}"
        )
    pairs = _choose_pairs(a, b, settings)
    used = tuple(sorted({*layers}) for layers in zip(*pairs, strict=True))
    kept = tuple((used[0].index(one), used[1].index(other)) for one, other in pairs)
    shapes = [(len(own), m.shape.d_model) for m, own in zip((a, b), used, strict=True)]
    counts = {"blocks": settings.blocks, "permutations": settings.permutations}
    require_room((a.name, b.name), len(pairs), sums_bytes(kept, shapes, **counts))
    sums: _StreamSums | None = None
    for chunk in read_states(models, texts, _chunk_tokens(models, settings)):
        if not len(chunk.text):  # Texts of special tokens alone.
            continue
        chunk = chunk.of_layers((*used, used[0])[: len(models)])
        if sums is None:
            sums = _StreamSums.zeros(kept, chunk, settings)
        sums.add(chunk, settings)
    if sums is None:
        raise BatchError("No text is given: give at least 2 for each block")
    _check_counts(sums, settings)
    return _to_result(models, pairs, sums, settings)


def _check_settings(settings: TokenSimilaritySettings) -> None:
    for name, least in (("blocks", 2), ("neighbors", 1), ("permutations", 1)):
        if (found := getattr(settings, name)) < least:
            raise BatchError(f"{found} {name} are too few: give at least {least}")
    if settings.chunk_tokens is not None and settings.chunk_tokens < 1:
        raise BatchError(f"{settings.chunk_tokens} chunk_tokens are too few: give at least 1")


def _choose_pairs(a: Model, b: Model, settings: TokenSimilaritySettings) -> LayerPairs:
    # The residual stream has one more layer than there are blocks.
    shapes = [(m.shape.layers + 1, m.shape.d_model) for m in (a, b)]
    (layers_a, _), (layers_b, _) = shapes
    every = tuple(np.ndindex(layers_a, layers_b))
    counts = {"blocks": settings.blocks, "permutations": settings.permutations}
    size = sums_bytes(every, shapes, **counts)
    layers = settings.layers
    if layers is None:
        layers = "all" if size <= _MOST_BYTES else "matched"
    if layers == "all":
        return every
    if layers == "matched":
        if layers_a != layers_b:
            raise ModelError(
                f"{a.name} has {a.shape.layers} blocks and {b.name} {b.shape.layers}, so that "
                f'layers of equal depth cannot be matched: set layers="all", of which the sums '
                f"take {size / 1e9:.1f} GB, fewer blocks and permutations, or name the pairs"
            )
        return same_layers(layers_a)
    if isinstance(layers, str) or not len(layers):
        raise SiteError(f'layers is {layers!r}: choose "all", "matched", or pairs of layers')
    pairs = tuple((int(first), int(second)) for first, second in layers)
    for pair in pairs:
        if pair not in every:
            raise SiteError(
                f"Layers {pair} are not in {a.name} and {b.name}: give layers from (0, 0) to "
                f"{every[-1]}"
            )
    return pairs


def _chunk_tokens(models: Sequence[Model], settings: TokenSimilaritySettings) -> int:
    row_bytes = sum(8 * (m.shape.layers + 1) * m.shape.d_model for m in models)
    return settings.chunk_tokens or max(1, min(_MOST_CHUNK_TOKENS, _CHUNK_BYTES // row_bytes))


@dataclass(frozen=True, eq=False)
class _StreamSums:
    """Sums over all chunks so far; the arrays grow in place.

    `blocks` are the sums of each block of texts, `null` those of each permutation, `other` those of
    a and its other-seed model; `texts` is the number of texts of each block.
    """

    blocks: tuple[TokenSums, ...]
    null: tuple[CrossSums, ...]
    other: TokenSums | None
    texts: Int[np.ndarray, " block"]
    generator: np.random.Generator

    @classmethod
    def zeros(
        cls, pairs: LayerPairs, first: TokenStates, settings: TokenSimilaritySettings
    ) -> "_StreamSums":
        shifts = [states.mean(1) for states in first.states]
        return cls(
            tuple(TokenSums.zeros(pairs, *shifts[:2]) for _ in range(settings.blocks)),
            tuple(CrossSums.zeros(pairs, *shifts[:2]) for _ in range(settings.permutations)),
            TokenSums.zeros(same_layers(len(shifts[0])), shifts[0], shifts[2])
            if len(shifts) > 2
            else None,
            np.zeros(settings.blocks, dtype=np.int64),
            np.random.default_rng(settings.seed),
        )

    def add(self, chunk: TokenStates, settings: TokenSimilaritySettings) -> None:
        sums = self.blocks[0]
        a, b = (
            row_features(states, shift)
            for states, shift in zip(
                chunk.states[:2], (sums.ab.x_shift, sums.ab.y_shift), strict=True
            )
        )
        block_of = chunk.text // settings.neighbors % settings.blocks
        for number, block in enumerate(self.blocks):
            rows = np.flatnonzero(block_of == number)
            block.add_rows(a[:, rows], b[:, rows])
            self.texts[number] += len(np.unique(chunk.text[rows]))
        for null in self.null:
            first, second = pair_across_texts(chunk.text, self.generator)
            null.add_rows(a[:, first], b[:, second])
        if self.other is not None:
            self.other.add_rows(a, row_features(chunk.states[2], self.other.ab.y_shift))


def _check_counts(sums: _StreamSums, settings: TokenSimilaritySettings) -> None:
    tokens = [block.count for block in sums.blocks]
    if sums.texts.min() < _TEXTS_PER_BLOCK:
        raise BatchError(
            f"{sums.texts.sum()} texts are too few for {settings.blocks} blocks of at least "
            f"{_TEXTS_PER_BLOCK}: the smallest has {sums.texts.min()}. Give more texts, or set "
            "fewer blocks or neighbors"
        )
    if sum(tokens) - max(tokens) < _MIN_TOKENS:
        raise BatchError(
            f"{sum(tokens) - max(tokens)} tokens outside of one block are too few: give at least "
            f"{_MIN_TOKENS}"
        )


def _to_result(
    models: Sequence[Model],
    pairs: LayerPairs,
    sums: _StreamSums,
    settings: TokenSimilaritySettings,
) -> TokenSimilarity:
    whole = sum(sums.blocks[1:], start=sums.blocks[0])
    cka = whole.cka()
    low, high = jackknife_interval(cka, [whole.cka(without=block) for block in sums.blocks])
    null = np.stack([whole.cka(ab=one) for one in sums.null])
    chance, chance_high = null.mean(0), conformal_threshold(null)
    other_seed = np.full(len(whole.a.pairs), np.nan) if sums.other is None else sums.other.cka()
    return TokenSimilarity(
        a=models[0].name,
        b=models[1].name,
        other_seed=models[2].name if len(models) > 2 else "",
        texts=int(sums.texts.sum()),
        tokens=whole.count,
        null_tokens=sums.null[0].count,
        blocks=settings.blocks,
        permutations=settings.permutations,
        seed=settings.seed,
        pairs=tuple(
            LayerSimilarity(
                *pair,
                Estimate(float(cka[n]), float(low[n]), float(high[n])),
                float(chance[n]),
                float(chance_high[n]),
                float(other_seed[own]),
            )
            for n, (pair, (own, _)) in enumerate(zip(pairs, sums.blocks[0].ab.pairs, strict=True))
        ),
    )


def jackknife_interval(
    value: Float[np.ndarray, " pair"], without: Sequence[Float[np.ndarray, " pair"]]
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """95 % interval from the values without each block of texts, by Student's t.

    The blocks count as equally large. The interval ends at -1 and 1.
    """
    count = len(without)
    error = np.sqrt((count - 1) * np.stack(without).var(0))
    margin = float(student.ppf(0.975, count - 1)) * error
    return np.maximum(value - margin, -1), np.minimum(value + margin, 1)
