"""Interchange interventions that test whether a model uses the parent's variables.

Runs with and without intervention give interchange hits for each pair, and whether the model
answers base and source correctly without intervention.
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
    BaseFilter,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair
from probes.prompts.splits import split_by_text
from probes.prompts.tokens.pair_batch import PairBatch, sample_pairs, tokenize_pairs

VariableSites = Mapping[str, Site]
"""The site of each variable."""


@dataclass(frozen=True, eq=False)
class InterchangeTask:
    """Base and source texts with the answers expected after an interchange.

    Attributes:
        pairs: Bases as clean texts, sources as counterfactuals.
        expected: For each variable the tokens at the readouts after its interchange; -1 for pairs
            that do not test it.
        base_answers, source_answers: Correct tokens of base and source.
    """

    pairs: PairBatch
    expected: Mapping[str, Int[Tensor, "prompt answer"]]
    base_answers: Int[Tensor, "prompt answer"]
    source_answers: Int[Tensor, "prompt answer"]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables that are interchanged."""
        return tuple(self.expected)


@dataclass(frozen=True, eq=False)
class RecordedRuns:
    """Runs of one model on the texts of a task.

    Attributes:
        task: The task.
        clean: Run on the bases.
        source: Run on the sources, aligned to the positions of the bases.
    """

    task: InterchangeTask
    clean: CachedRun
    source: CachedRun


@dataclass(frozen=True, eq=False)
class InterchangeOutcome:
    """Answers of one model to a task.

    Attributes:
        right: Whether all answers to the base are correct without intervention.
        solved: Whether those to the source are correct, too.
        hits: For each variable 1 where the answers are the expected ones after the interchange, 0
            where not, NaN where the pair does not test it.
    """

    right: Bool[np.ndarray, " prompt"]
    solved: Bool[np.ndarray, " prompt"]
    hits: Mapping[str, Float[np.ndarray, " prompt"]]

    @property
    def mean_hits(self) -> Float[np.ndarray, " prompt"]:
        """Mean over the variables."""
        return np.nanmean(np.stack([*self.hits.values()]), axis=0)


@dataclass(frozen=True, eq=False)
class MechanismTest:
    """Interchange task for a model and its relatives, and a search for their sites.

    Attributes:
        evaluation: The task.
        find_sites: Finds the site of each variable in a model, on other texts.
    """

    evaluation: InterchangeTask
    find_sites: Callable[[Model], VariableSites]


def sample_mechanism_test(
    parent: Model, pattern: Pattern, *, bases: int, seed: int
) -> MechanismTest:
    """Sample the texts for the test and for the search for sites.

    A pattern with an opposite gives interchange pairs, which mix the variables of two questions.
    Other patterns give pairs of one contrast; then the expected answer is the source's.

    Raises:
        PatternError: The pattern has too few prompts.
        ModelError: The model has only one block.
    """
    if parent.shape.layers < 2:
        raise ModelError(
            f"{parent.name} has one block, so there is no site between embedding and answer: "
            "choose a model with two blocks or more"
        )
    if pattern.user_pairs or pattern.opposite is None:
        return _test_from_pairs(parent, pattern, bases, seed)
    tokenizers, limit = (parent.tokenizer,), parent.shape.context
    search_pairs = sample_interchange_pairs(
        pattern,
        max(bases // 2, 8),
        tokenizers=tokenizers,
        seed=seed + 1,
        base_filter=BaseFilter(allowed_words=search_words(pattern)),
    )
    search_texts = {pair.clean.text for pair in search_pairs.same}
    test_pairs = sample_interchange_pairs(
        pattern,
        bases,
        tokenizers=tokenizers,
        seed=seed,
        base_filter=BaseFilter(keep=lambda base: base.text not in search_texts),
    )
    variables = variables_of(test_pairs)

    def find(model: Model) -> VariableSites:
        return dict(zip(variables, find_sites(model, search_pairs, variables), strict=True))

    other_object = tokenize_pairs(parent.tokenizer, test_pairs.other, max_length=limit)
    return MechanismTest(task_from_interchange_pairs(test_pairs, other_object), find)


def task_from_interchange_pairs(
    interchange_pairs: InterchangePairs, pairs: PairBatch
) -> InterchangeTask:
    """Task of interchange pairs; `pairs` are those with sources about another object."""
    labels = (interchange_pairs.number_labels, interchange_pairs.object_labels)
    outcomes = [torch.tensor(readout.outcomes) for readout in pairs.clean.readouts]

    def answers(number: str, noun: str) -> Int[Tensor, "prompt answer"]:
        by_readout = zip(outcomes, labels, (number, noun), strict=True)
        return torch.stack(
            [tokens[:, names.index(label)] for tokens, names, label in by_readout], 1
        )

    expected = {
        variable: answers(BASE, OBJECT) if variable == OBJECT else answers(variable, BASE)
        for variable in variables_of(interchange_pairs)
    }
    source_answers = answers(interchange_pairs.source_label, OBJECT)
    return InterchangeTask(pairs, expected, answers(BASE, BASE), source_answers)


def _test_from_pairs(parent: Model, pattern: Pattern, bases: int, seed: int) -> MechanismTest:
    pairs: list[Pair] = []
    for contrast in pattern.contrasts:
        available = sum(pair.contrast == contrast for pair in pattern.user_pairs)
        count = min(2 * bases, available) if pattern.user_pairs else 2 * bases
        sampled = sample_pairs(pattern, contrast, count, tokenizers=(parent.tokenizer,), seed=seed)
        if any(pair.changes_answer(name) for pair in sampled for name, _ in pair.clean.answers):
            pairs += sampled
    halves = split_by_text(pairs)
    if not all(halves):
        raise PatternError(
            f"{pattern.name!r} has {len(pairs)} pairs that change an answer, and they cannot be "
            "split into two halves without a shared text: give more pairs of different texts"
        )
    search, evaluation = (
        _task_from_contrasts(tokenize_pairs(parent.tokenizer, h, max_length=parent.shape.context))
        for h in halves
    )
    return MechanismTest(evaluation, lambda model: best_sites(record_runs(model, search)))


def _task_from_contrasts(pairs: PairBatch) -> InterchangeTask:
    base_answers, source_answers = (
        torch.stack([readout.answer for readout in side.readouts], 1)
        for side in (pairs.clean, pairs.counterfactual)
    )
    contrasts = [pair.contrast for pair in pairs.pairs]
    expected = {}
    for name in dict.fromkeys(contrasts):
        is_tested = torch.tensor([contrast == name for contrast in contrasts])[:, None]
        expected[name] = torch.where(is_tested, source_answers, -1)
    return InterchangeTask(pairs, expected, base_answers, source_answers)


def record_runs(model: Model, task: InterchangeTask) -> RecordedRuns:
    """Run a model on bases and sources without intervention."""
    sides = (task.pairs.clean, task.pairs.counterfactual)
    clean, source = (
        run_with_cache(model, *(t.to(model.device) for t in (side.ids, side.mask, side.positions)))
        for side in sides
    )
    return RecordedRuns(task, clean, source.realigned(task.pairs.source_positions.to(model.device)))


def interchange_outcome(
    runs: RecordedRuns, sites: VariableSites, *, source: CachedRun | None = None
) -> InterchangeOutcome:
    """Interchange the site of each variable, one at a time.

    Args:
        runs: Runs of the model that is intervened on.
        sites: The sites; joined roles are written "x+rest".
        source: Run whose states are used instead of the model's own, such as its parent's.
    """
    task = runs.task
    answers = _top_tokens(runs, [sites[name] for name in task.variables], source or runs.source)
    hits = {}
    for row, name in zip(answers, task.variables, strict=True):
        expected = task.expected[name]
        hit = (row == expected).all(-1).double()
        hits[name] = torch.where((expected >= 0).all(-1), hit, torch.nan).numpy()
    base, own_source = (run.logits.argmax(-1).cpu() for run in (runs.clean, runs.source))
    right = (base == task.base_answers).all(-1)
    solved = right & (own_source == task.source_answers).all(-1)
    return InterchangeOutcome(right.numpy(), solved.numpy(), hits)


def _top_tokens(
    runs: RecordedRuns, sites: Sequence[Site], source: CachedRun
) -> Int[Tensor, "site prompt answer"]:
    """Most likely tokens at the readouts after patching each site alone."""
    pairs, device = runs.task.pairs, runs.clean.ids.device
    masks = {
        site.role: torch.stack([pairs.role_mask(role) for role in site.role.split("+")]).any(0)
        for site in sites
    }
    masks = {role: mask.to(device) for role, mask in masks.items()}

    def top_token(logits: Tensor, _: Tensor) -> Float[Tensor, "row answer"]:
        return logits.argmax(-1).float()  # float32 holds token ids exactly

    tokens = patch_sites(runs.clean, source, sites, masks, top_token)
    return tokens.round().long().cpu()


def best_sites(runs: RecordedRuns) -> VariableSites:
    """For each variable the residual stream between two blocks with the most interchange hits."""
    layers = range(1, runs.clean.model.shape.layers)
    pairs, last = runs.task.pairs, int(runs.task.pairs.clean.positions.max())
    roles = [r for r in pairs.clean.roles if bool(pairs.role_mask(r)[:, : last + 1].any())]
    sites = [Site(layer, "resid", role) for layer in layers for role in roles]
    answers = _top_tokens(runs, sites, runs.source)
    best = {}
    for name, expected in runs.task.expected.items():
        is_tested = (expected >= 0).all(-1)
        accuracy = (answers == expected).all(-1)[:, is_tested].float().mean(1)
        best[name] = sites[int(accuracy.argmax())]
    return best
