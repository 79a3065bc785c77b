"""The gate: no circuit of a behavior that a model does not have."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

from probes.models.model import Model
from probes.observe.behavior import Behavior, evaluate_behavior
from probes.prompts.batch import tokenize
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.stats.intervals import Estimate, bootstrap_mean, proportion

GateState = Literal["open", "partial", "closed"]

OPEN_ACCURACY = 0.8
"""The gate is open where accuracy surely exceeds this, and the best heuristic."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether a model has a behavior, against the best simple heuristic on the same items.

    Attributes:
        model, pattern, answer: What was asked of whom, and which answer was read.
        items: How many questions were asked.
        accuracy: Share of whole answers that are right.
        heuristic: The best of: copy a slot, always say the commonest answer.
        heuristic_accuracy: Its share of right answers.
        margin: Accuracy less the heuristic's, paired by item.
        lead: The answer's logit less the mean of the other outcomes'.
        state: "closed" where the margin's interval reaches 0; else "open" where the interval of
            the accuracy is above 0.8, and "partial" where it is not.
    """

    model: str
    pattern: str
    answer: str
    n_questions: int
    accuracy: Estimate
    heuristic: str
    heuristic_accuracy: float
    margin: Estimate
    logit_diff: Estimate
    state: GateState


def answer_questions(model: Model, questions: Sequence[Question]) -> Behavior:
    """Put questions to a model."""
    batch = tokenize(model.tokenizer, questions, max_length=model.shape.context)
    return evaluate_behavior(model, batch)


def gate(model: Model, pattern: Pattern, *, prompts: int = 200, seed: int = 0) -> tuple[Gate, ...]:
    """Ask a model questions of a pattern and judge each of its answers.

    Raises:
        PatternError: The pattern does not hold so many questions that the tokenizer can read.
    """
    questions = pattern.sample_questions(prompts, seed=seed, keep=tokenizable_by(model.tokenizer))
    return gate_behavior(answer_questions(model, questions), questions, seed=seed)


def gate_behavior(
    behavior: Behavior, questions: Sequence[Question], *, seed: int
) -> tuple[Gate, ...]:
    """Judge what a model answered, one gate for each answer."""
    return tuple(
        _gate_answer(behavior, k, name, questions, seed) for k, name in enumerate(behavior.answers)
    )


def _gate_answer(
    behavior: Behavior, k: int, answer: str, questions: Sequence[Question], seed: int
) -> Gate:
    right = behavior.correct[:, k].numpy()
    guesses = heuristic_hits(questions, answer)
    best = max(guesses, key=lambda name: guesses[name].mean())
    accuracy = proportion(right)
    margin = bootstrap_mean(right.astype(float) - guesses[best].astype(float), seed=seed)
    state: GateState = "closed"
    if margin.low > 0:
        state = "open" if accuracy.low > OPEN_ACCURACY else "partial"
    return Gate(
        model=behavior.model,
        pattern=questions[0].pattern,
        answer=answer,
        n_questions=len(questions),
        accuracy=accuracy,
        heuristic=best,
        heuristic_accuracy=float(guesses[best].mean()),
        margin=margin,
        logit_diff=bootstrap_mean(behavior.logit_diff[:, k].double().numpy(), seed=seed),
        state=state,
    )


def heuristic_hits(
    questions: Sequence[Question], answer: str
) -> dict[str, Bool[np.ndarray, " prompt"]]:
    """Return where each simple heuristic is right.

    A noun is copied only from slots that the answer is not itself defined by: copying the noun
    that is asked for is the behavior, not a heuristic.
    """
    wanted = [question.answer(answer) for question in questions]
    commonest = Counter(wanted).most_common(1)[0][0]
    found = {f"always {commonest}": np.array([text == commonest for text in wanted])}
    copied = dict.fromkeys(slot for question in questions for slot, _ in question.slots)
    for slot in copied:
        values = [dict(question.slots).get(slot) for question in questions]
        always = all(str(value) == text for value, text in zip(values, wanted, strict=True))
        if not always:
            hits = [str(value) == text for value, text in zip(values, wanted, strict=True)]
            found[f"copy {slot}"] = np.array(hits)
    return found
