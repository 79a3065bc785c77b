"""Attribution patching of single sites: a screen for exact activation patching.

    effect of a site ≈ <a - a', gradient of the logit difference at a>

a, a': activations of the site in the clean and in the counterfactual run; the gradient is that of
the clean run (Nanda 2023; Kramár et al. 2024, arXiv:2403.00745). One pass on each side and one
backward pass give every component × role, where exact patching runs the model once for each.
Outputs of heads and MLPs are patched, not queries and keys, so that no site stands directly before
a saturated softmax, which AtP* corrects. Sites that act by way of saturated attention still have
small gradients. `screened_patching` seeks them by a second gradient, and measures the error.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from probes.interventions.cached_run import MLP, CachedRun, Z, record_run
from probes.interventions.sweep import (
    PatchingEffects,
    mask_lacking_roles,
    pair_logit_diffs,
    patched_roles,
)
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.model import Model, ModelSpec, load
from probes.models.run_checks import require_unedited
from probes.models.site import RESID, component_sites
from probes.prompts.question import Pair
from probes.prompts.tokens.pair_batch import PairBatch, tokenize_pairs

MAX_GRADIENT_FLOATS = 60_000_000  # Activations that a pass with gradients keeps.

_HOOKS = {"resid": RESID, "heads": Z, "mlps": MLP}  # In the order of `component_sites`.


def attribution_patching(
    model: ModelSpec,
    pairs: PairBatch | Sequence[Pair],
    *,
    kinds: Sequence[str] = ("heads", "mlps"),
    roles: Sequence[str] | None = None,
) -> PatchingEffects:
    """Approximate the effects of `activation_patching` by one gradient.

    Args:
        model: Model whose activations are patched, or its name.
        pairs: Clean and counterfactual prompts, or pairs to tokenize, as of `sample_pairs`.
        kinds: Kinds of components: "heads", "mlps", "resid".
        roles: Roles to patch; those of the clean prompts by default.

    Raises:
        SiteError: A kind is unknown, none is given, or the prompts lack a role.
        ModelError: The model is being edited, or in training mode.
    """
    model = load(model)
    pairs = pairs if isinstance(pairs, PairBatch) else tokenize_pairs(model, pairs)
    roles = patched_roles(pairs, kinds, roles)
    require_unedited(model)
    components = component_sites(model.shape.layers, model.shape.heads, kinds, "")
    effects, totals = attribute_pairs(model, pairs, (kinds, roles))
    return PatchingEffects(
        model=model.name,
        contrast=pairs.contrast,
        components=tuple(site.component_name for site in components),
        roles=roles,
        answers=tuple(readout.name for readout in pairs.clean.readouts),
        per_prompt=mask_lacking_roles(effects, pairs, roles),
        total=totals,
        aligned_fraction=float(pairs.fully_aligned.float().mean()),
    )


def attribute_pairs(
    model: Model,
    pairs: PairBatch,
    parts: tuple[Sequence[str], Sequence[str]],
    *,
    count: int | None = None,
    points: Sequence[float] = (0.0,),
) -> tuple[Float[Tensor, "prompt part role answer"], Float[Tensor, "prompt answer"]]:
    """Effects of each part and total effects of the first `count` pairs, by default of all.

    `parts` are kinds of components, and roles. Gradients are averaged over `points`: 0 is the clean
    run, 1 a run from the embeddings of the counterfactual.
    """
    rows = torch.arange(len(pairs) if count is None else min(count, len(pairs)))
    what, width = "attribution patching", pairs.clean.ids.shape[1]
    batches = MicroBatches.of_gradients(what, model, width, MAX_GRADIENT_FLOATS)
    runs = run_micro_batches(
        model, rows, lambda part: _attribute(model, pairs, part, parts, points), batches
    )
    effects, totals = (torch.cat(each) for each in zip(*runs, strict=True))
    return effects, totals


def _attribute(
    model: Model,
    pairs: PairBatch,
    rows: Int[Tensor, " row"],
    parts: tuple[Sequence[str], Sequence[str]],
    points: Sequence[float],
) -> tuple[Float[Tensor, "row part role answer"], Float[Tensor, "row answer"]]:
    """Effects and total effects of some of the pairs, whose numbers are `rows`."""
    device, measure = model.device, pair_logit_diffs(pairs, model.device)
    other, clean = (
        (batch.ids[rows].to(device), batch.mask[rows].to(device), batch.positions[rows].to(device))
        for batch in (pairs.counterfactual, pairs.clean)
    )
    # The run whose gradient is taken is the clean run itself, unless it starts along the path.
    base = record_run(model, *clean, for_restarts=False) if any(points) else None
    source = record_run(model, *other, for_restarts=False)
    source = source.realigned(pairs.source_positions[rows].to(device))
    row, moves = rows.to(device), pairs.has_counterpart[rows].to(device)[..., None]
    hooks = {kind: hook for kind, hook in _HOOKS.items() if kind in parts[0]}
    masks = torch.stack([pairs.role_mask(role)[rows] for role in parts[1]], 1).to(device).float()
    slopes, start = [], None
    for point in points:
        if base:
            start = torch.where(moves, base.resid[0].lerp(source.resid[0], point), base.resid[0])
        with torch.enable_grad(), retaining(model, [*hooks.values()], start) as kept:
            logit_diffs = measure(model.forward(*clean), row)
        slopes.append(
            [
                torch.autograd.grad(
                    each.sum(), [*kept.values()], retain_graph=True, materialize_grads=True
                )
                for each in logit_diffs.unbind(1)
            ]
        )
    own = _activations(base, hooks) if base else [value.detach() for value in kept.values()]
    before = measure(base.logits, row) if base else logit_diffs.detach()
    changes = [a - b for a, b in zip(own, _activations(source, hooks), strict=True)]
    effects = []
    for by_point in zip(*slopes, strict=True):
        gradients = [torch.stack(each).mean(0) for each in zip(*by_point, strict=True)]
        products = [_products(a, grad) for a, grad in zip(changes, gradients, strict=True)]
        effects.append(
            einsum(torch.cat(products, -1), masks, "row p part, row role p -> row part role")
        )
    total = before - measure(source.logits, row)
    return torch.stack(effects, -1).detach().cpu(), total.detach().cpu()


def _activations(run: CachedRun, hooks: Mapping[str, str]) -> list[Tensor]:
    """Recorded activations in the order of `retaining`."""
    by_kind = {"resid": run.resid, "heads": run.z, "mlps": run.mlp_out}
    return [by_kind[kind][layer] for layer in range(len(run.z)) for kind in hooks]


def _products(
    change: Float[Tensor, "row p *part d"], grad: Float[Tensor, "row p *part d"]
) -> Float[Tensor, "row p part"]:
    """First-order effect of each component at each position."""
    effect = (change.float() * grad.float()).sum(-1)
    return effect if effect.ndim == 3 else effect[..., None]


@contextmanager
def retaining(
    model: Model, hooks: Sequence[str], start: Tensor | None
) -> Iterator[dict[str, Tensor]]:
    """Keep activations with their autograd graph, from an input of the first block."""
    kept: dict[str, Tensor] = {}
    names = [f"blocks.{layer}.{hook}" for layer in range(model.shape.layers) for hook in hooks]
    first = f"blocks.0.{RESID}"

    def keep(name: str, value: Tensor) -> Tensor:
        # Autograd gives gradients only at what a hook returns.
        kept[name] = value.view_as(value)
        return kept[name]

    def begin(value: Tensor) -> Tensor:
        value = (value if start is None else start).detach().requires_grad_()
        return keep(first, value) if first in names else value

    with model.editing({name: partial(keep, name) for name in names} | {first: begin}):
        yield kept
