"""Pairs of a pattern in two halves: some to find a circuit by, others to judge it by."""

from collections.abc import Sequence

from probes.circuits.task import Task, task_from_pairs
from probes.errors import CircuitError, GateError, PatternError
from probes.models.model import Model
from probes.observe.gate import Gate, gate
from probes.prompts.pair_batch import sample_pairs, tokenize_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair
from probes.prompts.splits import TextDisjointHalves


def require_open_gate(model: Model, pattern: Pattern, answer: str, *, seed: int) -> Gate:
    """Return the gate of one answer, the first by default.

    Raises:
        GateError: It is closed.
    """
    gates = gate(model, pattern, seed=seed)
    names = [found.answer for found in gates]
    if answer and answer not in names:
        raise GateError(f"{pattern.name!r} has no answer {answer!r}: it has {', '.join(names)}")
    found = gates[names.index(answer)] if answer else gates[0]
    if found.state == "closed":
        raise GateError(
            f"{model.name} does not have the behavior: {found.answer} of {pattern.name!r} is "
            f"right in {found.accuracy}, {found.heuristic!r} in {found.heuristic_accuracy:.2f}. "
            "There is no circuit to trace; choose a model or a pattern whose gate is open."
        )
    return found


def sample_tasks(  # noqa: PLR0913 (so has the drawing)
    model: Model,
    pattern: Pattern,
    answer: str,
    contrasts: Sequence[str] = (),
    *,
    prompts: int = 32,
    seed: int = 0,
) -> tuple[Task, Task]:
    """Draw pairs of all contrasts that change an answer: some to find by, as many to judge by.

    Raises:
        CircuitError: No contrast of the pattern changes the answer.
    """
    if prompts < 1:
        raise CircuitError(f"{prompts} prompts were asked for: take at least one a contrast")
    kinds = tuple(contrasts) or pattern.contrasts
    halves = TextDisjointHalves(prompts)
    for kind in kinds:
        try:
            pairs = sample_pairs(
                pattern, kind, 2 * prompts, tokenizers=(model.tokenizer,), seed=seed
            )
        except PatternError as error:
            raise PatternError(
                f"{error}, as {prompts} prompts find the circuit and {prompts} judge it: ask for "
                "fewer, or name contrasts that have as many pairs."
            ) from error
        names = [name for name, _ in pairs[0].clean.answers]
        if answer not in names:
            raise CircuitError(f"{pattern.name!r} has no answer {answer!r}: it has {names}")
        if contrasts or not any(_same_answer(pair, answer) for pair in pairs):
            halves.add(pairs)
    finding, judging = halves.halves
    if not finding:
        raise CircuitError(
            f"No contrast of {pattern.name!r} changes {answer!r}: found {', '.join(kinds)}. Name "
            "contrasts that do, or another answer."
        )
    if not judging:
        raise CircuitError(
            f"All texts of {pattern.name!r} are among those that the circuit is found by: none is "
            "left to judge it by. Write pairs of more texts, or ask for fewer prompts."
        )
    limit = model.shape.context
    both = (tokenize_pairs(model.tokenizer, some, max_length=limit) for some in (finding, judging))
    first, second = (task_from_pairs(pairs, answer, skip_unequal=True) for pairs in both)
    return first, second


def sample_tasks_if_gate_open(
    model: Model, pattern: Pattern, *, prompts: int, seed: int
) -> tuple[str, Task, Task] | None:
    """Draw another pattern's pairs, or none where its gate is closed."""
    try:
        found = require_open_gate(model, pattern, "", seed=seed)
    except GateError:
        return None
    return pattern.name, *sample_tasks(model, pattern, found.answer, prompts=prompts, seed=seed)


def _same_answer(pair: Pair, answer: str) -> bool:
    return pair.clean.answer(answer) == pair.counterfactual.answer(answer)
