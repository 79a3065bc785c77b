"""Read-out of an answer: where it first differs from its foils, token by token.

Numbers are read as the tokenizer has them. Where it splits "12" and "15" into digits, the
answers share a token, and they are read behind it: the shared tokens are forced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from transformers import PreTrainedTokenizerBase

from probes.errors import OutcomeError
from probes.prompts.question import Question


@dataclass(frozen=True, slots=True)
class AnswerReadout:
    """Where one answer of one prompt is read.

    Attributes:
        start: Index of the token that is read.
        outcomes: Tokens of the outcomes there, the answer's first. Outcomes that differ from the
            answer at another index are left out.
        choices: For each foil, where it first differs: the index, the answer's token and the
            foil's.
    """

    start: int
    outcomes: tuple[int, ...]
    choices: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class OutcomeTokens:
    """Token ids of a prompt with each outcome of one answer.

    Attributes:
        name: Name of the answer.
        answer: The correct outcome.
        rival: Outcome that the answer is read against, such as the counterfactual's answer; the
            answer itself for none.
        ids: Ids of the prompt with each outcome.
        longer: Prompt with each outcome and the next answer; empty for the last answer.
        text: Prompt, for errors.
    """

    name: str
    answer: str
    rival: str
    ids: Mapping[str, tuple[int, ...]]
    longer: Mapping[str, str]
    text: str

    def following(self, tokenizer: PreTrainedTokenizerBase, outcome: str) -> int | None:
        """Token after an outcome; None where the text ends, or the outcome merges with it."""
        if not self.longer:
            return None
        own = self.ids[outcome]
        ids = tokenizer(self.longer[outcome], add_special_tokens=False)["input_ids"]
        return ids[len(own)] if tuple(ids[: len(own)]) == own and len(ids) > len(own) else None


def tokenize_outcomes(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    answers_from: Sequence[Question],
    rivals: Sequence[Question],
) -> list[list[OutcomeTokens]]:
    """Tokens of the outcomes of each answer of each question.

    Args:
        tokenizer: Fast tokenizer.
        questions: Questions.
        answers_from: For each, the question whose answers are written behind it.
        rivals: For each, the question whose answers its own are read against.
    """
    before = [
        source_contexts(question, source)[:-1]
        for question, source in zip(questions, answers_from, strict=True)
    ]
    texts = [
        question.append(context, outcome)
        for question, contexts in zip(questions, before, strict=True)
        for (_, outcomes), context in zip(question.outcomes, contexts, strict=True)
        for outcome in outcomes
    ]
    # Plain texts have no answers.
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
    result = []
    for question, source, rival, contexts in zip(
        questions, answers_from, rivals, before, strict=True
    ):
        every = []
        for k, (name, outcomes) in enumerate(question.outcomes):
            ids = {outcome: tuple(next(encoded)) for outcome in outcomes}
            longer = {}
            if k + 1 < len(source.answers):
                after = source.answers[k + 1][1]
                longer = {o: question.append(question.append(contexts[k], o), after) for o in ids}
            pair = question.answer(name), rival.answer(name)
            every.append(OutcomeTokens(name, *pair, ids, longer, question.text))
        result.append(every)
    return result


def source_contexts(question: Question, source: Question) -> list[str]:
    """Prompt, then the prompt with the first answer of `source`, with the first two, and so on."""
    return question.answer_contexts([text for _, text in source.answers])


def find_readout(
    tokenizer: PreTrainedTokenizerBase, outcomes: OutcomeTokens, first: int
) -> AnswerReadout:
    """Read-out of an answer: where it differs from its rival, or else from any foil first.

    Args:
        tokenizer: Tokenizer of the ids, for errors.
        outcomes: Tokens of the outcomes. A single one is read at its first token.
        first: Index of the answer's first token.

    Raises:
        OutcomeError: The answer and a foil have the same tokens as far as the text goes.
    """
    answer, ids = outcomes.answer, outcomes.ids
    choices = {foil: _first_difference(tokenizer, outcomes, foil) for foil in ids if foil != answer}
    if not choices:
        start = min(first, len(ids[answer]) - 1)
        return AnswerReadout(start, (ids[answer][start],))
    first_start = min(at for at, _, _ in choices.values())
    start = choices[outcomes.rival][0] if outcomes.rival in choices else first_start
    here = [choice for choice in choices.values() if choice[0] == start]
    tokens = dict.fromkeys([here[0][1], *(token for _, _, token in here)])
    return AnswerReadout(start, tuple(tokens), tuple(choices.values()))


def require_distinct_outcomes(question: Question, tokens: Sequence[Sequence[int]]) -> None:
    """Refuse a question whose outcomes do not all differ where its answers are read.

    Args:
        question: Question.
        tokens: Tokens of the outcomes of each answer at its read-out.

    Raises:
        OutcomeError: Two outcomes have one token there, or differ at another token.
    """
    for (name, outcomes), known in zip(question.outcomes, tokens, strict=True):
        if len(known) < len(outcomes):
            raise OutcomeError(
                f"{question.text!r}: the {len(outcomes)} {name} outcomes have {len(known)} tokens "
                "at the readout: choose words that start with different tokens in this tokenizer"
            )


def _first_difference(
    tokenizer: PreTrainedTokenizerBase, outcomes: OutcomeTokens, foil: str
) -> tuple[int, int, int]:
    """Index at which an answer and a foil first differ, and their tokens there."""
    answer, ids = outcomes.answer, outcomes.ids
    pairs = enumerate(zip_longest(ids[answer], ids[foil]))
    at, (own, other) = next(
        ((at, pair) for at, pair in pairs if pair[0] != pair[1]), (len(ids[answer]), (None, None))
    )
    # An outcome that ends here is told apart by what follows it.
    own = outcomes.following(tokenizer, answer) if own is None else own
    other = outcomes.following(tokenizer, foil) if other is None else other
    if own is None or other is None or own == other:
        raise _same_tokens(tokenizer, outcomes, (foil, answer), at)
    return at, own, other


def _same_tokens(
    tokenizer: PreTrainedTokenizerBase, outcomes: OutcomeTokens, pair: tuple[str, str], start: int
) -> OutcomeError:
    shown = [
        f"{outcome!r} ({tokenizer.convert_ids_to_tokens(list(outcomes.ids[outcome][start - 1 :]))})"
        for outcome in pair
    ]
    return OutcomeError(
        f"{outcomes.text!r}: the {outcomes.name} outcomes {shown[0]} and {shown[1]} start with the "
        "same token at the readout: choose words that differ in this tokenizer"
    )
