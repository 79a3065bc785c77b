"""Cross-model interchange: does the answer of one model follow the states of another?

A map that was fitted on all words proves nothing: even a label of the verb then changes every
answer. So no test word is among the rows of a fit, and every donor is compared with controls that
get the same kind of map: other models at sites of their own search, shuffled states at the donor's,
labels and embeddings at the variable's own word.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from probes.comparison.variables.control_donors import label_donor, shuffled_donor
from probes.comparison.variables.donors import AnyDonor, ModelDonor, Recipient, find_recipient
from probes.comparison.variables.held_out_folds import distinct_tokenizers, sample_held_out_folds
from probes.comparison.variables.linear_maps import MAP_KINDS, MapKind
from probes.comparison.variables.result import (
    EMBEDDING_CONTROL,
    RANDOM_INIT,
    CrossModelTransfer,
)
from probes.comparison.variables.stitching import (
    DonorSites,
    embedding_sites,
    find_donor_sites,
    self_sites,
    stitched_hits,
)
from probes.errors import ModelError
from probes.interventions.interchange import interchange_intervention
from probes.interventions.site_search import takes_only
from probes.models.model import Model, ModelSpec, load, random_init
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_pairs import OPERATION
from probes.prompts.pattern import Pattern
from probes.stats.intervals import proportion
from probes.stats.paired import mcnemar_test

Hits = Mapping[str, Bool[np.ndarray, " prompt"]]
"""For each variable, the interchange pairs whose output takes the source's value."""


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """Settings of `cross_model_interchange`.

    Attributes:
        variables: "operation", operands, "thing"; all if empty.
        bases: Interchange pairs, before those with words of the site search are left out.
        prompts: Questions for fitting maps; a map reads at most a tenth as many directions.
        nulls: Random-init models of the donor's shape, each with its own site search.
        negative_controls: Models trained for another task.
        seed: Seed of prompts and random-init models.
    """

    variables: tuple[str, ...] = ()
    bases: int = 200
    prompts: int = 400
    nulls: int = 20
    negative_controls: tuple[ModelSpec, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class TransferBaselines:
    """Hits of random-init models and negative controls in the same recipient, by name."""

    nulls: Mapping[str, Hits]
    negative_controls: Mapping[str, Hits]


def cross_model_interchange(
    donor: ModelSpec,
    recipient: ModelSpec,
    pattern: str | Pattern = "take-away",
    settings: TransferSettings = TransferSettings(),
) -> tuple[CrossModelTransfer, ...]:
    """Transfer each variable from a donor to a recipient, and compare with controls.

    Args:
        donor, recipient: Models of any shapes and tokenizers.
        pattern: Query pattern with an opposite.
        settings: Sizes, controls and seed.

    Raises:
        PatternError: The pattern has no opposite, or too few words to hold some out.
        BatchError: There are too few prompts for a map, or states that are not finite.
        ModelError: `nulls` is 0.
    """
    a, b, seed = load(donor), load(recipient), settings.seed
    own = find_pattern(pattern) if isinstance(pattern, str) else pattern
    controls = with_unique_names(map(load, settings.negative_controls), [a.name, b.name])
    folds = sample_held_out_folds(
        own,
        tokenizers=distinct_tokenizers([model.tokenizer for model in (a, b, *controls)]),
        bases=settings.bases,
        prompts=settings.prompts,
        seed=seed,
    )
    variables = settings.variables or folds.variables
    receiving = find_recipient(b, folds, seed=seed)
    nulls = (ModelDonor(random_init(a, seed=seed + n), folds) for n in range(settings.nulls))
    baselines = TransferBaselines(
        donor_hits(receiving, nulls, variables),
        donor_hits(receiving, (ModelDonor(model, folds) for model in controls), variables),
    )
    return evaluate_donor(receiving, ModelDonor(a, folds), variables, baselines, seed=seed)


def with_unique_names(models: Iterable[Model], taken: Sequence[str]) -> list[Model]:
    """Number models with the name of another, because results identify models by name."""
    renamed: list[Model] = []
    for model in models:
        number, name = 1, model.name
        while name in (*taken, *(one.name for one in renamed)):
            number += 1
            name = f"{model.name} ({number})"
        renamed.append(model if name == model.name else replace(model, name=name))
    return renamed


def donor_hits(
    recipient: Recipient, donors: Iterable[AnyDonor], variables: Sequence[str] = ()
) -> dict[str, Hits]:
    """Hits of each donor through a ridge map at its best sites; all variables by default."""
    variables = variables or recipient.folds.variables
    return {
        donor.name: {
            variable: stitched_hits(
                recipient, donor, variable, find_donor_sites(recipient, donor, variable)
            )
            for variable in variables
        }
        for donor in donors
    }


def own_hits(recipient: Recipient, variable: str) -> Bool[np.ndarray, " prompt"]:
    """Hits of a model's own states at its site of a variable, without a map."""
    with recipient.model.turn:
        outcomes = interchange_intervention(recipient.runs, [recipient.sites[variable]])
    return takes_only(outcomes, variable)[0][recipient.folds.test_mask(variable)]


def evaluate_donor(
    recipient: Recipient,
    donor: AnyDonor,
    variables: Sequence[str],
    baselines: TransferBaselines | None,
    *,
    seed: int,
) -> tuple[CrossModelTransfer, ...]:
    """Compare a donor with its controls and with other donors in the same recipient.

    Without baselines, as in the further draws of a comparison, there are no other donors.

    Raises:
        ModelError: There is no random-init model among the baselines.
    """
    if baselines and not baselines.nulls:
        raise ModelError(
            "No random-init models found: a transfer needs at least one as its null. Set nulls to "
            "1 or more"
        )
    baselines = baselines or TransferBaselines({}, {})
    return tuple(
        _evaluate_variable(recipient, donor, variable, baselines, seed) for variable in variables
    )


def _evaluate_variable(
    recipient: Recipient, donor: AnyDonor, variable: str, baselines: TransferBaselines, seed: int
) -> CrossModelTransfer:
    nulls = {name: hits[variable] for name, hits in baselines.nulls.items()}
    sites = find_donor_sites(recipient, donor, variable)
    maps = dict(_map_hits(recipient, donor, variable, sites))
    controls = dict(_control_hits(recipient, donor, variable, sites, seed))
    if nulls:
        controls[RANDOM_INIT] = max(nulls.values(), key=lambda hits: hits.mean())
    accuracies = {name: proportion(hits) for name, hits in controls.items()}
    excesses = {
        name: mcnemar_test(hits, maps["ridge"]).difference for name, hits in controls.items()
    }
    own_ridge = stitched_hits(
        recipient, recipient.self_donor, variable, self_sites(recipient, variable)
    )
    pairs = np.flatnonzero(recipient.folds.test_mask(variable))
    return CrossModelTransfer(
        variable=variable,
        donor=donor.name,
        recipient=recipient.name,
        pairs=len(pairs),
        site=str(recipient.sites[variable]),
        donor_sites=tuple(f"L{layer}.resid@{role}" for layer, role in sites.values()),
        own_accuracy=proportion(own_hits(recipient, variable)),
        own_ridge_accuracy=proportion(own_ridge),
        maps={kind: proportion(hits) for kind, hits in maps.items()},
        controls=accuracies,
        nulls=tuple(float(hits.mean()) for hits in nulls.values()),
        negative_controls={
            name: float(hits[variable].mean()) for name, hits in baselines.negative_controls.items()
        },
        excesses=excesses,
        shortfall=mcnemar_test(maps["ridge"], own_ridge).difference,
        missed_pairs=tuple(map(int, pairs[own_ridge & ~maps["ridge"]])),
        by_verbs={
            ", ".join(fold.forms): proportion(maps["ridge"][fold.test[pairs]])
            for fold in recipient.folds.by_variable[variable]
            if variable == OPERATION and fold.test.any()
        },
    )


def _map_hits(
    recipient: Recipient, donor: AnyDonor, variable: str, donor_sites: DonorSites
) -> Iterator[tuple[MapKind, Bool[np.ndarray, " prompt"]]]:
    """Hits by kind of map; the identity needs equal widths."""
    d_from, d_to = (
        states["resid"].shape[-1]
        for states in (donor.train_states, recipient.self_donor.train_states)
    )
    for kind in MAP_KINDS:
        if kind != "identity" or d_from == d_to:
            yield kind, stitched_hits(recipient, donor, variable, donor_sites, kind=kind)


def _control_hits(
    recipient: Recipient, donor: AnyDonor, variable: str, donor_sites: DonorSites, seed: int
) -> Iterator[tuple[str, Bool[np.ndarray, " prompt"]]]:
    own_word = embedding_sites(recipient, variable)
    label = label_donor(donor, recipient.folds, variable)
    shuffled = shuffled_donor(donor, recipient.folds, seed=seed)
    yield EMBEDDING_CONTROL, stitched_hits(recipient, donor, variable, own_word)
    yield "label", stitched_hits(recipient, label, variable, own_word)
    yield "shuffled", stitched_hits(recipient, shuffled, variable, donor_sites)
