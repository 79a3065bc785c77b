"""What is measured once of each model, and of each net that stands for chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np

from probes.comparison.heads.head_sets import ModelHeads
from probes.comparison.heads.profiles import HeadProfiles, profile_heads
from probes.comparison.result import ModelFacts, PlotData
from probes.comparison.variables.held_out_folds import (
    HeldOutFolds,
    distinct_tokenizers,
    sample_held_out_folds,
)
from probes.comparison.variables.stitching import (
    Donor,
    Recipient,
    TokenizedTexts,
    find_variable_sites,
    run_donor,
    run_recipient,
    tokenize_texts,
)
from probes.comparison.variables.transfer import Hits, donor_hits
from probes.errors import BatchError, PatternError
from probes.interventions.sweep import PatchingEffects
from probes.models.model import Model, random_init
from probes.models.site import Site
from probes.observe.attention import role_attention
from probes.observe.behavior import Behavior, evaluate_behavior
from probes.observe.gate import answer_questions, gate_behavior
from probes.observe.result import Gate
from probes.prompts.batch import Batch, tokenize
from probes.prompts.pair_batch import PairBatch, sample_pairs, tokenizable_by, tokenize_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair, Question
from probes.prompts.tokenization import REST

_GATE_QUESTIONS = 200
_MIN_PAIRS = 4
_TRANSFER_BASES, _TRANSFER_QUESTIONS = 150, 400  # Crossings and questions of a transfer.


@dataclass(frozen=True, eq=False)
class ComparisonPrompts:
    """What all compared models read.

    Attributes:
        pattern: The pattern.
        questions: Asked of each, for the gate.
        pairs: For each contrast, what is patched.
        roles: The roles that all models have.
        trials: What states are carried over on; None where that cannot be tried.
        why: Why it cannot.
        seed: Of everything.
    """

    pattern: Pattern
    questions: tuple[Question, ...]
    pairs: Mapping[str, Sequence[Pair]]
    roles: tuple[str, ...]
    folds: HeldOutFolds | None
    transfer_skip_reason: str
    seed: int


@dataclass(frozen=True, eq=False)
class ModelMeasurements:
    """One model, measured on the plan.

    Attributes:
        model: The model.
        behavior, gates: What it answered, and whether it can do it.
        heads: What its heads do, by contrast.
        view: What its pictures are drawn from.
        exact: For each contrast the share of pairs whose tokens all had a counterpart.
        donor: Its states, to be put into others.
        host: Itself, to be put into; None where it cannot do it.
    """

    model: Model
    behavior: Behavior
    gates: tuple[Gate, ...]
    heads: ModelHeads
    plot_data: PlotData
    exact: Mapping[str, float]
    donor: Donor | None
    recipient: Recipient | None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def profiles(self) -> HeadProfiles:
        """What each head does, prompt by prompt."""
        return self.heads.profiles

    def as_reference(self) -> "ReferenceModel":
        """Return it as one that others are held against."""
        cells = self.recipient.sites if self.recipient else {}
        return ReferenceModel(self.model, self.profiles, self.donor, cells)


@dataclass(frozen=True, eq=False)
class ReferenceModel:
    """A model that others are held against: another seed, a control, a stranger.

    Attributes:
        model: The model.
        profiles: What its heads do.
        donor: Its states.
        cells: Where it holds each variable; none where that was not asked for.
    """

    model: Model
    profiles: HeadProfiles
    donor: Donor | None
    sites: Mapping[str, Site]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name


@dataclass(frozen=True, eq=False)
class NullGroup:
    """Untrained nets of one shape, and what they all read.

    Attributes:
        like: A model of the shape.
        hosts: Whom their states are put into.
        read: What they read for that.
        pairs, asked: What else is measured of them; None where nothing is.
    """

    template_model: Model
    recipients: Sequence[Recipient]
    tokenized: TokenizedTexts | None
    pairs: Mapping[str, PairBatch] | None
    questions: Batch | None


@dataclass(frozen=True, eq=False)
class RandomInitNull:
    """An untrained net: what its heads do, how often it is right, and what its states turn.

    Attributes:
        profiles, accuracy: None where only its states were asked for.
        hits: For each recipient, by name.
    """

    profiles: HeadProfiles | None
    accuracy: np.ndarray | None
    hits: Mapping[str, Hits]


def sample_comparison_prompts(
    pattern: Pattern,
    models: Sequence[Model],
    prompts: int,
    seed: int,
    progress: Any,  # noqa: ANN401 (a bar around the contrasts)
) -> ComparisonPrompts:
    """Draw what all models read; nothing that one of their tokenizers cannot."""
    tokenizers = distinct_tokenizers([model.tokenizer for model in models])
    pairs = {
        c: _sample_contrast_pairs(pattern, c, prompts, tokenizers, seed)
        for c in progress(pattern.contrasts)
    }
    trials, why = None, ""
    try:
        trials = sample_held_out_folds(
            pattern,
            tokenizers=tokenizers,
            bases=_TRANSFER_BASES,
            prompts=_TRANSFER_QUESTIONS,
            seed=seed,
        )
    except PatternError as error:
        why = str(error)
    return ComparisonPrompts(
        pattern=pattern,
        questions=pattern.sample_questions(
            _GATE_QUESTIONS, seed=seed, keep=tokenizable_by(*tokenizers)
        ),
        pairs=pairs,
        roles=_shared_roles([_tokenize_contrasts(model, pairs) for model in models]),
        folds=trials,
        transfer_skip_reason=why,
        seed=seed,
    )


def measure_model(model: Model, prompts: ComparisonPrompts) -> ModelMeasurements:
    """Ask a model, patch each of its components, pool its attention, and keep its states."""
    batches = _tokenize_contrasts(model, prompts.pairs)
    found, effects = profile_heads(model, batches, prompts.roles, kinds=("heads", "mlps"))
    said = answer_questions(model, prompts.questions)
    gates = gate_behavior(said, prompts.questions, seed=prompts.seed)
    recipient, turn = None, Lock()
    if prompts.folds and all(gate.has_behavior for gate in gates):
        recipient = replace(run_recipient(model, prompts.folds, seed=prompts.seed), lock=turn)
    donor = (
        recipient.self_donor
        if recipient
        else run_donor(model, prompts.folds)
        if prompts.folds
        else None
    )
    return ModelMeasurements(
        model=model,
        behavior=said,
        gates=gates,
        heads=ModelHeads(model, batches, found, turn),
        plot_data=_plot_data(model, batches, prompts.roles, effects),
        exact={contrast: effect.aligned_fraction for contrast, effect in effects.items()},
        donor=donor,
        recipient=recipient,
    )


def measure_reference(
    model: Model, prompts: ComparisonPrompts, *, with_sites: bool
) -> ReferenceModel:
    """Measure a model that others are held against; `sites`: where it holds variables as well."""
    found, _ = profile_heads(model, _tokenize_contrasts(model, prompts.pairs), prompts.roles)
    trials = prompts.folds
    return ReferenceModel(
        model=model,
        profiles=found,
        donor=run_donor(model, trials) if trials and not with_sites else None,
        sites=find_variable_sites(model, trials, seed=prompts.seed)
        if trials and with_sites
        else {},
    )


def prepare_nulls(
    template_model: Model,
    prompts: ComparisonPrompts,
    recipients: Sequence[Recipient],
    *,
    states_only: bool,
) -> NullGroup:
    """Prepare the untrained nets of one shape; `alone`: only what their states turn in hosts."""
    return NullGroup(
        template_model=template_model,
        recipients=recipients if prompts.folds else (),
        tokenized=tokenize_texts(template_model, prompts.folds)
        if prompts.folds and recipients
        else None,
        pairs=None if states_only else _tokenize_contrasts(template_model, prompts.pairs),
        questions=None
        if states_only
        else tokenize(
            template_model.tokenizer, prompts.questions, max_length=template_model.shape.context
        ),
    )


def measure_null(
    group: NullGroup, number: int, prompts: ComparisonPrompts, build_lock: Lock
) -> RandomInitNull:
    """Measure the untrained net of one shape and number."""
    with build_lock:  # Fresh weights are drawn from torch's one generator.
        model = random_init(group.template_model, seed=prompts.seed + number)
    hits = {}
    if prompts.folds and group.tokenized:
        donor = run_donor(model, prompts.folds, tokenized=group.tokenized)
        for recipient in group.recipients:
            found = donor_hits(recipient, [donor], prompts.folds, prompts.folds.variables)
            hits[recipient.name] = found[model.name]
    if group.pairs is None or group.questions is None:
        return RandomInitNull(None, None, hits)
    found, _ = profile_heads(model, group.pairs, prompts.roles)
    right = evaluate_behavior(model, group.questions).correct
    return RandomInitNull(found, right.float().mean(0).numpy(), hits)


def model_facts(model: Model) -> ModelFacts:
    """Return the plain facts of a model."""
    shape = model.shape
    count = int(model.bridge.n_params_total)
    return ModelFacts(model.name, model.origin, shape.layers, shape.heads, shape.d_model, count)


def _sample_contrast_pairs(
    pattern: Pattern, contrast: str, prompts: int, tokenizers: Sequence[Any], seed: int
) -> tuple[Pair, ...]:
    if pattern.user_pairs:
        prompts = min(prompts, sum(pair.contrast == contrast for pair in pattern.user_pairs))
    if prompts < _MIN_PAIRS:
        raise BatchError(
            f"Contrast {contrast!r} has {prompts} pairs: halves and intervals need at least "
            f"{_MIN_PAIRS}"
        )
    return sample_pairs(pattern, contrast, prompts, tokenizers=tokenizers, seed=seed)


def _tokenize_contrasts(model: Model, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, PairBatch]:
    limit = model.shape.context
    return {
        c: tokenize_pairs(model.tokenizer, given, max_length=limit) for c, given in pairs.items()
    }


def _shared_roles(batches_by_model: Sequence[Mapping[str, PairBatch]]) -> tuple[str, ...]:
    """Return the roles that all models have, in the order in which texts show them.

    The answer that is read last is left out: nothing is read behind it.
    """
    places: list[dict[str, list[float]]] = []
    for batches in batches_by_model:
        found: dict[str, list[float]] = {}
        for pairs in batches.values():
            for role in pairs.clean.roles:
                where = pairs.clean.role_mask(role).nonzero()[:, 1].double()
                found.setdefault(role, []).append(float(where.mean()))
        places.append(found)
    first = next(iter(batches_by_model[0].values())).clean
    last = f"reply_{first.readouts[-1].name}" if first.readouts else ""
    shared = [r for r in places[0] if r != last and all(r in found for found in places)]
    return tuple(sorted(shared, key=lambda r: (r == REST, float(np.mean(places[0][r])))))


def _plot_data(
    model: Model,
    batches: Mapping[str, PairBatch],
    roles: tuple[str, ...],
    effects: Mapping[str, PatchingEffects],
) -> PlotData:
    seen = pooled_role_attention(model, batches, roles)
    mean_of = {c: _expand_to_roles(e.mean.numpy(), e.roles, roles) for c, e in effects.items()}
    error_of = {
        c: _expand_to_roles(e.standard_error.numpy(), e.roles, roles) for c, e in effects.items()
    }
    components = next(iter(effects.values())).components
    return PlotData(*seen, components, mean_of, error_of)


def pooled_role_attention(
    model: Model, batches: Mapping[str, PairBatch], roles: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Pool attention over the clean prompts of all contrasts: mean and standard error."""
    found = []
    for pairs in batches.values():
        seen = role_attention(model, pairs.clean)
        each = seen.per_prompt.numpy()
        full = np.full((*each.shape[:3], len(roles), len(roles)), np.nan)
        here = [role for role in roles if role in seen.roles]
        at = np.array([seen.roles.index(role) for role in here])
        to = np.array([roles.index(role) for role in here])
        full[..., to[:, None], to] = each[..., at[:, None], at]
        found.append(full)
    every = np.concatenate(found)
    there = (~np.isnan(every)).sum(0)
    total = np.where(there > 0, np.nansum(every, 0) / np.maximum(there, 1), np.nan)
    spread = np.nansum((every - total) ** 2, 0) / np.maximum(there * (there - 1), 1)
    return total, np.where(there > 1, np.sqrt(spread), np.nan)


def _expand_to_roles(
    values: np.ndarray, present_roles: Sequence[str], roles: Sequence[str]
) -> np.ndarray:
    full = np.full((values.shape[0], len(roles), values.shape[2]), np.nan)
    full[:, [roles.index(role) for role in present_roles]] = values
    return full
