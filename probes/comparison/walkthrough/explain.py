"""Explain: one question, step by step through a model, and the same in a relative."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from probes.comparison.paths.measure import (
    measure_null_paths,
    measure_paths,
    plan_paths,
    search_paths,
)
from probes.comparison.paths.verdicts import path_effects, path_verdicts
from probes.comparison.setup.prompts import PathPrompts
from probes.comparison.verdict import VerdictLabel
from probes.comparison.walkthrough.prompts import (
    BOTH,
    WalkthroughPrompts,
    sample_walkthrough_prompts,
)
from probes.comparison.walkthrough.result import PathEffect, Walkthrough
from probes.comparison.walkthrough.steps import WalkRuns, walk_model
from probes.errors import GateError, ModelError
from probes.interventions.role_paths.graph import path_role_texts
from probes.models.model import Model, ModelSpec, load, random_init
from probes.observe.gate import answer_questions, gate
from probes.observe.result import Gate
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.english.match import match_text
from probes.prompts.question import Question
from probes.prompts.tokens.once import tokenize_once
from probes.scale.commands import open_store, remember_command

_SEED_OFFSET = 1_000


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """Sizes of a walk-through.

    Attributes:
        prompts: Other questions of the same form, for each variable that is changed; other numbers
            where the text fits no template. Fewer are used where fewer are found.
        nulls: Random-init models of each shape, at least one. A further one exceeds all of n with
            probability 1 / (n + 1), so labels need 19 for a rate of 0.05.
        seed: Seed of the questions, of the random-init models and of the bootstrap.
        run: Folder of the store of finished work, or a store; see `PlannedSettings`.
        device: Device of models that are given by name; PyTorch's default device if empty.
    """

    prompts: int = 32
    nulls: int = 5
    seed: int = 0
    run: Any = field(default=None, compare=False, metadata={"saved": False})
    device: str = field(default="", metadata={"saved": False})


def explain(
    model: ModelSpec,
    text: str,
    beside: ModelSpec | None = None,
    settings: ExplainSettings | None = None,
) -> Walkthrough:
    """Walk one question through a model by interventions, and through a relative beside it.

    Each state is replaced by the state of a changed version of the question. Places are chosen on
    some questions of the same form and measured on others; with numbers of the same text where it
    fits no template.

    Args:
        model: A family name, a folder, a hub id or a loaded model.
        text: The question, in English.
        beside: A relative.
        settings: Sizes and seed.

    Raises:
        MatchError: The text matches no pattern.
        GateError: The model does not have the behavior, or answers this question otherwise.
        PatternError: No changed version of the question has as many tokens and another answer.
        ModelError: The settings ask for no random-init model.
    """
    settings = settings or ExplainSettings()
    if settings.nulls < 1:
        raise ModelError(
            f"nulls={settings.nulls} found: a walk-through needs at least one random-init model"
        )
    question = match_text(text)
    specs, device = [model, *([beside] if beside is not None else [])], settings.device
    models = [load(one, device=device) for one in specs]
    known = models[0].provenance.other_seeds if models[0].provenance else ()
    other_seed = load(known[0], device=device) if known and len(models) > 1 else None
    with open_store(settings.run) as store, tokenize_once():
        if store is None:
            return _walk_through(models, question, settings, other_seed)
        return remember_command(
            store, "explain", _walk_through, models, question, settings, other_seed
        )


def _walk_through(
    models: Sequence[Model], question: Question, settings: ExplainSettings, other_seed: Model | None
) -> Walkthrough:
    """Walk a question through loaded models."""
    gates = [_require_answer(models[0], question, settings.seed)]
    skipped = ""
    for other in models[1:]:
        try:
            gates.append(_require_answer(other, question, settings.seed))
        except GateError as error:
            skipped = str(error)
    models = models[: len(gates)]
    other_seed = other_seed if len(models) > 1 else None
    prompts = sample_walkthrough_prompts(
        question,
        find_pattern(question.pattern),
        [one.tokenizer for one in models],
        prompts=settings.prompts,
        seed=settings.seed,
    )
    nulls = [
        [random_init(one, seed=settings.seed + _SEED_OFFSET + n) for n in range(settings.nulls)]
        for one in models
    ]
    runs = [WalkRuns.of(one, null, prompts) for one, null in zip(models, nulls, strict=True)]
    walks = tuple(walk_model(one, own) for one, own in zip(runs, gates, strict=True))
    paths, labels = _role_paths(
        _PathModels(models[0], models[-1], other_seed, nulls[-1]), prompts, gates[-1], settings.seed
    )
    return Walkthrough(
        text=question.text,
        pattern=question.pattern,
        stretches=path_role_texts(question),
        answers=question.answers,
        roles=runs[0].roles,
        models=walks,
        paths=paths,
        path_labels=labels,
        other_seed=other_seed.name if other_seed else "",
        skipped=skipped,
        prompts=settings.prompts,
        nulls=settings.nulls,
        seed=settings.seed,
        same_question=prompts.same_question,
        left_out=prompts.left_out,
    )


def _require_answer(model: Model, question: Question, seed: int) -> tuple[Gate, ...]:
    """Gates of the question's pattern.

    Raises:
        GateError: One is closed, or the model answers this question otherwise.
    """
    gates = gate(model, find_pattern(question.pattern), seed=seed)
    own = [one for one in gates if one.answer in dict(question.answers)]
    for one in own:
        if not one.is_passed:
            raise GateError(
                f"{model.name} does not have the behavior of {question.pattern!r} ({one.answer}: "
                f"{one.score_name} {one.score}, best heuristic {one.heuristic_accuracy:.2f}): "
                "there is nothing to walk through"
            )
    behavior = answer_questions(model, [question])
    if not bool(behavior.preferred.all()):
        says = model.generate(question.text, max_new_tokens=8)[len(question.text) :].strip()
        raise GateError(
            f"{model.name} answers {says!r}, not {' '.join(a for _, a in question.answers)!r}: ask "
            "a question that it answers"
        )
    return tuple(own)


@dataclass(frozen=True, eq=False)
class _PathModels:
    full: Model
    other: Model
    other_seed: Model | None
    nulls: Sequence[Model]


def _role_paths(
    models: _PathModels, prompts: WalkthroughPrompts, gates: tuple[Gate, ...], seed: int
) -> tuple[tuple[PathEffect, ...], dict[str, VerdictLabel]]:
    """Role paths of the model and of its relative, with the verdicts on those in the relative."""
    test = {name: pairs for name, pairs in prompts.others.test.items() if name != BOTH}
    pairs = PathPrompts(prompts.others.search, test)
    both = list(dict.fromkeys((models.full, models.other)))
    found = [search_paths(one, pairs) for one in both]
    plan = plan_paths(found[0], found[1:], pairs, seed=seed)
    runs = [measure_paths(one, plan) for one in both]
    effects = path_effects(
        plan,
        found,
        (runs[0], runs[-1], measure_paths(models.other_seed, plan) if models.other_seed else None),
        [measure_null_paths(null, plan) for null in models.nulls],
        seed=seed,
    )
    verdicts = path_verdicts(effects, gates)
    return effects, {v.subject or v.counterpart: v.label for v in verdicts}
