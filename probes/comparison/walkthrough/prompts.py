"""Prompts of a walk-through: the question, one changed version of it, and others of its form.

A text that fits no template has no others of its form, only other numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from transformers import PreTrainedTokenizerBase

from probes.comparison.setup.prompts import PathPrompts
from probes.errors import BatchError, OutcomeError, PatternError
from probes.prompts.english.match import FREE_TEXT, counterfactuals
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair, Question
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs

VARIABLES = ("x", "y", "operation", "thing")
"""Contrasts that a walk-through looks at; "thing" changes the noun, the others the number."""
BOTH = "x and y"
"""Contrast in which both numbers are changed."""

_CANDIDATES = 60
_MIN_PAIRS = 4


@dataclass(frozen=True, eq=False)
class WalkthroughPrompts:
    """Prompts that all models of a walk-through read.

    Attributes:
        question: The question.
        own: For each contrast the question with one changed version.
        others: Pairs of other questions of the same form, apart for search and test. Where the
            question fits no template, pairs of the question itself with its other changed versions.
        left_out: Contrasts with too few pairs to test.
    """

    question: Question
    own: Mapping[str, Pair]
    others: PathPrompts
    left_out: tuple[str, ...] = ()

    @property
    def same_question(self) -> bool:
        """Whether all pairs are of the question itself, as it fits no template."""
        return self.question.template == FREE_TEXT


def sample_walkthrough_prompts(
    question: Question,
    pattern: Pattern,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    *,
    prompts: int,
    seed: int,
) -> WalkthroughPrompts:
    """Sample pairs with equal tokens in all tokenizers, of the template of the question.

    A question that fits no template has its own changed versions only; the one that is shown is
    among those of the search, not among those that are tested.

    Raises:
        PatternError: The question has no changed version that the tokenizers can read.
    """
    own: dict[str, list[Pair]] = {}
    tried: dict[str, None] = {}
    is_free = question.template == FREE_TEXT
    count = 2 * prompts  # A third is for the search.
    most = count if is_free else prompts
    for contrast, other in _changed_versions(question, pattern, seed):
        tried[contrast] = None
        pair = Pattern.make_pair(contrast, question, other)
        if len(own.get(contrast, ())) < most and is_aligned(pair, tokenizers):
            own.setdefault(contrast, []).append(pair)
    if not {"x", "y"} & set(own):
        raise PatternError(
            f"No changed version of {question.text!r} has as many tokens and another answer: ask "
            "with other numbers"
        )
    shown = {name: _easiest(name, pairs) for name, pairs in own.items()}
    search, test = {}, {}
    for contrast in own:
        # First, so that it is in the search: what is shown as an example is not tested as another.
        pairs = sorted(own[contrast], key=lambda pair: pair is not shown[pair.contrast])
        if not is_free:
            one_form = _with_template(pattern, question.template)
            pairs = _sample_pairs(one_form, contrast, tokenizers, count=count, seed=seed)
            pairs = [pair for pair in pairs if pair.clean.text != question.text]
        cut = max(1, len(pairs) // 3)
        search[contrast], test[contrast] = tuple(pairs[:cut]), tuple(pairs[cut:][:prompts])
    if "x" in own and "y" in own:
        first = _both_numbers([shown["x"]], pattern, tokenizers, seed)
        shown |= {BOTH: first[0]} if first else {}
        test[BOTH] = _both_numbers(test["x"], pattern, tokenizers, seed)
    kept = {name for name, pairs in test.items() if len(pairs) >= _MIN_PAIRS and name in shown}
    return WalkthroughPrompts(
        question,
        {name: pair for name, pair in shown.items() if name in kept},
        PathPrompts(
            {name: pairs for name, pairs in search.items() if name in kept},
            {name: pairs for name, pairs in test.items() if name in kept},
        ),
        tuple(name for name in tried if name not in kept),
    )


def _easiest(contrast: str, pairs: Sequence[Pair]) -> Pair:
    """Changed version that is shown: of numbers the largest with one digit, if there is one."""
    if contrast not in ("x", "y"):
        return pairs[0]
    values = [int(pair.counterfactual[contrast]) for pair in pairs]
    return pairs[max(range(len(pairs)), key=lambda at: (values[at] < 10, values[at]))]


def is_aligned(pair: Pair, tokenizers: Sequence[PreTrainedTokenizerBase]) -> bool:
    """Whether both texts have equal tokens in each role, and different answers."""
    if not any(pair.changes_answer(name) for name, _ in pair.clean.answers):
        return False
    try:
        return all(bool(tokenize_pairs(t, [pair]).fully_aligned.all()) for t in tokenizers)
    except (BatchError, OutcomeError):
        return False


def _changed_versions(
    question: Question, pattern: Pattern, seed: int
) -> Iterator[tuple[str, Question]]:
    yield from counterfactuals(question, pattern, seed=seed)
    if question.template != FREE_TEXT and "thing" in pattern.contrasts:
        others = pattern.counterfactuals(question, "thing", seed=seed)
        yield from (("thing", other) for other in others)


def _with_template(pattern: Pattern, name: str) -> Pattern:
    return replace(pattern, templates=tuple(one for one in pattern.templates if one.name == name))


def _sample_pairs(
    pattern: Pattern,
    contrast: str,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    *,
    count: int,
    seed: int,
) -> list[Pair]:
    try:
        pairs = sample_pairs(pattern, contrast, count, tokenizers=tokenizers, seed=seed)
    except (BatchError, PatternError):
        return []
    return [pair for pair in pairs if is_aligned(pair, tokenizers)]


def _both_numbers(
    pairs: Sequence[Pair],
    pattern: Pattern,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    seed: int,
) -> tuple[Pair, ...]:
    """Pairs whose changed version has the other y as well."""
    found = []
    for at, pair in enumerate(pairs):
        others = counterfactuals(pair.counterfactual, pattern, seed=seed + at)
        for contrast, other in islice(others, _CANDIDATES):
            both = Pattern.make_pair(BOTH, pair.clean, other)
            answers = {pair.clean.answer("number"), pair.counterfactual.answer("number")}
            answer = other.answer("number")
            # An answer that stands in the text could have been copied.
            if contrast != "y" or answer in {*answers, "0", str(other["x"]), str(other["y"])}:
                continue
            if is_aligned(both, tokenizers):
                found.append(both)
                break
    return tuple(found)
