"""Settings of a trace, its plan in passes, and the settings that a budget lowers."""

import warnings
from dataclasses import dataclass, field, replace
from time import thread_time
from typing import Any

from probes.circuits.edges.edge_attribution import EAP, EAPIG, AttributionMethod
from probes.circuits.faithfulness import FRACTIONS, SPECIFICITY_CIRCUITS
from probes.circuits.pruning import PruningRule
from probes.circuits.runs.held import Ablation
from probes.circuits.task import TaskSettings, sample_tasks
from probes.models.files.memory import process_memory
from probes.models.model import Model
from probes.models.pass_costs import device_name, seconds_per_prompt
from probes.observe.gate import GATE_QUESTIONS
from probes.observe.result import GateCriterion
from probes.plan import Plan, PlannedSettings, Reduction, Stage, fit_to_budget, with_outlook
from probes.prompts.pattern import Pattern

# What a prompt costs, in passes, measured on the family and on SmolLM2-135M (docs/performance.md):
# a gradient with the scores of all edges, and a run of a circuit of any size, of a pruned one, and
# of a random one. The last two cost less where the circuit touches few of the heads and MLPs; a
# pruned one runs behind others that share most of it, the less the fewer it touches.
_GRADIENT, _ANY_CIRCUIT, _PRUNED, _RANDOM = 3.6, 0.5, 0.26, 0.27
_SHARING_POWER = 1.4
# What a circuit costs whatever the number of pairs: 3 to 10 passes in `full` and SmolLM2-135M, the
# more the more of the heads and MLPs it touches.
_CIRCUIT, _CIRCUIT_POWER = 5.0, 0.5
_GRADIENT_CHECK = 80
_LABELS = 32 * (4 + _GRADIENT)  # Roles of heads, on a few pairs.
_BY_ROLE = 3.0  # Times as much with roles.
# The size of the pruned circuit, and how many circuits pruning runs, are not known before: they
# are powers of the number of edges that fit the models above.
_SIZE, _SIZE_POWER, _RUNS, _RUNS_POWER = 5.8, 0.2, 42.0, 0.083
_FLOATS_PER_UNIT = 12  # Kept of both reference runs, for each token, layer and unit of width.
_FIXED_FLOATS = 1 << 27  # Of shared changes, and of gradients.
_PLANNED_PAIRS = 8  # Sampled of each contrast for the plan.

TRACE_PRUNING = PruningRule(supporting_first=True, standard_errors=2.58)
"""How `trace` searches a circuit."""

REDUCTIONS = (
    Reduction(
        "random_circuits", (80, 60, 40, 20), "{less} of {whole} random circuits of each kind"
    ),
    Reduction("other_pattern", ("",), "specificity against another pattern"),
    Reduction("added_edges", (35, 20), "{less} of {whole} added edges in the test of necessity"),
    Reduction(
        "prompts",
        (28, 24, 20, 16, 14, 12, 10, 8, 6, 4),
        "{less} of {whole} pairs of each contrast and half",
    ),
)
"""What a budget lowers, in this order."""


@dataclass(frozen=True, kw_only=True)
class TraceSettings(TaskSettings, PlannedSettings):
    """How `trace` draws pairs, scores edges and evaluates circuits.

    Attributes:
        method: How edges are scored; see `edge_attribution`.
        ablation: What an ablated edge carries; see `run_references`.
        other_pattern: Another pattern, whose circuit is ablated to test specificity; "" for none.
            Where its gate is closed or it cannot be traced, the result says so in its place.
        format: Prompt format, such as "few-shot-4", or "auto"; see `PromptFormat`.
        gate: What the gate asks; see `GateCriterion`. By default accuracy for patterns with free
            answers, choice for pairs.
        random_circuits: Random circuits of each kind.
        ig_steps: Steps of "eap-ig". One takes the gradient halfway between the runs, which ranks
            edges about as well as five at a third of the cost (docs/performance.md).
        pruning: How the circuit is searched. By default edges that support the answer come first
            and f must be above what is kept by 2.58 standard errors, so that it is kept on other
            prompts, too (docs/method.md).
        added_edges: Random edges that the necessity of an edge is held against.
        engine, workers: As in `ComparisonSettings`; without Ray one part is measured at a time.
    """

    method: AttributionMethod = "eap-ig"
    ablation: Ablation = "counterfactual"
    other_pattern: str | Pattern = "taken"
    format: str = "plain"
    gate: GateCriterion | None = None
    ig_steps: int = 1
    pruning: PruningRule = TRACE_PRUNING
    random_circuits: int = 100
    added_edges: int = 50
    engine: Any = field(default="inprocess", compare=False, metadata={"saved": False})
    workers: int = field(default=1, compare=False, metadata={"saved": False})

    @property
    def scoring(self) -> AttributionMethod:
        """The method with its number of steps."""
        return EAPIG(self.ig_steps) if self.method == "eap-ig" else self.method


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What a plan is computed from.

    Attributes:
        settings: Full settings.
        pairs: Discovery pairs, and held-out pairs.
        sampling: Seconds to sample them.
        questions: Questions of the gate.
        other: Whether another pattern can be traced.
        slower: Factor of the time by roles.
        edges, writers: Of the computation graph.
        seconds: Of a pass, for each prompt.
        memory, pair_memory: Bytes, and those that are taken in proportion to the pairs.
        device: What the seconds are of.
    """

    settings: TraceSettings
    pairs: tuple[float, float]
    sampling: float
    questions: int
    other: bool
    slower: float
    edges: int
    writers: int
    seconds: float
    memory: int
    pair_memory: int
    device: str

    def plan(self, settings: TraceSettings) -> Plan:
        """Plan of these settings."""
        share = settings.prompts / self.settings.prompts
        found, held = (share * count for count in self.pairs)
        size = _SIZE * self.edges**_SIZE_POWER
        touched = min(1.0, size / self.writers)
        any_size, pruned = (
            self.slower * _ANY_CIRCUIT,
            self.slower * _PRUNED * touched**_SHARING_POWER,
        )
        each = self.slower * _CIRCUIT * touched**_CIRCUIT_POWER
        touched *= self.slower
        scores = 2 + len(self.points) * _GRADIENT * self.slower
        runs = self.pruning_runs
        if settings.pruning.max_runs is not None:
            runs = min(runs, settings.pruning.max_runs)
        passes = {
            "gate": self.questions,
            "edge scores": found * scores + _GRADIENT_CHECK,
            "pruning": found * 2 + runs * (found * pruned + each) + _LABELS,
            "held-out pairs": held * (2 + pruned + any_size) + each,
            "curve": len(FRACTIONS) * (held * any_size + each),
            "random circuits": 2 * settings.random_circuits * (held * _RANDOM * touched + each),
            "necessity of edges": (settings.added_edges + size) * (held * pruned + each),
        }
        if settings.other_pattern and self.other:
            # By roles, the two circuits have different numbers of edges in a task.
            sizes = 2 if self.slower > 1 else 1
            circuits = 2 * (2 + sizes * SPECIFICITY_CIRCUITS) * any_size
            passes["another pattern"] = self.questions + found * scores + held * (2 + circuits)
        stages = [Stage(name, round(n), n * self.seconds) for name, n in passes.items()]
        return Plan(
            command="trace",
            stages=(Stage("sampling", 0, 2 * share * self.sampling), *stages),
            memory=self.memory + round(share * self.pair_memory),
            device=self.device,
        )

    @property
    def points(self) -> tuple[float, ...]:
        """Where gradients are taken; none where edges are patched one by one."""
        method = self.settings.scoring
        method = EAP() if method == "eap" else method
        return () if isinstance(method, str) else method.points

    @property
    def pruning_runs(self) -> int:
        """Circuits that pruning runs, about."""
        return round(_RUNS * self.edges**_RUNS_POWER)


def plan_trace(
    model: Model, pattern: Pattern, settings: TraceSettings, *, roles: bool
) -> tuple[Plan, TraceSettings]:
    """Plan of a trace, from a second of passes, and the settings that keep to its budget.

    Raises:
        BudgetError: The budget is below what the lowest settings need.
        ProbeError: The pattern has too few pairs for the settings.
    """
    sizes = _measure_sizes(model, pattern, settings, roles=roles)
    if settings.budget is None:
        return with_outlook(sizes.plan(settings), settings, REDUCTIONS, sizes.plan), settings
    settings, plan = fit_to_budget(settings, REDUCTIONS, settings.budget, sizes.plan)
    pruning = next(stage.seconds for stage in plan.stages if stage.name == "pruning")
    spare = ((settings.budget or 0.0) - plan.seconds) / pruning
    most = round(sizes.pruning_runs * (1 + spare))
    return plan, replace(settings, pruning=replace(settings.pruning, max_runs=most))


def _measure_sizes(
    model: Model, pattern: Pattern, settings: TraceSettings, *, roles: bool
) -> _Sizes:
    few = settings.prompts if pattern.user_pairs else min(settings.prompts, _PLANNED_PAIRS)
    start = thread_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The trace itself warns of what it leaves out.
        tasks = sample_tasks(model, pattern, replace(settings, prompts=few))
    share = settings.prompts / few
    sampling = share * (thread_time() - start)
    task, shape, other = tasks[0], model.shape, settings.other_pattern
    graph = task.computation_graph(model)
    floats = task.clean.shape[1] * shape.layers * shape.d_model * _FLOATS_PER_UNIT
    return _Sizes(
        settings=settings,
        pairs=(share * len(tasks[0]), share * len(tasks[1])),
        sampling=sampling,
        questions=min(GATE_QUESTIONS, 2 * len(pattern.user_pairs) or GATE_QUESTIONS),
        other=not pattern.user_pairs and pattern.name != getattr(other, "name", ""),
        slower=_BY_ROLE if roles else 1.0,
        edges=len(graph),
        writers=len(graph.writers),
        seconds=seconds_per_prompt(model, task.clean, task.mask, task.readout[:, None]),
        memory=process_memory() + _FIXED_FLOATS * model.dtype.itemsize,
        pair_memory=round(share * floats * len(task)) * model.dtype.itemsize,
        device=device_name(model),
    )
