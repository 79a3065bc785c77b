"""Subspaces of the residual stream that carry a variable, at one layer and role."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from probes.errors import BatchError, SiteError
from probes.interventions.activation_patching import CachedRun
from probes.interventions.subspaces.orthogonal_basis import OrthogonalBasis
from probes.models.double_precision import to_double
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.run_checks import require_eval
from probes.models.site import RESID, Site

SubspaceMethod = Literal["means", "das", "random", "pca"]

# Largest deviation from orthonormal rows; a QR in single precision deviates by less than 1e-6.
_ORTHONORMAL_TOLERANCE = 1e-4
# DAS stops when the mean loss (nats) of a window is low (the target has probability 0.98), or
# decreased by less than a fraction of itself.
_LOSS_WINDOW, _LOW_LOSS, _MIN_LOSS_DROP = 10, 0.02, 0.01
# Singular values below this fraction of the largest are rounding errors of float32.
_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions of the input of a block, at the tokens of one role.

    Attributes:
        layer: Block, from 0.
        role: Role of the tokens.
        method: "means" of classes, "das", "random" or "pca".
        basis: Orthonormal rows.

    Raises:
        SiteError: The rows are not orthonormal.
    """

    layer: int
    role: str
    method: SubspaceMethod
    basis: Float[Tensor, "dimension d_model"] = field(repr=False)

    def __post_init__(self) -> None:
        basis = self.basis.detach()
        error = (basis @ basis.T - torch.eye(len(basis)).to(basis)).abs()
        if not bool((error < _ORTHONORMAL_TOLERANCE).all()):
            raise SiteError(
                f"The basis at L{self.layer} is not orthonormal: off by {float(error.max()):.1e}. "
                "Give orthogonal rows of length 1, such as those of torch.linalg.qr"
            )

    def replace_projection(
        self, clean: Float[Tensor, "*rest d_model"], source: Float[Tensor, "*rest d_model"]
    ) -> Float[Tensor, "*rest d_model"]:
        """Clean states with the source's projection onto the subspace."""
        shift = (source - clean).to(self.basis.dtype) @ self.basis.T @ self.basis
        return clean + shift.to(clean.dtype)


def mean_difference(
    states: Float[Tensor, "row d_model"], labels: Int[Tensor, " row"]
) -> Float[Tensor, "dimension d_model"]:
    """Directions in which the class means differ, by decreasing size.

    One fewer than there are classes, or fewer where the means span fewer dimensions.

    Raises:
        BatchError: There is one class, a class has one row, or all means are equal.
    """
    classes, index, count = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2 or int(count.min()) < 2:
        raise BatchError(
            f"Class means need two or more classes with two or more rows each: {len(classes)} "
            f"classes of {sorted(count.tolist())[:5]} rows found"
        )
    rows = to_double(states)
    means = rows.new_zeros(len(classes), rows.shape[1])
    means = means.index_add(0, index.to(rows.device), rows) / count.to(rows.device)[:, None]
    basis = _svd_directions(means - means.mean(0), len(classes) - 1)
    if len(basis) == 0:
        raise BatchError(
            f"The {len(classes)} classes have the same mean: choose another layer or role"
        )
    return basis.float().to(states.device)


def principal_directions(
    states: Float[Tensor, "row d_model"], dims: int
) -> Float[Tensor, "{dims} d_model"]:
    """Principal directions of states, by decreasing variance.

    Raises:
        BatchError: The states vary in fewer than `dims` dimensions.
    """
    _check_dims(dims, states.shape[1])
    rows = to_double(states)
    basis = _svd_directions(rows - rows.mean(0), dims)
    if len(basis) < dims:
        raise BatchError(
            f"{len(states)} states vary in {len(basis)} dimensions, {dims} were requested: request "
            "fewer, or give more states"
        )
    return basis.float().to(states.device)


def random_subspace(dims: int, d_model: int, *, seed: int) -> Float[Tensor, "{dims} {d_model}"]:
    """Uniformly random orthonormal directions."""
    _check_dims(dims, d_model)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(d_model, dims, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(rows)
    # The signs of a QR are a convention; those of R undo it.
    return (q * r.diagonal().sign()).T.float()


@dataclass(frozen=True, eq=False)
class DASObjective:
    """What distributed alignment search optimizes: an answer after an interchange.

    Attributes:
        clean: Runs to patch.
        source: Runs of the same model, aligned to the clean positions.
        token_mask: Positions to patch.
        readout: Index of the read-out.
        target: Token that is to be predicted there.
    """

    clean: CachedRun = field(repr=False)
    source: CachedRun = field(repr=False)
    token_mask: Bool[Tensor, "prompt position"] = field(repr=False)
    readout: int
    target: Int[Tensor, " prompt"] = field(repr=False)


@dataclass(frozen=True, slots=True)
class DASSettings:
    """Optimizer of distributed alignment search.

    Attributes:
        steps: Most steps of Adam; the search stops earlier when the loss no longer decreases.
        learning_rate: Of Adam.
        batch_size: Prompts of one step.
        seed: Of the initial directions and the order of the prompts.
    """

    steps: int = 80
    learning_rate: float = 0.03
    batch_size: int = 16
    seed: int = 0


@torch.enable_grad()
def das(
    objective: DASObjective, site: Site, *, dims: int, settings: DASSettings = DASSettings()
) -> Subspace:
    """Search for directions whose projections, taken from the source, give the target.

    Distributed alignment search (Geiger et al. 2023, arXiv:2303.02536): Adam trains an orthonormal
    basis, and nothing else, on the cross-entropy of the target. The basis fits its prompts:
    evaluate it on others and beside a random-init model, because dormant directions can be found
    that work under patching only (Makelov et al. 2023, arXiv:2311.17030).

    Args:
        objective: Runs, positions and targets.
        site: Layer and role in the residual stream, the input of a block.
        dims: Number of directions, from 1 to d_model.
        settings: Optimizer.

    Raises:
        SiteError: The model has no such layer, read-out or number of directions.
        BatchError: The runs differ in size, or are equal at these tokens.
        ModelError: The model is in training mode.
    """
    clean, source, layer = objective.clean, objective.source, site.layer
    _check_das(objective, layer)
    _check_dims(dims, width := clean.resid.shape[-1])
    device, readout = clean.ids.device, clean.readout[:, objective.readout, None]
    differs = (clean.resid[layer] != source.resid[layer]).any(-1)
    # Tokens after the read-out have no effect on it.
    before = torch.arange(clean.ids.shape[1], device=device) <= readout
    changed = objective.token_mask & differs & before
    prompts = changed.any(-1).nonzero()[:, 0].cpu()
    if len(prompts) == 0:
        raise BatchError(
            f"The {len(clean.ids)} clean and source runs do not differ at {site} before the "
            "read-out: choose another layer, role or contrast"
        )
    target = objective.target.to(device)
    rotation = OrthogonalBasis(random_subspace(dims, width, seed=settings.seed), settings.seed)
    adam = torch.optim.Adam(rotation.parameters(), lr=settings.learning_rate)
    losses: list[float] = []
    trained, model = [*rotation.parameters()], clean.model

    def slope(rows: Int[Tensor, " row"]) -> tuple[float, list[Tensor]]:
        """Sum of the losses of some prompts, and its gradient."""
        rows = rows.to(device)
        subspace = Subspace(layer, site.role, "das", rotation.basis().to(device))
        logits = _run_patched(subspace, objective, changed, rows)
        loss = cross_entropy(logits.float(), target[rows]) * len(rows)
        return loss.item(), [*torch.autograd.grad(loss, trained)]

    sizes = MicroBatches("DAS", settings.batch_size, clean.ids.shape[1])
    for batch in _prompt_batches(prompts, settings):
        parts, slopes = zip(*run_micro_batches(model, batch, slope, sizes), strict=True)
        for weight, each in zip(trained, zip(*slopes, strict=True), strict=True):
            weight.grad = torch.stack(each).sum(0) / len(batch)
        adam.step()
        losses.append(sum(parts) / len(batch))
        if _has_converged(losses):
            break
    return Subspace(layer, site.role, "das", rotation.basis().detach().to(device))


def _run_patched(
    subspace: Subspace, objective: DASObjective, changed: Tensor, rows: Tensor
) -> Tensor:
    """Logits of some prompts with the source's projection, with gradients enabled.

    A run restarts at the patched block and the first patched token, where blocks can.
    """
    clean, layer, changed = objective.clean, subspace.layer, changed[rows]
    readout = clean.readout[rows, objective.readout]
    first, end = int(changed.any(0).int().argmax()), int(readout.max()) + 1
    span = slice(first, end) if clean.restarts else slice(None)
    swap, states = changed[:, span, None], objective.source.resid[layer][rows, span]

    def patch(value: Tensor) -> Tensor:
        return torch.where(swap, subspace.replace_projection(value, states), value)

    if not clean.restarts:
        with clean.model.editing({f"blocks.{layer}.{RESID}": patch}):
            logits = clean.model.forward(clean.ids[rows], clean.mask[rows], clean.readout[rows])
        return logits[:, objective.readout]
    with clean.model.locked():
        blocks = range(layer, clean.model.shape.layers)
        hidden = patch(clean.resid[layer][rows, span])
        hidden = clean.run_blocks(blocks, rows, (first, end), hidden)
        read = hidden.take_along_dim((readout - first)[:, None, None], dim=1)
        return clean.model.unembed(read)[:, 0]


def _prompt_batches(prompts: Tensor, settings: DASSettings) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    left = prompts[:0]
    for _ in range(settings.steps):
        if len(left) == 0:
            left = prompts[torch.randperm(len(prompts), generator=generator)]
        batch, left = left.tensor_split([settings.batch_size])
        yield batch


def _has_converged(losses: list[float]) -> bool:
    if len(losses) < 2 * _LOSS_WINDOW:
        return False
    now, before = sum(losses[-_LOSS_WINDOW:]), sum(losses[-2 * _LOSS_WINDOW : -_LOSS_WINDOW])
    return now < _LOSS_WINDOW * _LOW_LOSS or before - now < _MIN_LOSS_DROP * before


def _svd_directions(centered: Tensor, dims: int) -> Tensor:
    _, size, right = torch.linalg.svd(centered, full_matrices=False)
    rank = int((size > _RANK_TOLERANCE * max(float(size[0]), 1e-30)).sum())
    rows = right[: min(dims, rank)]
    # The signs of an SVD are arbitrary: the largest entry is made positive.
    largest = rows.take_along_dim(rows.abs().argmax(1, keepdim=True), dim=1)
    return rows * largest.sign()


def _check_dims(dims: int, d_model: int) -> None:
    if not 1 <= dims <= d_model:
        raise SiteError(
            f"A subspace of {dims} directions was requested: the residual stream allows 1 to "
            f"{d_model}"
        )


def _check_das(objective: DASObjective, layer: int) -> None:
    clean, source = objective.clean, objective.source
    model, n_readouts = clean.model, clean.readout.shape[1]
    require_eval(model)
    if not 0 <= layer < model.shape.layers or not 0 <= objective.readout < n_readouts:
        raise SiteError(
            f"{model.name} has no input of block {layer} or no read-out {objective.readout}: "
            f"give a block below {model.shape.layers} and a read-out below {n_readouts}"
        )
    if source.resid.shape != clean.resid.shape:
        raise BatchError(
            f"Source and clean run differ in size: {tuple(source.resid.shape)} and "
            f"{tuple(clean.resid.shape)}. Run both on batches of one size"
        )
