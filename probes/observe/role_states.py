"""One state a prompt and role, at every layer: what two models of any shape and tokenizer share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import ModelError
from probes.models.model import Model
from probes.observe.residual_states import capture_selected_residual
from probes.prompts.batch import tokenize
from probes.prompts.question import Question


@dataclass(frozen=True, eq=False)
class RoleStates:
    """The residual at the last token of every role.

    Attributes:
        model: Name of the model.
        roles: The roles that occur, in no order that means anything.
        there: Which prompts have the role.
        tokens: The id of that token; meaningless where the prompt lacks the role.
        states: What each block reads there, then what the last one writes; 0 where it lacks it.
        place: The mean position of that token, counted from the right, for sorting.
    """

    model: str
    roles: tuple[str, ...]
    present: Bool[np.ndarray, "role prompt"]
    tokens: Int[np.ndarray, "role prompt"]
    states: Float[np.ndarray, "role layer prompt d_model"]
    mean_position: Float[np.ndarray, " role"]


def capture_role_states(model: Model, questions: Sequence[Question]) -> RoleStates:
    """Run a model on questions, and keep what stands at the last token of each role.

    Raises:
        ModelError: The model has no tokenizer, or its states are not finite.
        ProbeError: A question that the tokenizer cannot read; see `encode`.
    """
    if model.tokenizer is None:
        raise ModelError(f"{model.name!r} came without a tokenizer: add its files and load again")
    batch = tokenize(model.tokenizer, questions, max_length=model.shape.context)
    width = batch.ids.shape[1]
    member = torch.stack([batch.role_mask(role) for role in batch.roles])
    last = (member * torch.arange(width)).amax(-1)
    there = member.any(-1)

    def ends(value: Tensor, rows: Tensor) -> Tensor:
        return value[torch.arange(len(rows))[:, None], last[:, rows].T]

    found = capture_selected_residual(model, batch, ends)
    states = rearrange(found, "layer prompt role d_model -> role layer prompt d_model")
    states = states * there[:, None, :, None]
    if not bool(states.isfinite().all()):
        raise ModelError(
            f"The states of {model.name} are not finite on these prompts: load it with a wider "
            "dtype, or check the weights"
        )
    position = (width - last).double()
    place = torch.where(there, position, torch.nan).nanmean(-1)
    tokens = batch.ids[torch.arange(len(batch))[None], last]
    return RoleStates(
        model.name, batch.roles, there.numpy(), tokens.numpy(), states.numpy(), place.numpy()
    )
