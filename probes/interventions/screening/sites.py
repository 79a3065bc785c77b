"""Screen of sites: gradients of all outcomes choose the sites that are interchanged exactly.

    logit of an outcome after interchange ≈ logit before + <source - base, its gradient at the site>

This first-order prediction (attribution patching, Nanda 2023; Kramár et al. 2024, arXiv:2403.00745)
gives the answer that an interchange at each site would have. The sites where a variable alone is
predicted to change by the widest margin are interchanged exactly on a few bases, and the best of
them on all. So every fraction of a result is exact. A random sample of all sites, which is
interchanged as well, tells how far the prediction is off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from probes.interventions.attribution_patching import MAX_GRADIENT_FLOATS, retaining
from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
)
from probes.interventions.interchange_outcomes import (
    NUMBER_READOUT,
    OBJECT_READOUT,
    InterchangeOutcomes,
    SourceObject,
)
from probes.interventions.screening.check import ScreenCheck
from probes.interventions.screening.patching import CHECKED_PAIRS, agreement
from probes.interventions.site_search import (
    EQUIVALENCE_MARGIN,
    MIN_FRACTION,
    SiteSearch,
    inner_sites,
    interchange_both,
    taken_rate,
    takes_only_rate,
)
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.site import RESID, Site
from probes.prompts.interchange_pairs import BASE, OBJECT

_KINDS: tuple[SourceObject, ...] = ("other", "same")


@dataclass(frozen=True, slots=True)
class SiteScreen:
    """How many sites a screen leaves, and on how many bases.

    Attributes:
        bases: Bases of the gradients and of the first exact interchange.
        top: Sites of each variable that are predicted best.
        random: Sites of a random sample of all, on the first 8 bases.
        kept: Sites of each variable, the best of these, that are interchanged on all bases; and the
            two of one layer that may be joined, where no single one is near the ceiling.
        seed: Of the sample.
    """

    bases: int = 16
    top: int = 8
    random: int = 20
    kept: int = 3
    seed: int = 0


@dataclass(frozen=True, eq=False)
class PredictedAnswers:
    """First-order logits of all outcomes after interchange at each site.

    Attributes:
        runs: Runs of the bases.
        sites: All sites between blocks.
        clean: Logits of the outcomes without intervention; the answers stand one after the other.
        changes: Predicted changes of these logits, by the source's object.
    """

    runs: InterchangeRuns = field(repr=False)
    sites: tuple[Site, ...]
    clean: Float[Tensor, "prompt outcome"] = field(repr=False)
    changes: Mapping[str, Float[Tensor, "prompt site outcome"]] = field(repr=False)

    @property
    def is_live(self) -> np.ndarray:
        """Sites with a predicted effect in some prompt."""
        live = [change.ne(0).any(-1).any(0) for change in self.changes.values()]
        return torch.stack(live).any(0).numpy()

    def margin(self, label: str) -> Float[np.ndarray, " site"]:
        """Mean logits by which one variable, and no other, is predicted to be taken.

        The outcome is ahead of all others of its answer, and the other answer stays the base's:
        the smaller of the two distances counts. All variables of the number together need not
        leave the noun.
        """
        kinds = {OBJECT: _KINDS[:1], self.runs.interchange_pairs.source_label: _KINDS[1:]}
        margins = []
        for kind in kinds.get(label, _KINDS):
            logits = self.clean[:, None] + self.changes[kind]
            number, noun = logits.split([t.shape[1] for t in self.runs.outcome_tokens], -1)
            numbers, nouns = _labels(self.runs)
            if label == OBJECT:
                both = [_ahead(noun, nouns.index(OBJECT)), _ahead(number, numbers.index(BASE))]
            else:
                both = [_ahead(number, numbers.index(label))]
                if label != self.runs.interchange_pairs.source_label:
                    both.append(_ahead(noun, nouns.index(BASE)))
            margins.append(torch.stack(both).amin(0).mean(0))
        return torch.stack(margins).mean(0).numpy()

    def shift(self, label: str, kind: SourceObject) -> Float[np.ndarray, "prompt site"]:
        """Predicted change of an outcome's logit minus that of the base's answer."""
        numbers, nouns = _labels(self.runs)
        outcome, base = numbers.index(label) if label in numbers else 0, 0
        if label == OBJECT:
            outcome, base = len(numbers) + nouns.index(OBJECT), len(numbers)
        return (self.changes[kind][..., outcome] - self.changes[kind][..., base]).numpy()


def _labels(runs: InterchangeRuns) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return runs.interchange_pairs.number_labels, runs.interchange_pairs.object_labels


def _ahead(logits: Float[Tensor, "*_ outcome"], index: int) -> Float[Tensor, "*_"]:
    """Distance of an outcome to the best of the others."""
    others = torch.cat([logits[..., :index], logits[..., index + 1 :]], -1)
    return logits[..., index] - others.amax(-1)


def predict_answers(runs: InterchangeRuns) -> PredictedAnswers:
    """Predict the logits of all outcomes at all sites, by one gradient of each outcome."""
    sites = tuple(inner_sites(runs))
    what, width = "attribution patching of answers", runs.clean.ids.shape[1]
    batches = MicroBatches.of_gradients(what, runs.model, width, MAX_GRADIENT_FLOATS)
    rows = torch.arange(len(runs), device=runs.clean.ids.device)
    parts = run_micro_batches(runs.model, rows, lambda part: _predict(runs, part), batches)
    clean, *changes = (torch.cat(each) for each in zip(*parts, strict=True))
    return PredictedAnswers(runs, sites, clean, dict(zip(_KINDS, changes, strict=True)))


def _predict(runs: InterchangeRuns, rows: Int[Tensor, " row"]) -> tuple[Tensor, ...]:
    """Logits of the outcomes of some bases, and their changes by each kind of source."""
    run, model = runs.clean, runs.model
    tokens = [tokens[rows] for tokens in runs.outcome_tokens]
    masks = torch.stack([runs.role_masks[role][rows] for role in runs.roles], 1).float()
    with torch.enable_grad(), retaining(model, [RESID], None) as kept:
        logits = model.forward(run.ids[rows], run.mask[rows], run.readout[rows])
    outcomes = torch.cat([logits[:, k].float().gather(-1, own) for k, own in enumerate(tokens)], -1)
    inner = [*kept.values()][1:]  # Before each block but the first.
    layers = slice(1, model.shape.layers)
    changes = [runs.sources[kind].resid[layers, rows] - run.resid[layers, rows] for kind in _KINDS]
    effects: list[list[Tensor]] = [[] for _ in _KINDS]
    for outcome in outcomes.unbind(-1):
        slopes = torch.stack(torch.autograd.grad(outcome.sum(), inner, retain_graph=True))
        for change, found in zip(changes, effects, strict=True):
            at_position = (change.float() * slopes.float()).sum(-1)
            by_role = einsum(at_position, masks, "layer row p, row role p -> row layer role")
            found.append(rearrange(by_role, "row layer role -> row (layer role)"))
    each = (torch.stack(found, -1).cpu() for found in effects)
    return outcomes.detach().cpu(), *each


def screen_sites(
    runs: InterchangeRuns, variables: Sequence[str], screen: SiteScreen = SiteScreen()
) -> SiteSearch:
    """Interchange at the sites that a screen has left, on all bases of the search.

    Args:
        runs: Runs of the prompts that sites are chosen on.
        variables: What to look for; the site of operation and operands together is sought, too.
        screen: Its size.
    """
    pairs = runs.interchange_pairs
    few = run_interchange_pairs(runs.model, pairs.select(range(min(screen.bases, len(pairs)))))
    predicted = predict_answers(few)
    labels = (*variables, pairs.source_label)
    margins = {label: predicted.margin(label) for label in labels}
    live = predicted.is_live.nonzero()[0]
    if not len(live):  # Nothing is predicted to change an answer: all are alike.
        live = np.arange(len(predicted.sites))
    strongest = [live[margins[label][live].argsort()[::-1][: screen.top]] for label in labels]
    tried = np.unique(np.concatenate(strongest))
    sites = [predicted.sites[n] for n in tried]
    outcomes = interchange_both(few, sites)
    kept: set[int] = set()
    for label in labels:
        rates = _rate(outcomes, label, pairs.source_label)
        order = sorted(range(len(tried)), key=lambda n: (-rates[n], -margins[label][tried[n]]))
        kept |= {*order[: screen.kept]}
        if label in variables and len(order) and rates[order[0]] <= 1 - EQUIVALENCE_MARGIN:
            kept |= {*_best_pair(sites, taken_rate(outcomes, label))}
    best = tuple(sites[n] for n in sorted(kept))
    drawn = np.random.default_rng(screen.seed).permutation(live)[: screen.random]
    checks = _check(predicted, variables, (tried, outcomes[0]), drawn)
    return SiteSearch(runs, best, interchange_both(runs, best), checks)


def _best_pair(sites: Sequence[Site], rates: Float[np.ndarray, " site"]) -> tuple[int, ...]:
    """Numbers of two roles of one layer that take a variable most often; they may be joined."""
    pairs = [
        (a, b)
        for a, b in combinations(range(len(sites)), 2)
        if sites[a].layer == sites[b].layer and min(rates[a], rates[b]) > MIN_FRACTION
    ]
    return max(pairs, key=lambda pair: rates[pair[0]] + rates[pair[1]], default=())


def _rate(
    outcomes: tuple[InterchangeOutcomes, InterchangeOutcomes], label: str, source_label: str
) -> Float[np.ndarray, " site"]:
    if label == source_label:
        return outcomes[1].is_outcome(label).mean(1)
    return takes_only_rate(outcomes, label)


def _check(
    predicted: PredictedAnswers,
    variables: Sequence[str],
    tried: tuple[Int[np.ndarray, " site"], InterchangeOutcomes],
    drawn: Int[np.ndarray, " drawn"],
) -> tuple[ScreenCheck, ...]:
    """Agreement of predicted and exact logit differences of each variable, over the first bases.

    The sample is drawn among all sites; those of it that were not tried are interchanged now.
    """
    (cells, outcomes), runs = tried, predicted.runs
    runs = run_interchange_pairs(
        runs.model, runs.interchange_pairs.select(range(min(CHECKED_PAIRS, len(runs))))
    )
    others = np.setdiff1d(drawn, cells)
    sampled = interchange_intervention(runs, [predicted.sites[n] for n in others])
    before, numbers = interchange_intervention(runs, []), np.concatenate([cells, others])
    checks = []
    for label in variables:
        answer = OBJECT_READOUT if label == OBJECT else NUMBER_READOUT
        shifts = [outcomes.logit_shift(label, answer)[:, : len(runs)]]
        shifts += [sampled.logit_shift(label, answer)] if len(others) else []
        exact = (np.concatenate(shifts) - before.logit_shift(label, answer)).mean(1)
        approximate = predicted.shift(label, _KINDS[0])[: len(runs), numbers].mean(0)
        a, b = (torch.from_numpy(np.asarray(each))[:, None] for each in (approximate, exact))
        checks.append(
            ScreenCheck(
                runs.model.name,
                label,
                cells=int(predicted.is_live.sum()),
                exact=len(numbers),
                random=len(drawn),
                **agreement(a, b, a.abs().amax(1), np.isin(numbers, drawn)),
            )
        )
    return tuple(checks)
