"""Models share the weights that are equal, and keep all that differ."""

import torch

from probes.comparison.setup.references import load_models
from probes.compression.quantization.quantize import quantize
from probes.models.model import load
from probes.models.shared_weights import share_weights


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.bridge.named_parameters()}


def places(model):
    return {name: weight.data_ptr() for name, weight in model.bridge.named_parameters()}


def test_a_quantized_relative_shares_what_it_has_in_common_with_its_parent():
    full, relative = load("full"), quantize("full", "int4").to_model()
    before = [weights(model) for model in (full, relative)]
    freed = share_weights([full, relative])
    equal = {name for name, weight in before[0].items() if torch.equal(weight, before[1][name])}
    one, other = places(full), places(relative)
    assert any("embed" in name for name in equal)
    assert {name for name in one if one[name] == other[name]} == equal
    assert equal < set(one)
    assert freed == sum(before[0][name].nbytes for name in equal)
    for model, own in zip((full, relative), before, strict=True):
        assert all(torch.equal(weight, own[name]) for name, weight in weights(model).items())
    assert share_weights([full, relative]) == 0


def test_a_comparison_shares_weights_of_the_models_that_it_loads_and_of_no_others():
    mine = load("full")
    full, (copy, _) = load_models("full", ["twin=full", "distilled"], 0)
    assert places(full) == places(copy)
    full, (copy,) = load_models(mine, ["twin=full"], 0)
    assert set(places(full).values()).isdisjoint(places(copy).values())
