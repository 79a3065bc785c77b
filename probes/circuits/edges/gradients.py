"""Passes for edge attribution: what writers write, and gradients at what readers read.

Gradients are those of the logit difference. They are taken at activations only, never at weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from probes.circuits.task import Task
from probes.errors import ModelError
from probes.interventions.activation_patching import MLP, Z
from probes.models.layers.decoder import DecoderWeights
from probes.models.layers.norm import IDENTITY
from probes.models.model import Model

# Relative difference up to which sums that must be equal agree.
SUM_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
# Difference between a finite difference and the gradient, relative to the gradient's length;
# rounding error of a logit difference, relative to the largest logit; and that of a slope up to
# which a step tells, relative to the gradient's length.
_SLOPE_TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.2, torch.float16: 0.1}
_ROUNDING_TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 0.02, torch.float16: 0.002}
_LARGEST_ROUNDING = 0.1
_STEP_FRACTIONS = (0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True, eq=False)
class WriterOutputs:
    """What the writers of one run write, heads by their z; tuples have one entry a layer."""

    embed: Tensor
    z: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class ReaderGradients:
    """Residuals of one run, and gradients of the logit difference.

    Attributes:
        pre, mid: Residuals that attention and MLPs read, from the recorder's span on.
        heads_sum: Sum of heads before the post-norm, a layer each; None for a layer without.
        outputs: What the writers wrote; None if the run began with given embeddings.
        grads: Gradients by name, one entry a layer: "q", "mlp", and "k" and "v", or "z" if edges
            are resolved by roles; one entry for "embed" and "logits".
        attention: z, k and v of each layer in the autograd graph; empty without roles.
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
    """

    model: Model
    weights: DecoderWeights
    task: Task
    by_role: bool

    @property
    def span(self) -> slice:
        """The positions at which the two runs of the task can differ, and the readout."""
        return slice(min(self.task.first_difference, int(self.task.readout.min())), None)

    @torch.no_grad()
    def outputs(self, ids: Tensor) -> WriterOutputs:
        """What the writers write in a forward pass of token ids."""
        with self.model.recording(self._output_hooks()) as kept:
            self.model.logits(ids, self.task.mask)
        return self._collect_outputs(kept)

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

    def _check_residual_sum(self, outputs: WriterOutputs, first: Tensor, last: Tensor) -> None:
        """Raise if the residual stream is not the sum of what its writers write."""
        at = (torch.arange(len(last)), self.task.readout)
        total = first[at]
        for layer, z, mlp in zip(self.weights.layers, outputs.z, outputs.mlp_out, strict=True):
            total = total + layer.attn_post_norm(layer.sum_heads(z[at])) + mlp[at]
        if not bool(last[at].isfinite().all()):
            raise ModelError(
                f"{self.model.name} gives NaN or infinite activations on these prompts: load it "
                "with a wider dtype, or check the weights"
            )
        gap = float((total - last[at]).abs().max() / last[at].abs().max().clamp(min=1e-9))
        if gap > SUM_TOLERANCE[self.model.dtype]:
            raise ModelError(
                f"The residual stream of {self.model.name} ({self.model.shape.architecture}) is "
                f"not the sum of its heads and MLPs: {gap:.1e} of it is missing. Use a decoder "
                "such as Llama, GPT-2 or GPT-NeoX."
            )

    @torch.enable_grad()
    def gradients(self, ids: Tensor, embed: Tensor | None = None) -> ReaderGradients:
        """Gradients in a run of token ids, from given embeddings if any."""
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
        with self._retaining([*chain(*hooks.values()), *written], embed) as kept:
            _readout_logits(self.model, self.task, ids)
        start, final = kept["hook_embed"], kept[f"blocks.{layers - 1}.hook_resid_post"]
        at = torch.arange(len(ids), device=ids.device)
        logits = self.weights.unembed(self.weights.final_norm(final[at, self.task.readout]))
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
        pre, mid = (
            tuple(kept[hook].detach()[:, self.span] for hook in hooks[key])
            for key in ("pre", "mid")
        )
        heads_sum = tuple(
            None
            if layer.attn_post_norm is IDENTITY
            else layer.sum_heads(kept[hook].detach()[:, self.span])
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

    @torch.no_grad()
    def check_gradients(self) -> bool:
        """Compare the first prompt's gradient at the embeddings with finite differences.

        Random directions are weighted to where the gradient is steep. Curvature requires short
        steps, and rounding long ones: logits are rounded in proportion to their size, however
        small their difference and its gradient. So each direction must agree at one of the steps
        that are long enough to tell, unless these do not agree with each other.

        Returns:
            Whether any direction agrees; false where rounding and curvature hide all slopes.

        Raises:
            ModelError: Finite differences of a direction agree with each other, but not with it.
        """
        one = GradientRecorder(self.model, self.weights, self.task[:1], self.by_role)
        run, other = one.gradients(one.task.clean), one.outputs(one.task.counterfactual)
        embed, grad = (run.outputs or other).embed, run.grads["embed"][0].float()
        change = (other.embed - embed).float()
        reaches = (float(change.norm()), float(embed.float().norm()))
        sizes = {part * reach for part in _STEP_FRACTIONS for reach in reaches if reach}
        steepness = float(grad.norm())
        largest_logit = float(one._logits(embed).abs().max())
        noise = _ROUNDING_TOLERANCE[self.model.dtype] * max(1.0, largest_logit)
        draw = torch.Generator().manual_seed(0)
        random = [torch.randn(grad.shape, generator=draw).to(grad) * grad.abs() for _ in range(4)]
        is_conclusive = False
        for direction in (change, *random):
            if not (length := float(direction.norm())):
                continue
            slope = float((grad * direction).sum()) / length
            slopes, gaps = [], []
            for size in sorted(sizes, reverse=True):
                step = (direction * (size / length)).to(embed.dtype)
                ends = [float(one._logit_diff(embed + side * step)) for side in (1, -1)]
                measured, rounding = (ends[0] - ends[1]) / (2 * size), noise / (2 * size)
                if rounding > _LARGEST_ROUNDING * max(steepness, abs(measured)):
                    continue
                slopes.append(measured)
                gaps.append(abs(measured - slope) - rounding)
                if gaps[-1] <= _SLOPE_TOLERANCE[self.model.dtype] * steepness:
                    is_conclusive = True
                    break
            else:
                if len(gaps) < 2 or abs(slopes[-1] - slopes[-2]) > min(gaps):
                    continue  # Curved at every step that is long enough: inconclusive.
                raise ModelError(
                    f"The gradients of {self.model.name} are wrong: finite differences deviate by "
                    f"{min(gaps):.2g} per unit, and the gradient has length {steepness:.2g}. "
                    "Quantized modules can do this silently: dequantize the model before loading "
                    "it."
                )
        return is_conclusive

    def _logits(self, embed: Tensor) -> Tensor:
        with self.model.editing({"hook_embed": lambda _: embed}):
            return _readout_logits(self.model, self.task, self.task.clean)

    def _logit_diff(self, embed: Tensor) -> Tensor:
        return self.task.logit_diff(self._logits(embed))[0]


def _by_head(grad: Tensor, like: Tensor) -> Tensor:
    """Gradient with an axis of heads, which it lacks behind a norm of all heads."""
    return grad if grad.ndim == like.ndim else grad.unflatten(-1, (-1, like.shape[-1]))


def _readout_logits(model: Model, task: Task, ids: Tensor) -> Tensor:
    logits = model.forward(ids, task.mask)
    return logits[torch.arange(len(task), device=logits.device), task.readout]
