"""Tokenized prompts: ids with one role for each token, before padding.

Roles are assigned by the overlap of character offsets without white space, so that any fast
tokenizer works. A token of white space alone has the role of the next token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from probes.errors import BatchError, OutcomeError, TokenizerError
from probes.prompts.question import Question, Span

REST, BOS = "rest", "bos"


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """One tokenized text before padding: ids, roles, tokens, and positions of its answers."""

    ids: tuple[int, ...]
    roles: tuple[str, ...]
    tokens: tuple[str, ...]
    outcome_starts: tuple[int, ...]
    answer_ends: tuple[int, ...]
    outcomes: tuple[tuple[int, ...], ...]


def tokenize_questions(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    answers_from: Sequence[Question] | None = None,
) -> tuple[TokenizedPrompt, ...]:
    """Tokenize questions before padding; arguments and errors as in `tokenize`."""
    if not questions:
        raise BatchError("A batch needs at least one question: none was given")
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{type(tokenizer).__name__} has no character offsets, which roles need: load a fast "
            "tokenizer (a folder with tokenizer.json)"
        )
    names = [name for name, _ in questions[0].answers]
    for index, question in enumerate(questions):
        if not question.text.strip():
            raise BatchError(f"Prompt {index} has no text: give a text that is not empty")
        if [name for name, _ in question.answers] != names:
            raise BatchError(
                f"{question.text!r} answers {[n for n, _ in question.answers]}, the first prompt "
                f"{names}: put questions with the same answers in one batch"
            )
    answers_from = answers_from or questions
    texts = [
        question.text + _answer_text(answered_by)
        for question, answered_by in zip(questions, answers_from, strict=True)
    ]
    whole = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    endings = _tokenize_outcomes(tokenizer, questions, answers_from)
    rows = []
    for index, (question, answered_by) in enumerate(zip(questions, answers_from, strict=True)):
        ids, offsets = whole["input_ids"][index], whole["offset_mapping"][index]
        roles = assign_roles(
            texts[index], offsets, (*question.roles, *_answer_spans(question, answered_by))
        )
        starts, ends, outcomes = [], [], []
        for k, (name, _) in enumerate(question.answers):
            found = endings[index, k]
            start, tokens = _first_difference(tokenizer, question, name, found)
            written = found.get(answered_by.answers[k][1], next(iter(found.values()))[:start])
            if tuple(ids[: len(written)]) != written:
                raise OutcomeError(
                    f"{texts[index]!r} has other tokens without the text after {name}: choose words "
                    "whose tokens do not depend on what follows"
                )
            starts.append(start)
            ends.append(len(found[question.answer(name)]))
            outcomes.append(tokens)
        rows.append(
            _add_bos(
                tokenizer,
                TokenizedPrompt(
                    tuple(ids),
                    roles,
                    tuple(texts[index][a:b] for a, b in offsets),
                    tuple(starts),
                    tuple(ends),
                    tuple(outcomes),
                ),
            )
        )
    return tuple(rows)


def _add_bos(tokenizer: PreTrainedTokenizerBase, prompt: TokenizedPrompt) -> TokenizedPrompt:
    if not isinstance(tokenizer.bos_token_id, int):
        return prompt
    return TokenizedPrompt(
        (tokenizer.bos_token_id, *prompt.ids),
        (BOS, *prompt.roles),
        (str(tokenizer.bos_token), *prompt.tokens),
        tuple(start + 1 for start in prompt.outcome_starts),
        tuple(end + 1 for end in prompt.answer_ends),
        prompt.outcomes,
    )


def _answer_text(answered_by: Question) -> str:
    return "".join(f" {text}" for _, text in answered_by.answers)


def _answer_spans(question: Question, answered_by: Question) -> tuple[Span, ...]:
    spans, at = [], len(question.text)
    for name, text in answered_by.answers:
        spans.append((f"reply_{name}", at, at + 1 + len(text)))
        at += 1 + len(text)
    return tuple(spans)


def _tokenize_outcomes(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    answers_from: Sequence[Question],
) -> dict[tuple[int, int], dict[str, tuple[int, ...]]]:
    """Token ids of every prompt with every outcome of every answer."""
    keys, texts = [], []
    for index, (question, answered_by) in enumerate(zip(questions, answers_from, strict=True)):
        before = question.text
        for k, ((_, outcomes), (_, written)) in enumerate(
            zip(question.outcomes, answered_by.answers, strict=True)
        ):
            for outcome in outcomes:
                keys.append((index, k, outcome))
                texts.append(f"{before} {outcome}")
            before += f" {written}"
    found: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
    if not texts:  # Plain texts have no answers.
        return found
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for (index, k, outcome), ids in zip(keys, encoded, strict=True):
        found.setdefault((index, k), {})[outcome] = tuple(ids)
    return found


def _first_difference(
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    name: str,
    outcome_ids: dict[str, tuple[int, ...]],
) -> tuple[int, tuple[int, ...]]:
    """Position at which the outcomes first differ, and their tokens, the answer's first."""
    encoded = list(outcome_ids.values())
    shortest = min(len(ids) for ids in encoded)
    if len(encoded) == 1:
        # A single outcome is read at the first token after the prompt.
        start = len(tokenizer(question.text, add_special_tokens=False)["input_ids"])
        start = min(start, shortest - 1)
    else:
        start = next(
            (at for at in range(shortest) if len({ids[at] for ids in encoded}) > 1), shortest
        )
    tokens: dict[int, str] = {}
    for outcome, ids in outcome_ids.items():
        # An outcome that ends here is a prefix of all others.
        ends = next(text for text in (*outcome_ids, "") if text != outcome)
        clash = tokens.get(ids[start]) if start < len(ids) else ends
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
    found: list[str | None] = []
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if start == end:
            found.append(None)
            continue
        overlap, role = max(
            ((min(end, b) - max(start, a), role) for role, a, b in spans),
            key=lambda pair: pair[0],
            default=(0, REST),
        )
        found.append(role if overlap > 0 else REST)
    roles: list[str] = []
    following = REST
    for role in reversed(found):
        following = role or following
        roles.append(following)
    return tuple(reversed(roles))
