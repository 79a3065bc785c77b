"""Rate–distortion curve of a model's relatives: storage against loss of behavior and mechanism."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import repeat

from probes.comparison.compare import compare_family
from probes.comparison.rate_distortion.mechanism import interchange_outcome, record_runs
from probes.comparison.rate_distortion.parent import (
    KEPT_FRACTION,
    CurveParent,
    ParentReference,
    RateDistortionSettings,
    circuit_prompts,
)
from probes.comparison.rate_distortion.plan import RELATIVES, plan_curve
from probes.comparison.rate_distortion.point import measure_point, measure_relative
from probes.comparison.rate_distortion.result import CurvePoint, RateDistortionCurve
from probes.comparison.variables.transfer import with_unique_names
from probes.compression.derived_model import DerivedModel
from probes.errors import ModelError
from probes.models.model import Model, ModelSpec, load, random_init
from probes.observe.divergence import answer_as_relative, best_heuristic_accuracy
from probes.observe.format.kept import pattern_in_format
from probes.plan import LEFT_OUT
from probes.progress import Progress
from probes.prompts.catalog import pattern as load_pattern
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.once import tokenize_once
from probes.scale.commands import open_store, remember_command
from probes.scale.engine import InProcess, open_engine, unit_runner

_DEFAULTS = RateDistortionSettings()

AnyModelSpec = ModelSpec | DerivedModel


def rate_distortion(
    parent: AnyModelSpec,
    relatives: Sequence[AnyModelSpec],
    pattern: str | Pattern = "take-away",
    settings: RateDistortionSettings = _DEFAULTS,
    *,
    progress: bool = False,
) -> RateDistortionCurve:
    """Measure the storage of each relative and its loss of behavior and mechanism.

    The mechanism is measured by interchange interventions: after the interchange of a variable, the
    answers must be those expected. The site is the parent's if the relative has the parent's graph,
    else the relative's own. Only texts that both models solve without intervention count, because
    an interchange fails wherever the answer fails. Copies of the parent with weight noise at the
    same KL show what loss is expected without compression.

    With the same graph, the parent's states are also interchanged into the relative, and the
    parent's circuit is run in it. With another graph this would need maps between the models, which
    take minutes: see `cross_model_interchange` and `transfer_circuit`. Instead, the size of the
    relative's own circuit of the same faithfulness is given.

    Args:
        parent: A model, or a name that `load` accepts.
        relatives: Models derived from it, or any others with its vocabulary.
        pattern: A pattern with an opposite, or one of pairs, such as a .jsonl file.
        settings: Numbers of prompts, noise copies and nulls, and the seed. With a budget it is
            measured each time.
        progress: Whether to show a progress bar.

    Raises:
        PatternError: The pattern is unknown or has too few prompts.
        BudgetError: The budget is below what the lowest settings need.
        ModelError: A model is unknown or broken, has another vocabulary or no tokenizer, or the
            parent has only one block.
    """
    chosen = load_pattern(pattern) if isinstance(pattern, str) else pattern
    first, models = _load_models(parent, relatives, settings.device)
    chosen = pattern_in_format(chosen, settings.format, [first], seed=settings.seed)
    with open_store(settings.run) as store, tokenize_once():
        settings = replace(settings, run=store, progress=progress or settings.progress)
        if store is None or settings.budget is not None:  # A budget gives other settings each time.
            return _measure_curve(first, models, chosen, settings)
        return remember_command(store, "curve", _measure_curve, first, models, chosen, settings)


def _measure_curve(
    first: Model,
    models: Sequence[Model],
    chosen: Pattern,
    settings: RateDistortionSettings,
) -> RateDistortionCurve:
    """Plan and measure the curve of loaded models; with a store, each relative not there."""
    plan = None
    if settings.is_planned:
        plan, settings = plan_curve(first, models, chosen, settings)
        if settings.on_plan:
            settings.on_plan(plan)
    device = models[0].device.type
    with (
        open_engine(settings.engine, workers=settings.workers, device=device) as engine,
        Progress(plan if settings.progress else None) as progress,
    ):
        parent = CurveParent(first, chosen, replace(settings, engine=engine))
        curve = _measure_on_engine(parent, models, progress)
    if plan is None or not plan.left_out:
        return curve
    left_out = (LEFT_OUT, "; ".join(plan.left_out))
    return replace(curve, protocol=(*curve.protocol, left_out))


def _measure_on_engine(
    parent: CurveParent, models: Sequence[Model], progress: Progress
) -> RateDistortionCurve:
    """Measure the curve with an open engine."""
    progress.begin("parent")
    reference, chosen, settings = parent.reference, parent.pattern, parent.settings
    itself = measure_point(parent.model, reference)
    verdicts: Sequence[Mapping[str, int]] = [{}] * len(models)
    if settings.verdicts:
        progress.begin("verdicts")
        family = compare_family(parent.model, models, chosen, settings.comparison)
        verdicts = [Counter(v.label for v in one.verdicts) for one in family.comparisons]
    points = _measure_points(models, parent, verdicts, progress)
    progress.begin("random-init models")
    return RateDistortionCurve(
        parent=itself,
        points=tuple(points),
        pattern=chosen.name,
        pairs=len(reference.mechanism_test.evaluation),
        heuristic_accuracy=best_heuristic_accuracy(reference.answers),
        random_init=_best_random_init(reference),
        protocol=(("format", str(chosen.wrapper.format)), *_protocol(reference, chosen)),
    )


def _measure_points(
    models: Sequence[Model],
    parent: CurveParent,
    verdicts: Sequence[Mapping[str, int]],
    progress: Progress,
) -> list[CurvePoint]:
    """Point of each relative; in this process one at a time, because all run the parent."""
    settings = parent.settings
    engine = settings.engine
    workers = 1 if isinstance(engine, InProcess) else engine.workers
    with ThreadPoolExecutor(workers) as pool:
        measure = partial(unit_runner(settings.run, engine), "point", measure_relative)
        points = pool.map(measure, models, repeat(parent), verdicts)
        return list(progress.track(points, RELATIVES, len(models)))


def _load_models(
    parent: AnyModelSpec, relatives: Sequence[AnyModelSpec], device: str
) -> tuple[Model, list[Model]]:
    """Load all models, and refuse those with another vocabulary."""
    if not relatives:
        raise ModelError("There is no relative to measure: name at least one")
    first, *others = (
        one.to_model() if isinstance(one, DerivedModel) else load(one, device=device)
        for one in (parent, *relatives)
    )
    for model in (first, *others):
        if model.tokenizer is None:
            raise ModelError(f"{model.name} has no tokenizer: load it with one")
        same = model.tokenizer.get_vocab() == first.tokenizer.get_vocab()
        if not same or model.shape.d_vocab != first.shape.d_vocab:
            raise ModelError(
                f"{model.name} and {first.name} have different vocabularies "
                f"({model.shape.d_vocab} and {first.shape.d_vocab} tokens), so their next-token "
                "probabilities cannot be compared. Choose relatives with the parent's vocabulary."
            )
    return first, with_unique_names(others, [first.name])


def _best_random_init(reference: ParentReference) -> tuple[float, float]:
    """Largest accuracy and largest interchange accuracy of random-init models."""
    accuracies, interchange_accuracies = [], []
    for number in range(reference.settings.nulls):
        model = random_init(reference.model, seed=reference.settings.seed + number)
        behavior = answer_as_relative(reference.answers, model).behavior
        accuracies.append(float(behavior.correct.all(-1).float().mean()))
        runs = record_runs(model, reference.mechanism_test.evaluation)
        outcome = interchange_outcome(runs, reference.sites)
        interchange_accuracies.append(float(outcome.mean_hits.mean()))
    nan = float("nan")
    return max(accuracies, default=nan), max(interchange_accuracies, default=nan)


def _protocol(reference: ParentReference, pattern: Pattern) -> Iterator[tuple[str, str]]:
    settings, pairs = reference.settings, len(reference.mechanism_test.evaluation)
    yield "questions", str(len(reference.answers.batch))
    yield "pairs for the mechanism", f"{pairs} (of {settings.bases} bases)"
    yield "copies with weight noise", str(settings.noise_copies)
    yield "random-init models", str(settings.nulls)
    if (circuit := reference.circuit) is not None:
        edges = f"{len(circuit)} of {len(circuit.graph)} edges"
        faithfulness = f"faithfulness {KEPT_FRACTION} or more"
        prompts = circuit_prompts(pattern, settings.prompts)
        yield "circuit", f"{edges}, {prompts} pairs per contrast, {faithfulness}"
    yield "seed", str(settings.seed)
