"""Exact activation patching that computes only what a patch can change.

A patch at layer l and position p leaves every earlier layer and every earlier position as it was,
so a run restarts at the block after the patch, at the first patched position, with the keys and
values of the clean run before it; the last block and the unembedding run at the read-outs only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import BatchError, SiteError
from probes.models.model import Model
from probes.models.site import RESID, RESID_OUT, Site

# Blocks that the tests prove to be the sum this file takes them for; others run in full.
RESTARTABLE = frozenset({"GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM"})

# Tokens of one batch: enough to feed the matrix products, few enough to stay in a CPU's cache.
TOKENS_PER_BATCH = 2048

Z, MLP = "attn.hook_z", "hook_mlp_out"


@dataclass(frozen=True, eq=False)
class CachedRun:
    """What one run computed, as far as patching needs it."""

    model: Model
    ids: Int[Tensor, "prompt position"]
    mask: Bool[Tensor, "prompt position"]
    readout: Int[Tensor, "prompt answer"]
    logits: Float[Tensor, "prompt answer vocab"]
    z: Float[Tensor, "layer prompt position head d_head"]
    mlp_out: Float[Tensor, "layer prompt position d_model"]
    resid: Float[Tensor, "layer+1 prompt position d_model"]
    """The input of every block, and the output of the last."""
    # What each block was called with, and the keys and values that it made.
    _block_caches: tuple[tuple[dict, "_CacheStub"], ...] = field(repr=False)

    def realigned(self, index: Int[Tensor, "prompt position"]) -> "CachedRun":
        """Move activations so that position p of prompt i holds what was at index[i, p]."""
        at = (slice(None), torch.arange(len(index), device=index.device)[:, None], index)
        return replace(self, z=self.z[at], mlp_out=self.mlp_out[at], resid=self.resid[at])

    def _activation_at(self, site: Site) -> Float[Tensor, "prompt position feature"]:
        if isinstance(site.component, int):
            return self.z[site.layer, :, :, site.component]
        return (self.mlp_out if site.component == "mlp" else self.resid)[site.layer]


@torch.no_grad()
def run_with_cache(
    model: Model,
    ids: Int[Tensor, "prompt position"],
    mask: Bool[Tensor, "prompt position"],
    readout: Int[Tensor, "prompt answer"],
) -> CachedRun:
    """Run the model once; `readout` holds the positions whose logits are wanted."""
    layers = range(model.shape.layers)
    kept: dict[str, Tensor] = {}
    stores = [_CacheStub() for _ in layers] if model.shape.architecture in RESTARTABLE else []

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda value: kept.update({name: value})

    def every(point: str) -> Tensor:
        return torch.stack([kept[f"blocks.{n}.{point}"] for n in layers])

    names = [f"blocks.{n}.{point}" for n in layers for point in (RESID, Z, MLP, RESID_OUT)]
    with model.editing({name: keep(name) for name in names}), model.recording_kv(stores) as calls:
        logits = model.logits(ids, mask)
    seen = logits.take_along_dim(readout[..., None], dim=1)
    resid = torch.cat([every(RESID), every(RESID_OUT)[-1:]])
    # A block that passed its store by would start again from nothing: whole passes, then.
    heeded = all(store.keys is not None for store in stores)
    blocks = tuple(zip(calls, stores, strict=True)) if heeded else ()
    return CachedRun(model, ids, mask, readout, seen, every(Z), every(MLP), resid, blocks)


@torch.no_grad()
def patch_sites(
    clean: CachedRun,
    source: CachedRun,
    sites: Sequence[Site],
    role_masks: Mapping[str, Bool[Tensor, "prompt position"]],
    measure: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, "cell prompt measure"]:
    """Put the source's activation into the clean run, one cell at a time, and measure the logits.

    `measure` is given the logits at the read-outs ("row answer vocab") and, for each row, the
    number of its prompt. Rows that a patch cannot change hold the clean value to the last bit.
    """
    _check_patch(clean, source, sites, role_masks)
    plain = measure(clean.logits, torch.arange(len(clean.ids), device=clean.ids.device))
    result = plain[None].repeat(len(sites), 1, 1)
    run = _run_restarted if clean._block_caches else _run_in_full
    with clean.model.locked():
        for rows in _patch_batches(clean, source, sites, role_masks):
            result[rows.site_index, rows.prompt] = measure(run(clean, source, rows), rows.prompt)
    return result


@dataclass(frozen=True, eq=False)
class _PatchBatch:
    """Patched runs that restart at one block and one position, one after the other."""

    start_block: int
    """The first block whose input differs; the number of layers where only the output does."""
    first_position: int
    end_position: int
    site_index: Int[Tensor, " row"]
    prompt: Int[Tensor, " row"]
    component: Int[Tensor, " row"]
    """A head's number, -1 for the MLP, -2 for the residual."""
    changed: Bool[Tensor, "row position"]


class _CacheStub:
    """Stand in for a key/value cache inside one block, filled up to position `first`."""

    def __init__(self, *kept: Tensor, first_position: int = 0) -> None:
        self.keys, self.values = kept or (None, None)
        self.first_position, self.stop_when_ready = first_position, False

    def update(
        self, keys: Tensor, values: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Answer a block that hands over its new keys and values."""
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
        elif self.first_position < self.keys.shape[2]:
            self.keys[:, :, self.first_position :] = keys
            self.values[:, :, self.first_position :] = values
        if self.stop_when_ready:
            raise _KVReady
        return self.keys, self.values


class _KVReady(Exception):
    """Leave a block as soon as its keys and values are made."""


def _patch_batches(
    clean: CachedRun, source: CachedRun, sites: Sequence[Site], role_masks: Mapping[str, Tensor]
) -> Iterator[_PatchBatch]:
    end = int(clean.readout.max()) + 1
    groups: dict[int, list[int]] = {}
    for number, cell in enumerate(sites):
        groups.setdefault(cell.layer + (cell.component != "resid"), []).append(number)
    for start, numbers in sorted(groups.items()):
        some = [sites[n] for n in numbers]
        differs = torch.stack(
            [(clean._activation_at(c) != source._activation_at(c)).any(-1) for c in some]
        )
        changed = (
            differs
            & torch.stack([role_masks[c.role] for c in some])
            & _reaches_readout(clean, start)
        )
        codes = [{"mlp": -1, "resid": -2}.get(str(c.component), c.component) for c in some]
        index, code = torch.tensor([numbers, codes], device=clean.ids.device)
        group, prompt = changed.any(-1).nonzero(as_tuple=True)
        firsts = changed[group, prompt].int().argmax(-1)
        order = firsts.argsort(stable=True)
        while len(order):
            first = int(firsts[order[0]])
            now, order = order.tensor_split([max(1, TOKENS_PER_BATCH // (end - first))])
            g, p = group[now], prompt[now]
            yield _PatchBatch(start, first, end, index[g], p, code[g], changed[g, p])


def _reaches_readout(clean: CachedRun, start_block: int) -> Bool[Tensor, "prompt position"]:
    """Positions where a change at the input of block `start` can reach a read-out."""
    position = torch.arange(clean.ids.shape[1], device=clean.ids.device)
    if start_block < clean.model.shape.layers:
        return position <= clean.readout.amax(-1, keepdim=True)
    return (position[:, None] == clean.readout[:, None]).any(-1)


def _run_restarted(clean: CachedRun, source: CachedRun, batch: _PatchBatch) -> Tensor:
    model, last = clean.model, clean.model.shape.layers - 1
    span = torch.arange(batch.first_position, batch.end_position, device=clean.ids.device)
    span, readout = span.expand(len(batch.prompt), -1), clean.readout[batch.prompt]

    def given(layer: int, places: Tensor) -> dict:
        calls = clean._block_caches[layer][0]
        return {name: _slice_argument(value, batch.prompt, places) for name, value in calls.items()}

    hidden = _block_input(clean, source, batch)
    for layer in range(batch.start_block, last):
        hidden = model.run_block(
            layer, hidden, given(layer, span), _cache_before(clean, layer, batch)
        )
    # A read-out before the patch is not reached: what stands for it here is dropped at the end.
    seen = hidden.take_along_dim((readout - batch.first_position).clamp(min=0)[..., None], dim=1)
    if batch.start_block <= last:
        # All positions must give keys and values here, but only the read-outs need the rest.
        (store := _cache_before(clean, last, batch)).stop_when_ready = True
        with suppress(_KVReady):
            model.run_block(last, hidden, given(last, span), store)
        store.first_position, store.stop_when_ready = batch.end_position, False
        seen = model.run_block(last, seen, given(last, readout), store)
    logits = model.bridge.unembed(model.bridge.ln_final(seen))
    reached = batch.changed.cumsum(-1) > 0 if batch.start_block <= last else batch.changed
    read = reached.take_along_dim(readout, dim=1)[..., None]
    return torch.where(read, logits, clean.logits[batch.prompt])


def _cache_before(clean: CachedRun, layer: int, batch: _PatchBatch) -> _CacheStub:
    kept = clean._block_caches[layer][1]
    cut = (
        t[batch.prompt, :, : batch.end_position] for t in (kept.keys, kept.values) if t is not None
    )
    return _CacheStub(*cut, first_position=batch.first_position)


def _block_input(clean: CachedRun, source: CachedRun, batch: _PatchBatch) -> Tensor:
    """What block `rows.start` reads from the first patched position on."""
    hidden = clean.resid[batch.start_block][batch.prompt, batch.first_position : batch.end_position]
    row, at = batch.changed[:, batch.first_position : batch.end_position].nonzero(as_tuple=True)
    prompt, position, component = batch.prompt[row], at + batch.first_position, batch.component[row]
    part = component != -2
    hidden[row, at] = source.resid[batch.start_block][prompt, position]
    if bool(part.any()):
        spots = torch.stack([prompt, position, component])[:, part]
        hidden[row[part], at[part]] = _block_output(clean, source, batch.start_block - 1, spots)
    return hidden


def _block_output(clean: CachedRun, source: CachedRun, layer: int, points: Tensor) -> Tensor:
    """What a block writes where one head's z, or the MLP's output, is the source's."""
    prompt, position, component = points
    block, parallel = clean.model.bridge.blocks[layer], clean.model.shape.parallel
    at, head = (prompt, position), component >= 0
    z = clean.z[layer][at]
    z[head, component[head]] = source.z[layer][prompt[head], position[head], component[head]]
    flat = rearrange(z, "spot head d_head -> 1 spot (head d_head)")
    middle = clean.resid[layer][at] + block.attn.o(flat).squeeze(0)
    mlp = source.mlp_out[layer][at]
    if parallel:
        mlp[head] = clean.mlp_out[layer][prompt[head], position[head]]
    elif bool(head.any()):
        mlp[head] = block.mlp(block.ln2(middle[head][None])).squeeze(0)
    return middle + mlp


def _slice_argument(
    value: Any,  # noqa: ANN401
    prompt: Int[Tensor, " row"],
    positions: Int[Tensor, "row position"],
) -> Any:  # noqa: ANN401
    """Take the rows and positions of one block argument: a mask, an angle, or neither."""
    if isinstance(value, tuple):
        return tuple(_slice_argument(v, prompt, positions) for v in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    row = (prompt if len(value) > 1 else 0 * prompt)[:, None]
    return value[row, 0, positions][:, None] if value.ndim == 4 else value[row, positions]


def _run_in_full(clean: CachedRun, source: CachedRun, batch: _PatchBatch) -> Tensor:
    """Patch by a whole pass, for blocks that are not known to be a plain sum."""
    p, layer, shape = batch.prompt, batch.start_block, clean.model.shape

    def put(theirs: Tensor, *component: int) -> Callable[[Tensor], Tensor]:
        wanted = batch.component[:, None] == torch.tensor(component, device=p.device)
        swap = batch.changed[:, :, None] & wanted[:, None]
        # Heads are an axis of their own; the other components are whole activations.
        swap = swap[..., None] if theirs.ndim == 4 else swap
        return lambda value: torch.where(swap, theirs[p], value)

    entry = f"blocks.{layer}.{RESID}" if layer < shape.layers else f"blocks.{layer - 1}.{RESID_OUT}"
    edits = {entry: put(source.resid[layer], -2)}
    if layer > 0:
        edits[f"blocks.{layer - 1}.{MLP}"] = put(source.mlp_out[layer - 1], -1)
        edits[f"blocks.{layer - 1}.{Z}"] = put(source.z[layer - 1], *range(shape.heads))
    with clean.model.editing(edits):
        logits = clean.model.logits(clean.ids[p], clean.mask[p])
    return logits.take_along_dim(clean.readout[p][..., None], dim=1)


def _check_patch(
    clean: CachedRun, source: CachedRun, sites: Sequence[Site], role_masks: Mapping[str, Tensor]
) -> None:
    shape, sizes = clean.model.shape, (tuple(source.z.shape), tuple(clean.z.shape))
    if sizes[0] != sizes[1]:
        raise BatchError(
            f"The source cannot be patched in: its z is {sizes[0]}, the clean run's {sizes[1]}. "
            "Record both as batches of one size, on models of one shape."
        )
    known = ("resid", "mlp", *range(shape.heads))
    for cell in sites:
        layers = range(shape.layers + (cell.component == "resid"))
        if cell.layer not in layers or cell.component not in known or cell.role not in role_masks:
            raise SiteError(
                f"{clean.model.name} cannot be patched at {cell}. Use a layer below {len(layers)}, "
                f"'resid', 'mlp' or a head below {shape.heads}, and a role of {', '.join(role_masks)}."
            )
