"""Measurements of each compared model, of the reference models, and of random-init models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.comparison.heads.head_sets import ModelHeads
from probes.comparison.heads.permuted import permute_roles
from probes.comparison.heads.profiles import HeadProfiles, profile_heads
from probes.comparison.model_facts import ModelFacts, PlotData
from probes.comparison.paths.measure import (
    ContrastAnswer,
    PathNull,
    PathPlan,
    PathRuns,
    measure_null_paths,
    permute_paths,
    search_paths,
)
from probes.comparison.plot_data import measure_plot_data
from probes.comparison.setup.prompts import ComparisonPrompts, tokenize_contrasts
from probes.comparison.variables.stitching import (
    AnyDonor,
    ModelDonor,
    Recipient,
    TokenizedTexts,
    find_recipient,
    find_variable_sites,
    tokenize_texts,
)
from probes.comparison.variables.transfer import Hits, donor_hits
from probes.interventions.attribution_patching import ExactCells
from probes.interventions.result import ScreenCheck
from probes.interventions.role_paths.graph import RolePath
from probes.models.files.lineage import describe_lineage
from probes.models.model import Model, random_init
from probes.models.site import Site
from probes.observe.behavior import Behavior, evaluate_behavior
from probes.observe.gate import answer_questions, gate_behavior
from probes.observe.result import Gate
from probes.prompts.tokens.batch import Batch, tokenize
from probes.prompts.tokens.pair_batch import PairBatch


@dataclass(frozen=True, eq=False)
class ReferenceModel:
    """Measurements of an other-seed model or a control.

    Attributes:
        model: The model.
        profiles: Head profiles.
        donor: Its states for the cross-model interchange, if measured.
        sites: Site of each variable, if measured.
    """

    model: Model
    profiles: HeadProfiles
    donor: AnyDonor | None
    sites: Mapping[str, Site]

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name


@dataclass(frozen=True, eq=False)
class ModelMeasurements:
    """Measurements of one compared model.

    Attributes:
        model: The model.
        behavior, gates: Its answers, and the gate of each answer.
        heads: Head profiles and the batches that they were measured on.
        plot_data: Data of its plots.
        exact: For each contrast, fraction of the pairs whose tokens are all aligned.
        screens: Error of the patching effects for each contrast; empty where all are exact.
        donor: Its states as a donor.
        recipient: Its runs as a recipient; None where a gate is closed.
        paths: Candidate paths with their fractions; empty where a gate is closed.
    """

    model: Model
    behavior: Behavior
    gates: tuple[Gate, ...]
    heads: ModelHeads
    plot_data: PlotData
    exact: Mapping[str, float]
    screens: tuple[ScreenCheck, ...]
    donor: AnyDonor | None
    recipient: Recipient | None
    paths: Mapping[ContrastAnswer, Mapping[RolePath, float]]

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @property
    def profiles(self) -> HeadProfiles:
        """Head profiles."""
        return self.heads.profiles

    def as_reference(self) -> ReferenceModel:
        """The same measurements in the role of a reference model."""
        sites = self.recipient.sites if self.recipient else {}
        return ReferenceModel(self.model, self.profiles, self.donor, sites)


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
        profiles, accuracy: Head profiles, and accuracy of each answer; None where not measured.
        hits: Interchange hits by name of the recipient; empty where not measured.
        paths: Absolute effects of role paths; empty where not measured.
    """

    profiles: HeadProfiles | None
    accuracy: np.ndarray | None
    hits: Mapping[str, Hits]
    paths: PathNull


def measure_model(model: Model, prompts: ComparisonPrompts) -> ModelMeasurements:
    """Measure answers, patching effects, attention and states of a compared model."""
    batches = tokenize_contrasts(model, prompts.pairs)
    profiles, effects = profile_heads(
        model, batches, prompts.roles, kinds=("heads", "mlps"), screen=prompts.screen
    )
    behavior = answer_questions(model, prompts.questions)
    gates = gate_behavior(
        behavior, prompts.questions, seed=prompts.seed, criterion=prompts.gate_criterion
    )
    donor, recipient = None, None
    open_gates = all(gate.is_passed for gate in gates)
    if prompts.folds and open_gates:
        recipient = find_recipient(model, prompts.folds, seed=prompts.seed)
        donor = recipient.self_donor
    elif prompts.folds:
        donor = ModelDonor(model, prompts.folds)
    return ModelMeasurements(
        model=model,
        behavior=behavior,
        gates=gates,
        heads=ModelHeads(model, batches, profiles, is_screened=prompts.screen is not None),
        plot_data=measure_plot_data(model, batches, prompts.roles, effects),
        exact={contrast: effect.aligned_fraction for contrast, effect in effects.items()},
        screens=tuple(effect.screen for effect in effects.values() if effect.screen),
        donor=donor,
        recipient=recipient,
        paths=search_paths(model, prompts.paths) if open_gates else {},
    )


def measure_reference(
    model: Model, prompts: ComparisonPrompts, *, with_sites: bool
) -> ReferenceModel:
    """Measure a reference model: the sites of its variables, or its states as a donor."""
    batches = tokenize_contrasts(model, prompts.pairs)
    profiles, _ = profile_heads(model, batches, prompts.roles, screen=prompts.screen)
    donor, sites = None, {}
    if prompts.folds and with_sites:
        sites = find_variable_sites(model, prompts.folds, seed=prompts.seed)
    elif prompts.folds:
        donor = ModelDonor(model, prompts.folds)
    return ReferenceModel(model, profiles, donor, sites)


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
    job: tuple[NullGroup, int], prompts: ComparisonPrompts, plan: PathPlan
) -> NullDraw:
    """Measure one random-init model of a group; its seed is that of the prompts plus its number."""
    group, number = job
    model = random_init(group.template_model, seed=prompts.seed + number)
    hits = {}
    if prompts.folds and group.tokenized:
        donor = ModelDonor(model, prompts.folds, tokenized=group.tokenized)
        for recipient in group.recipients:
            by_donor = donor_hits(recipient, [donor])
            hits[recipient.name] = by_donor[model.name]
    if group.pairs is None or group.questions is None:
        return NullDraw(None, None, hits, {})
    # Effects without training are small, and the screen is exact where effects are small.
    screen = ExactCells(0, 0) if prompts.screen else None
    profiles, _ = profile_heads(model, group.pairs, prompts.roles, screen=screen)
    correct = evaluate_behavior(model, group.questions).correct
    accuracy = correct.float().mean(0).numpy()
    return NullDraw(profiles, accuracy, hits, measure_null_paths(model, plan))


def permute_measurements(measured: ModelMeasurements, paths: PathRuns, seed: int) -> NullDraw:
    """One draw of the permuted null of a model, from what was measured; no model runs."""
    profiles = permute_roles(measured.profiles, seed=seed)
    return NullDraw(profiles, None, {}, permute_paths(paths, seed=seed))


def model_facts(model: Model) -> ModelFacts:
    """Facts about a model."""
    shape = model.shape
    parameters = int(model.bridge.n_params_total)
    sizes = (shape.layers, shape.heads, shape.d_model, parameters)
    return ModelFacts(model.name, model.origin, *sizes, describe_lineage(model.provenance))
