"""Joint activation patching of several heads, and sets of heads that add up to one head."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import lsq_linear
from torch import Tensor

from probes.errors import SiteError
from probes.interventions.activation_patching import TOKENS_PER_BATCH
from probes.interventions.cached_run import CachedRun, Z, run_patches
from probes.interventions.sweep import (
    mask_lacking_roles,
    pair_logit_diffs,
    pair_runs,
    run_in_pairs,
)
from probes.models.model import Model
from probes.models.site import head_names, parse_head
from probes.prompts.tokens.pair_batch import PairBatch
from probes.prompts.tokens.role_axis import expand_to_roles

MAX_SET_SIZE = 3
"""Most heads of a set; some larger set would match any profile."""

_MAX_SUPPORT = 6
_MIN_WEIGHT = 0.05


@torch.no_grad()
def joint_effects(
    model: Model,
    batches: Mapping[str, PairBatch],
    sets: Sequence[Sequence[str]],
    roles: Sequence[str],
    *,
    at: Mapping[str, Bool[np.ndarray, "set role"]] | None = None,
) -> dict[str, Float[np.ndarray, "_ set effect"]]:
    """Patch all heads of a set at once, one role at a time.

    A run restarts at the block of the first patched head and the first patched position.

    Args:
        model: Model to patch.
        batches: Pairs of each contrast.
        sets: Names of heads, such as ("L0.H3", "L1.H2").
        roles: Roles to patch.
        at: Whether each set is patched at each role, by contrast; by default every one is. Where it
            is not, its effect is 0.

    Returns:
        Effects of each contrast, in the layout of `Profiles.effects` with sets in place of heads.

    Raises:
        SiteError: A set is empty, or names a head that the model lacks.
    """
    set_masks = _set_masks(model, sets)
    effects = {}
    for contrast, pairs in batches.items():
        present = [role for role in roles if role in pairs.clean.roles]
        each = np.ones((len(sets), len(roles)), dtype=bool) if at is None else at[contrast]
        wanted = torch.from_numpy(each[:, [roles.index(role) for role in present]])
        patched = _patch_sets(model, pairs, set_masks, present, wanted).numpy()
        effects[contrast] = expand_to_roles(patched, present, roles)
    return effects


def candidate_sets(
    target: Float[np.ndarray, " effect"], parts: Float[np.ndarray, "head effect"]
) -> list[tuple[int, ...]]:
    """Find the pair and the triple of heads whose summed profiles are closest to a target profile.

    Bounded least squares with weights from 0 to 1 (Stark & Parker 1995) selects the heads; all
    pairs and triples of these are compared with weights of 1. A sum only approximates a joint
    patch: measure the candidates with `joint_effects`.
    """
    if not np.any(parts) or not np.any(target):
        return []
    weights = lsq_linear(parts.T, target, bounds=(0, 1)).x
    size_ratio = weights * np.linalg.norm(parts, axis=1) / np.linalg.norm(target)
    largest = np.argsort(-size_ratio)[:_MAX_SUPPORT]
    support = sorted(int(k) for k in largest if size_ratio[k] > _MIN_WEIGHT)
    best = []
    for size in range(2, MAX_SET_SIZE + 1):
        sets = list(combinations(support, size))
        if sets:
            sums = np.stack([parts[list(members)].sum(0) for members in sets])
            best.append(sets[int(explained_fraction(target, sums).argmax())])
    return best


def explained_fraction(
    target: Float[np.ndarray, "*draw effect"], parts: Float[np.ndarray, "*draw head effect"]
) -> Float[np.ndarray, "*draw head"]:
    """Fraction of a profile's squared norm that each other profile explains without rescaling.

    1 for an equal profile, 0 for no effects, below 0 for worse than none.
    """
    rest = np.square(target[..., None, :] - parts).sum(-1)
    whole = np.square(target).sum(-1)[..., None]
    return 1 - np.divide(rest, whole, out=np.full_like(rest, np.inf), where=whole > 0)


def _set_masks(model: Model, sets: Sequence[Sequence[str]]) -> Bool[Tensor, "set layer head"]:
    shape = model.shape
    names = head_names(shape.layers, shape.heads)
    masks = torch.zeros(len(sets), shape.layers, shape.heads, dtype=torch.bool)
    for number, heads in enumerate(sets):
        if not heads or any(head not in names for head in heads):
            raise SiteError(
                f"{model.name} cannot patch the set {tuple(heads)}: name one or more of its heads "
                f"L0.H0 to L{shape.layers - 1}.H{shape.heads - 1}"
            )
        for head in heads:
            masks[number, *parse_head(head)] = True
    return masks


def _patch_sets(
    model: Model,
    pairs: PairBatch,
    set_masks: Bool[Tensor, "set layer head"],
    roles: Sequence[str],
    wanted: Bool[Tensor, "set role"],
) -> Float[Tensor, "prompt set role answer"]:
    set_masks, wanted = set_masks.to(model.device), wanted.to(model.device)
    measure = pair_logit_diffs(pairs, model.device)

    def patch(rows: Int[Tensor, " row"]) -> Tensor:
        index, (clean, source) = rows.to(model.device), pair_runs(model, pairs, rows)
        source = source.realigned(pairs.source_positions[rows].to(model.device))
        role_masks = torch.stack([pairs.role_mask(role)[rows] for role in roles]).to(model.device)
        before = measure(clean.logits, index)
        effects = torch.zeros(len(set_masks), len(roles), *before.shape, device=model.device)
        with model.locked():
            for batch in _patch_batches(clean, source, set_masks, role_masks, wanted):

                def patch_some(runs: Tensor, batch: Tensor = batch) -> None:
                    members, role, prompt = batch[:, runs]
                    positions = role_masks[role, prompt][None, :, :, None]
                    swap = positions & set_masks[members].transpose(0, 1)[:, :, None]
                    logits = _run_patched(clean, source, prompt, swap)
                    changed = before[prompt] - measure(logits, index[prompt])
                    effects[members, role, prompt] = changed

                run_patches(clean, patch_some, batch.shape[1], clean.ids.shape[1])
        return effects.permute(2, 0, 1, 3).cpu()

    return mask_lacking_roles(torch.cat(run_in_pairs(model, pairs, patch)), pairs, roles)


def _patch_batches(
    clean: CachedRun,
    source: CachedRun,
    set_masks: Bool[Tensor, "set layer head"],
    role_masks: Bool[Tensor, "role prompt position"],
    wanted: Bool[Tensor, "set role"],
) -> Iterator[Int[Tensor, "axis row"]]:
    """Wanted (set, role, prompt) whose patch changes any z, by first layer and position."""
    differs = (clean.z != source.z).any(-1)  # layer prompt position head
    rows = torch.einsum("lpth,rpt,slh->srp", differs.float(), role_masks.float(), set_masks.float())
    members, role, prompt = ((rows > 0) & wanted[..., None]).nonzero(as_tuple=True)
    layer = set_masks.any(-1).int().argmax(-1)[members]
    first, width = role_masks.int().argmax(-1)[role, prompt], clean.ids.shape[1]
    order = (layer * width + first).argsort(stable=True)
    while len(order):
        start = order[0]
        size = max(1, TOKENS_PER_BATCH // (width - int(first[start])))
        now = order[:size][layer[order[:size]] == layer[start]]
        order = order[len(now) :]
        yield torch.stack([members[now], role[now], prompt[now]])


def _run_patched(
    clean: CachedRun,
    source: CachedRun,
    prompt: Int[Tensor, " row"],
    swap: Bool[Tensor, "layer row position head"],
) -> Float[Tensor, "row answer vocab"]:
    """Logits at the read-outs of runs that restart where the first swap is, if they can."""
    model, readout = clean.model, clean.readout[prompt]
    start, first = (int(swap.any(axes).int().argmax()) for axes in ((1, 2, 3), (0, 1, 3)))
    if not clean.restarts:
        with model.editing(_edits(source, prompt, swap, slice(None))):
            return model.logits(clean.ids[prompt], clean.mask[prompt], readout)
    span = (first, max(int(clean.readout.max()), first) + 1)
    hidden = clean.resid[start][prompt, slice(*span)]
    with model.hooked(_edits(source, prompt, swap, slice(*span))):
        hidden = clean.run_blocks(range(start, model.shape.layers), prompt, span, hidden)
    at = (readout - first).clamp(min=0)[..., None]
    logits = model.unembed(hidden.take_along_dim(at, dim=1))
    return torch.where((readout >= first)[..., None], logits, clean.logits[prompt])


def _edits(
    source: CachedRun,
    prompt: Int[Tensor, " row"],
    swap: Bool[Tensor, "layer row position head"],
    span: slice,
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Edit of each block in which a head is swapped, at some positions."""
    return {
        f"blocks.{n}.{Z}": _replace_heads(swap[n][:, span], source.z[n, prompt][:, span])
        for n in range(len(swap))
        if bool(swap[n].any())
    }


def _replace_heads(
    swap: Bool[Tensor, "row position head"], source: Float[Tensor, "row position head d_head"]
) -> Callable[[Tensor], Tensor]:
    return lambda value: torch.where(swap[..., None], source, value)
