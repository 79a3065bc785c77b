"""Screen of output heads: one gradient gives the shift of every head; the strongest are exact."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.interventions.attribution_patching import MAX_GRADIENT_FLOATS, retaining
from probes.interventions.cached_run import Z
from probes.interventions.dissociation import HeadShifts, head_shifts, readout_masks
from probes.interventions.interchange import InterchangeRuns, interchange_intervention
from probes.interventions.interchange_outcomes import OBJECT_READOUT
from probes.interventions.screening.check import ScreenCheck
from probes.interventions.screening.patching import CHECKED_PAIRS, agreement
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.site import Site, head_name
from probes.prompts.interchange_pairs import BASE, OBJECT

_STRONGEST, _RANDOM = 24, 16  # Heads that are interchanged exactly.


def head_measure(*, screened: bool, seed: int = 0) -> Callable[[InterchangeRuns, int], HeadShifts]:
    """Measure of the shifts of all heads: exact, or screened with a seed for large models."""
    return partial(screened_head_shifts, seed=seed) if screened else head_shifts


def screened_head_shifts(runs: InterchangeRuns, answer: int, *, seed: int = 0) -> HeadShifts:
    """Shifts as of `head_shifts`, by a gradient; exact ones of the strongest and of a sample.

    The first-order shift of a head is <source - base, gradient> at the answer's read-out. A head
    that is no output head by it, and not among the strongest, keeps it. The seed draws the sample.
    """
    shape = runs.model.shape
    heads = [(layer, head) for layer in range(shape.layers) for head in range(shape.heads)]
    pairs = runs.interchange_pairs
    label = OBJECT if answer == OBJECT_READOUT else pairs.source_label
    labels = pairs.object_labels if answer == OBJECT_READOUT else pairs.number_labels
    tokens = runs.outcome_tokens[answer][:, [labels.index(label), labels.index(BASE)]]
    batches = MicroBatches.of_gradients(
        "attribution patching of heads", runs.model, runs.clean.ids.shape[1], MAX_GRADIENT_FLOATS
    )
    rows = torch.arange(len(runs), device=runs.clean.ids.device)
    parts = run_micro_batches(
        runs.model, rows, lambda part: _first_order(runs, part, answer, tokens), batches
    )
    shifts = torch.cat([*parts]).T.double().numpy()
    approximate = shifts.copy()
    strength = np.abs(shifts.mean(1))
    drawn = np.random.default_rng(seed).permutation(len(heads))[:_RANDOM]
    exact = np.union1d(strength.argsort()[::-1][:_STRONGEST], drawn)
    before = interchange_intervention(runs, []).logit_shift(label, answer)
    at_readout = replace(runs, role_masks=readout_masks(runs))
    sites = [Site(layer, head, str(answer)) for layer, head in (heads[n] for n in exact)]
    patched = interchange_intervention(at_readout, sites).logit_shift(label, answer)
    shifts[exact] = patched - before
    few = slice(CHECKED_PAIRS)
    a, b = (torch.from_numpy(each[exact, few].mean(1))[:, None] for each in (approximate, shifts))
    check = ScreenCheck(
        runs.model.name,
        f"heads at the {'noun' if answer == OBJECT_READOUT else 'number'}",
        cells=len(heads),
        exact=len(exact),
        random=len(drawn),
        **agreement(a, b, torch.from_numpy(strength[exact]), np.isin(exact, drawn)),
    )
    names = tuple(head_name(*head) for head in heads)
    return HeadShifts(names, shifts, np.abs(before[0]), check)


def _first_order(
    runs: InterchangeRuns, rows: Int[Tensor, " row"], answer: int, tokens: Int[Tensor, "prompt 2"]
) -> Float[Tensor, "row head"]:
    """Predicted change of the logit difference by each head, layer by layer."""
    run, source, at = runs.clean, runs.sources["other"], runs.clean.readout[rows, answer]
    with torch.enable_grad(), retaining(runs.model, [Z], None) as kept:
        logits = runs.model.forward(run.ids[rows], run.mask[rows], run.readout[rows])
    wanted = logits[:, answer].float().gather(-1, tokens[rows])
    slopes = torch.autograd.grad((wanted[:, 0] - wanted[:, 1]).sum(), [*kept.values()])
    here = torch.arange(len(rows), device=rows.device)
    effects = [
        ((source.z[n][rows, at] - run.z[n][rows, at]).float() * slope[here, at].float()).sum(-1)
        for n, slope in enumerate(slopes)
    ]
    return torch.cat(effects, -1).detach().cpu()
