"""Quantize a model, and say what its numbers cost and how far the real kernel is from them."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.compression.derived_model import DerivedModel, dense_storage, load_parent
from probes.compression.quantization.backends import (
    OUTLIER_THRESHOLD,
    QuantizedWeight,
    library_version,
    quantize_layers,
    round_weight,
    suppress_library_warnings,
)
from probes.compression.quantization.layers import (
    conv1d_to_linear,
    linear_layers,
    set_weight,
    weight_matrix,
)
from probes.compression.quantization.schemes import Scheme, parse_scheme
from probes.errors import ModelError
from probes.models.provenance import JsonValue, Provenance, StorageCost, storage_part
from probes.prompts.catalog import pattern

# What the real kernel is tried on: random texts of so many tokens, and questions.
_N_TEXTS, _TEXT_LENGTH, _N_QUESTIONS = 8, 64, 8


def quantize(  # noqa: PLR0913 (a scheme has so many dials)
    source: str | Path | DerivedModel,
    scheme: str,
    *,
    group: int | None = None,
    symmetric: bool = True,
    embeddings: bool = False,
    seed: int = 0,
) -> DerivedModel:
    """Round the matrices of a model's layers, and hold what they stand for as plain floats.

    The library rounds, and runs with its own kernel; its numbers are turned back into floats, as
    every probe needs them. `made.gap` says what that changes: the greatest difference of a logit
    between the two, over random texts and questions. A kernel that rounds activations as well
    (bnb-int8) or computes in half precision (nf4 on some processors) is further away than others.
    "rtn-N" is the reference, rounding to the nearest step: it has no kernel, and no gap.

    `made.storage` counts rounded weights at their bits, scales and zero points as they are kept,
    and the rest at 16 bits. Of pruned weights only those that were kept count.

    Args:
        source: A model by name, its folder, or a relative; it is not changed.
        scheme: "int8", "int4" or "int2" (torchao, weights only), "bnb-int8" (LLM.int8, Dettmers
            et al. 2022, arXiv 2208.07339) or "nf4" (Dettmers et al. 2023, arXiv 2305.14314), both
            by bitsandbytes, or "rtn-2" to "rtn-16".
        group: How many weights share a scale; 0 for a whole row. None takes the scheme's own: 32
            for int4 and int2 where that divides every row, 64 for nf4 where no row is shorter,
            and whole rows for all else.
        symmetric: Whether to do without zero points.
        embeddings: Whether to round the embedding and the unembedding, too; "rtn-N" alone does.
        seed: Draws the texts that the kernel is tried on.

    Raises:
        ModelError: The scheme or the group does not exist or fit, its library is missing, or the
            model holds matrices that are no linear layers.
    """
    origin = load_parent(source)
    names = linear_layers(origin.hf_model, origin.name)
    result = copy.deepcopy(origin.hf_model).float().eval()
    tables = _embedding_tables(result) if embeddings else {}
    old = {name: weight_matrix(result.get_submodule(name)).clone() for name in names}
    widths = {weight.shape[1] for weight in (*old.values(), *tables.values())}
    how = parse_scheme(scheme, group=group, symmetric=symmetric, widths=widths)
    if embeddings and how.backend != "rounding":
        raise ModelError(f"{scheme} leaves embeddings alone: take 'rtn-{how.bits}' to round them.")
    kernel = conv1d_to_linear(copy.deepcopy(result), names)
    packed = quantize_layers(kernel, names, how)
    for name in names:
        _check_quantized(packed[name], old[name], how, name)
        set_weight(result, name, packed[name].weight)
    extra = {name: round_weight(table.detach(), how) for name, table in tables.items()}
    for name, table in tables.items():
        table.data.copy_(extra[name].weight)
    gap = (
        None
        if how.backend == "rounding"
        else _kernel_gap(kernel, result, _test_inputs(origin, seed))
    )
    made = Provenance(
        kind="quantized",
        parent=origin.name,
        storage=_storage_cost(origin, old, packed, extra, how),
        settings=_scheme_settings(how, packed) | {"embeddings": embeddings, "seed": seed},
        kernel_gap=gap,
    )
    return DerivedModel(f"{origin.name}-{scheme}", result, origin.tokenizer, made)


def _embedding_tables(hf_model: nn.Module) -> dict[str, nn.Parameter]:
    """The embeddings and the unembedding, once where they are tied."""
    named = hf_model.named_parameters()
    return {name: w for name, w in named if w.ndim == 2 and storage_part(name, 2) == "embeddings"}


def _check_quantized(
    quantized: QuantizedWeight, weight: Float[Tensor, "row column"], scheme: Scheme, name: str
) -> None:
    """Refuse what is further off than rounding can be: some kernels read some shapes wrongly."""
    # The coarsest of the schemes has steps of a quarter of this.
    most = 4 / 2**scheme.bits * weight.abs().amax(dim=1, keepdim=True)
    if not bool(((quantized.weight - weight).abs() <= most).all()):
        raise ModelError(
            f"{scheme.name} does not give back {name}, whose shape is {tuple(weight.shape)}: "
            f"{scheme.backend} {library_version(scheme.backend)} rounds or reads it wrongly. "
            f"Take 'rtn-{scheme.bits}', or another group."
        )


def _scheme_settings(scheme: Scheme, packed: Mapping[str, QuantizedWeight]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {
        "scheme": scheme.name,
        "backend": scheme.backend,
        "version": library_version(scheme.backend),
        "bits": scheme.bits,
        "group": scheme.group,
        "symmetric": scheme.symmetric,
        "linears": len(packed),
        "fused": sum(part.fused for part in packed.values()),
    }
    return found | ({"outlier": OUTLIER_THRESHOLD} if scheme.name == "bnb-int8" else {})


def _storage_cost(
    origin: DerivedModel,
    old: Mapping[str, Tensor],
    packed: Mapping[str, QuantizedWeight],
    rounded_tables: Mapping[str, QuantizedWeight],
    scheme: Scheme,
) -> StorageCost:
    before, whole = origin.provenance.storage, dense_storage(origin.hf_model, bits=16)
    # Where an index tells which weights are kept, the others take no room.
    sparse = before.mask_index > 0
    kept = sum(int((w != 0).sum()) if sparse else w.numel() for w in old.values())
    rest = whole.weights - 16 * sum(w.numel() for w in old.values())
    tables = sum(
        p.weight.numel() * scheme.bits + p.scale_bits + p.zero_point_bits
        for p in rounded_tables.values()
    )
    return StorageCost(
        weights=rest + kept * scheme.bits,
        scales=sum(part.scale_bits for part in packed.values()),
        zero_points=sum(part.zero_point_bits for part in packed.values()),
        mask_index=before.mask_index,
        embeddings=tables if rounded_tables else min(before.embeddings, whole.embeddings),
        other=min(before.other, whole.other),
    )


def _test_inputs(origin: DerivedModel, seed: int) -> list[Int[Tensor, "_ _"]]:
    """Random texts, and questions where there is a tokenizer that knows how to write them."""
    hf_model = origin.hf_model
    vocab = hf_model.get_input_embeddings().weight.shape[0]
    context = int(getattr(hf_model.config, "max_position_embeddings", _TEXT_LENGTH))
    rng = np.random.default_rng(seed)
    shape = (_N_TEXTS, min(_TEXT_LENGTH, context))
    found = [torch.from_numpy(rng.integers(vocab, size=shape, dtype=np.int64))]
    if origin.tokenizer is not None:
        for question in pattern("take-away").sample_questions(_N_QUESTIONS, seed=seed):
            ids = origin.tokenizer(question.text, return_tensors="pt").input_ids[:, :context]
            if ids.numel() and int(ids.max()) < vocab:
                found.append(ids)
    return found


@torch.no_grad()
def _kernel_gap(kernel: Any, result: Any, texts: list[Int[Tensor, "_ _"]]) -> float:  # noqa: ANN401
    """The greatest difference of a logit between the library's kernel and plain floats."""
    gap, device = 0.0, next(result.parameters()).device
    with suppress_library_warnings():
        for ids in texts:
            given = {"input_ids": ids.to(device), "use_cache": False}
            apart = (kernel(**given).logits - result(**given).logits).abs().max()
            gap = max(gap, float(apart)) if apart.isfinite() else math.nan
            if math.isnan(gap):
                raise ModelError("The library's kernel gives no numbers: take an 'rtn-N' scheme.")
    return gap
