"""Capture: run a batch once and keep the activations that were asked for, and no others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.errors import SiteError
from probes.models.model import Model
from probes.prompts.batch import Batch

HOOK_POINTS = {
    "resid": "hook_resid_pre",
    "attention": "attn.hook_pattern",
    "z": "attn.hook_z",
    "mlp_out": "hook_mlp_out",
}
"""What can be captured, and the hook it is read from in every block."""


@dataclass(frozen=True, eq=False)
class Activations:
    """Captured tensors by name, stacked over layers.

    "resid" is "layer prompt position d_model" with one layer more than the model has: the input
    of every block, then the output of the last. "attention" is "layer prompt head query key",
    "z" "layer prompt position head d_head" (what a head read, before its output matrix), and
    "mlp_out" "layer prompt position d_model".
    """

    model: str
    batch: Batch
    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise SiteError(
                f"{name!r} was not captured from {self.model!r}: it has {sorted(self.tensors)}"
            )
        return self.tensors[name]


@torch.no_grad()
def capture(model: Model, batch: Batch, names: Sequence[str] = ("attention",)) -> Activations:
    """Run a batch and keep the named activations; see `POINTS` for the names.

    Raises:
        SiteError: A name is unknown.
    """
    unknown = [name for name in names if name not in HOOK_POINTS]
    if unknown:
        raise SiteError(f"Cannot capture {unknown}: known are {', '.join(HOOK_POINTS)}")
    layers = range(model.shape.layers)
    kept: dict[str, Tensor] = {}

    def keep(hook: str) -> None:
        edits[hook] = lambda value: kept.update({hook: value.detach().clone()})

    edits: dict = {}
    for name in names:
        for layer in layers:
            keep(f"blocks.{layer}.{HOOK_POINTS[name]}")
    last = f"blocks.{layers[-1]}.hook_resid_post"
    if "resid" in names:
        keep(last)
    with model.editing(edits):
        model.logits(batch.ids.to(model.device), batch.mask.to(model.device))
    tensors = {}
    for name in names:
        found = [kept[f"blocks.{layer}.{HOOK_POINTS[name]}"] for layer in layers]
        tensors[name] = torch.stack([*found, kept[last]] if name == "resid" else found)
    return Activations(model.name, batch, tensors)
