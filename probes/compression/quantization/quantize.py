"""Quantize a model: dequantized weights, storage cost, and distance from the real kernel."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
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
    conv1d_to_linear,
    library_version,
    linear_layers,
    quantize_layers,
    round_weight,
    set_weight,
    weight_matrix,
)
from probes.compression.quantization.schemes import Scheme, parse_scheme
from probes.errors import ModelError
from probes.models.files.memory import release_memory
from probes.models.files.provenance import JsonValue, Provenance, StorageCost, storage_part
from probes.models.model import Model
from probes.models.process_state import suppress_library_warnings
from probes.prompts.catalog import pattern

# Inputs on which the real kernel is compared: random texts of this length, and questions.
_LARGE = 1_000_000  # Bytes of a matrix after which freed memory is given back.
_N_TEXTS, _TEXT_LENGTH, _N_QUESTIONS = 8, 64, 8


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """Settings of `quantize`.

    Attributes:
        group: Number of weights that share a scale; 0 for a whole row. None takes the default of
            the scheme: 32 for int4 and int2 where it divides every row, 64 for nf4 where no row
            is shorter, whole rows otherwise.
        symmetric: Whether there are no zero points.
        embeddings: Whether to round the embedding and the unembedding as well; "rtn-N" only.
        seed: Seed of the texts on which the kernel is compared.
    """

    group: int | None = None
    symmetric: bool = True
    embeddings: bool = False
    seed: int = 0


def quantize(
    source: str | Path | Model | DerivedModel,
    scheme: str,
    settings: QuantizationSettings | None = None,
) -> DerivedModel:
    """Quantize the matrices of a model's layers, and return the dequantized model.

    The provenance has the storage cost (weights, scales and zero points at their own bits, the
    rest at 16 bits, only kept weights of a pruned model) and `kernel_gap`: the largest difference
    of a logit between the library's kernel and the dequantized floats, over random texts and
    questions. Kernels that also round activations (bnb-int8), or compute in half precision (nf4
    on some processors), have a larger gap. "rtn-N" has no kernel and no gap.

    Args:
        source: Name or folder of a model, a loaded or a derived model; it is not changed.
        scheme: "int8", "int4" or "int2" (torchao, weights only), "bnb-int8" (LLM.int8, Dettmers
            et al. 2022, arXiv 2208.07339) or "nf4" (Dettmers et al. 2023, arXiv 2305.14314) by
            bitsandbytes, or "rtn-2" to "rtn-16" (round to nearest).
        settings: Groups, zero points, embeddings and seed.

    Raises:
        ModelError: The scheme or group is unknown or does not fit, its library is missing, or the
            model has matrices outside of linear layers.
    """
    settings = settings or QuantizationSettings()
    origin = load_parent(source)
    names = linear_layers(origin.hf_model, origin.name)
    # What was read for this call alone need not be copied.
    is_own = origin is not source
    result = (origin.hf_model if is_own else copy.deepcopy(origin.hf_model)).float().eval()
    tables = _embedding_tables(result) if settings.embeddings else {}
    old = [weight_matrix(result.get_submodule(name)) for name in names]
    sizes = sum(w.numel() for w in old), sum(int((w != 0).sum()) for w in old)
    widths = {weight.shape[1] for weight in (*old, *tables.values())}
    chosen = parse_scheme(scheme, group=settings.group, symmetric=settings.symmetric, widths=widths)
    if settings.embeddings and chosen.backend != "rounding":
        raise ModelError(
            f"{scheme} does not round embeddings: use 'rtn-{chosen.bits}', or leave them as they "
            "are (embeddings=False)."
        )
    has_kernel = chosen.backend != "rounding"
    kernel = conv1d_to_linear(_sharing_copy(result), names) if has_kernel else result
    packed: dict[str, QuantizedWeight] = {}

    def take(name: str, part: QuantizedWeight) -> None:
        """Put a weight into the result, and keep what is told about it."""
        _check_quantized(part, weight_matrix(result.get_submodule(name)), chosen, name)
        set_weight(result, name, part.weight)
        packed[name] = replace(part, weight=part.weight[:0].clone())
        if part.weight.nbytes > _LARGE:
            release_memory()

    quantize_layers(kernel, names, chosen, take)
    rounded_tables = {name: round_weight(table.detach(), chosen) for name, table in tables.items()}
    for name, table in tables.items():
        table.data.copy_(rounded_tables[name].weight)
    gap = None
    if has_kernel:
        gap = _kernel_gap(kernel, result, kernel_test_inputs(origin, settings.seed))
    made = Provenance(
        kind="quantized",
        parent=origin.name,
        storage=_storage_cost(origin, sizes, packed, rounded_tables, chosen),
        settings=_scheme_settings(chosen, packed)
        | {"embeddings": settings.embeddings, "seed": settings.seed},
        kernel_gap=gap,
        held_out=origin.provenance.held_out,
    )
    return DerivedModel(f"{origin.name}-{scheme}", result, origin.tokenizer, made)


def _sharing_copy(hf_model: nn.Module) -> nn.Module:
    """Copy of a model with the same tensors; libraries put new ones in the place of those."""
    tensors = chain(hf_model.parameters(), hf_model.buffers())
    return copy.deepcopy(hf_model, {id(tensor): tensor for tensor in tensors})


def _embedding_tables(hf_model: nn.Module) -> dict[str, nn.Parameter]:
    """Embedding and unembedding, once where they are tied."""
    named = hf_model.named_parameters()
    return {name: w for name, w in named if w.ndim == 2 and storage_part(name, 2) == "embeddings"}


def _check_quantized(
    quantized: QuantizedWeight, weight: Float[Tensor, "row column"], scheme: Scheme, name: str
) -> None:
    """Refuse errors above those of rounding: some kernels misread some shapes."""
    # The coarsest scheme has steps of a quarter of this.
    most = 4 / 2**scheme.bits * weight.abs().amax(dim=1, keepdim=True)
    if not bool(((quantized.weight - weight).abs() <= most).all()):
        raise ModelError(
            f"{scheme.name} changes {name} by more than rounding does (shape "
            f"{tuple(weight.shape)}): {scheme.backend} {library_version(scheme.backend)} rounds or "
            f"reads it wrongly. Use 'rtn-{scheme.bits}', or another group."
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
    sizes: tuple[int, int],
    packed: Mapping[str, QuantizedWeight],
    rounded_tables: Mapping[str, QuantizedWeight],
    scheme: Scheme,
) -> StorageCost:
    """Storage; `sizes` are the numbers of quantized weights, and of those that are not 0."""
    before, whole = origin.provenance.storage, dense_storage(origin.hf_model, bits=16)
    count, nonzero = sizes
    rest = whole.weights - 16 * count
    kept = nonzero if _is_sparse(origin.provenance, rest, count) else count
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


def _is_sparse(made: Provenance, rest: float, count: int) -> bool:
    """Whether the weights that are 0 are not stored: there is an index, or fewer are stored.

    Matrices that are kept whole or not at all need no index.
    """
    bits = made.settings.get("bits") if made.kind == "quantized" else 16
    # Of other models fewer bits mean narrower weights: those of GGUF and float8.
    if made.kind not in ("pruned", "ticket", "quantized") or not isinstance(bits, int):
        return made.storage.mask_index > 0
    return made.storage.mask_index > 0 or made.storage.weights < rest + bits * count


def kernel_test_inputs(origin: DerivedModel, seed: int) -> list[Int[Tensor, "_ _"]]:
    """Random texts, and questions if the model has a tokenizer."""
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
    """Largest difference of a logit between the library's kernel and the dequantized model."""
    gap, device = 0.0, next(result.parameters()).device
    with suppress_library_warnings():
        for ids in texts:
            given = {"input_ids": ids.to(device), "use_cache": False}
            difference = kernel(**given).logits.sub_(result(**given).logits).abs_().max()
            if not difference.isfinite():
                raise ModelError(
                    "The library's kernel gives NaN or infinite logits: use an 'rtn-N' scheme."
                )
            gap = max(gap, float(difference))
    return gap
