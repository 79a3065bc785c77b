"""Plans of derived models: training in steps, rounding and pruning in weights and passes."""

import copy
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probes.compression.derived_model import DerivedModel
from probes.compression.distillation.plan import TrainingConfig, TrainingPlan, TrainingText
from probes.compression.distillation.trainer import fit
from probes.compression.pruning.importance import Calibration, tokenize_calibration
from probes.compression.pruning.prune import PruningSettings, check_scope
from probes.compression.quantization.backends import linear_layers, weight_matrix
from probes.compression.quantization.quantize import QuantizationSettings, kernel_test_inputs
from probes.compression.quantization.schemes import parse_scheme
from probes.models.files.memory import process_memory
from probes.plan import Plan, PlannedSettings, Reduction, Stage, fit_to_budget, with_outlook

TIMED_STEPS = 24
"""Most steps of training that are timed."""

_SECONDS = 2.0  # Of steps that are timed.
_BACKWARD = 2  # Passes of a gradient, besides the forward pass.
# Nanoseconds of each weight, measured on models of 1 and 28 million (docs/performance.md).
_ROUNDED, _RANKED, _RANKED_UNITS, _COPIED, _SAVED = 12, 105, 66, 9, 9
_KERNEL = 2.1  # Passes of the library's kernel and of the plain floats, for each test input.
_BYTES_ROUNDED, _BYTES_RANKED = 8, 28  # Of each weight, besides the model.
_FLOATS_PER_UNIT = 90  # Kept for the gradient, for each token, layer and unit of width.


@dataclass(frozen=True, eq=False)
class TextSample:
    """Some of the texts of a training run, and what all of them cost.

    Attributes:
        rows: Real texts, for the steps that are timed.
        each: Seconds to make one row of the run.
        once: Seconds of texts that are made whatever the steps.
    """

    rows: Sequence[TrainingText]
    each: float = 0.0
    once: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MakeSettings(PlannedSettings):
    """How the making of a model is planned.

    Attributes:
        command: Name of the command.
        rounds: Rounds of pruning, each with as many steps; 0 for one run without pruning.
    """

    command: str
    rounds: int = 0


class _EnoughSteps(Exception):
    """Ends a run that is only timed."""


def plan_training(
    student: Any,  # noqa: ANN401 (a Hugging Face model)
    run: TrainingPlan,
    texts: TextSample,
    asked: MakeSettings,
) -> tuple[Plan, TrainingConfig]:
    """Plan of a training run, from real steps of a copy, and the settings that keep to a budget.

    A budget takes fewer steps, a tenth at the least. A pass is that of one text; a gradient takes
    two more. The student, files and random generators stay as they are.

    Args:
        student: The untrained student.
        run: Settings, targets and teacher; its texts are those of `texts`.
        texts: Some texts, and what all of them cost.
        asked: The command and its budget.

    Raises:
        BudgetError: The budget is below what a tenth of the steps needs.
        ModelError: The labels need a teacher and there is none, or its vocabulary differs.
    """
    settings = run.settings
    per_text = 1 + _BACKWARD + run.labels.needs_teacher
    per_step, memory = _time_steps(student, run)
    weights, runs = _count_weights(student), max(asked.rounds, 1)

    def estimate(settings: TrainingConfig) -> Plan:
        count = settings.steps * settings.batch
        stages = (
            Stage("texts", 0, texts.once + texts.each * count),
            Stage("pruning", 0, asked.rounds * _RANKED * weights * 1e-9),
            Stage("training", runs * count * per_text, runs * settings.steps * per_step),
            _saving(weights),
        )
        return Plan(asked.command, tuple(s for s in stages if s.seconds), memory, _device(settings))

    steps = sorted({round(settings.steps * part / 20) for part in range(2, 20)} - {0})
    each = " of each round" * (runs > 1)
    less = (Reduction("steps", tuple(steps[::-1]), f"{{less}} of {{whole}} training steps{each}"),)
    if asked.budget is None:
        return with_outlook(estimate(settings), settings, less, estimate), settings
    lowered, plan = fit_to_budget(settings, less, asked.budget, estimate)
    return plan, lowered


def plan_quantization(origin: DerivedModel, scheme: str, settings: QuantizationSettings) -> Plan:
    """Plan of `quantize`: rounding, and the passes in which a kernel is compared.

    Raises:
        ModelError: The scheme or group is unknown or does not fit.
    """
    hf_model, symmetric = origin.hf_model, settings.symmetric
    names = linear_layers(hf_model, origin.name)
    widths = {weight_matrix(hf_model.get_submodule(name)).shape[1] for name in names}
    chosen = parse_scheme(scheme, group=settings.group, symmetric=symmetric, widths=widths)
    has_kernel, weights = chosen.backend != "rounding", _count_weights(hf_model)
    stages = (
        Stage("rounding", 0, _ROUNDED * weights * 1e-9),
        _passes("kernel", origin, kernel_test_inputs(origin, settings.seed), _KERNEL * has_kernel),
        _saving(weights),
    )
    return _plan("make quantized", origin, stages, _BYTES_ROUNDED * weights)


def plan_pruning(
    origin: DerivedModel, method: str, calibration: Calibration | None, settings: PruningSettings
) -> Plan:
    """Plan of `prune`: ranking, and the passes over calibration texts.

    Raises:
        ModelError: The method or scope is unknown, there are no texts, or the model is quantized.
    """
    check_scope(origin, method, settings.scope)
    weights, scored = _count_weights(origin.hf_model), method in ("wanda", "heads", "neurons")
    texts = tokenize_calibration(origin, calibration, seed=settings.seed) if scored else []
    ranked = _RANKED_UNITS if method in ("heads", "neurons") else _RANKED
    stages = (
        _passes("calibration", origin, texts, 1.0),
        Stage("ranking", 0, ranked * weights * 1e-9),
        _saving(weights),
    )
    return _plan("make pruned", origin, stages, _BYTES_RANKED * weights)


def plan_growth(grown: DerivedModel) -> Plan:
    """Plan of `grow` alone; its model is already there."""
    weights = _count_weights(grown.hf_model)
    stages = (Stage("copying", 0, _COPIED * weights * 1e-9), _saving(weights))
    return _plan("make grown", grown, stages, 0)


def require_budget(plan: Plan, asked: PlannedSettings) -> Plan:
    """The plan of a command that nothing can lower.

    Raises:
        BudgetError: It takes longer than the budget.
    """
    if asked.budget is not None:
        fit_to_budget(asked, (), asked.budget, lambda _: plan)
    return plan


def _time_steps(student: Any, run: TrainingPlan) -> tuple[float, int]:  # noqa: ANN401
    """Mean seconds of a step of a copy, and bytes of memory with its optimizer."""
    device = run.settings.torch_device()
    is_cpu, moments, memory = device.type == "cpu", list[float](), 0
    clock = time.thread_time if is_cpu else time.perf_counter

    def note(step: int, _: Any) -> None:  # noqa: ANN401
        nonlocal memory
        if not is_cpu:
            torch.accelerator.synchronize(device)
        moments.append(clock())
        memory = process_memory()
        # The first step is slower.
        if step >= TIMED_STEPS or (step > 1 and moments[-1] - moments[0] > _SECONDS):
            raise _EnoughSteps

    timed = replace(run.settings, steps=10 * TIMED_STEPS, save_every=10**9, stop_after=0)
    short = replace(run, settings=timed, texts=_mean_texts(run))
    with tempfile.TemporaryDirectory() as folder, suppress(_EnoughSteps):
        fit(copy.deepcopy(student), short, folder=Path(folder) / "timed", callback=note)
    config = student.config
    longest = max(len(text.ids) for text in run.texts)
    kept = config.vocab_size * 4 + config.num_hidden_layers * config.hidden_size * _FLOATS_PER_UNIT
    return (
        (moments[-1] - moments[1]) / (len(moments) - 2),
        memory + 4 * kept * run.settings.batch * longest,
    )


def _mean_texts(run: TrainingPlan) -> list[TrainingText]:
    """Texts of the mean length, as a run takes texts of equal length together, long ones first."""
    mean = sum(len(text.ids) for text in run.texts) / len(run.texts)
    near = sorted(run.texts, key=lambda text: abs(len(text.ids) - mean))[: run.settings.batch]
    return near * (-(-run.settings.batch * TIMED_STEPS // len(near)))


@torch.no_grad()
def _passes(
    name: str, origin: DerivedModel, texts: Sequence[Int[Tensor, "_ _"]], each: float
) -> Stage:
    """Passes over texts without padding, from the time of one of two rows."""
    if not texts or not each:
        return Stage(name, 0, 0.0)
    few, tokens = texts[0][:2].to(origin.hf_model.device), sum(ids.numel() for ids in texts)
    is_cpu = origin.hf_model.device.type == "cpu"
    clock, spent = time.thread_time if is_cpu else time.perf_counter, list[float]()
    for _ in range(3):  # The first pass is slower.
        start = clock()
        origin.hf_model(input_ids=few, use_cache=False).logits.sum().item()
        spent.append(clock() - start)
    seconds = each * min(spent) * tokens / few.numel()
    return Stage(name, round(each * sum(map(len, texts))), seconds)


def _plan(command: str, origin: DerivedModel, stages: tuple[Stage, ...], extra: int) -> Plan:
    device = origin.hf_model.device
    name = "CPU" if device.type == "cpu" else str(device)
    used = tuple(stage for stage in stages if stage.seconds)
    return Plan(command, used, process_memory() + extra, name)


def _saving(weights: int) -> Stage:
    return Stage("saving", 0, _SAVED * weights * 1e-9)


def _count_weights(hf_model: Any) -> int:  # noqa: ANN401
    return sum(weight.numel() for weight in hf_model.parameters())


def _device(settings: TrainingConfig) -> str:
    device = settings.torch_device()
    return "CPU" if device.type == "cpu" else str(device)
