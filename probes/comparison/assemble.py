"""Comparison of two measured models: their verdicts, matches, transfers and failing prompts."""

import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from probes.comparison.failing_prompts import head_failing_prompts, variable_failing_prompts
from probes.comparison.heads.matching import HeadPairing, match_heads, pair_heads
from probes.comparison.heads.profiles import HeadProfiles, similarity_draws
from probes.comparison.heads.result import MeanPairScore
from probes.comparison.heads.verdicts import NullModels, head_verdicts
from probes.comparison.measurements import model_facts
from probes.comparison.model_facts import SolvedLogitDiff
from probes.comparison.nulls import NullDraw
from probes.comparison.pair_transfers import (
    MeasuredPair,
    ReferenceSet,
    pool_directions,
    variable_verdicts,
)
from probes.comparison.paths.result import PathCircuit, PathEffect
from probes.comparison.paths.verdicts import path_circuits, path_effects, path_verdicts
from probes.comparison.result import Comparison
from probes.comparison.setup.method import ComparisonMethod
from probes.comparison.setup.prompts import ComparisonPrompts
from probes.comparison.setup.references import ComparisonSettings
from probes.files import list_derived_models
from probes.models.files.names import split_name, stored_source
from probes.models.model import Model
from probes.observe.behavior import Behavior
from probes.observe.result import GATE_STATES, Gate, GateCriterion, GateState
from probes.prompts.catalog import example_question, list_patterns
from probes.prompts.pattern import Pattern
from probes.scale.versions import package_version
from probes.stats.intervals import Estimate, bootstrap_mean, percentile_interval
from probes.stats.null_threshold import conformal_threshold
from probes.stats.paired import mcnemar_test

_LEAST_PROMPTS, _LEAST_NULLS = 4, 20  # Of the command line.


def assemble_comparison(
    pair: MeasuredPair,
    shared: ComparisonPrompts,
    references: ReferenceSet,
    settings: ComparisonSettings,
) -> Comparison:
    """Comparison of a full model and a relative from what was measured on both."""
    a, b, seed = pair.full, pair.other, settings.seed
    random_init = references.nulls_of(b.model)
    other_seed = references.other_seed
    if other_seed and other_seed.name == b.name:
        other_seed = None  # A relative is no reference for itself.
    profiles = [null.profiles for null in random_init if null.profiles]
    pairings = [pair_heads(a.profiles, null) for null in profiles]
    ceiling = pair_heads(a.profiles, other_seed.profiles) if other_seed else None
    matches = match_heads(
        a.profiles,
        b.profiles,
        null_scores=np.stack([pairing.scores for pairing in pairings]),
        other_seed=ceiling,
        seed=seed,
    )
    heads = head_verdicts(
        a.heads,
        b.heads,
        NullModels(
            random_init=profiles,
            negative_controls=[
                one.profiles for one in references.negative_controls if one.name != b.name
            ],
            same_shape=[
                one.profiles for name, one in references.same_shape.items() if name == b.name
            ],
            other_seed=other_seed.profiles if other_seed else None,
            is_permuted=shared.permuted_null,
        ),
        gate=_worst_gate_state((*a.gates, *b.gates)),
        seed=seed,
    )
    transfers_to_other, transfers_to_full = pool_directions(pair.draws)
    variables, draws = variable_verdicts(pair, shared, references.other_seed)
    paths, circuits = _compare_paths(pair, references, settings)
    failing_prompts = {
        verdict.subject: head_failing_prompts(a, b, verdict) for verdict in heads if verdict.subject
    }
    failing_prompts |= {
        transfer.variable: variable_failing_prompts(transfer, shared.folds)
        for transfer in transfers_to_other
        if shared.folds
    }
    return Comparison(
        full=model_facts(a.model),
        other=model_facts(b.model),
        pattern=shared.pattern.name,
        title=shared.pattern.title,
        format=str(shared.pattern.wrapper.format),
        example=(example_question(shared.pattern) or shared.questions[0]).full_text,
        contrasts={contrast: a.exact[contrast] for contrast in shared.pairs},
        roles=shared.roles,
        answers=a.behavior.answers,
        prompts=settings.prompts,
        seed=seed,
        nulls=settings.nulls,
        other_seed=other_seed.name if other_seed else "",
        gates=(*a.gates, *b.gates),
        random_init_accuracy=_mean_accuracy(random_init),
        solved_logit_diffs=_logit_diffs_on_solved(
            {a.name: a.behavior, b.name: b.behavior}, shared.gate_criterion, seed
        ),
        matches=matches,
        mean_pair_score=_mean_pair_score(a.profiles, b.profiles, pairings, ceiling, seed),
        plot_data={a.name: a.plot_data, b.name: b.plot_data},
        accuracy_changes=_accuracy_changes(a.behavior, b.behavior, shared.gate_criterion),
        verdicts=(*path_verdicts(paths, (*a.gates, *b.gates)), *variables, *heads),
        paths=paths,
        path_circuits=circuits,
        draws=draws,
        transfers_to_other=transfers_to_other,
        transfers_to_full=transfers_to_full,
        transfer_skip_reason=shared.transfer_skip_reason,
        failing_prompts=failing_prompts,
        method=ComparisonMethod(
            "permuted" if shared.permuted_null else "random-init",
            (*a.screens, *b.screens),
            null_screens=tuple(check for null in random_init for check in null.screens),
            missing_draws=_missing_draws(shared, settings),
            command=_command((a.model, b.model), shared.pattern, settings),
            version=package_version(),
        ),
        edges=references.edges.get(b.name),
    )


def _missing_draws(shared: ComparisonPrompts, settings: ComparisonSettings) -> str:
    """Sentence about further draws that the pattern does not allow; "" where there are all."""
    if not shared.missing_draws:
        return ""
    found = 1 + len(shared.further_folds)
    return (
        f"Variables were measured in {found} of {settings.draws} draws of prompts: "
        f"{shared.missing_draws}."
    )


def _command(models: tuple[Model, Model], on: Pattern, settings: ComparisonSettings) -> str:
    """Command line of a comparison; "" for models or settings that it does not take."""
    made = list_derived_models()
    names = [_source(model, made) for model in models]
    own = (settings.other_seed, settings.negative_controls, settings.edges)
    is_small = settings.prompts < _LEAST_PROMPTS or settings.nulls < _LEAST_NULLS
    shown = on.name if on.name in list_patterns() else on.file
    if is_small or not all((*names, shown)) or any(each is not None for each in own):
        return ""
    options: dict[str, object] = {
        "pattern": shown,
        "format": on.wrapper.format,
        "prompts": settings.prompts,
        "seed": settings.seed,
        "nulls": settings.nulls,
        "draws": settings.draws,
        "repeats": settings.repeats,
        "screen": settings.screen,
        "null": settings.null,
    }
    if settings.gate:
        options["gate"] = settings.gate
    words = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    return shlex.join(["probes", "compare", *names, *words])


def _source(model: Model, made: Sequence[str]) -> str:
    """What the command line takes for a model, with the name that it has here; "" for none."""
    source = stored_source(model.origin)
    if not source:
        return model.name if model.name in made else ""
    return source if split_name(source)[0] == model.name else f"{model.name}={source}"


def _mean_accuracy(random_init: Sequence[NullDraw]) -> tuple[float, ...]:
    """Mean over random-init models, of each answer as the gate counts it; empty if permuted."""
    accuracies = [null.accuracy for null in random_init if null.accuracy is not None]
    return tuple(map(float, np.mean(accuracies, axis=0))) if accuracies else ()


def _compare_paths(
    pair: MeasuredPair, references: ReferenceSet, settings: ComparisonSettings
) -> tuple[tuple[PathEffect, ...], tuple[PathCircuit, ...]]:
    """Role paths of two models, and the circuits of the full model."""
    a, b, measured, seed = pair.full, pair.other, references.paths, settings.seed
    other_seed = references.other_seed
    runs = (
        measured.runs[a.name],
        measured.runs[b.name],
        measured.runs[other_seed.name] if other_seed and other_seed.name != b.name else None,
    )
    nulls = [null.paths for null in references.nulls_of(b.model)]
    return (
        path_effects(measured.plan, (a.paths, b.paths), runs, nulls, seed=seed),
        path_circuits(measured.plan, a.paths, runs, seed=seed),
    )


def _worst_gate_state(gates: Sequence[Gate]) -> GateState:
    states = {gate.state for gate in gates}
    return next(state for state in reversed(GATE_STATES) if state in states)


def _accuracy_changes(
    full: Behavior, other: Behavior, criterion: GateCriterion
) -> tuple[Estimate, ...]:
    """Change of what the gate counts as right, for each answer, paired by question."""
    both = (one.counted(criterion).numpy().T for one in (full, other))
    return tuple(mcnemar_test(*answers).difference for answers in zip(*both, strict=True))


def _logit_diffs_on_solved(
    behaviors: Mapping[str, Behavior], criterion: GateCriterion, seed: int
) -> tuple[SolvedLogitDiff, ...]:
    counted = [one.counted(criterion).numpy().all(1) for one in behaviors.values()]
    both = np.logical_and.reduce(counted)
    rows = []
    for name, behavior in behaviors.items():
        for k, answer in enumerate(behavior.answers):
            values = behavior.logit_diff[:, k].double().numpy()[both]
            logit_diff = bootstrap_mean(values, seed=seed) if len(values) > 1 else None
            rows.append(SolvedLogitDiff(name, answer, int(both.sum()), logit_diff))
    return tuple(rows)


def _mean_pair_score(
    a: HeadProfiles,
    b: HeadProfiles,
    nulls: Sequence[HeadPairing],
    other_seed: HeadPairing | None,
    seed: int,
) -> MeanPairScore:
    pairing = pair_heads(a, b)
    draws = similarity_draws(a, b, seed=seed)[1:]
    rows = [k for k, partner in enumerate(pairing.partners) if partner >= 0]
    columns = [pairing.partners[k] for k in rows]
    means = draws[:, rows, columns].mean(1)
    chance = [null.mean_score for null in nulls]
    return MeanPairScore(
        # Samples repeat prompts, which lowers each cosine: their spread counts, not their mean.
        score=percentile_interval(pairing.mean_score, pairing.mean_score + means - means.mean()),
        chance=float(np.mean(chance)),
        chance_high=float(conformal_threshold(chance)),
        # The best pairs of the other seed, as many as these models have: a mean over more is lower.
        other_seed=float(np.sort(other_seed.scores)[::-1][: len(rows)].mean())
        if other_seed
        else np.nan,
    )
