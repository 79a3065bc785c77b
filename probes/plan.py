"""Plan of a long command: its stages with passes and time, peak memory, and what a budget leaves.

A pass is one forward pass of one prompt. Passes that start in the middle, and gradients, count as
the fraction or multiple of one that they cost.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from probes.errors import BudgetError

S = TypeVar("S")

SHORT_SECONDS = 20.0
"""Estimated time below which a plan is not worth printing."""

LEFT_OUT = "left out to keep to the budget"
"""Name, in a protocol, of what a budget leaves out."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of a command.

    Attributes:
        name: What is measured.
        passes: Forward passes of one prompt, or what costs as much.
        seconds: Estimated time of one core, or of the device.
    """

    name: str
    passes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command will do.

    Attributes:
        command: Name of the command.
        stages: Its parts in their order; a name stands once.
        memory: Estimated peak memory in bytes.
        device: "CPU", or the name of the device that the time is of.
        left_out: What a budget leaves out, in words; empty for the whole measurement.
        outlook: What smaller budgets would leave out, in words.
    """

    command: str
    stages: tuple[Stage, ...]
    memory: int
    device: str = "CPU"
    left_out: tuple[str, ...] = ()
    outlook: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Estimated time of all stages."""
        return sum((stage.seconds for stage in self.stages), 0.0)

    @property
    def passes(self) -> int:
        """Passes of all stages."""
        return sum(stage.passes for stage in self.stages)

    @property
    def is_short(self) -> bool:
        """Whether the command ends so soon that its plan is not worth printing."""
        return self.seconds < SHORT_SECONDS

    def lines(self) -> Iterator[str]:
        """The plan in words: the totals, each stage, and what is left out."""
        yield (
            f"Plan of {self.command}: about {format_duration(self.seconds)} of {self.device} time, "
            f"{self.memory / 1e9:.1f} GB of memory, {self.passes:,.0f} passes of one prompt."
        )
        width = max(len(stage.name) for stage in self.stages)
        for stage in self.stages:
            time = format_duration(stage.seconds)
            yield f"  {stage.name:<{width}}  {stage.passes:>9,.0f} passes  {time:>8}"
        yield from budget_lines(self.left_out)
        yield from self.outlook


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedSettings:
    """Settings of a command that is planned; those of each command are added to them.

    Attributes:
        budget: Most seconds of one core, or of the device; other settings are lowered to keep to
            it (the `REDUCTIONS` of the command), and the result says which.
        on_plan: Called with the plan before the work begins.
        plan_only: Whether `on_plan` ends the work, so that no gate is asked before it.
        progress: Whether a progress bar is shown, or a line a minute without a terminal.
        run: Folder of the store of finished work (`scale.store.Store`), or a store. What is there
            is read, what is measured is kept; by default neither.
        device: Device of models that are given by name; PyTorch's default device if empty.
    """

    budget: float | None = field(default=None, metadata={"saved": False})
    on_plan: Callable[[Plan], None] | None = field(
        default=None, compare=False, metadata={"saved": False}
    )
    plan_only: bool = field(default=False, compare=False, metadata={"saved": False})
    progress: bool = field(default=False, compare=False, metadata={"saved": False})
    run: Any = field(default=None, compare=False, metadata={"saved": False})
    device: str = field(default="", metadata={"saved": False})

    @property
    def is_planned(self) -> bool:
        """Whether the work is estimated before it begins."""
        return self.budget is not None or self.on_plan is not None or self.progress


@dataclass(frozen=True, slots=True)
class Reduction:
    """Setting that a budget may lower.

    Attributes:
        field: Name of the setting.
        values: Lower values, the largest first.
        text: What is left out, with {less} for how much of the full value, {whole}.
    """

    field: str
    values: tuple[Any, ...]
    text: str


def fit_to_budget(
    settings: S,
    reductions: Sequence[Reduction],
    budget: float,
    estimate: Callable[[S], Plan],
    *,
    is_strict: bool = True,
) -> tuple[S, Plan]:
    """Settings, and their plan, that keep to a budget in seconds.

    Settings are lowered in the given order, each no further than needed before the next. Then, from
    the last, each is raised again as far as the budget allows. If not `is_strict`, the lowest
    settings are returned where these take longer.

    Raises:
        BudgetError: Even the lowest settings take longer.
    """
    whole, plan = settings, estimate(settings)
    for reduction in reductions:
        for lowered in _lower(settings, reduction):
            if plan.seconds <= budget:
                break
            smaller = estimate(lowered)
            if smaller.seconds < plan.seconds:  # Others save nothing here.
                settings, plan = lowered, smaller
    if plan.seconds > budget and is_strict:
        raise BudgetError(
            f"{plan.command} takes {format_duration(plan.seconds)} at the least here, more "
            f"than the budget of {budget:g} s: give --budget {_option(_up(plan.seconds))} or "
            "more, or a smaller model"
        )
    for reduction in reversed(reductions):
        now, full = (getattr(each, reduction.field) for each in (settings, whole))
        for value in (full, *reduction.values) if now != full else ():
            raised = replace(settings, **{reduction.field: value})  # pyright: ignore[reportArgumentType]
            larger = estimate(raised)
            if value == now or larger.seconds <= budget:
                settings, plan = raised, larger
                break
    left_out = [text for each in reductions if (text := _left_out(settings, whole, each))]
    return settings, replace(plan, left_out=tuple(left_out))


def _lower(settings: S, reduction: Reduction) -> Iterator[S]:
    """The settings with each lower value."""
    now = getattr(settings, reduction.field)
    for value in reduction.values:
        if not isinstance(value, int) or value < now:
            yield replace(settings, **{reduction.field: value})  # pyright: ignore[reportArgumentType]


def _left_out(settings: S, whole: S, reduction: Reduction) -> str:
    """What lowered settings leave out of the whole ones by one reduction, in words."""
    now, full = (getattr(each, reduction.field) for each in (settings, whole))
    less = full - now if isinstance(now, int) else full
    return reduction.text.format(less=less, whole=full) if now != full else ""


def with_outlook(
    plan: Plan, settings: S, reductions: Sequence[Reduction], estimate: Callable[[S], Plan]
) -> Plan:
    """The plan with what a budget of half its time would leave out, or of the least time."""
    lowest = fit_to_budget(settings, reductions, 0.0, estimate, is_strict=False)[1].seconds
    budget = _up(max(plan.seconds / 2, lowest))
    if budget >= plan.seconds:
        return plan
    left_out = fit_to_budget(settings, reductions, float(budget), estimate)[1].left_out
    text = f"--budget {_option(budget)} would leave out {'; '.join(left_out)}."
    return replace(plan, outlook=(text,))


def budget_lines(left_out: Sequence[str]) -> tuple[str, ...]:
    """Line of a result that a budget has made smaller; none of a whole one."""
    return (f"{LEFT_OUT.capitalize()}: {'; '.join(left_out)}.",) if left_out else ()


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "90s", "10m", "1.5h" or "10" (minutes).

    Raises:
        BudgetError: It is no duration above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2] or "m"] if found else 0.0
    if not seconds:
        raise BudgetError(f"{text!r} is no duration: give one such as 90s, 10m or 1.5h")
    return seconds


def format_duration(seconds: float) -> str:
    """Duration in seconds, minutes or hours."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def _up(seconds: float) -> int:
    """Seconds rounded up, to minutes if there are several."""
    return math.ceil(seconds) if seconds <= 120 else 60 * math.ceil(seconds / 60)


def _option(seconds: int) -> str:
    """Whole seconds as an option of the command line."""
    return f"{seconds}s" if seconds <= 120 else f"{seconds // 60}m"
