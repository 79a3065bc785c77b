"""Tokenized prompts: ids with one role for each token, before padding.

A prompt and its answers are tokenized as one text, exactly as given. Roles are assigned by the
overlap of character offsets without white space, so that any fast tokenizer works. The special
tokens in front are those that the tokenizer itself writes, or those of the chat template.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise

from transformers import PreTrainedTokenizerBase

from probes.errors import BatchError, OutcomeError, TokenizerError
from probes.prompts.format.chat import render_chat
from probes.prompts.question import Question, Span
from probes.prompts.tokens.answer_tokens import (
    OutcomeTokens,
    find_readout,
    source_contexts,
    tokenize_outcomes,
)
from probes.prompts.tokens.once import each_once
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
        outcome_starts: Index at which each answer is read; see `AnswerReadout`.
        answer_ends: Index after the last token of each correct answer.
        outcomes: Tokens of the outcomes at that index, the correct one first.
        choices: For each answer where each foil first differs from it; see `AnswerReadout`.
    """

    ids: tuple[int, ...]
    roles: tuple[str, ...]
    tokens: tuple[str, ...]
    answer_starts: tuple[int, ...]
    outcome_starts: tuple[int, ...]
    answer_ends: tuple[int, ...]
    outcomes: tuple[tuple[int, ...], ...]
    choices: tuple[tuple[tuple[int, int, int], ...], ...]


def tokenize_questions(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    answers_from: Sequence[Question] | None = None,
    rivals: Sequence[Question] | None = None,
    add_bos: bool | None = None,
) -> tuple[TokenizedPrompt, ...]:
    """Tokenize questions before padding; other arguments and errors as in `tokenize`.

    Args:
        tokenizer: Fast tokenizer.
        questions: Questions.
        answers_from: Questions whose answers follow; by default the same.
        rivals: Questions whose answers each answer is read against where they differ; by default
            each answer is read where it first differs from any foil.
        add_bos: As in `tokenize`.
    """
    answers_from, rivals = answers_from or questions, rivals or questions
    _check_answer_names(questions)
    prompts = list(zip(questions, answers_from, rivals, strict=True))
    # A tokenizer's hash is its identity.
    return each_once(partial(_tokenize, tokenizer, add_bos), (tokenizer, add_bos), prompts)


def _tokenize(
    tokenizer: PreTrainedTokenizerBase,
    add_bos: bool | None,
    given: Sequence[tuple[Question, Question, Question]],
) -> tuple[TokenizedPrompt, ...]:
    questions, answers_from, rivals = zip(*given, strict=True)
    in_chat = [question.conversation is not None for question in questions]
    questions = [render_chat(tokenizer, question) for question in questions]
    contexts = [source_contexts(*pair) for pair in zip(questions, answers_from, strict=True)]
    whole = [texts[-1] for texts in contexts]
    _check_questions(tokenizer, questions, whole)
    encoded = tokenizer(whole, return_offsets_mapping=True, return_special_tokens_mask=True)
    outcomes = tokenize_outcomes(tokenizer, questions, answers_from, rivals)
    prompts = []
    for index, (question, source) in enumerate(zip(questions, answers_from, strict=True)):
        every, added = encoded["input_ids"][index], encoded["special_tokens_mask"][index]
        kept = [at for at, special in enumerate(added) if not special]
        ids = tuple(every[at] for at in kept)
        offsets = [encoded["offset_mapping"][index][at] for at in kept]
        written = [text for _, text in source.answers]
        prompt = _locate_answers(
            tokenizer, question, (ids, offsets), contexts[index], (outcomes[index], written)
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
    answers: tuple[Sequence[OutcomeTokens], Sequence[str]],
) -> TokenizedPrompt:
    """Prompt without special tokens, from ids and offsets of its text with the written answers.

    `answers` has the tokens of the outcomes, by answer, and the written answers.
    """
    (ids, offsets), text = encoding, contexts[-1]
    if not ids:
        raise BatchError(f"{text!r} has no token in this tokenizer: give other words")
    spans = [
        (f"reply_{name}", len(before), len(after))
        for (name, _), (before, after) in zip(question.answers, pairwise(contexts), strict=True)
    ]
    starts, ends, readouts = [], [], []
    for outcomes, written, before in zip(*answers, contexts[:-1], strict=True):
        first = next((n for n, (_, end) in enumerate(offsets) if end > len(before)), len(ids) - 1)
        readout = find_readout(tokenizer, outcomes, first)
        answer_ids = outcomes.ids[outcomes.answer]
        expected = outcomes.ids.get(written, answer_ids[: readout.start])
        if ids[: len(expected)] != expected:
            raise OutcomeError(
                f"{text!r} has other tokens without the text after {outcomes.name}: choose words "
                "whose tokens do not depend on what follows"
            )
        _check_boundary(text, offsets[first], len(before))
        starts.append(min(first, readout.start))
        ends.append(len(answer_ids))
        # Foils that differ later than the written answer does have no position in this text.
        choices = (c for c in readout.choices if ids[: c[0]] == answer_ids[: c[0]])
        readouts.append(replace(readout, choices=tuple(choices)))
    return TokenizedPrompt(
        ids,
        assign_roles(text, offsets, (*question.roles, *spans)),
        tuple(text[a:b] for a, b in offsets),
        tuple(starts),
        tuple(readout.start for readout in readouts),
        tuple(ends),
        tuple(readout.outcomes for readout in readouts),
        tuple(readout.choices for readout in readouts),
    )


def _check_answer_names(questions: Sequence[Question]) -> None:
    if not questions:
        raise BatchError("A batch needs at least one question: 0 found. Give one")
    names = [name for name, _ in questions[0].answers]
    for question in questions:
        if [name for name, _ in question.answers] != names:
            raise BatchError(
                f"{question.text!r} answers {[n for n, _ in question.answers]}, the first prompt "
                f"{names}: put questions with the same answers in one batch"
            )


def _check_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], texts: Sequence[str]
) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{type(tokenizer).__name__} has no character offsets, which roles need: load a fast "
            "tokenizer (a folder with tokenizer.json)"
        )
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
        tuple(
            tuple((at + n, own, other) for at, own, other in choices) for choices in prompt.choices
        ),
    )


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
