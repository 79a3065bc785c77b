"""Fit of a prompt format: which format opens a pattern's gate in a model, or in several at once.

all formats on few prompts → the best on more → the best one on other prompts, where it is reported
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm.auto import tqdm

from probes.errors import (
    BatchError,
    GateError,
    OutcomeError,
    PatternError,
    ResultError,
    TokenizerError,
)
from probes.files import formats_file, write_atomic
from probes.models.model import Model
from probes.observe.format_result import FormatFit, FormatScore
from probes.observe.gate import answer_questions, gate_behavior
from probes.observe.result import GATE_STATES, Gate
from probes.prompts.format.chat import require_template
from probes.prompts.format.examples import formatted
from probes.prompts.format.prompt_format import AUTO, PLAIN_NAME, PromptFormat
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.pair_batch import tokenizable_by

FORMATS = (
    *("plain", "plain:short", "few-shot-4", "few-shot-4:short", "few-shot-4:bare", "few-shot-8"),
    *("chat", "chat:short", "chat:bare", "chat-system", "chat-system:bare-short"),
    *("chat-few-shot-4", "chat-few-shot-4:bare"),
)
"""Formats that `fit_format` tries."""

SMALL_NUMBERS = (0, 9)
"""Numbers of one digit, tried beside the pattern's own range."""

_FIRST_PROMPTS = 8
_FINALISTS = 2
_MAX_ERRORS = 0.3  # In the first prompts: more of them do not open the gate.


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Formats to try, and sizes.

    Attributes:
        formats: Names of formats; each is tried with numbers of one digit, and the best also with
            the pattern's own range.
        prompts: Prompts of each operation in each half, at least 8.
        seed: Seed of the prompts.
        progress: Show a progress bar.
    """

    formats: tuple[str, ...] = FORMATS
    prompts: int = 40
    seed: int = 0
    progress: bool = False


def fit_format(
    models: Sequence[Model], pattern: Pattern, settings: FitSettings = FitSettings()
) -> FormatFit:
    """Find the prompt format in which all models have a pattern's behavior.

    The best format has the best state of the weakest gate, over models, operations and answers;
    then as many answers and as wide a range of numbers as possible; then the best accuracy. It is
    selected on one half of the prompts and reported on the other, because selection inflates.

    Raises:
        PatternError: No format can be applied to the pattern.
    """
    if settings.prompts < _FIRST_PROMPTS:
        raise PatternError(
            f"{settings.prompts} prompts were requested: a fit needs at least {_FIRST_PROMPTS}"
        )
    trials = _Trials(tuple(models), pattern, settings)
    names = dict.fromkeys(_with_small_numbers(pattern, name) for name in settings.formats)
    if len(pattern.answers) == 1:  # The short form is the full one.
        names = [name for name in names if not PromptFormat.parse(name).is_short]
    tried = trials.score_all(names, "formats", _FIRST_PROMPTS)
    usable = sorted(
        (name for name in tried if tried[name][0].gates), key=lambda n: _errors(tried[n])
    )
    if not usable:
        first = next(iter(tried.values()))[0]
        raise PatternError(f"No format can be applied to {pattern.name!r}: {first.reason}")
    short = [name for name in usable if PromptFormat.parse(name).is_short]
    full = [name for name in usable if name not in short]
    best = [*full[:_FINALISTS], *short[:1]]
    wide = [_with_own_numbers(name) for name in best]
    screened = trials.score_all([n for n in wide if n not in best], "numbers", _FIRST_PROMPTS)
    tried |= screened
    best += [name for name, scores in screened.items() if _errors(scores)[0] <= _MAX_ERRORS]
    tried |= trials.score_all(best, "finalists", settings.prompts)
    return trials.fit(tried, best)


def pattern_in_format(
    pattern: Pattern, format: str, models: Sequence[Model], *, seed: int = 0
) -> Pattern:
    """Pattern in a format that all models can read.

    Args:
        pattern: Pattern; one that is in a format already stays in it.
        format: Name of a format, or "auto" for the one that was fitted for these models and kept;
            if there is none, it is fitted now.
        models: Models that read the prompts.
        seed: Seed of the fit.

    Raises:
        GateError: "auto", and no format opens the gate in all models.
        PatternError: The format is unknown, or the pattern has too few words for it.
        TokenizerError: A chat format, and a model without a chat template.
    """
    if format == PLAIN_NAME:
        return pattern
    if format == AUTO:
        format = _auto_format(pattern, models, seed)
    chosen = formatted(pattern, format)
    if chosen.wrapper.format.chat:
        for model in models:
            require_template(model.tokenizer)
    return chosen


def save_fit(fit: FormatFit, pattern: Pattern, models: Sequence[Model]) -> None:
    """Keep the selected format for these models and this pattern; see `files.formats_file`."""
    path, key, gate = formats_file(), _fit_key(pattern, models), fit.weakest
    entries = [entry for entry in _read_entries() if entry["key"] != key]
    entries.append(
        {
            "key": key,
            "models": list(fit.models),
            "pattern": fit.pattern,
            "format": fit.selected if fit.found else "",
            "gate": fit.state,
            "accuracy": round(gate.accuracy.value, 4) if gate else None,
            "heuristic_accuracy": round(gate.heuristic_accuracy, 4) if gate else None,
            "prompts": fit.prompts,
            "seed": fit.seed,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(entries, indent=1).encode())


def kept_format(pattern: Pattern, models: Sequence[Model]) -> str | None:
    """Kept format of these models together; "" where none opens the gate, None where none is kept.

    Raises:
        ResultError: The file of kept formats is broken.
    """
    key = _fit_key(pattern, models)
    return next((entry["format"] for entry in _read_entries() if entry["key"] == key), None)


def _auto_format(pattern: Pattern, models: Sequence[Model], seed: int) -> str:
    trained = [model for model in models if not model.origin.startswith("random-init")] or models
    kept = kept_format(pattern, trained)
    if kept is None:
        # What opens the gate of one may open that of all.
        single = dict.fromkeys(kept_format(pattern, [model]) or "" for model in trained)
        fit, settings = None, FitSettings(seed=seed)
        if tried := [name for name in single if name]:
            trials = _Trials(tuple(trained), pattern, settings)
            fit = trials.fit(trials.score_all(tried, "formats", settings.prompts), tried)
        if fit is None or not fit.found:
            fit = fit_format(trained, pattern, settings)
        save_fit(fit, pattern, trained)
        kept = fit.selected if fit.found else ""
    if not kept:
        raise GateError(
            f"No format opens the gate of {pattern.name!r} in "
            f"{' and '.join(model.name for model in trained)}: run probes fit to see those that "
            "were tried, or choose another model or pattern"
        )
    return kept


@dataclass(frozen=True, slots=True)
class _Trials:
    """Formats on the questions of one pattern, in several models."""

    models: tuple[Model, ...]
    pattern: Pattern
    settings: FitSettings

    def score_all(
        self, names: Iterable[str], label: str, count: int
    ) -> dict[str, tuple[FormatScore, ...]]:
        """Scores of formats, with a progress bar, on the half that selects."""
        disable = None if self.settings.progress else True
        bar = tqdm(list(names), desc=label, leave=False, disable=disable)
        return {name: self.score(name, slice(count)) for name in bar}

    def fit(self, tried: dict[str, tuple[FormatScore, ...]], finalists: Sequence[str]) -> FormatFit:
        """Select one of the finalists, and score it on the other half."""
        usable = [name for name in finalists if tried[name][0].gates]
        selected = min(usable or finalists, key=lambda name: _rank(tried[name]))
        return FormatFit(
            models=tuple(model.name for model in self.models),
            pattern=self.pattern.name,
            prompts=self.settings.prompts,
            seed=self.settings.seed,
            selection=tuple(score for scores in tried.values() for score in scores),
            held_out=self.score(selected, None),
        )

    def score(self, name: str, part: slice | None) -> tuple[FormatScore, ...]:
        """Score of each model on a part of the half that selects, or on the other half (None).

        A format that the pattern or a tokenizer does not allow has a reason instead.
        """
        try:
            sides = list(self._sample(name, part))
            gates = [tuple(self._gates(model, sides)) for model in self.models]
        except (BatchError, OutcomeError, PatternError, TokenizerError) as error:
            return tuple(FormatScore(m.name, name, reason=str(error)) for m in self.models)
        return tuple(
            FormatScore(model.name, name, own)
            for model, own in zip(self.models, gates, strict=True)
        )

    def _sample(self, name: str, part: slice | None) -> Iterator[tuple[Question, ...]]:
        """Questions of each operation, without a text of the other half."""
        chosen, settings = formatted(self.pattern, name), self.settings
        keep = tokenizable_by(*(model.tokenizer for model in self.models))
        for side in (chosen, chosen.flipped()) if chosen.opposite else (chosen,):
            count = 2 * settings.prompts if side.templates else 2 * len(side.user_pairs)
            questions = list(side.sample_questions(count, seed=settings.seed, keep=keep))
            random.Random(settings.seed).shuffle(questions)
            half = min(len(questions) // 2, settings.prompts)
            yield tuple(questions[:half][part] if part else questions[half : 2 * half])

    def _gates(self, model: Model, sides: Sequence[Sequence[Question]]) -> Iterator[Gate]:
        for questions in sides:
            yield from gate_behavior(
                answer_questions(model, questions), questions, seed=self.settings.seed
            )


def _errors(scores: Sequence[FormatScore]) -> tuple[float, float]:
    """Error of the least accurate gate, and mean error; 1 where none was measured."""
    errors = [1 - gate.accuracy.value for score in scores for gate in score.gates] or [1.0]
    return max(errors), sum(errors) / len(errors)


def _rank(scores: Sequence[FormatScore]) -> tuple[float, ...]:
    """Rank of a format, smaller is better: state, fewer answers, narrower numbers, errors."""
    format = PromptFormat.parse(scores[0].format)
    worst = max(GATE_STATES.index(score.state) for score in scores)
    return worst, format.is_short, format.numbers is not None, *_errors(scores)


def _with_small_numbers(pattern: Pattern, name: str) -> str:
    """Format with numbers of one digit, where the pattern has a wider range of its own."""
    format, lexicon = PromptFormat.parse(name), pattern.lexicon
    slots = {slot for template in pattern.templates for slot in template.slots}
    has_numbers = any(lexicon.kind_of(slot) == "number" for slot in slots)
    if format.numbers or not has_numbers or lexicon.number_range[1] <= SMALL_NUMBERS[1]:
        return str(format)
    return str(replace(format, numbers=SMALL_NUMBERS))


def _with_own_numbers(name: str) -> str:
    return str(replace(PromptFormat.parse(name), numbers=None))


def _fit_key(pattern: Pattern, models: Sequence[Model]) -> str:
    """Hash of the models' origins and of the pattern with its words."""
    parts = (sorted(model.origin for model in models), repr(pattern))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _read_entries() -> list[dict[str, Any]]:
    path = formats_file()
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(e["key"], str) and isinstance(e["format"], str) for e in entries):
            return entries
        reason = "a key or a format is no text"
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ResultError(
        f"{str(path)!r} holds no formats ({reason}): remove it, and run probes fit again"
    )
