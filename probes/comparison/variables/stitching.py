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

from probes.comparison.variables.held_out_folds import Fold, HeldOutFolds
from probes.comparison.variables.linear_maps import LinearMap, MapKind, fit_map
from probes.errors import SiteError
from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
    with_residual,
)
from probes.interventions.site_search import find_sites, search_words, takes_only
from probes.interventions.subspace import mean_difference
from probes.models.model import Model
from probes.models.site import Site, joined_roles
from probes.observe.activations import Activations, capture
from probes.prompts.batch import Batch, tokenize
from probes.prompts.interchange_pairs import OPERATION, sample_interchange_pairs

_R2_TOLERANCE = 0.01  # Shares of variance that are not told apart.
_CLASS_DIMENSIONS = 8  # Dimensions of a variable's class means that a donor's site is searched by.

LayerRole = tuple[int, str]
"""A layer, counted from 0 for the embedding, and a role."""

DonorSites = Mapping[str, LayerRole]
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
    train_states: Activations
    source_states: Activations


@dataclass(frozen=True, eq=False)
class Recipient:
    """A recipient: its own runs, and the site where it takes up each variable.

    Attributes:
        crossed: Its runs on the crossings.
        own: Its states, as a donor's to itself.
        cells: For each variable its site, found on other prompts.
        turn: Held while the model runs: several donors may be put into it at once.
    """

    runs: InterchangeRuns
    self_donor: Donor
    sites: Mapping[str, Site]
    lock: Any = field(default_factory=Lock, repr=False)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.runs.model.name


TokenizedTexts = tuple[Batch, Batch]
"""The questions, and the crossings' sources read behind the bases' answers, as tokens."""


def tokenize_texts(model: Model, folds: HeldOutFolds) -> TokenizedTexts:
    """Encode what a donor reads; nets of one tokenizer share it."""
    pairs, limit = folds.interchange_pairs.other, model.shape.context
    sources, bases = ([getattr(p, side) for p in pairs] for side in ("counterfactual", "clean"))
    return (
        tokenize(model.tokenizer, folds.questions, max_length=limit),
        tokenize(model.tokenizer, sources, answers_from=bases, max_length=limit),
    )


def run_donor(
    model: Model, folds: HeldOutFolds, *, tokenized: TokenizedTexts | None = None
) -> Donor:
    """Run a donor on everything once; `read` is what `texts` made, if it was made before."""
    questions, sources = tokenized or tokenize_texts(model, folds)
    states = [capture(model, texts, ("resid",)) for texts in (questions, sources)]
    return Donor(model.name, *states)


def find_variable_sites(model: Model, folds: HeldOutFolds, *, seed: int = 0) -> dict[str, Site]:
    """Find where a model holds each variable, on prompts that nothing else is judged by."""
    pattern = folds.pattern
    judged = {pair.clean.text for pair in folds.interchange_pairs.other}
    finding = sample_interchange_pairs(
        pattern,
        max(len(folds.interchange_pairs) // 2, 8),
        tokenizers=(model.tokenizer,),
        seed=seed + 2,
        keep=lambda base: base.text not in judged,
        allowed_words=search_words(pattern),
    )
    found = find_sites(model, finding, folds.variables, shared_roles_only=True)
    return dict(zip(folds.variables, found, strict=True))


def run_recipient(model: Model, folds: HeldOutFolds, *, seed: int = 0) -> Recipient:
    """Find a recipient's sites, and run it on everything once."""
    cells = find_variable_sites(model, folds, seed=seed)
    crossed = run_interchange_pairs(
        model, folds.interchange_pairs, joined_roles=joined_roles(*cells.values())
    )
    return Recipient(crossed, run_donor(model, folds), cells)


def label_donor(donor: Donor, folds: HeldOutFolds, variable: str) -> Donor:
    """Put a mere label in a donor's place: which word stands for the variable, and nothing else."""
    words = sorted({*folds.question_forms(variable), *folds.source_forms(variable)})

    def marked(readings: Activations, forms: tuple[str, ...]) -> Activations:
        marks = one_hot(torch.tensor([words.index(form) for form in forms]), len(words)).float()
        everywhere = marks[None, :, None].expand(1, -1, readings["resid"].shape[2], -1)
        return replace(readings, model="label", tensors={"resid": everywhere})

    fit = marked(donor.train_states, folds.question_forms(variable))
    return Donor("label", fit, marked(donor.source_states, folds.source_forms(variable)))


def embedding_sites(recipient: Recipient, variable: str) -> DonorSites:
    """Return the token embedding of a variable's own words."""
    own = (0, _variable_role(variable))
    return dict.fromkeys(recipient.sites[variable].role.split("+"), own)


def self_sites(recipient: Recipient, variable: str) -> DonorSites:
    """Return the recipient's own site: where the recipient itself is read."""
    cell = recipient.sites[variable]
    return {part: (cell.layer, part) for part in cell.role.split("+")}


def find_donor_sites(
    recipient: Recipient, donor: Donor, folds: HeldOutFolds, variable: str
) -> DonorSites:
    """Search the donor's layers and roles for the states that best foretell the recipient's.

    What is foretold are the recipient's coordinates along the means of the variable's classes, for
    words that the map has not seen, and that nothing is judged on. No model is run.
    """
    roles = _candidate_roles(recipient, donor, variable)
    every = [(layer, role) for layer in range(len(donor.train_states["resid"])) for role in roles]
    held = torch.from_numpy(folds.site_search[variable])
    found = {}
    for part in recipient.sites[variable].role.split("+"):
        aim = _class_coordinates(recipient, part, folds, variable)
        scores = [
            _held_out_r2(donor.train_states.states_at(role, layer), aim, held)
            for layer, role in every
        ]
        # Of places that do as well, the earliest: the others may merely pass it on.
        enough = np.flatnonzero(np.array(scores) >= max(scores) - _R2_TOLERANCE)
        found[part] = every[int(enough[0])]
    return found


def _variable_role(variable: str) -> str:
    return "op" if variable == OPERATION else variable


def _candidate_roles(recipient: Recipient, donor: Donor, variable: str) -> list[str]:
    """List the roles that a donor may be read at: not before the variable's own, no reply."""
    own = _variable_role(variable)
    order = [role for role in donor.train_states.roles if not role.startswith("reply")]
    if own not in order:
        raise SiteError(f"{donor.name} reads questions without the role {own!r}: {order} found")
    shared = {*recipient.self_donor.train_states.roles, *donor.source_states.roles}
    return [role for role in order[order.index(own) :] if role in shared]


def _class_coordinates(
    recipient: Recipient, part: str, folds: HeldOutFolds, variable: str
) -> Float[Tensor, "question aspect"]:
    """Return where the recipient's states stand along the differences between classes."""
    states = recipient.self_donor.train_states.states_at(part, recipient.sites[variable].layer)
    labels = torch.from_numpy(np.unique(folds.labels(variable), return_inverse=True)[1])
    rows = ~torch.from_numpy(folds.site_search[variable])
    here, count = labels[rows], labels[rows].bincount()
    some = count[here] > 1  # A class needs two rows to have a mean.
    return states @ mean_difference(states[rows][some], here[some])[:_CLASS_DIMENSIONS].T


def _held_out_r2(x: Float[Tensor, "question d_model"], target: Tensor, held_out: Tensor) -> float:
    found = fit_map("ridge", x[~held_out], target[~held_out])
    left = (found(x[held_out]) - target[held_out]).square().sum()
    return 1 - float(
        left / (target[held_out] - target[~held_out].mean(0)).square().sum().clamp(min=1e-12)
    )


def stitched_hits(  # noqa: PLR0913 (two models, what both read, and how they are joined)
    recipient: Recipient,
    donor: Donor,
    folds: HeldOutFolds,
    variable: str,
    donor_sites: DonorSites,
    *,
    kind: MapKind = "ridge",
    shuffle_seed: int | None = None,
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
    cell, crossed = recipient.sites[variable], recipient.runs
    resid = crossed.clean.resid[cell.layer].clone()
    deal = _question_order(folds, shuffle_seed)
    for fold in folds.by_variable[variable]:
        for part, place in donor_sites.items():
            x, y = _train_rows(
                recipient, donor, place, (cell.layer, part), torch.from_numpy(fold.train), deal
            )
            found = fit_map(kind, x, y, prompts=int(fold.train.sum()))
            _write_mapped(resid, recipient, donor, place, part, fold, found)
    with recipient.lock:
        found = interchange_intervention(
            crossed, [cell], source=with_residual(crossed, cell.layer, resid)
        )
    return takes_only(found, variable)[0][folds.test_mask(variable)]


def _question_order(folds: HeldOutFolds, seed: int | None) -> Tensor:
    order = np.arange(len(folds.questions))
    if seed is not None:
        rng = np.random.default_rng(seed)
        frames = np.array([question.template for question in folds.questions])
        for frame in np.unique(frames):
            rows = np.flatnonzero(frames == frame)
            order[rows] = rng.permutation(rows)
    return torch.from_numpy(order)


def _train_rows(  # noqa: PLR0913 (two models, two places, and which questions)
    recipient: Recipient,
    donor: Donor,
    donor_site: LayerRole,
    recipient_site: LayerRole,
    train: Tensor,
    order: Tensor,
) -> tuple[Float[Tensor, "row d_from"], Float[Tensor, "row d_to"]]:
    """Return all tokens of the recipient's role, each with the donor's of the same place."""
    (layer, role), (to, part) = donor_site, recipient_site
    x, y = [], []
    count = recipient.self_donor.train_states.token_counts(part)
    for back in range(int(count.max())):
        rows = train & (count > back)
        x.append(donor.train_states.states_at(role, layer, back)[order][rows])
        y.append(recipient.self_donor.train_states.states_at(part, to, back)[rows])
    return torch.cat(x), torch.cat(y)


def _write_mapped(  # noqa: PLR0913 (two models, two places, a split)
    resid: Float[Tensor, "prompt position d_model"],
    recipient: Recipient,
    donor: Donor,
    donor_site: LayerRole,
    part: str,
    fold: Fold,
    linear_map: LinearMap,
) -> None:
    """Write the mapped states of a fold's sources over the recipient's, token by token."""
    layer, role = donor_site
    where = recipient.runs.batch.role_mask(part)
    count, last = where.sum(-1), where.shape[1] - 1 - where.flip(-1).int().argmax(-1)
    for back in range(int(count.max())):
        rows = (torch.from_numpy(fold.test) & (count > back)).nonzero()[:, 0]
        states = linear_map(donor.source_states.states_at(role, layer, back)[rows])
        resid[rows, last[rows] - back] = states.to(resid)
