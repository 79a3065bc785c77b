"""Measurements of each compared model, of the reference models, and of random-init models."""

from collections.abc import Mapping
from dataclasses import dataclass

from probes.comparison.heads.head_sets import ModelHeads
from probes.comparison.heads.profiles import HeadProfiles, profile_heads, screen_checks
from probes.comparison.model_facts import ModelFacts, PlotData
from probes.comparison.paths.measure import (
    ContrastAnswer,
    search_paths,
)
from probes.comparison.plot_data import measure_plot_data
from probes.comparison.setup.prompts import ComparisonPrompts, tokenize_contrasts
from probes.comparison.variables.donors import AnyDonor, ModelDonor, Recipient, find_recipient
from probes.comparison.variables.verdicts import carried_sites
from probes.interventions.role_paths.graph import RolePath
from probes.interventions.screening.check import ScreenCheck
from probes.models.files.lineage import describe_lineage
from probes.models.model import Model
from probes.models.site import Site
from probes.observe.attention import role_attention
from probes.observe.behavior import Behavior
from probes.observe.gate import answer_questions, gate_behavior
from probes.observe.result import Gate


@dataclass(frozen=True, eq=False)
class ReferenceModel:
    """Measurements of an other-seed model or a control.

    Attributes:
        model: The model.
        profiles: Head profiles.
        donor: Its states for the cross-model interchange, if measured.
        sites: Site of each variable, if measured; none of those that no site carries.
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
        recipient: Its runs as a recipient, and its states as a donor; None where a gate is closed.
        donor: Its states as a donor where a gate is closed; else None.
        paths: Candidate paths with their fractions; empty where a gate is closed.
    """

    model: Model
    behavior: Behavior
    gates: tuple[Gate, ...]
    heads: ModelHeads
    plot_data: PlotData
    exact: Mapping[str, float]
    screens: tuple[ScreenCheck, ...]
    recipient: Recipient | None
    donor: AnyDonor | None
    paths: Mapping[ContrastAnswer, Mapping[RolePath, float]]

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @property
    def profiles(self) -> HeadProfiles:
        """Head profiles."""
        return self.heads.profiles

    def as_reference(self, *, with_sites: bool) -> ReferenceModel:
        """The same measurements in the role of a reference model; see `measure_reference`."""
        if self.recipient is None:
            return ReferenceModel(self.model, self.profiles, self.donor, {})
        donor = self.recipient.self_donor
        sites = carried_sites(self.recipient) if with_sites else {}
        return ReferenceModel(self.model, self.profiles, donor, sites)


def measure_model(model: Model, prompts: ComparisonPrompts) -> ModelMeasurements:
    """Measure answers, patching effects, attention and states of a compared model."""
    batches = tokenize_contrasts(model, prompts.pairs)
    attention = {c: role_attention(model, pairs.clean) for c, pairs in batches.items()}
    profiles, effects = profile_heads(
        model,
        batches,
        prompts.roles,
        kinds=("heads", "mlps"),
        screen=prompts.screen,
        attention_of=attention,
    )
    behavior = answer_questions(model, prompts.questions)
    gates = gate_behavior(
        behavior, prompts.questions, seed=prompts.seed, criterion=prompts.gate_criterion
    )
    donor, recipient = None, None
    open_gates = all(gate.is_passed for gate in gates)
    if prompts.folds and open_gates:
        recipient = find_recipient(model, prompts.folds, seed=prompts.seed)
    elif prompts.folds:
        donor = ModelDonor(model, prompts.folds)
    return ModelMeasurements(
        model=model,
        behavior=behavior,
        gates=gates,
        heads=ModelHeads(model, batches, profiles, is_screened=prompts.screen is not None),
        plot_data=measure_plot_data([*attention.values()], prompts.roles, effects),
        exact={contrast: effect.aligned_fraction for contrast, effect in effects.items()},
        screens=screen_checks(effects),
        recipient=recipient,
        donor=donor,
        paths=search_paths(model, prompts.paths) if open_gates else {},
    )


def measure_reference(
    model: Model, prompts: ComparisonPrompts, *, with_sites: bool
) -> ReferenceModel:
    """Measure a reference model: sites that carry its variables, or its states as a donor."""
    batches = tokenize_contrasts(model, prompts.pairs)
    profiles, _ = profile_heads(model, batches, prompts.roles, screen=prompts.screen)
    donor, sites = None, {}
    if prompts.folds and with_sites:
        sites = carried_sites(find_recipient(model, prompts.folds, seed=prompts.seed))
    elif prompts.folds:
        donor = ModelDonor(model, prompts.folds)
    return ReferenceModel(model, profiles, donor, sites)


def model_facts(model: Model) -> ModelFacts:
    """Facts about a model."""
    shape = model.shape
    parameters = int(model.bridge.n_params_total)
    sizes = (shape.layers, shape.heads, shape.d_model, parameters)
    return ModelFacts(model.name, model.origin, *sizes, describe_lineage(model.provenance))
