"""Linear maps are what their closed forms say, and refuse what they cannot fit."""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from probes.comparison.variables.linear_maps import MAP_KINDS, fit_map
from probes.errors import BatchError

STRENGTHS = 10.0 ** np.arange(-6, 1.1, 0.5)


def states(rows, width, seed=0, scale=None):
    found = np.random.default_rng(seed).normal(size=(rows, width))
    return torch.from_numpy(found * (np.ones(width) if scale is None else scale) + 3.0)


def turn(width, seed=0):
    return torch.from_numpy(ortho_group.rvs(width, random_state=np.random.default_rng(seed)))


def plain_ridge(x, y, strength, rank):
    """Ridge in the widest directions, by the normal equations."""
    x, y = x.numpy() - x.numpy().mean(0), y.numpy() - y.numpy().mean(0)
    _, size, right = np.linalg.svd(x, full_matrices=False)
    basis = right[:rank].T
    z = x @ basis
    return basis @ np.linalg.solve(z.T @ z + strength * size[0] ** 2 * np.eye(rank), z.T @ y)


def smoother(x, strength, rank):
    """The matrix that takes y to its fit, mean and all."""
    rows = len(x)
    x = x.numpy() - x.numpy().mean(0)
    left, size, _ = np.linalg.svd(x, full_matrices=False)
    keep = size[:rank] ** 2 / (size[:rank] ** 2 + strength * size[0] ** 2)
    return (left[:, :rank] * keep) @ left[:, :rank].T + 1 / rows


# Ridge.


def test_ridge_is_the_closed_form_at_one_of_its_strengths():
    x, y = states(200, 8, seed=1, scale=np.linspace(1, 4, 8)), states(200, 5, seed=2)
    y = y + x[:, :5] * 0.3
    found = fit_map("ridge", x, y)
    gaps = [np.abs(found.matrix.numpy() - plain_ridge(x, y, s, 8)).max() for s in STRENGTHS]
    assert min(gaps) < 1e-10
    assert sorted(gaps)[1] > 1e-6


@pytest.mark.parametrize(("noise", "rows"), [(0.05, 80), (3.0, 80), (20.0, 60), (1.0, 35)])
def test_ridge_is_as_strong_as_generalized_cross_validation_by_hand_says(noise, rows):
    """GCV with the whole smoother, the mean among its degrees of freedom (Golub et al. 1979)."""
    x = states(rows, 6, seed=rows, scale=np.linspace(0.1, 4, 6))
    rng = np.random.default_rng(7)
    y = x @ torch.from_numpy(rng.normal(size=(6, 4)))
    y = y + noise * torch.from_numpy(rng.normal(size=y.shape))
    rank = min(6, rows // 10)
    scores = []
    for strength in STRENGTHS:
        hat = smoother(x, strength, rank)
        left = ((y.numpy() - hat @ y.numpy()) ** 2).sum()
        scores.append(left / (rows - np.trace(hat)) ** 2)
    wanted = plain_ridge(x, y, STRENGTHS[int(np.argmin(scores))], rank)
    np.testing.assert_allclose(fit_map("ridge", x, y).matrix.numpy(), wanted, atol=1e-10)


def test_the_chosen_strength_foretells_rows_left_out_one_by_one_almost_as_well_as_the_best():
    """Leave-one-out by refitting: GCV estimates it, so it may miss the best by a little only."""
    rng = np.random.default_rng(3)
    x = states(40, 4, seed=4)
    y = x @ torch.from_numpy(rng.normal(size=(4, 3))) + 4 * torch.from_numpy(
        rng.normal(size=(40, 3))
    )
    left = []
    for strength in STRENGTHS:
        total = 0.0
        for row in range(40):
            some = np.arange(40) != row
            # The strength is a share of the widest direction of all rows: here in numbers.
            centered = x - x.mean(0)
            widest = float(torch.linalg.eigvalsh(centered.T @ centered)[-1])
            part = (x[some] - x[some].mean(0)).numpy()
            aim = (y[some] - y[some].mean(0)).numpy()
            matrix = np.linalg.solve(part.T @ part + strength * widest * np.eye(4), part.T @ aim)
            guess = (x[row] - x[some].mean(0)).numpy() @ matrix + y[some].mean(0).numpy()
            total += float(((y[row].numpy() - guess) ** 2).sum())
        left.append(total)
    found = fit_map("ridge", x, y).matrix.numpy()
    at = int(np.argmin([np.abs(found - plain_ridge(x, y, s, 4)).max() for s in STRENGTHS]))
    assert left[at] < 1.02 * min(left)


def test_ridge_finds_a_linear_map_that_is_there_without_noise():
    x = states(300, 12)
    matrix, shift = states(12, 7, seed=5), states(1, 7, seed=6)
    found = fit_map("ridge", x, x @ matrix + shift)
    torch.testing.assert_close(found(x), x @ matrix + shift, atol=1e-3, rtol=1e-4)
    fresh = states(50, 12, seed=9)
    torch.testing.assert_close(found(fresh), fresh @ matrix + shift, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("rows", "prompts", "rank"), [(70, None, 7), (99, None, 9), (300, 40, 4)])
def test_ridge_looks_in_a_tenth_as_many_directions_as_there_are_prompts(rows, prompts, rank):
    found = fit_map("ridge", states(rows, 30), states(rows, 5, seed=1), prompts=prompts)
    assert found.rank == rank
    assert int(torch.linalg.matrix_rank(found.matrix)) <= min(rank, 5)


def test_the_directions_that_ridge_looks_in_are_the_widest():
    scale = np.array([5.0, 0.5, 4.0, 0.2, 3.0])
    x = states(30, 5, scale=scale)
    found = fit_map("ridge", x, x.clone())
    centered = (x - x.mean(0)).numpy()
    basis = np.linalg.svd(centered, full_matrices=False)[2][:3]
    inside = found.matrix.numpy().T @ basis.T @ basis
    np.testing.assert_allclose(inside, found.matrix.numpy().T, atol=1e-10)
    assert found.rank == 3


def test_a_map_from_states_that_are_all_one_says_the_mean():
    y = states(40, 3)
    found = fit_map("ridge", torch.ones(40, 6).double(), y)
    assert found.rank == 0
    torch.testing.assert_close(found(torch.randn(5, 6).double()), y.mean(0).expand(5, 3))


def test_directions_in_which_nothing_varies_do_not_count():
    x = torch.zeros(100, 8).double()
    x[:, :2] = states(100, 2)
    assert fit_map("ridge", x, states(100, 3)).rank == 2


# Orthogonal.


@pytest.mark.parametrize("seed", [0, 1])
def test_orthogonal_finds_a_turn_a_scale_and_a_shift_again(seed):
    x, q = states(60, 9, seed), turn(9, seed)
    y = 2.5 * x @ q + torch.arange(9.0).double()
    found = fit_map("orthogonal", x, y)
    torch.testing.assert_close(found.matrix, 2.5 * q, atol=1e-9, rtol=0)
    fresh = states(20, 9, seed=99)
    torch.testing.assert_close(
        found(fresh), 2.5 * fresh @ q + torch.arange(9.0).double(), atol=1e-8, rtol=0
    )


def test_orthogonal_finds_a_narrow_space_again_in_a_wider_one():
    x, q = states(80, 4), turn(9)[:4]
    found = fit_map("orthogonal", x, 1.5 * x @ q)
    torch.testing.assert_close(found.matrix, 1.5 * q, atol=1e-9, rtol=0)


def test_orthogonal_keeps_the_scale_where_what_has_no_room_is_left_out():
    """The states are made white, so that the turn is known: only the scale is in question."""
    x = states(80, 9)
    x = torch.linalg.qr(x - x.mean(0))[0]
    q = turn(9)[:, :4]
    found = fit_map("orthogonal", x, 1.5 * x @ q)
    torch.testing.assert_close(found.matrix, 1.5 * q, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("wide", "aim"), [(6, 6), (6, 9), (9, 6)])
def test_orthogonal_only_turns_and_scales(wide, aim):
    found = fit_map("orthogonal", states(50, wide), states(50, aim, seed=1)).matrix
    size = torch.linalg.svdvals(found)
    assert len(size) == min(wide, aim)
    torch.testing.assert_close(size, size[:1].expand(len(size)))


# Identity, and what is refused.


def test_the_identity_leaves_states_as_they_are():
    x = states(5, 4).float()
    found = fit_map("identity", x, states(5, 4, seed=1).float())
    assert torch.equal(found(x), x)
    assert found(x).dtype == x.dtype


def test_the_identity_refuses_other_widths():
    with pytest.raises(BatchError, match=r"4 dimensions to 6"):
        fit_map("identity", states(20, 4), states(20, 6))


@pytest.mark.parametrize("kind", MAP_KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_states_that_are_not_finite_are_refused(kind, bad):
    x, y = states(20, 4), states(20, 4)
    broken = x.clone()
    broken[3, 2] = bad
    for one, two in ((broken, y), (y, broken)):
        with pytest.raises(BatchError, match="NaN"):
            fit_map(kind, one, two)


@pytest.mark.parametrize("kind", ["orthogonal", "ridge"])
def test_fewer_than_ten_prompts_are_refused_however_many_rows_there_are(kind):
    with pytest.raises(BatchError, match="9 prompts"):
        fit_map(kind, states(9, 3), states(9, 3))
    with pytest.raises(BatchError, match="9 prompts"):
        fit_map(kind, states(90, 3), states(90, 3), prompts=9)
    assert fit_map(kind, states(10, 3), states(10, 3)).matrix.shape == (3, 3)


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_a_map_does_not_change_what_it_was_fitted_on(kind):
    x, y = states(30, 4), states(30, 4, seed=1)
    before = x.clone(), y.clone()
    fit_map(kind, x, y)(x)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
