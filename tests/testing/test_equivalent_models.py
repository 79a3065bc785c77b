"""Equivalent models compute the same function, and their maps of heads are true."""

import functools

import pytest
import torch

from probes.errors import ModelError, SiteError
from probes.models.model import load
from probes.models.site import head_names
from probes.testing.equivalent_heads import (
    duplicate_heads,
    group_heads,
    merge_heads,
    permute_heads,
    split_heads,
    swap_direction,
    ungroup_heads,
    zero_heads,
)
from probes.testing.equivalent_layers import (
    insert_silent_layer,
    permute_neurons,
    rotate_residual,
    round_weights,
)
from probes.testing.llama_weights import copy_weights, split_by_head
from probes.testing.tiny_models import tiny

# Largest difference of a logit relative to the largest logit; at most 1.5e-6 was measured.
GAP = 1e-5

EXACT = {
    "permuted heads": lambda model: permute_heads(model, 3),
    "split heads": lambda model: split_heads(model, seed=3),
    "some heads split": lambda model: split_heads(model, ["L0.H1", "L1.H2", "L1.H3"], seed=3),
    "duplicated heads": lambda model: duplicate_heads(model, 0.75),
    "silent duplicates": lambda model: duplicate_heads(model, 1.0),
    "rotated": lambda model: rotate_residual(model, 3),
    "permuted neurons": lambda model: permute_neurons(model, 3),
    "silent first layer": lambda model: insert_silent_layer(model, 0),
    "silent last layer": lambda model: insert_silent_layer(model, model.shape.layers),
}
each_rewrite = pytest.mark.parametrize("rewrite", EXACT)


@pytest.fixture(scope="module", params=["llama", "llama-gqa", "biased", "full"])
def model(request):
    """Tiny models with and without grouped queries, one with biases, and a trained one."""
    if request.param == "full":
        return load("full")
    if request.param == "biased":
        return tiny("llama-gqa", seed=1, attention_bias=True, mlp_bias=True)
    return tiny(request.param, tie_word_embeddings=request.param == "llama")


@pytest.fixture(scope="module")
def rewritten(model):
    """The equivalent models of a model, each built once."""
    return functools.cache(lambda rewrite: EXACT[rewrite](model))


def batch(model):
    ids = torch.randint(3, model.shape.d_vocab, (3, 14), generator=torch.Generator().manual_seed(5))
    mask = torch.ones(3, 14, dtype=torch.bool)
    mask[0, :4] = False
    return ids, mask


def gap(model, other):
    ids, mask = batch(model)
    a, b = model.logits(ids, mask)[mask], other.logits(ids, mask)[mask]
    return float((a - b).abs().max() / b.abs().max())


def names(model):
    return head_names(model.shape.layers, model.shape.heads)


def ablated(model, heads):
    """Logits with the mixed values (z) of heads set to 0."""

    def ablate(layer):
        numbers = [int(name.split(".H")[1]) for name in heads if name.startswith(f"L{layer}.")]

        def edit(z):
            z = z.clone()
            z[:, :, numbers] = 0.0
            return z

        return edit

    ids, mask = batch(model)
    edits = {f"blocks.{n}.attn.hook_z": ablate(n) for n in range(model.shape.layers)}
    with model.editing(edits):
        return model.logits(ids, mask)[mask]


@each_rewrite
def test_an_equivalent_model_has_the_logits_of_its_original(model, rewritten, rewrite):
    assert gap(rewritten(rewrite).model, model) < GAP


@each_rewrite
def test_ablating_a_head_equals_ablating_the_heads_of_its_map(model, rewritten, rewrite):
    twin = rewritten(rewrite)
    assert tuple(twin.head_map) == names(model)
    whole = ablated(model, [])
    for head in ("L0.H1", "L1.H2", "L2.H0"):
        cut, twin_cut = ablated(model, [head]), ablated(twin.model, twin.head_map[head])
        assert (cut - twin_cut).abs().max() < GAP * cut.abs().max()
        assert (cut - whole).abs().max() > 20 * GAP * cut.abs().max()


def test_heads_outside_the_map_do_nothing(rewritten):
    for twin in (rewritten("some heads split"), rewritten("silent duplicates")):
        mapped = {head for partners in twin.head_map.values() for head in partners}
        silent = set(names(twin.model)) - mapped
        assert silent
        assert torch.equal(ablated(twin.model, silent), ablated(twin.model, []))


def test_rewrites_change_neither_the_model_nor_the_global_generator():
    model = tiny("llama-gqa", seed=1, attention_bias=True, mlp_bias=True)
    before = {key: value.clone() for key, value in model.bridge.state_dict().items()}
    config, state = model.config.to_dict(), torch.get_rng_state()
    models = [rewrite(model).model for rewrite in EXACT.values()]
    merge_heads(models[1])
    group_heads(model)
    zero_heads(model, ["L0.H0"])
    round_weights(model, 4)
    after = model.bridge.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), state)


def test_only_rotation_unties_the_embeddings():
    model = tiny("llama", tie_word_embeddings=True)
    tied = {name: make(model).model.config.tie_word_embeddings for name, make in EXACT.items()}
    assert [name for name, is_tied in tied.items() if not is_tied] == ["rotated"]


@pytest.mark.parametrize(
    "make",
    [permute_heads, split_heads, rotate_residual, permute_neurons],
    ids=lambda make: make.__name__,
)
def test_a_seed_fixes_the_rewrite(make):
    model = tiny("llama")
    weights, same, other = (copy_weights(make(model, seed=seed).model) for seed in (1, 1, 2))
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert any(not torch.equal(weights[key], other[key]) for key in weights)


def test_permuting_heads_keeps_groups_together():
    twin = permute_heads(tiny("llama-gqa"), 0)
    assert twin.head_map != {head: (head,) for head in twin.head_map}
    for layer in range(3):
        groups = [int(twin.head_map[f"L{layer}.H{head}"][0][-1]) // 2 for head in range(4)]
        assert groups[0] == groups[1] != groups[2] == groups[3]
    assert sorted(new for partners in twin.head_map.values() for new in partners) == sorted(
        twin.head_map
    )


def test_halves_of_a_head_share_queries_and_keys_but_no_value_direction():
    model = tiny("llama")
    twin = split_heads(model)
    weights = copy_weights(twin.model)
    parts = {
        key.split(".")[-2]: part
        for key, part in split_by_head(weights, 1, model.shape.d_head).items()
    }
    halves = [int(head.split(".H")[1]) for head in twin.head_map["L1.H3"]]
    for name in ("q_proj", "k_proj"):
        assert torch.equal(*parts[name][halves])
    for name in ("v_proj", "o_proj"):
        used = [parts[name][head].abs().sum(-1) > 0 for head in halves]
        assert used[0].sum() == used[1].sum() == 4
        assert not (used[0] & used[1]).any()


def test_heads_that_fill_up_a_layer_attend_but_write_nothing():
    """The number of heads grows from 4 to 8, a divisor of 32; three of layer 0 are filled up."""
    twin = split_heads(tiny("llama"), ["L0.H1"])
    assert twin.model.shape.heads == 8
    assert [len(partners) for partners in twin.head_map.values()] == [1, 2, 1, 1] + [1] * 8
    weights = copy_weights(twin.model)
    mapped = {head for partners in twin.head_map.values() for head in partners}
    for key, part in split_by_head(weights, 0, 8).items():
        for head in range(8):
            is_zero = not part[head].any()
            assert is_zero == ("o_proj" in key and f"L0.H{head}" not in mapped)


def test_a_silent_layer_shifts_the_layers_after_it():
    model = tiny("llama")
    twin = insert_silent_layer(model, 1)
    assert twin.layer_map == (0, 2, 3)
    assert twin.model.shape.layers == 4
    assert twin.head_map["L0.H2"] == ("L0.H2",)
    assert twin.head_map["L2.H1"] == ("L3.H1",)


def test_rotation_changes_every_direction_of_the_residual_stream():
    model = tiny("llama")
    states = []
    for each in (model, rotate_residual(model, 0).model):
        with each.editing({"blocks.1.hook_resid_pre": lambda x: states.append(x)}):
            each.logits(*batch(each))
    assert (states[0].norm(dim=-1) - states[1].norm(dim=-1)).abs().max() < 1e-4
    cosine = torch.cosine_similarity(states[0].flatten(), states[1].flatten(), dim=0)
    assert cosine.abs() < 0.5


def test_zeroing_heads_equals_ablating_them(model):
    removed = ["L0.H1", "L2.H3"]
    twin = zero_heads(model, removed)
    assert [head for head, partners in twin.head_map.items() if not partners] == removed
    cut = ablated(model, removed)
    assert (ablated(twin.model, []) - cut).abs().max() < GAP * cut.abs().max()
    assert gap(twin.model, model) > 20 * GAP


@pytest.mark.parametrize(
    "rewrite", ["split heads", "some heads split", "duplicated heads", "silent duplicates"]
)
def test_merging_undoes_splits_and_duplicates(model, rewritten, rewrite):
    first = rewritten(rewrite)
    second = merge_heads(first.model)
    assert second.model.shape.heads == model.shape.heads
    assert gap(second.model, model) < GAP
    for parts in first.head_map.values():
        assert len({second.head_map[head] for head in parts}) == 1
        assert len(second.head_map[parts[0]]) == 1
    cut = ablated(first.model, first.head_map["L0.H1"])
    merged = ablated(second.model, second.head_map[first.head_map["L0.H1"][0]])
    assert (cut - merged).abs().max() < GAP * cut.abs().max()


def test_the_inverse_of_a_split_is_a_merge():
    model = tiny("llama")
    twin = split_heads(model, ["L0.H1"])
    inverse = swap_direction(twin, model)
    assert inverse.model is model
    assert set(inverse.head_map) == set(names(twin.model))
    assert [
        head for head, partners in inverse.head_map.items() if partners == ("L0.H1",)
    ] == sorted(twin.head_map["L0.H1"])
    assert sum(not partners for partners in inverse.head_map.values()) == 24 - 13
    assert swap_direction(insert_silent_layer(model, 1), model).layer_map == (0, None, 1, 2)


def test_grouping_undoes_ungrouping():
    model = tiny("llama-gqa")
    twin = group_heads(permute_heads(ungroup_heads(model), 1).model)
    assert twin.model.shape.kv_heads == 2
    assert gap(twin.model, model) < GAP
    assert any(partners != (head,) for head, partners in twin.head_map.items())
    again = group_heads(ungroup_heads(model))
    before, after = copy_weights(model), copy_weights(again.model)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_rounding_changes_no_weight_by_more_than_half_a_step():
    model = tiny("llama")
    before = copy_weights(model)
    gaps = []
    for bits in (2, 4, 8):
        rounded = round_weights(model, bits)
        after = copy_weights(rounded)
        key = "model.layers.1.mlp.up_proj.weight"
        step = before[key].abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((before[key] - after[key]).abs() <= step / 2 + 1e-7).all()
        assert len(after[key][0].unique()) <= 2**bits - 1
        assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
        gaps.append(gap(rounded, model))
    assert gaps[0] > gaps[1] > gaps[2] > 1e-4


def test_impossible_rewrites_are_refused():
    model = tiny("llama")
    with pytest.raises(
        ModelError, match="tiny gpt2 is a GPT2LMHeadModel: equivalent models are made of Llama"
    ):
        permute_heads(tiny("gpt2"))
    with pytest.raises(SiteError, match=r"has no heads L0\.H4"):
        split_heads(model, ["L0.H1", "L0.H4"])
    with pytest.raises(SiteError, match="give a list of heads"):
        zero_heads(model, "L0.H1")
    with pytest.raises(ModelError, match="name at least one"):
        split_heads(model, [])
    many = tiny("llama", num_attention_heads=32, head_dim=8)
    with pytest.raises(ModelError, match="cannot have 64 heads"):
        split_heads(many)
    with pytest.raises(ModelError, match=r"cannot write 0\.2 of the output"):
        duplicate_heads(model, 0.2)
    with pytest.raises(ModelError, match="No two heads"):
        merge_heads(model)
    with pytest.raises(ModelError, match="cannot be grouped"):
        group_heads(model)
    with pytest.raises(ModelError, match="has 3 layers"):
        insert_silent_layer(model, 4)
    with pytest.raises(ModelError, match="1 bits are too few"):
        round_weights(model, 1)
    with pytest.raises(ModelError, match="is not a rewrite of"):
        swap_direction(permute_heads(model), split_heads(model).model)


def test_heads_whose_outputs_do_not_fit_one_head_are_not_merged():
    """They have the same queries and keys, but different values."""
    model = tiny("llama")
    ends = ("0.self_attn.q_proj.weight", "0.self_attn.k_proj.weight")
    for key, weight in model.bridge.original_model.state_dict().items():
        if key.replace("._original_component", "").endswith(ends):
            weight[8:16] = weight[:8]
    with pytest.raises(ModelError, match="write more than the 8 directions"):
        merge_heads(model)
