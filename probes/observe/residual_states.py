"""Residual states at roles: what one model hands to another, whatever their tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import SiteError
from probes.models.model import Model
from probes.models.site import RESID, RESID_OUT
from probes.prompts.batch import Batch

_CHUNK = 100

ResidualSelector = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class ResidualStates:
    """The residual stream of one model on some questions.

    Attributes:
        model: Its name.
        batch: What it read.
        resid: Before each block, and after the last.
    """

    model: str
    batch: Batch
    resid: Float[Tensor, "layer prompt position d_model"]

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that every prompt has, in the order of the texts."""
        every = [r for r in self.batch.roles if bool(self.batch.role_mask(r).any(-1).all())]
        place = {role: float(self.last_positions(role).float().mean()) for role in every}
        return tuple(sorted(every, key=lambda role: place[role]))

    def token_counts(self, role: str) -> Int[Tensor, " prompt"]:
        """Return how many tokens play a role, prompt by prompt."""
        return self.batch.role_mask(role).sum(-1)

    def last_positions(self, role: str) -> Int[Tensor, " prompt"]:
        """Return the last token of a role.

        Raises:
            SiteError: A prompt lacks the role.
        """
        here = self.batch.role_mask(role)
        if not bool(here.any(-1).all()):
            raise SiteError(f"Some prompts have no role {role!r}: choose one that all have")
        return here.shape[1] - 1 - here.flip(-1).int().argmax(-1)

    def states_at(
        self, role: str, layer: int, offset_from_end: int = 0
    ) -> Float[Tensor, "prompt d_model"]:
        """Return the state at a token of a role, counted back from its last; at most its first.

        Counted from the end, tokens of two tokenizers can be told to belong together: the last one
        has seen the whole word.
        """
        here = self.batch.role_mask(role)
        first = here.int().argmax(-1)
        place = (self.last_positions(role) - offset_from_end).clamp(min=first)
        return self.resid[layer][torch.arange(len(here)), place]


def capture_residual(model: Model, batch: Batch) -> ResidualStates:
    """Run a model on prompts and keep its residual stream, in full."""
    return ResidualStates(
        model.name, batch, capture_selected_residual(model, batch, lambda value, _: value)
    )


@torch.no_grad()
def capture_selected_residual(
    model: Model, batch: Batch, select: ResidualSelector
) -> Float[Tensor, "layer prompt *_ d_model"]:
    """Run a model on prompts and keep what is picked of its residual stream, at every layer.

    Args:
        model: Any decoder.
        batch: What it reads.
        pick: Given the residual of some prompts and their numbers, returns what to keep of each.
    """
    layers = model.shape.layers
    names = [f"blocks.{k}.{RESID}" for k in range(layers)] + [f"blocks.{layers - 1}.{RESID_OUT}"]
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    for rows in torch.arange(len(batch)).split(_CHUNK):

        def keep(name: str, rows: Tensor = rows):  # noqa: ANN202 (an edit that changes nothing)
            return lambda value: kept[name].append(select(value.float().cpu(), rows))

        with model.editing({name: keep(name) for name in names}):
            model.forward(batch.ids[rows].to(model.device), batch.mask[rows].to(model.device))
    return torch.stack([torch.cat(kept[name]) for name in names])
