"""Capture: run prompts once and keep the named activations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from probes.errors import SiteError
from probes.models.micro_batches import MicroBatches, fitting_prompts, run_micro_batches
from probes.models.model import Model, ModelSpec, load
from probes.models.readout import last_token
from probes.models.site import RESID, RESID_OUT
from probes.prompts.question import Question
from probes.prompts.tokens.batch import Batch, tokenize

HOOK_POINTS = {
    "resid": RESID,
    "attention": "attn.hook_pattern",
    "z": "attn.hook_z",
    "mlp_out": "hook_mlp_out",
}
"""Hook of each kind of activation, in every block."""

_PROMPTS_PER_RUN = 100


@dataclass(frozen=True, eq=False)
class Activations:
    """Captured activations by name, stacked over layers.

    "resid" is "layer prompt position d_model": the input of every block, then the output of the
    last, so one layer more than the model has. "attention" is "layer prompt head query key", "z"
    "layer prompt position head d_head" (attention-weighted values, before the output matrix),
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

    def __len__(self) -> int:
        return len(self.batch)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {[*tensor.shape]}" for name, tensor in self.tensors.items())
        return f"Activations({self.model!r}: {sizes}; {self.batch!r})"

    @cached_property
    def _spans(self) -> dict[str, tuple[Int[Tensor, " prompt"], Int[Tensor, " prompt"]]]:
        """First and last position of each role; a search for sites asks for them at every layer."""
        masks = {role: self.batch.role_mask(role) for role in self.batch.roles}
        return {
            role: (mask.int().argmax(-1), last_positions(self.batch, role))
            for role, mask in masks.items()
        }

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Roles that every prompt has, in the order of the texts."""
        ends = {role: end for role, (_, end) in self._spans.items() if bool((end >= 0).all())}
        return tuple(sorted(ends, key=lambda role: float(ends[role].float().mean())))

    def token_counts(self, role: str) -> Int[Tensor, " prompt"]:
        """Number of tokens of a role in each prompt."""
        return self.batch.role_mask(role).sum(-1)

    def states_at(
        self, role: str, layer: int, offset_from_end: int = 0
    ) -> Float[Tensor, "prompt d_model"]:
        """Residual stream at a token of a role, counted back from its last, at most to its first.

        Counting from the end pairs the tokens of two tokenizers: the last has read the whole word.

        Raises:
            SiteError: A prompt lacks the role.
        """
        if role not in self.roles:
            self.batch.role_mask(role)  # Says which roles there are.
            raise SiteError(f"Some prompts have no role {role!r}: choose one that all have")
        first, end = self._spans[role]
        position = (end - offset_from_end).clamp(min=first)
        return self["resid"][layer][torch.arange(len(self)), position].float().cpu()


def last_positions(batch: Batch, role: str) -> Int[Tensor, " prompt"]:
    """Position of the last token of a role, -1 where a prompt lacks it."""
    position = torch.arange(batch.ids.shape[1])
    return torch.where(batch.role_mask(role), position, -1).amax(-1)


def capture(
    model: ModelSpec,
    prompts: Batch | str | Question | Sequence[str | Question],
    names: Sequence[str] = ("attention",),
) -> Activations:
    """Run prompts once and keep the named activations.

    Args:
        model: A family name, a folder, a hub id or a loaded model.
        prompts: A batch, or texts or questions to tokenize into one.
        names: Of `HOOK_POINTS`: "resid", "attention", "z", "mlp_out".

    Raises:
        SiteError: A name is unknown.
    """
    unknown = [name for name in names if name not in HOOK_POINTS]
    if unknown:
        raise SiteError(
            f"Cannot capture {unknown}: known are {', '.join(HOOK_POINTS)}. Record other hook "
            "points by their TransformerLens names: `with model.recording(names)`, or "
            "`model.bridge.run_with_cache`"
        )
    model = load(model)
    batch = prompts if isinstance(prompts, Batch) else tokenize(model, prompts)
    return Activations(model.name, batch, record(model, batch, names))


@torch.no_grad()
def record(
    model: Model,
    batch: Batch,
    names: Sequence[str],
    select: Callable[[Tensor, Int[Tensor, " row"]], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Activations by name, stacked over layers, run in chunks of prompts.

    Args:
        model: Any decoder.
        batch: Its prompts.
        names: Of `HOOK_POINTS`.
        select: Maps an activation of some prompts and their numbers in the batch to the part to
            keep; all of it by default.

    Raises:
        SiteError: The model lacks a hook, or passes by it.
    """
    layers = range(model.shape.layers)
    hooks = {name: [f"blocks.{k}.{HOOK_POINTS[name]}" for k in layers] for name in names}
    if "resid" in hooks:
        hooks["resid"].append(f"blocks.{layers[-1]}.{RESID_OUT}")
    width = batch.ids.shape[1]
    kept: dict[str, Tensor] = {}
    seen: set[str] = set()

    def keep(at: tuple[str, int], rows: Int[Tensor, " row"], padding: int, value: Tensor) -> None:
        name, layer = at
        seen.add(hooks[name][layer])
        if padding:  # The last axes of a pattern are queries and keys.
            left = (padding, 0) if name == "attention" else (0, 0) * (value.ndim - 2)
            value = pad(value, (*left, padding, 0))
        part = value if select is None else select(value, rows)
        if name not in kept:
            kept[name] = part.new_empty((len(hooks[name]), len(batch), *part.shape[1:]))
        kept[name][layer, rows] = part

    lengths = batch.mask.sum(-1)

    def run(rows: Int[Tensor, " row"]) -> None:
        seen.clear()
        padding = int(width - lengths[rows].max())  # Before all of these prompts.
        edits = {
            hook: partial(keep, (name, layer), rows, padding)
            for name, group in hooks.items()
            for layer, hook in enumerate(group)
        }
        with model.hooked(edits):
            mask = batch.mask[rows, padding:].to(model.device)
            model.forward(batch.ids[rows, padding:].to(model.device), mask, last_token(mask))
        if missing := [name for name, group in hooks.items() if not seen >= {*group}]:
            raise SiteError(
                f"{model.name} ({model.shape.architecture}) does not compute {missing} in every "
                "block: capture other activations"
            )

    order = lengths.argsort(stable=True)  # Prompts of one pass are about equally long.
    size = fitting_prompts(model, _PROMPTS_PER_RUN, width=width)
    for _ in run_micro_batches(model, order, run, MicroBatches("capturing", size, width)):
        pass
    return kept
