"""Prompts of cross-model interchange; no test word occurs among those that maps are fitted on."""

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
    BaseFilter,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.pair_batch import tokenizable_by

_TEST_NOUNS = 3  # One noun in three is a test noun.
_VALUE_GROUPS = 3


@dataclass(frozen=True, eq=False)
class Fold:
    """One split of the forms (words or numbers) of a variable into training and test forms.

    Attributes:
        forms: Test forms.
        train: Questions that maps are fitted on; none has a test form.
        test: Interchange pairs to evaluate; their source has a test form.
    """

    forms: tuple[str, ...]
    train: Bool[np.ndarray, " question"]
    test: Bool[np.ndarray, " prompt"]


@dataclass(frozen=True, eq=False)
class HeldOutFolds:
    """Questions for fitting maps, interchange pairs for testing them, and their splits.

    Attributes:
        pattern: Query pattern.
        interchange_pairs: Test pairs. Their objects occur in no question.
        questions: Training questions with both operations.
        by_variable: Folds of each variable; each pair is in at most one test set.
        site_search: For each variable, the questions on which donor sites are scored. Their forms
            are held out from the fit and are no test forms.
    """

    pattern: Pattern
    interchange_pairs: InterchangePairs
    questions: tuple[Question, ...]
    by_variable: Mapping[str, tuple[Fold, ...]]
    site_search: Mapping[str, Bool[np.ndarray, " question"]]

    def test_mask(self, variable: str) -> Bool[np.ndarray, " prompt"]:
        """Interchange pairs in the test set of any fold."""
        return np.any([fold.test for fold in self.by_variable[variable]], axis=0)

    @property
    def variables(self) -> tuple[str, ...]:
        """Operation, operands and object."""
        return tuple(self.by_variable)

    def labels(self, variable: str) -> tuple[str, ...]:
        """Value of a variable in each question; the operation is named by its pattern."""
        if variable == OPERATION:
            return tuple(question.pattern for question in self.questions)
        return tuple(str(question[variable]) for question in self.questions)

    def question_forms(self, variable: str) -> tuple[str, ...]:
        """Word or number of a variable in each question."""
        return tuple(_form(question, variable) for question in self.questions)

    def source_forms(self, variable: str) -> tuple[str, ...]:
        """Word or number of a variable in the source of each interchange pair."""
        return tuple(_form(pair.counterfactual, variable) for pair in self.interchange_pairs.other)


def sample_held_out_folds(
    pattern: Pattern,
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    bases: int = 200,
    prompts: int = 800,
    seed: int = 0,
) -> HeldOutFolds:
    """Sample questions and interchange pairs, and split the forms of every variable.

    Verbs that share a word are in the same fold. A third of the nouns are test nouns; verbs and
    numbers are tested in turn. The seed draws the test nouns, the verbs of the site search and the
    groups of numbers.

    Raises:
        PatternError: The pattern has no opposite, too few words, or colliding outcomes.
    """
    nouns = dict(pattern.lexicon.choices).get("noun", ())
    order = np.random.default_rng(seed).permutation(len(nouns))
    test_nouns = [nouns[k] for k in sorted(order[: -(-len(nouns) // _TEST_NOUNS)])]
    if len(test_nouns) < 2:
        raise PatternError(
            f"{pattern.name!r} has {len(nouns)} nouns: give six or more, so that two can be held "
            "out for testing"
        )
    slots = {slot for template in pattern.templates for slot in template.slots}
    noun_slots = {slot for slot in slots if pattern.lexicon.kind_of(slot) == "noun"}
    interchange_pairs = sample_interchange_pairs(
        pattern,
        bases,
        tokenizers=tokenizers,
        seed=seed,
        base_filter=BaseFilter(allowed_words={OBJECT: test_nouns}),
    )
    tokenizable = tokenizable_by(*tokenizers)

    def keep(question: Question) -> bool:
        present = noun_slots & dict(question.slots).keys()
        return not any(question[slot] in test_nouns for slot in present) and tokenizable(question)

    questions = [
        question
        for side in (pattern, pattern.flipped())
        for question in side.sample_questions(prompts // 2, seed=seed + 1, keep=keep)
    ]
    by_variable, site_search = {}, {}
    for variable in variables_of(interchange_pairs):
        first, *others = _form_groups(pattern, variable, questions, seed)
        forms = [_form(question, variable) for question in questions]
        site_search[variable] = np.array([form in first for form in forms])
        by_variable[variable] = _make_folds(others, variable, questions, interchange_pairs)
    return HeldOutFolds(pattern, interchange_pairs, tuple(questions), by_variable, site_search)


def distinct_tokenizers(
    tokenizers: Sequence[PreTrainedTokenizerBase],
) -> list[PreTrainedTokenizerBase]:
    """Remove tokenizers that tokenize exactly as an earlier one; relatives often share one."""
    return list({tokenizer_rules(tokenizer): tokenizer for tokenizer in tokenizers}.values())


def tokenizer_rules(tokenizer: Any) -> str:  # noqa: ANN401 (only fast tokenizers have a backend)
    """All that shapes the tokens of a text."""
    return f"{tokenizer.special_tokens_map} {tokenizer.backend_tokenizer.to_str()}"


def _form(question: Question, variable: str) -> str:
    return str(question["op" if variable == OPERATION else variable])


def _form_groups(
    pattern: Pattern, variable: str, questions: Sequence[Question], seed: int
) -> list[list[str]]:
    """Groups of forms: the first is for the site search, the others are test forms in turn."""
    if variable == OPERATION:
        groups = verb_groups(pattern)
        if len(groups) < 3:
            raise PatternError(
                f"{pattern.name!r} has {len(groups)} groups of verbs that share no word: give "
                "three, one to test on, one to search sites with, and one to fit on"
            )
        # A small group searches sites, so that most verbs are tested.
        sizes = np.array([len(group) for group in groups])
        small = np.flatnonzero(sizes <= np.median(sizes))
        first = int(np.random.default_rng(seed).choice(small))
        return [groups[first], *groups[:first], *groups[first + 1 :]]
    forms = sorted({_form(question, variable) for question in questions})
    shuffled = np.random.default_rng(seed).permutation(forms)
    return [sorted(map(str, group)) for group in np.array_split(shuffled, _VALUE_GROUPS)]


def _make_folds(
    groups: Sequence[Sequence[str]],
    variable: str,
    questions: Sequence[Question],
    interchange_pairs: InterchangePairs,
) -> tuple[Fold, ...]:
    train_forms = np.array([_form(question, variable) for question in questions])
    test_forms = np.array(
        [_form(pair.counterfactual, variable) for pair in interchange_pairs.other]
    )
    if variable == OBJECT:  # No test noun is in any question, so one fold has all rows.
        return (Fold((), np.ones(len(train_forms), bool), np.ones(len(test_forms), bool)),)
    return tuple(
        Fold(tuple(group), ~np.isin(train_forms, group), np.isin(test_forms, group))
        for group in groups
    )
