"""Residual stream at the last token of each role: comparable across shapes and tokenizers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import ModelError
from probes.models.model import Model
from probes.observe.activations import last_positions, record
from probes.prompts.question import Question
from probes.prompts.tokens.batch import tokenize


@dataclass(frozen=True, eq=False)
class RoleStates:
    """Residual stream at the last token of each role.

    Attributes:
        model: Name of the model.
        roles: Roles that occur, in the order of the batch.
        present: Whether a prompt has the role.
        tokens: Id of that token; arbitrary where the prompt lacks the role.
        states: Input of each block there, then output of the last; 0 where the role is missing.
        mean_position: Mean position of that token, counted from the right from 1.
    """

    model: str
    roles: tuple[str, ...]
    present: Bool[np.ndarray, "role prompt"]
    tokens: Int[np.ndarray, "role prompt"]
    states: Float[np.ndarray, "role layer prompt d_model"]
    mean_position: Float[np.ndarray, " role"]


def capture_role_states(model: Model, questions: Sequence[Question]) -> RoleStates:
    """Run questions and keep the residual stream at the last token of each role.

    Raises:
        ModelError: The model has no tokenizer, or its states are not finite.
        ProbeError: A question cannot be tokenized; see `tokenize`.
    """
    if model.tokenizer is None:
        raise ModelError(f"{model.name!r} came without a tokenizer: add its files and load again")
    batch = tokenize(model.tokenizer, questions, max_length=model.shape.context)
    width = batch.ids.shape[1]
    ends = torch.stack([last_positions(batch, role) for role in batch.roles])
    present = ends >= 0
    last = ends.clamp(min=0)

    def at_ends(value: Tensor, rows: Tensor) -> Tensor:
        return value[torch.arange(len(rows))[:, None], last[:, rows].T].float().cpu()

    resid = record(model, batch, ("resid",), at_ends)["resid"]
    states = rearrange(resid, "layer prompt role d_model -> role layer prompt d_model")
    states = states * present[:, None, :, None]
    if not bool(states.isfinite().all()):
        raise ModelError(
            f"The states of {model.name} are not finite on these prompts: load it with a wider "
            "dtype, or check the weights"
        )
    from_right = torch.where(present, (width - last).double(), torch.nan)
    return RoleStates(
        model=model.name,
        roles=batch.roles,
        present=present.numpy(),
        tokens=batch.ids[torch.arange(len(batch))[None], last].numpy(),
        states=states.numpy(),
        mean_position=from_right.nanmean(-1).numpy(),
    )
