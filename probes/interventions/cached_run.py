"""Recorded runs: activations, and the caches of single blocks from which a run can restart."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import BatchError, ModelError, SiteError
from probes.models.layers.kv_cache import block_cache_argument
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.model import Model
from probes.models.site import RESID, RESID_OUT, Site

Z, MLP = "attn.hook_z", "hook_mlp_out"


class BlockCache:
    """Cache of one block: keeps keys and values before `first_position`, replaces the others."""

    def __init__(self, *keys_values: Tensor, first_position: int = 0) -> None:
        self.keys, self.values = keys_values or (None, None)
        self.first_position, self._stop_when_ready = first_position, False

    def update(
        self, keys: Tensor, values: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values that the block attends to, given its new ones."""
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
        elif self.first_position < self.keys.shape[2]:
            self.keys[:, :, self.first_position :] = keys
            self.values[:, :, self.first_position :] = values
        if self._stop_when_ready:
            raise _KeysReady
        return self.keys, self.values

    def fill(self, model: Model, layer: int, resid: Tensor, arguments: Mapping[str, Any]) -> None:
        """Compute keys and values from `first_position` on, without the rest of the block."""
        self._stop_when_ready = True
        with suppress(_KeysReady):
            model.run_block(layer, resid, arguments, self)
        self._stop_when_ready = False
        self.first_position = self.keys.shape[2] if self.keys is not None else 0


class _KeysReady(Exception):
    """Ends a block's forward pass inside `BlockCache.update`."""


def slice_argument(
    value: Any,  # noqa: ANN401
    prompt: Int[Tensor, " row"],
    positions: Int[Tensor, "row position"],
    keys: int | None = None,
) -> Any:  # noqa: ANN401
    """Rows and positions of a block's argument (mask or rotary angles); others are unchanged.

    A mask keeps its first `keys` keys, by default all.
    """
    if isinstance(value, tuple):
        return tuple(slice_argument(v, prompt, positions, keys) for v in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    row = (prompt if len(value) > 1 else 0 * prompt)[:, None]
    if value.ndim == 4:
        return value[row, 0, positions, :keys][:, None]
    return value[row, positions]


@dataclass(frozen=True, eq=False)
class CachedRun:
    """Activations and logits of one run, as far as patching needs them.

    Attributes:
        model: The model.
        ids, mask: Tokens of the prompts, and False for padding.
        readout: Positions whose logits are kept.
        logits: Logits of the next token there.
        z: Attention-weighted values of each head, before the output matrix.
        mlp_out: Output of each MLP.
        resid: Input of every block, and the output of the last.
    """

    model: Model
    ids: Int[Tensor, "prompt position"] = field(repr=False)
    mask: Bool[Tensor, "prompt position"] = field(repr=False)
    readout: Int[Tensor, "prompt answer"] = field(repr=False)
    logits: Float[Tensor, "prompt answer vocab"] = field(repr=False)
    z: Float[Tensor, "layer prompt position head d_head"] = field(repr=False)
    mlp_out: Float[Tensor, "layer prompt position d_model"] = field(repr=False)
    resid: Float[Tensor, "layer+1 prompt position d_model"] = field(repr=False)
    # Arguments of each block's call, and its keys and values; none where blocks cannot restart.
    _block_caches: tuple[tuple[dict, BlockCache], ...] = field(repr=False)

    @property
    def restarts(self) -> bool:
        """Whether blocks can run again from this run's keys and values."""
        return bool(self._block_caches)

    def realigned(self, index: Int[Tensor, "prompt position"]) -> "CachedRun":
        """Run whose position p of prompt i has the activations of position index[i, p]."""
        at = (slice(None), torch.arange(len(index), device=index.device)[:, None], index)
        return replace(self, z=self.z[at], mlp_out=self.mlp_out[at], resid=self.resid[at])

    def activation(self, site: Site) -> Float[Tensor, "prompt position feature"]:
        """Activation of a component at all positions."""
        if isinstance(site.component, int):
            return self.z[site.layer, :, :, site.component]
        return (self.mlp_out if site.component == "mlp" else self.resid)[site.layer]

    def block_arguments(
        self,
        layer: int,
        prompt: Int[Tensor, " row"],
        positions: Int[Tensor, "row position"],
        keys: int | None = None,
    ) -> dict:
        """Arguments of a block's call, for some rows and positions."""
        call = self._block_caches[layer][0]
        return {k: slice_argument(value, prompt, positions, keys) for k, value in call.items()}

    def keys_values(self, layer: int) -> tuple[Tensor, ...]:
        """Keys and values of a block."""
        kept = self._block_caches[layer][1]
        return tuple(t for t in (kept.keys, kept.values) if t is not None)

    def run_from(
        self, position: int, resid: Float[Tensor, "prompt later d_model"]
    ) -> Float[Tensor, "prompt later d_model"]:
        """Output of the last block from a position on, given the first block's input there.

        Earlier positions are those of this run. Hooks of blocks see the later positions only, and
        gradients pass.
        """
        prompt = torch.arange(len(self.ids), device=self.ids.device)
        span = (position, self.ids.shape[1])
        return self.run_blocks(range(self.model.shape.layers), prompt, span, resid)

    def run_blocks(
        self,
        blocks: range,
        prompt: Int[Tensor, " row"],
        span: tuple[int, int],
        resid: Float[Tensor, "row later d_model"],
    ) -> Float[Tensor, "row later d_model"]:
        """Output of the last of some blocks, given the input of the first.

        Args:
            blocks: Layers of the blocks.
            prompt: Prompt of each row, whose earlier positions are those of this run.
            span: First position, and the one after the last.
            resid: Input of the first block in the span.
        """
        first, end = span
        later = torch.arange(first, end, device=prompt.device).expand(len(prompt), -1)
        for layer in blocks:
            given = self.block_arguments(layer, prompt, later, end)
            cache = self.cache_before(layer, prompt, span)
            resid = self.model.run_block(layer, resid, given, cache)
        return resid

    def cache_before(
        self, layer: int, prompt: Int[Tensor, " row"], span: tuple[int, int]
    ) -> BlockCache:
        """Copy of a block's cache for some rows, in which the positions of a span are replaced."""
        first, end = span
        rows = (kept[prompt, :, :end] for kept in self.keys_values(layer))
        return BlockCache(*rows, first_position=first)


@torch.no_grad()
def record_run(
    model: Model,
    ids: Int[Tensor, "prompt position"],
    mask: Bool[Tensor, "prompt position"],
    readout: Int[Tensor, "prompt answer"],
    *,
    for_restarts: bool,
) -> CachedRun:
    """Run a model once; with `for_restarts`, blocks use and record a cache each.

    Raises:
        ModelError: Some block does not use the cache that it is given.
    """
    layers = range(model.shape.layers)
    values: dict[str, Tensor] = {}
    caches = [BlockCache() for _ in layers] if for_restarts else []
    for block in model.bridge.blocks if for_restarts else ():
        block_cache_argument(block)

    def stacked(hook: str) -> Tensor:
        return torch.stack([values[f"blocks.{n}.{hook}"] for n in layers])

    names = [f"blocks.{n}.{hook}" for n in layers for hook in (RESID, Z, MLP, RESID_OUT)]
    edits = {name: partial(values.__setitem__, name) for name in names}
    with model.editing(edits), model.recording_kv(caches) as calls:
        logits = model.logits(ids, mask, readout)
    if any(cache.keys is None for cache in caches):
        raise ModelError(f"Some block of {model.name} does not use its key/value cache")
    resid = torch.cat([stacked(RESID), stacked(RESID_OUT)[-1:]])
    blocks = tuple(zip(calls, caches, strict=True))
    return CachedRun(model, ids, mask, readout, logits, stacked(Z), stacked(MLP), resid, blocks)


def record_in_parts(
    model: Model, record: Callable[[Int[Tensor, " row"]], CachedRun], count: int, width: int
) -> CachedRun:
    """Run of all prompts of `width` tokens, which is recorded in parts where memory runs out."""
    batches = MicroBatches("recording a run", count, width)
    return join_runs([*run_micro_batches(model, torch.arange(count), record, batches)])


def join_runs(runs: Sequence[CachedRun]) -> CachedRun:
    """One run of the prompts of several runs of a model, in their order."""
    first, *others = runs
    if not others:
        return first
    sizes = [len(run.ids) for run in runs]
    blocks = []
    for parts in zip(*(run._block_caches for run in runs), strict=True):
        calls, caches = zip(*parts, strict=True)
        call = {key: _join_arguments([one[key] for one in calls], sizes) for key in calls[0]}
        keys, values = (
            torch.cat([getattr(one, name) for one in caches]) for name in ("keys", "values")
        )
        blocks.append((call, BlockCache(keys, values)))
    by_prompt = ("ids", "mask", "readout", "logits")
    by_layer = ("z", "mlp_out", "resid")
    joined = {name: torch.cat([getattr(run, name) for run in runs]) for name in by_prompt}
    joined |= {name: torch.cat([getattr(run, name) for run in runs], 1) for name in by_layer}
    return replace(first, **joined, _block_caches=tuple(blocks))


def _join_arguments(values: Sequence[Any], sizes: Sequence[int]) -> Any:  # noqa: ANN401
    """A block's argument for the prompts of several calls; what all prompts share stays one row."""
    first = values[0]
    if isinstance(first, tuple):
        return tuple(_join_arguments(each, sizes) for each in zip(*values, strict=True))
    if not isinstance(first, Tensor) or first.ndim < 2:
        return first
    if all(len(value) == 1 and torch.equal(value, first) for value in values):
        return first
    rows = zip(values, sizes, strict=True)
    return torch.cat([value.expand(size, *value.shape[1:]) for value, size in rows])


def run_patches(
    clean: CachedRun, patch: Callable[[Int[Tensor, " row"]], None], count: int, width: int
) -> None:
    """Call a function on all patched runs of `width` tokens, or on fewer where memory runs out."""
    rows = torch.arange(count, device=clean.ids.device)
    batches = MicroBatches("activation patching", count, width)
    for _ in run_micro_batches(clean.model, rows, patch, batches):
        pass


def require_patchable(
    clean: CachedRun, source: CachedRun, sites: Sequence[Site], role_masks: Mapping[str, Tensor]
) -> None:
    """Check that runs fit together and that sites and roles exist.

    Raises:
        SiteError: A site or role does not exist.
        BatchError: The runs differ in size.
    """
    shape, sizes = clean.model.shape, (tuple(source.z.shape), tuple(clean.z.shape))
    if sizes[0] != sizes[1]:
        raise BatchError(
            f"Source and clean run differ in size: z is {sizes[0]} and {sizes[1]}. Run both on "
            "batches of one size, with models of one shape."
        )
    known = ("resid", "mlp", *range(shape.heads))
    for site in sites:
        layers = range(shape.layers + (site.component == "resid"))
        if site.layer not in layers or site.component not in known or site.role not in role_masks:
            raise SiteError(
                f"{clean.model.name} cannot be patched at {site}: choose a layer below "
                f"{len(layers)}, 'resid', 'mlp' or a head below {shape.heads}, and a role of "
                f"{', '.join(role_masks)}"
            )
