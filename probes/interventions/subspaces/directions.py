"""Directions of the operation: fitting, patching, and transfer between objects and models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.linalg import orthogonal_procrustes, subspace_angles
from torch import Tensor

from probes.errors import PatternError
from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
    with_residual,
)
from probes.interventions.interchange_outcomes import SourceObject
from probes.interventions.result import DirectionComparison
from probes.interventions.subspaces.das import Subspace, mean_difference
from probes.models.model import Model
from probes.models.site import Site, joined_roles
from probes.prompts.interchange_pairs import (
    OBJECT,
    OPERATION,
    BaseFilter,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.pattern import Pattern
from probes.stats.intervals import proportion
from probes.stats.paired import mcnemar_test


def operation_direction(runs: InterchangeRuns, site: Site) -> Subspace:
    """Difference of the mean states of bases and of sources about the same object.

    Only the operation differs systematically; numbers and names are drawn alike on both sides.
    """
    states = torch.cat([runs.states(site), runs.states(site, "same")])
    labels = torch.arange(2, device=states.device).repeat_interleave(len(runs))
    return Subspace(site.layer, site.role, "means", mean_difference(states, labels))


def patch_direction(
    runs: InterchangeRuns, subspace: Subspace, source_object: SourceObject = "other"
) -> Bool[np.ndarray, " prompt"]:
    """Where the number takes only the operation when a projection is replaced by the source's."""
    layer = subspace.layer
    states = runs.sources[source_object].resid[layer]
    patched = subspace.replace_projection(runs.clean.resid[layer], states)
    source, site = with_residual(runs, layer, patched), Site(layer, "resid", subspace.role)
    return interchange_intervention(runs, [site], source=source).is_outcome(OPERATION)[0]


def cross_model_hits(
    runs: InterchangeRuns, donor_runs: InterchangeRuns, site: Site
) -> Bool[np.ndarray, " prompt"]:
    """Where the number takes only the operation when a state is replaced by another model's.

    Both models have run the same interchange pairs and have the same width.
    """
    states = donor_runs.sources["other"].resid[site.layer].to(runs.clean.resid)
    source = with_residual(runs, site.layer, states)
    return interchange_intervention(runs, [site], source=source).is_outcome(OPERATION)[0]


@dataclass(frozen=True, slots=True)
class DirectionSettings:
    """Sizes and seed of `compare_directions`.

    Attributes:
        n_object_pairs: Most pairs of objects.
        bases: Bases of each pair.
        seed: Of objects and prompts.
    """

    n_object_pairs: int = 4
    bases: int = 30
    seed: int = 0


def compare_directions(
    model: Model, pattern: Pattern, site: Site, settings: DirectionSettings = DirectionSettings()
) -> DirectionComparison:
    """Transfer the operation's direction between objects, without and with a rotation.

    Directions and rotations (orthogonal Procrustes, Schoenemann 1966) are fitted on other prompts
    than the evaluation's.

    Raises:
        PatternError: No two objects have as many tokens, or two have too few prompts.
    """
    object_pairs = _sample_object_pairs(model, pattern, settings)
    hits: dict[str, list[Bool[np.ndarray, " prompt"]]] = {"own": [], "other": [], "rotated": []}
    angles = []
    for n, (a, b) in enumerate(object_pairs):
        seed = settings.seed + 10 * n
        runs, *fits = (
            run_interchange_pairs(
                model,
                _sample_between_objects(model, side, objects, settings.bases, seed + k),
                joined_roles=joined_roles(site),
            )
            for k, (side, objects) in enumerate(
                ((pattern, (b, a)), (pattern, (a, b)), (pattern.flipped(), (a, b)))
            )
        )
        other, own, rotated = _fit_directions(fits, site)
        angles.append(float(np.degrees(subspace_angles(other.T.numpy(), own.T.numpy()).max())))
        for name, basis in (("own", own), ("other", other), ("rotated", rotated)):
            # Not rounded to the dtype of the model: rounded rows are not orthonormal.
            basis = basis.to(runs.clean.resid.device)
            subspace = Subspace(site.layer, site.role, "means", basis)
            hits[name].append(patch_direction(runs, subspace, "same"))
    own, other, rotated = (np.concatenate(hits[name]) for name in ("own", "other", "rotated"))
    return DirectionComparison(
        own_direction=proportion(own),
        other_direction=proportion(other),
        rotated_direction=proportion(rotated),
        difference=mcnemar_test(other, own).difference,
        rotation_gain=mcnemar_test(other, rotated).difference,
        angles=tuple(angles),
        object_pairs=tuple(object_pairs),
    )


def _sample_object_pairs(
    model: Model, pattern: Pattern, settings: DirectionSettings
) -> list[tuple[str, str]]:
    """Pairs of objects with the same number of tokens, those with fewest tokens first.

    Raises:
        PatternError: There are none.
    """
    words = pattern.lexicon.words("noun")
    sizes = {word: len(model.tokenizer.tokenize(f" {word}")) for word in words}
    rng, pairs = np.random.default_rng(settings.seed), []
    for size in sorted(set(sizes.values())):
        order = rng.permutation([word for word in words if sizes[word] == size])
        pairs += [(str(a), str(b)) for a, b in zip(order[::2], order[1::2], strict=False)]
    if not pairs:
        found = ", ".join(f"{word} ({size})" for word, size in sizes.items())
        raise PatternError(
            f"No two objects of {pattern.name!r} have the same number of tokens in {model.name}: "
            f"{found}. Add nouns, so that two are as long"
        )
    return pairs[: settings.n_object_pairs]


def _sample_between_objects(
    model: Model, pattern: Pattern, objects: tuple[str, str], count: int, seed: int
) -> InterchangePairs:
    """Bases about the first object, with sources about the first and about the second."""
    return sample_interchange_pairs(
        pattern,
        count,
        tokenizers=(model.tokenizer,),
        seed=seed,
        base_filter=BaseFilter(
            allowed_words={OBJECT: objects}, keep=lambda question: question[OBJECT] == objects[0]
        ),
    )


def _fit_directions(
    fit_runs: Sequence[InterchangeRuns], site: Site
) -> tuple[Float[Tensor, "1 d_model"], Float[Tensor, "1 d_model"], Float[Tensor, "1 d_model"]]:
    """Directions of the first object, of the second, and of the first rotated to the second."""
    base_kinds = torch.arange(2).repeat_interleave(len(fit_runs[0]))
    both = [torch.cat([runs.states(site), runs.states(site, "same")]).cpu() for runs in fit_runs]
    first = mean_difference(torch.cat(both), torch.cat([base_kinds, 1 - base_kinds]))
    about_second = torch.cat([runs.states(site, "other").cpu() for runs in fit_runs])
    second = mean_difference(about_second, 1 - base_kinds)
    about_first = torch.cat([runs.states(site, "same").cpu() for runs in fit_runs])
    a, b = (states.double() for states in (about_first, about_second))
    rotation, _ = orthogonal_procrustes((a - a.mean(0)).numpy(), (b - b.mean(0)).numpy())
    rotated = first.double() @ torch.from_numpy(rotation)
    return first, second, (rotated / rotated.norm()).float()
