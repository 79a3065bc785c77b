"""Exact activation patching that recomputes only what a patch can change.

A patch at layer l and position p leaves earlier layers and positions unchanged. A patched run
therefore restarts at the block after the patch, at the first patched position, with the keys and
values of the clean run. The last block and the unembedding run at the read-outs only.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import ModelError, ProbeError
from probes.interventions.cached_run import (
    MLP,
    BlockCache,
    CachedRun,
    Z,
    record_in_parts,
    record_run,
    require_patchable,
    run_patches,
)
from probes.models.acceptance import LOGIT_TOLERANCE
from probes.models.files.memory import is_out_of_memory
from probes.models.model import Model
from probes.models.run_checks import require_unedited
from probes.models.site import RESID, RESID_OUT, Site
from probes.prompts.tokens.batch import Batch

# Tokens of one batch: fills the matrix products and stays within a CPU's cache.
TOKENS_PER_BATCH = 2048

_RESTART = "restarts"
_CHECKED_TOKENS = 5


def run_with_cache(
    model: Model,
    ids: Int[Tensor, "prompt position"],
    mask: Bool[Tensor, "prompt position"],
    readout: Int[Tensor, "prompt answer"],
) -> CachedRun:
    """Run the model once; `readout` holds the positions whose logits are kept.

    Warns where patched runs of the model cannot restart, and are whole passes.

    Raises:
        ModelError: The model is being edited.
    """
    require_unedited(model)
    if (problem := restart_problem(model)) is not None:
        warnings.warn(
            f"Activation patching of {model.name} ({model.shape.architecture}) is slow: each patch "
            f"is a whole pass, because its blocks cannot restart ({problem})",
            stacklevel=2,
        )
    return record_run(model, ids, mask, readout, for_restarts=problem is None)


def restart_problem(model: Model) -> str | None:
    """Why a run of a model cannot restart at a block inside its prompts; None where it can."""
    if _RESTART not in model.passed_checks and _RESTART not in model.failed_checks:
        try:
            _check_restarts(model)
            model.passed_checks.add(_RESTART)
        except (ProbeError, *_NO_RESTART) as error:
            if is_out_of_memory(error):
                raise  # It says nothing about the blocks.
            model.failed_checks[_RESTART] = str(error) or type(error).__name__
    return model.failed_checks.get(_RESTART)


# What modules raise that are not made of attention and MLP, or keep a state of their own.
_NO_RESTART = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError)


@torch.no_grad()
def _check_restarts(model: Model) -> None:
    """Compare patched runs that restart with whole passes, on a few random tokens.

    Raises:
        ModelError: They differ.
    """
    shape, device = model.shape, model.device
    length = min(_CHECKED_TOKENS, shape.context)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.d_vocab, (2, length), generator=draw).to(device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 0] = length == 1  # Padding, where there is room for it.
    at = torch.full((2, 1), length - 1, device=device)
    role = torch.zeros_like(mask)
    role[:, length // 2] = True
    clean, source = (
        record_run(model, (ids + step) % shape.d_vocab, mask, at, for_restarts=True)
        for step in (0, 1)
    )
    plain = model.logits(ids, mask, at)
    allowed = LOGIT_TOLERANCE[model.dtype] * max(1.0, float(plain.abs().max()))
    pairs = [(clean.logits, plain)]
    middle = Site(shape.layers // 2, "mlp", "")
    sites = [Site(0, "resid", ""), Site(0, shape.heads - 1, ""), middle]
    for batch in _patch_batches(clean, source, sites, {"": role}):
        restarted, whole = (run(clean, source, batch) for run in (_run_restarted, _run_in_full))
        pairs.append((restarted, whole))
    gap = max(float((one - other).abs().max()) for one, other in pairs)
    if not gap <= allowed:
        raise ModelError(f"logits of restarted runs differ by {gap:.1e}, {allowed:.1e} allowed")


def run_batch_with_cache(
    model: Model, batch: Batch, rows: Int[Tensor, " row"] | None = None
) -> CachedRun:
    """Run a batch once, in parts where memory runs out, or some of its prompts at once."""
    given = (batch.ids, batch.mask, batch.positions)

    def run(rows: Int[Tensor, " row"]) -> CachedRun:
        return run_with_cache(model, *(each[rows].to(model.device) for each in given))

    if rows is not None:
        return run(rows)
    return record_in_parts(model, run, *batch.ids.shape)


@torch.no_grad()
def patch_sites(
    clean: CachedRun,
    source: CachedRun,
    sites: Sequence[Site],
    role_masks: Mapping[str, Bool[Tensor, "prompt position"]],
    measure: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, "site prompt *measure"]:
    """Replace the clean run's activation by the source's, one site at a time.

    Args:
        clean: Run to patch.
        source: Run of the same size whose positions correspond to the clean ones.
        sites: Where to patch.
        role_masks: Positions of each role.
        measure: Maps logits at the read-outs ("row answer vocab") and each row's prompt index to
            "row *measure".

    Returns:
        Measures of the patched runs; bit-equal to the clean run where a patch has no effect.

    Raises:
        SiteError: A site or role does not exist.
        BatchError: The runs differ in size.
    """
    require_patchable(clean, source, sites, role_masks)
    clean_measures = measure(clean.logits, torch.arange(len(clean.ids), device=clean.ids.device))
    result = clean_measures.expand(len(sites), *clean_measures.shape).clone()
    run = _run_restarted if clean.restarts else _run_in_full
    with clean.model.locked():
        for batch in _patch_batches(clean, source, sites, role_masks):

            def patch(rows: Tensor, batch: _PatchBatch = batch) -> None:
                part = batch.select(rows)
                measured = measure(run(clean, source, part), part.prompt)
                result[part.site_index, part.prompt] = measured

            run_patches(clean, patch, len(batch.prompt), batch.end_position - batch.first_position)
    return result


@dataclass(frozen=True, eq=False)
class _PatchBatch:
    """Patched runs that restart at one block and one position."""

    start_block: int
    """First block whose input differs; the number of layers where only the output does."""
    first_position: int
    end_position: int
    site_index: Int[Tensor, " row"]
    prompt: Int[Tensor, " row"]
    component: Int[Tensor, " row"]
    """Head, -1 for the MLP, -2 for the residual stream."""
    changed: Bool[Tensor, "row position"]

    def select(self, rows: Int[Tensor, " row"]) -> "_PatchBatch":
        """Some of the runs."""
        names = ("site_index", "prompt", "component", "changed")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def _patch_batches(
    clean: CachedRun, source: CachedRun, sites: Sequence[Site], role_masks: Mapping[str, Tensor]
) -> Iterator[_PatchBatch]:
    end = int(clean.readout.max()) + 1
    groups: dict[int, list[int]] = {}
    for number, site in enumerate(sites):
        groups.setdefault(site.layer + (site.component != "resid"), []).append(number)
    for start, numbers in sorted(groups.items()):
        group_sites = [sites[n] for n in numbers]
        differs = torch.stack(
            [(clean.activation(s) != source.activation(s)).any(-1) for s in group_sites]
        )
        in_role = torch.stack([role_masks[site.role] for site in group_sites])
        changed = differs & in_role & _reaches_readout(clean, start)
        codes = [{"mlp": -1, "resid": -2}.get(str(s.component), s.component) for s in group_sites]
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
    """Positions where a change at a block's input can reach a read-out."""
    position = torch.arange(clean.ids.shape[1], device=clean.ids.device)
    if start_block < clean.model.shape.layers:
        return position <= clean.readout.amax(-1, keepdim=True)
    return (position[:, None] == clean.readout[:, None]).any(-1)


def _run_restarted(clean: CachedRun, source: CachedRun, batch: _PatchBatch) -> Tensor:
    model, last = clean.model, clean.model.shape.layers - 1
    span, readout = (batch.first_position, batch.end_position), clean.readout[batch.prompt]
    hidden = _block_input(clean, source, batch)
    hidden = clean.run_blocks(range(batch.start_block, last), batch.prompt, span, hidden)
    # A read-out before the first position is unchanged; its values here are discarded below.
    readout_hidden = hidden.take_along_dim(
        (readout - batch.first_position).clamp(min=0)[..., None], dim=1
    )
    if batch.start_block <= last:
        # Every position contributes keys and values, but only the read-outs need the output.
        cache = clean.cache_before(last, batch.prompt, span)
        later = torch.arange(*span, device=clean.ids.device).expand(len(batch.prompt), -1)
        at_span, at_readout = (
            clean.block_arguments(last, batch.prompt, positions, batch.end_position)
            for positions in (later, readout)
        )
        cache.fill(model, last, hidden, at_span)
        readout_hidden = model.run_block(last, readout_hidden, at_readout, cache)
    logits = model.unembed(readout_hidden)
    reached = batch.changed.cumsum(-1) > 0 if batch.start_block <= last else batch.changed
    read = reached.take_along_dim(readout, dim=1)[..., None]
    return torch.where(read, logits, clean.logits[batch.prompt])


def _block_input(clean: CachedRun, source: CachedRun, batch: _PatchBatch) -> Tensor:
    """Input of the start block from the first patched position on."""
    hidden = clean.resid[batch.start_block][batch.prompt, batch.first_position : batch.end_position]
    row, at = batch.changed[:, batch.first_position : batch.end_position].nonzero(as_tuple=True)
    prompt, position, component = batch.prompt[row], at + batch.first_position, batch.component[row]
    part = component != -2
    hidden[row, at] = source.resid[batch.start_block][prompt, position]
    if bool(part.any()):
        points = torch.stack([prompt, position, component])[:, part]
        hidden[row[part], at[part]] = _block_output(clean, source, batch.start_block - 1, points)
    return hidden


def _block_output(clean: CachedRun, source: CachedRun, layer: int, points: Tensor) -> Tensor:
    """Output of a block with one head's z, or the MLP's output, from the source.

    The block runs at the points alone. What it attends to does not matter, because z is given.
    """
    prompt, position, component = points
    at, head = (prompt, position), component >= 0
    z, mlp_out = clean.z[layer][at], source.mlp_out[layer][at]
    z[head, component[head]] = source.z[layer][prompt[head], position[head], component[head]]
    edits = {
        f"blocks.{layer}.{Z}": lambda _: z[:, None],
        f"blocks.{layer}.{MLP}": lambda out: torch.where(
            head[:, None, None], out, mlp_out[:, None]
        ),
    }
    given = clean.block_arguments(layer, prompt, position[:, None], keys=1)
    with clean.model.hooked(edits):
        resid = clean.resid[layer][at][:, None]
        return clean.model.run_block(layer, resid, given, BlockCache())[:, 0]


def _run_in_full(clean: CachedRun, source: CachedRun, batch: _PatchBatch) -> Tensor:
    """Patch in a whole forward pass, for models whose blocks cannot restart."""
    p, layer, shape = batch.prompt, batch.start_block, clean.model.shape

    def replacing(values: Tensor, *component: int) -> Callable[[Tensor], Tensor]:
        wanted = batch.component[:, None] == torch.tensor(component, device=p.device)
        swap = batch.changed[:, :, None] & wanted[:, None]
        # z has an axis of heads, which the other activations lack.
        swap = swap[..., None] if values.ndim == 4 else swap
        return lambda value: torch.where(swap, values[p], value)

    entry = f"blocks.{layer}.{RESID}" if layer < shape.layers else f"blocks.{layer - 1}.{RESID_OUT}"
    edits = {entry: replacing(source.resid[layer], -2)}
    if layer > 0:
        edits[f"blocks.{layer - 1}.{MLP}"] = replacing(source.mlp_out[layer - 1], -1)
        edits[f"blocks.{layer - 1}.{Z}"] = replacing(source.z[layer - 1], *range(shape.heads))
    with clean.model.editing(edits):
        return clean.model.logits(clean.ids[p], clean.mask[p], clean.readout[p])
