"""Trials of prompt formats: the gates of models on the first prompts, and on more of them."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from probes.errors import BatchError, OutcomeError, PatternError, TokenizerError
from probes.models.model import Model
from probes.observe.behavior import Behavior
from probes.observe.format.result import FormatScore
from probes.observe.gate import answer_questions, gate_behavior
from probes.prompts.format.examples import formatted
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.pair_batch import tokenizable_by

Questions = tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Trials:
    """Formats on the questions of one pattern, in several models.

    Attributes:
        models: Models with tokenizers.
        pattern: Pattern in plain text.
        prompts: Most questions of each operation in each half.
        seed: Seed of the questions and of bootstraps.
        progress: Show a progress bar.
        scores: Last score of each format on the half that selects, one for each model.
    """

    models: tuple[Model, ...]
    pattern: Pattern
    prompts: int
    seed: int
    progress: bool
    scores: dict[str, tuple[FormatScore, ...]] = field(default_factory=dict)
    _halves: dict[str, list[tuple[Questions, Questions]]] = field(default_factory=dict)
    _answered: dict[tuple[str, int, int], Behavior] = field(default_factory=dict)

    def run(self, names: Iterable[str], label: str, count: int) -> None:
        """Score formats on the first questions of each operation; answers are asked once.

        A format that the pattern or a tokenizer does not allow has a reason in place of gates.
        """
        bar = tqdm(list(names), desc=label, leave=False, disable=None if self.progress else True)
        for name in bar:
            self.scores[name] = self._score(name, 0, count)

    def held_out(self, name: str) -> tuple[FormatScore, ...]:
        """Score of each model on the other half of the questions."""
        return self._score(name, 1, self.prompts)

    def _score(self, name: str, half: int, count: int) -> tuple[FormatScore, ...]:
        try:
            if name not in self._halves:
                self._halves[name] = list(self._sample(name))
            sides = [side[half][:count] for side in self._halves[name]]
            return tuple(
                FormatScore(
                    model.name,
                    name,
                    tuple(
                        gate
                        for side, questions in enumerate(sides)
                        for gate in gate_behavior(
                            self._answer((name, n, 2 * side + half), questions),
                            questions,
                            seed=self.seed,
                        )
                    ),
                )
                for n, model in enumerate(self.models)
            )
        except (BatchError, OutcomeError, PatternError, TokenizerError) as error:
            return tuple(FormatScore(m.name, name, reason=str(error)) for m in self.models)

    def _sample(self, name: str) -> Iterator[tuple[Questions, Questions]]:
        """Two halves of questions without a common text, for each operation."""
        chosen = formatted(self.pattern, name)
        keep = tokenizable_by(*(model.tokenizer for model in self.models))
        for side in (chosen, chosen.flipped()) if chosen.opposite else (chosen,):
            count = 2 * self.prompts if side.templates else 2 * len(side.user_pairs)
            questions = list(side.sample_questions(count, seed=self.seed, keep=keep))
            random.Random(self.seed).shuffle(questions)
            half = min(len(questions) // 2, self.prompts)
            if not half:
                raise PatternError(f"{side.name!r} has {len(questions)} questions: give more")
            yield tuple(questions[:half]), tuple(questions[half : 2 * half])

    def _answer(self, key: tuple[str, int, int], questions: Questions) -> Behavior:
        """Behavior of one model on questions; those that it answered before are not asked again."""
        known = self._answered.get(key)
        new = questions[len(known.correct) if known else 0 :]
        if new:
            found = answer_questions(self.models[key[1]], new)
            known = _join(known, found) if known else found
            self._answered[key] = known
        assert known is not None
        return known


def _join(first: Behavior, second: Behavior) -> Behavior:
    """Behavior on the prompts of both."""
    pairs = {
        item.name: (getattr(first, item.name), getattr(second, item.name)) for item in fields(first)
    }
    return replace(
        first, **{n: torch.cat(pair) for n, pair in pairs.items() if isinstance(pair[0], Tensor)}
    )
