"""Runs in which chosen edges carry the clean run's values, and all others a replacement's.

What reader v sees when the edges C are kept (Hanna et al. 2024, 2403.17806, eq. 2, made sparse):

    x_v = sum over u of (a_u if u→v is kept, else r_u)        a_u: recomputed, r_u: replacement
        = x'_v + sum over kept u of (a_u - r_u)               x'_v: all edges replaced

So a run begins with x', adds what the kept edges bring, and leaves out every part that no kept
edge changes; where most edges are kept it begins with the clean run instead, and takes away what
the cut edges carried. Circuits share both runs, and several go through one pass.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.circuits.graph import Wiring
from probes.circuits.reference_runs import Stage, carried
from probes.errors import CircuitError
from probes.models.decoder import attend, turn

# Floats of the writers' changes in one pass: enough for the matrix products, few enough for RAM.
_BUDGET = 1 << 25
# Floats of one writer's changes up to which circuits share a pass: beyond, sharing saves nothing.
_SMALL = 1 << 18


@torch.no_grad()
def run(
    stage: Stage,
    kept: Bool[Tensor, "circuit edge"],
    *,
    cut: Bool[Tensor, "circuit edge"] | None = None,
    begin: Literal["auto", "clean", "replaced"] = "auto",
) -> Float[Tensor, "circuit prompt"]:
    """Return the lead (logits) of every prompt when only the kept edges carry clean values.

    All other edges are cut, and carry their replacement. Beginning with the clean run, `cut` may
    name fewer: an edge that is neither kept nor cut carries what it does in the clean run, come
    what may before it.
    """
    for marked in (kept, kept if cut is None else cut):
        if marked.shape != (len(kept), len(stage.wiring)):
            raise CircuitError(
                f"Edges were marked as {tuple(marked.shape)}, and {len(kept)} circuits of "
                f"{len(stage.wiring)} edges are wanted: mark edges by this stage's wiring"
            )
    if begin not in ("auto", "clean", "replaced") or (cut is not None and begin != "clean"):
        raise CircuitError(
            f"A run cannot begin {begin!r}: use 'auto', 'clean' or 'replaced', and 'clean' where "
            "the cut edges are named"
        )
    kept = kept.to(stage.model.device)
    cut = ~kept if cut is None else cut.to(stage.model.device)
    few = 2 * kept.sum(1) <= kept.shape[1]
    if begin != "auto" or not stage.replaced.settled:
        # Means and zeros leave residuals so small that taking much away loses their digits.
        few = torch.full_like(few, begin != "clean")
    each = (stage.entry.embed.shape[1] - stage.first) * stage.model.shape.d_model
    together = max(1, _SMALL // (each * len(stage.task)))
    result = torch.empty(len(kept), len(stage.task), device=stage.model.device)
    for replaced in (True, False):
        numbers = (few == replaced).nonzero()[:, 0]
        for rows in numbers.split(together) if len(numbers) else ():
            step = max(1, _BUDGET // (len(rows) * len(stage.wiring.writers) * each))
            for start in range(0, len(stage.task), step):
                part = slice(start, min(start + step, len(stage.task)))
                found = _Pass(stage, kept[rows], cut[rows], part, replaced=replaced).leads()
                result[rows, part] = found.float()
    return result


class _Pass:
    """One pass of some circuits over some prompts: what changed so far, writer by writer."""

    def __init__(
        self, stage: Stage, kept: Tensor, cut: Tensor, part: slice, *, replaced: bool
    ) -> None:
        self.stage, self.kept, self.part = stage, kept, part
        self.side = stage.replaced if replaced else stage.clean
        self.shape, self.wiring = stage.model.shape, stage.wiring
        task, device = stage.task, stage.model.device
        self.span = slice(stage.first, None)
        self.readout = task.readout[part] - stage.first
        angles = stage.entry.angles
        self.angles = None if angles is None else (self._cut(angles[0]), self._cut(angles[1]))
        roles = task.role_of[part, self.span].flatten()
        known = range(len(self.wiring.roles))
        self.spots = [(roles == role).nonzero()[:, 0] for role in known]
        self.places: Sequence[Tensor | slice] = self.spots or [slice(None)]
        self.masks = _masks(self.wiring, kept)
        self.cuts = self.masks if replaced else _masks(self.wiring, cut)
        self.sources = _needed(self.wiring, self.masks)
        self.changed: list[int] = []
        size = (len(kept), int(self.sources.sum()), *self._cut(self.side.embed).shape)
        self.buffer = torch.empty(size, device=device, dtype=stage.model.dtype)
        self.lost, self.missing = ([], self.buffer[0, :0]) if replaced else self._missing()

    def leads(self) -> Float[Tensor, "circuit prompt"]:
        """Go through all layers."""
        if self.side is self.stage.replaced and self.sources[0]:
            self._note(0, self._cut(self.stage.clean.embed - self.side.embed))
        for layer in range(self.shape.layers):
            self._attention(layer)
            self._mlp(layer)
        return self._score()

    def _cut(self, value: Tensor) -> Tensor:
        return value[self.part, self.span]

    def _note(self, writer: int, change: Tensor) -> None:
        self.buffer[:, len(self.changed)] = change
        self.changed.append(writer)

    def _missing(self) -> tuple[list[int], Tensor]:
        """List what cut edges no longer carry, for the writers that have any and differ."""
        cut = torch.zeros(len(self.wiring.writers), dtype=torch.bool)
        for mask in self.cuts:
            cut[: mask.shape[-1]] |= mask.flatten(0, -2).any(0).cpu()
        found = {w: self._cut(carried(self.stage, w)) for w in cut.nonzero()[:, 0].tolist()}
        found = {writer: change for writer, change in found.items() if bool(change.any())}
        return list(found), torch.stack([*found.values()]) if found else self.buffer[0, :0]

    def _read(self, number: int, base: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sum what rows of readers see: the rows' groups of equal masks, and each group's input.

        Group -1 sees what the run to begin with sees.
        """
        mask = self.masks[number]  # circuit place row writer
        seen = mask.shape[-1]
        live = sum(writer < seen for writer in self.changed)  # they stand in order
        keep = mask[..., self.changed[:live]]
        lost = sum(writer < seen for writer in self.lost)
        drop = self.cuts[number][..., self.lost[:lost]]
        both = torch.cat([keep, drop], -1).permute(2, 0, 1, 3)
        if not bool(both.any()):
            return torch.full((len(both),), -1), None
        distinct, group = both.flatten(1).unique(dim=0, return_inverse=True)
        active = distinct.any(1)
        order = torch.where(active, active.cumsum(0) - 1, -1)
        weights = distinct[active].unflatten(1, both.shape[1:]).permute(1, 2, 0, 3).to(base.dtype)
        total = base.expand(len(mask), weights.shape[2], *base.shape).clone()
        flat = total.view(*total.shape[:2], -1, base.shape[-1])
        for place, spots in enumerate(self.places):
            here = weights[:, place]
            for some, values in (
                (here[..., :live], self.buffer[:, :live]),
                (here[..., live:], self.missing[None, :lost]),
            ):
                if bool(some.any()):
                    values = values.flatten(2, 3)[:, :, spots]
                    added = some @ values.flatten(2)
                    flat[:, :, spots] += added.unflatten(-1, values.shape[2:])
        return order[group], total

    def _attention(self, layer: int) -> None:
        shape, side = self.shape, self.side
        base = self._cut(side.run.pre[layer])
        group, total = self._read(2 * layer, base)
        first = 1 + layer * (shape.heads + 1)
        wanted = self.sources[first : first + shape.heads].nonzero()[:, 0].tolist()
        dests = max(1, len(self.wiring.roles))
        q, k, v = group.split([shape.heads, shape.kv_heads * dests, shape.kv_heads * dests])
        k, v = (t.view(shape.kv_heads, dests) for t in (k, v))
        each = shape.heads // shape.kv_heads
        live = [
            h
            for h in wanted
            if q[h] >= 0 or bool((k[h // each] >= 0).any()) or bool((v[h // each] >= 0).any())
        ]
        parts, z = self.stage.anatomy.layers[layer], self.buffer
        if total is not None and live:
            z = self._heads(layer, live, (q, k, v), parts.attn_norm(total))
        before, still = self._cut(side.z[layer]), self._cut(side.run.z[layer])
        for head in wanted:
            if head in live or not side.settled:
                made = z[..., live.index(head), :] if head in live else still[..., head, :]
                self._note(first + head, (made - before[..., head, :]) @ parts.o[head])

    def _heads(
        self, layer: int, live: list[int], groups: tuple[Tensor, ...], normed: Tensor
    ) -> Tensor:
        """Return z "circuit prompt position head d_head" of the live heads."""
        parts, run = self.stage.anatomy.layers[layer], self.side.run
        each = self.shape.heads // self.shape.kv_heads
        allowed = self.stage.entry.allowed[self.part, self.span]
        owner = [head // each for head in live]
        q = self._project(layer, "q", normed, groups[0], live)
        if not self.wiring.roles:
            k = self._project(layer, "k", normed, groups[1][:, 0], owner)
            v = self._project(layer, "v", normed, groups[2][:, 0], owner)
            return attend(q, k, v, allowed, parts.scale)
        size = (len(self.kept), -1, -1, -1, -1)
        k, v = (value[layer][self.part][..., owner, :].expand(size) for value in (run.k, run.v))
        z = attend(q, k, v, allowed, parts.scale)
        for role, spots in enumerate(self.spots):
            changed = (groups[1][owner, role] >= 0) | (groups[2][owner, role] >= 0)
            some = changed.nonzero()[:, 0].tolist()
            if len(spots) == 0 or not some:
                continue
            # What these positions read was changed for them alone.
            mine = [owner[slot] for slot in some]
            k = self._project(layer, "k", normed, groups[1][:, role], mine)
            v = self._project(layer, "v", normed, groups[2][:, role], mine)
            prompt, position = spots // z.shape[2], spots % z.shape[2]
            asked, mask = q[:, prompt, position].unsqueeze(2), allowed[prompt, position][:, None]
            here = attend(asked[..., some, :], k[:, prompt], v[:, prompt], mask, parts.scale)
            z[:, prompt[:, None], position[:, None], torch.tensor(some)] = here.squeeze(2)
        return z

    def _project(
        self, layer: int, port: str, normed: Tensor, group: Tensor, heads: list[int]
    ) -> Tensor:
        """Make q, k or v of some heads from each one's own input; k and v from all positions."""
        parts = self.stage.anatomy.layers[layer]
        part = getattr(self.side.run, port)[layer][self.part][..., heads, :]
        span = slice(None) if port == "q" else self.span
        part = part[:, self.span] if port == "q" else part
        found = part.expand(len(self.kept), *part.shape).clone()
        numbers = [int(group[head]) for head in heads]
        for number in sorted({n for n in numbers if n >= 0}):
            slots = [slot for slot, n in enumerate(numbers) if n == number]
            made = parts.project(port, normed[:, number], [heads[slot] for slot in slots])
            turned = made if port == "v" else turn(made, self.angles)
            found[:, :, span, slots] = turned
        return found

    def _mlp(self, layer: int) -> None:
        side, writer = self.side, (layer + 1) * (self.shape.heads + 1)
        if not self.sources[writer]:
            return
        base = self._cut(side.run.mid[layer])
        _, total = self._read(2 * layer + 1, base)
        before = self._cut(side.mlp_out[layer])
        if total is not None:
            parts = self.stage.anatomy.layers[layer]
            made = parts.mlp(parts.mlp_norm(total[:, 0]).flatten(0, 1)).view_as(total[:, 0])
            self._note(writer, made - before)
        elif not side.settled:
            self._note(writer, self._cut(side.run.mlp_out[layer]) - before)

    def _score(self) -> Tensor:
        at = torch.arange(len(self.readout), device=self.readout.device)
        _, total = self._read(2 * self.shape.layers, self._cut(self.side.run.last))
        if total is None:
            total = self._cut(self.side.run.last)[None, None]
        anatomy, task = self.stage.anatomy, self.stage.task[self.part]
        logits = anatomy.unembed(anatomy.final(total[:, 0][:, at, self.readout]))
        leads = torch.stack([task.lead(row) for row in logits])
        return leads.expand(len(self.kept), -1)


def _masks(wiring: Wiring, kept: Tensor) -> list[Tensor]:
    """Lay kept edges out as "circuit place row writer", for attention and MLP by turns."""
    table = torch.from_numpy(wiring.table).to(kept.device)
    places = max(1, len(wiring.roles))
    found = []
    for begin, end in _stretches(wiring):
        edges = slice(int(wiring.starts[begin]), int(wiring.starts[end]))
        source, target, here, there = table[:, edges]
        rows = torch.zeros_like(target)
        size = 0
        for reader in range(begin, end):
            spread = places if wiring.port(reader) in ("k", "v") else 1
            mine = target == reader
            rows[mine] = size + (there[mine] if spread > 1 else 0)
            size += spread
        mask = kept.new_zeros(len(kept), places, size, wiring.seen(begin))
        mask[:, here, rows, source] = kept[:, edges]
        found.append(mask)
    return found


def _stretches(wiring: Wiring) -> Iterator[tuple[int, int]]:
    """Yield the readers that read one residual together: attention, MLP, …, logits."""
    per = wiring.per_layer
    for layer in range(wiring.layers):
        yield layer * per, (layer + 1) * per - 1
        yield (layer + 1) * per - 1, (layer + 1) * per
    yield wiring.layers * per, wiring.layers * per + 1


def _needed(wiring: Wiring, masks: Sequence[Tensor]) -> Bool[Tensor, " writer"]:
    """Say which writers reach the logits through kept edges of some circuit."""
    needed = torch.zeros(len(wiring.writers), dtype=torch.bool)
    places = max(1, len(wiring.roles))
    for (begin, end), mask in reversed(list(zip(_stretches(wiring), masks, strict=True))):
        used = mask.any(0).any(0).cpu()  # row writer
        row = 0
        for reader in range(begin, end):
            spread = places if wiring.port(reader) in ("k", "v") else 1
            owners = wiring.owners(reader)
            if not owners or bool(needed[list(owners)].any()):
                needed[: used.shape[1]] |= used[row : row + spread].any(0)
            row += spread
    return needed
