"""Grow a model: more layers, or wider MLPs, in most cases without changing what it computes."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.compression.block_layout import BlockLayout, axis_sizes, block_layout
from probes.compression.derived_model import DerivedModel, dense_storage, load_parent
from probes.errors import ModelError
from probes.models.loading import check_finite
from probes.models.provenance import JsonValue, Provenance

GROW_METHODS = ("identity", "fresh", "stack", "wider")
"""The ways to grow."""

# Least share of a duplicated neuron's writing that falls to one of its copies, against 1.
_MIN_FRACTION = 0.5


def grow(  # noqa: PLR0913 (a way to grow has so many dials)
    source: str | Path | DerivedModel,
    method: str = "identity",
    *,
    layers: int | None = None,
    insert_after: Sequence[int] | None = None,
    width: int | None = None,
    seed: int = 0,
) -> DerivedModel:
    """Add layers to a model, or neurons to its MLPs; nothing is trained.

    "identity" and "fresh" change no logit at all, "wider" none by more than rounding, and "stack"
    changes what the model computes. All learn when they are trained on: an identity block's
    writing layers have gradients though they are zero, and what they read with has one as soon
    as they are not.

    `made.dials` tells which "new_layers" there are (numbers in the grown model) and, for every
    layer of the grown model, "from_layer": the one of the source that it is a copy of, None for a
    fresh one. `made.storage` counts every weight at 16 bits.

    Args:
        source: A model by name, its folder, or a relative; it is not changed.
        how: "identity" puts in copies of blocks that write nothing (Wu et al. 2024, LLaMA Pro,
            arXiv 2401.02415), "fresh" random blocks that write nothing. "stack" sets the last
            layers on the first so that the middle ones come twice (depth up-scaling, Kim et al.
            2023, arXiv 2312.15166); the second time counts as new. "wider" copies neurons and
            shares out what they write (Net2Wider, Chen et al. 2016, arXiv 1511.05641), in uneven
            shares that are drawn, as copies with even ones would learn the same for ever.
        layers: How many layers there are to be; new ones are spread evenly, each behind a group
            of old ones. A stack has at most twice as many as before.
        at: In place of `layers`: the old layers behind which a new one goes, once or more each.
        width: How many neurons each MLP is to have, for "wider".
        seed: Draws fresh weights, and which neurons are copied.

    Raises:
        ModelError: There is no such way, what it needs is missing or does not fit, the model is
            of a kind that is not known, or its weights are no numbers.
    """
    _check_sizes(method, layers=layers, insert_after=insert_after, width=width)
    origin = load_parent(source)
    check_finite(origin.hf_model, origin.name)
    blocks, old = block_layout(origin.hf_model, origin.name), axis_sizes(origin.hf_model)
    if method == "wider":
        wide = _check_larger(width, old["neuron"], "neurons a layer", origin.name)
        result = _build_wider(origin.hf_model, blocks, wide, seed)
        order, new = list(range(old["layer"])), []
        found: dict[str, JsonValue] = {"width": wide, "old_width": old["neuron"]}
    else:
        if method == "stack":
            order, new = stack_layers(
                old["layer"], _check_larger(layers, old["layer"], "layers", origin.name)
            )
        else:
            behind = (
                insert_after
                if insert_after is not None
                else _even_positions(old["layer"], layers, origin.name)
            )
            order, new = interleave_layers(old["layer"], behind)
        _refuse_layer_scaling(origin)
        result = _build_deeper(
            origin.hf_model, blocks, order, new if method == "fresh" else [], seed
        )
        if method != "stack":
            _zero_writers(result, blocks, new)
        found = {"layers": len(order), "old_layers": old["layer"]}
    came: list[JsonValue] = [
        None if method == "fresh" and n in new else f for n, f in enumerate(order)
    ]
    found |= {"how": method, "seed": seed, "new_layers": list[JsonValue](new), "from_layer": came}
    made = Provenance("grown", origin.name, dense_storage(result, bits=16), found)
    size = f"{width}" if method == "wider" else f"{len(order)}"
    return DerivedModel(f"{origin.name}-{method}-{size}", result, origin.tokenizer, made)


def interleave_layers(count: int, insert_after: Sequence[int]) -> tuple[list[int], list[int]]:
    """Put a new layer behind each of some old ones, once or more.

    Returns:
        For every layer the old one that it comes from, and which layers are new.

    Raises:
        ModelError: There is no such layer, or nothing is to be put in.
    """
    odd = [layer for layer in insert_after if not 0 <= layer < count]
    if odd or not insert_after:
        raise ModelError(
            f"New layers cannot stand behind {odd or 'no layer'}: give numbers of the old layers, "
            f"0 to {count - 1}"
        )
    order, new = [], []
    for layer in range(count):
        order.append(layer)
        for _ in range(list(insert_after).count(layer)):
            new.append(len(order))
            order.append(layer)
    return order, new


def stack_layers(count: int, layers: int) -> tuple[list[int], list[int]]:
    """Set the last layers on the first: the middle ones come twice, the second time as new.

    Returns:
        For every layer the old one that it comes from, and which layers are new.

    Raises:
        ModelError: More than twice as many layers are asked for.
    """
    if layers > 2 * count:
        raise ModelError(
            f"A stack of {count} layers has at most {2 * count}, and {layers} were asked for: "
            "stack what comes of it once more"
        )
    first = (layers + 1) // 2
    return [*range(first), *range(count - (layers - first), count)], list(
        range(first, first + layers - count)
    )


def _even_positions(count: int, layers: int | None, name: str) -> list[int]:
    """Behind which of the old layers new ones go so that they are spread evenly."""
    more = _check_larger(layers, count, "layers", name) - count
    return [-(-(place + 1) * count // more) - 1 for place in range(more)]


def _random_resized(hf_model: Any, seed: int, **changes: int) -> Any:  # noqa: ANN401 (untyped library)
    """Build a model of another size, with weights drawn from the seed."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(hf_model.config)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also seed the accelerators, which are not forked.
        torch.default_generator.manual_seed(seed)
        result = AutoModelForCausalLM.from_config(
            config, dtype=hf_model.dtype, attn_implementation=config._attn_implementation
        )
    result.generation_config = copy.deepcopy(hf_model.generation_config)
    return result.to(hf_model.device).eval()


def _build_deeper(
    hf_model: Any,  # noqa: ANN401
    layout: BlockLayout,
    order: Sequence[int],
    fresh: Sequence[int],
    seed: int,
) -> nn.Module:
    """Build a model whose layers are copies of the given ones, save for the fresh ones."""
    result = _random_resized(hf_model, seed, num_hidden_layers=len(order))
    weights = hf_model.state_dict()
    state = {key: w for key, w in weights.items() if not key.startswith(f"{layout.layers_path}.")}
    own = result.state_dict()
    for layer, old in enumerate(order):
        here, there = f"{layout.layers_path}.{layer}.", f"{layout.layers_path}.{old}."
        taken = (own, here) if layer in fresh else (weights, there)
        for key, weight in taken[0].items():
            if key.startswith(taken[1]):
                state[here + key.removeprefix(taken[1])] = weight
    result.load_state_dict(state)
    return result


@torch.no_grad()
def _zero_writers(hf_model: nn.Module, layout: BlockLayout, layers: Sequence[int]) -> None:
    """Set to zero what lets these layers write, biases among it."""
    for layer in layers:
        for writer in layout.writers:
            for weight in hf_model.get_submodule(
                f"{layout.layers_path}.{layer}.{writer}"
            ).parameters():
                weight.zero_()


def _build_wider(hf_model: Any, layout: BlockLayout, width: int, seed: int) -> nn.Module:  # noqa: ANN401
    """Build a model with copies of its neurons, whose writing is shared out among them."""
    sizes, generator = axis_sizes(hf_model), torch.Generator().manual_seed(seed)
    result = _random_resized(hf_model, seed, **{layout.width_key: width})
    state = dict(hf_model.state_dict())
    for layer in range(sizes["layer"]):
        copied, shares = _sample_copies(sizes["neuron"], width, generator)
        for part, axes in layout.mlp.items():
            start, axis = f"{layout.layers_path}.{layer}.{part}", axes.split().index("neuron")
            old = state[f"{start}.weight"]
            weight = old.index_select(axis, copied.to(old.device))
            if part in layout.writers:
                # One share a neuron, whichever axis neurons are on.
                by = shares if axis == 1 else shares[:, None]
                weight = (weight.double() * by.to(old.device)).to(old.dtype)
            elif f"{start}.bias" in state:
                bias = state[f"{start}.bias"]
                state[f"{start}.bias"] = bias.index_select(0, copied.to(bias.device))
            state[f"{start}.weight"] = weight
    result.load_state_dict(state)
    return result


def _sample_copies(
    count: int, width: int, generator: torch.Generator
) -> tuple[Int[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """Draw which neuron each one of a wider layer is a copy of, and its share of the writing."""
    rounds = [torch.randperm(count, generator=generator) for _ in range(-(-width // count) - 1)]
    copied = torch.cat([torch.arange(count), *rounds])[:width]
    drawn = (
        torch.rand(width, generator=generator, dtype=torch.float64) * (1 - _MIN_FRACTION)
        + _MIN_FRACTION
    )
    total = torch.zeros(count, dtype=torch.float64).index_add(0, copied, drawn)
    return copied, drawn / total[copied]


def _check_larger(wanted: int | None, count: int, unit: str, name: str) -> int:
    if wanted is None or wanted <= count:
        raise ModelError(
            f"{name} has {count} {unit} and is to grow to {wanted}: give more than {count}"
        )
    return wanted


def _check_sizes(
    method: str, *, layers: int | None, insert_after: Sequence[int] | None, width: int | None
) -> None:
    if method not in GROW_METHODS:
        raise ModelError(f"Unknown way to grow {method!r}: use one of {', '.join(GROW_METHODS)}")
    given = {
        n
        for n, v in {"layers": layers, "insert_after": insert_after, "width": width}.items()
        if v is not None
    }
    either = {"stack": [{"layers"}], "wider": [{"width"}]}.get(
        method, [{"layers"}, {"insert_after"}]
    )
    if given not in either:
        wanted = " or ".join(sorted(min(names) for names in either))
        raise ModelError(
            f"{method!r} needs {wanted}, and {', '.join(sorted(given)) or 'nothing'} was given: "
            f"give {wanted} alone"
        )


def _refuse_layer_scaling(origin: DerivedModel) -> None:
    if getattr(origin.hf_model.config, "scale_attn_by_inverse_layer_idx", False):
        raise ModelError(
            f"{origin.name} scales its attention by the number of the layer, so that its layers "
            "cannot be moved: take 'wider', or a model without scale_attn_by_inverse_layer_idx"
        )
