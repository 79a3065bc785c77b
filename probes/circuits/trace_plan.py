"""Settings of a trace, its plan in passes, and the settings that a budget lowers."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from probes.circuits.edges.edge_attribution import EAP, EAPIG, AttributionMethod
from probes.circuits.faithfulness import FRACTIONS, SPECIFICITY_CIRCUITS
from probes.circuits.reference_runs import Ablation
from probes.circuits.task import Task, TaskSettings, sample_tasks
from probes.models.files.memory import process_memory
from probes.models.model import Model
from probes.models.pass_costs import device_name, seconds_per_prompt
from probes.observe.gate import GATE_QUESTIONS
from probes.observe.result import GateCriterion
from probes.plan import Plan, Reduction, Stage, fit_to_budget, with_outlook
from probes.prompts.pattern import Pattern

# What a prompt costs, in passes, measured on the family and on SmolLM2-135M (docs/performance.md):
# a gradient with the scores of all edges, a run of a circuit of few edges, which changes few heads
# and shares what it changed with the run before, and one of any size.
_GRADIENT, _SMALL_CIRCUIT, _ANY_CIRCUIT = 3.8, 0.11, 0.8
_BY_ROLE = 3.0  # Times as much with roles.
_PRUNING_RUNS = 400  # Circuits that pruning runs; the size of the circuit is not known before.
_PRUNED_EDGES = 60  # Of the pruned circuit, about.
_FLOATS_PER_UNIT = 16  # Kept of both reference runs, for each token, layer and unit of width.
_FIXED_FLOATS = 1 << 27  # Of shared changes, and of gradients.
_POINTS = {"eap": EAP().points, "eap-ig": EAPIG().points}

REDUCTIONS = (
    Reduction("random_circuits", (50, 20), "{less} of {whole} random circuits of each kind"),
    Reduction("other_pattern", ("",), "specificity against another pattern"),
    Reduction("added_edges", (20,), "{less} of {whole} added edges in the test of necessity"),
    Reduction("prompts", (24, 16, 12, 8, 4), "{less} of {whole} pairs of each contrast and half"),
)
"""What a budget lowers, in this order."""


@dataclass(frozen=True, kw_only=True)
class TraceSettings(TaskSettings):
    """How `trace` draws pairs, scores edges and evaluates circuits.

    Attributes:
        method: How edges are scored; see `edge_attribution`.
        ablation: What an ablated edge carries; see `run_references`.
        other_pattern: Another pattern, whose circuit is ablated to test specificity; "" for none.
            It is skipped if its gate is closed.
        format: Prompt format, such as "few-shot-4", or "auto"; see `PromptFormat`.
        gate: What the gate asks; see `GateCriterion`. By default accuracy for patterns with free
            answers, choice for pairs.
        random_circuits: Random circuits of each kind.
        added_edges: Random edges that the necessity of an edge is held against.
        pruning_runs: Most circuits that pruning runs; None for as many as it needs.
        budget: Most seconds of one core, or of the device; other settings are lowered to keep to
            it (`REDUCTIONS`), and the result says which.
        on_plan: Called with the plan before the work begins.
        progress: Show a progress bar, or a line a minute without a terminal.
    """

    method: AttributionMethod = "eap-ig"
    ablation: Ablation = "counterfactual"
    other_pattern: str | Pattern = "taken"
    format: str = "plain"
    gate: GateCriterion | None = None
    random_circuits: int = 100
    added_edges: int = 50
    pruning_runs: int | None = None
    budget: float | None = None
    on_plan: Callable[[Plan], None] | None = field(default=None, compare=False)
    progress: bool = field(default=False, compare=False)

    @property
    def is_planned(self) -> bool:
        """Whether the work is estimated before it begins."""
        return self.budget is not None or self.on_plan is not None or self.progress


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What a plan is computed from: pairs of the tasks at full settings, and the cost of a pass."""

    settings: TraceSettings
    discovery: int
    held_out: int
    questions: int
    other: bool
    roles: bool
    seconds: float
    memory: int
    pair_memory: int
    device: str

    def plan(self, settings: TraceSettings) -> Plan:
        """Plan of these settings."""
        share = settings.prompts / self.settings.prompts
        found, held = (max(1, round(share * n)) for n in (self.discovery, self.held_out))
        slower = _BY_ROLE if self.roles else 1.0
        small, any_size = slower * _SMALL_CIRCUIT, slower * _ANY_CIRCUIT
        points = getattr(settings.method, "points", None) or _POINTS.get(str(settings.method), ())
        scores = 2 + len(points) * _GRADIENT * slower
        runs = min(settings.pruning_runs or _PRUNING_RUNS, _PRUNING_RUNS)
        added = settings.added_edges + _PRUNED_EDGES
        passes = {
            "gate": self.questions,
            "edge scores": found * scores,
            "pruning": found * (2 + runs * small),
            "held-out pairs": held * (2 + small + any_size),
            "curve": held * len(FRACTIONS) * any_size,
            "random circuits": held * 2 * settings.random_circuits * small,
            "necessity of edges": held * added * small,
        }
        if settings.other_pattern and self.other:
            circuits = 2 * (2 + SPECIFICITY_CIRCUITS) * any_size
            passes["another pattern"] = self.questions + found * scores + held * (2 + circuits)
        return Plan(
            command="trace",
            stages=tuple(Stage(name, round(n), n * self.seconds) for name, n in passes.items()),
            memory=self.memory + round(share * self.pair_memory),
            device=self.device,
        )


def plan_trace(
    model: Model, pattern: Pattern, settings: TraceSettings, *, roles: bool
) -> tuple[Plan, TraceSettings]:
    """Plan of a trace, from a second of passes, and the settings that keep to its budget.

    Raises:
        BudgetError: The budget is below what the lowest settings need.
        ProbeError: The pattern has too few pairs for the settings.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The trace itself warns of what it leaves out.
        tasks = sample_tasks(model, pattern, settings)
    sizes = _measure_sizes(model, pattern, settings, tasks, roles=roles)
    if settings.budget is None:
        return with_outlook(sizes.plan(settings), settings, REDUCTIONS, sizes.plan), settings
    settings, plan = fit_to_budget(settings, REDUCTIONS, settings.budget, sizes.plan)
    pruning = next(stage for stage in plan.stages if stage.name == "pruning")
    spare = (settings.budget - plan.seconds) / pruning.seconds if settings.budget else 0.0
    return plan, replace(settings, pruning_runs=round(_PRUNING_RUNS * (1 + spare)))


def _measure_sizes(
    model: Model,
    pattern: Pattern,
    settings: TraceSettings,
    tasks: tuple[Task, Task],
    *,
    roles: bool,
) -> _Sizes:
    task, shape = tasks[0], model.shape
    floats = task.clean.shape[1] * shape.layers * shape.d_model * _FLOATS_PER_UNIT
    return _Sizes(
        settings=settings,
        discovery=len(tasks[0]),
        held_out=len(tasks[1]),
        questions=min(GATE_QUESTIONS, 2 * len(pattern.user_pairs) or GATE_QUESTIONS),
        other=not pattern.user_pairs
        and pattern.name != getattr(settings.other_pattern, "name", ""),
        roles=roles,
        seconds=seconds_per_prompt(model, task.clean, task.mask, task.readout[:, None]),
        memory=process_memory() + _FIXED_FLOATS * model.dtype.itemsize,
        pair_memory=floats * len(task) * model.dtype.itemsize,
        device=device_name(model),
    )
