"""Two-dimensional projections of the states at one site."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import SiteError
from probes.interventions.interchange import InterchangeRuns
from probes.interventions.result import LabelValues, StateProjection
from probes.interventions.subspaces.das import Subspace, principal_directions
from probes.models.double_precision import to_double
from probes.models.site import Site
from probes.prompts.catalog import list_patterns
from probes.prompts.interchange_pairs import OBJECT
from probes.prompts.question import Question


def project_states(runs: InterchangeRuns, site: Site, direction: Subspace) -> StateProjection:
    """Project the states of bases and of sources about other objects.

    Args:
        runs: Runs to show.
        site: Residual site.
        direction: Direction of the operation, such as `operation_direction` of other runs. One
            that is fitted on `runs` separates bases and sources in any model.

    Raises:
        SiteError: The site is not residual, a prompt lacks its role, or the subspace has more than
            one direction or another site.
        BatchError: The states vary in fewer than two dimensions.
    """
    _check_direction(site, direction)
    states = to_double(torch.cat([runs.states(site), runs.states(site, "other")]))
    states = states - states.mean(0)
    pairs = runs.interchange_pairs.other
    questions = [pair.clean for pair in pairs] + [pair.counterfactual for pair in pairs]
    labels = _question_labels(questions)
    is_source = np.repeat([-1.0, 1.0], len(runs))
    number = np.array(labels["number"], dtype=float)
    fitted = direction.basis[:1].to(states)
    orthogonal = principal_directions(states - states @ fitted.T @ fitted, 1).to(states)
    principal = principal_directions(states, 2).to(states)
    principal_xy, principal_fractions = _project(states, principal, (is_source, number))
    axes = torch.cat([fitted, orthogonal])
    direction_xy, direction_fractions = _project(states, axes, (is_source, number))
    return StateProjection(
        model=runs.model.name,
        site=site,
        prompts=tuple(question.text for question in questions),
        labels=labels,
        principal_xy=principal_xy,
        principal_fractions=principal_fractions,
        direction_xy=direction_xy,
        direction_fractions=direction_fractions,
    )


def operation_name(question: Question) -> str:
    """Name of a question's operation, or of its pattern if that is not shipped."""
    pattern = list_patterns().get(question.pattern)
    return question.pattern if pattern is None else pattern.operation


def _question_labels(questions: list[Question]) -> dict[str, LabelValues]:
    slots = [dict(question.slots) for question in questions]
    labels: dict[str, LabelValues] = {
        "operation": tuple(operation_name(question) for question in questions),
        "number": tuple(int(question.answer("number")) for question in questions),
    }
    for name, slot in {"verb": "op", "x": "x", "y": "y", "object": OBJECT}.items():
        if all(slot in values for values in slots):
            labels[name] = tuple(values[slot] for values in slots)
    return labels


def _project(
    states: Float[Tensor, "prompt d_model"],
    axes: Float[Tensor, "2 d_model"],
    sign_targets: tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]],
) -> tuple[Float[np.ndarray, "prompt 2"], tuple[float, float]]:
    """Coordinates of centered states on two axes, and the fraction of variance on each."""
    xy = (states @ axes.T).cpu().numpy()
    for axis, target in enumerate(sign_targets):
        # Signs are arbitrary: without this, models would look like mirror images.
        if xy[:, axis] @ (target - target.mean()) < 0:
            xy[:, axis] *= -1
    first, second = (xy**2).sum(0) / float(states.square().sum())
    return xy, (float(first), float(second))


def _check_direction(site: Site, direction: Subspace) -> None:
    if site.component != "resid":
        raise SiteError(f"{site} cannot be projected: give a 'resid' site")
    if (direction.layer, direction.role) != (site.layer, site.role):
        raise SiteError(
            f"The direction belongs to L{direction.layer} {direction.role!r}, the states to "
            f"{site}: fit the direction at that site"
        )
    if len(direction.basis) != 1:
        raise SiteError(
            f"The direction at {site} has {len(direction.basis)} rows: give one, the first axis"
        )
