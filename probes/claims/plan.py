"""Settings of the tests of the claims, their plan in passes, and what a budget lowers."""

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

from probes.comparison.setup.cost import NullChoice, ScreenChoice, is_cheaper
from probes.interventions.hotspots.result import NullKind
from probes.interventions.screening.patching import CHECKED_PAIRS
from probes.interventions.screening.sites import SiteScreen
from probes.models.files.memory import process_memory
from probes.models.model import Model
from probes.models.pass_costs import device_name, seconds_per_prompt
from probes.observe.gate import GATE_QUESTIONS
from probes.observe.result import GateCriterion
from probes.plan import Plan, PlannedSettings, Reduction, Stage, fit_to_budget, with_outlook
from probes.prompts.interchange_sampler import PairSampler
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.batch import Batch, tokenize
from probes.prompts.tokens.pair_batch import sample_readable_questions

# What they cost in passes, measured on the family (docs/performance.md).
_SITE = 0.35  # Of a run that restarts behind a patched site.
_NULL_BASES = 24  # Bases of each random-init model.
_INIT = 150  # To make one, and to compare its heads with those of the base model.
# Passes that each test takes, and those for each base.
_TESTS = {
    "shared state": (6_000, 50),
    "separate paths": (2_000, 70),
    "directions": (3_000, 30),
    "base model": (1_000, 20),
}
# The same of a large model, whose sites and heads are screened, measured on Qwen2.5-0.5B: a search
# of a subspace costs steps, not bases.
_SCREENED_TESTS = {
    "shared state": (700, 6),
    "separate paths": (300, 8),
    "directions": (700, 0),
    "base model": (1_000, 6),
}
_SUBSPACE, _CONTROLS = 260, 4  # Of a search of a subspace; searches beside those of each size.
_VARIABLES, _DISTINCT = 5, 0.8  # Sites that are sought, with that of all; fraction that differ.
_JOINED, _GROUPS = 8, 3  # Pairs of roles that are tried; groups of unseen values.
_RECORD, _SCREENED_SITE = 2.0, 0.22  # Of the runs of a base in large batches, and of its site.
_GRADIENTS = 7  # Of all outcomes of a base.
_FLOATS_PER_UNIT, _FIXED_FLOATS = 32, 60_000_000

REDUCTIONS = (
    Reduction("dimensions", ((1, 8),), "searches of subspaces of 2 and of 4 directions"),
    Reduction("bases", (180, 160, 140, 120, 100, 80), "{less} of {whole} prompts"),
    Reduction("nulls", (15, 10, 5), "{less} of {whole} random-init models"),
)
"""What a budget lowers, in this order."""


@dataclass(frozen=True, slots=True)
class ClaimSettings(PlannedSettings):
    """Sizes and seed of the tests of the claims.

    Attributes:
        bases: Bases of the evaluation; half as many more are used to find sites. With fewer than 80
            the intervals leave tests undecided: 0 of 30 may be a tenth.
        nulls: Random-init models of the nulls.
        seed: Of prompts, random-init models and searches.
        format: Prompt format, such as "few-shot-4", or "auto"; see `PromptFormat`.
        screen: Whether gradients choose the sites and heads that are measured; "auto" where all of
            them cost too much, as in `ComparisonSettings`.
        null: What gives the thresholds of the best site: "random-init" models, or "permuted" bases,
            each scored by the answers of another one; "auto" as in `ComparisonSettings`.
        dimensions: Numbers of directions in which the operation is searched, in turn; the first
            that suffices ends the search.
        gate: What the gate asks; see `GateCriterion`.
        engine, workers: As in `ComparisonSettings`; without Ray one part is tested at a time.
    """

    bases: int = 200
    nulls: int = 20
    seed: int = 0
    format: str = "plain"
    screen: ScreenChoice = "auto"
    null: NullChoice = "auto"
    dimensions: tuple[int, ...] = (1, 2, 4, 8)
    gate: GateCriterion | None = None
    engine: Any = field(default="inprocess", compare=False, metadata={"saved": False})
    workers: int = field(default=1, compare=False, metadata={"saved": False})


def null_kind(settings: ClaimSettings) -> NullKind:
    """Null of settings whose method is chosen; see `with_method`."""
    return "permuted" if settings.null == "permuted" else "random-init"


def with_method(model: Model, pattern: Pattern, settings: ClaimSettings) -> ClaimSettings:
    """Settings in which "auto" is replaced: screened or not, and which null.

    The rule is that of comparisons: the cheaper way above a number of operations.
    """
    batch = _planned_batch(model, pattern, settings.seed)
    weights = sum(weight.numel() for weight in model.bridge.blocks.parameters())
    # A run restarts at the site: half of the layers and half of the tokens on average.
    run = 2.0 * weights * int(batch.mask.sum()) / len(batch.mask) / 4
    sites = (model.shape.layers - 1) * len(batch.roles)
    screened = is_cheaper(settings.screen, "always", [2 * 1.5 * settings.bases * sites * run])
    nulls = settings.nulls * _NULL_BASES * sites * run
    can_permute = screened or settings.null == "permuted"
    permuted = can_permute and is_cheaper(settings.null, "permuted", [nulls])
    return replace(
        settings,
        screen="always" if screened else "never",
        null="permuted" if permuted else "random-init",
    )


def _planned_batch(model: Model, pattern: Pattern, seed: int) -> Batch:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The tests themselves warn of what they leave out.
        questions = sample_readable_questions(pattern, 32, tokenizers=(model.tokenizer,), seed=seed)
    return tokenize(model.tokenizer, questions, max_length=model.shape.context)


def plan_claims(
    model: Model, pattern: Pattern, settings: ClaimSettings, *, has_base: bool = True
) -> tuple[Plan, ClaimSettings]:
    """Plan of the tests, from a second of passes, and the settings that keep to a budget.

    Args:
        model: Model that is tested.
        pattern: Pattern in its format.
        settings: Sizes and budget.
        has_base: Whether there is a base model to compare with.

    Raises:
        BudgetError: The budget is below what the lowest settings need.
        ProbeError: The pattern has no readable questions, or no interchange pairs.
    """
    PairSampler(pattern)  # A pattern that the tests refuse has no plan.
    method = with_method(model, pattern, settings)
    batch = _planned_batch(model, pattern, settings.seed)
    seconds = seconds_per_prompt(model, batch.ids, batch.mask, batch.positions)
    shape, device = model.shape, device_name(model)
    inner, every = ((shape.layers + k) * len(batch.roles) for k in (-1, 1))
    memory, floats = process_memory(), batch.ids.shape[1] * shape.layers * shape.d_model
    parameters = sum(weight.numel() for weight in model.bridge.parameters())
    screened = method.screen == "always"

    def estimate(settings: ClaimSettings) -> Plan:
        bases = settings.bases
        tests = _SCREENED_TESTS if screened else _TESTS
        searches = len(settings.dimensions) + _CONTROLS
        passes = {
            "gate": GATE_QUESTIONS,
            "hotspots": _screened_hotspots(settings)
            if screened
            else bases / 2 * (3 + 2 * inner * _SITE) + bases * (3 + 2 * every * _SITE),
            **{name: once + bases * each for name, (once, each) in tests.items()},
        }
        if screened:
            passes["shared state"] += searches * _SUBSPACE
        if method.null == "random-init":
            passes["hotspots"] += settings.nulls * _null_passes(inner, screened=screened)
        if not has_base:
            del passes["base model"]
        # A subspace is searched in a random-init model, too, beside the model.
        kept = _FLOATS_PER_UNIT * floats * bases + _FIXED_FLOATS + parameters
        stages = [Stage(name, round(n), n * seconds) for name, n in passes.items()]
        return Plan("claims", tuple(stages), memory + kept * model.dtype.itemsize, device)

    if settings.budget is None:
        return with_outlook(estimate(settings), settings, REDUCTIONS, estimate), settings
    lowered, plan = fit_to_budget(settings, REDUCTIONS, settings.budget, estimate)
    return plan, lowered


def _screened_hotspots(settings: ClaimSettings) -> float:
    """Passes of screened hotspots: the screen, its sites on the search and on the evaluation."""
    screen, bases = SiteScreen(), settings.bases
    kept = _VARIABLES * screen.kept * _DISTINCT
    unseen = _GROUPS * max(bases / 4, 20) * (_RECORD + _VARIABLES * _SCREENED_SITE)
    search = bases / 2 * (_RECORD + 2 * _SCREENED_SITE * (kept + _JOINED))
    evaluation = bases * (_RECORD + _SCREENED_SITE * (kept + _VARIABLES))
    return _screen_passes(screen) + search + evaluation + unseen


def _screen_passes(screen: SiteScreen) -> float:
    """Passes of a screen on its few bases: gradients, and the sites that are tried exactly."""
    tried = _VARIABLES * screen.top * _DISTINCT
    gradients = screen.bases * (_RECORD + _GRADIENTS + 2 * _SCREENED_SITE * tried)
    return gradients + CHECKED_PAIRS * (_RECORD + _SCREENED_SITE * screen.random)


def _null_passes(sites: int, *, screened: bool) -> float:
    """Passes of one random-init model of the null."""
    if not screened:
        return _INIT + _NULL_BASES * (3 + sites * _SITE)
    screen = SiteScreen()
    kept = _VARIABLES * screen.kept * _DISTINCT
    exact = _NULL_BASES * (_RECORD + 2 * _SCREENED_SITE * kept)
    return _INIT + _screen_passes(screen) + exact
