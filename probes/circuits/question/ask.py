"""Ask: one question in free English, answered, and held against the circuit of its pattern."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import einsum

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.faithfulness import (
    evaluate_circuit,
    faithfulness_values,
    sample_random_circuits,
)
from probes.circuits.question.result import (
    AnswerReading,
    CircuitUse,
    ContrastUse,
    HeadAttention,
    QuestionReport,
)
from probes.circuits.result import Trace
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task
from probes.circuits.trace import TraceSettings, trace
from probes.errors import BatchError, CircuitError, GateError, OutcomeError
from probes.models.model import Model, ModelSpec, load
from probes.observe.activations import capture
from probes.observe.behavior import evaluate_behavior
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.english.match import counterfactuals, match_text
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair, Question
from probes.prompts.tokens.batch import Batch, tokenize
from probes.prompts.tokens.pair_batch import tokenize_pairs

_MAX_PAIRS = 8
_CANDIDATES = 60
_RANDOM_CIRCUITS = 20
_OUTSIDE_EDGES = 10
_NEW_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """How a question is held against a circuit.

    Attributes:
        pattern: Pattern whose circuit is traced; "" for the one that the text matches.
        circuit: A saved trace of the model to use; None to trace the pattern.
        trace: Whether a circuit is looked at at all.
        prompts: Pairs of each contrast for the trace.
        seed: Seed of the trace, of the counterfactuals and of the random circuits.
        run: Folder of the store that the trace is kept in, or a store; see `PlannedSettings`.
    """

    pattern: str | Pattern = ""
    circuit: Trace | None = None
    trace: bool = True
    prompts: int = 32
    seed: int = 0
    run: Any = None


def ask(model: ModelSpec, text: str, settings: AskSettings | None = None) -> QuestionReport:
    """Answer a question, and measure how much of its pattern's circuit it drives.

    The question's own faithfulness is that of the circuit on pairs of the question with
    counterfactuals of itself: other numbers, and the opposite operation where a template fits.

    Args:
        model: A family name, a folder, a hub id or a loaded model.
        text: The question, in English.
        settings: The circuit and the counterfactuals.

    Raises:
        MatchError: The text matches no pattern.
        CircuitError: The saved trace is of a model with other layers or heads.
        OutcomeError: The tokenizer cannot tell the answer from its foils.
    """
    settings = settings or AskSettings()
    question, model = match_text(text), load(model)
    if settings.circuit is not None:
        _check_trace(settings.circuit, model)
    batch = tokenize(model, question)
    use, reason = None, "it was not asked for."
    if settings.trace:
        use, reason = _use_circuit(model, question, settings)
    roles, attention = _attend(model, batch, set() if use is None else _heads(use))
    written = model.generate(question.text, max_new_tokens=_NEW_TOKENS)
    return QuestionReport(
        model=model.name,
        text=question.text,
        pattern=question.pattern,
        template=question.template,
        roles=tuple((role, question.text[start:end]) for role, start, end in question.roles),
        continuation=written[len(question.text) :],
        answers=tuple(_read_answers(model, question, batch)),
        attention_roles=roles,
        attention=attention,
        circuit=use,
        circuit_reason=reason,
    )


def _check_trace(found: Trace, model: Model) -> None:
    graph = found.circuit.graph
    sizes = (model.shape.layers, model.shape.heads)
    if (graph.layers, graph.heads) != sizes:
        raise CircuitError(
            f"The trace is of {found.circuit.model}, with {graph.layers} layers of {graph.heads} "
            f"heads, and {model.name} has {sizes[0]} of {sizes[1]}: give a trace of {model.name}"
        )


@torch.no_grad()
def _read_answers(model: Model, question: Question, batch: Batch) -> Iterator[AnswerReading]:
    behavior = evaluate_behavior(model, batch)
    vocabulary = model.tokenizer.convert_ids_to_tokens([*range(model.shape.d_vocab)])
    digits = [n for n, token in enumerate(vocabulary) if str(token)[:1].isdigit()]
    for k, (name, outcomes) in enumerate(question.outcomes):
        before = question.answers[:k]
        variants = tuple(
            replace(
                question,
                answers=(*before, (name, outcome)),
                outcomes=(*question.outcomes[:k], (name, _with_first(outcomes, outcome))),
            )
            for outcome in outcomes
        )
        rows = tokenize(model, variants)
        logits = model.logits(rows.ids.to(model.device), rows.mask.to(model.device)).cpu()
        log_probs = logits.float().log_softmax(-1)
        readout = rows.readouts[k]
        probabilities = []
        for row, outcome in enumerate(outcomes):
            end = int(readout.end[row])
            at = torch.arange(int(readout.start[row]) + 1, end)
            chance = log_probs[row, at - 1, rows.ids[row, at]].sum().exp()
            if outcome[-1:].isdigit():
                chance = chance * (1 - log_probs[row, end - 1, digits].exp().sum())
            probabilities.append(float(chance))
        best = int(behavior.predicted[0, k])
        position = int(readout.position[0])
        yield AnswerReading(
            name=name,
            outcomes=outcomes,
            probabilities=tuple(probabilities),
            logit_diff=float(behavior.logit_diff[0, k]),
            predicted=model.tokenizer.decode([best]),
            predicted_probability=float(log_probs[0, position, best].exp()),
            forced=model.tokenizer.decode(rows.ids[0, int(readout.start[0]) + 1 : position + 1]),
        )


def _with_first(outcomes: tuple[str, ...], first: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((first, *outcomes)))


def _attend(
    model: Model, batch: Batch, in_circuit: set[str]
) -> tuple[tuple[str, ...], tuple[HeadAttention, ...]]:
    """Attention of each head from the first readout, summed over the tokens of each role."""
    readout = int(batch.readouts[0].position[0])
    attention = capture(model, batch, ("attention",))["attention"][:, 0, :, readout].cpu()
    masks = {role: batch.role_mask(role)[0] for role in batch.roles}
    read = {role: mask for role, mask in masks.items() if bool(mask[: readout + 1].any())}
    roles = sorted(read, key=lambda role: int(read[role].int().argmax()))
    member = torch.stack([read[role] for role in roles]).to(attention.dtype)
    shares = einsum(attention, member, "layer head key, role key -> layer head role").tolist()
    return tuple(roles), tuple(
        HeadAttention(name, name in in_circuit, tuple(row))
        for layer, rows in enumerate(shares)
        for name, row in ((f"L{layer}.H{head}", row) for head, row in enumerate(rows))
    )


def _heads(use: CircuitUse) -> set[str]:
    return {edge.source for edge in use.circuit.edges}


def _use_circuit(
    model: Model, question: Question, settings: AskSettings
) -> tuple[CircuitUse | None, str]:
    """Use of the pattern's circuit, or None with the reason."""
    own_pattern = find_pattern(question.pattern)
    found = settings.circuit
    if found is None:
        traced = settings.pattern or own_pattern
        options = TraceSettings(
            prompts=settings.prompts, seed=settings.seed, other_pattern="", run=settings.run
        )
        try:
            found = trace(model, traced, settings=options)
        except GateError as error:
            return None, str(error)
    pairs = _pairs(model, question, own_pattern, settings.seed)
    if not pairs:
        return None, (
            "no counterfactual of this question has as many tokens and a distinct answer in this "
            "tokenizer."
        )
    circuit, uses, tasks = found.circuit, [], []
    by_role = bool(circuit.graph.roles)
    for contrast, own in pairs.items():
        batch = tokenize_pairs(model.tokenizer, own, max_length=model.shape.context)
        task = Task.from_pairs(batch, "number", skip_unequal=True)
        runs = run_references(model, task, roles=by_role)
        kept = evaluate_circuit(runs, circuit, seed=settings.seed)
        masks = sample_random_circuits(
            runs, len(circuit), "paths", _RANDOM_CIRCUITS, seed=settings.seed
        )
        uses.append(
            ContrastUse(
                contrast=contrast,
                pairs=len(task),
                logit_diff=float(runs.clean_logit_diffs.mean()),
                faithfulness=kept.value,
                complement=kept.complement,
                random=float(faithfulness_values(runs, masks).median()),
            )
        )
        tasks.append(task)
    return _edge_use(model, found, tasks, uses, by_role=by_role), ""


def _edge_use(
    model: Model, found: Trace, tasks: list[Task], uses: list[ContrastUse], *, by_role: bool
) -> CircuitUse:
    """Scores of the edges on the question, mean over its contrasts."""
    circuit: Circuit = found.circuit
    scored = [edge_attribution(model, task, roles=by_role, per_prompt=False) for task in tasks]
    graph = scored[0].graph
    mean = torch.stack([each.mean for each in scored]).mean(0)
    own = circuit.graph.indices_in(graph)[circuit.edge_indices]
    inside = torch.zeros(len(graph), dtype=torch.bool)
    inside[own[own >= 0]] = True
    total = float(mean.abs().sum())
    strongest = mean.abs().masked_fill(inside, -1).argsort(descending=True)[:_OUTSIDE_EDGES]
    strongest = strongest[~inside[strongest]]
    outside = np.full(len(graph), np.nan)
    outside[strongest] = mean[strongest]
    own_scores = [float(mean[n]) if n >= 0 else 0.0 for n in own.tolist()]
    return CircuitUse(
        circuit=replace(circuit, scores=tuple(own_scores), errors=(math.nan,) * len(circuit)),
        task=dict(circuit.protocol).get("task", "the pattern"),
        pattern_faithfulness=found.held_out.value,
        contrasts=tuple(uses),
        inside_share=float(mean.abs()[inside].sum()) / total if total else math.nan,
        pattern_scores=circuit.scores,
        outside=Circuit.from_scores(model.name, graph, outside),
    )


def _pairs(model: Model, question: Question, pattern: Pattern, seed: int) -> dict[str, list[Pair]]:
    """Pairs of the question with counterfactuals of equal token counts, by contrast."""
    found: dict[str, list[Pair]] = {}
    tried: dict[str, int] = {}
    for contrast, other in counterfactuals(question, pattern, seed=seed):
        tried[contrast] = tried.get(contrast, 0) + 1
        own = found.get(contrast, [])
        if len(own) >= _MAX_PAIRS or tried[contrast] > _CANDIDATES:
            continue
        pair = Pattern.make_pair(contrast, question, other)
        if not pair.changes_answer("number"):
            continue
        try:
            aligned = tokenize_pairs(model.tokenizer, [pair]).fully_aligned
        except (BatchError, OutcomeError):
            continue
        if bool(aligned.all()):
            found[contrast] = [*own, pair]
    return found
