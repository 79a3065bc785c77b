"""Gate: does a model have the behavior whose circuit is traced?"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from probes.models.model import Model
from probes.observe.behavior import Behavior, evaluate_behavior
from probes.observe.result import Gate, GateState
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import tokenizable_by
from probes.stats.intervals import bootstrap_mean, proportion

OPEN_ACCURACY = 0.8
"""The gate is open where the 95 % interval of the accuracy is above this value."""

MIN_QUESTIONS = 5
"""With fewer questions, those of one or two pairs, no gate is closed: they are too few to tell."""


def answer_questions(model: Model, questions: Sequence[Question]) -> Behavior:
    """Behavior of a model on questions."""
    batch = tokenize(model.tokenizer, questions, max_length=model.shape.context)
    return evaluate_behavior(model, batch)


def gate(model: Model, pattern: Pattern, *, prompts: int = 200, seed: int = 0) -> tuple[Gate, ...]:
    """Gate of each answer of a pattern, on sampled questions.

    Raises:
        PatternError: The pattern has fewer questions that the tokenizer supports.
    """
    questions = pattern.sample_questions(prompts, seed=seed, keep=tokenizable_by(model.tokenizer))
    return gate_behavior(answer_questions(model, questions), questions, seed=seed)


def gate_behavior(
    behavior: Behavior, questions: Sequence[Question], *, seed: int
) -> tuple[Gate, ...]:
    """Gate of each answer of an evaluated behavior."""
    return tuple(
        _gate_answer(behavior, k, name, questions, seed) for k, name in enumerate(behavior.answers)
    )


def _gate_answer(
    behavior: Behavior, k: int, answer: str, questions: Sequence[Question], seed: int
) -> Gate:
    correct = behavior.correct[:, k].numpy()
    hits = heuristic_hits(questions, answer)
    best = max(hits, key=lambda name: hits[name].mean())
    accuracy = proportion(correct)
    margin = bootstrap_mean(correct.astype(float) - hits[best].astype(float), seed=seed)
    state: GateState = "closed"
    if margin.low > 0:
        state = "open" if accuracy.low > OPEN_ACCURACY else "partial"
    elif len(questions) < MIN_QUESTIONS or bootstrap_mean(1.0 - hits[best], seed=seed).low <= 0:
        state = "too few to tell"
    return Gate(
        model=behavior.model,
        pattern=questions[0].pattern,
        answer=answer,
        n_questions=len(questions),
        accuracy=accuracy,
        heuristic=best,
        heuristic_accuracy=float(hits[best].mean()),
        margin=margin,
        logit_diff=bootstrap_mean(behavior.logit_diff[:, k].double().numpy(), seed=seed),
        state=state,
    )


def heuristic_hits(
    questions: Sequence[Question], answer: str
) -> dict[str, Bool[np.ndarray, " prompt"]]:
    """Where each simple heuristic is correct, by its name.

    A slot that always equals the answer is not copied: that copy is the behavior itself.
    """
    expected = [question.answer(answer) for question in questions]
    common = Counter(expected).most_common(1)[0][0]
    hits = {f"always {common}": np.array([text == common for text in expected])}
    for slot in dict.fromkeys(slot for question in questions for slot, _ in question.slots):
        values = [dict(question.slots).get(slot) for question in questions]
        equal = [str(value) == text for value, text in zip(values, expected, strict=True)]
        if not all(equal):
            hits[f"copy {slot}"] = np.array(equal)
    return hits
