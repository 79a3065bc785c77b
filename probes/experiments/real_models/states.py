"""The state of the operation: interchange with verbs and objects that were not fitted on.

Bases take away and sources get more, with other numbers. An interchange counts where the answer is
that of the source's operation on the base's numbers, and the object named is still the base's. The
verbs and objects are halved: directions fitted on one half are tested on the other, both ways.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.experiments.real_models.behavior import estimate_row
from probes.experiments.real_models.pairs import one_digit_pairs
from probes.files import TableRow
from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
    with_residual,
)
from probes.interventions.interchange_outcomes import InterchangeOutcomes
from probes.interventions.site_search import takes_only
from probes.interventions.subspaces.das import Subspace, mean_difference
from probes.interventions.subspaces.directions import operation_direction
from probes.models.model import Model
from probes.models.site import Site
from probes.prompts.interchange_pairs import OPERATION
from probes.prompts.pattern import Pattern
from probes.stats.intervals import proportion

EMBEDDING = Site(0, "resid", "op")
_LAYER_STEP = 2  # Of the search for sites.
_SEARCH_MARGIN = 0.1
_REPLY = "reply"


@dataclass(frozen=True, slots=True)
class StateSizes:
    """Numbers of prompts, for each half of the words, and of permutations.

    Attributes:
        search: Bases of the search for sites.
        fit: Bases that directions are fitted on.
        test: Bases of the interchange.
        permutations: Directions of permuted labels.
        seed: Of all samples.
    """

    search: int = 6
    fit: int = 8
    test: int = 10
    permutations: int = 2
    seed: int = 0


@dataclass(frozen=True, eq=False)
class StateRuns:
    """Runs of one model: prompts to fit on, and prompts with the other words to test on."""

    fits: tuple[InterchangeRuns, ...]
    tests: tuple[InterchangeRuns, ...]


def run_states(model: Model, pattern: Pattern, sizes: StateSizes) -> StateRuns:
    """Run a model on the pairs of both halves of the words."""
    fits, tests = [], []
    for half in (0, 1):
        for runs, own, count in ((fits, half, sizes.fit), (tests, 1 - half, sizes.test)):
            seed = sizes.seed + 10 * len(runs) + (runs is tests)
            verbs, nouns = _half_of_words(pattern, own)
            pairs = one_digit_pairs(pattern, count, verbs=verbs, nouns=nouns, seed=seed)
            runs.append(run_interchange_pairs(model, pairs))
    return StateRuns(tuple(fits), tuple(tests))


def find_state_sites(model: Model, pattern: Pattern, sizes: StateSizes) -> dict[str, Site]:
    """Site at the verb, and the best site behind it, on prompts that are not tested.

    At the verb it is the last block at which the interchange works about as often as at the best:
    before the first block the state is the word itself.
    """
    verbs, nouns = pattern.lexicon.all_verbs(), pattern.lexicon.words("noun")
    pairs = one_digit_pairs(pattern, sizes.search, verbs=verbs, nouns=nouns, seed=sizes.seed + 100)
    runs = run_interchange_pairs(model, pairs)
    roles = runs.roles[runs.roles.index("op") :]
    sites = [
        Site(layer, "resid", role)
        for layer in range(_LAYER_STEP, model.shape.layers, _LAYER_STEP)
        for role in roles
        if not role.startswith(_REPLY)
    ]
    rates = takes_only(interchange_intervention(runs, sites), OPERATION).mean(1)
    by_site = dict(zip(sites, rates.tolist(), strict=True))
    verb = {site: rate for site, rate in by_site.items() if site.role == "op"}
    others = {site: rate for site, rate in by_site.items() if site.role != "op"}
    good = [site for site, rate in verb.items() if rate >= max(verb.values()) - _SEARCH_MARGIN]
    return {"at the verb": good[-1], "behind the verb": max(others, key=lambda site: others[site])}


def state_rows(
    runs: StateRuns, full: StateRuns, sites: dict[str, Site], sizes: StateSizes
) -> Iterator[TableRow]:
    """Interchange of states and of one direction in a relative, and of its states in the full one.

    Nulls: the state of another base, with the same operation; the best direction of permuted
    labels; the relative's own base states.
    """
    for place, site in sites.items():
        yield from _whole_state_rows(runs.tests, place, site)
        yield _full_model_row(full.tests, runs.tests, place, site)
        yield _direction_row(runs, f"direction {place}", site, sizes)
    yield _direction_row(runs, "direction at the embedding", EMBEDDING, sizes)


def _whole_state_rows(
    tests: Sequence[InterchangeRuns], place: str, site: Site
) -> Iterator[TableRow]:
    taken = [interchange_intervention(runs, [site]) for runs in tests]
    other_base = [_patch(runs, site, runs.clean.resid[site.layer].roll(1, 0)) for runs in tests]
    clean = [interchange_intervention(runs, []) for runs in tests]
    hits, null = _hits(taken), _hits(other_base)
    yield _row(f"state {place}", hits, null.mean(), f"{site}; null: another base")
    preferred, before = (
        np.concatenate([one.logit_shift(OPERATION)[0] > 0 for one in outcomes])
        for outcomes in (taken, clean)
    )
    note = f"{site}; its number above the base's; null: without interchange"
    yield _row(f"state {place}, choice", preferred, before.mean(), note)


def _full_model_row(
    full: Sequence[InterchangeRuns], tests: Sequence[InterchangeRuns], place: str, site: Site
) -> TableRow:
    pairs = list(zip(full, tests, strict=True))
    hits, null = (
        _hits([_patch(own, site, read(runs)) for own, runs in pairs])
        for read in (
            lambda runs: runs.sources["other"].resid[site.layer],
            lambda runs: runs.clean.resid[site.layer],
        )
    )
    note = f"{site}; null: its base states"
    return _row(f"state {place}, in the full model", hits, null.mean(), note)


def _direction_row(runs: StateRuns, measure: str, site: Site, sizes: StateSizes) -> TableRow:
    hits, nulls = [], []
    generator = torch.Generator().manual_seed(sizes.seed)
    for fit, test in zip(runs.fits, runs.tests, strict=True):
        hits.append(_patch_subspace(test, operation_direction(fit, site)))
        states = torch.cat([fit.states(site), fit.states(site, "same")])
        labels = torch.arange(2).repeat_interleave(len(fit))
        nulls.append(
            [
                _patch_subspace(test, _permuted_direction(states, labels, site, generator))
                for _ in range(sizes.permutations)
            ]
        )
    rates = [np.concatenate(each).mean() for each in zip(*nulls, strict=True)]
    note = f"{site}; null: the best of {sizes.permutations} permutations of the labels"
    return _row(measure, np.concatenate(hits), max(rates), note)


def _permuted_direction(
    states: Float[Tensor, "row d_model"], labels: Tensor, site: Site, generator: torch.Generator
) -> Subspace:
    order = torch.randperm(len(labels), generator=generator)
    basis = mean_difference(states, labels[order].to(states.device))
    return Subspace(site.layer, site.role, "means", basis)


def _patch_subspace(runs: InterchangeRuns, subspace: Subspace) -> Bool[np.ndarray, " prompt"]:
    layer = subspace.layer
    source = runs.sources["other"].resid[layer]
    patched = subspace.replace_projection(runs.clean.resid[layer], source)
    return _hits([_patch(runs, Site(layer, "resid", subspace.role), patched)])


def _patch(runs: InterchangeRuns, site: Site, resid: Tensor) -> InterchangeOutcomes:
    source = with_residual(runs, site.layer, resid.to(runs.clean.resid))
    return interchange_intervention(runs, [site], source=source)


def _hits(outcomes: Sequence[InterchangeOutcomes]) -> Bool[np.ndarray, " prompt"]:
    return np.concatenate([takes_only(one, OPERATION)[0] for one in outcomes])


def _row(measure: str, hits: Any, null: float, note: str) -> TableRow:  # noqa: ANN401
    return estimate_row(measure, proportion(hits), len(hits), float(null), note)


def _half_of_words(pattern: Pattern, half: int) -> tuple[list[str], list[str]]:
    """Verbs of both operations and objects of one half."""
    verbs = [dict(forms)["base"] for pair in pattern.lexicon.verbs[half::2] for _, forms in pair]
    return verbs, list(pattern.lexicon.words("noun")[half::2])
