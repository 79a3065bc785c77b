"""Cue words: whether "Wait" changes what a model writes next more than "Hmm" does.

s1 (Muennighoff et al. 2025, 2501.19393) forces models to go on by a cue word, and compares cues by
one accuracy each over 30 items. Here every comparison is item by item, at equal token counts,
beside a random word in the cue's place, and says what it could not have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import log_softmax, rel_entr
from torch import Tensor

from probes.errors import OutcomeError
from probes.experiments.cue_words.results import NextTokenDivergence, format_estimate
from probes.experiments.cue_words.texts import (
    CueText,
    CueTokens,
    GivenAnswer,
    left_pad,
    sample_random_words,
    to_cue_items,
    tokenize_cues,
)
from probes.interventions.activation_patching import patch_sites, run_with_cache
from probes.models.model import Model
from probes.models.site import Site
from probes.stats.intervals import Estimate, bootstrap_mean, bootstrap_ratio

if TYPE_CHECKING:
    import pandas as pd

# Items of one pass: few, as logits of all positions and all the vocabulary are held at once.
_BATCH_ITEMS = 32


@torch.no_grad()
def next_token_divergence(  # noqa: PLR0913 (a public entry point: what is said and drawn are options)
    model: Model,
    texts: Sequence[CueText],
    cues: Sequence[str],
    *,
    given_answer: GivenAnswer = "right",
    random_words: int = 8,
    seed: int = 0,
) -> NextTokenDivergence:
    """Compare what a model expects right behind each cue, beside random words in its place.

    Args:
        model: Any decoder with a tokenizer.
        texts: Questions of a pattern, `Item`s, or plain texts; each is one unit of resampling.
        cues: At least two words of equally many tokens.
        said: The answer that stands before the cue.
        control: How many random words stand in for each item's cue, at least two.
        seed: Of the words and intervals.

    Raises:
        TokenizerError: The cues differ in their number of tokens.
        OutcomeError: Fewer than two cues or random words, or no wrong answer to say.
    """
    if len(cues) < 2 or random_words < 2:
        raise OutcomeError(
            f"{len(cues)} cues and {random_words} random words were given: compare at least two of each"
        )
    items = to_cue_items(texts, seed=seed)
    parts = tokenize_cues(model.tokenizer, items, [item.stem(given_answer) for item in items], cues)
    arms = [[word] * len(items) for word in parts.words]
    arms += [
        sample_random_words(model.tokenizer, parts.words, len(items), seed=seed * 1000 + k)
        for k in range(random_words)
    ]
    rows = [parts.rows(arm) for arm in arms]
    found = [
        _compare_batch(model, [arm[n : n + _BATCH_ITEMS] for arm in rows], len(cues))
        for n in _batch_starts(items)
    ]
    bits, swapped, random, same = (np.concatenate(k, axis=-1) for k in zip(*found, strict=True))
    return NextTokenDivergence(
        model.name, tuple(cues), given_answer, bits, swapped, random, same, seed
    )


@dataclass(frozen=True, eq=False)
class CueLocalization:
    """Where the difference between two cues is carried.

    Attributes:
        model: The model's name.
        first, second: The run that is patched, and the run that it is patched from.
        said: The answer before the cue.
        places: Where: "cue"; "after", what stands behind it; "last", the token that is read where
            it is another; "all" of these.
        left: Bits between the patched run and the second cue's; rows are the residual stream that
            each block reads, and at the end the output.
        total: Bits between the two runs without a patch.
        seed: Of the intervals.
    """

    model: str
    first: str
    second: str
    given_answer: GivenAnswer
    positions: tuple[str, ...]
    remaining: Float[np.ndarray, "row place prompt"] = field(repr=False)
    total: Float[np.ndarray, " prompt"] = field(repr=False)
    seed: int = 0

    def recovered_fraction(self, layer: int, position: str) -> Estimate:
        """Return the share of the divergence that a patch brings about.

        1 makes the run expect what the second cue's does, 0 changes nothing; it is negative where
        the patch leads further away.
        """
        found = bootstrap_ratio(
            self.remaining[layer, self.positions.index(position)], self.total, seed=self.seed
        )
        return Estimate(1 - found.value, 1 - found.high, 1 - found.low)

    def table(self) -> "pd.DataFrame":
        """One row for each layer and place."""
        import pandas as pd

        rows = [
            (n, p, self.recovered_fraction(n, p))
            for n in range(len(self.remaining))
            for p in self.positions
        ]
        return pd.DataFrame(
            [
                {"layer": n, "place": p, "share": e.value, "low": e.low, "high": e.high}
                for n, p, e in rows
            ]
        )

    def summary(self) -> tuple[str, ...]:
        """Say how much there is to carry, and how far up each place carries most of it."""
        total = bootstrap_mean(self.total, seed=self.seed)
        lines = [
            f"{self.model}: {self.first} and {self.second} are {format_estimate(total)} bits apart behind a "
            f"{self.given_answer} answer, mean over {len(self.total)} items"
        ]
        for place in self.positions[:-1]:
            sure = [
                n for n in range(len(self.remaining)) if self.recovered_fraction(n, place).low > 0.5
            ]
            names = ", ".join("output" if n == len(self.remaining) - 1 else f"{n}" for n in sure)
            lines.append(
                f"{place}: surely more than half of it at the input of layers {names}"
                if sure
                else f"{place}: at no layer surely more than half of it"
            )
        return tuple(lines)


@torch.no_grad()
def localize_cue(  # noqa: PLR0913 (a public entry point, as above)
    model: Model,
    texts: Sequence[CueText],
    first: str,
    second: str,
    *,
    given_answer: GivenAnswer = "right",
    seed: int = 0,
) -> CueLocalization:
    """Patch the residual stream from one cue's run into another's, by layer and place.

    Read behind the comma, or behind each item's `then`. Exact, as `restart.patch` is.

    Raises:
        OutcomeError: Both cues make the model expect the very same: there is nothing to locate.
    """
    items = to_cue_items(texts, seed=seed)
    parts = tokenize_cues(
        model.tokenizer, items, [item.stem(given_answer) for item in items], (first, second)
    )
    runs = []
    for word in parts.words:
        rows = parts.rows([word] * len(items))
        ids, mask = left_pad(model.tokenizer, rows, model.device)
        readout = torch.full((len(items), 1), ids.shape[1] - 1, device=model.device)
        runs.append(run_with_cache(model, ids, mask, readout))
    where = _position_masks(parts, runs[0].mask)
    theirs = runs[1].logits[:, 0]

    def measure(logits: Tensor, rows: Tensor) -> Tensor:
        found = jensen_shannon(_to_numpy(logits[:, 0]), _to_numpy(theirs[rows]))
        return torch.from_numpy(found).to(logits)[:, None]

    total = measure(runs[0].logits, torch.arange(len(items), device=model.device))
    if not float(total.mean()) > 1e-9:
        raise OutcomeError(
            f"{first!r} and {second!r} are {float(total.mean()):.1e} bits apart: there is nothing "
            "to locate. Choose other cues or texts"
        )
    cells = [Site(n, "resid", p) for n in range(model.shape.layers + 1) for p in where]
    left = patch_sites(runs[0], runs[1], cells, where, measure)
    left = left[..., 0].unflatten(0, (-1, len(where))).double().cpu().numpy()
    whole = total[:, 0].double().cpu().numpy()
    return CueLocalization(model.name, first, second, given_answer, tuple(where), left, whole, seed)


def jensen_shannon(
    first: Float[np.ndarray, "prompt vocab"], second: Float[np.ndarray, "prompt vocab"]
) -> Float[np.ndarray, " prompt"]:
    """Return the Jensen-Shannon divergence of two sets of logits, in bits (Lin 1991).

    0 where they are the same distribution, 1 where they share no token.
    """
    p, q = (np.exp(log_softmax(logits.astype(np.float64), axis=-1)) for logits in (first, second))
    middle = (p + q) / 2
    nats = (rel_entr(p, middle) + rel_entr(q, middle)).sum(-1) / 2
    return np.clip(nats / np.log(2), 0.0, 1.0)


def _batch_starts(items: Sequence[object]) -> range:
    return range(0, len(items), _BATCH_ITEMS)


def _compare_batch(
    model: Model, arms: Sequence[Sequence[Sequence[int]]], cues: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compare the arms on some items: cues by twos, cues with words, words by twos."""
    logits = []
    for arm in arms:
        ids, mask = left_pad(model.tokenizer, arm, model.device)
        logits.append(_to_numpy(model.logits(ids, mask)[:, -1]))
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
    """Mark the tokens of the cue, behind it, and the last where that is another one."""
    width = mask.shape[1]
    behind = [len(parts.tail) + len(then) for then in parts.continuations]
    comma = torch.tensor(behind, device=mask.device)[:, None]
    from_end = width - torch.arange(width, device=mask.device)
    cue = (from_end > comma) & (from_end <= comma + len(parts.words[0]))
    # With one token behind the cue, what stands after it is what is read.
    last = (from_end == 1).expand_as(mask) & (comma > 1)
    after = (from_end <= comma) & ~last
    found = {"cue": cue, "after": after, "last": last, "all": cue | after | last}
    return {name: where for name, where in found.items() if bool(where.any())}


def _to_numpy(logits: Tensor) -> Float[np.ndarray, "prompt vocab"]:
    return logits.float().cpu().numpy()
