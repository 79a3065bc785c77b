"""The same direction, or only the same up to a rotation: operation directions across objects."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.linalg import orthogonal_procrustes, subspace_angles
from torch import Tensor

from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
    with_residual,
)
from probes.interventions.result import DirectionComparison
from probes.interventions.subspace import Subspace, mean_difference
from probes.models.model import Model
from probes.models.site import Site, joined_roles
from probes.prompts.interchange_pairs import (
    OBJECT,
    OPERATION,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.pattern import Pattern
from probes.stats.intervals import proportion
from probes.stats.paired import mcnemar_test


def compare_directions(  # noqa: PLR0913 (where, between what, and how hard)
    model: Model,
    pattern: Pattern,
    site: Site,
    *,
    n_object_pairs: int = 4,
    bases: int = 30,
    seed: int = 0,
) -> DirectionComparison:
    """Transfer the operation's direction between objects, as it is and rotated.

    Directions and rotations (orthogonal Procrustes, Schoenemann 1966) are fitted on other prompts
    than they are judged on.

    Raises:
        PatternError: Two objects do not make so many prompts.
    """
    pairs = _sample_object_pairs(model, pattern, n_object_pairs, seed)
    hits: dict[str, list[Bool[np.ndarray, " prompt"]]] = {"own": [], "raw": [], "rotated": []}
    angles = []
    for n, (a, b) in enumerate(pairs):
        drawn = [
            _sample_between_objects(model, side, objects, bases, seed + 10 * n + k)
            for k, (side, objects) in enumerate(
                ((pattern, (b, a)), (pattern, (a, b)), (pattern.flipped(), (a, b)))
            )
        ]
        crossed, *fits = (
            run_interchange_pairs(model, found, joined_roles=joined_roles(site)) for found in drawn
        )
        theirs, mine, turned = _fit_directions(fits, site)
        angles.append(float(np.degrees(subspace_angles(theirs.T.numpy(), mine.T.numpy()).max())))
        for name, basis in (("own", mine), ("raw", theirs), ("rotated", turned)):
            space = Subspace(site.layer, site.role, "means", basis.to(crossed.clean.resid))
            hits[name].append(patch_direction(crossed, space, "same"))
    own, raw, rotated = (np.concatenate(hits[name]) for name in ("own", "raw", "rotated"))
    return DirectionComparison(
        own_direction=proportion(own),
        other_direction=proportion(raw),
        rotated_direction=proportion(rotated),
        difference=mcnemar_test(raw, own).difference,
        rotation_gain=mcnemar_test(raw, rotated).difference,
        angles=tuple(angles),
        object_pairs=tuple(pairs),
    )


def patch_direction(
    runs: InterchangeRuns, subspace: Subspace, source_object: str = "other"
) -> Bool[np.ndarray, " prompt"]:
    """Mark where replacing the part in a subspace makes the number take up the operation alone."""
    clean, theirs = (
        runs.clean.resid[subspace.layer],
        runs.sources[source_object].resid[subspace.layer],
    )
    source = with_residual(runs, subspace.layer, subspace.replace_projection(clean, theirs))
    found = interchange_intervention(
        runs, [Site(subspace.layer, "resid", subspace.role)], source=source
    )
    return found.is_outcome(OPERATION)[0]


def _sample_object_pairs(
    model: Model, pattern: Pattern, count: int, seed: int
) -> list[tuple[str, str]]:
    """Draw pairs of objects that are equally long."""
    words = pattern.lexicon.words("noun")
    sizes = {word: len(model.tokenizer.tokenize(f" {word}")) for word in words}
    least = min(sizes.values())
    drawn = np.random.default_rng(seed).permutation([w for w in words if sizes[w] == least])
    return [(str(a), str(b)) for a, b in zip(drawn[::2], drawn[1::2], strict=False)][:count]


def _sample_between_objects(
    model: Model, pattern: Pattern, object_pair: tuple[str, str], count: int, seed: int
) -> InterchangePairs:
    """Draw bases about the first object, with sources about it and about the second."""
    return sample_interchange_pairs(
        pattern,
        count,
        tokenizers=(model.tokenizer,),
        seed=seed,
        allowed_words={OBJECT: object_pair},
        keep=lambda question: question[OBJECT] == object_pair[0],
    )


def _fit_directions(
    fit_runs: Sequence[InterchangeRuns], site: Site
) -> tuple[Float[Tensor, "1 d_model"], Float[Tensor, "1 d_model"], Float[Tensor, "1 d_model"]]:
    """Return the first object's direction, the second's, and the first's turned to the second."""
    here = [torch.cat([f.states(site), f.states(site, "same")]).cpu() for f in fit_runs]
    kinds = torch.arange(2).repeat_interleave(len(fit_runs[0]))
    first = mean_difference(torch.cat(here), torch.cat([kinds, 1 - kinds]))
    there = [f.states(site, "other").cpu() for f in fit_runs]
    second = mean_difference(
        torch.cat(there), 1 - torch.arange(2).repeat_interleave(len(fit_runs[0]))
    )
    alike = torch.cat([f.states(site, "same").cpu() for f in fit_runs]).double()
    other = torch.cat(there).double()
    turn, _ = orthogonal_procrustes(
        (alike - alike.mean(0)).numpy(), (other - other.mean(0)).numpy()
    )
    turned = first.double() @ torch.from_numpy(turn)
    return first, second, (turned / turned.norm()).float()


def operation_direction(runs: InterchangeRuns, site: Site) -> Subspace:
    """Return the difference of means of bases and sources: the operation's, as all else is mixed.

    Objects are the same on both sides, numbers and names drawn alike.
    """
    states = torch.cat([runs.states(site), runs.states(site, "same")])
    kinds = torch.arange(2, device=states.device).repeat_interleave(len(runs))
    return Subspace(site.layer, site.role, "means", mean_difference(states, kinds))


def cross_model_hits(
    runs: InterchangeRuns, donor_runs: InterchangeRuns, site: Site
) -> Bool[np.ndarray, " prompt"]:
    """Mark where another model's state, put in as it is, makes the number take up the operation.

    Both models must have read the same crossings and be equally wide.
    """
    theirs = donor_runs.sources["other"].resid[site.layer]
    source = replace(with_residual(runs, site.layer, theirs.to(runs.clean.resid)), model=runs.model)
    return interchange_intervention(runs, [site], source=source).is_outcome(OPERATION)[0]
