"""Double dissociation of number and object: sites, subspaces, output heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.interventions.activation_patching import Z
from probes.interventions.hotspots.result import Hotspots
from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    with_residual,
)
from probes.interventions.interchange_outcomes import (
    NUMBER_READOUT,
    OBJECT_READOUT,
    InterchangeOutcomes,
)
from probes.interventions.result import (
    Dissociation,
    InterchangeEffect,
    Necessity,
    OutputHeads,
)
from probes.interventions.screening.check import ScreenCheck
from probes.interventions.subspaces.das import Subspace, random_subspace
from probes.models.double_precision import to_double
from probes.models.edits import Edit
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.site import Site, head_name, parse_head
from probes.prompts.interchange_pairs import BASE, OBJECT, OPERATION
from probes.stats.intervals import Estimate, bootstrap_mean, proportion

MIN_HEAD_FRACTION = 0.1
"""Fraction of the way to the source's answer at which a head counts as an output head."""

_READOUTS = (NUMBER_READOUT, OBJECT_READOUT)


def dissociate(hotspots: Hotspots, *, seed: int = 0) -> Dissociation:
    """Interchange the operation's and the object's hotspot, on the prompts of their evaluation."""
    clean = interchange_intervention(hotspots.runs, [])
    sites = [hotspots.hotspot(variable).site for variable in (OPERATION, OBJECT)]
    patched = interchange_intervention(hotspots.runs, sites)
    correct = clean.unchanged()[0]
    effects = []
    for row, variable in enumerate((OPERATION, OBJECT)):
        changed = (proportion(~patched.is_outcome(BASE, k)[row][correct]) for k in _READOUTS)
        effects.append(InterchangeEffect(variable, *changed))
    own = _crossover(clean, patched, at_other_readout=False)
    at_number = _crossover(clean, patched, at_other_readout=True)
    return Dissociation(
        *effects,
        crossover=bootstrap_mean(own, seed=seed),
        crossover_at_number=bootstrap_mean(at_number, seed=seed),
    )


def _crossover(
    clean: InterchangeOutcomes, patched: InterchangeOutcomes, *, at_other_readout: bool
) -> Float[np.ndarray, " prompt"]:
    """Interaction of site and answer, by prompt."""
    effects, scale = [], 0.0
    for answer, label in ((NUMBER_READOUT, OPERATION), (OBJECT_READOUT, OBJECT)):
        elsewhere = at_other_readout and answer == OBJECT_READOUT
        before = clean.logit_shift(label, answer, at_other_readout=elsewhere)[0]
        # The object's own logit difference is near 0 at the number's read-out: use the number's.
        scale = scale if elsewhere else np.abs(before).mean()
        after = patched.logit_shift(label, answer, at_other_readout=elsewhere)
        effects.append((after - before) / scale)
    number, noun = effects
    return (number[0] - noun[0]) - (number[1] - noun[1])


def necessity(
    runs: InterchangeRuns, subspace: Subspace, *, n_draws: int = 20, seed: int = 0
) -> Necessity:
    """Resample ablation of a subspace: each base takes the projection of a random other state.

    Args:
        runs: Runs of bases and sources.
        subspace: Directions at one site.
        n_draws: Random orthogonal subspaces with as much variance, for the null.
        seed: Of resampling and random subspaces.
    """
    site = Site(subspace.layer, "resid", subspace.role)
    states = torch.cat([runs.states(site), runs.states(site, "other")])
    rng, count = np.random.default_rng(seed), len(runs)
    # The base or the source of another row, never of its own.
    order = (np.arange(count) + rng.integers(1, count, count)) % count
    order = torch.from_numpy(order + count * rng.integers(0, 2, count))
    donor = states[order.to(states.device)][:, None]
    before = interchange_intervention(runs, [])

    def drops(ablated: Subspace) -> Float[np.ndarray, "answer prompt"]:
        clean = runs.clean.resid[subspace.layer]
        patched = ablated.replace_projection(clean, donor.expand_as(clean))
        source = with_residual(runs, subspace.layer, patched)
        after = interchange_intervention(runs, [site], source=source)
        log_odds = [(_log_odds(before, k)[0], _log_odds(after, k)[0]) for k in _READOUTS]
        return np.stack([(b - a) / abs(b.mean()) for b, a in log_odds])

    own = drops(subspace)
    null_excesses = []
    for draw in range(n_draws):
        basis = _control_direction(subspace.basis, states, seed=seed + draw)
        number, noun = drops(replace(subspace, method="random", basis=basis))
        null_excesses.append(float((number - noun).mean()))
    number, noun, excess = (bootstrap_mean(v, seed=seed) for v in (own[0], own[1], own[0] - own[1]))
    return Necessity(number, noun, excess, tuple(null_excesses))


def _control_direction(
    basis: Float[Tensor, "dimension d_model"], states: Float[Tensor, "row d_model"], *, seed: int
) -> Float[Tensor, "_ d_model"]:
    """Random directions orthogonal to a subspace, as many as hold its variance.

    They may be more than the subspace has: a single random direction with the variance of a
    dominant direction would be nearly the same direction.
    """
    size = states.shape[1]
    own, states = to_double(basis), to_double(states)
    candidates = random_subspace(size, size, seed=seed).to(basis.dtype).to(own)
    rest = candidates - candidates @ own.T @ own
    rest = torch.linalg.qr(rest[: size - len(own)].T).Q.T
    centered = states - states.mean(0)
    variance = (centered @ rest.T).square().sum(0).cumsum(0)
    wanted = (centered @ own.T).square().sum()
    return rest[: 1 + int((variance < wanted).sum())].to(basis)


def _log_odds(outcomes: InterchangeOutcomes, answer: int) -> Float[np.ndarray, "site prompt"]:
    """Log odds of the base's answer among the outcomes."""
    logits = outcomes.logits[answer].double()
    base = outcomes.labels[answer].index(BASE)
    rest = torch.cat([logits[..., :base], logits[..., base + 1 :]], -1)
    return (logits[..., base] - rest.logsumexp(-1)).numpy()


@dataclass(frozen=True, eq=False)
class HeadShifts:
    """Effect of each head's interchange at the read-out of one answer.

    Attributes:
        heads: Names of all heads.
        shifts: Change of the logit difference between the source's and the base's answer.
        clean: This logit difference without intervention, as an absolute value.
        screen: Error of the gradients that gave the shifts of most heads; None where all are exact.
    """

    heads: tuple[str, ...]
    shifts: Float[np.ndarray, "head prompt"]
    clean: Float[np.ndarray, " prompt"]
    screen: ScreenCheck | None = None

    def fractions(
        self, weights: Float[np.ndarray, "draw prompt"]
    ) -> Float[np.ndarray, "draw head"]:
        """Fraction of the way to the source's answer, by weights of the prompts."""
        return (weights @ self.shifts.T) / (2 * weights @ self.clean)[:, None]


def head_shifts(runs: InterchangeRuns, answer: int) -> HeadShifts:
    """Interchange every head at the read-out of an answer, one at a time."""
    shape = runs.model.shape
    heads = [(layer, head) for layer in range(shape.layers) for head in range(shape.heads)]
    label = OBJECT if answer == OBJECT_READOUT else runs.interchange_pairs.source_label
    before = interchange_intervention(runs, []).logit_shift(label, answer)
    at_readout = replace(runs, role_masks=readout_masks(runs))
    patched = interchange_intervention(at_readout, [Site(*head, str(answer)) for head in heads])
    names = tuple(head_name(*head) for head in heads)
    return HeadShifts(names, patched.logit_shift(label, answer) - before, np.abs(before[0]))


def output_heads(
    search_runs: InterchangeRuns,
    evaluation_runs: InterchangeRuns,
    measure: Callable[[InterchangeRuns, int], HeadShifts] = head_shifts,
) -> OutputHeads:
    """Find the heads that write number and object at their read-outs, and ablate each set.

    `measure` gives the shifts of all heads: exact ones, or for large models screened ones.
    """
    shifts = [measure(search_runs, answer) for answer in _READOUTS]
    names, equal = shifts[0].heads, np.ones((1, len(search_runs)))
    fractions = [own.fractions(equal)[0] for own in shifts]
    number_heads, object_heads = (
        tuple(name for name, f in zip(names, own, strict=True) if f >= MIN_HEAD_FRACTION)
        for own in fractions
    )
    return OutputHeads(
        number_heads=number_heads,
        object_heads=object_heads,
        without_number=ablate_heads(evaluation_runs, number_heads),
        without_object=ablate_heads(evaluation_runs, object_heads),
        without_object_everywhere=ablate_heads(evaluation_runs, object_heads, all_positions=True),
        head_fractions={n: (float(a), float(b)) for n, a, b in zip(names, *fractions, strict=True)},
        screens=tuple(own.screen for own in shifts if own.screen is not None),
    )


def readout_masks(runs: InterchangeRuns) -> dict[str, Tensor]:
    """Position of each read-out as a role, "0" and "1"."""
    position = torch.arange(runs.clean.ids.shape[1], device=runs.clean.ids.device)
    return {str(k): position == runs.clean.readout[:, k, None] for k in _READOUTS}


@torch.no_grad()
def ablate_heads(
    runs: InterchangeRuns, heads: Sequence[str], *, all_positions: bool = False
) -> tuple[Estimate, Estimate]:
    """Accuracy of number and object when heads take their output from sources about another object.

    Heads are patched at the read-outs, or everywhere. Only bases with two correct answers count.
    """
    model, source_z = runs.model, runs.sources["other"].z
    positions = torch.ones_like(runs.clean.mask)
    if not all_positions:
        positions = torch.stack([*readout_masks(runs).values()]).any(0)

    chosen = torch.zeros(model.shape.layers, model.shape.heads, dtype=torch.bool)
    for name in heads:
        chosen[parse_head(name)] = True
    layers, chosen = chosen.any(1).nonzero()[:, 0].tolist(), chosen.to(positions.device)

    def predict(rows: Int[Tensor, " row"]) -> Int[Tensor, "row answer"]:
        def edit(layer: int) -> Edit:
            swap = (positions[rows][..., None] & chosen[layer])[..., None]
            return lambda value: torch.where(swap, source_z[layer, rows], value)

        clean = runs.clean
        with model.editing({f"blocks.{layer}.{Z}": edit(layer) for layer in layers}):
            return model.logits(clean.ids[rows], clean.mask[rows], clean.readout[rows]).argmax(-1)

    every = torch.arange(len(runs), device=positions.device)
    batches = MicroBatches("ablation of heads", *positions.shape)
    predicted = torch.cat([*run_micro_batches(model, every, predict, batches)])
    both_correct = interchange_intervention(runs, []).unchanged()[0]
    number, noun = (
        proportion((predicted[:, k] == runs.outcome_tokens[k][:, 0]).cpu().numpy()[both_correct])
        for k in _READOUTS
    )
    return number, noun
