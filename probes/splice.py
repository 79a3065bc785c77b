"""Runs in which chosen edges carry the clean run's values, and all others a replacement's.

What reader v sees when the edges C are kept (Hanna et al. 2024, 2403.17806, eq. 2, made sparse):

    x_v = sum over u of (a_u if u→v is kept, else r_u)        a_u: recomputed, r_u: replacement
        = x'_v + sum over kept u of (a_u - r_u)               x'_v: all edges replaced

So a run begins with x', adds what the kept edges bring, and leaves out every part that no kept
edge changes; where most edges are kept it begins with the clean run instead, and takes away what
the cut edges carried. Circuits share both runs, and several go through one pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from probes.anatomy import Anatomised, Anatomy, Entry, agree, attend, dissect, enter, rebuild, turn
from probes.errors import BatchError, CircuitError, ModelError
from probes.model import Model
from probes.tasks import Task
from probes.wiring import Wiring

Ablation = Literal["counterfactual", "mean", "zero"]

# Floats of the writers' changes in one pass: enough for the matrix products, few enough for RAM.
_BUDGET = 1 << 25
# Floats of one writer's changes up to which circuits share a pass: beyond, sharing saves nothing.
_SMALL = 1 << 18


@dataclass(frozen=True, eq=False)
class Side:
    """A run to begin with.

    Attributes:
        run: The residuals that its parts read, and what they make of them.
        embed, z, mlp_out: What its edges carry; other than what `run` makes where edges carry
            means or zeros.
    """

    run: Anatomised
    embed: Tensor
    z: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]

    @property
    def settled(self) -> bool:
        """Whether its edges carry just what its parts make."""
        return self.z is self.run.z


@dataclass(frozen=True, eq=False)
class Stage:
    """Everything that circuits of one model and task share.

    Attributes:
        wiring: What the kept edges' numbers mean.
        clean, replaced: All edges kept, and none.
        leads: The clean run's lead (logits).
        floor: The lead with every edge replaced.
        first: The position before which nothing differs.
    """

    model: Model
    task: Task
    wiring: Wiring
    ablation: Ablation
    anatomy: Anatomy
    entry: Entry
    clean: Side
    replaced: Side
    first: int
    leads: Float[Tensor, " prompt"]
    floor: Float[Tensor, " prompt"]


@torch.no_grad()
def stage(
    model: Model,
    task: Task,
    *,
    roles: bool = False,
    ablation: Ablation = "counterfactual",
    reference: Task | None = None,
) -> Stage:
    """Run a task's clean and counterfactual prompts once, for all circuits to come.

    Args:
        model: A decoder whose blocks are plain sums of heads and MLP.
        task: What to run.
        roles: Whether kept edges are resolved by roles.
        ablation: What a cut edge carries: its counterfactual value, its mean over the
            counterfactuals of `reference` at tokens of the same role, or zero.
        reference: The prompts to take means over; the task itself by default.

    Raises:
        ModelError: The blocks are other sums, the model is in training mode, or a run breaks.
        BatchError: The reference lacks a role of the task.
    """
    if ablation not in ("counterfactual", "mean", "zero"):
        raise CircuitError(
            f"The ablation {ablation!r} is unknown: use 'counterfactual', 'mean' or 'zero'"
        )
    refuse_training(model)
    anatomy, task = dissect(model), task.to(model)
    entry, clean = _run(model, anatomy, task, task.clean)
    own = Side(clean, clean.embed, clean.z, clean.mlp_out)
    first = task.first if ablation == "counterfactual" else 0
    if ablation == "counterfactual":
        _, other = _run(model, anatomy, task, task.counterfactual)
        replaced = Side(other, other.embed, other.z, other.mlp_out)
    else:
        replaced = _carrying(own, anatomy, entry, _constant(model, anatomy, task, own, ablation, reference))
    found = Stage(
        model,
        task,
        task.wiring(model, roles=roles),
        ablation,
        anatomy,
        entry,
        own,
        replaced,
        min(first, int(task.readout.min())),
        task.lead(entry.logits),
        task.lead(entry.logits),
    )
    nothing = torch.zeros(1, len(found.wiring), dtype=torch.bool)
    return replace(found, floor=run(found, nothing, begin="replaced")[0])


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
    if kept.shape[1] != len(stage.wiring):
        raise CircuitError(
            f"{kept.shape[1]} edges were marked, and the wiring has {len(stage.wiring)}: mark "
            "edges by the numbers of this stage's wiring"
        )
    kept, prompts = kept.to(stage.model.device), len(stage.task)
    cut = ~kept if cut is None else cut.to(stage.model.device)
    each = (stage.entry.embed.shape[1] - stage.first) * stage.model.shape.d_model
    together = max(1, _SMALL // (each * prompts))
    result = torch.empty(len(kept), prompts, device=stage.model.device)
    writers = len(stage.wiring.writers)
    for rows in torch.arange(len(kept)).split(together):
        some = kept[rows]
        few = 2 * int(some.sum()) <= some.numel()
        side = {"auto": few, "clean": False, "replaced": True}[begin]
        step = max(1, _BUDGET // (len(rows) * writers * each))
        for start in range(0, prompts, step):
            part = slice(start, min(start + step, prompts))
            result[rows, part] = _Pass(stage, some, cut[rows], part, replaced=side).leads()
    return result


def refuse_training(model: Model) -> None:
    """Refuse a model with dropout on: two runs of it cannot be compared."""
    if any(module.training for module in model.bridge.modules()):
        raise ModelError(
            f"{model.name} is in training mode, found by its modules: its runs are drawn by lot. "
            "Call eval() on it."
        )


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
        roles = task.role_of[part, self.span].flatten()
        resolved = bool(self.wiring.roles)
        self.places = [
            (roles == role).nonzero()[:, 0] if resolved else slice(None)
            for role in range(max(1, len(self.wiring.roles)))
        ]
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
        made = self._cut(side.run.z[layer])
        if total is not None and live:
            z = self._heads(layer, live, (q, k, v), self._normed(layer, total))
        elif side.settled:
            return
        parts = self.stage.anatomy.layers[layer]
        carried = self._cut(side.z[layer])
        for head in wanted:
            if head in live:
                change = z[..., live.index(head), :] - carried[..., head, :]
            elif not side.settled:
                change = (made - carried)[..., head, :]
            else:
                continue
            self._note(first + head, change @ parts.o[head])

    def _normed(self, layer: int, total: Tensor) -> Tensor:
        return self.stage.anatomy.layers[layer].attn_norm(total)

    def _heads(
        self, layer: int, live: list[int], groups: tuple[Tensor, ...], normed: Tensor
    ) -> Tensor:
        """Return z "circuit prompt position head d_head" of the live heads."""
        stage, run = self.stage, self.side.run
        parts, each = stage.anatomy.layers[layer], self.shape.heads // self.shape.kv_heads
        size = (len(self.kept), *(-1,) * 4)
        allowed = stage.entry.allowed[self.part, self.span]
        owner = [head // each for head in live]
        q = self._project(layer, "q", normed, groups[0], live, run.q[layer])
        base = [value[layer][self.part][..., owner, :].expand(size) for value in (run.k, run.v)]
        dests = groups[1].shape[1]
        if dests == 1:
            base = [
                self._project(layer, port, normed, found[:, 0], owner, value[layer])
                for port, found, value in (("k", groups[1], run.k), ("v", groups[2], run.v))
            ]
        z = attend(q, *base, allowed, parts.scale)
        for dest in range(dests) if dests > 1 else ():
            spots = self.places[dest]
            active = bool((groups[1][owner, dest] >= 0).any() | (groups[2][owner, dest] >= 0).any())
            if len(spots) == 0 or not active:
                continue
            own = [
                self._project(layer, port, normed, found[:, dest], owner, value[layer])
                for port, found, value in (("k", groups[1], run.k), ("v", groups[2], run.v))
            ]
            prompt, position = spots // z.shape[2], spots % z.shape[2]
            rows = [t[:, prompt] for t in own]
            asked = q[:, prompt, position].unsqueeze(2)
            here = attend(asked, *rows, allowed[prompt, position][:, None], parts.scale)
            z[:, prompt, position] = here.squeeze(2)
        return z

    def _project(
        self,
        layer: int,
        port: str,
        normed: Tensor,
        group: Tensor,
        heads: list[int],
        base: Tensor,
    ) -> Tensor:
        """Make q, k or v of some heads from each one's own input; keys also from before it."""
        part = base[self.part][..., heads, :]
        found = part.expand(len(self.kept), *part.shape).clone()
        angles = self.stage.entry.angles
        here = None if angles is None else tuple(self._cut(angle) for angle in angles)
        numbers = [int(group[head]) for head in heads]
        for number in sorted({n for n in numbers if n >= 0}):
            slots = [slot for slot, n in enumerate(numbers) if n == number]
            names = [heads[slot] for slot in slots]
            made = self.stage.anatomy.layers[layer].project(port, normed[:, number], names)
            found[:, :, self.span][..., slots, :] = made if port == "v" else turn(made, here)
        return found[:, :, self.span] if port == "q" else found

    def _mlp(self, layer: int) -> None:
        side, writer = self.side, (layer + 1) * (self.shape.heads + 1)
        if not self.sources[writer]:
            return
        base = self._cut(side.run.mid[layer])
        _, total = self._read(2 * layer + 1, base)
        carried = self._cut(side.mlp_out[layer])
        if total is not None:
            parts = self.stage.anatomy.layers[layer]
            made = parts.mlp(parts.mlp_norm(total[:, 0]).flatten(0, 1)).view_as(total[:, 0])
            self._note(writer, made - carried)
        elif not side.settled:
            self._note(writer, self._cut(side.run.mlp_out[layer]) - carried)

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
    places, per = max(1, len(wiring.roles)), wiring.per_layer
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


def carried(stage: Stage, writer: int) -> Tensor:
    """Return what an edge brings when it is cut: its replacement less its clean value."""
    heads = stage.model.shape.heads
    if writer == 0:
        return stage.replaced.embed - stage.clean.embed
    layer, place = divmod(writer - 1, heads + 1)
    if place == heads:
        return stage.replaced.mlp_out[layer] - stage.clean.mlp_out[layer]
    change = (stage.replaced.z[layer] - stage.clean.z[layer])[..., place, :]
    return change @ stage.anatomy.layers[layer].o[place]


def _run(model: Model, anatomy: Anatomy, task: Task, ids: Tensor) -> tuple[Entry, Anatomised]:
    entry = enter(model, ids, task.mask, task.readout)
    found = rebuild(anatomy, entry)
    agree(model, anatomy, found, entry, task.readout)
    return entry, found


def _constant(
    model: Model,
    anatomy: Anatomy,
    task: Task,
    clean: Side,
    ablation: Ablation,
    reference: Task | None,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return zeros, or the means over the reference's tokens of the same role."""
    if ablation == "zero":
        zeros = (tuple(map(torch.zeros_like, kind)) for kind in (clean.z, clean.mlp_out))
        return torch.zeros_like(clean.embed), *zeros
    pool = task if reference is None else reference.to(model)
    _, run = _run(model, anatomy, pool, pool.counterfactual)
    index = {role: n for n, role in enumerate(pool.roles)}
    used = [task.roles[n] for n in task.role_of.unique().tolist() if n >= 0]
    if lacking := [role for role in used if role not in index]:
        raise BatchError(
            f"The reference lacks the roles {', '.join(lacking)}, which the task has: take means "
            "over prompts of the same pattern"
        )
    to = torch.tensor([index.get(role, 0) for role in task.roles], device=task.role_of.device)
    asked = torch.where(task.role_of >= 0, to[task.role_of.clamp(min=0)], 0)
    one_hot = torch.nn.functional.one_hot(pool.role_of.clamp(min=0), len(pool.roles))
    one_hot = (one_hot * (pool.role_of >= 0)[..., None]).to(clean.embed.dtype)
    count = one_hot.sum((0, 1)).clamp(min=1)

    def mean(value: Tensor) -> Tensor:
        total = einsum(one_hot, value.flatten(2), "b t r, b t f -> r f") / count[:, None]
        return total[asked].unflatten(-1, value.shape[2:])

    return mean(run.embed), tuple(map(mean, run.z)), tuple(map(mean, run.mlp_out))


def _carrying(
    clean: Side, anatomy: Anatomy, entry: Entry, carried: tuple[Tensor, tuple, tuple]
) -> Side:
    """Return the run in which every edge carries a constant; its parts read the sums of them."""
    embed, z, mlp_out = carried
    run, found = clean.run, {n: [] for n in ("pre", "mid", "q", "k", "v", "z", "mlp_out")}
    shift = embed - run.embed
    for number, layer in enumerate(anatomy.layers):
        pre = run.pre[number] + shift
        y = layer.attn_norm(pre)
        q, k = (turn(layer.project(port, y), entry.angles) for port in "qk")
        v = layer.project("v", y)
        made = attend(q, k, v, entry.allowed, layer.scale)
        heads = einsum(z[number] - run.z[number], layer.o, "b t h e, h e d -> b t d")
        mid = run.mid[number] + shift + (0 if anatomy.parallel else heads)
        out = layer.mlp(layer.mlp_norm(mid))
        for name, value in zip(found, (pre, mid, q, k, v, made, out), strict=True):
            found[name].append(value)
        shift = shift + heads + mlp_out[number] - run.mlp_out[number]
    parts = {name: tuple(values) for name, values in found.items()}
    return Side(Anatomised(embed=run.embed, last=run.last + shift, **parts), embed, z, mlp_out)
