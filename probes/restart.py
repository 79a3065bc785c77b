"""Exact activation patching that computes only what a patch can change.

A patch at layer l and position p leaves every earlier layer and every earlier position as it was,
so a run restarts at the block after the patch, at the first patched position, with the keys and
values of the clean run before it; the last block and the unembedding run at the read-outs only.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probes.errors import BatchError, SiteError
from probes.model import Model

# Blocks that the tests prove to be the sum this file takes them for; others run in full.
PROVEN = frozenset({"GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM"})

# Tokens of one batch: enough to feed the matrix products, few enough to stay in a CPU's cache.
TOKENS = 1024

RESID_IN, Z, MLP_OUT = "hook_resid_pre", "attn.hook_z", "hook_mlp_out"
RESID, MLP = -2, -1
_CODE = {"resid": RESID, "mlp": MLP}

Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Cell:
    """One place to patch: a layer, a component in it, and the role that says at which positions.

    The component is "resid" (the residual stream that the block reads), "mlp" (what the MLP
    writes), or the number of a head (its `z`). "resid" at the layer after the last is the output.
    """

    layer: int
    component: str | int
    role: str


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
    _blocks: tuple["_Call", ...] = field(repr=False)

    def aligned(self, index: Int[Tensor, "prompt position"]) -> "Recording":
        """Move activations so that position p of prompt i holds what was at index[i, p]."""
        rows = _column(index)
        return replace(
            self,
            z=self.z[:, rows, index],
            mlp_out=self.mlp_out[:, rows, index],
            resid=self.resid[:, rows, index],
        )


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
    blocks = []

    def before(layer: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given, slot = _named(model.bridge.blocks[layer], args, kwargs)
        hidden = given.pop("hidden_states")
        blocks.append(_Call(given, slot, store := _Store()))
        return (hidden,), given | {slot: store}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda value: kept.update({name: value})

    last = f"blocks.{layers[-1]}.hook_resid_post"
    names = [f"blocks.{n}.{point}" for n in layers for point in (RESID_IN, Z, MLP_OUT)]
    proven = model.shape.architecture in PROVEN
    watching = model.calls(before) if proven else nullcontext()
    with model.editing({name: keep(name) for name in [*names, last]}), watching:
        logits = model.logits(ids, mask)
    return Recording(
        model=model,
        ids=ids,
        mask=mask,
        readout=readout,
        logits=logits[_column(ids), readout],
        z=torch.stack([kept[f"blocks.{n}.{Z}"] for n in layers]),
        mlp_out=torch.stack([kept[f"blocks.{n}.{MLP_OUT}"] for n in layers]),
        resid=torch.stack([*(kept[f"blocks.{n}.{RESID_IN}"] for n in layers), kept[last]]),
        _blocks=tuple(blocks),
    )


@torch.no_grad()
def patch(
    clean: Recording,
    source: Recording,
    cells: Sequence[Cell],
    where: Mapping[str, Bool[Tensor, "prompt position"]],
    measure: Measure,
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
    cell: Int[Tensor, " row"]
    prompt: Int[Tensor, " row"]
    component: Int[Tensor, " row"]
    """A head's number, or RESID or MLP."""
    changed: Bool[Tensor, "row position"]


@dataclass(frozen=True, eq=False)
class _Call:
    """How the clean run called one block, and the keys and values that it made there."""

    given: dict
    slot: str
    """The argument that takes a key/value cache."""
    store: "_Store"


class _Store:
    """Stand in for a key/value cache inside one block."""

    def __init__(self) -> None:
        self.keys = self.values = torch.empty(0)

    def update(self, keys: Tensor, values: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values
        return keys, values


class _Prefix(_Store):
    """Put a clean prefix before the keys and values that a block makes."""

    def __init__(self, clean: _Store, rows: _Rows, end: int) -> None:
        self.keys = clean.keys[rows.prompt, :, :end]
        self.values = clean.values[rows.prompt, :, :end]
        self.first = rows.first

    def update(self, keys: Tensor, values: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        self.keys[:, :, self.first :] = keys
        self.values[:, :, self.first :] = values
        return self.keys, self.values


class _Made(Exception):  # noqa: N818
    """Leave a block as soon as its keys and values are made."""


class _Stopping(_Prefix):
    def update(self, keys: Tensor, values: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        super().update(keys, values)
        raise _Made


class _Fixed(_Store):
    """Let new queries read keys and values that are complete already."""

    def __init__(self, whole: _Store) -> None:
        self.keys, self.values = whole.keys, whole.values

    def update(self, keys: Tensor, values: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


def _batches(
    clean: Recording, source: Recording, cells: Sequence[Cell], where: Mapping[str, Tensor]
) -> Iterator[_Rows]:
    device = clean.ids.device
    end = int(clean.readout.max()) + 1
    groups: dict[int, list[int]] = {}
    for number, cell in enumerate(cells):
        groups.setdefault(cell.layer + (cell.component != "resid"), []).append(number)
    for start, numbers in sorted(groups.items()):
        chosen = torch.stack([where[cells[n].role] for n in numbers])
        differs = torch.stack([_differs(clean, source, cells[n]) for n in numbers])
        changed = chosen & differs & _readable(clean, start)
        codes = [_CODE.get(c, c) for c in (cells[n].component for n in numbers)]
        index, code = torch.tensor([numbers, codes], device=device)
        group, prompt = changed.any(-1).nonzero(as_tuple=True)
        firsts = changed[group, prompt].int().argmax(-1)
        order = firsts.argsort(stable=True)
        done = 0
        while done < len(order):
            first = int(firsts[order[done]])
            some = order[done : done + max(1, TOKENS // (end - first))]
            g, p = group[some], prompt[some]
            yield _Rows(start, first, index[g], p, code[g], changed[g, p])
            done += len(some)


def _differs(clean: Recording, source: Recording, cell: Cell) -> Bool[Tensor, "prompt position"]:
    if isinstance(cell.component, int):
        ours, theirs = (r.z[cell.layer, :, :, cell.component] for r in (clean, source))
    else:
        ours, theirs = (
            (r.mlp_out if cell.component == "mlp" else r.resid)[cell.layer]
            for r in (clean, source)
        )
    return (ours != theirs).any(-1)


def _readable(clean: Recording, start: int) -> Bool[Tensor, "prompt position"]:
    """Positions where a change at the input of block `start` can reach a read-out."""
    position = torch.arange(clean.ids.shape[1], device=clean.ids.device)
    if start < clean.model.shape.layers:
        return position <= clean.readout.amax(-1, keepdim=True)
    return (position[None, :, None] == clean.readout[:, None, :]).any(-1)


def _restart(
    clean: Recording, source: Recording, rows: _Rows
) -> Float[Tensor, "row answer vocab"]:
    bridge, layers = clean.model.bridge, clean.model.shape.layers
    end = int(clean.readout.max()) + 1
    span = torch.arange(rows.first, end, device=clean.ids.device).expand(len(rows.prompt), -1)
    readout = clean.readout[rows.prompt]
    hidden = _enter(clean, source, rows, end)
    for layer in range(rows.start, layers - 1):
        prefix = _Prefix(clean._blocks[layer].store, rows, end)
        hidden = _block(clean, layer, (rows.prompt, span, hidden), prefix)
    seen = _at_readout(clean.resid[max(rows.start, layers - 1)], rows, hidden, readout)
    if rows.start < layers:
        whole = _Stopping(clean._blocks[-1].store, rows, end)
        with suppress(_Made):
            _block(clean, layers - 1, (rows.prompt, span, hidden), whole)
        seen = _block(clean, layers - 1, (rows.prompt, readout, seen), _Fixed(whole))
    logits = bridge.unembed(bridge.ln_final(seen))
    untouched = readout < rows.changed.int().argmax(-1, keepdim=True)
    return torch.where(untouched[..., None], clean.logits[rows.prompt], logits)


def _enter(
    clean: Recording, source: Recording, rows: _Rows, end: int
) -> Float[Tensor, "row position d_model"]:
    """What block `rows.start` reads from the first patched position on."""
    hidden = clean.resid[rows.start][rows.prompt, rows.first : end]
    row, at = rows.changed[:, rows.first : end].nonzero(as_tuple=True)
    prompt, position, component = rows.prompt[row], at + rows.first, rows.component[row]
    whole, part = component == RESID, component != RESID
    hidden[row[whole], at[whole]] = source.resid[rows.start][prompt[whole], position[whole]]
    if bool(part.any()):
        spots = (prompt[part], position[part], component[part])
        hidden[row[part], at[part]] = _leave(clean, source, rows.start - 1, spots)
    return hidden


def _leave(
    clean: Recording, source: Recording, layer: int, spots: tuple[Tensor, Tensor, Tensor]
) -> Float[Tensor, "spot d_model"]:
    """What a block writes where one head's z, or the MLP's output, is the source's."""
    prompt, position, component = spots
    block, parallel = clean.model.bridge.blocks[layer], clean.model.shape.parallel
    at, head = (prompt, position), component >= 0
    z = clean.z[layer][at]
    z[head, component[head]] = source.z[layer][prompt[head], position[head], component[head]]
    middle = clean.resid[layer][at] + block.attn.o(
        rearrange(z, "spot head d_head -> 1 spot (head d_head)")
    ).squeeze(0)
    mlp = source.mlp_out[layer][at]
    if parallel:
        mlp[head] = clean.mlp_out[layer][prompt[head], position[head]]
    elif bool(head.any()):
        mlp[head] = block.mlp(block.ln2(middle[head][None])).squeeze(0)
    return middle + mlp


def _at_readout(
    resid: Float[Tensor, "prompt position d_model"],
    rows: _Rows,
    hidden: Float[Tensor, "row from_first d_model"],
    readout: Int[Tensor, "row answer"],
) -> Float[Tensor, "row answer d_model"]:
    """Take the patched stream at the read-outs, the clean one at those before the patch."""
    reached = (readout >= rows.first)[..., None]
    patched = hidden[_column(hidden), (readout - rows.first).clamp(min=0)]
    return torch.where(reached, patched, resid[rows.prompt[:, None], readout])


def _block(
    clean: Recording, layer: int, of: tuple[Tensor, Tensor, Tensor], store: _Store
) -> Float[Tensor, "row position d_model"]:
    """Run a block for (prompt of each row, its positions, what it reads there)."""
    prompt, places, hidden = of
    call = clean._blocks[layer]
    length = clean.ids.shape[1]
    given = {name: _cut(value, prompt, places, length) for name, value in call.given.items()}
    out = clean.model.bridge.blocks[layer](
        hidden_states=hidden, **given, **{call.slot: store}
    )
    return out[0] if isinstance(out, tuple) else out


def _cut(
    value: object, prompt: Int[Tensor, " row"], places: Int[Tensor, "row position"], length: int
) -> object:
    """Take the rows and positions of one block argument: a mask, an angle, or neither."""
    if isinstance(value, tuple):
        return tuple(_cut(v, prompt, places, length) for v in value)
    if not isinstance(value, Tensor):
        return value
    row = (prompt if len(value) > 1 else torch.zeros_like(prompt))[:, None]
    if value.ndim == 4 and value.shape[2] == length:
        return value.expand(-1, 1, -1, -1)[row, 0, places][:, None]
    return value[row, places]


def _in_full(
    clean: Recording, source: Recording, rows: _Rows
) -> Float[Tensor, "row answer vocab"]:
    """Patch by a whole pass, for blocks that are not known to be a plain sum."""
    p, layer = rows.prompt, rows.start

    def put(kind: Tensor, theirs: Tensor) -> Callable[[Tensor], Tensor]:
        swap = rows.changed & kind[:, None]
        return lambda value: torch.where(swap[..., None], theirs[p], value)

    def put_z(value: Tensor) -> Tensor:
        swap = rows.component[:, None] == torch.arange(value.shape[2], device=value.device)
        swap = rows.changed[:, :, None] & swap[:, None, :]
        return torch.where(swap[..., None], source.z[layer - 1][p], value)

    point = f"blocks.{layer}.{RESID_IN}"
    if layer == clean.model.shape.layers:
        point = f"blocks.{layer - 1}.hook_resid_post"
    edits = {point: put(rows.component == RESID, source.resid[layer])}
    if layer > 0:
        mlp = put(rows.component == MLP, source.mlp_out[layer - 1])
        edits |= {f"blocks.{layer - 1}.{Z}": put_z, f"blocks.{layer - 1}.{MLP_OUT}": mlp}
    with clean.model.editing(edits):
        logits = clean.model.logits(clean.ids[p], clean.mask[p])
    return logits[_column(logits), clean.readout[p]]


def _named(block: nn.Module, args: tuple, kwargs: dict) -> tuple[dict, str]:
    """Give a block's arguments their names, and say which one takes the key/value cache."""
    names = inspect.signature(block.original_component.forward).parameters
    given = dict(zip(names, args, strict=False)) | kwargs
    slot = next(name for name in ("past_key_values", "layer_past") if name in names)
    return {name: value for name, value in given.items() if name != slot}, slot


def _column(rows: Tensor) -> Int[Tensor, "row 1"]:
    return torch.arange(len(rows), device=rows.device)[:, None]


def _check(
    clean: Recording, source: Recording, cells: Sequence[Cell], where: Mapping[str, Tensor]
) -> None:
    shape = clean.model.shape
    if clean.z.shape != source.z.shape:
        raise BatchError(
            f"The source cannot be patched in: its z has shape {tuple(source.z.shape)}, the clean "
            f"run's {tuple(clean.z.shape)}. Record both as batches of one size and one model."
        )
    for cell in cells:
        last = shape.layers if cell.component == "resid" else shape.layers - 1
        if not 0 <= cell.layer <= last:
            raise SiteError(f"No layer for {cell}: {clean.model.name} has 0 to {last}. Use one.")
        if cell.component not in ("resid", "mlp", *range(shape.heads)):
            raise SiteError(
                f"No component for {cell}: use 'resid', 'mlp' or a head from 0 to "
                f"{shape.heads - 1}."
            )
        if cell.role not in where:
            raise SiteError(f"No positions for {cell}: `where` holds {', '.join(where)}. Add it.")
