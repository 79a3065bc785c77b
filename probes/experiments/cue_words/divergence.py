"""Next-token divergence between cue words, and the site that carries it.

Cues of s1 (Muennighoff et al. 2025, arXiv 2501.19393). Each comparison is paired by item, at equal
numbers of tokens, with random words in place of the cue as control.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import log_softmax, rel_entr
from torch import Tensor

from probes.errors import OutcomeError
from probes.experiments.cue_words.divergence_result import CueLocalization, NextTokenDivergence
from probes.experiments.cue_words.texts import (
    CueText,
    CueTokens,
    GivenAnswer,
    sample_random_words,
    to_cue_items,
    tokenize_cues,
)
from probes.interventions.activation_patching import patch_sites, run_with_cache
from probes.models.model import Model
from probes.models.readout import last_token
from probes.models.site import Site
from probes.prompts.tokens.batch import left_pad

# Items of one pass: few, as the logits of all positions are in memory at once.
_BATCH_ITEMS = 32


@dataclass(frozen=True, slots=True)
class DivergenceSettings:
    """Settings of the divergence.

    Attributes:
        given_answer: Answer before the cue.
        random_words: Random words in place of each item's cue, at least two.
        seed: Seed of the words and intervals.
    """

    given_answer: GivenAnswer = "right"
    random_words: int = 8
    seed: int = 0


@torch.no_grad()
def next_token_divergence(
    model: Model,
    texts: Sequence[CueText],
    cues: Sequence[str],
    settings: DivergenceSettings | None = None,
) -> NextTokenDivergence:
    """Divergence of the next token after each cue, and after random words in its place.

    Args:
        model: Decoder with a tokenizer.
        texts: Questions, items or plain texts; each is one unit of the bootstrap.
        cues: At least two words with equal numbers of tokens.
        settings: Settings of the divergence.

    Raises:
        TokenizerError: The numbers of tokens of the cues differ.
        OutcomeError: There are fewer than two cues or random words, or no wrong answer to give.
    """
    settings = settings or DivergenceSettings()
    given, seed = settings.given_answer, settings.seed
    if len(cues) < 2 or settings.random_words < 2:
        raise OutcomeError(
            f"There are {len(cues)} cues and {settings.random_words} random words: give at least "
            "two of each"
        )
    items = to_cue_items(texts, seed=seed)
    parts = tokenize_cues(model.tokenizer, items, [item.stem(given) for item in items], cues)
    arms = [[word] * len(items) for word in parts.words]
    arms += [
        sample_random_words(model.tokenizer, parts.words, len(items), seed=seed * 1000 + k)
        for k in range(settings.random_words)
    ]
    rows = [parts.rows(arm) for arm in arms]
    batches = [
        _compare_batch(model, [arm[n : n + _BATCH_ITEMS] for arm in rows], len(cues))
        for n in range(0, len(items), _BATCH_ITEMS)
    ]
    bits, cue_vs_random, random_vs_random, same_argmax = (
        np.concatenate(parts, axis=-1) for parts in zip(*batches, strict=True)
    )
    return NextTokenDivergence(
        model=model.name,
        cues=tuple(cues),
        given_answer=given,
        bits=bits,
        cue_vs_random=cue_vs_random,
        random_vs_random=random_vs_random,
        same_argmax=same_argmax,
        seed=seed,
    )


@torch.no_grad()
def localize_cue(
    model: Model,
    texts: Sequence[CueText],
    cues: tuple[str, str],
    *,
    given_answer: GivenAnswer = "right",
    seed: int = 0,
) -> CueLocalization:
    """Patch the residual stream of the second cue's run into the first, by layer and position.

    The readout is after the comma, or after each item's `continuation`.

    Raises:
        OutcomeError: The next tokens after both cues are the same: there is nothing to localize.
    """
    first, second = cues
    items = to_cue_items(texts, seed=seed)
    stems = [item.stem(given_answer) for item in items]
    parts = tokenize_cues(model.tokenizer, items, stems, cues)
    runs = []
    for word in parts.words:
        ids, mask = left_pad(model.tokenizer, parts.rows([word] * len(items)), model.device)
        readout = torch.full((len(items), 1), ids.shape[1] - 1, device=model.device)
        runs.append(run_with_cache(model, ids, mask, readout))
    masks = _position_masks(parts, runs[0].mask)
    target = runs[1].logits[:, 0]

    def measure(logits: Tensor, rows: Tensor) -> Tensor:
        bits = jensen_shannon(_to_numpy(logits[:, 0]), _to_numpy(target[rows]))
        return torch.from_numpy(bits).to(logits)[:, None]

    total = measure(runs[0].logits, torch.arange(len(items), device=model.device))
    if not float(total.mean()) > 1e-9:
        raise OutcomeError(
            f"{first!r} and {second!r} are {float(total.mean()):.1e} bits apart: there is nothing "
            "to localize. Choose other cues or texts"
        )
    sites = [Site(n, "resid", p) for n in range(model.shape.layers + 1) for p in masks]
    remaining = patch_sites(runs[0], runs[1], sites, masks, measure)[..., 0]
    remaining = remaining.unflatten(0, (-1, len(masks))).cpu().double().numpy()
    return CueLocalization(
        model=model.name,
        first=first,
        second=second,
        given_answer=given_answer,
        positions=tuple(masks),
        remaining=remaining,
        total=total[:, 0].cpu().double().numpy(),
        seed=seed,
    )


def jensen_shannon(
    first: Float[np.ndarray, "prompt vocab"], second: Float[np.ndarray, "prompt vocab"]
) -> Float[np.ndarray, " prompt"]:
    """Jensen-Shannon divergence of two sets of logits, 0 to 1 bit (Lin 1991)."""
    p, q = (np.exp(log_softmax(logits.astype(np.float64), axis=-1)) for logits in (first, second))
    middle = (p + q) / 2
    nats = (rel_entr(p, middle) + rel_entr(q, middle)).sum(-1) / 2
    return np.clip(nats / np.log(2), 0.0, 1.0)


def _compare_batch(
    model: Model, arms: Sequence[Sequence[Sequence[int]]], cues: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Divergence of cue pairs, cues and words, and word pairs; equal argmax of cue pairs."""
    logits = []
    for arm in arms:
        ids, mask = left_pad(model.tokenizer, arm, model.device)
        logits.append(_to_numpy(model.logits(ids, mask, last_token(mask))[:, 0]))
    known, words = logits[:cues], logits[cues:]
    pairs = list(combinations(known, 2))
    bits = np.stack([jensen_shannon(a, b) for a, b in pairs])
    same = np.stack([a.argmax(-1) == b.argmax(-1) for a, b in pairs])
    swapped = np.stack([np.mean([jensen_shannon(a, w) for w in words], axis=0) for a in known])
    random = np.mean([jensen_shannon(a, b) for a, b in combinations(words, 2)], axis=0)
    return bits, swapped, random, same


def _position_masks(
    parts: CueTokens, mask: Bool[Tensor, "prompt position"]
) -> dict[str, Bool[Tensor, "prompt position"]]:
    """Tokens of the cue, after it, and the last one if it is another."""
    width = mask.shape[1]
    after_cue = [len(parts.tail) + len(tokens) for tokens in parts.continuations]
    behind = torch.tensor(after_cue, device=mask.device)[:, None]
    from_end = width - torch.arange(width, device=mask.device)
    cue = (from_end > behind) & (from_end <= behind + len(parts.words[0]))
    # With one token after the cue, that token is the readout.
    last = (from_end == 1).expand_as(mask) & (behind > 1)
    after = (from_end <= behind) & ~last
    masks = {"cue": cue, "after": after, "last": last, "all": cue | after | last}
    return {name: where for name, where in masks.items() if bool(where.any())}


def _to_numpy(logits: Tensor) -> Float[np.ndarray, "prompt vocab"]:
    return logits.float().cpu().numpy()
