"""Passes for edge attribution: what writers write, and gradients at what readers read.

Gradients are those of the logit difference. They are taken at activations only, never at weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from probes.circuits.task import Task
from probes.errors import ModelError
from probes.interventions.activation_patching import restart_problem
from probes.interventions.cached_run import MLP, CachedRun, Z, record_run
from probes.models.layers.decoder import DecoderWeights
from probes.models.layers.norm import IDENTITY
from probes.models.model import Model

# Relative difference up to which sums that must be equal agree.
SUM_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


@dataclass(frozen=True, eq=False)
class WriterOutputs:
    """What the writers of one run write from the recorder's span on, heads by their z.

    Tuples have one entry a layer. `embed` may be the first block's input.
    """

    embed: Tensor
    z: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class ReaderGradients:
    """Residuals of one run, and gradients of the logit difference, from the recorder's span on.

    Attributes:
        pre, mid: Residuals that attention and MLPs read.
        heads_sum: Sum of heads before the post-norm, a layer each; None for a layer without.
        outputs: What the writers wrote; None if the run began with given embeddings.
        grads: Gradients by name, one entry a layer: "q", "mlp", and "k" and "v", or "z" if edges
            are resolved by roles; one entry for "embed" and "logits".
        attention: z, k and v of each layer in the autograd graph, as the model made them; empty
            without roles.
    """

    pre: tuple[Tensor, ...]
    mid: tuple[Tensor, ...]
    heads_sum: tuple[Tensor | None, ...]
    outputs: WriterOutputs | None
    grads: dict[str, tuple[Tensor, ...]]
    attention: tuple[tuple[Tensor, ...], ...]

    def keys_and_values(self, layer: int, z_grad: Tensor) -> tuple[Tensor, ...]:
        """Gradients at a layer's k and v that come through some gradient at its z."""
        z, k, v = self.attention[layer]
        grads = torch.autograd.grad(z, (k, v), z_grad, retain_graph=True)
        return tuple(_by_head(grad, v) for grad in grads)


@dataclass(frozen=True, eq=False)
class GradientRecorder:
    """Runs a model on the prompts of a task, forward and backward.

    Attributes:
        by_role: Whether keys and values are resolved role by role, after the backward pass.
        clean: Run of the clean prompts, behind whose common beginning other runs restart; None
            where runs are whole passes.
    """

    model: Model
    weights: DecoderWeights
    task: Task
    by_role: bool
    clean: CachedRun | None

    @classmethod
    def begin(
        cls, model: Model, weights: DecoderWeights, task: Task, *, by_role: bool
    ) -> "GradientRecorder":
        """Recorder that runs only what is behind the common beginning of all pairs, if it can."""
        clean = None
        if _common_beginning(task) and restart_problem(model) is None:
            given = (task.clean, task.mask, task.readout[:, None])
            clean = record_run(model, *given, for_restarts=True)
        return cls(model, weights, task, by_role, clean)

    @property
    def span(self) -> slice:
        """The positions of which runs are made: all, or those behind the common beginning."""
        return slice(0 if self.clean is None else _common_beginning(self.task), None)

    @torch.no_grad()
    def outputs(self, ids: Tensor) -> WriterOutputs:
        """What the writers write in a forward pass of token ids."""
        embed = self._embed(ids)
        with self.model.recording(self._output_hooks()) as kept:
            self._run(ids, kept, embed)
        return self._collect_outputs(kept)

    def _run(self, ids: Tensor, kept: dict[str, Tensor], embed: Tensor | None) -> None:
        """Run token ids, or embeddings from the span on where runs restart, inside hooks."""
        if self.clean is None or embed is None:
            self.model.forward(ids, self.task.mask, self.task.readout[:, None])
            return
        kept["hook_embed"] = embed.detach().requires_grad_(torch.is_grad_enabled())
        with self.model.locked():
            self.clean.run_from(self.span.start, kept["hook_embed"])

    def _embed(self, ids: Tensor) -> Tensor | None:
        """Embeddings of token ids from the span on, where runs restart."""
        if self.clean is None:
            return None
        return first_block_input(self.model, ids, self.task.mask)[:, self.span]

    def _output_hooks(self) -> list[str]:
        layers = range(self.model.shape.layers)
        ends = ["hook_embed", "blocks.0.hook_resid_pre", f"blocks.{layers[-1]}.hook_resid_post"]
        return ends + [f"blocks.{n}.{point}" for point in (Z, MLP) for n in layers]

    def _collect_outputs(self, kept: dict[str, Tensor]) -> WriterOutputs:
        embed, first, last, *rest = (kept[name].detach() for name in self._output_hooks())
        layers = self.model.shape.layers
        outputs = WriterOutputs(embed, tuple(rest[:layers]), tuple(rest[layers:]))
        self._check_residual_sum(outputs, first, last)
        return outputs

    def _at_readout(self, value: Tensor) -> Tensor:
        """Values at the readout, of an activation from the span on."""
        every = torch.arange(len(value), device=value.device)
        return value[every, self.task.readout - self.span.start]

    def _check_residual_sum(self, outputs: WriterOutputs, first: Tensor, last: Tensor) -> None:
        """Raise if the residual stream is not the sum of what its writers write."""
        total, last = self._at_readout(first), self._at_readout(last)
        for layer, z, mlp in zip(self.weights.layers, outputs.z, outputs.mlp_out, strict=True):
            heads = layer.attn_post_norm(layer.sum_heads(self._at_readout(z)))
            total = total + heads + self._at_readout(mlp)
        if not bool(last.isfinite().all()):
            raise ModelError(
                f"{self.model.name} gives NaN or infinite activations on these prompts: load it "
                "with a wider dtype, or check the weights"
            )
        gap = float((total - last).abs().max() / last.abs().max().clamp(min=1e-9))
        if gap > SUM_TOLERANCE[self.model.dtype]:
            raise ModelError(
                f"The residual stream of {self.model.name} ({self.model.shape.architecture}) is "
                f"not the sum of its heads and MLPs: {gap:.1e} of it is missing. Use a decoder "
                "such as Llama, GPT-2 or GPT-NeoX."
            )

    @torch.enable_grad()
    def gradients(self, ids: Tensor, embed: Tensor | None = None) -> ReaderGradients:
        """Gradients in a run of token ids, from given embeddings behind the beginning if any."""
        layers = self.model.shape.layers
        points = {
            # OLMo-2 has no norm before its MLP.
            "mlp": "ln2.hook_out"
            if "ln2" in self.model.bridge.blocks[0].submodules
            else "mlp.hook_in",
            "z": Z,
            "pre": "hook_resid_pre",
            "mid": "hook_resid_pre" if self.weights.parallel else "hook_resid_mid",
        }
        hooks = {
            key: [f"blocks.{n}.{point}" for n in range(layers)] for key, point in points.items()
        }
        hooks |= {
            port: [
                f"blocks.{n}.attn.{layer.gradient_hook(port)}"
                for n, layer in enumerate(self.weights.layers)
            ]
            for port in "qkv"
        }
        written = self._output_hooks() if embed is None else [self._output_hooks()[2]]
        begin = self._embed(ids) if embed is None else embed
        with self._retaining([*chain(*hooks.values()), *written], begin) as kept:
            self._run(ids, kept, begin)
        start, final = kept["hook_embed"], kept[f"blocks.{layers - 1}.hook_resid_post"]
        logits = self._readout_logits(final)
        names = ("q", "mlp", "z") if self.by_role else ("q", "k", "v", "mlp")
        values = torch.autograd.grad(
            self.task.logit_diff(logits).sum(),
            [start, final, *(kept[hook] for name in names for hook in hooks[name])],
            retain_graph=self.by_role,
            materialize_grads=True,
        )
        grads = {"embed": values[:1], "logits": values[1:2]}
        for index, name in enumerate(names):
            grads[name] = values[2 + index * layers : 2 + (index + 1) * layers]
        grads["q"] = tuple(map(_by_head, grads["q"], (kept[hook] for hook in hooks["z"])))
        if not self.by_role:
            grads["k"] = tuple(map(_by_head, grads["k"], grads["v"]))
        pre, mid = (tuple(kept[hook].detach() for hook in hooks[key]) for key in ("pre", "mid"))
        heads_sum = tuple(
            None if layer.attn_post_norm is IDENTITY else layer.sum_heads(kept[hook].detach())
            for layer, hook in zip(self.weights.layers, hooks["z"], strict=True)
        )
        outputs = self._collect_outputs(kept) if embed is None else None
        attention = zip(*([kept[hook] for hook in hooks[key]] for key in "zkv"), strict=True)
        attention = tuple(attention) if self.by_role else ()
        return ReaderGradients(pre, mid, heads_sum, outputs, grads, attention)

    @contextmanager
    def _retaining(self, hooks: list[str], embed: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """Keep activations with their autograd graph, which starts at the embeddings."""
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], Tensor]:
            # Autograd gives gradients only at what a hook returns.
            return lambda value: kept.setdefault(name, value.view_as(value))

        def begin(value: Tensor) -> Tensor:
            start = (value if embed is None else embed).detach().requires_grad_()
            return kept.setdefault("hook_embed", start)

        with self.model.editing({name: keep(name) for name in hooks} | {"hook_embed": begin}):
            yield kept

    def _readout_logits(self, final: Tensor) -> Tensor:
        """Logits from the residual stream behind the last block."""
        return self.weights.unembed(self.weights.final_norm(self._at_readout(final)))

    def logits_from(self, embed: Tensor) -> Tensor:
        """Readout logits of the clean prompts with other embeddings from the span on."""
        last = self._output_hooks()[2]
        with self._retaining([last], embed) as kept:
            self._run(self.task.clean, kept, embed)
        return self._readout_logits(kept[last])


def _by_head(grad: Tensor, like: Tensor) -> Tensor:
    """Gradient with an axis of heads, which it lacks behind a norm of all heads."""
    return grad if grad.ndim == like.ndim else grad.unflatten(-1, (-1, like.shape[-1]))


def _common_beginning(task: Task) -> int:
    """Number of first positions at which no pair differs and none is read out."""
    return min(task.first_difference, int(task.readout.min()))


@torch.no_grad()
def first_block_input(model: Model, ids: Tensor, mask: Tensor) -> Tensor:
    """Residual stream before the first block, without the rest of the pass."""
    kept: list[Tensor] = []

    def stop(value: Tensor) -> None:
        kept.append(value)
        raise _FirstInput

    with suppress(_FirstInput), model.hooked({"blocks.0.hook_resid_pre": stop}):
        model.forward(ids, mask)
    return kept[0]


class _FirstInput(Exception):
    """Ends a pass at its first block."""
