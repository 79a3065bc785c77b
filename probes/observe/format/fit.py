"""Fit of a prompt format: which format opens a pattern's gate in a model, or in several at once.

all formats on few prompts → the best on more → wider numbers → the best one on other prompts
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from probes.errors import PatternError
from probes.models.model import ModelSpec, load
from probes.observe.format.result import FormatFit, FormatScore
from probes.observe.format.trials import Trials
from probes.observe.result import GATE_STATES
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.format.prompt_format import PromptFormat
from probes.prompts.pattern import Pattern

FORMATS = (
    *("plain", "few-shot-4", "few-shot-4#1", "few-shot-4#2", "few-shot-4:bare", "few-shot-8"),
    *("chat", "chat:bare", "chat-system", "chat-few-shot-4"),
)
"""Formats that `fit_format` tries."""

SMALL_NUMBERS = (0, 9)
"""Numbers of one digit, which are tried first."""

_FIRST_PROMPTS, _MORE_PROMPTS = 4, 12
_FINALISTS = 2
_MAX_ERRORS = 0.3  # With more errors in the first prompts, a wider range is given up.


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Formats to try, and sizes.

    Attributes:
        formats: Names of formats. One without numbers of its own is tried with numbers of one digit
            first, and then with the pattern's own range and with numbers in words. The best one is
            also tried with the first answer alone.
        prompts: Prompts of each operation in each half, at least 8.
        seed: Seed of the prompts.
        progress: Show a progress bar.
    """

    formats: tuple[str, ...] = FORMATS
    prompts: int = 32
    seed: int = 0
    progress: bool = False


def fit_format(
    models: ModelSpec | Sequence[ModelSpec],
    pattern: str | Pattern,
    settings: FitSettings = FitSettings(),
) -> FormatFit:
    """Find the prompt format in which all models have a pattern's behavior.

    The best format has the best state of the weakest gate, over models, operations and answers;
    then as many answers and as wide a range of numbers as possible; then the best accuracy. It is
    selected on one half of the prompts and reported on the other, because selection inflates.

    Args:
        models: One model or several, or their names; for several, one format for all is sought.
        pattern: Pattern in plain text, or its name.
        settings: Formats to try, sizes and seed.

    Raises:
        PatternError: No format can be applied to the pattern.
    """
    if settings.prompts < 2 * _FIRST_PROMPTS:
        raise PatternError(
            f"{settings.prompts} prompts were requested: a fit needs at least {2 * _FIRST_PROMPTS}"
        )
    given = models if isinstance(models, Sequence) and not isinstance(models, str) else (models,)
    models, pattern = tuple(load(model) for model in given), find_pattern(pattern)
    trials = Trials(models, pattern, settings.prompts, settings.seed, progress=settings.progress)
    names = list(dict.fromkeys(_with_small_numbers(pattern, name) for name in settings.formats))
    few, more = _FIRST_PROMPTS, min(_MORE_PROMPTS, settings.prompts)
    trials.run(names, "formats", few)
    usable = [name for name in names if trials.scores[name][0].gates]
    if not usable:
        raise PatternError(
            f"No format can be applied to {pattern.name!r}: "
            f"{next(iter(trials.scores.values()))[0].reason}"
        )
    usable.sort(key=lambda name: _errors(trials.scores[name]))
    best = usable[:_FINALISTS]
    if len(pattern.answers) > 1:
        best.append(_shortened(best[0]))
    trials.run(best, "finalists", more)
    winner = min(best, key=lambda name: _rank(trials.scores[name], coarse=True))
    wider = [name for name in _wider(winner, settings.formats) if name not in trials.scores]
    trials.run(wider, "numbers", more)
    passed = [name for name in wider if _errors(trials.scores[name])[0] <= _MAX_ERRORS]
    finalists = [*passed[:_FINALISTS], winner]
    trials.run(finalists, "selection", settings.prompts)
    selected = min(finalists, key=lambda name: _rank(trials.scores[name]))
    return FormatFit(
        models=tuple(model.name for model in models),
        pattern=pattern.name,
        prompts=settings.prompts,
        seed=settings.seed,
        selection=tuple(score for scores in trials.scores.values() for score in scores),
        held_out=trials.held_out(selected),
    )


def _errors(scores: Sequence[FormatScore]) -> tuple[float, float]:
    """Error of the least accurate gate, and mean error; 1 where none was measured."""
    errors = [1 - gate.score.value for score in scores for gate in score.gates] or [1.0]
    return max(errors), sum(errors) / len(errors)


def _rank(scores: Sequence[FormatScore], *, coarse: bool = False) -> tuple[float, ...]:
    """Rank of a format, smaller is better: state, fewer answers, narrower numbers, errors.

    A coarse rank is for few prompts, which open no gate: it asks for few errors, not for a state.
    """
    format = PromptFormat.parse(scores[0].format)
    errors = _errors(scores)
    worst = max(GATE_STATES.index(score.state) for score in scores)
    state = errors[0] > _MAX_ERRORS if coarse else worst
    narrow = (format.numbers is not None) + format.digits
    return float(state), float(format.is_short), float(narrow), *errors


def _shortened(name: str) -> str:
    """The same format with the first answer alone."""
    format = PromptFormat.parse(name)
    return str(replace(format, answer="bare-short" if format.is_bare else "short"))


def _with_small_numbers(pattern: Pattern, name: str) -> str:
    """Format with numbers of one digit, where the pattern has a wider range of its own."""
    format, lexicon = PromptFormat.parse(name), pattern.lexicon
    slots = {slot for template in pattern.templates for slot in template.slots}
    has_numbers = any(lexicon.kind_of(slot) == "number" for slot in slots)
    if format.numbers or not has_numbers or lexicon.number_range[1] <= SMALL_NUMBERS[1]:
        return str(format)
    return str(replace(format, numbers=SMALL_NUMBERS, digits=True))


def _wider(name: str, asked: Sequence[str]) -> list[str]:
    """The same format with wider numbers, the widest first; none where it was asked for so."""
    format = PromptFormat.parse(name)
    if format.numbers is None or name in asked:
        return []
    choices = ((None, False), (None, True), (format.numbers, False))
    return [str(replace(format, numbers=numbers, digits=digits)) for numbers, digits in choices]
