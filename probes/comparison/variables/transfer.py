"""Cross-model interchange: does one model's operation, put into another, turn its answer?

A map that has seen all words says nothing: fitted so, an untrained donor, even a label of the verb,
turns every answer. Here no tested verb, object or number is among the rows that a map is fitted
on, and every donor stands beside controls that were given the same map and the same search.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from probes.comparison.variables.held_out_folds import (
    HeldOutFolds,
    distinct_tokenizers,
    sample_held_out_folds,
)
from probes.comparison.variables.linear_maps import MAP_KINDS, MapKind
from probes.comparison.variables.result import EMBEDDING_CONTROL, CrossModelTransfer
from probes.comparison.variables.stitching import (
    Donor,
    DonorSites,
    Recipient,
    embedding_sites,
    find_donor_sites,
    label_donor,
    run_donor,
    run_recipient,
    self_sites,
    stitched_hits,
)
from probes.errors import ModelError
from probes.interventions.interchange import interchange_intervention
from probes.interventions.site_search import takes_only
from probes.models.model import Model, load, random_init
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern
from probes.stats.intervals import proportion
from probes.stats.paired import mcnemar_test

Hits = Mapping[str, Bool[np.ndarray, " prompt"]]
"""For each variable, where the recipient's answer turned as foretold."""


def cross_model_interchange(  # noqa: PLR0913 (two models, what is put over, and beside what)
    donor: str | Path | Model,
    recipient: str | Path | Model,
    pattern: str | Pattern = "take-away",
    *,
    variables: Sequence[str] = (),
    bases: int = 200,
    prompts: int = 400,
    nulls: int = 20,
    negative_controls: Sequence[str | Path | Model] = (),
    seed: int = 0,
) -> tuple[CrossModelTransfer, ...]:
    """Put each variable of a donor into a recipient, beside controls in the donor's place.

    Args:
        donor, recipient: Models of any shapes and tokenizers.
        pattern: A pattern with an opposite.
        variables: "operation", operands, "thing"; all by default.
        bases: Crossings to judge on; those whose word chose the site are left out again.
        prompts: Questions that maps are fitted on. A map reads a tenth as many directions at most.
        nulls: Untrained nets of the donor's shape; each is searched as the donor is.
        strangers: Models that were trained for another end.
        seed: Of prompts and nets.

    Raises:
        PatternError: The pattern has no opposite, or too few words to hold any out.
        BatchError: There are too few prompts for a map, or states that are not finite.
    """
    a, b = load(donor), load(recipient)
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    others = with_unique_names([load(stranger) for stranger in negative_controls], [a.name, b.name])
    tokenizers = distinct_tokenizers([model.tokenizer for model in (a, b, *others)])
    trials = sample_held_out_folds(
        asked, tokenizers=tokenizers, bases=bases, prompts=prompts, seed=seed
    )
    wanted = tuple(variables) or trials.variables
    receiver, giver = run_recipient(b, trials, seed=seed), run_donor(a, trials)
    nets = (run_donor(random_init(a, seed=seed + n), trials) for n in range(nulls))
    return evaluate_donor(
        receiver,
        giver,
        trials,
        wanted,
        nulls=donor_hits(receiver, nets, trials, wanted),
        negative_controls=donor_hits(
            receiver, (run_donor(m, trials) for m in others), trials, wanted
        ),
        seed=seed,
    )


def with_unique_names(models: Iterable[Model], taken: Sequence[str]) -> list[Model]:
    """Number models whose name another has, as results are told apart by their names."""
    found: list[Model] = []
    for model in models:
        number, name = 1, model.name
        while name in (*taken, *(one.name for one in found)):
            number += 1
            name = f"{model.name} ({number})"
        found.append(model if name == model.name else replace(model, name=name))
    return found


def donor_hits(
    recipient: Recipient, donors: Iterable[Donor], folds: HeldOutFolds, variables: Sequence[str]
) -> dict[str, Hits]:
    """Search each donor and put it into the recipient by ridge: the hits, by the donor's name."""
    found = {}
    for donor in donors:
        found[donor.name] = {
            variable: stitched_hits(
                recipient,
                donor,
                folds,
                variable,
                find_donor_sites(recipient, donor, folds, variable),
            )
            for variable in variables
        }
    return found


def evaluate_donor(  # noqa: PLR0913 (two models, what both read, and beside whom)
    recipient: Recipient,
    donor: Donor,
    folds: HeldOutFolds,
    variables: Sequence[str],
    *,
    nulls: Mapping[str, Hits],
    negative_controls: Mapping[str, Hits],
    seed: int,
) -> tuple[CrossModelTransfer, ...]:
    """Judge a donor beside what was measured of other nets in the same recipient.

    Raises:
        ModelError: There is no untrained net to judge by.
    """
    if not nulls:
        raise ModelError("No untrained nets were given: a transfer means nothing without them")
    return tuple(
        _evaluate_variable(recipient, donor, folds, variable, (nulls, negative_controls), seed)
        for variable in variables
    )


def own_hits(
    recipient: Recipient, folds: HeldOutFolds, variable: str
) -> Bool[np.ndarray, " prompt"]:
    """Mark the crossings in which a model's own states turn its answer at its site."""
    with recipient.lock:
        found = interchange_intervention(recipient.runs, [recipient.sites[variable]])
    return takes_only(found, variable)[0][folds.test_mask(variable)]


def _evaluate_variable(  # noqa: PLR0913 (as above)
    recipient: Recipient,
    donor: Donor,
    folds: HeldOutFolds,
    variable: str,
    baselines: tuple[Mapping[str, Hits], Mapping[str, Hits]],
    seed: int,
) -> CrossModelTransfer:
    nulls, strangers = baselines
    places, cell = find_donor_sites(recipient, donor, folds, variable), recipient.sites[variable]
    maps = dict(_map_hits(recipient, donor, folds, variable, places))
    controls = dict(_control_hits(recipient, donor, folds, variable, places, seed))
    best_net = max(nulls, key=lambda name: nulls[name][variable].mean())
    controls["random-init"] = nulls[best_net][variable]
    best = max(controls, key=lambda name: controls[name].mean())
    ceiling = stitched_hits(
        recipient, recipient.self_donor, folds, variable, self_sites(recipient, variable)
    )
    rows = np.flatnonzero(folds.test_mask(variable))
    return CrossModelTransfer(
        variable=variable,
        donor=donor.name,
        recipient=recipient.name,
        pairs=int(folds.test_mask(variable).sum()),
        site=str(cell),
        donor_sites=tuple(f"L{layer}.resid@{role}" for layer, role in places.values()),
        own_accuracy=proportion(own_hits(recipient, folds, variable)),
        own_ridge_accuracy=proportion(ceiling),
        maps={kind: proportion(hits) for kind, hits in maps.items()},
        controls={name: proportion(hits) for name, hits in controls.items()},
        nulls=tuple(float(hits[variable].mean()) for hits in nulls.values()),
        negative_controls={name: float(hits[variable].mean()) for name, hits in strangers.items()},
        excess=mcnemar_test(controls[best], maps["ridge"]).difference,
        best_control=best,
        shortfall=mcnemar_test(maps["ridge"], ceiling).difference,
        missed_pairs=tuple(map(int, rows[ceiling & ~maps["ridge"]])),
    )


def _map_hits(
    recipient: Recipient, donor: Donor, folds: HeldOutFolds, variable: str, donor_sites: DonorSites
) -> Iterator[tuple[MapKind, Bool[np.ndarray, " prompt"]]]:
    """Try each map, from the one that may do least."""
    wide = [
        readings["resid"].shape[-1]
        for readings in (donor.train_states, recipient.self_donor.train_states)
    ]
    for kind in MAP_KINDS:
        if kind != "identity" or wide[0] == wide[1]:
            yield kind, stitched_hits(recipient, donor, folds, variable, donor_sites, kind=kind)


def _control_hits(  # noqa: PLR0913 (two models, what both read, and where)
    recipient: Recipient,
    donor: Donor,
    folds: HeldOutFolds,
    variable: str,
    donor_sites: DonorSites,
    seed: int,
) -> Iterator[tuple[str, Bool[np.ndarray, " prompt"]]]:
    """Put what is not the donor's work in its place."""
    own = embedding_sites(recipient, variable)
    yield EMBEDDING_CONTROL, stitched_hits(recipient, donor, folds, variable, own)
    yield (
        "label",
        stitched_hits(recipient, label_donor(donor, folds, variable), folds, variable, own),
    )
    yield (
        "shuffled",
        stitched_hits(recipient, donor, folds, variable, donor_sites, shuffle_seed=seed),
    )
