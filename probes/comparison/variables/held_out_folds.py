"""What cross-model interchange is fitted and judged on: no tested word is fitted on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from transformers import PreTrainedTokenizerBase

from probes.errors import PatternError
from probes.interventions.confounds import verb_groups
from probes.interventions.site_search import variables_of
from probes.prompts.interchange_pairs import (
    OBJECT,
    OPERATION,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question

_TEST_NOUN_STEP = 3  # Every third noun is tested on and never fitted on.
_VALUE_GROUPS = 3


@dataclass(frozen=True, eq=False)
class Fold:
    """One split of a variable's words (or numbers) into those fitted on and those tested.

    Attributes:
        forms: The words or numbers that are left out of the fit.
        fit: Which questions a map is fitted on; none has a form that is left out.
        judged: Which crossings are judged with it: their source has a form that was left out.
    """

    forms: tuple[str, ...]
    train: Bool[np.ndarray, " question"]
    test: Bool[np.ndarray, " prompt"]


@dataclass(frozen=True, eq=False)
class HeldOutFolds:
    """Questions to fit maps on, crossings to judge them by, and how words are held out.

    Attributes:
        pattern: What is asked.
        crossings: Judged on. Their objects are in no question.
        questions: Fitted on, both operations.
        folds: For each variable its splits; every crossing is judged in one at most.
        search: For each variable the questions that sites are chosen by: their words are held out
            of the fit that foretells them, and are never judged on.
    """

    pattern: Pattern
    interchange_pairs: InterchangePairs
    questions: tuple[Question, ...]
    by_variable: Mapping[str, tuple[Fold, ...]]
    site_search: Mapping[str, Bool[np.ndarray, " question"]]

    def test_mask(self, variable: str) -> Bool[np.ndarray, " prompt"]:
        """Mark the crossings that a variable is judged on."""
        return np.any([fold.test for fold in self.by_variable[variable]], axis=0)

    @property
    def variables(self) -> tuple[str, ...]:
        """The operation, the operands, and the object."""
        return tuple(self.by_variable)

    def labels(self, variable: str) -> tuple[str, ...]:
        """Return what a variable is in each question: all verbs of one side are one operation."""
        if variable == OPERATION:
            return tuple(question.pattern for question in self.questions)
        return tuple(str(question[variable]) for question in self.questions)

    def question_forms(self, variable: str) -> tuple[str, ...]:
        """Return the word that stands for a variable in each question."""
        return tuple(_form(question, variable) for question in self.questions)

    def source_forms(self, variable: str) -> tuple[str, ...]:
        """Return the word that stands for a variable in each crossing's source."""
        return tuple(_form(pair.counterfactual, variable) for pair in self.interchange_pairs.other)


def sample_held_out_folds(
    pattern: Pattern,
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    bases: int = 200,
    prompts: int = 800,
    seed: int = 0,
) -> HeldOutFolds:
    """Draw questions and crossings, and split the words of every variable.

    Verbs that share a word are left out together. Of nouns a third is tested on, of numbers a
    third in turn.

    Raises:
        PatternError: The pattern has no opposite, too few words, or colliding outcomes.
    """
    nouns = dict(pattern.lexicon.choices).get("noun", ())
    tested = nouns[::_TEST_NOUN_STEP]
    if len(tested) < 2:
        raise PatternError(
            f"{pattern.name!r} has {len(nouns)} nouns: give six or more, so that two can be kept "
            "from the fit and tested"
        )
    slots = {slot for frame in pattern.templates for slot in frame.slots}
    kinds = {slot for slot in slots if pattern.lexicon.kind_of(slot) == "noun"}
    drawn = sample_interchange_pairs(
        pattern, bases, tokenizers=tokenizers, seed=seed, allowed_words={OBJECT: list(tested)}
    )
    tells = tokenizable_by(*tokenizers)

    def keep(question: Question) -> bool:
        return not any(question[slot] in tested for slot in kinds & dict(question.slots).keys())

    asked = [
        question
        for side in (pattern, pattern.flipped())
        for question in side.sample_questions(
            prompts // 2, seed=seed + 1, keep=lambda q: keep(q) and tells(q)
        )
    ]
    by_variable, search = {}, {}
    for variable in variables_of(drawn):
        first, *others = _form_groups(pattern, variable, asked, seed)
        search[variable] = np.array([_form(question, variable) in first for question in asked])
        by_variable[variable] = _make_folds(others, variable, asked, drawn)
    return HeldOutFolds(pattern, drawn, tuple(asked), by_variable, search)


def distinct_tokenizers(
    tokenizers: Sequence[PreTrainedTokenizerBase],
) -> list[PreTrainedTokenizerBase]:
    """Leave out tokenizers that do just what another does; relatives mostly share one."""
    return list({_tokenizer_rules(tokenizer): tokenizer for tokenizer in tokenizers}.values())


def _tokenizer_rules(tokenizer: Any) -> str:  # noqa: ANN401 (only fast tokenizers have rules to read)
    return f"{tokenizer.special_tokens_map} {tokenizer.backend_tokenizer.to_str()}"


def _form(question: Question, variable: str) -> str:
    return str(question["op" if variable == OPERATION else variable])


def _form_groups(
    pattern: Pattern, variable: str, questions: Sequence[Question], seed: int
) -> list[list[str]]:
    """Split a variable's forms: the first group chooses sites, the others are tested in turn."""
    if variable == OPERATION:
        groups = verb_groups(pattern)
        if len(groups) < 3:
            raise PatternError(
                f"{pattern.name!r} has {len(groups)} groups of verbs that share no word: three are "
                "needed, one to test on, one to choose a site by, and one to fit on"
            )
        return sorted(groups, key=len)  # The smallest chooses sites, so that most are tested.
    known = sorted({_form(question, variable) for question in questions})
    drawn = np.random.default_rng(seed).permutation(known)
    return [sorted(map(str, some)) for some in np.array_split(drawn, _VALUE_GROUPS)]


def _make_folds(
    groups: Sequence[Sequence[str]],
    variable: str,
    questions: Sequence[Question],
    interchange_pairs: InterchangePairs,
) -> tuple[Fold, ...]:
    here = np.array([_form(question, variable) for question in questions])
    there = np.array([_form(pair.counterfactual, variable) for pair in interchange_pairs.other])
    if variable == OBJECT:  # No tested noun is in any question.
        return (Fold((), np.ones(len(here), bool), np.ones(len(there), bool)),)
    return tuple(
        Fold(tuple(group), ~np.isin(here, group), np.isin(there, group)) for group in groups
    )
