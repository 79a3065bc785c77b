"""Settings of the tests of the claims, their plan in passes, and what a budget lowers."""

import warnings
from dataclasses import dataclass, field
from typing import Any

from probes.models.files.memory import process_memory
from probes.models.model import Model
from probes.models.pass_costs import device_name, seconds_per_prompt
from probes.observe.gate import GATE_QUESTIONS
from probes.observe.result import GateCriterion
from probes.plan import Plan, PlannedSettings, Reduction, Stage, fit_to_budget, with_outlook
from probes.prompts.interchange_sampler import PairSampler
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.batch import tokenize
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
_FLOATS_PER_UNIT, _FIXED_FLOATS = 14, 60_000_000

REDUCTIONS = (
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
        gate: What the gate asks; see `GateCriterion`.
        engine, workers: As in `ComparisonSettings`; without Ray one part is tested at a time.
    """

    bases: int = 200
    nulls: int = 20
    seed: int = 0
    format: str = "plain"
    gate: GateCriterion | None = None
    engine: Any = field(default="inprocess", compare=False, metadata={"saved": False})
    workers: int = field(default=1, compare=False, metadata={"saved": False})


def plan_claims(
    model: Model, pattern: Pattern, settings: ClaimSettings
) -> tuple[Plan, ClaimSettings]:
    """Plan of the tests, from a second of passes, and the settings that keep to a budget.

    Raises:
        BudgetError: The budget is below what the lowest settings need.
        ProbeError: The pattern has no readable questions, or no interchange pairs.
    """
    PairSampler(pattern)  # A pattern that the tests refuse has no plan.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The tests themselves warn of what they leave out.
        questions = sample_readable_questions(
            pattern, 32, tokenizers=(model.tokenizer,), seed=settings.seed
        )
    batch = tokenize(model.tokenizer, questions, max_length=model.shape.context)
    seconds = seconds_per_prompt(model, batch.ids, batch.mask, batch.positions)
    shape, device = model.shape, device_name(model)
    inner, every = ((shape.layers + k) * len(batch.roles) for k in (-1, 1))
    memory, floats = process_memory(), batch.ids.shape[1] * shape.layers * shape.d_model

    def estimate(settings: ClaimSettings) -> Plan:
        bases = settings.bases
        passes = {
            "gate": GATE_QUESTIONS,
            "hotspots": bases / 2 * (3 + 2 * inner * _SITE)
            + bases * (3 + 2 * every * _SITE)
            + settings.nulls * (_INIT + _NULL_BASES * (3 + inner * _SITE)),
            **{name: once + bases * each for name, (once, each) in _TESTS.items()},
        }
        kept = (_FLOATS_PER_UNIT * floats * bases + _FIXED_FLOATS) * model.dtype.itemsize
        stages = [Stage(name, round(n), n * seconds) for name, n in passes.items()]
        return Plan("claims", tuple(stages), memory + kept, device)

    if settings.budget is None:
        return with_outlook(estimate(settings), settings, REDUCTIONS, estimate), settings
    lowered, plan = fit_to_budget(settings, REDUCTIONS, settings.budget, estimate)
    return plan, lowered
