"""Cross-model interchange: does one model's operation, put into another, turn its answer?

A map that has seen all words says nothing: fitted so, an untrained donor, even a label of the verb,
turns every answer. Here no tested verb, object or number is among the rows that a map is fitted
on, and every donor stands beside controls that were given the same map and the same search.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from probes.comparison.variables.held_out_folds import Trials, distinct, draw_trials
from probes.comparison.variables.linear_maps import KINDS, Kind
from probes.comparison.variables.stitching import (
    Donor,
    Host,
    Places,
    find_places,
    grafted,
    label_donor,
    own_places,
    read_donor,
    read_host,
    same_places,
)
from probes.errors import ModelError
from probes.interventions.hotspots import alone
from probes.interventions.interchange import exchange
from probes.models.model import Model, load, untrained
from probes.models.site import site_name
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, share
from probes.stats.paired import paired

Hits = Mapping[str, Bool[np.ndarray, " prompt"]]
"""For each variable, where the recipient's answer turned as foretold."""

EMBEDDING = "token embedding"
"""The control that is part of the donor itself: what its words hold before any block."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """How often a variable of one model, put into another, turns the other's answer as foretold.

    All shares are of the same crossings, whose words no map was fitted on.

    Attributes:
        variable: "operation", an operand, or "thing".
        donor, recipient: The models.
        items: How many crossings.
        site: Where it is put in, as the recipient's own hotspot.
        places: Where the donor is read for each role of the site.
        whole: What the recipient's own states do there, with no map: its ceiling.
        ceiling: What its own states do through a ridge map, so fitted.
        maps: What the donor's do, by the map allowed: "identity" (equal widths), "orthogonal",
            "ridge".
        controls: What stands-in for the donor do through a ridge map: its "token embedding", a
            "label" of the word, its states "shuffled" among the questions of a frame, and the best
            "untrained" net.
        nulls: Each untrained net's share.
        strangers: The share of each net that was trained for another end.
        excess: The ridge map's share less the best control's, paired by crossing.
        best: Which control that is.
        shortfall: The ceiling less the ridge map's share, paired by crossing.
        missed: The crossings that the recipient's own states turned through a ridge map, and the
            donor's did not.
    """

    variable: str
    donor: str
    recipient: str
    items: int
    site: str
    places: tuple[str, ...]
    whole: Estimate
    ceiling: Estimate
    maps: Mapping[str, Estimate]
    controls: Mapping[str, Estimate]
    nulls: tuple[float, ...]
    strangers: Mapping[str, float]
    excess: Estimate
    best: str
    shortfall: Estimate
    missed: tuple[int, ...]

    @property
    def value(self) -> Estimate:
        """The share by a ridge map."""
        return self.maps["ridge"]


def transplant(  # noqa: PLR0913 (two models, what is put over, and beside what)
    donor: str | Path | Model,
    recipient: str | Path | Model,
    pattern: str | Pattern = "take-away",
    *,
    variables: Sequence[str] = (),
    bases: int = 200,
    prompts: int = 400,
    nulls: int = 20,
    strangers: Sequence[str | Path | Model] = (),
    seed: int = 0,
) -> tuple[Transfer, ...]:
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
    others = apart([load(stranger) for stranger in strangers], [a.name, b.name])
    tokenizers = distinct([model.tokenizer for model in (a, b, *others)])
    trials = draw_trials(asked, tokenizers=tokenizers, bases=bases, prompts=prompts, seed=seed)
    wanted = tuple(variables) or trials.variables
    host, giver = read_host(b, trials, seed=seed), read_donor(a, trials)
    nets = (read_donor(untrained(a, seed=seed + n), trials) for n in range(nulls))
    return judged(
        host,
        giver,
        trials,
        wanted,
        nulls=handed(host, nets, trials, wanted),
        strangers=handed(host, (read_donor(m, trials) for m in others), trials, wanted),
        seed=seed,
    )


def apart(models: Iterable[Model], taken: Sequence[str]) -> list[Model]:
    """Number models whose name another has, as results are told apart by their names."""
    found: list[Model] = []
    for model in models:
        number, name = 1, model.name
        while name in (*taken, *(one.name for one in found)):
            number += 1
            name = f"{model.name} ({number})"
        found.append(model if name == model.name else replace(model, name=name))
    return found


def handed(
    host: Host, donors: Iterable[Donor], trials: Trials, variables: Sequence[str]
) -> dict[str, Hits]:
    """Search each donor and put it into the recipient by ridge: the hits, by the donor's name."""
    found = {}
    for donor in donors:
        found[donor.name] = {
            variable: grafted(
                host, donor, trials, variable, find_places(host, donor, trials, variable)
            )
            for variable in variables
        }
    return found


def judged(  # noqa: PLR0913 (two models, what both read, and beside whom)
    host: Host,
    donor: Donor,
    trials: Trials,
    variables: Sequence[str],
    *,
    nulls: Mapping[str, Hits],
    strangers: Mapping[str, Hits],
    seed: int,
) -> tuple[Transfer, ...]:
    """Judge a donor beside what was measured of other nets in the same recipient.

    Raises:
        ModelError: There is no untrained net to judge by.
    """
    if not nulls:
        raise ModelError("No untrained nets were given: a transfer means nothing without them")
    return tuple(
        _judged(host, donor, trials, variable, (nulls, strangers), seed) for variable in variables
    )


def turned(host: Host, trials: Trials, variable: str) -> Bool[np.ndarray, " prompt"]:
    """Mark the crossings in which a model's own states turn its answer at its site."""
    with host.turn:
        found = exchange(host.crossed, [host.cells[variable]])
    return alone(found, variable)[0][trials.judged(variable)]


def _judged(  # noqa: PLR0913 (as above)
    host: Host,
    donor: Donor,
    trials: Trials,
    variable: str,
    others: tuple[Mapping[str, Hits], Mapping[str, Hits]],
    seed: int,
) -> Transfer:
    nulls, strangers = others
    places, cell = find_places(host, donor, trials, variable), host.cells[variable]
    maps = dict(_ladder(host, donor, trials, variable, places))
    controls = dict(_controls(host, donor, trials, variable, places, seed))
    best_net = max(nulls, key=lambda name: nulls[name][variable].mean())
    controls["untrained"] = nulls[best_net][variable]
    best = max(controls, key=lambda name: controls[name].mean())
    ceiling = grafted(host, host.own, trials, variable, same_places(host, variable))
    rows = np.flatnonzero(trials.judged(variable))
    return Transfer(
        variable=variable,
        donor=donor.name,
        recipient=host.name,
        items=int(trials.judged(variable).sum()),
        site=site_name(cell),
        places=tuple(f"L{layer}.resid@{role}" for layer, role in places.values()),
        whole=share(turned(host, trials, variable)),
        ceiling=share(ceiling),
        maps={kind: share(hits) for kind, hits in maps.items()},
        controls={name: share(hits) for name, hits in controls.items()},
        nulls=tuple(float(hits[variable].mean()) for hits in nulls.values()),
        strangers={name: float(hits[variable].mean()) for name, hits in strangers.items()},
        excess=paired(controls[best], maps["ridge"]).difference,
        best=best,
        shortfall=paired(maps["ridge"], ceiling).difference,
        missed=tuple(map(int, rows[ceiling & ~maps["ridge"]])),
    )


def _ladder(
    host: Host, donor: Donor, trials: Trials, variable: str, places: Places
) -> Iterator[tuple[Kind, Bool[np.ndarray, " prompt"]]]:
    """Try each map, from the one that may do least."""
    wide = [readings.resid.shape[-1] for readings in (donor.fit, host.own.fit)]
    for kind in KINDS:
        if kind != "identity" or wide[0] == wide[1]:
            yield kind, grafted(host, donor, trials, variable, places, kind=kind)


def _controls(  # noqa: PLR0913 (two models, what both read, and where)
    host: Host, donor: Donor, trials: Trials, variable: str, places: Places, seed: int
) -> Iterator[tuple[str, Bool[np.ndarray, " prompt"]]]:
    """Put what is not the donor's work in its place."""
    own = own_places(host, variable)
    yield EMBEDDING, grafted(host, donor, trials, variable, own)
    yield "label", grafted(host, label_donor(donor, trials, variable), trials, variable, own)
    yield "shuffled", grafted(host, donor, trials, variable, places, shuffled=seed)
