"""Does a variable turn a model's answer: at whose site, on which items, with whose states.

crossings or pairs → what must be said once a variable is put in → runs of a model → hits, item by
item, beside whether the model answers base and source rightly when nothing is put in
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import ModelError, PatternError
from probes.interventions.activation_patching import CachedRun, patch_sites, run_with_cache
from probes.interventions.site_search import find_sites, search_words, variables_of
from probes.models.model import Model
from probes.models.site import Site
from probes.prompts.interchange_pairs import (
    BASE,
    OBJECT,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.pair_batch import PairBatch, sample_pairs, tokenize_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair
from probes.prompts.splits import split_by_text

VariableSites = Mapping[str, Site]
"""For each variable the site where it is put in."""


@dataclass(frozen=True, eq=False)
class InterchangeTask:
    """Pairs of texts, and what a model should say of one once it is given a state of the other.

    Attributes:
        pairs: The bases, each with its source.
        foretold: For each variable the tokens at the read-outs once it is put in; -1 where a pair
            does not try it.
        own, theirs: The right tokens of base and source.
    """

    pairs: PairBatch
    expected: Mapping[str, Int[Tensor, "prompt answer"]]
    base_answers: Int[Tensor, "prompt answer"]
    source_answers: Int[Tensor, "prompt answer"]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def variables(self) -> tuple[str, ...]:
        """What is put in."""
        return tuple(self.expected)


@dataclass(frozen=True, eq=False)
class RecordedRuns:
    """What one model made of a trial's texts.

    Attributes:
        clean: Of the bases.
        source: Of the sources, moved so that each base position holds its counterpart.
    """

    task: InterchangeTask
    clean: CachedRun
    source: CachedRun


@dataclass(frozen=True, eq=False)
class InterchangeOutcome:
    """What became of a trial in one model.

    Attributes:
        right: Whether all answers to a base are right when nothing is put in.
        solved: Whether those to its source are, too.
        hits: For each variable, 1 where the answers turned as foretold, 0 where not, and NaN where
            it was not tried.
    """

    right: Bool[np.ndarray, " prompt"]
    solved: Bool[np.ndarray, " prompt"]
    hits: Mapping[str, Float[np.ndarray, " prompt"]]

    @property
    def mean_hits(self) -> Float[np.ndarray, " prompt"]:
        """Return each item's share of variables that turned it as foretold."""
        return np.nanmean(np.stack([*self.hits.values()]), axis=0)


@dataclass(frozen=True, eq=False)
class MechanismTest:
    """What a model and its relatives are tried by.

    Attributes:
        judging: What is judged by.
        find: Finds where a model holds each variable, on other texts.
    """

    evaluation: InterchangeTask
    find_sites: Callable[[Model], VariableSites]


def sample_mechanism_test(
    parent: Model, pattern: Pattern, *, bases: int, seed: int
) -> MechanismTest:
    """Draw what variables are tried on, and what their sites are found by.

    A pattern with an opposite gives crossings, which mix the variables of two questions. One
    without gives pairs that differ in one thing, its contrast; then the foretold answer is simply
    the source's.

    Raises:
        PatternError: The pattern has too few prompts.
        ModelError: The model has one block.
    """
    if parent.shape.layers < 2:
        raise ModelError(
            f"{parent.name} has one block: there is no site between it and the embedding or the "
            "answer. Choose a model of two blocks or more."
        )
    if pattern.user_pairs or pattern.opposite is None:
        return _test_from_pairs(parent, pattern, bases, seed)
    tokenizers, limit = (parent.tokenizer,), parent.shape.context
    finding = sample_interchange_pairs(
        pattern, max(bases // 2, 8), tokenizers=tokenizers, seed=seed + 1,
        allowed_words=search_words(pattern),
    )  # fmt: skip
    seen = {pair.clean.text for pair in finding.same}
    drawn = sample_interchange_pairs(
        pattern, bases, tokenizers=tokenizers, seed=seed, keep=lambda base: base.text not in seen
    )
    variables = variables_of(drawn)

    def find(model: Model) -> VariableSites:
        return dict(zip(variables, find_sites(model, finding, variables), strict=True))

    return MechanismTest(
        task_from_interchange_pairs(
            drawn, tokenize_pairs(parent.tokenizer, drawn.other, max_length=limit)
        ),
        find,
    )


def task_from_interchange_pairs(
    interchange_pairs: InterchangePairs, pairs: PairBatch
) -> InterchangeTask:
    """Say what crossings foretell; `pairs` are those with sources about another object."""
    labels = (interchange_pairs.number_labels, interchange_pairs.object_labels)
    outcomes = [torch.tensor(readout.outcomes) for readout in pairs.clean.readouts]

    def says(*wanted: str) -> Int[Tensor, "prompt answer"]:
        found = zip(outcomes, labels, wanted, strict=True)
        return torch.stack([tokens[:, names.index(word)] for tokens, names, word in found], 1)

    expected = {}
    for variable in variables_of(interchange_pairs):
        wanted = (BASE, OBJECT) if variable == OBJECT else (variable, BASE)
        expected[variable] = says(*wanted)
    return InterchangeTask(
        pairs, expected, says(BASE, BASE), says(interchange_pairs.source_label, OBJECT)
    )


def _test_from_pairs(parent: Model, pattern: Pattern, bases: int, seed: int) -> MechanismTest:
    found: list[Pair] = []
    for contrast in pattern.contrasts:
        held = sum(pair.contrast == contrast for pair in pattern.user_pairs)
        count = min(2 * bases, held) if pattern.user_pairs else 2 * bases
        drawn = sample_pairs(pattern, contrast, count, tokenizers=(parent.tokenizer,), seed=seed)
        if any(pair.changes_answer(name) for pair in drawn for name, _ in pair.clean.answers):
            found += drawn
    finding, judging = split_by_text(found)
    if not finding or not judging:
        raise PatternError(
            f"{pattern.name!r} has {len(found)} pairs that change an answer, and they cannot be "
            "parted in two without a text in both: give more pairs of different texts"
        )
    limit = parent.shape.context
    here, there = (
        _task_from_contrasts(tokenize_pairs(parent.tokenizer, some, max_length=limit))
        for some in (finding, judging)
    )
    return MechanismTest(there, lambda model: best_sites(record_runs(model, here)))


def _task_from_contrasts(pairs: PairBatch) -> InterchangeTask:
    own, theirs = (
        torch.stack([readout.answer for readout in side.readouts], 1)
        for side in (pairs.clean, pairs.counterfactual)
    )
    contrasts = [pair.contrast for pair in pairs.pairs]
    expected = {}
    for name in dict.fromkeys(contrasts):
        tried = torch.tensor([contrast == name for contrast in contrasts])[:, None]
        expected[name] = torch.where(tried, theirs, -1)
    return InterchangeTask(pairs, expected, own, theirs)


def record_runs(model: Model, task: InterchangeTask) -> RecordedRuns:
    """Run a model on bases and sources, once."""
    sides = (task.pairs.clean, task.pairs.counterfactual)
    clean, source = (
        run_with_cache(model, *(t.to(model.device) for t in (side.ids, side.mask, side.positions)))
        for side in sides
    )
    return RecordedRuns(task, clean, source.realigned(task.pairs.source_positions.to(model.device)))


def interchange_outcome(
    runs: RecordedRuns, sites: VariableSites, *, source: CachedRun | None = None
) -> InterchangeOutcome:
    """Put each variable's site of the sources into the bases, one at a time.

    Args:
        runs: Of the model that is asked.
        cells: The sites; roles that are joined are written "x+rest".
        source: A run to take states from in place of the model's own, such as its parent's.
    """
    trial = runs.task
    said = _top_tokens(runs, [sites[name] for name in trial.variables], source or runs.source)
    hits = {}
    for row, name in zip(said, trial.variables, strict=True):
        wanted = trial.expected[name]
        hit = (row == wanted).all(-1).double()
        hits[name] = torch.where((wanted >= 0).all(-1), hit, torch.nan).numpy()
    own, theirs = (run.logits.argmax(-1).cpu() for run in (runs.clean, runs.source))
    right = (own == trial.base_answers).all(-1)
    solved = right & (theirs == trial.source_answers).all(-1)
    return InterchangeOutcome(right.numpy(), solved.numpy(), hits)


def _top_tokens(
    runs: RecordedRuns, sites: Sequence[Site], source: CachedRun
) -> Int[Tensor, "cell prompt answer"]:
    pairs, device = runs.task.pairs, runs.clean.ids.device
    where = {}
    for cell in sites:
        parts = [pairs.role_mask(role) for role in cell.role.split("+")]
        where[cell.role] = torch.stack(parts).any(0).to(device)

    def likeliest(logits: Tensor, _: Tensor) -> Float[Tensor, "row answer"]:
        return logits.argmax(-1).float()  # Single precision holds the numbers of tokens exactly.

    found = patch_sites(runs.clean, source, sites, where, likeliest)
    return found.round().long().cpu()


def best_sites(runs: RecordedRuns) -> VariableSites:
    """Return for each variable the residual between two blocks that turns most answers."""
    layers = range(1, runs.clean.model.shape.layers)
    pairs, last = runs.task.pairs, int(runs.task.pairs.clean.positions.max())
    roles = [r for r in pairs.clean.roles if bool(pairs.role_mask(r)[:, : last + 1].any())]
    cells = [Site(layer, "resid", role) for layer in layers for role in roles]
    said = _top_tokens(runs, cells, runs.source)
    found = {}
    for name, wanted in runs.task.expected.items():
        tried = (wanted >= 0).all(-1)
        shares = (said == wanted).all(-1)[:, tried].float().mean(1)
        found[name] = cells[int(shares.argmax())]
    return found
