"""What every edge is worth, from gradients of ordinary passes.

    score(u→v) = < a_u - a'_u , gradient of the lead at what v sees >      summed over positions

a_u, a'_u: what u writes in the clean and in the counterfactual run. All readers of a norm see one
residual, so the gradient at one of them needs no input of its own: the gradient at its q, k or v
is carried back through that head's matrix and the norm (the adjoint, in closed form). What a head
writes is made from its z when it is needed. Then one matrix product a layer scores all edges
into it, prompt by prompt.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from probes.circuits.edge_scores import EdgeScores
from probes.circuits.graph import ComputationGraph
from probes.circuits.path_patching import edge_patching
from probes.circuits.task import Task
from probes.errors import CircuitError, ModelError
from probes.interventions.activation_patching import MLP, Z
from probes.models.decoder import DecoderWeights, decompose
from probes.models.model import Model, require_eval

AttributionMethod = Literal["eap-ig", "eap", "exact"]

# Floats that a pass with gradients keeps per token, layer and unit of width: about 20.
_FLOATS_PER_UNIT, _MAX_GRADIENT_FLOATS = 20, 20_000_000
# Floats of the writers' changes that are multiplied at once: they should stay in the cache.
_MAX_BLOCK_FLOATS = 4_000_000
# How far sums that must agree may lie apart, as a share of what is summed.
_SUM_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
# How far a slope may lie from what the gradient says, as a share of the gradient's length, and
# what rounding alone may do to a lead, as a share of it.
_SLOPE_TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.2, torch.float16: 0.1}
_ROUNDING_TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 0.02, torch.float16: 0.002}


def edge_attribution(  # noqa: PLR0913 (each method has its dial)
    model: Model,
    task: Task,
    *,
    method: AttributionMethod = "eap-ig",
    steps: int = 5,
    gradient_at: float = 1.0,
    roles: bool = False,
    per_prompt: bool = True,
) -> EdgeScores:
    """Score every edge of a model for a task.

    Args:
        model: Any decoder whose residual is the plain sum of embedding, heads and MLPs.
        task: Pairs of prompts, the same token for token but where they differ.
        method: "eap" (edge attribution patching: one gradient; Syed et al. 2023, 2310.10348),
            "eap-ig" (its mean along the straight path between the two runs' embeddings, taken at
            the midpoints of equal steps; Hanna et al. 2024, 2403.17806), or "exact": each edge
            in turn carries the counterfactual's value.
        steps: Points on the path, for "eap-ig".
        at: Where "eap" takes its gradient: 1 in the clean run, 0 in the counterfactual one.
        roles: Whether edges are resolved by roles.
        each: Whether scores are kept prompt by prompt; if not, memory does not grow with them.

    Raises:
        ModelError: The model is in training mode, gives non-finite numbers, has wrong gradients,
            or is no plain sum.
        CircuitError: The method or its numbers are unknown.
    """
    if method not in ("eap-ig", "eap", "exact") or steps < 1 or not 0 <= gradient_at <= 1:
        raise CircuitError(
            f"Cannot score edges by {method!r} in {steps} steps at {gradient_at}: use 'eap-ig' with steps "
            "from 1, 'eap' with `at` from 0 to 1, or 'exact'"
        )
    require_eval(model)
    task, wiring = task.to(model), task.computation_graph(model, roles=roles)
    points = {"eap": (gradient_at,), "eap-ig": tuple((k + 0.5) / steps for k in range(steps))}.get(
        method
    )
    rows = (
        _exact_scores(model, task, wiring)
        if points is None
        else _gradient_scores(model, task, wiring, points)
    )
    moments, kept = _RunningMoments(len(wiring)), []
    for scores in rows:
        moments.add(scores)
        if per_prompt:
            kept.append(scores.cpu())
    how = {"eap": f"gradient at {gradient_at:g}", "eap-ig": f"{steps} midpoints"}.get(
        method, "one by one"
    )
    protocol = (
        ("method", f"{method}, {how}"),
        ("task", task.name),
        ("prompts", str(len(task))),
        ("granularity", "edges by role" if roles else "edges"),
        ("ablation", "counterfactual"),
        ("direction", "clean to counterfactual"),
    )
    mean, error = moments.result()
    rows = torch.cat(kept) if per_prompt else None
    return EdgeScores(model.name, wiring, len(task), mean, error, rows, protocol)


class _RunningMoments:
    """Mean and standard error of a stream of rows, in double precision (Chan et al. 1983)."""

    def __init__(self, size: int) -> None:
        self.count, self.mean = 0, torch.zeros(size, dtype=torch.float64)
        self.squared_deviations = torch.zeros(size, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in rows "prompt edge"."""
        rows = rows.double().cpu()
        before, self.count = self.count, self.count + len(rows)
        shift = rows.mean(0) - self.mean
        spread = (rows - rows.mean(0)).square().sum(0)
        self.squared_deviations += spread + shift.square() * before * len(rows) / self.count
        self.mean += shift * len(rows) / self.count

    def result(self) -> tuple[Tensor, Tensor]:
        """Return the mean, and its standard error (NaN for one row)."""
        many = self.count * (self.count - 1)
        error = (
            (self.squared_deviations / many).sqrt()
            if many
            else torch.full_like(self.mean, torch.nan)
        )
        return self.mean.float(), error.float()


def _exact_scores(model: Model, task: Task, graph: ComputationGraph) -> Iterator[Tensor]:
    yield edge_patching(model, task, roles=bool(graph.roles)).T


def _gradient_scores(
    model: Model, task: Task, graph: ComputationGraph, points: tuple[float, ...]
) -> Iterator[Float[Tensor, "prompt edge"]]:
    shape, width = model.shape, task.clean.shape[1]
    anatomy = decompose(model)
    step = max(1, _MAX_GRADIENT_FLOATS // (_FLOATS_PER_UNIT * width * shape.layers * shape.d_model))
    for start in range(0, len(task), step):
        part = task[start : start + step]
        scorer = _GradientScorer(model, anatomy, graph, part)
        if "gradients" not in model.passed_checks:
            scorer.check_gradients()
            model.passed_checks.add("gradients")
        yield scorer.scores(points)


@dataclass(frozen=True, eq=False)
class _WriterOutputs:
    """What the writers of one run write, heads by their z."""

    embed: Tensor
    z: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class _ReaderGradients:
    """One run's residuals, and the gradients of the lead at what reads them."""

    pre: tuple[Tensor, ...]
    mid: tuple[Tensor, ...]
    outputs: _WriterOutputs | None
    """What the run wrote; none where it began with given embeddings."""
    grads: dict[str, tuple[Tensor, ...]]
    attention_gradients: Callable[[int, Tensor], tuple[Tensor, Tensor]]
    """Gradients at a layer's k and v of what it adds to a part of z."""


class _GradientScorer:
    """Scores some prompts; their tensors live no longer than this."""

    def __init__(
        self, model: Model, weights: DecoderWeights, graph: ComputationGraph, task: Task
    ) -> None:
        self.model, self.weights, self.wiring, self.task = model, weights, graph, task
        self.span = slice(min(task.first_difference, int(task.readout.min())), None)

    def scores(self, points: tuple[float, ...]) -> Float[Tensor, "prompt edge"]:
        """Return the mean over the points of every edge's score."""
        ends = {1.0: self.task.clean, 0.0: self.task.counterfactual}
        # A gradient at an end of the path needs no pass of its own.
        known = {point: self._reader_gradients(ends[point]) for point in points if point in ends}
        clean, other = (
            (known[point].outputs if point in known else None) or self._writer_outputs(ids)
            for point, ids in ends.items()
        )
        total = torch.zeros(len(self.task), len(self.wiring), device=self.model.device)
        size = len(self.wiring.writers) * clean.embed[0, self.span].numel()
        chunk = max(1, _MAX_BLOCK_FLOATS // size)
        for point in points:
            reads = known.pop(point, None)
            reads = reads or self._reader_gradients(
                self.task.clean, other.embed.lerp(clean.embed, point)
            )
            for rows in torch.arange(len(self.task)).split(chunk):
                changes = self._writer_changes(clean, other, rows)
                found = torch.cat([*self._score_edges(reads, changes, rows)], -1)
                self._check_embedding_scores(
                    found, changes[:, 0], reads.grads["embed"][0][rows, self.span]
                )
                total[rows] += found / len(points)
            del reads, changes, found  # before the next pass asks for as much
        return total

    @torch.no_grad()
    def _writer_outputs(self, ids: Tensor) -> _WriterOutputs:
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], None]:
            return lambda value: kept.update({name: value})

        with self.model.editing({name: keep(name) for name in self._output_hooks()}):
            self.model.logits(ids, self.task.mask)
        return self._collect_outputs(kept)

    def _output_hooks(self) -> list[str]:
        layers = range(self.model.shape.layers)
        ends = ["hook_embed", "blocks.0.hook_resid_pre", f"blocks.{layers[-1]}.hook_resid_post"]
        names = [f"blocks.{n}.{point}" for point in (Z, MLP) for n in layers]
        return ends + names

    def _collect_outputs(self, kept: Mapping[str, Tensor]) -> _WriterOutputs:
        embed, first, last, *rest = (kept[name].detach() for name in self._output_hooks())
        count = self.model.shape.layers
        found = _WriterOutputs(embed, tuple(rest[:count]), tuple(rest[count:]))
        self._check_residual_sum(found, first, last)
        return found

    def _check_residual_sum(self, outputs: _WriterOutputs, first: Tensor, last: Tensor) -> None:
        """Refuse a residual that is not the sum of what its writers write."""
        at = (torch.arange(len(last)), self.task.readout)
        total = first[at]
        for layer, z, mlp in zip(self.weights.layers, outputs.z, outputs.mlp_out, strict=True):
            heads = einsum(z[at], layer.o, "b h e, h e d -> b d")
            total = total + heads + layer.o_bias + mlp[at]
        if not bool(last[at].isfinite().all()):
            raise ModelError(
                f"{self.model.name} gives NaN or infinite activations on these prompts: load it "
                "with a wider dtype, or check the weights"
            )
        gap = float((total - last[at]).abs().max() / last[at].abs().max().clamp(min=1e-9))
        if gap > _SUM_TOLERANCE[self.model.dtype]:
            raise ModelError(
                f"The residual of {self.model.name} ({self.model.shape.architecture}) is not the "
                f"sum of its heads and MLPs: {gap:.1e} of it is missing. Edges are defined for "
                "decoders such as Llama, GPT-2 or GPT-NeoX."
            )

    @torch.enable_grad()
    def _reader_gradients(self, ids: Tensor, embed: Tensor | None = None) -> _ReaderGradients:
        """Run ids, from given embeddings if any, and take the gradients of activations only."""
        model, layers = self.model, range(self.model.shape.layers)
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], Tensor]:
            # Gradients can be had only at what a hook gives back.
            return lambda value: kept.setdefault(name, value.view_as(value))

        def enter(value: Tensor) -> Tensor:
            start = (value if embed is None else embed).detach().requires_grad_()
            return kept.setdefault("hook_embed", start)

        own = {
            "q": "attn.hook_q",
            "k": "attn.hook_k",
            "v": "attn.hook_v",
            "mlp": "ln2.hook_out",
            "z": Z,
            "pre": "hook_resid_pre",
            "mid": "hook_resid_pre" if self.weights.parallel else "hook_resid_mid",
        }
        names = {key: [f"blocks.{n}.{point}" for n in layers] for key, point in own.items()}
        written = self._output_hooks() if embed is None else [self._output_hooks()[2]]
        edits = {name: keep(name) for name in chain(*names.values(), written)}
        with model.editing(edits | {"hook_embed": enter}):
            _logits(model, self.task, ids)
        start, final = kept["hook_embed"], kept[f"blocks.{layers[-1]}.hook_resid_post"]
        at = torch.arange(len(ids), device=ids.device)
        logits = self.weights.unembed(self.weights.final_norm(final[at, self.task.readout]))
        leads = self.task.logit_diff(logits)
        resolved = bool(self.wiring.roles)
        wanted = ("q", "mlp", "z") if resolved else ("q", "k", "v", "mlp")
        inputs = [kept[name] for key in wanted for name in names[key]]
        found = torch.autograd.grad(
            leads.sum(), [start, final, *inputs], retain_graph=resolved, materialize_grads=True
        )
        grads = {"embed": found[:1], "logits": found[1:2]}
        for place, key in enumerate(wanted):
            first = 2 + place * len(layers)
            grads[key] = found[first : first + len(layers)]

        # The pass itself lives on only where it is asked again, role by role.
        attended = [[kept[names[key][n]] for key in "zkv"] for n in layers] if resolved else []

        def local(layer: int, grad: Tensor) -> tuple[Tensor, Tensor]:
            z, k, v = attended[layer]
            into_k, into_v = torch.autograd.grad(z, (k, v), grad, retain_graph=True)
            return into_k, into_v

        residuals = {
            key: tuple(kept[n].detach()[:, self.span] for n in names[key]) for key in ("pre", "mid")
        }
        writes = self._collect_outputs(kept) if embed is None else None
        return _ReaderGradients(**residuals, outputs=writes, grads=grads, attention_gradients=local)

    def _writer_changes(
        self, clean: _WriterOutputs, other: _WriterOutputs, rows: Tensor
    ) -> Float[Tensor, "prompt writer position d_model"]:
        """Return what every writer writes, clean less counterfactual."""
        here = (rows, self.span)
        embed = (clean.embed[here] - other.embed[here])[:, None]
        size = (len(rows), len(self.wiring.writers), *embed.shape[2:])
        found = embed.new_empty(size)
        found[:, :1], heads = embed, self.model.shape.heads
        for number, layer in enumerate(self.weights.layers):
            start = 1 + number * (heads + 1)
            z = clean.z[number][here] - other.z[number][here]
            found[:, start : start + heads] = rearrange(z, "b t h e -> b h t e") @ layer.o
            found[:, start + heads] = clean.mlp_out[number][here] - other.mlp_out[number][here]
        return found

    def _score_edges(
        self, gradients: _ReaderGradients, changes: Tensor, rows: Tensor
    ) -> Iterator[Tensor]:
        """Yield the scores of the edges into each stretch of readers, in the wiring's order."""
        heads, here = self.model.shape.heads, (rows, self.span)
        for number, layer in enumerate(self.weights.layers):
            seen = 1 + number * (heads + 1)
            pre, mid = gradients.pre[number][rows], gradients.mid[number][rows]
            q = _backpropagate_heads(gradients.grads["q"][number][here], layer.q)
            q = layer.attn_norm.backward(q, pre[:, None])
            ports = [
                _backpropagate_heads(g, w)
                for g, w in self._key_value_gradients(gradients, number, here)
            ]
            ports = [layer.attn_norm.backward(port, pre[:, None]) for port in ports]
            yield self._contract(changes[:, :seen], [q], rows)
            yield self._contract_keys_values(changes[:, :seen], ports, rows)
            mlp = gradients.grads["mlp"][number][here].clone()[:, None]
            mlp = layer.mlp_norm.backward(mlp, mid[:, None])
            seen += 0 if self.weights.parallel else heads
            yield self._contract(changes[:, :seen], [mlp], rows)
        last = gradients.grads["logits"][0][here][:, None]
        yield self._contract(changes, [last], rows, logits=True)

    def _key_value_gradients(
        self, gradients: _ReaderGradients, number: int, here: tuple
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield gradients at k, then at v, for each role that they are read for."""
        layer = self.weights.layers[number]
        if not self.wiring.roles:
            yield gradients.grads["k"][number][here], layer.k
            yield gradients.grads["v"][number][here], layer.v
            return
        z, kept = gradients.grads["z"][number], []
        for role in range(len(self.wiring.roles)):
            mine = (self.task.role_of == role)[..., None, None]
            kept.append([g[here] for g in gradients.attention_gradients(number, z * mine)])
        for port, weight in ((0, layer.k), (1, layer.v)):
            for grads in kept:
                yield grads[port], weight

    def _contract(
        self, changes: Tensor, ports: list[Tensor], rows: Tensor, *, logits: bool = False
    ) -> Float[Tensor, "prompt edge"]:
        """Score edges that stay at their role: reader by reader, role by role, then by writer."""
        grads = torch.cat(ports, 1)
        if not self.wiring.roles:
            return torch.bmm(grads.flatten(2), changes.flatten(2).transpose(1, 2)).flatten(1)
        found = self._by_role(changes, grads, rows)
        if logits:
            found = found[:, :, [self.wiring.roles.index(role) for role in self.wiring.readouts]]
        return found.flatten(1)

    def _contract_keys_values(self, changes: Tensor, ports: list[Tensor], rows: Tensor) -> Tensor:
        """Score edges into keys and values, which are read at one role for another."""
        if not self.wiring.roles:
            return self._contract(changes, ports, rows)
        count, found = len(self.wiring.roles), []
        for kind in (ports[:count], ports[count:]):
            each = torch.stack([self._by_role(changes, grads, rows) for grads in kind], 3)
            pairs = torch.tensor(
                self.wiring.role_index_pairs(self.model.shape.heads), device=each.device
            )
            # prompt reader (role read at) (role read for) writer
            found.append(each[:, :, pairs[:, 0], pairs[:, 1]].flatten(1))
        return torch.cat(found, 1)

    def _by_role(
        self, changes: Tensor, grads: Tensor, rows: Tensor
    ) -> Float[Tensor, "prompt reader role writer"]:
        at = einsum(grads, changes, "b v t d, b u t d -> b v t u")
        role, count = self.task.role_of[rows, self.span], len(self.wiring.roles)
        one_hot = torch.nn.functional.one_hot(role.clamp(min=0), count).to(at.dtype)
        one_hot = one_hot * (role >= 0)[..., None]
        return einsum(at, one_hot, "b v t u, b t r -> b v r u")

    def _check_embedding_scores(self, scores: Tensor, change: Tensor, grad: Tensor) -> None:
        """Hold the embedding's edges against its whole gradient, which autograd carried there."""
        mine = torch.from_numpy(self.wiring.edge_table[0] == 0).to(scores.device)
        total, whole = scores[:, mine].sum(1), (change * grad).flatten(1).sum(1)
        size = scores[:, mine].abs().sum(1) + whole.abs()
        gap = float(((total - whole).abs() / size.clamp(min=1e-6)).max())
        if not gap <= _SUM_TOLERANCE[self.model.dtype]:
            raise ModelError(
                f"The gradients of {self.model.name} do not add up: the edges of the embedding "
                f"differ by {gap:.1e} of their size from its own gradient. Its layers are not "
                "what the kit takes them for, or its modules' gradients are wrong: dequantize it."
            )

    @torch.no_grad()
    def check_gradients(self) -> None:
        """Hold a gradient against the slopes that more passes find, for one prompt.

        The ways are random, but keep to where the gradient is steep. Curves call for short steps
        and rounding for long ones, so each must fit at one of several.
        """
        one = _GradientScorer(self.model, self.weights, self.wiring, self.task[:1])
        reads, other = (
            one._reader_gradients(one.task.clean),
            one._writer_outputs(one.task.counterfactual),
        )
        embed, grad = (reads.outputs or other).embed, reads.grads["embed"][0].float()
        change = (other.embed - embed).float()
        reach = float(change.norm()) or float(embed.float().norm())
        steep = max(float(grad.norm()), 1e-12)
        noise = _ROUNDING_TOLERANCE[self.model.dtype] * max(1.0, abs(float(one._logit_diff(embed))))
        lot = torch.Generator().manual_seed(0)
        ways = [torch.randn(grad.shape, generator=lot).to(grad) * grad.abs() for _ in range(4)]
        for way in (change, *ways):
            if not (length := float(way.norm())):
                continue
            told = float((grad * way).sum()) / length
            gaps = []
            for far in (share * reach for share in (0.1, 0.03, 0.01, 0.003, 0.001)):
                step = (way * (far / length)).to(embed.dtype)
                ends = float(one._logit_diff(embed + step) - one._logit_diff(embed - step))
                gaps.append((abs(ends - 2 * far * told) - noise) / (2 * far))
                if gaps[-1] <= _SLOPE_TOLERANCE[self.model.dtype] * steep:
                    break
            else:
                raise ModelError(
                    f"The gradients of {self.model.name} are wrong: the slopes that small steps "
                    f"find differ from them by {min(gaps):.2g} a unit, where they are {steep:.2g} "
                    "long. Quantized modules can do this silently: dequantize the model before "
                    "it is loaded."
                )

    def _logit_diff(self, embed: Tensor) -> Tensor:
        with self.model.editing({"hook_embed": lambda _: embed}):
            return self.task.logit_diff(_logits(self.model, self.task, self.task.clean))[0]


def _backpropagate_heads(
    grad: Tensor, weight: Tensor
) -> Float[Tensor, "prompt head position d_model"]:
    """Carry gradients at q, k or v back through each head's matrix."""
    return rearrange(grad, "b t h e -> b h t e") @ weight.transpose(1, 2)


def _logits(model: Model, task: Task, ids: Tensor) -> Tensor:
    """Run the model as `Model.logits` does, with gradients where they are on."""
    logits = model.forward(ids, task.mask)
    return logits[torch.arange(len(task), device=logits.device), task.readout]
