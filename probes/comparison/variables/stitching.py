"""Grafting a state of one model into another: who is read where, and what is put in.

questions → states of donor and recipient → a map → the recipient's answers to the crossings
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import one_hot

from probes.comparison.variables.held_out_folds import Fold, Trials
from probes.comparison.variables.linear_maps import Kind, LinearMap, fit_map
from probes.errors import SiteError
from probes.interventions.hotspots import alone, find_sites, finding_words
from probes.interventions.interchange import Crossed, cross, exchange, with_states
from probes.interventions.subspace import mean_difference
from probes.models.model import Model
from probes.models.site import Cell, join
from probes.observe.residual_states import Readings, read_states
from probes.prompts.batch import Batch, encode
from probes.prompts.interchange_pairs import OPERATION, crossings

_AS_WELL = 0.01  # Shares of variance that are not told apart.
_ASPECTS = 8  # Dimensions of a variable's class means that a donor's site is searched by.

Place = tuple[int, str]
"""A layer, counted from 0 for the embedding, and a role."""

Places = Mapping[str, Place]
"""For each role of the recipient's site, where the donor is read."""


@dataclass(frozen=True, eq=False)
class Donor:
    """What a model, or a control in its place, hands over.

    Attributes:
        name: Of the model or control.
        fit: Its states on the questions.
        tested: Its states on the crossings' sources.
    """

    name: str
    fit: Readings
    tested: Readings


@dataclass(frozen=True, eq=False)
class Host:
    """A recipient: its own runs, and the site where it takes up each variable.

    Attributes:
        crossed: Its runs on the crossings.
        own: Its states, as a donor's to itself.
        cells: For each variable its site, found on other prompts.
        turn: Held while the model runs: several donors may be put into it at once.
    """

    crossed: Crossed
    own: Donor
    cells: Mapping[str, Cell]
    turn: Any = field(default_factory=Lock, repr=False)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.crossed.model.name


Texts = tuple[Batch, Batch]
"""The questions, and the crossings' sources read behind the bases' answers, as tokens."""


def texts(model: Model, trials: Trials) -> Texts:
    """Encode what a donor reads; nets of one tokenizer share it."""
    pairs, limit = trials.crossings.other, model.shape.context
    sources, bases = ([getattr(p, side) for p in pairs] for side in ("counterfactual", "clean"))
    return (
        encode(model.tokenizer, trials.questions, limit=limit),
        encode(model.tokenizer, sources, forced=bases, limit=limit),
    )


def read_donor(model: Model, trials: Trials, *, read: Texts | None = None) -> Donor:
    """Run a donor on everything once; `read` is what `texts` made, if it was made before."""
    questions, sources = read or texts(model, trials)
    return Donor(model.name, read_states(model, questions), read_states(model, sources))


def held_at(model: Model, trials: Trials, *, seed: int = 0) -> dict[str, Cell]:
    """Find where a model holds each variable, on prompts that nothing else is judged by."""
    pattern = trials.pattern
    judged = {pair.clean.text for pair in trials.crossings.other}
    finding = crossings(
        pattern,
        max(len(trials.crossings) // 2, 8),
        tokenizers=(model.tokenizer,),
        seed=seed + 2,
        keep=lambda base: base.text not in judged,
        words=finding_words(pattern),
    )
    found = find_sites(model, finding, trials.variables, everywhere=True)
    return dict(zip(trials.variables, found, strict=True))


def read_host(model: Model, trials: Trials, *, seed: int = 0) -> Host:
    """Find a recipient's sites, and run it on everything once."""
    cells = held_at(model, trials, seed=seed)
    crossed = cross(model, trials.crossings, roles=join(*cells.values()))
    return Host(crossed, read_donor(model, trials), cells)


def label_donor(donor: Donor, trials: Trials, variable: str) -> Donor:
    """Put a mere label in a donor's place: which word stands for the variable, and nothing else."""
    words = sorted({*trials.forms(variable), *trials.tested(variable)})

    def marked(readings: Readings, forms: tuple[str, ...]) -> Readings:
        marks = one_hot(torch.tensor([words.index(form) for form in forms]), len(words)).float()
        everywhere = marks[None, :, None].expand(1, -1, readings.resid.shape[2], -1)
        return replace(readings, model="label", resid=everywhere)

    fit = marked(donor.fit, trials.forms(variable))
    return Donor("label", fit, marked(donor.tested, trials.tested(variable)))


def own_places(host: Host, variable: str) -> Places:
    """Return the token embedding of a variable's own words."""
    own = (0, _own_role(variable))
    return dict.fromkeys(host.cells[variable].role.split("+"), own)


def same_places(host: Host, variable: str) -> Places:
    """Return the recipient's own site: where the recipient itself is read."""
    cell = host.cells[variable]
    return {part: (cell.layer, part) for part in cell.role.split("+")}


def find_places(host: Host, donor: Donor, trials: Trials, variable: str) -> Places:
    """Search the donor's layers and roles for the states that best foretell the recipient's.

    What is foretold are the recipient's coordinates along the means of the variable's classes, for
    words that the map has not seen, and that nothing is judged on. No model is run.
    """
    roles = _candidates(host, donor, variable)
    every = [(layer, role) for layer in range(len(donor.fit.resid)) for role in roles]
    held = torch.from_numpy(trials.search[variable])
    found = {}
    for part in host.cells[variable].role.split("+"):
        aim = _aspects(host, part, trials, variable)
        scores = [_foretold(donor.fit.at(role, layer), aim, held) for layer, role in every]
        # Of places that do as well, the earliest: the others may merely pass it on.
        enough = np.flatnonzero(np.array(scores) >= max(scores) - _AS_WELL)
        found[part] = every[int(enough[0])]
    return found


def _own_role(variable: str) -> str:
    return "op" if variable == OPERATION else variable


def _candidates(host: Host, donor: Donor, variable: str) -> list[str]:
    """List the roles that a donor may be read at: not before the variable's own, no reply."""
    own = _own_role(variable)
    order = [role for role in donor.fit.roles if not role.startswith("reply")]
    if own not in order:
        raise SiteError(f"{donor.name} reads questions without the role {own!r}: {order} found")
    shared = {*host.own.fit.roles, *donor.tested.roles}
    return [role for role in order[order.index(own) :] if role in shared]


def _aspects(
    host: Host, part: str, trials: Trials, variable: str
) -> Float[Tensor, "question aspect"]:
    """Return where the recipient's states stand along the differences between classes."""
    states = host.own.fit.at(part, host.cells[variable].layer)
    labels = torch.from_numpy(np.unique(trials.labels(variable), return_inverse=True)[1])
    rows = ~torch.from_numpy(trials.search[variable])
    here, count = labels[rows], labels[rows].bincount()
    some = count[here] > 1  # A class needs two rows to have a mean.
    return states @ mean_difference(states[rows][some], here[some])[:_ASPECTS].T


def _foretold(x: Float[Tensor, "question d_model"], aim: Tensor, held: Tensor) -> float:
    found = fit_map("ridge", x[~held], aim[~held])
    left = (found(x[held]) - aim[held]).square().sum()
    return 1 - float(left / (aim[held] - aim[~held].mean(0)).square().sum().clamp(min=1e-12))


def grafted(  # noqa: PLR0913 (two models, what both read, and how they are joined)
    host: Host,
    donor: Donor,
    trials: Trials,
    variable: str,
    places: Places,
    *,
    kind: Kind = "ridge",
    shuffled: int | None = None,
) -> Bool[np.ndarray, " prompt"]:
    """Mark the bases whose answer takes up just the variable of a source that another model read.

    Args:
        host: The recipient.
        donor: Who read the sources.
        trials: What both read.
        variable: Which.
        places: Where the donor is read.
        kind: What the map may be.
        shuffled: A seed, to fit the map on donor's states that were dealt out anew among the
            questions of one frame: what is left is what a map can do without its rows.

    Raises:
        BatchError: There are too few questions, or the widths differ under "identity".
        SiteError: The recipient's site needs a role that some prompts lack.
    """
    cell, crossed = host.cells[variable], host.crossed
    resid = crossed.clean.resid[cell.layer].clone()
    deal = _deal(trials, shuffled)
    for fold in trials.folds[variable]:
        for part, place in places.items():
            x, y = _rows(host, donor, place, (cell.layer, part), torch.from_numpy(fold.fit), deal)
            found = fit_map(kind, x, y, prompts=int(fold.fit.sum()))
            _put(resid, host, donor, place, part, fold, found)
    with host.turn:
        found = exchange(crossed, [cell], source=with_states(crossed, cell.layer, resid))
    return alone(found, variable)[0][trials.judged(variable)]


def _deal(trials: Trials, seed: int | None) -> Tensor:
    order = np.arange(len(trials.questions))
    if seed is not None:
        rng = np.random.default_rng(seed)
        frames = np.array([question.frame for question in trials.questions])
        for frame in np.unique(frames):
            rows = np.flatnonzero(frames == frame)
            order[rows] = rng.permutation(rows)
    return torch.from_numpy(order)


def _rows(  # noqa: PLR0913 (two models, two places, and which questions)
    host: Host, donor: Donor, here: Place, there: Place, fit: Tensor, deal: Tensor
) -> tuple[Float[Tensor, "row d_from"], Float[Tensor, "row d_to"]]:
    """Return all tokens of the recipient's role, each with the donor's of the same place."""
    (layer, role), (to, part) = here, there
    x, y = [], []
    count = host.own.fit.count(part)
    for back in range(int(count.max())):
        rows = fit & (count > back)
        x.append(donor.fit.at(role, layer, back)[deal][rows])
        y.append(host.own.fit.at(part, to, back)[rows])
    return torch.cat(x), torch.cat(y)


def _put(  # noqa: PLR0913 (two models, two places, a split)
    resid: Float[Tensor, "prompt position d_model"],
    host: Host,
    donor: Donor,
    here: Place,
    part: str,
    fold: Fold,
    found: LinearMap,
) -> None:
    """Write the mapped states of a fold's sources over the recipient's, token by token."""
    layer, role = here
    where = host.crossed.batch.where(part)
    count, last = where.sum(-1), where.shape[1] - 1 - where.flip(-1).int().argmax(-1)
    for back in range(int(count.max())):
        rows = (torch.from_numpy(fold.judged) & (count > back)).nonzero()[:, 0]
        states = found(donor.tested.at(role, layer, back)[rows])
        resid[rows, last[rows] - back] = states.to(resid)
