"""Gate: does a model have the behavior whose circuit is traced?"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from probes.errors import GateError
from probes.models.model import Model, ModelSpec, load
from probes.observe.behavior import Behavior, evaluate_behavior
from probes.observe.result import GATE_CRITERIA, Gate, GateCriterion, GateState
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import sample_readable_questions
from probes.stats.intervals import Estimate, bootstrap_mean, proportion

OPEN_ACCURACY = 0.8
"""The gate is open where the 95 % interval of the score is above this value."""

GATE_QUESTIONS = 200
"""Questions of the gate, unless the pattern has fewer."""

MIN_QUESTIONS = 6
"""With fewer questions, those of one or two pairs, no gate is open or closed: too few to tell."""


def answer_questions(model: Model, questions: Sequence[Question]) -> Behavior:
    """Behavior of a model on questions."""
    batch = tokenize(model.tokenizer, questions, max_length=model.shape.context)
    return evaluate_behavior(model, batch)


def default_criterion(pattern: Pattern) -> GateCriterion:
    """Accuracy for patterns with free answers, choice for pairs with foils."""
    return "choice" if pattern.user_pairs else "accuracy"


def gate(
    model: ModelSpec,
    pattern: str | Pattern,
    *,
    prompts: int = GATE_QUESTIONS,
    seed: int = 0,
    criterion: GateCriterion | None = None,
) -> tuple[Gate, ...]:
    """Gate of each answer of a pattern, on sampled questions.

    Args:
        model: A family name, a folder, a hub id or a loaded model, with a tokenizer.
        pattern: A pattern, its name, or a .jsonl file; of given pairs both prompts are asked.
        prompts: Questions.
        seed: Seed of the sample and of the bootstrap.
        criterion: What the gate asks; see `GateCriterion`. By default `default_criterion`.

    Raises:
        PatternError: The pattern has fewer questions that the tokenizer supports.
        GateError: The criterion is unknown, or needs foils, and an answer has none.
    """
    model, pattern = load(model), find_pattern(pattern)
    questions = sample_readable_questions(
        pattern, prompts, tokenizers=(model.tokenizer,), seed=seed
    )
    behavior = answer_questions(model, questions)
    criterion = criterion or default_criterion(pattern)
    return gate_behavior(behavior, questions, seed=seed, criterion=criterion)


def gate_behavior(
    behavior: Behavior,
    questions: Sequence[Question],
    *,
    seed: int,
    criterion: GateCriterion = "accuracy",
) -> tuple[Gate, ...]:
    """Gate of each answer of an evaluated behavior."""
    if criterion not in GATE_CRITERIA:
        raise GateError(f"Gate {criterion!r} is unknown: choose {', '.join(GATE_CRITERIA)}")
    return tuple(
        _gate_answer(behavior, k, questions, seed, criterion) for k in range(len(behavior.answers))
    )


def _gate_answer(
    behavior: Behavior, k: int, questions: Sequence[Question], seed: int, criterion: GateCriterion
) -> Gate:
    answer, correct = behavior.answers[k], behavior.correct[:, k].numpy()
    counts = np.array([len(dict(question.outcomes)[answer]) for question in questions])
    if criterion in ("choice", "logit-diff") and bool((counts < 2).any()):
        raise GateError(
            f"{answer} of {questions[0].pattern!r} has no foils, which the gate {criterion!r} "
            "compares it with: add outcomes, or choose the gate accuracy"
        )
    is_choice = criterion == "choice"
    right = behavior.preferred[:, k].numpy() if is_choice else correct
    hits = heuristic_hits(questions, answer, choice=is_choice)
    best = max(hits, key=lambda name: hits[name].mean())
    score = proportion(right)
    margin = _margin(right, hits[best], seed)
    logit_diff = bootstrap_mean(behavior.logit_diff[:, k].double().numpy(), seed=seed)
    state: GateState = "closed"
    if criterion == "none":
        state = "not established"
    elif len(questions) < MIN_QUESTIONS:
        state = "too few to tell"
    elif (logit_diff if criterion == "logit-diff" else margin).low > 0:
        is_high = criterion == "logit-diff" or score.low > OPEN_ACCURACY
        state = "open" if is_high else "partial"
    elif _margin(np.ones_like(right), hits[best], seed).low <= 0:
        state = "too few to tell"
    return Gate(
        model=behavior.model,
        pattern=questions[0].pattern,
        answer=answer,
        n_questions=len(questions),
        accuracy=proportion(correct),
        heuristic=best,
        heuristic_accuracy=float(hits[best].mean()),
        margin=margin,
        logit_diff=logit_diff,
        state=state,
        criterion=criterion,
        choice=proportion(behavior.preferred[:, k].numpy()) if counts.min() > 1 else None,
        chance=float((1 / counts).mean()),
    )


def _margin(
    right: Bool[np.ndarray, " prompt"], hits: Float[np.ndarray, " prompt"], seed: int
) -> Estimate:
    """Accuracy minus that of a heuristic, paired by question.

    Equal differences, as of right answers and a constant chance, have no bootstrap width: their
    error is that of the accuracy.
    """
    margin, score = bootstrap_mean(right - hits, seed=seed, bounds=(-1, 1)), proportion(right)
    if margin.low < margin.high:
        return margin
    low, high = margin.value - score.value + np.array([score.low, score.high])
    return Estimate(margin.value, max(float(low), -1.0), min(float(high), 1.0))


def heuristic_hits(
    questions: Sequence[Question], answer: str, *, choice: bool = False
) -> dict[str, Float[np.ndarray, " prompt"]]:
    """How often each simple heuristic is correct, by its name: 0 or 1, or the fraction of a guess.

    A slot that always equals the answer is not copied: that copy is the behavior itself. With
    `choice` a guess among all outcomes is a heuristic as well.
    """
    expected = [question.answer(answer) for question in questions]
    common = Counter(expected).most_common(1)[0][0]
    hits = {f"always {common}": np.array([text == common for text in expected], dtype=float)}
    slots = dict.fromkeys(slot for question in questions for slot, _ in question.slots)
    for slot in slots:
        values = [dict(question.slots).get(slot) for question in questions]
        equal = [str(value) == text for value, text in zip(values, expected, strict=True)]
        if not all(equal):
            hits[f"copy {slot}"] = np.array(equal, dtype=float)
    outcomes = [dict(question.outcomes)[answer] for question in questions]
    named = [_named(q.text, texts) for q, texts in zip(questions, outcomes, strict=True)]
    if not slots and any(len(texts) > 1 for texts in named):
        hits["any outcome that the prompt names"] = np.array(
            [_guess(*each) for each in zip(expected, named, outcomes, strict=True)]
        )
    if choice:
        hits["any outcome"] = np.array([1 / len(texts) for texts in outcomes])
    return hits


def _named(text: str, outcomes: Sequence[str]) -> list[str]:
    """Outcomes that are whole words of a text."""
    return [
        outcome
        for outcome in outcomes
        if re.search(rf"(?<!\w){re.escape(outcome.strip())}(?!\w)", text)
    ]


def _guess(answer: str, named: Sequence[str], outcomes: Sequence[str]) -> float:
    """Chance of a guess among the named outcomes, or among all where none is named."""
    candidates = named or outcomes
    return (answer in candidates) / len(candidates)
