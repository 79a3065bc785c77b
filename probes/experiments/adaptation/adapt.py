"""Is a student less able to adapt? Steps of training until a word that it never saw works.

A fresh word → few texts about it → train, looking often → steps until it is answered with
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probes.compression.derived_model import DerivedModel, load_parent
from probes.compression.distillation.trainer import collate
from probes.errors import ModelError
from probes.experiments.adaptation.new_words import (
    TUNING_WORDS,
    NewWord,
    check_words,
    prepare_word,
    token_ids,
    unused_words,
)
from probes.models.model import position_ids
from probes.prompts.batch import Batch
from probes.prompts.catalog import pattern as find_pattern
from probes.stats.intervals import Estimate, bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd

ACCURACY_THRESHOLD = 0.9
"""The share of held-out questions whose noun, and whose number, must be right."""

LEARNING_RATES = (3e-5, 1e-4, 2e-4, 4e-4, 7e-4, 1e-3, 2e-3)
_EVALUATION_STEPS = (
    *range(17),
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    112,
    128,
    192,
    256,
    384,
    512,
)


@dataclass(frozen=True, slots=True)
class WordAdaptation:
    """One word taught to one model.

    Attributes:
        noun: The word.
        steps: Until it worked at two looks running, the first of them; infinite if it never did.
        before, after: Share of held-out questions about it whose noun is right, before any step
            and at the end.
        number: The same of the number, at the end.
        kept: Share of questions about other nouns whose noun is right at the end, less that
            before: negative is forgotten.
        kept_number: The same of their number.
    """

    noun: str
    steps: float
    before: float
    after: float
    number: float
    retention_change: float
    retention_change_number: float


@dataclass(frozen=True, eq=False, repr=False)
class Adaptation:
    """How fast a model takes up new words.

    Attributes:
        model: Its name.
        rate: The learning rate that was fastest on words of its own, not counted here.
        trials: One for each word.
        most: The most steps that a word was given.
        tuned: The mean steps at each rate on the words that the rate was chosen by.
    """

    model: str
    rate: float
    words: tuple[WordAdaptation, ...]
    max_steps: int
    rate_search: Mapping[float, float]

    @property
    def steps(self) -> Estimate:
        """Mean steps over words, with its interval; a word that never worked counts as `most`."""
        found = np.array([min(trial.steps, float(self.max_steps)) for trial in self.words])
        return bootstrap_mean(found, seed=0)

    @property
    def learned(self) -> int:
        """How many of the words worked."""
        return int(sum(np.isfinite(trial.steps) for trial in self.words))

    def mean_over_words(self, name: str) -> Estimate:
        """Return the mean of "before", "after", "number", "retention_change" or "retention_change_number" over words."""
        return bootstrap_mean(
            np.array([float(getattr(trial, name)) for trial in self.words]), seed=0
        )

    def table(self) -> "pd.DataFrame":
        """Return a row for each word."""
        import pandas as pd

        same = {"model": self.model, "rate": self.rate}
        return pd.DataFrame([same | asdict(trial) for trial in self.words])

    def summary(self) -> str:
        """Say it in a sentence."""
        return (
            f"{self.model} takes {self.steps} steps (rate {self.rate:g}, {self.learned} of "
            f"{len(self.words)} words); noun right in {self.mean_over_words('before').value:.2f} before, "
            f"{self.mean_over_words('after').value:.2f} after; other nouns {self.mean_over_words('retention_change').value:+.2f}, "
            f"their numbers {self.mean_over_words('retention_change_number').value:+.2f}."
        )

    def __repr__(self) -> str:
        return f"<Adaptation of {self.model}: {self.steps} steps>"


def adapt(  # noqa: PLR0913 (whom, what, and how hard)
    model: str | Path | DerivedModel,
    nouns: Sequence[str] = (),
    *,
    patterns: Sequence[str] = ("take-away", "get-more"),
    texts: int = 32,
    batch: int = 8,
    rates: Sequence[float] = LEARNING_RATES,
    max_steps: int = 128,
    held_out: int = 40,
    seed: int = 0,
) -> Adaptation:
    """Teach a model words that it never saw, each by itself, and count the steps.

    The row of the word in the embedding is drawn anew, as long as those of known nouns, so that
    no model is ahead by what its idle rows hold. Training is AdamW without decay at a constant
    rate. The rate is chosen by the first three words, the fastest in the mean (of equally fast
    ones the first); the others are judged. Held-out questions share no numbers with the texts.

    Args:
        model: A family name, a folder or a relative; what is given is not changed.
        nouns: Words of one token each that stand in no text; by default the tokenizer's.
        patterns: What is asked about them.
        texts: How many texts about the word there are to learn from.
        batch: Texts of one step.
        rates: Learning rates to try.
        most: The most steps.
        held_out: Questions about the word, and as many about others, to judge by.
        seed: Of rows, texts and their order.

    Raises:
        PatternError: There are fewer than four words, or one is known or not a single token.
        ModelError: The model has no tokenizer, or a number is below 1.
    """
    whole = load_parent(model)
    if whole.tokenizer is None:
        raise ModelError(f"{whole.name} has no tokenizer: give a folder that holds one")
    if min(texts, batch, max_steps, held_out) < 1 or not rates or min(rates) <= 0:
        raise ModelError(
            f"{texts} texts in batches of {batch}, {max_steps} steps, {held_out} questions and rates "
            f"{tuple(rates)} were asked for: give 1 or more of each, and rates above 0"
        )
    words = tuple(nouns) or unused_words(whole.tokenizer)
    check_words(words, whole.tokenizer)
    asked = [find_pattern(name) for name in patterns]
    lessons = [
        prepare_word(whole, asked, noun, (texts, batch, max_steps, held_out), seed + n)
        for n, noun in enumerate(words)
    ]
    tuned = {
        rate: float(
            np.mean([min(_train_word(whole, les, rate).steps, 2.0 * max_steps) for les in tuning])
        )
        for tuning in [lessons[:TUNING_WORDS]]
        for rate in rates
    }
    rate = min(tuned, key=lambda r: tuned[r])
    trials = tuple(_train_word(whole, lesson, rate) for lesson in lessons[TUNING_WORDS:])
    return Adaptation(whole.name, rate, trials, max_steps, tuned)


def _train_word(parent_model: DerivedModel, word: NewWord, rate: float) -> WordAdaptation:
    """Teach a copy of the model one word at one rate."""
    model = copy.deepcopy(parent_model.hf_model).float()
    _resample_embedding(model, word.token, parent_model.tokenizer, word.seed)
    adam = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    order = torch.Generator().manual_seed(word.seed)
    pad = parent_model.tokenizer.pad_token_id or 0
    start = (
        _answer_accuracy(model, word.word_questions),
        _answer_accuracy(model, word.other_questions),
    )
    works, done, found = _passes(start[0]), 0, start[0]
    since = 0.0 if works else np.inf
    for look in (look for look in _EVALUATION_STEPS[1:] if look <= word.max_steps):
        for _ in range(done, look):
            some = torch.randperm(len(word.rows), generator=order)[: word.batch]
            _step(model, adam, [word.rows[int(k)] for k in some], pad)
        found, before, done = _answer_accuracy(model, word.word_questions), works, look
        works = _passes(found)
        if works and before:
            break
        since = float(look) if works else np.inf
    apart = _answer_accuracy(model, word.other_questions) - start[1]
    noun, number = float(found[1]), float(found[0])
    return WordAdaptation(
        word.noun, since, float(start[0][1]), noun, number, float(apart[1]), float(apart[0])
    )


def _passes(right: Float[np.ndarray, " answer"]) -> bool:
    return bool((right >= ACCURACY_THRESHOLD).all())


def _step(model: Any, adam: Any, rows: Sequence[tuple[int, ...]], pad: int) -> None:  # noqa: ANN401
    feed = collate([{"input_ids": row, "skipped": 0} for row in rows], pad)
    model.train()
    model(**feed).loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    adam.zero_grad()


@torch.no_grad()
def _resample_embedding(model: Any, token: int, tokenizer: Any, seed: int) -> None:  # noqa: ANN401
    """Draw a token's rows anew, as long as those of known nouns are in the mean."""
    nouns = find_pattern("take-away").lexicon.words("noun")
    known = [
        ids[0] for ids in (token_ids(tokenizer, f" {noun}") for noun in nouns) if len(ids) == 1
    ]
    draw = torch.Generator().manual_seed(seed)
    for part in {id(w): w for w in _embeddings(model)}.values():
        row = torch.randn(part.shape[1], generator=draw)
        part[token] = row / row.norm() * part[known].norm(dim=1).mean()


def _embeddings(model: Any) -> list[Tensor]:  # noqa: ANN401
    return [part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())]


@torch.no_grad()
def _answer_accuracy(model: Any, batch: Batch) -> Float[np.ndarray, " answer"]:  # noqa: ANN401
    """Return the share of whole answers that are right: number, noun."""
    model.eval()
    logits = model(
        input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=position_ids(batch.mask)
    ).logits
    hit = logits.argmax(-1)[:, :-1] == batch.ids[:, 1:]
    position = torch.arange(1, batch.ids.shape[1])
    shares = []
    for read in batch.readouts:
        inside = (position > read.start[:, None]) & (position < read.end[:, None])
        shares.append(_all_correct(hit | ~inside))
    return np.array(shares)


def _all_correct(hit: Bool[Tensor, "prompt position"]) -> float:
    return float(hit.all(-1).float().mean())
