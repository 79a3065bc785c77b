"""Planted directions are found, and projections are replaced as defined."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from probes.errors import BatchError, ModelError, SiteError
from probes.interventions.activation_patching import patch_sites, run_with_cache
from probes.interventions.subspaces import das as das_module
from probes.interventions.subspaces.das import (
    DASObjective,
    DASSettings,
    Subspace,
    das,
    mean_difference,
    principal_directions,
    random_subspace,
)
from probes.models.model import wrap
from probes.models.site import Site
from probes.testing.tiny_models import KINDS, hook_count, tiny, tiny_hf

WIDTH, PLUS, MINUS = 32, 5, 6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted_direction():
    return normalize(normal(WIDTH, seed=9), dim=0)


def planted():
    """A Llama whose blocks write nothing: even tokens have +u, odd ones -u, and noise.

    It predicts PLUS where the last token has +u, MINUS where it has -u.
    """
    hf_model: Any = tiny_hf("llama", 0)
    u = planted_direction()
    parity = 1 - 2 * (torch.arange(97) % 2)
    noise = normal(97, WIDTH)
    with torch.no_grad():
        for layer in hf_model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        orthogonal = noise - (noise @ u)[:, None] * u
        hf_model.model.embed_tokens.weight.copy_(orthogonal + parity[:, None] * u)
        hf_model.lm_head.weight.zero_()
        hf_model.lm_head.weight[PLUS], hf_model.lm_head.weight[MINUS] = 10 * u, -10 * u
    return wrap(hf_model, name="planted")


def random_runs(model, *, count=64, seed=1):
    """Clean and source runs of unrelated prompts, a mask of the last token, the source's answer."""
    draw = torch.Generator().manual_seed(seed)
    ids, other = torch.randint(7, 97, (2, count, 4), generator=draw)
    mask, readout = torch.ones_like(ids, dtype=torch.bool), torch.full((count, 1), 3)
    where = torch.zeros_like(mask)
    where[:, 3] = True
    target = torch.where(other[:, 3] % 2 == 0, PLUS, MINUS)
    return (
        run_with_cache(model, ids, mask, readout),
        run_with_cache(model, other, mask, readout),
        where,
        target,
    )


def search(runs, target=None, *, layer=1, readout=0, dims=1, steps=80, seed=0):
    clean, source, mask, source_answer = runs
    target = source_answer if target is None else target
    objective = DASObjective(clean, source, mask, readout, target)
    settings = DASSettings(steps=steps, seed=seed)
    return das(objective, Site(layer, "resid", "end"), dims=dims, settings=settings)


def patched_logits(found, clean, source, where, readout=0):
    """Logits with the subspace's projection taken from the source, by `patch_sites`."""
    resid = source.resid.clone()
    resid[found.layer] = found.replace_projection(
        clean.resid[found.layer], source.resid[found.layer]
    )
    site = Site(found.layer, "resid", found.role)
    mixed = replace(source, resid=resid)
    return patch_sites(clean, mixed, [site], {found.role: where}, lambda seen, _: seen[:, readout])[
        0
    ]


def accuracy_of(found, runs):
    clean, source, where, target = runs
    predicted = patched_logits(found, clean, source, where).argmax(-1)
    return float((predicted == target).float().mean())


def overlap(basis, other):
    """Mean squared cosine of the principal angles between two subspaces."""
    return float((basis @ other.T).square().sum()) / min(len(basis), len(other))


def at(basis):
    return Subspace(1, "end", "random", basis)


def test_a_full_basis_gives_the_source_and_an_empty_one_the_clean_states():
    clean, source = normal(3, 5, WIDTH), normal(3, 5, WIDTH, seed=1)
    full, empty = at(random_subspace(WIDTH, WIDTH, seed=0)), at(torch.zeros(0, WIDTH))
    assert torch.allclose(full.replace_projection(clean, source), source, atol=1e-5)
    assert torch.equal(empty.replace_projection(clean, source), clean)


def test_only_the_projection_onto_the_subspace_is_replaced():
    clean, source = normal(7, WIDTH), normal(7, WIDTH, seed=1)
    found = at(random_subspace(3, WIDTH, seed=0))
    mixed = found.replace_projection(clean, source)
    assert torch.allclose(mixed @ found.basis.T, source @ found.basis.T, atol=1e-5)
    orthogonal = at(random_subspace(WIDTH, WIDTH, seed=0)).basis
    orthogonal = orthogonal - orthogonal @ found.basis.T @ found.basis
    assert torch.allclose(mixed @ orthogonal.T, clean @ orthogonal.T, atol=1e-5)
    assert torch.allclose(found.replace_projection(mixed, source), mixed, atol=1e-5)
    assert torch.equal(found.replace_projection(clean, clean), clean)


def test_replacing_a_projection_keeps_the_dtype():
    found = at(torch.eye(WIDTH)[:2])
    clean, source = normal(4, WIDTH).bfloat16(), normal(4, WIDTH, seed=1).bfloat16()
    mixed = found.replace_projection(clean, source)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed[:, 2:], clean[:, 2:])


def test_a_basis_that_is_not_orthonormal_is_an_error():
    with pytest.raises(SiteError, match="orthonormal"):
        at(2 * torch.eye(WIDTH)[:1])
    with pytest.raises(SiteError, match="orthonormal"):
        at(torch.full((2, WIDTH), WIDTH**-0.5))


def test_means_that_differ_in_one_direction_give_that_direction():
    states = torch.cat([normal(6, WIDTH), normal(6, WIDTH)])
    states[6:, 4] += 3
    found = mean_difference(states, torch.tensor([0] * 6 + [7] * 6))
    assert torch.allclose(found, torch.eye(WIDTH)[4:5], atol=1e-5)


def test_means_of_three_classes_span_two_directions_by_size():
    labels = torch.tensor([2, 0, 1, 2, 0, 1])
    states = normal(2, WIDTH)[[0, 0, 0, 1, 1, 1]]
    states[labels == 0, 3] += 1
    states[labels == 1, 8] += 5
    found = mean_difference(states, labels)
    assert found.shape == (2, WIDTH)
    assert overlap(found, torch.eye(WIDTH)[[3, 8]]) == pytest.approx(1)
    assert found[0, 8] > 0.99


def test_means_on_one_line_give_one_direction():
    labels = torch.tensor([0, 1, 2, 3]).repeat(2)
    states = labels[:, None] * planted_direction()
    assert overlap(mean_difference(states, labels), planted_direction()[None]) == pytest.approx(1)
    assert len(mean_difference(states, labels)) == 1


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 0, 0, 1]])
def test_one_class_or_a_class_of_one_row_is_an_error(labels):
    with pytest.raises(BatchError, match="two or more classes with two or more rows"):
        mean_difference(normal(4, WIDTH), torch.tensor(labels))


def test_classes_with_equal_means_are_an_error():
    with pytest.raises(BatchError, match="same mean"):
        mean_difference(normal(2, WIDTH).repeat(2, 1), torch.tensor([0, 0, 1, 1]))


def test_principal_directions_have_the_largest_variance():
    states = normal(200, WIDTH) * torch.tensor([1.0] * 5 + [9, 4] + [1.0] * 25) + 100
    found = principal_directions(states, 2)
    assert found[0, 5] > 0.98
    assert found[1, 6] > 0.95
    with pytest.raises(BatchError, match="vary in 2 dimensions"):
        principal_directions(normal(3, WIDTH), 3)


def test_random_directions_are_orthonormal_and_depend_on_the_seed_only():
    before = torch.get_rng_state()
    found = random_subspace(4, WIDTH, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(found @ found.T, torch.eye(4), atol=1e-6)
    assert torch.equal(found, random_subspace(4, WIDTH, seed=2))
    assert overlap(found, random_subspace(4, WIDTH, seed=3)) < 0.5
    with pytest.raises(SiteError, match="33 directions"):
        random_subspace(33, WIDTH, seed=0)


def test_random_directions_overlap_a_plane_in_proportion_to_its_dimension():
    plane = torch.eye(WIDTH)[:8]
    found = [overlap(random_subspace(1, WIDTH, seed=seed), plane) for seed in range(400)]
    assert sum(found) / 400 == pytest.approx(8 / WIDTH, abs=0.03)


def test_das_finds_a_planted_direction_that_generalizes():
    model = planted()
    # With fewer prompts the search fits their shared noise.
    runs, unseen = random_runs(model, count=200), random_runs(model, seed=2)
    found = search(runs)
    assert abs(float(found.basis[0] @ planted_direction())) > 0.95
    assert (found.layer, found.role, found.method) == (1, "end", "das")
    assert accuracy_of(found, unseen) > 0.95
    unchanged = unseen[0].logits[:, 0].argmax(-1) == unseen[3]
    assert float(unchanged.float().mean()) < 0.65
    assert accuracy_of(at(random_subspace(1, WIDTH, seed=3)), unseen) < 0.75


def test_a_larger_subspace_contains_the_planted_direction():
    found = search(random_runs(planted(), count=200), dims=3)
    assert torch.allclose(found.basis @ found.basis.T, torch.eye(3), atol=1e-5)
    assert overlap(planted_direction()[None], found.basis) > 0.9


def test_das_on_permuted_targets_does_not_generalize():
    model = planted()
    runs, unseen = random_runs(model), random_runs(model, seed=2)
    target = runs[3][torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    found = search(runs, target=target)
    assert abs(float(found.basis[0] @ planted_direction())) < 0.8
    assert accuracy_of(found, unseen) < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_das_and_patch_sites_apply_the_same_intervention(kind):
    model = tiny(kind)
    draw = torch.Generator().manual_seed(1)
    ids, other = torch.randint(3, 97, (2, 5, 9), generator=draw)
    mask, readout = torch.ones_like(ids, dtype=torch.bool), torch.tensor([[6, 8]]).repeat(5, 1)
    mask[0, :2] = False
    clean, source = (
        run_with_cache(model, ids, mask, readout),
        run_with_cache(model, other, mask, readout),
    )
    where = torch.zeros_like(mask)
    where[:, 3:5] = True
    rows = torch.tensor([4, 0, 2])
    for layer in range(3):
        found = Subspace(layer, "slot", "random", random_subspace(4, WIDTH, seed=0))
        objective = DASObjective(clean, source, where, 1, torch.zeros(5, dtype=torch.long))
        passed = das_module._run_patched(found, objective, where, rows)
        wanted = patched_logits(found, clean, source, where, readout=1)[rows]
        assert torch.allclose(passed, wanted, atol=1e-5)
        assert (wanted - clean.logits[rows, 1]).abs().max() > 1e-3


def test_das_leaves_weights_hooks_and_random_state_unchanged():
    model = planted()
    runs = random_runs(model)
    weights = {key: value.clone() for key, value in model.bridge.state_dict().items()}
    hooks, state = hook_count(model), torch.get_rng_state()
    found = search(runs, steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert hook_count(model) == hooks
    after = model.bridge.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    assert all(p.grad is None and not p.requires_grad for p in model.bridge.parameters())
    assert not found.basis.requires_grad


def test_das_depends_on_its_seed_only():
    runs = random_runs(planted())
    first = search(runs, dims=2, steps=5).basis
    torch.rand(3)
    with torch.no_grad():
        assert torch.equal(search(runs, dims=2, steps=5).basis, first)
    assert not torch.equal(search(runs, dims=2, steps=5, seed=1).basis, first)


def test_das_uses_only_prompts_that_differ_at_the_tokens():
    clean, source, where, target = random_runs(planted())
    half = where.clone()
    half[32:] = False
    # The targets of the other prompts are not used.
    other = torch.where(torch.arange(64) < 32, target, 0)
    bases = [search((clean, source, half, given), steps=4).basis for given in (target, other)]
    assert torch.equal(*bases)


@pytest.mark.parametrize(
    "wrong",
    [{"layer": 3}, {"layer": -1}, {"readout": 1}, {"readout": -1}, {"dims": 0}, {"dims": 33}],
)
def test_a_missing_layer_readout_or_dimension_is_an_error(wrong):
    with pytest.raises(SiteError, match=str(next(iter(wrong.values())))):
        search(random_runs(planted()), **wrong)


def test_equal_runs_and_runs_of_different_size_are_an_error():
    model = planted()
    clean, source, where, target = random_runs(model)
    with pytest.raises(BatchError, match="do not differ"):
        search((clean, clean, where, target))
    with pytest.raises(BatchError, match="do not differ"):
        search((clean, source, where & False, target))
    with pytest.raises(BatchError, match="differ in size"):
        search((clean, random_runs(model, count=3)[1], where, target))
    model.bridge.train()
    with pytest.raises(ModelError, match="training mode"):
        search((clean, source, where, target))
