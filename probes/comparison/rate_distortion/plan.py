"""Plan of a rate–distortion curve: its stages in passes, and the settings that a budget lowers."""

import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter, thread_time

from probes.comparison.rate_distortion.mechanism import MechanismTest, sample_mechanism_test
from probes.comparison.rate_distortion.parent import (
    RateDistortionSettings,
    circuit_prompts,
    sample_circuit_tasks,
)
from probes.comparison.rate_distortion.point import is_compressed, same_graph
from probes.comparison.setup.plan import plan_comparison
from probes.comparison.setup.references import load_references
from probes.errors import CircuitError, PatternError
from probes.models.files.memory import process_memory
from probes.models.model import Model
from probes.models.pass_costs import device_name, seconds_per_prompt
from probes.plan import Plan, Reduction, Stage, fit_to_budget, with_outlook
from probes.prompts.pattern import Pattern

# What it costs in passes, measured on `full` (docs/performance.md).
_ANSWERS, _PARENT_ANSWERS = 3.8, 1.1  # Of a question: the relative's part, and the parent's.
_READOUTS = 1.2  # Of a question, for its KL alone.
_RUNS = 2.5  # Of a pair, without intervention.
_SITE = 0.3  # Of a site in the search, in a model too large to time it.
_VARIABLE = 0.37  # Of an interchange at a known site.
_FAITHFULNESS, _CIRCUIT = 3.3, 44.0  # Of a pair: a known circuit, and the search of one.
_COPY = 95  # To make a copy with weight noise, or a random-init model.
_MATCHED = 4  # Copies that are tried for one whose KL is that of the relative.
_POINT = 100  # Intervals and storage of a point.
_PLANNED_BASES, _PLANNED_PROMPTS = 24, 8  # Sampled for the plan.
_SECONDS = 2.0  # Of passes that are timed.
# Kept per token, layer and unit of width, and of gradients and others.
_FLOATS_PER_UNIT, _FIXED_FLOATS = 70, 60_000_000

RELATIVES = "relatives, with weight noise"
"""Name of the stage of all relatives."""

REDUCTIONS = (
    Reduction("verdicts", (False,), "verdicts on heads and variables"),
    Reduction("nulls", (2, 1), "{less} of {whole} random-init models"),
    Reduction("noise_copies", (2, 1), "{less} of {whole} copies with weight noise"),
    Reduction("bases", (180, 160, 140, 120, 100, 80), "{less} of {whole} questions and pairs"),
    Reduction("prompts", (28, 24, 20, 16, 12, 8), "{less} of {whole} pairs for the circuit"),
)
"""What a budget lowers, in this order. Fewer than 80 pairs decide no order of losses."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What a plan is computed from.

    Attributes:
        settings: Full settings.
        pattern: The pattern.
        parent, relatives: Seconds of a pass of each, for each prompt.
        same_graph, noisy: Of each relative: whether it has the parent's graph, and copies with
            weight noise.
        variables: Variables that are interchanged.
        searches: Passes of the search of sites for each pair, in the parent and each relative.
        pairs: Pairs for the circuit, for each prompt of the settings; 0 if there is no circuit.
        sampling: Seconds to sample the texts of one base, and the pairs of one prompt.
        verdicts: Stage of the full settings.
        memory, base_memory: Bytes, and those for each base.
        device: What the seconds are of.
    """

    settings: RateDistortionSettings
    pattern: Pattern
    parent: float
    relatives: tuple[float, ...]
    same_graph: tuple[bool, ...]
    noisy: tuple[bool, ...]
    variables: tuple[str, ...]
    searches: tuple[float, ...]
    pairs: float
    sampling: tuple[float, float]
    verdicts: Stage
    memory: int
    base_memory: int
    device: str

    def plan(self, settings: RateDistortionSettings) -> Plan:
        """Plan of these settings."""
        questions, tested, searched = self._counts(settings.bases)
        pairs = self.pairs * circuit_prompts(self.pattern, settings.prompts)
        interchange = _VARIABLE * len(self.variables) * tested
        answers, runs = _ANSWERS * questions + _POINT, _RUNS * tested
        parent = (
            (1.0 + _READOUTS + _ANSWERS) * questions
            + _POINT
            + searched * self.searches[0]
            + runs
            + 4 * interchange
            + (_CIRCUIT + _FAITHFULNESS) * pairs
        )
        copy = _COPY + runs + interchange + _FAITHFULNESS * pairs
        copy += _MATCHED * (_COPY + _READOUTS * questions)
        relatives, seconds = 0.0, 0.0
        for number, own in enumerate(self.relatives):
            passes = answers + searched * self.searches[number + 1] + runs
            if self.same_graph[number]:
                passes += 3 * interchange + _FAITHFULNESS * pairs
            else:
                passes += 2 * interchange + _CIRCUIT * pairs
            others = _PARENT_ANSWERS * questions
            others += settings.noise_copies * copy * self.noisy[number]
            relatives += passes + others
            seconds += passes * own + others * self.parent
        nulls = settings.nulls * (
            _COPY + (_ANSWERS + _PARENT_ANSWERS) * questions + runs + interchange
        )
        per_base, per_prompt = self.sampling
        sampling = per_base * settings.bases + per_prompt * settings.prompts
        share = settings.verdicts * settings.prompts / self.settings.prompts
        stages = (
            Stage("sampling", 0, sampling),
            Stage("parent", round(parent), parent * self.parent),
            Stage("verdicts", round(share * self.verdicts.passes), share * self.verdicts.seconds),
            Stage(RELATIVES, round(relatives), seconds),
            Stage("random-init models", round(nulls), nulls * self.parent),
        )
        stages = tuple(stage for stage in stages if stage.seconds)
        return Plan("curve", stages, self.memory + settings.bases * self.base_memory, self.device)

    def _counts(self, bases: int) -> tuple[int, int, int]:
        """Questions, pairs that are tested, and pairs for the search of sites."""
        questions = min(bases, 2 * len(self.pattern.user_pairs) or bases)
        if _has_opposite(self.pattern):
            return questions, bases, max(bases // 2, 8)
        available = Counter(pair.contrast for pair in self.pattern.user_pairs)
        half = sum(min(2 * bases, available[name] or 2 * bases) for name in self.variables) // 2
        return questions, half, half


def _has_opposite(pattern: Pattern) -> bool:
    return not pattern.user_pairs and pattern.opposite is not None


def plan_curve(
    parent: Model,
    relatives: Sequence[Model],
    pattern: Pattern,
    settings: RateDistortionSettings,
) -> tuple[Plan, RateDistortionSettings]:
    """Plan of a curve, from two seconds of passes, and the settings that keep to its budget.

    Raises:
        BudgetError: The budget is below what the lowest settings need.
        ProbeError: The pattern has too few prompts for the settings, or the parent one block.
    """
    sizes = _measure_sizes(parent, relatives, pattern, settings)
    if settings.budget is None:
        return with_outlook(sizes.plan(settings), settings, REDUCTIONS, sizes.plan), settings
    lowered, plan = fit_to_budget(settings, REDUCTIONS, settings.budget, sizes.plan)
    return plan, lowered


def _measure_sizes(
    parent: Model,
    relatives: Sequence[Model],
    pattern: Pattern,
    settings: RateDistortionSettings,
) -> _Sizes:
    few = settings.bases if pattern.user_pairs else min(settings.bases, _PLANNED_BASES)
    fewer = settings.prompts if pattern.user_pairs else min(settings.prompts, _PLANNED_PROMPTS)
    pairs, begun = 0.0, thread_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The curve itself warns of what it leaves out.
        test = sample_mechanism_test(parent, pattern, bases=few, seed=settings.seed)
        middle = thread_time()
        with suppress(CircuitError, PatternError):
            tasks = sample_circuit_tasks(parent, pattern, prompts=fewer, seed=settings.seed)
            pairs = len(tasks[0]) / circuit_prompts(pattern, fewer)
    sampling = ((middle - begun) / few, (thread_time() - middle) / fewer)
    clean, every = test.evaluation.pairs.clean, (parent, *relatives)
    shapes = {(model.shape, model.dtype): model for model in every}
    limit = _SECONDS / len(shapes)
    known = {
        key: seconds_per_prompt(model, clean.ids, clean.mask, clean.positions, limit=limit)
        for key, model in shapes.items()
    }
    first, *others = (known[model.shape, model.dtype] for model in every)
    alike = tuple(same_graph(model, parent) for model in relatives)
    floats = clean.ids.shape[1] * parent.shape.layers * parent.shape.d_model * _FLOATS_PER_UNIT
    return _Sizes(
        settings=settings,
        pattern=pattern,
        parent=first,
        relatives=tuple(others),
        same_graph=alike,
        noisy=tuple(
            same and is_compressed(model) and model is not parent
            for same, model in zip(alike, relatives, strict=True)
        ),
        variables=test.evaluation.variables,
        searches=tuple(
            _search_passes(model, pattern, test, known[model.shape, model.dtype]) for model in every
        ),
        pairs=pairs,
        sampling=sampling,
        verdicts=_plan_verdicts(every, pattern, settings),
        memory=process_memory() + _FIXED_FLOATS * parent.dtype.itemsize,
        base_memory=floats * parent.dtype.itemsize,
        device=device_name(parent),
    )


def _search_passes(model: Model, pattern: Pattern, test: MechanismTest, seconds: float) -> float:
    """Passes of the search of sites for each pair.

    A short search is timed on the few pairs of a plan: in a damaged model, in which no site alone
    holds a variable, roles are joined, and it takes up to ten times as long.
    """
    task = test.evaluation
    sites = (model.shape.layers - 1) * len(task.pairs.clean.roles)
    passes = 1 + (1 + _has_opposite(pattern)) * (1 + _SITE * sites)
    pairs = max(len(task) // 2, 8) if _has_opposite(pattern) else len(task)
    if pairs * passes * seconds > _SECONDS:
        return passes
    clock = thread_time if model.device.type == "cpu" else perf_counter
    start = clock()
    test.find_sites(model)
    return (clock() - start) / pairs / seconds


def _plan_verdicts(
    models: Sequence[Model], pattern: Pattern, settings: RateDistortionSettings
) -> Stage:
    """The comparison that counts verdicts, as one stage; empty where none is asked for."""
    if not settings.verdicts:
        return Stage("verdicts", 0, 0.0)
    own = settings.comparison
    references = load_references(models[0], models[1:], own)
    plan, _ = plan_comparison(models, references, pattern, own)
    return Stage("verdicts", plan.passes, plan.seconds)
