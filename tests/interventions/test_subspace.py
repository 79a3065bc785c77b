"""Subspaces are found where they were planted, and the measures of a cloud are known ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from probes.errors import BatchError, ModelError, SiteError
from probes.interventions import subspace
from probes.interventions.activation_patching import patch_sites, run_with_cache
from probes.interventions.geometry import (
    decode_labels,
    intrinsic_dimension,
    off_manifold_distance,
)
from probes.interventions.subspace import (
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


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted_direction():
    return normalize(drawn(WIDTH, seed=9), dim=0)


def planted():
    """A Llama whose blocks write nothing: even tokens hold +u, odd ones -u, beside much noise.

    It says PLUS where the last token holds +u, MINUS where it holds -u, and reads nothing else.
    """
    hf_model: Any = tiny_hf("llama", 0)
    u = planted_direction()
    parity = 1 - 2 * (torch.arange(97) % 2)
    noise = drawn(97, WIDTH)
    with torch.no_grad():
        for layer in hf_model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        rest = noise - (noise @ u)[:, None] * u
        hf_model.model.embed_tokens.weight.copy_(rest + parity[:, None] * u)
        hf_model.lm_head.weight.zero_()
        hf_model.lm_head.weight[PLUS], hf_model.lm_head.weight[MINUS] = 10 * u, -10 * u
    return wrap(hf_model, name="planted")


def asked(model, *, count=64, seed=1):
    """Clean and source runs of unrelated prompts, where to exchange, and what the source says."""
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


def searched(runs, target=None, **more):
    clean, source, where, said = runs
    target = said if target is None else target
    how = {"layer": 1, "role": "end", "dims": 1, "readout": 0, "seed": 0, **more}
    return das(clean, source, where, target=target, **how)


def swapped(found, clean, source, where, readout=0):
    """The logits when `patch` takes the subspace's part of the residual from the source."""
    resid = source.resid.clone()
    resid[found.layer] = found.replace_projection(
        clean.resid[found.layer], source.resid[found.layer]
    )
    cell = Site(found.layer, "resid", found.role)
    mixed = replace(source, resid=resid)
    return patch_sites(clean, mixed, [cell], {found.role: where}, lambda seen, _: seen[:, readout])[
        0
    ]


def flipped(found, runs):
    clean, source, where, target = runs
    said = swapped(found, clean, source, where).argmax(-1)
    return float((said == target).float().mean())


def overlap(basis, other):
    """Mean squared cosine of the principal angles between two subspaces."""
    return float((basis @ other.T).square().sum()) / min(len(basis), len(other))


def at(basis):
    return Subspace(1, "end", "random", basis)


def test_a_full_basis_gives_the_source_and_an_empty_one_the_clean_states():
    clean, source = drawn(3, 5, WIDTH), drawn(3, 5, WIDTH, seed=1)
    full, empty = at(random_subspace(WIDTH, WIDTH, seed=0)), at(torch.zeros(0, WIDTH))
    assert torch.allclose(full.replace_projection(clean, source), source, atol=1e-5)
    assert torch.equal(empty.replace_projection(clean, source), clean)


def test_mixing_takes_one_part_from_the_source_and_leaves_the_other():
    clean, source = drawn(7, WIDTH), drawn(7, WIDTH, seed=1)
    found = at(random_subspace(3, WIDTH, seed=0))
    mixed = found.replace_projection(clean, source)
    assert torch.allclose(mixed @ found.basis.T, source @ found.basis.T, atol=1e-5)
    beside = at(random_subspace(WIDTH, WIDTH, seed=0)).basis
    beside = beside - beside @ found.basis.T @ found.basis
    assert torch.allclose(mixed @ beside.T, clean @ beside.T, atol=1e-5)
    assert torch.allclose(found.replace_projection(mixed, source), mixed, atol=1e-5)
    assert torch.equal(found.replace_projection(clean, clean), clean)


def test_mixing_keeps_the_number_format_of_the_states():
    found = at(torch.eye(WIDTH)[:2])
    clean, source = drawn(4, WIDTH).bfloat16(), drawn(4, WIDTH, seed=1).bfloat16()
    mixed = found.replace_projection(clean, source)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed[:, 2:], clean[:, 2:])


def test_a_basis_that_is_not_orthonormal_is_refused():
    with pytest.raises(SiteError, match="orthonormal"):
        at(2 * torch.eye(WIDTH)[:1])
    with pytest.raises(SiteError, match="orthonormal"):
        at(torch.full((2, WIDTH), WIDTH**-0.5))


def test_means_that_differ_in_one_direction_give_that_direction():
    states = torch.cat([drawn(6, WIDTH), drawn(6, WIDTH)])
    states[6:, 4] += 3
    found = mean_difference(states, torch.tensor([0] * 6 + [7] * 6))
    assert torch.allclose(found, torch.eye(WIDTH)[4:5], atol=1e-5)


def test_means_of_three_classes_span_two_directions_the_widest_first():
    labels = torch.tensor([2, 0, 1, 2, 0, 1])
    states = drawn(2, WIDTH)[[0, 0, 0, 1, 1, 1]]
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
def test_one_class_or_a_class_of_one_row_has_no_difference_of_means(labels):
    with pytest.raises(BatchError, match="two classes or more, each of two rows"):
        mean_difference(drawn(4, WIDTH), torch.tensor(labels))


def test_classes_with_one_mean_are_refused():
    with pytest.raises(BatchError, match="same mean"):
        mean_difference(drawn(2, WIDTH).repeat(2, 1), torch.tensor([0, 0, 1, 1]))


def test_principal_directions_are_those_of_greatest_variance():
    states = drawn(200, WIDTH) * torch.tensor([1.0] * 5 + [9, 4] + [1.0] * 25) + 100
    found = principal_directions(states, 2)
    assert found[0, 5] > 0.98
    assert found[1, 6] > 0.95
    with pytest.raises(BatchError, match="vary in 2 dimensions"):
        principal_directions(drawn(3, WIDTH), 3)


def test_random_directions_are_orthonormal_and_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    found = random_subspace(4, WIDTH, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(found @ found.T, torch.eye(4), atol=1e-6)
    assert torch.equal(found, random_subspace(4, WIDTH, seed=2))
    assert overlap(found, random_subspace(4, WIDTH, seed=3)) < 0.5
    with pytest.raises(SiteError, match="33 directions"):
        random_subspace(33, WIDTH, seed=0)


def test_random_directions_lie_in_a_given_plane_as_often_as_dimensions_say():
    plane = torch.eye(WIDTH)[:8]
    found = [overlap(random_subspace(1, WIDTH, seed=seed), plane) for seed in range(400)]
    assert sum(found) / 400 == pytest.approx(8 / WIDTH, abs=0.03)


def test_a_planted_direction_is_found_and_works_on_prompts_that_were_not_searched():
    model = planted()
    # From fewer prompts than these the noise that they share leads the search astray.
    runs, unseen = asked(model, count=200), asked(model, seed=2)
    found = searched(runs)
    assert abs(float(found.basis[0] @ planted_direction())) > 0.95
    assert (found.layer, found.role, found.method) == (1, "end", "das")
    assert flipped(found, unseen) > 0.95
    unchanged = unseen[0].logits[:, 0].argmax(-1) == unseen[3]
    assert float(unchanged.float().mean()) < 0.65
    assert flipped(at(random_subspace(1, WIDTH, seed=3)), unseen) < 0.75


def test_more_directions_than_needed_hold_the_planted_one():
    found = searched(asked(planted(), count=200), dims=3)
    assert torch.allclose(found.basis @ found.basis.T, torch.eye(3), atol=1e-5)
    assert overlap(planted_direction()[None], found.basis) > 0.9


def test_targets_that_are_not_the_sources_lead_nowhere():
    model = planted()
    runs, unseen = asked(model), asked(model, seed=2)
    target = runs[3][torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    found = searched(runs, target=target)
    assert abs(float(found.basis[0] @ planted_direction())) < 0.8
    assert flipped(found, unseen) < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_searched_is_what_patching_judges(kind):
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
        passed = subspace._run_patched(found, clean, source, where, rows)
        wanted = swapped(found, clean, source, where, readout=1)[rows]
        assert torch.allclose(passed[:, 8], wanted, atol=1e-5)
        assert (wanted - clean.logits[rows, 1]).abs().max() > 1e-3


def test_a_search_leaves_weights_hooks_and_randomness_as_they_were():
    model = planted()
    runs = asked(model)
    weights = {key: value.clone() for key, value in model.bridge.state_dict().items()}
    hooks, state = hook_count(model), torch.get_rng_state()
    found = searched(runs, steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert hook_count(model) == hooks
    after = model.bridge.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    assert all(p.grad is None and not p.requires_grad for p in model.bridge.parameters())
    assert not found.basis.requires_grad


def test_a_search_repeats_itself_whatever_stands_around_it():
    runs = asked(planted())
    first = searched(runs, dims=2, steps=5).basis
    torch.rand(3)
    with torch.no_grad():
        assert torch.equal(searched(runs, dims=2, steps=5).basis, first)
    assert not torch.equal(searched(runs, dims=2, steps=5, seed=1).basis, first)


def test_a_search_moves_only_prompts_that_differ_at_the_tokens():
    clean, source, where, target = asked(planted())
    half = where.clone()
    half[32:] = False
    # What the other prompts are told to say is never asked.
    other = torch.where(torch.arange(64) < 32, target, 0)
    told = [searched((clean, source, half, given), steps=4).basis for given in (target, other)]
    assert torch.equal(*told)


@pytest.mark.parametrize(
    "wrong",
    [{"layer": 3}, {"layer": -1}, {"readout": 1}, {"readout": -1}, {"dims": 0}, {"dims": 33}],
)
def test_what_the_model_or_its_readouts_lack_cannot_be_searched(wrong):
    with pytest.raises(SiteError, match=str(next(iter(wrong.values())))):
        searched(asked(planted()), **wrong)


def test_runs_that_do_not_differ_or_do_not_fit_cannot_be_searched():
    model = planted()
    clean, source, where, target = asked(model)
    with pytest.raises(BatchError, match="do not differ"):
        searched((clean, clean, where, target))
    with pytest.raises(BatchError, match="do not differ"):
        searched((clean, source, where & False, target))
    with pytest.raises(BatchError, match="another size"):
        searched((clean, asked(model, count=3)[1], where, target))
    model.bridge.train()
    with pytest.raises(ModelError, match="training mode"):
        searched((clean, source, where, target))


def test_distances_from_natural_states_are_told_in_units_of_their_own():
    natural = torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0], [4, 0]])
    patched = torch.tensor([[2.0, 0], [2, 3], [6, 0]])
    found = off_manifold_distance(natural, patched, n_neighbors=1)
    assert torch.allclose(found, torch.tensor([0.0, 3, 2]))
    # Two neighbors: natural ones lie 1.5, 1, 1, 1 and 1.5 from theirs.
    found = off_manifold_distance(natural, patched, n_neighbors=2)
    assert torch.allclose(found, torch.tensor([0.5, (3 + 10**0.5) / 2, 2.5]))


def test_natural_states_that_coincide_or_are_too_few_are_refused():
    with pytest.raises(BatchError, match="coincide"):
        off_manifold_distance(torch.ones(9, 2), torch.ones(1, 2))
    with pytest.raises(BatchError, match="cannot give 5 neighbors"):
        off_manifold_distance(torch.eye(5), torch.eye(5), n_neighbors=5)


def test_the_dimension_of_known_clouds_is_found():
    turn = random_subspace(WIDTH, WIDTH, seed=0)
    plane = torch.rand(600, 2, generator=torch.Generator().manual_seed(0)) @ turn[:2]
    sphere = normalize(drawn(600, 3), dim=-1) @ turn[:3]
    ball = drawn(600, 5) @ turn[:5]
    found = [intrinsic_dimension(cloud) for cloud in (plane, sphere, ball)]
    assert [d.participation_ratio for d in found] == pytest.approx([2, 3, 5], rel=0.05)
    assert [d.two_nn for d in found] == pytest.approx([2, 2, 5], rel=0.12)


def test_states_that_are_alike_count_once():
    cloud = drawn(50, 3)
    assert intrinsic_dimension(cloud.repeat(2, 1)).two_nn == intrinsic_dimension(cloud).two_nn
    assert intrinsic_dimension(cloud.repeat(2, 1)).n_distinct == 50
    with pytest.raises(BatchError, match="9 distinct states"):
        intrinsic_dimension(drawn(9, 3).repeat(4, 1))


def test_labels_that_move_the_states_are_read_and_noise_is_not():
    labels = torch.arange(192) % 16
    noise, means = drawn(192, 128), drawn(16, 128, seed=1)
    before = torch.get_rng_state()
    told = decode_labels(noise + 2 * means[labels], labels, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert told.accuracy > 0.95
    assert told.is_decodable
    untold = decode_labels(noise, labels, seed=0)
    assert untold.accuracy < 0.2
    assert 1 / 16 < untold.threshold < 0.2
    assert told == decode_labels(noise + 2 * means[labels], labels, seed=0)


def test_noise_passes_for_a_label_about_as_often_as_the_level_says():
    labels = torch.arange(30) % 2
    passed = [
        decode_labels(drawn(30, 4, seed=seed), labels, seed=seed).is_decodable for seed in range(15)
    ]
    assert sum(passed) <= 3


def test_a_frequent_class_does_not_pass_for_a_reading():
    labels = (torch.arange(100) < 10).long()
    assert decode_labels(torch.zeros(100, 3), labels, seed=0).accuracy == 0.5


def test_labels_that_cannot_be_shared_out_are_refused():
    with pytest.raises(BatchError, match="two or more classes"):
        decode_labels(drawn(6, 3), torch.zeros(6, dtype=torch.long), seed=0)
    with pytest.raises(BatchError, match="two or more rows each"):
        decode_labels(drawn(6, 3), torch.tensor([0, 0, 0, 0, 0, 1]), seed=0)
