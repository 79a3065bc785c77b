"""Importance of weights, heads and neurons on calibration texts."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probes.compression.block_layout import BlockLayout, axis_sizes
from probes.compression.derived_model import DerivedModel
from probes.compression.pruning.masks import layer_matrices
from probes.compression.quantization.backends import conv1d_to_linear, linear_layers
from probes.errors import ModelError
from probes.models.double_precision import to_double
from probes.models.process_state import suppress_library_warnings
from probes.models.readout import last_token
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import tokenizable_by

Calibration = Pattern | Sequence[str] | Int[Tensor, "prompt position"]
"""Calibration texts: a pattern (N_QUESTIONS of its questions), texts, or tokens."""

N_QUESTIONS = 64
"""Number of questions of a pattern."""


def tokenize_calibration(
    origin: DerivedModel, calibration: Calibration | None, *, seed: int
) -> list[Int[Tensor, "_ _"]]:
    """Return calibration tokens without padding, one batch per length.

    Raises:
        ModelError: There are no texts, no tokenizer, or a text is too long for the model.
    """
    if calibration is None or (isinstance(calibration, Tensor) and calibration.numel() == 0):
        calibration = ()
    if not isinstance(calibration, Pattern) and len(calibration) == 0:
        raise ModelError(
            "There are no texts to score weights on: give calibration=pattern('take-away'), "
            "a list of texts, or tokens"
        )
    if isinstance(calibration, Tensor):
        return [calibration]
    tokenizer = origin.tokenizer
    if tokenizer is None:
        raise ModelError(f"{origin.name} has no tokenizer to read texts with: give tokens instead")
    if isinstance(calibration, Pattern):
        questions = calibration.sample_questions(
            N_QUESTIONS, seed=seed, keep=tokenizable_by(tokenizer)
        )
        batch = tokenize(tokenizer, questions)
        rows = [ids[mask] for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    else:
        rows = [torch.tensor(tokenizer(text).input_ids) for text in calibration]
    longest, most = max(len(row) for row in rows), origin.hf_model.config.max_position_embeddings
    if longest > most:
        raise ModelError(
            f"A calibration text has {longest} tokens, and {origin.name} takes {most}: "
            "give shorter ones"
        )
    lengths = sorted({len(row) for row in rows} - {0})
    return [torch.stack([row for row in rows if len(row) == length]) for length in lengths]


@torch.no_grad()
def wanda_masks(
    origin: DerivedModel, fraction: float, scope: str, batches: list[Int[Tensor, "_ _"]]
) -> dict[str, Bool[Tensor, "..."]]:
    """Keep the weights with the largest |weight| × input norm (Sun et al. 2023, arXiv 2306.11695).

    torchao observes the inputs and holds the masks; the ranking is replaced, because torchao 0.18
    uses the squared norm and ranks a whole matrix. Scope "row" ranks each row, as published.

    Raises:
        ModelError: torchao is missing, or a matrix belongs to no linear layer.
    """
    try:
        with suppress_library_warnings():
            from torchao.sparsity import WandaSparsifier
    except ImportError as error:
        raise ModelError(
            f"Wanda needs torchao ({error}): pip install 'circuit-relatives[compress]', or use "
            "'magnitude'"
        ) from error

    class PaperRanking(WandaSparsifier):
        def update_mask(self, module: Any, tensor_name: str, **_: object) -> None:  # noqa: ANN401
            parametrization = getattr(module.parametrizations, tensor_name)
            norm = module.activation_post_process.norm.sqrt()
            score = parametrization.original.abs() * norm
            ranked = score if scope == "row" else score.reshape(1, -1)
            order = ranked.argsort(dim=1, stable=True)[:, : round(fraction * ranked.shape[1])]
            kept = torch.ones_like(ranked).scatter_(1, order, 0.0)
            parametrization[0].mask.copy_(kept.reshape(score.shape))

    names = linear_layers(origin.hf_model, origin.name)
    draft: Any = conv1d_to_linear(copy.deepcopy(origin.hf_model).float().eval(), names)
    with suppress_library_warnings():
        sparsifier = PaperRanking()
        sparsifier.prepare(draft, [{"tensor_fqn": f"{name}.weight"} for name in names])
        for ids in batches:
            draft(input_ids=ids.to(draft.device), use_cache=False)
        sparsifier.step()
    masks = {}
    for name in names:
        module: Any = draft.get_submodule(name)
        mask = module.parametrizations.weight[0].mask != 0
        old = origin.hf_model.get_submodule(name)
        # GPT-2's matrices are transposed.
        masks[f"{name}.weight"] = mask if isinstance(old, nn.Linear) else mask.T.contiguous()
    return masks


@torch.no_grad()
def output_norms(
    origin: DerivedModel, layout: BlockLayout, unit: str, batches: list[Int[Tensor, "_ _"]]
) -> Float[Tensor, "layer unit"]:
    """Return the root mean square norm of each head's or neuron's output over all tokens."""
    hf_model, model = origin.hf_model, origin.to_model()
    sizes, own = axis_sizes(hf_model), layer_matrices(hf_model)
    sums: dict[str, Tensor] = {}

    def add_moments(hook: str, activation: Tensor) -> None:
        value = to_double(activation.detach())
        if unit == "head":
            axes = "prompt position head one, prompt position head two -> head one two"
            found = einsum(value, value, axes)
        else:
            found = value.square().sum(dim=(0, 1))
        sums[hook] = sums.get(hook, 0) + found

    point = "attn.hook_z" if unit == "head" else "mlp.out.hook_in"
    hooks = [f"blocks.{layer}.{point}" for layer in range(sizes["layer"])]
    with model.editing({hook: partial(add_moments, hook) for hook in hooks}):
        for ids in batches:
            mask = torch.ones_like(ids, dtype=torch.bool, device=model.device)
            model.logits(ids.to(model.device), mask, last_token(mask))
    axes = layout.unit_matrices(unit)[layout.writers[unit == "neuron"]]
    norms = []
    for layer, hook in enumerate(hooks):
        out = to_double(own[layout.writer_weight(unit, layer)].detach())
        if unit == "head":
            out = rearrange(out, f"{axes} -> head d_head d_model", head=sizes["head"])
            gram = einsum(out, out, "head one d_model, head two d_model -> head one two")
            squares = (sums[hook] * gram).sum(dim=(1, 2))
        else:
            out = rearrange(out, f"{axes} -> neuron d_model")
            squares = sums[hook] * out.square().sum(dim=1)
        norms.append(squares.clamp(min=0).sqrt())
    return torch.stack(norms) / sum(ids.numel() for ids in batches) ** 0.5
