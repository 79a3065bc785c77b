"""The few directions of the residual stream, at one layer and role, that carry a variable."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from probes.errors import BatchError, SiteError
from probes.interventions.activation_patching import CachedRun
from probes.models.model import require_eval
from probes.models.process_state import seeded_init
from probes.models.site import RESID

SubspaceMethod = Literal["means", "das", "random", "pca"]

# How far rows may be from orthonormal: rounding of a QR in single precision is below 1e-6.
_ORTHONORMAL_TOLERANCE = 1e-4
# A search ends when the mean loss of so many steps is low (nats: the target has 0.98 of the
# probability), or has fallen by less than a share of itself.
_LOSS_WINDOW, _LOW_LOSS, _MIN_LOSS_DROP = 10, 0.02, 0.01
# Directions in which states extend less, as a share of the widest, are rounding in float32.
_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions of the residual stream that a block reads, at the tokens of one role.

    Attributes:
        layer: The block that reads there, from 0.
        role: The role at whose tokens it was found.
        method: How: "means" of classes, "das" (a search), "random" or "pca".
        basis: The directions: orthonormal rows.
    """

    layer: int
    role: str
    method: SubspaceMethod
    basis: Float[Tensor, "dimension d_model"]

    def __post_init__(self) -> None:
        here = torch.eye(len(self.basis), device=self.basis.device, dtype=self.basis.dtype)
        off = self.basis.detach() @ self.basis.detach().T - here
        if not bool((off.abs() < _ORTHONORMAL_TOLERANCE).all()):
            raise SiteError(
                f"The rows of the basis at L{self.layer} are not orthonormal: off by "
                f"{float(off.abs().max()):.1e}. "
                "Give it rows of length 1 at right angles, such as those of torch.linalg.qr."
            )

    def replace_projection(
        self, clean: Float[Tensor, "*rest d_model"], source: Float[Tensor, "*rest d_model"]
    ) -> Float[Tensor, "*rest d_model"]:
        """Return the clean states with their part in the subspace replaced by the source's."""
        moved = (source - clean).to(self.basis.dtype) @ self.basis.T @ self.basis
        return clean + moved.to(clean.dtype)


def mean_difference(
    states: Float[Tensor, "row d_model"], labels: Int[Tensor, " row"]
) -> Float[Tensor, "dimension d_model"]:
    """Return the directions in which the means of classes differ, the widest first.

    There are as many as classes less one, or fewer where the means lie in fewer dimensions.

    Raises:
        BatchError: There is one class, a class has one row, or all means are the same.
    """
    classes, place, count = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2 or int(count.min()) < 2:
        raise BatchError(
            f"Means of classes cannot be compared: {len(classes)} classes of "
            f"{sorted(count.tolist())[:5]} rows found. Give two classes or more, each of two rows "
            "or more."
        )
    states = states.double()
    means = torch.zeros(len(classes), states.shape[1], dtype=states.dtype, device=states.device)
    means = means.index_add(0, place, states) / count[:, None]
    found = _svd_directions(means - means.mean(0), len(classes) - 1)
    if len(found) == 0:
        raise BatchError(
            f"The {len(classes)} classes have one and the same mean: no direction tells them "
            "apart. Choose another layer or role."
        )
    return found.float()


def principal_directions(
    states: Float[Tensor, "row d_model"], dims: int
) -> Float[Tensor, "{dims} d_model"]:
    """Return the directions of greatest variance about the mean, the widest first.

    Raises:
        BatchError: The states vary in fewer than `dims` dimensions.
    """
    _check_dims(dims, states.shape[1])
    found = _svd_directions(states.double() - states.double().mean(0), dims)
    if len(found) < dims:
        raise BatchError(
            f"{len(states)} states vary in {len(found)} dimensions only: {dims} were asked. Ask "
            "for fewer, or give more states."
        )
    return found.float()


def random_subspace(dims: int, d_model: int, *, seed: int) -> Float[Tensor, "{dims} {d_model}"]:
    """Draw orthonormal directions, all directions being equally likely."""
    _check_dims(dims, d_model)
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(d_model, dims, dtype=torch.float64, generator=draw)
    q, r = torch.linalg.qr(rows)
    # A QR's signs are a convention: those of R undo it.
    return (q * r.diagonal().sign()).T.float()


@torch.enable_grad()
def das(  # noqa: PLR0913 (where to search, what for, and how)
    clean: CachedRun,
    source: CachedRun,
    token_mask: Bool[Tensor, "prompt position"],
    *,
    layer: int,
    role: str,
    dims: int,
    readout: int,
    target: Int[Tensor, " prompt"],
    steps: int = 80,
    learning_rate: float = 0.03,
    batch_size: int = 16,
    seed: int,
) -> Subspace:
    """Search for the directions that, taken from the source, make the model say the target.

    Distributed alignment search (Geiger et al. 2023, 2303.02536): an orthonormal basis is
    trained by Adam so that the cross-entropy of the target over the vocabulary is least when the
    part of the residual in its span is the source's. Nothing else is trained. The search fits its
    prompts: judge what it finds on prompts that it did not see, beside an untrained model, as
    directions that do nothing else can be found to work (Makelov et al. 2023, 2311.17030).

    Args:
        clean: The runs to change.
        source: The runs to take from, aligned to the clean positions, of the same model.
        where: The tokens at which the residual is changed, those of `role`.
        layer: The block that reads the residual.
        role: What to call the tokens.
        dims: How many directions, from 1 to d_model.
        read: The number of the read-out.
        target: The token that should be on top there.
        steps: The most steps; the search ends before when the loss no longer falls.
        rate: Adam's step.
        batch: Prompts of one step.
        seed: Where the search starts, and the order of the prompts.

    Raises:
        SiteError: The model has no such layer, read-out or number of directions.
        BatchError: The runs do not fit each other, or differ nowhere at these tokens.
        ModelError: The model is in training mode.
    """
    _check_das(clean, source, layer, readout)
    _check_dims(dims, width := clean.resid.shape[-1])
    changed = token_mask & (clean.resid[layer] != source.resid[layer]).any(-1)
    # A token behind the read-out cannot be seen from it.
    changed &= (
        torch.arange(token_mask.shape[1], device=token_mask.device)
        <= clean.readout[:, readout, None]
    )
    prompts = changed.any(-1).nonzero()[:, 0].cpu()
    if len(prompts) == 0:
        raise BatchError(
            f"The {len(token_mask)} clean and source runs do not differ at L{layer} {role!r} before "
            "the read-out: there is nothing to search. Choose another layer, role or contrast."
        )
    rotation = _OrthogonalBasis(random_subspace(dims, width, seed=seed), seed)
    adam = torch.optim.Adam(rotation.parameters(), lr=learning_rate)
    losses: list[float] = []
    for some in _prompt_batches(prompts, batch_size, steps, seed):
        rows = some.to(token_mask.device)
        now = Subspace(layer, role, "das", rotation.basis().to(token_mask.device))
        logits = _run_patched(now, clean, source, changed, rows)
        seen = logits.take_along_dim(clean.readout[rows, readout, None, None], dim=1)[:, 0]
        loss = cross_entropy(seen.float(), target.to(token_mask.device)[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        if _has_converged(losses):
            break
    return Subspace(layer, role, "das", rotation.basis().detach().to(token_mask.device))


class _OrthogonalBasis(nn.Module):
    """A basis that stays orthonormal while it is trained."""

    def __init__(self, basis: Tensor, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(basis.T.clone())
        with seeded_init(seed):
            nn.utils.parametrizations.orthogonal(self)

    def basis(self) -> Tensor:
        return self.weight.T


def _run_patched(
    subspace: Subspace, clean: CachedRun, source: CachedRun, changed: Tensor, rows: Tensor
) -> Tensor:
    """Run some prompts with the subspace's part taken from the source, open to gradients."""
    swap, theirs = changed[rows, :, None], source.resid[subspace.layer][rows]

    def put(value: Tensor) -> Tensor:
        return torch.where(swap, subspace.replace_projection(value, theirs), value)

    with clean.model.editing({f"blocks.{subspace.layer}.{RESID}": put}):
        return clean.model.forward(clean.ids[rows], clean.mask[rows])


def _prompt_batches(prompts: Tensor, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    left = prompts[:0]
    for _ in range(steps):
        if len(left) == 0:
            left = prompts[torch.randperm(len(prompts), generator=draw)]
        some, left = left.tensor_split([batch_size])
        yield some


def _has_converged(losses: list[float]) -> bool:
    if len(losses) < 2 * _LOSS_WINDOW:
        return False
    now, before = sum(losses[-_LOSS_WINDOW:]), sum(losses[-2 * _LOSS_WINDOW : -_LOSS_WINDOW])
    return now < _LOSS_WINDOW * _LOW_LOSS or before - now < _MIN_LOSS_DROP * before


def _svd_directions(centered: Tensor, dims: int) -> Tensor:
    _, size, right = torch.linalg.svd(centered, full_matrices=False)
    kept = int((size > _RANK_TOLERANCE * max(float(size[0]), 1e-30)).sum())
    found = right[: min(dims, kept)]
    # An SVD leaves signs open: the largest entry is made positive.
    largest = found.take_along_dim(found.abs().argmax(1, keepdim=True), dim=1)
    return found * largest.sign()


def _check_dims(dims: int, d_model: int) -> None:
    if not 1 <= dims <= d_model:
        raise SiteError(
            f"The residual stream has {d_model} dimensions: {dims} directions were asked. Ask for "
            f"1 to {d_model}."
        )


def _check_das(clean: CachedRun, source: CachedRun, layer: int, readout: int) -> None:
    model, answers = clean.model, clean.readout.shape[1]
    require_eval(model)
    if not 0 <= layer < model.shape.layers or not 0 <= readout < answers:
        raise SiteError(
            f"{model.name} cannot be searched at the input of block {layer} for read-out {readout}: "
            f"give a block below {model.shape.layers} and a read-out below {answers}."
        )
    if source.resid.shape != clean.resid.shape:
        raise BatchError(
            f"The source is of another size: its residual is {tuple(source.resid.shape)}, the "
            f"clean run's {tuple(clean.resid.shape)}. Record both as batches of one size."
        )
