"""Tokenized prompts: ids with one role for each token, before padding.

A prompt and its answers are tokenized as one text, exactly as given. Roles are assigned by the
overlap of character offsets without white space, so that any fast tokenizer works. A token of
white space alone has the role of the next token. The special tokens in front are those that the
tokenizer itself writes.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from probes.errors import BatchError, OutcomeError, TokenizerError
from probes.prompts.question import Question, Span

REST, BOS = "rest", "bos"

MAX_CHARACTERS = 500_000
"""Most characters of a prompt with its answers; longer texts are refused before tokenization."""


class SpecialTokenWarning(UserWarning):
    """A text contains the literal text of a special token."""


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
    contexts = [
        question.answer_contexts([text for _, text in source.answers])
        for question, source in zip(questions, answers_from, strict=True)
    ]
    _check_questions(tokenizer, questions, [texts[-1] for texts in contexts])
    encoded = tokenizer(
        [texts[-1] for texts in contexts],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    outcome_ids = _tokenize_outcomes(tokenizer, questions, contexts)
    prompts = []
    for index, (question, source) in enumerate(zip(questions, answers_from, strict=True)):
        added = encoded["special_tokens_mask"][index]
        prefix = _leading(encoded["input_ids"][index], added)
        ids, offsets = (
            [
                value
                for value, special in zip(encoded[key][index], added, strict=True)
                if not special
            ]
            for key in ("input_ids", "offset_mapping")
        )
        *befores, text = contexts[index]
        spans = [
            (f"reply_{name}", len(before), len(after))
            for (name, _), before, after in zip(
                question.answers, befores, contexts[index][1:], strict=True
            )
        ]
        starts, outcome_starts, ends, outcomes = [], [], [], []
        for k, (name, answer) in enumerate(question.answers):
            ids_of, character = outcome_ids[index, k], len(befores[k])
            first = next((n for n, (_, b) in enumerate(offsets) if b > character), len(ids) - 1)
            start, tokens = _first_difference(tokenizer, question, name, ids_of, first)
            written = ids_of.get(source.answers[k][1], next(iter(ids_of.values()))[:start])
            if tuple(ids[: len(written)]) != written:
                raise OutcomeError(
                    f"{text!r} has other tokens without the text after {name}: choose words "
                    "whose tokens do not depend on what follows"
                )
            _check_boundary(text, offsets[first], character)
            starts.append(min(first, start))
            outcome_starts.append(start)
            ends.append(len(ids_of[answer]))
            outcomes.append(tokens)
        prompt = TokenizedPrompt(
            tuple(ids),
            assign_roles(text, offsets, (*question.roles, *spans)),
            tuple(text[a:b] for a, b in offsets),
            tuple(starts),
            tuple(outcome_starts),
            tuple(ends),
            tuple(outcomes),
        )
        if add_bos is not None:
            prefix = special_prefix(tokenizer, add_bos=add_bos)
        prompts.append(_add_prefix(tokenizer, prompt, prefix))
    _warn_about_special_tokens(tokenizer, prompts)
    return tuple(prompts)


def special_prefix(tokenizer: Any, *, add_bos: bool | None = None) -> tuple[int, ...]:  # noqa: ANN401
    """Special tokens that a tokenizer writes before a text: BOS, several tokens, or none.

    Args:
        tokenizer: Fast tokenizer.
        add_bos: True for the declared BOS alone, False for none, None for the tokenizer's own.

    Raises:
        TokenizerError: `add_bos` is True and the tokenizer declares no BOS.
    """
    if add_bos is None:
        encoded = tokenizer("a", return_special_tokens_mask=True)
        return _leading(encoded["input_ids"], encoded["special_tokens_mask"])
    if add_bos and not isinstance(tokenizer.bos_token_id, int):
        raise TokenizerError(
            f"{type(tokenizer).__name__} declares no BOS token: leave add_bos out, or set bos_token"
        )
    return (tokenizer.bos_token_id,) if add_bos else ()


def _check_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], texts: Sequence[str]
) -> None:
    if not questions:
        raise BatchError("A batch needs at least one question: none was given")
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
            raise BatchError(
                f"Prompt {index} has a lone surrogate ({surrogate}), which no tokenizer can read: "
                "decode the text as UTF-8, or remove the character"
            )
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


def set_bos(tokenizer: Any, add_bos: bool) -> None:  # noqa: ANN401
    """Make a fast tokenizer write its declared BOS token before each text, or nothing.

    Raises:
        TokenizerError: The tokenizer declares no BOS token to add.
    """
    special_prefix(tokenizer, add_bos=add_bos)
    tokenizer.add_bos_token = add_bos  # Replaces the post-processor.


def _leading(ids: Sequence[int], added: Sequence[int]) -> tuple[int, ...]:
    """Ids before the first one that was not added; `added` is 1 for special tokens."""
    return tuple(ids[: added.index(0) if 0 in added else len(added)])


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


def _warn_about_special_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[TokenizedPrompt]
) -> None:
    """Warn where the text of a prompt became a special token, other than at its start."""
    special = set(tokenizer.all_special_ids)
    literal = {
        text.strip(): None
        for prompt in prompts
        for token, role, text in zip(prompt.ids, prompt.roles, prompt.tokens, strict=True)
        if token in special
        and role != BOS
        and text.strip() == str(tokenizer.convert_ids_to_tokens(token)).strip()
    }
    if literal:
        warnings.warn(
            f"The tokenizer reads {', '.join(literal)} in a text as a special token, not as "
            "words: this is right for a chat template only",
            SpecialTokenWarning,
            stacklevel=2,
        )


def _tokenize_outcomes(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    contexts: Sequence[Sequence[str]],
) -> dict[tuple[int, int], dict[str, tuple[int, ...]]]:
    """Token ids of every prompt with every outcome of every answer, by (prompt, answer)."""
    keys, texts = [], []
    for index, (question, befores) in enumerate(zip(questions, contexts, strict=True)):
        for k, (_, outcomes) in enumerate(question.outcomes):
            keys += [(index, k, outcome) for outcome in outcomes]
            texts += [question.append(befores[k], outcome) for outcome in outcomes]
    ids_of: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
    if not texts:  # Plain texts have no answers.
        return ids_of
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for (index, k, outcome), ids in zip(keys, encoded, strict=True):
        ids_of.setdefault((index, k), {})[outcome] = tuple(ids)
    return ids_of


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
        # An outcome that ends here is a prefix of all others.
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
    """Role with the greatest overlap for every token; white space has the next token's role."""
    overlapping: list[str | None] = []
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if start == end:
            overlapping.append(None)
            continue
        overlap, role = max(
            ((min(end, b) - max(start, a), role) for role, a, b in spans),
            key=lambda candidate: candidate[0],
            default=(0, REST),
        )
        overlapping.append(role if overlap > 0 else REST)
    roles: list[str] = []
    following = REST
    for role in reversed(overlapping):
        following = role or following
        roles.append(following)
    return tuple(reversed(roles))
