"""Adaptation: steps of training until a model answers with a word that it never saw."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.compression.derived_model import DerivedModel, load_parent
from probes.compression.distillation.trainer import collate
from probes.errors import ModelError
from probes.experiments.adaptation.new_words import (
    TUNING_WORDS,
    AdaptationSettings,
    NewWord,
    check_words,
    prepare_word,
    token_ids,
    unused_words,
)
from probes.models.readout import position_ids
from probes.prompts.catalog import pattern as load_pattern
from probes.prompts.tokens.batch import Batch
from probes.stats.intervals import Estimate, bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd

ACCURACY_THRESHOLD = 0.9
"""Accuracy on test questions that noun and number must reach."""

_EVALUATION_STEPS = (
    *range(17), 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 192, 256, 384, 512,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WordAdaptation:
    """Adaptation of one model to one word.

    Attributes:
        noun: The word.
        steps: Steps to the first of two evaluations in a row above the threshold, or to the last
            evaluation if it is above; infinite if there are none.
        before, after: Accuracy of the noun on test questions, before and after training.
        number: Accuracy of the number after training.
        retention_change: Change of the accuracy of the noun on questions about known nouns;
            negative if they are forgotten.
        retention_change_number: The same for their number.
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
    """Adaptation of a model to new words.

    Attributes:
        model: Name.
        rate: Learning rate; the fastest on tuning words, which are not among `words`.
        words: Results of the words.
        max_steps: Most steps.
        rate_search: Mean steps on the tuning words, for each learning rate.
    """

    model: str
    rate: float
    words: tuple[WordAdaptation, ...]
    max_steps: int
    rate_search: Mapping[float, float]

    @property
    def steps(self) -> Estimate:
        """Mean steps over words; a word that is not learned counts as `max_steps`."""
        steps = np.array([min(word.steps, float(self.max_steps)) for word in self.words])
        return bootstrap_mean(steps, seed=0, bounds=(1, self.max_steps))

    @property
    def learned(self) -> int:
        """Number of words that are learned."""
        return int(sum(np.isfinite(word.steps) for word in self.words))

    def mean_over_words(self, name: str) -> Estimate:
        """Mean over words of a field of `WordAdaptation`, such as "retention_change"."""
        values = np.array([float(getattr(word, name)) for word in self.words])
        return bootstrap_mean(values, seed=0, bounds=(-1 if "change" in name else 0, 1))

    def table(self) -> "pd.DataFrame":
        """A row for each word."""
        import pandas as pd

        common = {"model": self.model, "rate": self.rate}
        return pd.DataFrame([common | asdict(word) for word in self.words])

    def summary(self) -> str:
        """All in one sentence."""
        before, after, nouns, numbers = (
            self.mean_over_words(name).value
            for name in ("before", "after", "retention_change", "retention_change_number")
        )
        return (
            f"{self.model} takes {self.steps} steps (rate {self.rate:g}, {self.learned} of "
            f"{len(self.words)} words); accuracy of the noun {before:.2f} before, {after:.2f} "
            f"after; known nouns {nouns:+.2f}, their numbers {numbers:+.2f}."
        )

    def __repr__(self) -> str:
        return f"<Adaptation of {self.model}: {self.steps} steps>"


def adapt(
    model: str | Path | DerivedModel,
    nouns: Sequence[str] = (),
    settings: AdaptationSettings | None = None,
) -> Adaptation:
    """Train a model on each new word separately, and count the steps.

    The embedding of the word is sampled anew, with the mean norm of known nouns, so that no model
    starts with an advantage. Training is AdamW without decay at a constant rate. The first three
    words choose the rate: the fastest, or the first of equal ones. The others are tested. Test
    questions share no pair of numbers with training texts of the same pattern.

    Args:
        model: Name, folder or derived model; it is not changed.
        nouns: Words of one token that are in no text; by default those of the tokenizer.
        settings: Settings of adaptation.

    Raises:
        PatternError: There are fewer than four words, or one is known or not a single token.
        ModelError: The model has no tokenizer.
    """
    settings, parent = settings or AdaptationSettings(), load_parent(model)
    if parent.tokenizer is None:
        raise ModelError(f"{parent.name} has no tokenizer: give a folder that has one")
    nouns = tuple(nouns) or unused_words(parent.tokenizer)
    check_words(nouns, parent.tokenizer)
    words = [
        prepare_word(parent, noun, settings, seed=settings.seed + n) for n, noun in enumerate(nouns)
    ]
    # A word that is not learned counts twice the most steps.
    rate_search = {
        rate: float(
            np.mean(
                [
                    min(_train_word(parent, word, rate, settings).steps, 2.0 * settings.max_steps)
                    for word in words[:TUNING_WORDS]
                ]
            )
        )
        for rate in settings.rates
    }
    rate = min(rate_search, key=lambda r: rate_search[r])
    results = tuple(_train_word(parent, word, rate, settings) for word in words[TUNING_WORDS:])
    return Adaptation(parent.name, rate, results, settings.max_steps, rate_search)


def evaluation_steps(max_steps: int) -> tuple[int, ...]:
    """Steps after which a model is tested, from 0 on; the last is `max_steps`."""
    steps = list(_EVALUATION_STEPS)
    while steps[-1] < max_steps:
        steps.append(2 * steps[-1])
    return (*(step for step in steps if step < max_steps), max_steps)


def _train_word(
    parent: DerivedModel, word: NewWord, rate: float, settings: AdaptationSettings
) -> WordAdaptation:
    """Train a copy of the model on one word at one rate."""
    model = copy.deepcopy(parent.hf_model).float()
    _resample_embedding(model, word.token, parent.tokenizer, word.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(word.seed)
    pad = parent.tokenizer.pad_token_id or 0
    before = _answer_accuracy(model, word.word_questions)
    others_before = _answer_accuracy(model, word.other_questions)
    accuracy, passes, done = before, _passes(before), 0
    steps = 0.0 if passes else np.inf
    for look in evaluation_steps(settings.max_steps)[1:]:
        for _ in range(done, look):
            chosen = torch.randperm(len(word.rows), generator=generator)[: settings.batch]
            _step(model, optimizer, [word.rows[int(k)] for k in chosen], pad)
        accuracy, passed_before, done = _answer_accuracy(model, word.word_questions), passes, look
        passes = _passes(accuracy)
        if passes and passed_before:
            break
        steps = float(look) if passes else np.inf
    change = _answer_accuracy(model, word.other_questions) - others_before
    return WordAdaptation(
        noun=word.noun,
        steps=steps,
        before=float(before[1]),
        after=float(accuracy[1]),
        number=float(accuracy[0]),
        retention_change=float(change[1]),
        retention_change_number=float(change[0]),
    )


def _passes(accuracy: Float[np.ndarray, " answer"]) -> bool:
    return bool((accuracy >= ACCURACY_THRESHOLD).all())


def _step(model: Any, optimizer: Any, rows: Sequence[tuple[int, ...]], pad: int) -> None:  # noqa: ANN401
    inputs = collate([{"input_ids": row, "skipped": 0} for row in rows], pad)
    model.train()
    model(**inputs).loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _resample_embedding(model: Any, token: int, tokenizer: Any, seed: int) -> None:  # noqa: ANN401
    """Sample a token's embeddings anew, with the mean norm of known nouns."""
    rows = [token_ids(tokenizer, f" {n}") for n in load_pattern("take-away").lexicon.words("noun")]
    known = [ids[0] for ids in rows if len(ids) == 1]
    generator = torch.Generator().manual_seed(seed)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    weights: dict[int, Tensor] = {id(layer.weight): layer.weight for layer in layers}
    for weight in weights.values():
        row = torch.randn(weight.shape[1], generator=generator)
        weight[token] = row / row.norm() * weight[known].norm(dim=1).mean()


@torch.no_grad()
def _answer_accuracy(model: Any, batch: Batch) -> Float[np.ndarray, " answer"]:  # noqa: ANN401
    """Fraction of whole answers that are correct: number, noun."""
    model.eval()
    logits = model(
        input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=position_ids(batch.mask)
    ).logits
    hits = logits.argmax(-1)[:, :-1] == batch.ids[:, 1:]
    position = torch.arange(1, batch.ids.shape[1])
    fractions = []
    for read in batch.readouts:
        inside = (position > read.start[:, None]) & (position < read.end[:, None])
        fractions.append(float((hits | ~inside).all(-1).float().mean()))
    return np.array(fractions)
