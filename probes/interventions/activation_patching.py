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
from probes.models.site import RESID, RESID_OUT, Cell

# Blocks that the tests prove to be the sum this file takes them for; others run in full.
PROVEN = frozenset({"GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM"})

# Tokens of one batch: enough to feed the matrix products, few enough to stay in a CPU's cache.
TOKENS = 2048

Z, MLP = "attn.hook_z", "hook_mlp_out"


@dataclass(frozen=True, eq=False)
class Recording:
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
    _blocks: tuple[tuple[dict, "_Store"], ...] = field(repr=False)

    def aligned(self, index: Int[Tensor, "prompt position"]) -> "Recording":
        """Move activations so that position p of prompt i holds what was at index[i, p]."""
        at = (slice(None), torch.arange(len(index), device=index.device)[:, None], index)
        return replace(self, z=self.z[at], mlp_out=self.mlp_out[at], resid=self.resid[at])

    def _of(self, cell: Cell) -> Float[Tensor, "prompt position feature"]:
        if isinstance(cell.component, int):
            return self.z[cell.layer, :, :, cell.component]
        return (self.mlp_out if cell.component == "mlp" else self.resid)[cell.layer]


@torch.no_grad()
def record(
    model: Model,
    ids: Int[Tensor, "prompt position"],
    mask: Bool[Tensor, "prompt position"],
    readout: Int[Tensor, "prompt answer"],
) -> Recording:
    """Run the model once; `readout` holds the positions whose logits are wanted."""
    layers = range(model.shape.layers)
    kept: dict[str, Tensor] = {}
    stores = [_Store() for _ in layers] if model.shape.architecture in PROVEN else []

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda value: kept.update({name: value})

    def every(point: str) -> Tensor:
        return torch.stack([kept[f"blocks.{n}.{point}"] for n in layers])

    names = [f"blocks.{n}.{point}" for n in layers for point in (RESID, Z, MLP, RESID_OUT)]
    with model.editing({name: keep(name) for name in names}), model.storing(stores) as calls:
        logits = model.logits(ids, mask)
    seen = logits.take_along_dim(readout[..., None], dim=1)
    resid = torch.cat([every(RESID), every(RESID_OUT)[-1:]])
    # A block that passed its store by would start again from nothing: whole passes, then.
    heeded = all(store.keys is not None for store in stores)
    blocks = tuple(zip(calls, stores, strict=True)) if heeded else ()
    return Recording(model, ids, mask, readout, seen, every(Z), every(MLP), resid, blocks)


@torch.no_grad()
def patch(
    clean: Recording,
    source: Recording,
    cells: Sequence[Cell],
    where: Mapping[str, Bool[Tensor, "prompt position"]],
    measure: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, "cell prompt measure"]:
    """Put the source's activation into the clean run, one cell at a time, and measure the logits.

    `measure` is given the logits at the read-outs ("row answer vocab") and, for each row, the
    number of its prompt. Rows that a patch cannot change hold the clean value to the last bit.
    """
    _check(clean, source, cells, where)
    plain = measure(clean.logits, torch.arange(len(clean.ids), device=clean.ids.device))
    result = plain[None].repeat(len(cells), 1, 1)
    run = _restart if clean._blocks else _in_full
    with clean.model.alone():
        for rows in _batches(clean, source, cells, where):
            result[rows.cell, rows.prompt] = measure(run(clean, source, rows), rows.prompt)
    return result


@dataclass(frozen=True, eq=False)
class _Rows:
    """Patched runs that restart at one block and one position, one after the other."""

    start: int
    """The first block whose input differs; the number of layers where only the output does."""
    first: int
    end: int
    cell: Int[Tensor, " row"]
    prompt: Int[Tensor, " row"]
    component: Int[Tensor, " row"]
    """A head's number, -1 for the MLP, -2 for the residual."""
    changed: Bool[Tensor, "row position"]


class _Store:
    """Stand in for a key/value cache inside one block, filled up to position `first`."""

    def __init__(self, *kept: Tensor, first: int = 0) -> None:
        self.keys, self.values = kept or (None, None)
        self.first, self.stop = first, False

    def update(
        self, keys: Tensor, values: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Answer a block that hands over its new keys and values."""
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
        elif self.first < self.keys.shape[2]:
            self.keys[:, :, self.first :] = keys
            self.values[:, :, self.first :] = values
        if self.stop:
            raise _Made
        return self.keys, self.values


class _Made(Exception):
    """Leave a block as soon as its keys and values are made."""


def _batches(
    clean: Recording, source: Recording, cells: Sequence[Cell], where: Mapping[str, Tensor]
) -> Iterator[_Rows]:
    end = int(clean.readout.max()) + 1
    groups: dict[int, list[int]] = {}
    for number, cell in enumerate(cells):
        groups.setdefault(cell.layer + (cell.component != "resid"), []).append(number)
    for start, numbers in sorted(groups.items()):
        some = [cells[n] for n in numbers]
        differs = torch.stack([(clean._of(c) != source._of(c)).any(-1) for c in some])
        changed = differs & torch.stack([where[c.role] for c in some]) & _readable(clean, start)
        codes = [{"mlp": -1, "resid": -2}.get(str(c.component), c.component) for c in some]
        index, code = torch.tensor([numbers, codes], device=clean.ids.device)
        group, prompt = changed.any(-1).nonzero(as_tuple=True)
        firsts = changed[group, prompt].int().argmax(-1)
        order = firsts.argsort(stable=True)
        while len(order):
            first = int(firsts[order[0]])
            now, order = order.tensor_split([max(1, TOKENS // (end - first))])
            g, p = group[now], prompt[now]
            yield _Rows(start, first, end, index[g], p, code[g], changed[g, p])


def _readable(clean: Recording, start: int) -> Bool[Tensor, "prompt position"]:
    """Positions where a change at the input of block `start` can reach a read-out."""
    position = torch.arange(clean.ids.shape[1], device=clean.ids.device)
    if start < clean.model.shape.layers:
        return position <= clean.readout.amax(-1, keepdim=True)
    return (position[:, None] == clean.readout[:, None]).any(-1)


def _restart(clean: Recording, source: Recording, rows: _Rows) -> Tensor:
    model, last = clean.model, clean.model.shape.layers - 1
    span = torch.arange(rows.first, rows.end, device=clean.ids.device)
    span, readout = span.expand(len(rows.prompt), -1), clean.readout[rows.prompt]

    def given(layer: int, places: Tensor) -> dict:
        calls = clean._blocks[layer][0]
        return {name: _cut(value, rows.prompt, places) for name, value in calls.items()}

    hidden = _enter(clean, source, rows)
    for layer in range(rows.start, last):
        hidden = model.block(layer, hidden, given(layer, span), _begun(clean, layer, rows))
    # A read-out before the patch is not reached: what stands for it here is dropped at the end.
    seen = hidden.take_along_dim((readout - rows.first).clamp(min=0)[..., None], dim=1)
    if rows.start <= last:
        # All positions must give keys and values here, but only the read-outs need the rest.
        (store := _begun(clean, last, rows)).stop = True
        with suppress(_Made):
            model.block(last, hidden, given(last, span), store)
        store.first, store.stop = rows.end, False
        seen = model.block(last, seen, given(last, readout), store)
    logits = model.bridge.unembed(model.bridge.ln_final(seen))
    reached = rows.changed.cumsum(-1) > 0 if rows.start <= last else rows.changed
    read = reached.take_along_dim(readout, dim=1)[..., None]
    return torch.where(read, logits, clean.logits[rows.prompt])


def _begun(clean: Recording, layer: int, rows: _Rows) -> _Store:
    kept = clean._blocks[layer][1]
    cut = (t[rows.prompt, :, : rows.end] for t in (kept.keys, kept.values) if t is not None)
    return _Store(*cut, first=rows.first)


def _enter(clean: Recording, source: Recording, rows: _Rows) -> Tensor:
    """What block `rows.start` reads from the first patched position on."""
    hidden = clean.resid[rows.start][rows.prompt, rows.first : rows.end]
    row, at = rows.changed[:, rows.first : rows.end].nonzero(as_tuple=True)
    prompt, position, component = rows.prompt[row], at + rows.first, rows.component[row]
    part = component != -2
    hidden[row, at] = source.resid[rows.start][prompt, position]
    if bool(part.any()):
        spots = torch.stack([prompt, position, component])[:, part]
        hidden[row[part], at[part]] = _leave(clean, source, rows.start - 1, spots)
    return hidden


def _leave(clean: Recording, source: Recording, layer: int, spots: Tensor) -> Tensor:
    """What a block writes where one head's z, or the MLP's output, is the source's."""
    prompt, position, component = spots
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


def _cut(value: Any, prompt: Int[Tensor, " row"], places: Int[Tensor, "row position"]) -> Any:  # noqa: ANN401
    """Take the rows and positions of one block argument: a mask, an angle, or neither."""
    if isinstance(value, tuple):
        return tuple(_cut(v, prompt, places) for v in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    row = (prompt if len(value) > 1 else 0 * prompt)[:, None]
    return value[row, 0, places][:, None] if value.ndim == 4 else value[row, places]


def _in_full(clean: Recording, source: Recording, rows: _Rows) -> Tensor:
    """Patch by a whole pass, for blocks that are not known to be a plain sum."""
    p, layer, shape = rows.prompt, rows.start, clean.model.shape

    def put(theirs: Tensor, *component: int) -> Callable[[Tensor], Tensor]:
        wanted = rows.component[:, None] == torch.tensor(component, device=p.device)
        swap = rows.changed[:, :, None] & wanted[:, None]
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


def _check(
    clean: Recording, source: Recording, cells: Sequence[Cell], where: Mapping[str, Tensor]
) -> None:
    shape, sizes = clean.model.shape, (tuple(source.z.shape), tuple(clean.z.shape))
    if sizes[0] != sizes[1]:
        raise BatchError(
            f"The source cannot be patched in: its z is {sizes[0]}, the clean run's {sizes[1]}. "
            "Record both as batches of one size, on models of one shape."
        )
    known = ("resid", "mlp", *range(shape.heads))
    for cell in cells:
        layers = range(shape.layers + (cell.component == "resid"))
        if cell.layer not in layers or cell.component not in known or cell.role not in where:
            raise SiteError(
                f"{clean.model.name} cannot be patched at {cell}. Use a layer below {len(layers)}, "
                f"'resid', 'mlp' or a head below {shape.heads}, and a role of {', '.join(where)}."
            )
