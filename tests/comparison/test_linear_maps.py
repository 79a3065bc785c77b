"""Linear maps equal their closed forms, and refuse states that they cannot fit."""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from probes.comparison.variables.linear_maps import MAP_KINDS, fit_map
from probes.errors import BatchError

PENALTIES = 10.0 ** np.arange(-6, 1.1, 0.5)


def states(rows, width, seed=0, scale=None):
    normal = np.random.default_rng(seed).normal(size=(rows, width))
    return torch.from_numpy(normal * (np.ones(width) if scale is None else scale) + 3.0)


def rotation(width, seed=0):
    return torch.from_numpy(ortho_group.rvs(width, random_state=np.random.default_rng(seed)))


def plain_ridge(x, y, penalty, rank):
    """Ridge in the leading principal directions, by the normal equations."""
    x, y = x.numpy() - x.numpy().mean(0), y.numpy() - y.numpy().mean(0)
    _, size, right = np.linalg.svd(x, full_matrices=False)
    basis = right[:rank].T
    z = x @ basis
    return basis @ np.linalg.solve(z.T @ z + penalty * size[0] ** 2 * np.eye(rank), z.T @ y)


def smoother(x, penalty, rank):
    """The matrix that maps y to its fit, the mean included."""
    rows = len(x)
    x = x.numpy() - x.numpy().mean(0)
    left, size, _ = np.linalg.svd(x, full_matrices=False)
    keep = size[:rank] ** 2 / (size[:rank] ** 2 + penalty * size[0] ** 2)
    return (left[:, :rank] * keep) @ left[:, :rank].T + 1 / rows


# Ridge.


def test_ridge_equals_the_closed_form_at_one_penalty():
    x, y = states(200, 8, seed=1, scale=np.linspace(1, 4, 8)), states(200, 5, seed=2)
    y = y + x[:, :5] * 0.3
    fitted = fit_map("ridge", x, y)
    gaps = [np.abs(fitted.matrix.numpy() - plain_ridge(x, y, s, 8)).max() for s in PENALTIES]
    assert min(gaps) < 1e-10
    assert sorted(gaps)[1] > 1e-6


@pytest.mark.parametrize(("noise", "rows"), [(0.05, 80), (3.0, 80), (20.0, 60), (1.0, 35)])
def test_the_penalty_is_that_of_generalized_cross_validation(noise, rows):
    """GCV by the full smoother; the mean is one degree of freedom (Golub et al. 1979)."""
    x = states(rows, 6, seed=rows, scale=np.linspace(0.1, 4, 6))
    rng = np.random.default_rng(7)
    y = x @ torch.from_numpy(rng.normal(size=(6, 4)))
    y = y + noise * torch.from_numpy(rng.normal(size=y.shape))
    rank = min(6, rows // 10)
    scores = []
    for penalty in PENALTIES:
        hat = smoother(x, penalty, rank)
        left = ((y.numpy() - hat @ y.numpy()) ** 2).sum()
        scores.append(left / (rows - np.trace(hat)) ** 2)
    wanted = plain_ridge(x, y, PENALTIES[int(np.argmin(scores))], rank)
    np.testing.assert_allclose(fit_map("ridge", x, y).matrix.numpy(), wanted, atol=1e-10)


def test_the_chosen_penalty_is_nearly_the_best_in_leave_one_out_cross_validation():
    """GCV estimates the leave-one-out error, so its choice is within 2 % of the best."""
    rng = np.random.default_rng(3)
    x = states(40, 4, seed=4)
    y = x @ torch.from_numpy(rng.normal(size=(4, 3))) + 4 * torch.from_numpy(
        rng.normal(size=(40, 3))
    )
    errors = []
    for penalty in PENALTIES:
        total = 0.0
        for row in range(40):
            others = np.arange(40) != row
            # The penalty is relative to the largest eigenvalue of all rows.
            centered = x - x.mean(0)
            widest = float(torch.linalg.eigvalsh(centered.T @ centered)[-1])
            part = (x[others] - x[others].mean(0)).numpy()
            aim = (y[others] - y[others].mean(0)).numpy()
            matrix = np.linalg.solve(part.T @ part + penalty * widest * np.eye(4), part.T @ aim)
            prediction = (x[row] - x[others].mean(0)).numpy() @ matrix + y[others].mean(0).numpy()
            total += float(((y[row].numpy() - prediction) ** 2).sum())
        errors.append(total)
    fitted = fit_map("ridge", x, y).matrix.numpy()
    at = int(np.argmin([np.abs(fitted - plain_ridge(x, y, s, 4)).max() for s in PENALTIES]))
    assert errors[at] < 1.02 * min(errors)


def test_ridge_recovers_a_noiseless_linear_map():
    x = states(300, 12)
    matrix, shift = states(12, 7, seed=5), states(1, 7, seed=6)
    fitted = fit_map("ridge", x, x @ matrix + shift)
    torch.testing.assert_close(fitted(x), x @ matrix + shift, atol=1e-3, rtol=1e-4)
    fresh = states(50, 12, seed=9)
    torch.testing.assert_close(fitted(fresh), fresh @ matrix + shift, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("rows", "prompts", "rank"), [(70, None, 7), (99, None, 9), (300, 40, 4)])
def test_the_rank_of_ridge_is_a_tenth_of_the_prompts(rows, prompts, rank):
    fitted = fit_map("ridge", states(rows, 30), states(rows, 5, seed=1), prompts=prompts)
    assert fitted.rank == rank
    assert int(torch.linalg.matrix_rank(fitted.matrix)) <= min(rank, 5)


def test_ridge_uses_the_leading_principal_directions():
    scale = np.array([5.0, 0.5, 4.0, 0.2, 3.0])
    x = states(30, 5, scale=scale)
    fitted = fit_map("ridge", x, x.clone())
    centered = (x - x.mean(0)).numpy()
    basis = np.linalg.svd(centered, full_matrices=False)[2][:3]
    inside = fitted.matrix.numpy().T @ basis.T @ basis
    np.testing.assert_allclose(inside, fitted.matrix.numpy().T, atol=1e-10)
    assert fitted.rank == 3


def test_a_map_from_constant_states_gives_the_mean():
    y = states(40, 3)
    fitted = fit_map("ridge", torch.ones(40, 6).double(), y)
    assert fitted.rank == 0
    torch.testing.assert_close(fitted(torch.randn(5, 6).double()), y.mean(0).expand(5, 3))


def test_constant_directions_do_not_add_to_the_rank():
    x = torch.zeros(100, 8).double()
    x[:, :2] = states(100, 2)
    assert fit_map("ridge", x, states(100, 3)).rank == 2


# Orthogonal.


@pytest.mark.parametrize("seed", [0, 1])
def test_orthogonal_recovers_a_rotation_with_scale_and_shift(seed):
    x, q = states(60, 9, seed), rotation(9, seed)
    y = 2.5 * x @ q + torch.arange(9.0).double()
    fitted = fit_map("orthogonal", x, y)
    torch.testing.assert_close(fitted.matrix, 2.5 * q, atol=1e-9, rtol=0)
    fresh = states(20, 9, seed=99)
    torch.testing.assert_close(
        fitted(fresh), 2.5 * fresh @ q + torch.arange(9.0).double(), atol=1e-8, rtol=0
    )


def test_orthogonal_recovers_a_rotation_into_a_wider_space():
    x, q = states(80, 4), rotation(9)[:4]
    fitted = fit_map("orthogonal", x, 1.5 * x @ q)
    torch.testing.assert_close(fitted.matrix, 1.5 * q, atol=1e-9, rtol=0)


def test_orthogonal_recovers_the_scale_of_a_map_into_a_narrower_space():
    """White states fix the rotation, so only the scale is tested."""
    x = states(80, 9)
    x = torch.linalg.qr(x - x.mean(0))[0]
    q = rotation(9)[:, :4]
    fitted = fit_map("orthogonal", x, 1.5 * x @ q)
    torch.testing.assert_close(fitted.matrix, 1.5 * q, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("wide", "aim"), [(6, 6), (6, 9), (9, 6)])
def test_all_singular_values_of_an_orthogonal_map_are_equal(wide, aim):
    fitted = fit_map("orthogonal", states(50, wide), states(50, aim, seed=1)).matrix
    size = torch.linalg.svdvals(fitted)
    assert len(size) == min(wide, aim)
    torch.testing.assert_close(size, size[:1].expand(len(size)))


# Identity and errors.


def test_the_identity_changes_no_state():
    x = states(5, 4).float()
    fitted = fit_map("identity", x, states(5, 4, seed=1).float())
    assert torch.equal(fitted(x), x)
    assert fitted(x).dtype == x.dtype


def test_the_identity_refuses_different_widths():
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
def test_fewer_than_ten_prompts_are_refused_for_any_number_of_rows(kind):
    with pytest.raises(BatchError, match="9 prompts"):
        fit_map(kind, states(9, 3), states(9, 3))
    with pytest.raises(BatchError, match="9 prompts"):
        fit_map(kind, states(90, 3), states(90, 3), prompts=9)
    assert fit_map(kind, states(10, 3), states(10, 3)).matrix.shape == (3, 3)


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_a_fit_does_not_change_its_inputs(kind):
    x, y = states(30, 4), states(30, 4, seed=1)
    before = x.clone(), y.clone()
    fit_map(kind, x, y)(x)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
