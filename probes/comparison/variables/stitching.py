"""Stitching: mapped states of a donor replace the states of a recipient at one site.

Questions give states of both models, a map is fitted on these, and mapped states of the sources
replace those of the bases of interchange pairs.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.comparison.variables.donors import AnyDonor, Recipient
from probes.comparison.variables.linear_maps import MapKind, fit_map
from probes.errors import SiteError
from probes.interventions.interchange import interchange_intervention, with_residual
from probes.interventions.site_search import takes_only
from probes.interventions.subspaces.das import mean_difference
from probes.prompts.interchange_pairs import OPERATION
from probes.prompts.tokens.batch import Batch

_R2_TOLERANCE = 0.01  # Smaller differences of R² are ignored.
_CLASS_DIMENSIONS = 8  # Dimensions of class means that donor sites are scored on.

LayerRole = tuple[int, str]
"""A layer, counted from 0 for the embedding, and a role."""

DonorSites = Mapping[str, LayerRole]
"""Site of the donor for each role of the recipient's site."""


def embedding_sites(recipient: Recipient, variable: str) -> DonorSites:
    """Token embedding of the variable's own words, for each role of the recipient's site."""
    own = (0, _variable_role(variable))
    return dict.fromkeys(recipient.sites[variable].role.split("+"), own)


def self_sites(recipient: Recipient, variable: str) -> DonorSites:
    """The recipient's own site."""
    site = recipient.sites[variable]
    return {part: (site.layer, part) for part in site.role.split("+")}


def find_donor_sites(recipient: Recipient, donor: AnyDonor, variable: str) -> DonorSites:
    """Find the layers and roles whose states predict those of the recipient best.

    The targets are the recipient's coordinates along the class means of the variable. R² is
    measured on held-out words outside the test set. No model runs.
    """
    roles = _candidate_roles(recipient, donor, variable)
    layers = range(len(donor.train_states["resid"]))
    candidates = [(layer, role) for layer in layers for role in roles]
    held_out = torch.from_numpy(recipient.folds.site_search[variable])
    sites = {}
    for part in recipient.sites[variable].role.split("+"):
        target = _class_coordinates(recipient, part, variable)
        scores = [
            _held_out_r2(donor.train_states.states_at(role, layer), target, held_out)
            for layer, role in candidates
        ]
        # The earliest of the best: later sites may only pass the variable on.
        best = np.flatnonzero(np.array(scores) >= max(scores) - _R2_TOLERANCE)
        sites[part] = candidates[int(best[0])]
    return sites


def stitched_hits(
    recipient: Recipient,
    donor: AnyDonor,
    variable: str,
    donor_sites: DonorSites,
    *,
    kind: MapKind = "ridge",
) -> Bool[np.ndarray, " prompt"]:
    """Test pairs whose output takes the source's value of this variable and of no other.

    Args:
        recipient: Model that receives mapped states at its site of the variable.
        donor: Model, or control, that read the sources.
        variable: Variable to transfer.
        donor_sites: Sites of the donor.
        kind: Kind of the map.

    Raises:
        BatchError: There are too few questions, or the widths differ for "identity".
        SiteError: The recipient's site needs a role that some prompts lack.
    """
    site, runs = recipient.sites[variable], recipient.runs
    resid = runs.clean.resid[site.layer].clone()
    for fold in recipient.folds.by_variable[variable]:
        train, test = torch.from_numpy(fold.train), torch.from_numpy(fold.test)
        for part, donor_site in donor_sites.items():
            x, y = _train_rows(recipient, donor, donor_site, (site.layer, part), train)
            linear_map = fit_map(kind, x, y, prompts=int(fold.train.sum()))
            for rows, positions, states in _source_rows(runs.batch, donor, donor_site, part, test):
                resid[rows, positions] = linear_map(states).to(resid)
    source = with_residual(runs, site.layer, resid)
    with recipient.model.turn:
        outcomes = interchange_intervention(runs, [site], source=source)
    return takes_only(outcomes, variable)[0][recipient.folds.test_mask(variable)]


def _variable_role(variable: str) -> str:
    return "op" if variable == OPERATION else variable


def _candidate_roles(recipient: Recipient, donor: AnyDonor, variable: str) -> list[str]:
    """Roles from the variable's own on, without answers."""
    own = _variable_role(variable)
    order = [role for role in donor.train_states.roles if not role.startswith("reply")]
    if own not in order:
        raise SiteError(
            f"{donor.name} has no role {own!r} in its questions, only {order}: use a pattern in "
            "which every question has it"
        )
    shared = {*recipient.self_donor.train_states.roles, *donor.source_states.roles}
    return [role for role in order[order.index(own) :] if role in shared]


def _class_coordinates(
    recipient: Recipient, part: str, variable: str
) -> Float[Tensor, "question aspect"]:
    """Coordinates of the recipient's states along the differences between class means."""
    folds, site = recipient.folds, recipient.sites[variable]
    states = recipient.self_donor.train_states.states_at(part, site.layer)
    labels = torch.from_numpy(np.unique(folds.labels(variable), return_inverse=True)[1])
    rows = ~torch.from_numpy(folds.site_search[variable])
    present = labels[rows]
    usable = present.bincount()[present] > 1  # A mean needs two rows.
    return states @ mean_difference(states[rows][usable], present[usable])[:_CLASS_DIMENSIONS].T


def _held_out_r2(x: Float[Tensor, "question d_model"], target: Tensor, held_out: Tensor) -> float:
    linear_map = fit_map("ridge", x[~held_out], target[~held_out])
    residual = (linear_map(x[held_out]) - target[held_out]).square().sum()
    total = (target[held_out] - target[~held_out].mean(0)).square().sum()
    return 1 - float(residual / total.clamp(min=1e-12))


def _train_rows(
    recipient: Recipient,
    donor: AnyDonor,
    donor_site: LayerRole,
    recipient_site: LayerRole,
    train: Bool[Tensor, " question"],
) -> tuple[Float[Tensor, "row d_from"], Float[Tensor, "row d_to"]]:
    """States of all tokens of the recipient's role, paired with the donor's from the role's end."""
    (donor_layer, donor_role), (layer, role) = donor_site, recipient_site
    states, x, y = recipient.self_donor.train_states, [], []
    order = slice(None) if donor.train_order is None else donor.train_order
    counts = states.token_counts(role)
    for offset in range(int(counts.max())):
        rows = train & (counts > offset)
        x.append(donor.train_states.states_at(donor_role, donor_layer, offset)[order][rows])
        y.append(states.states_at(role, layer, offset)[rows])
    return torch.cat(x), torch.cat(y)


def _source_rows(
    batch: Batch,
    donor: AnyDonor,
    donor_site: LayerRole,
    part: str,
    test: Bool[Tensor, " prompt"],
) -> Iterator[tuple[Int[Tensor, " row"], Int[Tensor, " row"], Float[Tensor, "row d_from"]]]:
    """Rows and positions of a role in the recipient's batch, with the donor's states there."""
    layer, role = donor_site
    mask = batch.role_mask(part)
    counts, last = mask.sum(-1), mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1)
    for offset in range(int(counts.max())):
        rows = (test & (counts > offset)).nonzero()[:, 0]
        states = donor.source_states.states_at(role, layer, offset)[rows]
        yield rows, last[rows] - offset, states
