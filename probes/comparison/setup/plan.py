"""Plan of a comparison: its stages in passes, and the settings that a budget lowers."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import thread_time

from transformers import PreTrainedTokenizerBase

from probes.comparison.circuits.edges import has_same_graph
from probes.comparison.setup.cost import (
    exact_cells,
    extra_memory,
    is_cheaper,
    null_operations,
    sweep_operations,
)
from probes.comparison.setup.prompts import (
    SCREENED_TRANSFER_SIZES,
    TRANSFER_SIZES,
    changes_an_answer,
    sample_contrast_pairs,
    shared_roles,
    tokenize_contrasts,
)
from probes.comparison.setup.references import ComparisonSettings, ReferenceModels
from probes.comparison.variables.held_out_folds import distinct_tokenizers, sample_held_out_folds
from probes.errors import PatternError
from probes.interventions.screening.patching import CHECKED_PAIRS, ExactCells
from probes.models.files.memory import process_memory
from probes.models.model import Model
from probes.models.pass_costs import device_name, seconds_per_prompt
from probes.observe.gate import GATE_QUESTIONS
from probes.plan import Plan, Reduction, Stage, fit_to_budget, with_outlook
from probes.prompts.pattern import Pattern

# What a prompt costs, in passes, measured on the family and on SmolLM2-135M (docs/performance.md).
_CELL = 0.13  # Of a run that restarts behind a patched component; without effect it is not run.
_SITE = 0.35  # The same at a site of the residual stream.
_GRADIENT = 2.5  # Forward and backward.
_GRAPH = 0.45  # Of a graph of roles.
_MAP = 70  # Search of a donor's sites and fit of a map, for each variable.
_PATH_GRAPHS = 3  # Paths of each contrast, about.
_SCREENED_CELL = 0.2  # Of a cell of a large model, which acts on most prompts.
_INTERCHANGES = 4.5  # Runs of a direction, in those of one donor with the search of its sites.
_EDGE_PASSES = 19.0  # For each pair.
_VERDICT = 14.0  # For each pair, of the heads that are patched together.
_SAMPLINGS = 5.5  # Draws of all prompts, in those of the pairs.
_INIT = 50  # Of a random-init model, to make it.
_PLANNED_PAIRS = 8  # Sampled of each contrast for the plan.
_SECONDS = 2.0  # Of passes that are timed.

REDUCTIONS = (
    Reduction("draws", (4, 3, 2, 1), "{less} of {whole} draws of prompts for variables"),
    Reduction("nulls", (100, 50, 35, 20), "{less} of {whole} draws of the null"),
    Reduction("null", ("permuted",), "random-init models: the null is permuted"),
    Reduction("screen", ("always",), "exact patching: effects are screened"),
    Reduction(
        "prompts", (28, 24, 20, 16, 14, 12, 10, 8), "{less} of {whole} pairs of each contrast"
    ),
)
"""What a budget lowers, in this order."""


@dataclass(frozen=True, slots=True)
class _ModelSize:
    """A model as far as its cost goes.

    Attributes:
        seconds: Of a pass, for each prompt.
        heads, components: Cells of all contrasts: heads, or heads and MLPs, at each role.
        sites: Sites of the residual stream between blocks.
    """

    seconds: float
    heads: int
    components: int
    sites: int


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What a plan is computed from."""

    settings: ComparisonSettings
    models: tuple[_ModelSize, ...]
    same_graph: tuple[_ModelSize, ...]
    references: tuple[_ModelSize, ...]
    other_seed: bool
    negative: int
    contrasts: int
    changing: int
    roles: int
    sampling: float
    pairs: float
    variables: int
    operations: tuple[float, float]
    exact: ExactCells
    memory: int
    device: str

    def plan(self, settings: ComparisonSettings) -> Plan:
        """Plan of these settings."""
        parts = _Passes(self, settings).stages()
        stages = [
            Stage(name, round(sum(n for _, n in own)), sum(model.seconds * n for model, n in own))
            for name, own in parts.items()
        ]
        share = settings.prompts / self.settings.prompts
        sampling = Stage("sampling", 0, _SAMPLINGS * share * self.sampling)
        return Plan("compare", (sampling, *stages), self.memory, self.device)

    def is_screened(self, settings: ComparisonSettings) -> bool:
        """Whether large models are measured by attribution patching."""
        share = settings.prompts / self.settings.prompts
        return is_cheaper(settings.screen, "always", [share * self.operations[0]])

    def is_permuted(self, settings: ComparisonSettings) -> bool:
        """Whether the null permutes measurements."""
        share = settings.nulls * settings.prompts / self.settings.prompts
        can_permute = self.is_screened(settings) or settings.null == "permuted"
        return can_permute and is_cheaper(settings.null, "permuted", [share * self.operations[1]])


class _Passes:
    """Passes of each model in each stage of a comparison."""

    def __init__(self, sizes: _Sizes, settings: ComparisonSettings) -> None:
        self.sizes, self.settings = sizes, settings
        self.pairs = sizes.pairs * settings.prompts / sizes.settings.prompts
        self.screened, self.permuted = sizes.is_screened(settings), sizes.is_permuted(settings)
        bases, questions = SCREENED_TRANSFER_SIZES if self.screened else TRANSFER_SIZES
        self.bases, self.questions = (bases, questions) if sizes.variables else (0, 0)

    def stages(self) -> dict[str, list[tuple[_ModelSize, float]]]:
        """Models and their passes, by name of the stage."""
        sizes, settings = self.sizes, self.settings
        full, *others = sizes.models
        draws = 1 if self.screened else settings.draws
        every = [*sizes.models, *sizes.references[: int(sizes.other_seed)]]
        stages = {
            "models": [(m, self._profile(m, m.components) + self._model(m)) for m in sizes.models],
            "role paths": [(m, self._paths()) for m in every],
            "random-init models": [
                part
                for o in others
                for part in (
                    (o, settings.nulls * (self._attributed() + self._null())),
                    (o, settings.nulls * self._hits()),
                    (full, settings.nulls * (self._donor() + self._hits())),
                )
                if not self.permuted
            ],
            "edges": [(m, self._edges(settings)) for m in sizes.same_graph],
            "reference models": [
                (m, self._profile(m, m.heads) + self._donor()) for m in sizes.references
            ],
            "negative controls": [(m, sizes.negative * self._hits()) for m in sizes.models],
            "interchange": [(m, self._interchange()) for o in others for m in (full, o)],
            "further draws": [
                (m, (draws - 1) * (self._recipient(m) + self._interchange() * per_model))
                for m, per_model in [(full, len(others)), *((o, 1) for o in others)]
            ],
            "verdicts": [(m, self._verdicts()) for o in others for m in (full, o)],
        }
        return {name: own for name, own in stages.items() if sum(n for _, n in own)}

    def _profile(self, model: _ModelSize, cells: int) -> float:
        contrasts, pairs = self.sizes.contrasts, self.pairs
        if not self.screened:
            return pairs * (3 * contrasts + _CELL * cells)
        few, exact = min(pairs, CHECKED_PAIRS), self.sizes.exact
        strong = few * (2 + 3 * _GRADIENT) + pairs * (2 + exact.top * _SCREENED_CELL)
        checked = few * (2 + exact.random * _SCREENED_CELL)
        return self._attributed() + self.sizes.changing * strong + contrasts * checked

    def _attributed(self) -> float:
        return self.sizes.contrasts * self.pairs * (3 + _GRADIENT)

    def _model(self, model: _ModelSize) -> float:
        searched = self.sizes.changing * self.pairs / 2 * (4 + self.sizes.roles * _GRAPH)
        return GATE_QUESTIONS + searched + self._recipient(model)

    def _donor(self) -> float:
        return float(self.questions + self.bases)

    def _recipient(self, model: _ModelSize) -> float:
        searched = self.bases / 2 * (3 + 2 * _SITE * model.sites)
        return (searched + 3 * self.bases + self._donor()) * bool(self.sizes.variables)

    def _hits(self) -> float:
        return self.sizes.variables * (_MAP * self.questions / 400 + _SITE * self.bases)

    def _null(self) -> float:
        paths = self.sizes.changing * 8 * (2 + _PATH_GRAPHS * _GRAPH)
        return _INIT + GATE_QUESTIONS + self._donor() + paths

    def _interchange(self) -> float:
        return _INTERCHANGES * self._hits()

    def _paths(self) -> float:
        tested = self.pairs * (1 if self.screened else 2)
        circuits = min(tested, 16) * (2 + 7 * _GRAPH)
        return self.sizes.changing * (tested * (4 + _PATH_GRAPHS * _GRAPH) + circuits)

    def _edges(self, settings: ComparisonSettings) -> float:
        is_wanted = self.screened if settings.edges is None else settings.edges
        return 32 * _EDGE_PASSES * is_wanted

    def _verdicts(self) -> float:
        return self.sizes.contrasts * self.pairs * _VERDICT


def plan_comparison(
    models: Sequence[Model],
    references: ReferenceModels,
    pattern: Pattern,
    settings: ComparisonSettings,
) -> tuple[Plan, ComparisonSettings]:
    """Plan of a comparison, from seconds of passes, and the settings that keep to its budget.

    Raises:
        BudgetError: The budget is below what the lowest settings need.
        ProbeError: The pattern has too few pairs for the settings.
    """
    sizes = _measure_sizes(models, references, pattern, settings)
    if settings.budget is None:
        return with_outlook(sizes.plan(settings), settings, REDUCTIONS, sizes.plan), settings
    lowered, plan = fit_to_budget(settings, REDUCTIONS, settings.budget, sizes.plan)
    screen = "always" if sizes.is_screened(lowered) else "never"
    null = "permuted" if sizes.is_permuted(lowered) else "random-init"
    return plan, replace(lowered, screen=screen, null=null)


def _measure_sizes(
    models: Sequence[Model],
    references: ReferenceModels,
    pattern: Pattern,
    settings: ComparisonSettings,
) -> _Sizes:
    few = settings.prompts if pattern.user_pairs else min(settings.prompts, _PLANNED_PAIRS)
    share = settings.prompts / few
    tokenizers, start = distinct_tokenizers([m.tokenizer for m in models]), thread_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The comparison itself warns of what it leaves out.
        pairs = {
            contrast: sample_contrast_pairs(pattern, contrast, few, tokenizers, settings.seed)
            for contrast in pattern.contrasts
        }
        batches = [tokenize_contrasts(model, pairs) for model in models]
        sampling = thread_time() - start
        variables = _count_variables(pattern, tokenizers, settings.seed)
    roles, both = shared_roles(batches), list(zip(models, batches, strict=True))
    others = references.not_compared({model.name for model in models})
    alike = [model for model in models[1:] if has_same_graph(models[0], model)]
    shapes = {(model.shape, model.dtype): model for model in (*others, *models)}
    known = {}
    for key, model in shapes.items():
        batch = next(iter(tokenize_contrasts(model, pairs).values())).clean
        given, limit = (batch.ids, batch.mask, batch.positions), _SECONDS / len(shapes)
        known[key] = seconds_per_prompt(model, *given, limit=limit)

    def size(model: Model) -> _ModelSize:
        key = (model.shape, model.dtype)
        at = len(roles) * len(pairs) * model.shape.layers
        sites = len(roles) * (model.shape.layers - 1)
        return _ModelSize(known[key], at * model.shape.heads, at * (model.shape.heads + 1), sites)

    return _Sizes(
        settings=settings,
        models=tuple(map(size, models)),
        same_graph=tuple(size(m) for m in (models[0], *alike) if alike),
        references=tuple(map(size, others)),
        other_seed=references.other_seed in others,
        negative=len(references.negative_controls),
        contrasts=len(pairs),
        changing=sum(any(map(changes_an_answer, own)) for own in pairs.values()),
        roles=len(roles),
        sampling=share * sampling,
        pairs=share * sum(map(len, pairs.values())) / len(pairs),
        variables=variables,
        operations=(
            share * max(sweep_operations(*one, roles) for one in both),
            share * max(null_operations(*one, 1) for one in both),
        ),
        exact=exact_cells(both, scale=share),
        memory=process_memory() + max(extra_memory(*one, share) for one in both),
        device=device_name(models[0]),
    )


def _count_variables(
    pattern: Pattern, tokenizers: Sequence[PreTrainedTokenizerBase], seed: int
) -> int:
    """Variables of the cross-model interchange; 0 where the pattern does not allow it."""
    how = {"tokenizers": tokenizers, "bases": 16, "prompts": 32, "seed": seed}
    try:
        return len(sample_held_out_folds(pattern, **how).variables)
    except PatternError:
        return 0
