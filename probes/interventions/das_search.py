"""How few directions carry the operation at a site, and whether a search can be fooled there."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from probes.interventions.directions import flips, operation_direction
from probes.interventions.geometry import Decoded, Dimension, decodable, dimension, off_manifold
from probes.interventions.interchange import NUMBER, Crossed, cross, exchange
from probes.interventions.subspace import Subspace, das
from probes.models.model import Model, untrained
from probes.models.site import Cell, join
from probes.prompts.interchange_pairs import OBJECT, OPERATION, Crossings
from probes.stats.intervals import Estimate, share

ENOUGH = 0.9
"""Share of what the whole state does that a subspace must do to carry the variable."""

CAPACITY = 0.2
"""What a search may reach in an untrained model before the method itself is in doubt."""


@dataclass(frozen=True, eq=False)
class Search:
    """Subspaces that were searched for on some prompts, judged on others.

    Attributes:
        whole: How often the whole state at the site hands over the operation.
        sizes, shares: For each number of directions, how often the searched ones do.
        smallest: The fewest directions that do 0.9 of what the whole does; None where none do.
        means: How often the one direction between the means does: the simple rival.
        permuted: How often directions do that were searched with permuted answers.
        elsewhere: How often directions do that were searched at the tokens of the layer that hand
            over least; None where no other tokens differ.
        untrained: How often directions do in an untrained model of the same shape.
        distance: Median distance of patched states from natural ones, natural ones being 1.
        dimensions: How many dimensions the site's states fill.
        space: The searched directions that were enough, or the last that were tried.
    """

    whole: Estimate
    sizes: tuple[int, ...]
    shares: tuple[Estimate, ...]
    smallest: int | None
    means: Estimate
    permuted: Estimate
    elsewhere: Estimate | None
    untrained: Estimate
    distance: float
    dimensions: Dimension
    space: Subspace


def search(
    finding: Crossed, judging: Crossed, cell: Cell, *, sizes: tuple[int, ...] = (1, 2, 4, 8),
    seed: int = 0,
) -> Search:  # fmt: skip
    """Search for the directions that carry the operation at a site, and for what chance finds.

    Distributed alignment search; see `das`. The search stops at the first size that is enough.

    Args:
        finding: Runs to search on.
        judging: Runs to judge on, of the same model.
        cell: A residual site of both.
        sizes: Numbers of directions to try, from few to many.
        seed: Of searches and permutations.
    """
    target = _target(finding)
    whole = share(_whole(judging, cell))
    found: list[tuple[int, Subspace, Estimate]] = []
    for size in sizes:
        space = _das(finding, cell, size, target, seed)
        found.append((size, space, share(flips(judging, space))))
        if 0 < ENOUGH * whole.value <= found[-1][2].value:
            break
    size, space, best = found[-1]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(target)))
    lost = _das(finding, cell, size, target[order.to(target.device)], seed)
    quiet = _quiet(finding, judging, cell)
    strange = _untrained(finding, judging, cell, size, seed)
    clean, theirs = judging.states(cell), judging.states(cell, "other")
    natural = torch.cat([finding.states(cell), finding.states(cell, "other")])
    return Search(
        whole=whole,
        sizes=tuple(n for n, _, _ in found),
        shares=tuple(value for _, _, value in found),
        smallest=size if 0 < ENOUGH * whole.value <= best.value else None,
        means=share(flips(judging, operation_direction(finding, cell))),
        permuted=share(flips(judging, lost)),
        elsewhere=None
        if quiet is None
        else share(flips(judging, _das(finding, quiet, size, target, seed))),
        untrained=strange,
        distance=float(off_manifold(natural, space.mix(clean, theirs)).median()),
        dimensions=dimension(natural),
        space=space,
    )


def _target(crossed: Crossed) -> torch.Tensor:
    """Return the token that the operation alone would make each base say."""
    return crossed.tokens[NUMBER][:, crossed.crossings.number.index(OPERATION)]


def _whole(judging: Crossed, cell: Cell) -> np.ndarray:
    every = torch.eye(judging.clean.resid.shape[-1], device=judging.clean.resid.device)
    return flips(judging, Subspace(cell.layer, cell.role, "means", every))


def _das(crossed: Crossed, cell: Cell, size: int, target: torch.Tensor, seed: int) -> Subspace:
    return das(
        crossed.clean,
        crossed.sources["other"],
        crossed.where[cell.role],
        layer=cell.layer,
        role=cell.role,
        dims=size,
        read=NUMBER,
        target=target,
        seed=seed,
    )


def _quiet(finding: Crossed, judging: Crossed, cell: Cell) -> Cell | None:
    """Return the site of the same layer that hands over least, though it differs; if any does."""
    roles = [r for r in finding.roles if r in judging.roles and r not in cell.role.split("+")]
    cells = [replace(cell, role=role) for role in roles]
    clean, theirs = (r.resid[cell.layer] for r in (finding.clean, finding.sources["other"]))
    differs = (clean != theirs).any(-1)
    cells = [c for c in cells if bool((differs & finding.where[c.role]).any(-1).all())]
    if not cells:
        return None
    takes = exchange(finding, cells).takes(OPERATION).mean(1)
    return cells[int(takes.argmin())]


def _untrained(finding: Crossed, judging: Crossed, cell: Cell, size: int, seed: int) -> Estimate:
    """Search in an untrained model, for the same answers."""
    null = untrained(finding.model, seed=seed)
    here, there = (cross(null, runs.crossings, roles=join(cell)) for runs in (finding, judging))
    return share(flips(there, _das(here, cell, size, _target(here), seed)))


def object_decodable(model: Model, drawn: Crossings, cell: Cell, *, seed: int = 0) -> Decoded:
    """Say whether the object can be read from a site's states, one base a row.

    Raises:
        BatchError: An object stands in one base only.
    """
    crossed = cross(model, drawn, roles=join(cell))
    words = [str(pair.clean[OBJECT]) for pair in drawn.other]
    labels = torch.tensor([sorted(set(words)).index(word) for word in words])
    return decodable(crossed.states(cell), labels, seed=seed)
