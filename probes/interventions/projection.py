"""Tracing the space the model exists in: the states of one site on two axes.

bases and sources → their states at a site → the widest directions, or the operation's → points
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import SiteError
from probes.interventions.interchange import InterchangeRuns
from probes.interventions.result import LabelValues, StateProjection
from probes.interventions.subspace import Subspace, principal_directions
from probes.models.site import Site
from probes.prompts.catalog import list_patterns
from probes.prompts.interchange_pairs import OBJECT
from probes.prompts.question import Question


def project_states(runs: InterchangeRuns, site: Site, direction: Subspace) -> StateProjection:
    """Look at a site's states, of bases and of sources about other objects, on two axes.

    The direction must have been fitted on other prompts than those shown: one fitted on these
    sets them apart whether or not the model does. That is for the caller to see to.

    Args:
        crossed: The runs that are shown.
        cell: A residual.
        direction: The operation's, such as `operation_direction` of other crossings finds it.

    Raises:
        SiteError: The cell is no residual, a prompt lacks its role, or the direction is of another
            site, or more than one.
        BatchError: The states vary in fewer than two dimensions.
    """
    _check_direction(site, direction)
    states = torch.cat([runs.states(site), runs.states(site, "other")]).double()
    states = states - states.mean(0)
    found = runs.interchange_pairs.other
    asked = [pair.clean for pair in found] + [pair.counterfactual for pair in found]
    labels = _question_labels(asked)
    sides = np.repeat([-1.0, 1.0], len(runs))
    upward = np.array(labels["number"], dtype=float)
    along = direction.basis[:1].to(states)
    across = principal_directions(states - states @ along.T @ along, 1).to(states)
    widest = _project(states, principal_directions(states, 2).to(states), (sides, upward))
    fitted = _project(states, torch.cat([along, across]), (sides, upward))
    return StateProjection(
        model=runs.model.name,
        site=site,
        prompts=tuple(question.text for question in asked),
        labels=labels,
        principal_xy=widest[0],
        principal_fractions=widest[1],
        direction_xy=fitted[0],
        direction_fractions=fitted[1],
    )


def operation_name(question: Question) -> str:
    """Return the word of a question's operation, or its pattern's name if that is not shipped."""
    known = list_patterns().get(question.pattern)
    return question.pattern if known is None else known.operation


def _question_labels(questions: list[Question]) -> dict[str, LabelValues]:
    names = {"verb": "op", "x": "x", "y": "y", "object": OBJECT}
    slots = [dict(question.slots) for question in questions]
    return {
        "operation": tuple(operation_name(question) for question in questions),
        "number": tuple(int(question.answer("number")) for question in questions),
    } | {
        name: tuple(held[slot] for held in slots)
        for name, slot in names.items()
        if all(slot in held for held in slots)
    }


def _project(
    states: Float[Tensor, "prompt d_model"],
    axes: Float[Tensor, "2 d_model"],
    sign_targets: tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]],
) -> tuple[Float[np.ndarray, "prompt 2"], tuple[float, float]]:
    """Return the places of centered states on two axes, and the share of variance on each."""
    xy = (states @ axes.T).cpu().numpy()
    for at, values in enumerate(sign_targets):
        # Signs of directions are open: unless they are set, models look like mirror images.
        if xy[:, at] @ (values - values.mean()) < 0:
            xy[:, at] *= -1
    first, second = (xy**2).sum(0) / float(states.square().sum())
    return xy, (float(first), float(second))


def _check_direction(site: Site, direction: Subspace) -> None:
    if site.component != "resid":
        raise SiteError(f"A space is of a residual: {site!s} found. Give a 'resid' cell.")
    if (direction.layer, direction.role) != (site.layer, site.role):
        raise SiteError(
            f"The direction is of L{direction.layer} {direction.role!r}, the space of "
            f"{site!s}: fit it there."
        )
    if len(direction.basis) != 1:
        raise SiteError(
            f"The direction at {site!s} has {len(direction.basis)} rows: give the one "
            "that is to be the first axis."
        )
