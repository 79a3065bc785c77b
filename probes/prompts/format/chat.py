"""Chat prompts: a question inside a model's own chat template.

The sentences before the answer are the user's turn. The words that lead to the answer ("Answer:",
"Now I have") are the forced beginning of the assistant's turn. A text of one unfinished sentence is
the beginning of the assistant's turn as a whole.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from probes.errors import PatternError, TokenizerError
from probes.prompts.format.prompt_format import CHAT_ROLE, EXAMPLE_ROLE, TURN_ROLE
from probes.prompts.question import Question, Span

CONTINUE = "Continue the text."
"""Turn of the user before a text of one unfinished sentence."""

# A mark with closing quotes or brackets, a mark of Chinese or Japanese, or the end of a line.
_TURN_END = re.compile(r"[.?!][\"'\u201d\u2019)\]]*(?=\s|$)|[\u3002\uff1f\uff01]|(?<=\S)(?=\s*\n)")


def lead_in_start(text: str) -> int:
    """Index after the last sentence or line that ends in a text; 0 where none does."""
    ends = [found.end() for found in _TURN_END.finditer(text)]
    return ends[-1] if ends else 0


def split_lead_in(text: str) -> tuple[str, str]:
    """Sentences of a prompt, and the words that lead to the answer."""
    end = lead_in_start(text)
    return text[:end], text[end:].lstrip()


def render_chat(tokenizer: Any, question: Question) -> Question:  # noqa: ANN401
    """Question whose text is the rendered chat, with the roles at their new places.

    A question without a conversation is returned as it is.

    Raises:
        TokenizerError: There is no chat template, or it refuses or changes a text.
        PatternError: A role lies in both turns.
    """
    chat = question.conversation
    if chat is None:
        return question
    user, lead_in = split_lead_in(question.text)
    asked = user or CONTINUE
    messages = [{"role": "system", "content": chat.system}] if chat.system else []
    for said, replied in chat.turns:
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": replied}]
    messages.append({"role": "user", "content": asked})
    text = _apply_template(tokenizer, messages)
    starts = _find_in_order(tokenizer, text, messages)
    first_user = starts[1] if chat.system else starts[0]
    start, end = starts[-1], starts[-1] + len(asked)
    gap, full = _answer_gap(tokenizer, messages, text), len(text)
    added: list[Span] = [(CHAT_ROLE, 0, first_user)]
    if chat.turns:
        added.append((EXAMPLE_ROLE, first_user, start))
    if not user:  # The instruction belongs to the change of turns.
        end = start
    cut = len(question.text) - len(lead_in)
    moved = []
    for role, first, last in question.roles:
        if first < len(user) < last:
            raise PatternError(
                f"The role {role!r} lies in both turns of the chat, before and after "
                f"{user[-40:]!r}: end it at the end of a sentence, or use another format"
            )
        shift = start if last <= len(user) else full + len(gap) - cut
        moved.append((role, first + shift, last + shift))
    before = [span for span in moved if span[1] < end]
    after = moved[len(before) :]
    return replace(
        question,
        text=text + gap + lead_in,
        roles=(*added, *before, (TURN_ROLE, end, full), *after),
        conversation=None,
        starts_turn=not lead_in,
    )


def require_template(tokenizer: Any, name: str = "") -> None:  # noqa: ANN401
    """Raise TokenizerError where a tokenizer, that of the model `name`, has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise TokenizerError(
            f"{name or type(tokenizer).__name__} has no chat template, which a chat format needs: "
            "use plain or few-shot-4"
        )


def _apply_template(
    tokenizer: Any,  # noqa: ANN401
    messages: Sequence[dict[str, str]],
    *,
    answered: bool = False,
) -> str:
    """Text of a conversation, up to where the assistant answers unless it is answered."""
    require_template(tokenizer)
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not answered, enable_thinking=False
        )
    except Exception as error:  # A template may raise anything.
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise TokenizerError(
            f"The chat template refuses {' '.join(m['role'] for m in messages)} ({reason}): use "
            "another format, such as chat without a system line, or plain"
        ) from error


def _find_in_order(
    tokenizer: Any,  # noqa: ANN401
    text: str,
    messages: Sequence[dict[str, str]],
) -> list[int]:
    """Start of each message in the rendered text, from the last to the first."""
    starts, until = list[int](), len(text)
    for message in reversed(messages):
        at = text.rfind(message["content"], 0, until)
        if at < 0:
            raise TokenizerError(
                f"The chat template of {type(tokenizer).__name__} changes or drops the "
                f"{message['role']}'s text {message['content'][:60]!r}, so that its roles are "
                "lost: use plain or few-shot-4"
            )
        starts.insert(0, at)
        until = at
    return starts


def _answer_gap(tokenizer: Any, messages: Sequence[dict[str, str]], text: str) -> str:  # noqa: ANN401
    """White space that the template writes before the assistant's answer."""
    if text[-1:].isspace():
        return ""
    mark = "Yes"
    answered = _apply_template(
        tokenizer, [*messages, {"role": "assistant", "content": mark}], answered=True
    )
    gap = answered[len(text) :].partition(mark)[0]
    return gap if answered.startswith(text) and gap.isspace() else ""
