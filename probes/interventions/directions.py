"""The same direction, or only the same up to a rotation: operation directions across objects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.linalg import orthogonal_procrustes, subspace_angles
from torch import Tensor

from probes.interventions.interchange import Crossed, cross, exchange, with_states
from probes.interventions.subspace import Subspace, mean_difference
from probes.models.model import Model
from probes.models.site import Cell, join
from probes.prompts.interchange_pairs import OBJECT, OPERATION, Crossings, crossings
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, share
from probes.stats.paired import paired


@dataclass(frozen=True, eq=False)
class Alignment:
    """How well one object's operation direction serves another object.

    Attributes:
        own: How often the number takes up the operation when the base's part in its own object's
            direction is replaced.
        raw: The same in another object's direction.
        rotated: The same in another object's direction, turned by the orthogonal map that takes
            that object's states to this one's.
        difference: `own` less `raw`, paired by base.
        gain: `rotated` less `raw`, paired by base.
        angles: The angle between the two objects' directions in degrees, pair by pair.
        objects: The pairs of objects.
    """

    own: Estimate
    raw: Estimate
    rotated: Estimate
    difference: Estimate
    gain: Estimate
    angles: tuple[float, ...]
    objects: tuple[tuple[str, str], ...]


def align(  # noqa: PLR0913 (where, between what, and how hard)
    model: Model,
    pattern: Pattern,
    cell: Cell,
    *,
    couples: int = 4,
    bases: int = 30,
    seed: int = 0,
) -> Alignment:
    """Transfer the operation's direction between objects, as it is and rotated.

    Directions and rotations (orthogonal Procrustes, Schoenemann 1966) are fitted on other prompts
    than they are judged on.

    Raises:
        PatternError: Two objects do not make so many prompts.
    """
    pairs = _couples(model, pattern, couples, seed)
    hits: dict[str, list[Bool[np.ndarray, " prompt"]]] = {"own": [], "raw": [], "rotated": []}
    angles = []
    for n, (a, b) in enumerate(pairs):
        drawn = [
            _between(model, side, objects, bases, seed + 10 * n + k)
            for k, (side, objects) in enumerate(
                ((pattern, (b, a)), (pattern, (a, b)), (pattern.turned(), (a, b)))
            )
        ]
        crossed, *fits = (cross(model, found, roles=join(cell)) for found in drawn)
        theirs, mine, turned = _directions(fits, cell)
        angles.append(float(np.degrees(subspace_angles(theirs.T.numpy(), mine.T.numpy()).max())))
        for name, basis in (("own", mine), ("raw", theirs), ("rotated", turned)):
            space = Subspace(cell.layer, cell.role, "means", basis.to(crossed.clean.resid))
            hits[name].append(flips(crossed, space, "same"))
    own, raw, rotated = (np.concatenate(hits[name]) for name in ("own", "raw", "rotated"))
    return Alignment(
        own=share(own),
        raw=share(raw),
        rotated=share(rotated),
        difference=paired(raw, own).difference,
        gain=paired(raw, rotated).difference,
        angles=tuple(angles),
        objects=tuple(pairs),
    )


def flips(crossed: Crossed, space: Subspace, objects: str = "other") -> Bool[np.ndarray, " prompt"]:
    """Mark where replacing the part in a subspace makes the number take up the operation alone."""
    clean, theirs = crossed.clean.resid[space.layer], crossed.sources[objects].resid[space.layer]
    source = with_states(crossed, space.layer, space.mix(clean, theirs))
    found = exchange(crossed, [Cell(space.layer, "resid", space.role)], source=source)
    return found.says(OPERATION)[0]


def _couples(model: Model, pattern: Pattern, count: int, seed: int) -> list[tuple[str, str]]:
    """Draw pairs of objects that are equally long."""
    words = pattern.lexicon.words("noun")
    sizes = {word: len(model.tokenizer.tokenize(f" {word}")) for word in words}
    least = min(sizes.values())
    drawn = np.random.default_rng(seed).permutation([w for w in words if sizes[w] == least])
    return [(str(a), str(b)) for a, b in zip(drawn[::2], drawn[1::2], strict=False)][:count]


def _between(
    model: Model, pattern: Pattern, objects: tuple[str, str], count: int, seed: int
) -> Crossings:
    """Draw bases about the first object, with sources about it and about the second."""
    return crossings(
        pattern,
        count,
        tokenizers=(model.tokenizer,),
        seed=seed,
        words={OBJECT: objects},
        keep=lambda question: question[OBJECT] == objects[0],
    )


def _directions(
    fits: Sequence[Crossed], cell: Cell
) -> tuple[Float[Tensor, "1 d_model"], Float[Tensor, "1 d_model"], Float[Tensor, "1 d_model"]]:
    """Return the first object's direction, the second's, and the first's turned to the second."""
    here = [torch.cat([f.states(cell), f.states(cell, "same")]).cpu() for f in fits]
    kinds = torch.arange(2).repeat_interleave(len(fits[0]))
    first = mean_difference(torch.cat(here), torch.cat([kinds, 1 - kinds]))
    there = [f.states(cell, "other").cpu() for f in fits]
    second = mean_difference(torch.cat(there), 1 - torch.arange(2).repeat_interleave(len(fits[0])))
    alike = torch.cat([f.states(cell, "same").cpu() for f in fits]).double()
    other = torch.cat(there).double()
    turn, _ = orthogonal_procrustes(
        (alike - alike.mean(0)).numpy(), (other - other.mean(0)).numpy()
    )
    turned = first.double() @ torch.from_numpy(turn)
    return first, second, (turned / turned.norm()).float()


def operation_direction(crossed: Crossed, cell: Cell) -> Subspace:
    """Return the difference of means of bases and sources: the operation's, as all else is mixed.

    Objects are the same on both sides, numbers and names drawn alike.
    """
    states = torch.cat([crossed.states(cell), crossed.states(cell, "same")])
    kinds = torch.arange(2, device=states.device).repeat_interleave(len(crossed))
    return Subspace(cell.layer, cell.role, "means", mean_difference(states, kinds))


def transplanted(crossed: Crossed, donor: Crossed, cell: Cell) -> Bool[np.ndarray, " prompt"]:
    """Mark where another model's state, put in as it is, makes the number take up the operation.

    Both models must have read the same crossings and be equally wide.
    """
    theirs = donor.sources["other"].resid[cell.layer]
    source = replace(
        with_states(crossed, cell.layer, theirs.to(crossed.clean.resid)), model=crossed.model
    )
    return exchange(crossed, [cell], source=source).says(OPERATION)[0]
