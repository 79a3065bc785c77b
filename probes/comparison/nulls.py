"""The null of a comparison: random-init models of each shape, or permuted measurements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from probes.comparison.heads.permuted import permute_roles
from probes.comparison.heads.profiles import HeadProfiles, profile_heads, screen_checks
from probes.comparison.measurements import ModelMeasurements
from probes.comparison.paths.measure import (
    PathMeasurements,
    PathNull,
    PathPlan,
    PathRuns,
    measure_null_paths,
    permute_paths,
)
from probes.comparison.setup.parallel import RunAll
from probes.comparison.setup.prompts import ComparisonPrompts, tokenize_contrasts
from probes.comparison.setup.references import ComparisonSettings
from probes.comparison.variables.donors import ModelDonor, Recipient, TokenizedTexts, tokenize_texts
from probes.comparison.variables.held_out_folds import HeldOutFolds
from probes.comparison.variables.transfer import Hits, donor_hits
from probes.interventions.screening.check import ScreenCheck
from probes.interventions.screening.patching import ExactCells
from probes.models.model import Model, random_init
from probes.observe.behavior import evaluate_behavior
from probes.observe.result import GateCriterion
from probes.prompts.tokens.batch import Batch, tokenize
from probes.prompts.tokens.pair_batch import PairBatch
from probes.scale.engine import unit_runner

_PROVENANCE_KEYS = ("_name_or_path", "transformers_version")
_STAGE = "random-init models"
# Effects without training are small, and where effects are small attribution patching is right:
# this many random cells of each contrast are patched exactly in one of the models.
_CHECKED_CELLS = 20


@dataclass(frozen=True, eq=False)
class RandomInit:
    """Random-init model, which is made when it first runs.

    Attributes:
        template: A trained model of its shape.
        seed: Its seed, which alone determines its weights.
    """

    template: Model
    seed: int
    _made: list[Model] = field(default_factory=list, init=False, repr=False)
    _donors: list[ModelDonor] = field(default_factory=list, init=False, repr=False)

    def identity(self) -> object:
        """All that shapes it: any trained model of its shape gives the same."""
        tokens = self.template.tokenizer.backend_tokenizer.to_str()
        kind = (str(self.template.dtype), self.template.device.type)
        return architecture_key(self.template), tokens, kind, self.seed

    @property
    def model(self) -> Model:
        """The model."""
        if not self._made:
            own = random_init(self.template, seed=self.seed)
            self._made.append(replace(own, name=f"random-init {self.seed}"))
        return self._made[0]

    def donor(self, folds: HeldOutFolds, tokenized: TokenizedTexts) -> ModelDonor:
        """Its states on the prompts of a comparison, which all recipients share."""
        if not self._donors:
            self._donors.append(ModelDonor(self.model, folds, tokenized))
        return self._donors[0]


@dataclass(frozen=True, eq=False)
class NullGroup:
    """Random-init models of one shape, and what they all read.

    Attributes:
        template_model: A trained model of the shape.
        recipients: Models that receive their states.
        tokenized: Texts that give these states.
        pairs, questions: Prompts for head profiles and accuracy; None where these are not measured.
    """

    template_model: Model
    recipients: Sequence[Recipient]
    tokenized: TokenizedTexts | None
    pairs: Mapping[str, PairBatch] | None
    questions: Batch | None


@dataclass(frozen=True, eq=False)
class NullDraw:
    """Measurements of one random-init model, or permuted ones of a trained model.

    Attributes:
        profiles: Head profiles; None where not measured.
        accuracy: Fraction of questions in which each answer is right as the gate counts it
            (`Behavior.counted`); None where not measured.
        hits: Interchange hits by name of the recipient; empty where not measured.
        paths: Absolute effects of role paths; empty where not measured.
        screens: Error of the effects of heads, where some were also patched exactly.
    """

    profiles: HeadProfiles | None
    accuracy: np.ndarray | None
    hits: Mapping[str, Hits]
    paths: PathNull
    screens: tuple[ScreenCheck, ...] = ()


def measure_nulls(
    prompts: ComparisonPrompts,
    measured: Sequence[ModelMeasurements],
    paths: PathMeasurements,
    settings: ComparisonSettings,
    run_all: RunAll,
) -> dict[object, list[NullDraw]]:
    """Measure the random-init models of each architecture, or permute what was measured."""
    if prompts.permuted_null:
        seeds = [prompts.seed + n for n in range(settings.nulls)]
        return {
            one.name: permute_measurements(one, paths.runs[one.name], seeds) for one in measured[1:]
        }
    groups = _null_groups(prompts, measured)
    # In turn: jobs at the same time mostly have other recipients, which run one job at a time.
    jobs = [(group, n) for n in range(settings.nulls) for group in groups]
    # Kept in parts, which comparisons with other relatives share.
    run_unit = partial(unit_runner(settings.run, settings.engine), _STAGE)
    measure = partial(measure_null, prompts=prompts, plan=paths.plan, run_unit=run_unit)
    results = run_all(measure, jobs, _STAGE, is_unit=False)
    by_architecture: dict[object, list[NullDraw]] = {}
    for (group, _), null in zip(jobs, results, strict=True):
        by_architecture.setdefault(architecture_key(group.template_model), []).append(null)
    return by_architecture


def _null_groups(
    prompts: ComparisonPrompts, measured: Sequence[ModelMeasurements]
) -> list[NullGroup]:
    """Groups of random-init models, one for each shape.

    Models of the first shape are donors into the others; models of the others' shapes are donors
    into the first.
    """
    first, *others = measured
    templates = {architecture_key(one.model): one.model for one in reversed(measured)}
    compared = {architecture_key(one.model) for one in others}
    groups = []
    for key, template in templates.items():
        recipients = [first] if key in compared else []
        recipients += others if key == architecture_key(first.model) else []
        open_recipients = [one.recipient for one in recipients if one.recipient]
        groups.append(
            prepare_nulls(template, prompts, open_recipients, states_only=key not in compared)
        )
    return groups


def prepare_nulls(
    template_model: Model,
    prompts: ComparisonPrompts,
    recipients: Sequence[Recipient],
    *,
    states_only: bool,
) -> NullGroup:
    """Tokenize what the random-init models of one shape read.

    Args:
        template_model: A trained model of the shape.
        prompts: Prompts of the comparison.
        recipients: Models that receive the states of the random-init models.
        states_only: Whether to measure no head profiles and no accuracy.
    """
    folds, context = prompts.folds, template_model.shape.context
    pairs = questions = None
    if not states_only:
        pairs = tokenize_contrasts(template_model, prompts.pairs)
        questions = tokenize(template_model.tokenizer, prompts.questions, max_length=context)
    return NullGroup(
        template_model=template_model,
        recipients=recipients if folds else (),
        tokenized=tokenize_texts(template_model, folds) if folds and recipients else None,
        pairs=pairs,
        questions=questions,
    )


def measure_null(
    job: tuple[NullGroup, int],
    prompts: ComparisonPrompts,
    plan: PathPlan,
    run_unit: Callable,
) -> NullDraw:
    """Measure one random-init model of a group; its seed is that of the prompts plus its number.

    Args:
        job: The group and the number.
        prompts, plan: Prompts and role paths of the comparison.
        run_unit: Runs a function on its arguments, or reads its result from a store.
    """
    group, number = job
    null = RandomInit(group.template_model, prompts.seed + number)
    hits = {
        recipient.name: run_unit(_null_hits, null, recipient, group.tokenized)
        for recipient in group.recipients
    }
    if group.pairs is None or group.questions is None:
        return NullDraw(None, None, hits, {})
    screen = ExactCells(0, 0 if number else _CHECKED_CELLS, seed=prompts.seed)
    profiles, screens = run_unit(_null_profiles, null, group.pairs, prompts.roles, screen)
    accuracy = run_unit(_null_accuracy, null, group.questions, prompts.gate_criterion)
    return NullDraw(profiles, accuracy, hits, run_unit(_null_paths, null, plan), screens)


def _null_hits(null: RandomInit, recipient: Recipient, tokenized: TokenizedTexts) -> Hits:
    donor = null.donor(recipient.folds, tokenized)
    return donor_hits(recipient, [donor])[donor.name]


def _null_profiles(
    null: RandomInit,
    pairs: Mapping[str, PairBatch],
    roles: Sequence[str],
    screen: ExactCells,
) -> tuple[HeadProfiles, tuple[ScreenCheck, ...]]:
    profiles, effects = profile_heads(null.model, pairs, roles, screen=screen)
    return profiles.averaged(), screen_checks(effects)


def _null_accuracy(null: RandomInit, questions: Batch, criterion: GateCriterion) -> np.ndarray:
    """Fraction of answers that the gate counts as right: pages show both on one axis."""
    counted = evaluate_behavior(null.model, questions).counted(criterion)
    return counted.float().mean(0).numpy()


def _null_paths(null: RandomInit, plan: PathPlan) -> PathNull:
    return measure_null_paths(null.model, plan)


def permute_measurements(
    measured: ModelMeasurements, paths: PathRuns, seeds: Sequence[int]
) -> list[NullDraw]:
    """Draws of the permuted null of a model, from what was measured; no model runs."""
    profiles = measured.profiles.averaged()
    return [
        NullDraw(permute_roles(profiles, seed=n), None, {}, permute_paths(paths, seed=n))
        for n in seeds
    ]


def architecture_key(model: Model) -> object:
    """Key of the random-init models that serve a model: its config without its provenance."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _PROVENANCE_KEYS}
    return (model.shape, str(sorted(config.items())))
