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

from probes.compression.derived_model import Relative, dense, parent
from probes.compression.quantization.backends import (
    OUTLIER,
    Packed,
    library_version,
    pack,
    quietly,
    rounded,
)
from probes.compression.quantization.layers import as_linear, linear_layers, matrix, write_back
from probes.compression.quantization.schemes import Scheme, scheme_of
from probes.errors import ModelError
from probes.models.provenance import Made, Plain, Storage, part_of
from probes.prompts.catalog import pattern

# What the real kernel is tried on: random texts of so many tokens, and questions.
_TEXTS, _LENGTH, _QUESTIONS = 8, 64, 8


def quantize(  # noqa: PLR0913 (a scheme has so many dials)
    source: str | Path | Relative,
    scheme: str,
    *,
    group: int | None = None,
    symmetric: bool = True,
    embeddings: bool = False,
    seed: int = 0,
) -> Relative:
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
    origin = parent(source)
    names = linear_layers(origin.hf_model, origin.name)
    result = copy.deepcopy(origin.hf_model).float().eval()
    tables = _tables(result) if embeddings else {}
    old = {name: matrix(result.get_submodule(name)).clone() for name in names}
    widths = {weight.shape[1] for weight in (*old.values(), *tables.values())}
    how = scheme_of(scheme, group=group, symmetric=symmetric, widths=widths)
    if embeddings and how.backend != "rounding":
        raise ModelError(f"{scheme} leaves embeddings alone: take 'rtn-{how.bits}' to round them.")
    kernel = as_linear(copy.deepcopy(result), names)
    packed = pack(kernel, names, how)
    for name in names:
        _refuse_far(packed[name], old[name], how, name)
        write_back(result, name, packed[name].weight)
    extra = {name: rounded(table.detach(), how) for name, table in tables.items()}
    for name, table in tables.items():
        table.data.copy_(extra[name].weight)
    gap = None if how.backend == "rounding" else _gap(kernel, result, _texts(origin, seed))
    made = Made(
        kind="quantized",
        parent=origin.name,
        storage=_storage(origin, old, packed, extra, how),
        dials=_dials(how, packed) | {"embeddings": embeddings, "seed": seed},
        gap=gap,
    )
    return Relative(f"{origin.name}-{scheme}", result, origin.tokenizer, made)


def _tables(hf_model: nn.Module) -> dict[str, nn.Parameter]:
    """The embeddings and the unembedding, once where they are tied."""
    named = hf_model.named_parameters()
    return {name: w for name, w in named if w.ndim == 2 and part_of(name, 2) == "embeddings"}


def _refuse_far(found: Packed, weight: Float[Tensor, "row column"], how: Scheme, name: str) -> None:
    """Refuse what is further off than rounding can be: some kernels read some shapes wrongly."""
    # The coarsest of the schemes has steps of a quarter of this.
    most = 4 / 2**how.bits * weight.abs().amax(dim=1, keepdim=True)
    if not bool(((found.weight - weight).abs() <= most).all()):
        raise ModelError(
            f"{how.name} does not give back {name}, whose shape is {tuple(weight.shape)}: "
            f"{how.backend} {library_version(how.backend)} rounds or reads it wrongly. "
            f"Take 'rtn-{how.bits}', or another group."
        )


def _dials(how: Scheme, packed: Mapping[str, Packed]) -> dict[str, Plain]:
    found: dict[str, Plain] = {
        "scheme": how.name,
        "backend": how.backend,
        "version": library_version(how.backend),
        "bits": how.bits,
        "group": how.group,
        "symmetric": how.symmetric,
        "linears": len(packed),
        "fused": sum(part.fused for part in packed.values()),
    }
    return found | ({"outlier": OUTLIER} if how.name == "bnb-int8" else {})


def _storage(
    origin: Relative,
    old: Mapping[str, Tensor],
    packed: Mapping[str, Packed],
    extra: Mapping[str, Packed],
    how: Scheme,
) -> Storage:
    before, whole = origin.made.storage, dense(origin.hf_model, bits=16)
    # Where an index tells which weights are kept, the others take no room.
    sparse = before.index > 0
    kept = sum(int((w != 0).sum()) if sparse else w.numel() for w in old.values())
    rest = whole.weights - 16 * sum(w.numel() for w in old.values())
    tables = sum(p.weight.numel() * how.bits + p.scales + p.zeros for p in extra.values())
    return Storage(
        weights=rest + kept * how.bits,
        scales=sum(part.scales for part in packed.values()),
        zeros=sum(part.zeros for part in packed.values()),
        index=before.index,
        embeddings=tables if extra else min(before.embeddings, whole.embeddings),
        other=min(before.other, whole.other),
    )


def _texts(origin: Relative, seed: int) -> list[Int[Tensor, "_ _"]]:
    """Random texts, and questions where there is a tokenizer that knows how to write them."""
    hf_model = origin.hf_model
    vocab = hf_model.get_input_embeddings().weight.shape[0]
    context = int(getattr(hf_model.config, "max_position_embeddings", _LENGTH))
    rng = np.random.default_rng(seed)
    shape = (_TEXTS, min(_LENGTH, context))
    found = [torch.from_numpy(rng.integers(vocab, size=shape, dtype=np.int64))]
    if origin.tokenizer is not None:
        for question in pattern("take-away").questions(_QUESTIONS, seed=seed):
            ids = origin.tokenizer(question.text, return_tensors="pt").input_ids[:, :context]
            if ids.numel() and int(ids.max()) < vocab:
                found.append(ids)
    return found


@torch.no_grad()
def _gap(kernel: Any, result: Any, texts: list[Int[Tensor, "_ _"]]) -> float:  # noqa: ANN401
    """The greatest difference of a logit between the library's kernel and plain floats."""
    gap, device = 0.0, next(result.parameters()).device
    with quietly():
        for ids in texts:
            given = {"input_ids": ids.to(device), "use_cache": False}
            apart = (kernel(**given).logits - result(**given).logits).abs().max()
            gap = max(gap, float(apart)) if apart.isfinite() else math.nan
            if math.isnan(gap):
                raise ModelError("The library's kernel gives no numbers: take an 'rtn-N' scheme.")
    return gap
