"""Several heads patched together, and the sets of heads whose sum may stand for one head."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import lsq_linear
from torch import Tensor

from probes.errors import SiteError
from probes.interventions.activation_patching import TOKENS_PER_BATCH, CachedRun, run_with_cache
from probes.models.model import Model
from probes.models.site import head_names, parse_head
from probes.observe.behavior import logit_diff, pair_foils
from probes.prompts.batch import Batch
from probes.prompts.pair_batch import PairBatch
from probes.prompts.role_axis import expand_to_roles

MAX_SET_SIZE = 3
"""How many heads a set may have: with more, some set explains anything."""

_MAX_SUPPORT = 6
_MIN_WEIGHT = 0.05


@torch.no_grad()
def joint_effects(
    model: Model,
    batches: Mapping[str, PairBatch],
    sets: Sequence[Sequence[str]],
    roles: Sequence[str],
) -> dict[str, Float[np.ndarray, "_ set effect"]]:
    """Patch all heads of a set at once, at one role after the other: exact, by whole passes.

    What comes back is laid out as `Profiles.effects` is, with sets in the place of heads: the fall
    of each answer's lead (logits). A set of one head has that head's profile.

    Args:
        model: The model that is patched.
        batches: Pairs for each contrast.
        sets: Names of heads, such as ("L0.H3", "L1.H2").
        roles: Where to patch; a set is patched at one role at a time.

    Raises:
        SiteError: A set is empty, or names a head that the model does not have.
    """
    wanted = _set_masks(model, sets)
    found = {}
    for contrast, pairs in batches.items():
        here = [role for role in roles if role in pairs.clean.roles]
        found[contrast] = expand_to_roles(
            _patch_sets(model, pairs, wanted, here).numpy(), here, roles
        )
    return found


def candidate_sets(
    target: Float[np.ndarray, " effect"], parts: Float[np.ndarray, "head effect"]
) -> list[tuple[int, ...]]:
    """Name the pair and the triple of heads whose summed profiles come nearest to a target.

    Least squares with coefficients from 0 to 1 (Stark & Parker 1995) says which heads take part
    at all; of these, each set is tried with every head in full, as a joint patch will have it.
    Sums stand for joint patches here: what is found must be measured.
    """
    if not np.any(parts) or not np.any(target):
        return []
    weights = lsq_linear(parts.T, target, bounds=(0, 1)).x
    part = weights * np.linalg.norm(parts, axis=1) / np.linalg.norm(target)
    support = [int(k) for k in np.argsort(-part)[:_MAX_SUPPORT] if part[k] > _MIN_WEIGHT]
    best = []
    for size in range(2, MAX_SET_SIZE + 1):
        sets = list(combinations(sorted(support), size))
        if sets:
            sums = np.stack([parts[list(chosen)].sum(0) for chosen in sets])
            best.append(sets[int(explained_fraction(target, sums).argmax())])
    return best


def explained_fraction(
    target: Float[np.ndarray, "*draw effect"], parts: Float[np.ndarray, "*draw head effect"]
) -> Float[np.ndarray, "*draw head"]:
    """Return the share of a profile's square that each other profile explains as it stands.

    1 is all. Below 0 is worse than a head without effects: nothing is rescaled, so strength counts.
    """
    rest = np.square(target[..., None, :] - parts).sum(-1)
    whole = np.square(target).sum(-1)[..., None]
    return 1 - np.divide(rest, whole, out=np.full_like(rest, np.inf), where=whole > 0)


def _set_masks(model: Model, sets: Sequence[Sequence[str]]) -> Bool[Tensor, "set layer head"]:
    shape = model.shape
    names = head_names(shape.layers, shape.heads)
    wanted = torch.zeros(len(sets), shape.layers, shape.heads, dtype=torch.bool)
    for number, heads in enumerate(sets):
        unknown = [head for head in heads if head not in names]
        if unknown or not heads:
            raise SiteError(
                f"{model.name} cannot patch {tuple(heads)} together: it has heads L0.H0 to "
                f"L{shape.layers - 1}.H{shape.heads - 1}. Name one of them or more"
            )
        for head in heads:
            wanted[number, *parse_head(head)] = True
    return wanted


def _patch_sets(
    model: Model,
    pairs: PairBatch,
    set_masks: Bool[Tensor, "set layer head"],
    roles: Sequence[str],
) -> Float[Tensor, "prompt set role answer"]:
    clean, theirs = _run_batch(model, pairs.clean), _run_batch(model, pairs.counterfactual)
    theirs = theirs.realigned(pairs.source_positions.to(model.device))
    leads = _logit_diff_function(pairs, model.device)
    before = leads(clean.logits, torch.arange(len(pairs), device=model.device))
    where = torch.stack([pairs.role_mask(role) for role in roles]).to(model.device)
    set_masks = set_masks.to(model.device)
    fall = torch.zeros(len(set_masks), len(roles), *before.shape, device=model.device)
    for chosen, role, prompt in _patch_batches(clean, theirs, set_masks, where):
        swap = where[role, prompt][None, :, :, None] & set_masks[chosen].transpose(0, 1)[:, :, None]
        edits = {
            f"blocks.{n}.attn.hook_z": _replace_heads(swap[n], theirs.z[n, prompt])
            for n in range(len(swap))
            if bool(swap[n].any())
        }
        with model.editing(edits):
            logits = model.logits(clean.ids[prompt], clean.mask[prompt])
        seen = logits.take_along_dim(clean.readout[prompt][..., None], dim=1)
        fall[chosen, role, prompt] = before[prompt] - leads(seen, prompt)
    lacks = torch.stack([~pairs.clean.role_mask(role).any(-1) for role in roles], 1)
    each = fall.permute(2, 0, 1, 3).cpu()
    return each.masked_fill(lacks[:, None, :, None], torch.nan)


def _patch_batches(
    clean: CachedRun,
    source: CachedRun,
    set_masks: Bool[Tensor, "set layer head"],
    role_masks: Bool[Tensor, "role prompt position"],
) -> Iterator[Int[Tensor, "axis row"]]:
    """List the sets, roles and prompts where a patch replaces anything, a few at a time."""
    differs = (clean.z != source.z).any(-1)  # layer prompt position head
    rows = torch.einsum("lpth,rpt,slh->srp", differs.float(), role_masks.float(), set_masks.float())
    yield from (rows > 0).nonzero().T.split(max(1, TOKENS_PER_BATCH // clean.ids.shape[1]), dim=1)


def _replace_heads(
    swap: Bool[Tensor, "row position head"], source: Float[Tensor, "row position head d_head"]
) -> Callable[[Tensor], Tensor]:
    return lambda value: torch.where(swap[..., None], source, value)


def _logit_diff_function(
    pairs: PairBatch, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    answer = torch.stack([readout.answer for readout in pairs.clean.readouts], 1).to(device)
    foils = [found.to(device) for found in pair_foils(pairs)]

    def leads(
        logits: Float[Tensor, "row answer vocab"], prompt: Int[Tensor, " row"]
    ) -> Float[Tensor, "row answer"]:
        found = [
            logit_diff(logits[:, k], foils[k][prompt], answer[prompt, k]) for k in range(len(foils))
        ]
        return torch.stack(found, 1)

    return leads


def _run_batch(model: Model, batch: Batch) -> CachedRun:
    ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
    return run_with_cache(model, ids, mask, batch.positions.to(model.device))
