"""What weights, heads and neurons matter for, by what a model reads and writes on given texts."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probes.compression.block_layout import BlockLayout, axis_sizes
from probes.compression.derived_model import DerivedModel
from probes.compression.pruning.masks import layer_matrices
from probes.compression.quantization.backends import suppress_library_warnings
from probes.compression.quantization.layers import conv1d_to_linear, linear_layers
from probes.errors import ModelError
from probes.prompts.batch import tokenize
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern

Calibration = Pattern | Sequence[str] | Int[Tensor, "prompt position"]
"""Texts to score on: questions of a pattern with their answers, texts, or tokens as they are."""

N_QUESTIONS = 64
"""How many questions are drawn of a pattern."""


def tokenize_calibration(
    origin: DerivedModel, calibration: Calibration | None, *, seed: int
) -> list[Int[Tensor, "_ _"]]:
    """Turn texts into tokens without padding, those of one length together.

    Raises:
        ModelError: There are no texts, no tokenizer, or a text is too long for the model.
    """
    if calibration is None or count_texts(calibration) == 0:
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
        asked = calibration.sample_questions(N_QUESTIONS, seed=seed, keep=tokenizable_by(tokenizer))
        batch = tokenize(tokenizer, asked)
        rows = [ids[mask] for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    else:
        rows = [torch.tensor(tokenizer(text).input_ids) for text in calibration]
    longest, most = max(len(row) for row in rows), origin.hf_model.config.max_position_embeddings
    if longest > most:
        raise ModelError(
            f"A text to score weights on has {longest} tokens, and {origin.name} takes {most}: "
            "give shorter ones"
        )
    lengths = sorted({len(row) for row in rows} - {0})
    return [torch.stack([row for row in rows if len(row) == length]) for length in lengths]


def count_texts(calibration: Calibration) -> int:
    """Return how many texts there are at most."""
    return N_QUESTIONS if isinstance(calibration, Pattern) else len(calibration)


@torch.no_grad()
def wanda_masks(
    origin: DerivedModel, fraction: float, scope: str, batches: list[Int[Tensor, "_ _"]]
) -> dict[str, Bool[Tensor, "..."]]:
    """Keep the weights with the greatest |weight| times norm of what they read.

    torchao observes the inputs and keeps the masks. How it ranks is replaced: torchao 0.18
    multiplies by the squared norm and ranks a matrix as a whole, where Wanda (Sun et al. 2023,
    arXiv 2306.11695) multiplies by the norm and ranks each row, which is scope "row".

    Raises:
        ModelError: torchao is missing, or a matrix is no linear layer.
    """
    try:
        with suppress_library_warnings():
            from torchao.sparsity import WandaSparsifier
    except ImportError as error:
        raise ModelError(
            f"Wanda needs torchao ({error}): pip install 'probes[compress]', or take 'magnitude'"
        ) from error

    class Ranked(WandaSparsifier):
        """Ranks as the paper does."""

        def update_mask(self, module: Any, tensor_name: str, **_: object) -> None:  # noqa: ANN401
            held = getattr(module.parametrizations, tensor_name)
            norm = module.activation_post_process.norm.sqrt()
            score = held.original.abs() * norm
            ranked = score if scope == "row" else score.reshape(1, -1)
            order = ranked.argsort(dim=1, stable=True)[:, : round(fraction * ranked.shape[1])]
            kept = torch.ones_like(ranked).scatter_(1, order, 0.0)
            held[0].mask.copy_(kept.reshape(score.shape))

    names = linear_layers(origin.hf_model, origin.name)
    draft = conv1d_to_linear(copy.deepcopy(origin.hf_model).float().eval(), names)
    with suppress_library_warnings():
        sparsifier = Ranked()
        sparsifier.prepare(draft, [{"tensor_fqn": f"{name}.weight"} for name in names])
        for ids in batches:
            _forward(draft, ids)
        sparsifier.step()
    masks = {}
    for name in names:
        module: Any = draft.get_submodule(name)
        mask = module.parametrizations.weight[0].mask != 0
        old = origin.hf_model.get_submodule(name)
        # GPT-2 keeps its matrices the other way round.
        masks[f"{name}.weight"] = mask if isinstance(old, nn.Linear) else mask.T.contiguous()
    return masks


@torch.no_grad()
def output_norms(
    origin: DerivedModel, layout: BlockLayout, unit: str, batches: list[Int[Tensor, "_ _"]]
) -> Float[Tensor, "layer unit"]:
    """Return the root mean square length of what each head or neuron writes, over all tokens."""
    sizes, own, model = (
        axis_sizes(origin.hf_model),
        layer_matrices(origin.hf_model),
        origin.to_model(),
    )
    sums: dict[str, Tensor] = {}

    def keep(hook: str) -> None:
        edits[hook] = lambda value: add(hook, value.detach().double())

    def add(hook: str, value: Tensor) -> None:
        many = "prompt position head one, prompt position head two -> head one two"
        found = einsum(value, value, many) if unit == "head" else value.square().sum(dim=(0, 1))
        sums[hook] = sums.get(hook, 0) + found

    point = "attn.hook_z" if unit == "head" else "mlp.out.hook_in"
    hooks, edits = [f"blocks.{layer}.{point}" for layer in range(sizes["layer"])], {}
    for hook in hooks:
        keep(hook)
    with model.editing(edits):
        for ids in batches:
            whole = torch.ones_like(ids, dtype=torch.bool)
            model.logits(ids.to(model.device), whole.to(model.device))
    axes = layout.unit_matrices(unit)[layout.writers[unit == "neuron"]]
    found = []
    for layer, hook in enumerate(hooks):
        out = own[layout.writer_weight(unit, layer)].detach().double()
        if unit == "head":
            out = rearrange(out, f"{axes} -> head d_head d_model", head=sizes["head"])
            gram = einsum(out, out, "head one d_model, head two d_model -> head one two")
            squares = (sums[hook] * gram).sum(dim=(1, 2))
        else:
            out = rearrange(out, f"{axes} -> neuron d_model")
            squares = sums[hook] * out.square().sum(dim=1)
        found.append(squares.clamp(min=0).sqrt())
    tokens = sum(ids.numel() for ids in batches)
    return torch.stack(found) / tokens**0.5


def _forward(hf_model: Any, ids: Int[Tensor, "prompt position"]) -> None:  # noqa: ANN401
    hf_model(input_ids=ids.to(hf_model.device), use_cache=False)
