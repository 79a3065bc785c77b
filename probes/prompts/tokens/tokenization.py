"""Tokenized prompts: ids with one role for each token, before padding.

A prompt and its answers are tokenized as one text, exactly as given. Roles are assigned by the
overlap of character offsets without white space, so that any fast tokenizer works. The special
tokens in front are those that the tokenizer itself writes, or those of the chat template.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

from transformers import PreTrainedTokenizerBase

from probes.errors import BatchError, OutcomeError, TokenizerError
from probes.prompts.format.chat import render_chat
from probes.prompts.question import Question, Span
from probes.prompts.tokens.special_tokens import (
    leading_tokens,
    special_prefix,
    warn_about_special_tokens,
)

REST, BOS = "rest", "bos"

MAX_CHARACTERS = 500_000
"""Most characters of a prompt with its answers; longer texts are refused before tokenization."""


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """One tokenized text before padding.

    Attributes:
        ids, roles, tokens: Id, role and text of every token.
        answer_starts: Index of the first token of each answer.
        outcome_starts: Index at which the outcomes of each answer first differ.
        answer_ends: Index after the last token of each correct answer.
        outcomes: Tokens of the outcomes at that index, the correct one first.
    """

    ids: tuple[int, ...]
    roles: tuple[str, ...]
    tokens: tuple[str, ...]
    answer_starts: tuple[int, ...]
    outcome_starts: tuple[int, ...]
    answer_ends: tuple[int, ...]
    outcomes: tuple[tuple[int, ...], ...]


def tokenize_questions(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    answers_from: Sequence[Question] | None = None,
    add_bos: bool | None = None,
) -> tuple[TokenizedPrompt, ...]:
    """Tokenize questions before padding; arguments and errors as in `tokenize`."""
    answers_from = answers_from or questions
    in_chat = [question.conversation is not None for question in questions]
    questions = [render_chat(tokenizer, question) for question in questions]
    contexts = [
        question.answer_contexts([text for _, text in source.answers])
        for question, source in zip(questions, answers_from, strict=True)
    ]
    whole = [texts[-1] for texts in contexts]
    _check_questions(tokenizer, questions, whole)
    encoded = tokenizer(whole, return_offsets_mapping=True, return_special_tokens_mask=True)
    outcome_ids = _tokenize_outcomes(tokenizer, questions, contexts)
    prompts = []
    for index, (question, source) in enumerate(zip(questions, answers_from, strict=True)):
        every, added = encoded["input_ids"][index], encoded["special_tokens_mask"][index]
        kept = [at for at, special in enumerate(added) if not special]
        ids = tuple(every[at] for at in kept)
        offsets = [encoded["offset_mapping"][index][at] for at in kept]
        written = [text for _, text in source.answers]
        prompt = _locate_answers(
            tokenizer, question, (ids, offsets), contexts[index], (outcome_ids[index], written)
        )
        # A chat template writes the special tokens that it wants.
        prefix = () if in_chat[index] else leading_tokens(every, added)
        if add_bos is not None:
            prefix = special_prefix(tokenizer, add_bos=add_bos)
        prompts.append(_add_prefix(tokenizer, prompt, prefix))
    texts = (
        (token, text)
        for prompt, is_chat in zip(prompts, in_chat, strict=True)
        for token, role, text in zip(prompt.ids, prompt.roles, prompt.tokens, strict=True)
        if role != BOS and not is_chat
    )
    warn_about_special_tokens(tokenizer, texts)
    return tuple(prompts)


def _locate_answers(
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    encoding: tuple[tuple[int, ...], list[tuple[int, int]]],
    contexts: Sequence[str],
    answers: tuple[list[dict[str, tuple[int, ...]]], list[str]],
) -> TokenizedPrompt:
    """Prompt without special tokens, from ids and offsets of its text with the written answers.

    `answers` has the ids of the text with each outcome, by answer, and the written answers.
    """
    (ids, offsets), (outcome_ids, written_answers), text = encoding, answers, contexts[-1]
    if not ids:
        raise BatchError(f"{text!r} has no token in this tokenizer: give other words")
    spans = [
        (f"reply_{name}", len(before), len(after))
        for (name, _), (before, after) in zip(question.answers, pairwise(contexts), strict=True)
    ]
    starts, outcome_starts, ends, outcomes = [], [], [], []
    for (name, answer), ids_of, written, before in zip(
        question.answers, outcome_ids, written_answers, contexts[:-1], strict=True
    ):
        first = next((n for n, (_, end) in enumerate(offsets) if end > len(before)), len(ids) - 1)
        start, tokens = _first_difference(tokenizer, question, name, ids_of, first)
        expected = ids_of.get(written, next(iter(ids_of.values()))[:start])
        if ids[: len(expected)] != expected:
            raise OutcomeError(
                f"{text!r} has other tokens without the text after {name}: choose words "
                "whose tokens do not depend on what follows"
            )
        _check_boundary(text, offsets[first], len(before))
        starts.append(min(first, start))
        outcome_starts.append(start)
        ends.append(len(ids_of[answer]))
        outcomes.append(tokens)
    return TokenizedPrompt(
        ids,
        assign_roles(text, offsets, (*question.roles, *spans)),
        tuple(text[a:b] for a, b in offsets),
        tuple(starts),
        tuple(outcome_starts),
        tuple(ends),
        tuple(outcomes),
    )


def _check_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], texts: Sequence[str]
) -> None:
    if not questions:
        raise BatchError("A batch needs at least one question: give one")
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{type(tokenizer).__name__} has no character offsets, which roles need: load a fast "
            "tokenizer (a folder with tokenizer.json)"
        )
    names = [name for name, _ in questions[0].answers]
    for index, (question, text) in enumerate(zip(questions, texts, strict=True)):
        if not question.text.strip():
            raise BatchError(f"Prompt {index} has no text: give a text that is not empty")
        if len(text) > MAX_CHARACTERS:
            raise BatchError(
                f"Prompt {index}, {text[:60]!r}…, has {len(text)} characters: at most "
                f"{MAX_CHARACTERS} are tokenized. Shorten it"
            )
        if (surrogate := find_surrogate(text)) is not None:
            problem = (
                f"Prompt {index} has a lone surrogate ({surrogate}), which no tokenizer can read"
            )
            raise BatchError(f"{problem}: decode the text as UTF-8, or remove the character")
        if [name for name, _ in question.answers] != names:
            raise BatchError(
                f"{question.text!r} answers {[n for n, _ in question.answers]}, the first prompt "
                f"{names}: put questions with the same answers in one batch"
            )


def find_surrogate(text: str) -> str | None:
    """First lone surrogate of a text, such as "U+D800"; None where the text is valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"U+{ord(text[error.start]):04X}"
    return None


def _check_boundary(text: str, token: tuple[int, int], character: int) -> None:
    """Refuse a token that holds the end of the prompt and the start of an answer."""
    first, last = token
    if first < character and text[first:character].strip():
        raise OutcomeError(
            f"{text[:character]!r} and its answer share the token {text[first:last]!r} in this "
            "tokenizer: end the prompt at the end of a word, or set the delimiter to a space"
        )


def _add_prefix(
    tokenizer: PreTrainedTokenizerBase, prompt: TokenizedPrompt, prefix: tuple[int, ...]
) -> TokenizedPrompt:
    """Prompt behind a prefix, which is not repeated where the text begins with it."""
    given = prefix or (tokenizer.bos_token_id,)
    n = len(given)
    if prompt.ids[:n] == given:  # A chat template has written it.
        return replace(prompt, roles=(BOS,) * n + prompt.roles[n:])
    n = len(prefix)
    return TokenizedPrompt(
        (*prefix, *prompt.ids),
        (BOS,) * n + prompt.roles,
        (*tokenizer.convert_ids_to_tokens(list(prefix)), *prompt.tokens),
        tuple(start + n for start in prompt.answer_starts),
        tuple(start + n for start in prompt.outcome_starts),
        tuple(end + n for end in prompt.answer_ends),
        prompt.outcomes,
    )


def _tokenize_outcomes(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    contexts: Sequence[Sequence[str]],
) -> list[list[dict[str, tuple[int, ...]]]]:
    """Token ids of each prompt with each outcome: by prompt, by answer, then by outcome."""
    texts = [
        question.append(before, outcome)
        for question, befores in zip(questions, contexts, strict=True)
        for (_, outcomes), before in zip(question.outcomes, befores[:-1], strict=True)
        for outcome in outcomes
    ]
    # Plain texts have no answers.
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
    return [
        [
            {outcome: tuple(next(encoded)) for outcome in outcomes}
            for _, outcomes in question.outcomes
        ]
        for question in questions
    ]


def _first_difference(
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    name: str,
    outcome_ids: dict[str, tuple[int, ...]],
    answer_start: int,
) -> tuple[int, tuple[int, ...]]:
    """Index at which the outcomes first differ, and their tokens there, the answer's first.

    A single outcome is read at its first token.
    """
    encoded = list(outcome_ids.values())
    shortest = min(len(ids) for ids in encoded)
    if len(encoded) == 1:
        start = min(answer_start, shortest - 1)
    else:
        start = next(
            (at for at in range(shortest) if len({ids[at] for ids in encoded}) > 1), shortest
        )
    tokens: dict[int, str] = {}
    for outcome, ids in outcome_ids.items():
        # An outcome that ends here is a prefix of the others.
        prefix_of = next(text for text in (*outcome_ids, "") if text != outcome)
        clash = tokens.get(ids[start]) if start < len(ids) else prefix_of
        if clash is not None:
            other = outcome_ids[clash]
            raise OutcomeError(
                f"{question.text!r}: the {name} outcomes {outcome!r} "
                f"({tokenizer.convert_ids_to_tokens(list(ids[start - 1 :]))}) and {clash!r} "
                f"({tokenizer.convert_ids_to_tokens(list(other[start - 1 :]))}) start with the "
                "same token at the readout: choose words that differ in this tokenizer"
            )
        tokens[ids[start]] = outcome
    return start, tuple(tokens)


def assign_roles(
    text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[Span]
) -> tuple[str, ...]:
    """Role with the greatest overlap; white space outside of all spans has the next token's."""
    spans = sorted(spans, key=lambda span: span[1])
    first = 0  # Spans before it end before the token.
    overlapping: list[str | None] = []
    for begin, stop in offsets:
        start, end = begin, stop
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        while first < len(spans) and spans[first][2] <= begin:
            first += 1
        if start == end:
            inside = first < len(spans) and spans[first][1] <= begin < stop <= spans[first][2]
            overlapping.append(spans[first][0] if inside else None)
            continue
        overlap, role = 0, REST
        for name, a, b in islice(spans, first, None):
            if a >= end:
                break
            if (common := min(end, b) - max(start, a)) > overlap:
                overlap, role = common, name
        overlapping.append(role)
    roles, following = list[str](), REST
    for role in reversed(overlapping):
        following = role or following
        roles.append(following)
    return tuple(reversed(roles))
