"""Two paths or one: what moves the number, what moves the noun, and what breaks either alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import SiteError
from probes.interventions.interchange import (
    NUMBER_READOUT,
    OBJECT_READOUT,
    InterchangeOutcomes,
    InterchangeRuns,
    interchange_intervention,
    with_residual,
)
from probes.interventions.result import (
    BindingSwap,
    Dissociation,
    Hotspots,
    InterchangeEffect,
    Necessity,
    OutputHeads,
)
from probes.interventions.subspace import Subspace, random_subspace
from probes.models.edits import Edit
from probes.models.site import Site, head_name, parse_head
from probes.prompts.interchange_pairs import BASE, OBJECT, OPERATION
from probes.stats.intervals import Estimate, bootstrap_mean, proportion

MIN_HEAD_FRACTION = 0.1
"""Share of the whole fall of a lead from which a head counts as one of its carriers."""


def dissociate(hotspots: Hotspots, *, seed: int = 0) -> Dissociation:
    """Hold the two swaps against each other, on the prompts that the hotspots were judged on."""
    crossed, plain = hotspots.runs, interchange_intervention(hotspots.runs, [])
    cells = [hotspots.hotspot(OPERATION).site, hotspots.hotspot(OBJECT).site]
    found = interchange_intervention(crossed, cells)
    swaps, right = (
        [],
        plain.is_outcome(BASE, NUMBER_READOUT)[0] & plain.is_outcome(BASE, OBJECT_READOUT)[0],
    )
    for row, variable in enumerate((OPERATION, OBJECT)):
        moved = [
            ~found.is_outcome(BASE, answer)[row][right]
            for answer in (NUMBER_READOUT, OBJECT_READOUT)
        ]
        swaps.append(
            InterchangeEffect(
                variable, proportion(moved[NUMBER_READOUT]), proportion(moved[OBJECT_READOUT])
            )
        )
    return Dissociation(
        *swaps,
        crossover=bootstrap_mean(_crossover(plain, found, at_other_readout=False), seed=seed),
        crossover_at_number=bootstrap_mean(
            _crossover(plain, found, at_other_readout=True), seed=seed
        ),
    )


def _crossover(
    baseline: InterchangeOutcomes, patched: InterchangeOutcomes, *, at_other_readout: bool
) -> Float[np.ndarray, " prompt"]:
    """Return the interaction of site and answer, prompt by prompt."""
    gains, scale = [], 0.0
    for answer, label in ((NUMBER_READOUT, OPERATION), (OBJECT_READOUT, OBJECT)):
        there = at_other_readout and answer == OBJECT_READOUT
        before = baseline.logit_shift(label, answer, at_other_readout=there)[0]
        # At one place both are measured by the number's lead: the noun's is next to nothing there.
        scale = scale if there else np.abs(before).mean()
        gains.append((patched.logit_shift(label, answer, at_other_readout=there) - before) / scale)
    number, noun = gains
    return (number[0] - noun[0]) - (number[1] - noun[1])


def necessity(
    runs: InterchangeRuns, subspace: Subspace, *, n_draws: int = 20, seed: int = 0
) -> Necessity:  # fmt: skip
    """Give each base another base's or source's part in a subspace, whatever that one asks.

    Args:
        crossed: The runs.
        space: Directions at one site.
        draws: How many random subspaces of equal variance to hold it against.
        seed: Of the resampling and the draws.
    """
    cell = Site(subspace.layer, "resid", subspace.role)
    states = torch.cat([runs.states(cell), runs.states(cell, "other")])
    rng, count = np.random.default_rng(seed), len(runs)
    # Another row, and its base or its source: never a base's own state.
    order = (np.arange(count) + rng.integers(1, count, count)) % count
    order = torch.from_numpy(order + count * rng.integers(0, 2, count))
    donor = states[order.to(states.device)][:, None]
    before = interchange_intervention(runs, [])

    def falls(used: Subspace) -> Float[np.ndarray, "answer prompt"]:
        clean = runs.clean.resid[subspace.layer]
        source = with_residual(
            runs, subspace.layer, used.replace_projection(clean, donor.expand_as(clean))
        )
        after = interchange_intervention(runs, [cell], source=source)
        odds = [
            (_log_odds(before, k)[0], _log_odds(after, k)[0])
            for k in (NUMBER_READOUT, OBJECT_READOUT)
        ]
        return np.stack([(here - there) / abs(here.mean()) for here, there in odds])

    own = falls(subspace)
    chance = []
    for draw in range(n_draws):
        basis = _control_direction(subspace.basis, states, seed=seed + draw)
        number, noun = falls(replace(subspace, method="random", basis=basis))
        chance.append(float((number - noun).mean()))
    number, noun, excess = (bootstrap_mean(v, seed=seed) for v in (own[0], own[1], own[0] - own[1]))
    return Necessity(number, noun, excess, tuple(chance))


def _control_direction(
    basis: Float[Tensor, "dimension d_model"], states: Float[Tensor, "row d_model"], *, seed: int
) -> Float[Tensor, "_ d_model"]:
    """Draw directions at right angles to a subspace until they hold as much variance as it does.

    In one dimension that holds most of the variance, directions of as much are nearly the same
    direction; so the rival may be wider, but holds nothing of the subspace.
    """
    size = states.shape[1]
    drawn = random_subspace(size, size, seed=seed).to(basis).double()
    own = basis.double()
    rest = drawn - drawn @ own.T @ own
    rest = torch.linalg.qr(rest[: size - len(own)].T).Q.T
    centered = states.double() - states.double().mean(0)
    held = (centered @ rest.T).square().sum(0).cumsum(0)
    wanted = (centered @ own.T).square().sum()
    return rest[: 1 + int((held < wanted).sum())].to(basis.dtype)


def _log_odds(outcomes: InterchangeOutcomes, answer: int) -> Float[np.ndarray, "site prompt"]:
    """Return the log-odds of the base's answer among the outcomes."""
    logits = outcomes.logits[answer].double()
    place = outcomes.labels[answer].index(BASE)
    rest = torch.cat([logits[..., :place], logits[..., place + 1 :]], -1)
    return (logits[..., place] - rest.logsumexp(-1)).numpy()


def output_heads(search_runs: InterchangeRuns, evaluation_runs: InterchangeRuns) -> OutputHeads:
    """Find the heads that bring number and noun to where they are read, and knock each set out."""
    shape, shares = search_runs.model.shape, []
    heads = [(layer, head) for layer in range(shape.layers) for head in range(shape.heads)]
    plain, read = interchange_intervention(search_runs, []), _with_readout_roles(search_runs)
    for answer, label in (
        (NUMBER_READOUT, search_runs.interchange_pairs.source_label),
        (OBJECT_READOUT, OBJECT),
    ):
        role = f"read {answer}"
        cells = [Site(layer, head, role) for layer, head in heads]
        before = plain.logit_shift(label, answer)
        gain = interchange_intervention(read, cells).logit_shift(label, answer) - before
        shares.append(gain.mean(1) / (2 * np.abs(before).mean()))
    names = [head_name(layer, head) for layer, head in heads]
    chosen = [
        tuple(name for name, share in zip(names, found, strict=True) if share >= MIN_HEAD_FRACTION)
        for found in shares
    ]
    return OutputHeads(
        number_heads=chosen[0],
        object_heads=chosen[1],
        without_number=ablate_heads(evaluation_runs, chosen[0]),
        without_object=ablate_heads(evaluation_runs, chosen[1]),
        without_object_everywhere=ablate_heads(evaluation_runs, chosen[1], all_positions=True),
        head_fractions={n: (float(a), float(b)) for n, a, b in zip(names, *shares, strict=True)},
    )


def _with_readout_roles(runs: InterchangeRuns) -> InterchangeRuns:
    """Name the positions where answers are read, as if they were roles."""
    position = torch.arange(runs.clean.ids.shape[1], device=runs.clean.ids.device)
    places = runs.clean.readout
    masks = {f"read {k}": position == places[:, k, None] for k in (NUMBER_READOUT, OBJECT_READOUT)}
    return replace(runs, role_masks={**runs.role_masks, **masks})


@torch.no_grad()
def ablate_heads(
    runs: InterchangeRuns, heads: Sequence[str], *, all_positions: bool = False
) -> tuple[Estimate, Estimate]:
    """Let heads write what the other object's sources made them write: where answers are read.

    Returns:
        How often number and noun are right then, of the bases where both were.
    """
    model, theirs = runs.model, runs.sources["other"].z
    named: dict[int, list[int]] = {}
    for name in heads:
        layer, head = parse_head(name)
        named.setdefault(layer, []).append(head)
    where = torch.ones_like(runs.clean.mask)
    if not all_positions:
        masks = _with_readout_roles(runs).role_masks
        where = masks[f"read {NUMBER_READOUT}"] | masks[f"read {OBJECT_READOUT}"]

    def edit(layer: int) -> Edit:
        chosen = torch.zeros(model.shape.heads, dtype=torch.bool, device=where.device)
        chosen[named[layer]] = True
        swap = (where[..., None] & chosen)[..., None]
        return lambda value: torch.where(swap, theirs[layer], value)

    with model.editing({f"blocks.{layer}.attn.hook_z": edit(layer) for layer in named}):
        logits = model.logits(runs.clean.ids, runs.clean.mask)
    said = logits.take_along_dim(runs.clean.readout[..., None], dim=1).argmax(-1)
    right = [
        (said[:, k] == runs.outcome_tokens[k][:, 0]).cpu().numpy()
        for k in (NUMBER_READOUT, OBJECT_READOUT)
    ]
    plain = interchange_intervention(runs, [])
    before = plain.is_outcome(BASE, NUMBER_READOUT)[0] & plain.is_outcome(BASE, OBJECT_READOUT)[0]
    return proportion(right[NUMBER_READOUT][before]), proportion(right[OBJECT_READOUT][before])


def swap_bindings(runs: InterchangeRuns, *, seed: int = 0) -> tuple[BindingSwap, ...]:
    """Exchange what binds each of two things to its number, layer by layer.

    The mean difference between the tokens of the two is added to one and taken from the other;
    nouns cancel in the mean (Feng and Steinhardt 2023, 2310.17191). The number should become what
    the operation leaves of the other thing's.

    Raises:
        SiteError: The pattern speaks of one thing only.
    """
    roles = (OBJECT, f"other_{OBJECT}")
    if lacking := [role for role in roles if role not in runs.role_masks]:
        raise SiteError(f"Bindings need two things: no role {', '.join(lacking)} in these prompts")
    sign = 1 if runs.interchange_pairs.pattern.endswith("-more") else -1
    asked = [pair.clean for pair in runs.interchange_pairs.other]
    texts = [f" {int(q['d']) + sign * int(q['y'])}" for q in asked]
    encoded = runs.model.tokenizer(texts, add_special_tokens=False).input_ids
    token: Int[Tensor, " prompt"] = torch.tensor([ids[-1] for ids in encoded])
    here = [runs.role_masks[role] for role in roles]
    both = replace(runs, role_masks={**runs.role_masks, "both": here[0] | here[1]})
    draw = torch.Generator().manual_seed(seed)
    found = []
    for layer in range(runs.model.shape.layers):
        states = [runs.states(Site(layer, "resid", role)).mean(0) for role in roles]
        step = states[1] - states[0]
        lot = torch.randn(step.shape, generator=draw).to(step)
        outcomes = []
        for shift in (step, lot * step.norm() / lot.norm()):
            moved = runs.clean.resid[layer] + torch.where(here[0][..., None], shift, 0.0)
            moved = moved - torch.where(here[1][..., None], shift, 0.0)
            source = with_residual(runs, layer, moved)
            outcomes.append(
                interchange_intervention(both, [Site(layer, "resid", "both")], source=source)
            )
        swapped, chance = (one.predicted_tokens[NUMBER_READOUT][0] == token for one in outcomes)
        stayed: Bool[np.ndarray, " prompt"] = (
            outcomes[0].is_outcome(BASE)[0] & outcomes[0].is_outcome(BASE, OBJECT_READOUT)[0]
        )
        found.append(
            BindingSwap(
                layer, proportion(swapped.numpy()), proportion(stayed), proportion(chance.numpy())
            )
        )
    return tuple(found)
