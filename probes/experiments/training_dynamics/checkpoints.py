"""What one checkpoint does at the places that were found in the final model, prompt by prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.circuits.attribution import edge_attribution
from probes.circuits.circuit import Circuit
from probes.circuits.edge_patching import run_circuits
from probes.circuits.faithfulness import edge_masks
from probes.circuits.pruning import prune_circuit
from probes.circuits.reference_runs import run_references
from probes.circuits.task import Task, TaskSettings, require_open_gate, sample_tasks
from probes.errors import ModelError
from probes.interventions.interchange import (
    NUMBER_READOUT,
    OBJECT_READOUT,
    interchange_intervention,
    run_interchange_pairs,
)
from probes.interventions.site_search import find_sites, search_words, takes_only, variables_of
from probes.models.model import Model, Shape
from probes.models.site import Site, joined_roles
from probes.observe.gate import answer_questions
from probes.prompts.interchange_pairs import OBJECT, InterchangePairs, sample_interchange_pairs
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question

PromptValues = Mapping[str, Float[np.ndarray, " _"]]


@dataclass(frozen=True, eq=False)
class FinalModelReference:
    """What all checkpoints are held against; found in the final model, once.

    Attributes:
        shape: Of the final model, and so of all.
        pattern: What is asked.
        questions: For the accuracy.
        answers: The names of its answers; the circuit is that of the first.
        finding: Crossings that sites are found by: every second noun.
        judging: Crossings of the other nouns, that they are judged by.
        sites: For each variable where the final model holds it.
        tasks: Pairs to find edges by, and pairs to judge the circuit by.
        circuit: The final model's, that keeps 0.9 of its lead.
    """

    shape: Shape
    pattern: Pattern
    questions: tuple[Question, ...]
    answers: tuple[str, ...]
    finding_pairs: InterchangePairs
    test_pairs: InterchangePairs
    sites: Mapping[str, Site]
    tasks: tuple[Task, Task]
    circuit: Circuit


@dataclass(frozen=True, eq=False)
class CheckpointMeasurements:
    """What a model does, each prompt by itself.

    Attributes:
        right: For each answer, 1 where the whole answer is right.
        taken: For each variable, 1 where just it is taken up at the final model's site.
        pull: For each variable, how far putting the site in raises the logit of what would be
            said, above that of the base's own answer (logits).
        own: For each variable the same as `taken`, at the site that was found in this model.
        own_sites: Where that is.
        lead: Lead of the answer, less that with every edge replaced (logits).
        alone: The same with the final model's circuit alone.
        edges: What each edge is worth on the prompts that edges are found by.
    """

    correct: PromptValues
    interchange_hits: PromptValues
    logit_shift: PromptValues
    own_site_hits: PromptValues
    own_sites: Mapping[str, str]
    logit_diff: Float[np.ndarray, " prompt"]
    circuit_logit_diff: Float[np.ndarray, " prompt"]
    edge_scores: Float[Tensor, "_ edge"]


def prepare_final_reference(  # noqa: PLR0913 (what is looked for, and how hard)
    final: Model, pattern: Pattern, *, bases: int, prompts: int, keep: float, seed: int
) -> FinalModelReference:
    """Find the final model's sites and its circuit.

    Raises:
        GateError: The final model does not have the behavior.
        PatternError: The pattern has no opposite, or too few words.
        ModelError: The final model has one block.
    """
    if final.shape.layers < 2:
        raise ModelError(
            f"{final.name} has one block: there is no site between the embedding and the answer. "
            "Choose a model of two blocks or more."
        )
    gates = require_open_gate(final, pattern, "", seed=seed)
    found_by, tokenizers = search_words(pattern), (final.tokenizer,)
    every = pattern.lexicon.words("noun")
    others = {slot: [w for w in every if w not in used] for slot, used in found_by.items()}
    finding = sample_interchange_pairs(
        pattern, bases, tokenizers=tokenizers, seed=seed + 1, allowed_words=found_by
    )
    judging = sample_interchange_pairs(
        pattern, bases, tokenizers=tokenizers, seed=seed, allowed_words=others
    )
    known = variables_of(judging)
    halves = sample_tasks(
        final, pattern, TaskSettings(answer=gates.answer, prompts=prompts, seed=seed)
    )
    graph = edge_attribution(final, halves[0])
    return FinalModelReference(
        shape=final.shape,
        pattern=pattern,
        questions=pattern.sample_questions(
            2 * bases, seed=seed, keep=tokenizable_by(final.tokenizer)
        ),
        answers=tuple(name for name, _ in pattern.answers),
        finding_pairs=finding,
        test_pairs=judging,
        sites=dict(zip(known, find_sites(final, finding, known), strict=True)),
        tasks=halves,
        circuit=prune_circuit(run_references(final, halves[0]), graph, keep),
    )


def measure_checkpoint(model: Model, reference: FinalModelReference) -> CheckpointMeasurements:
    """Measure a model of the final model's shape.

    Raises:
        ModelError: It has another shape.
    """
    require_same_shape(model, reference.shape)
    right = answer_questions(model, reference.questions).correct.numpy().astype(float)
    own = dict(
        zip(
            reference.sites,
            find_sites(model, reference.finding_pairs, tuple(reference.sites)),
            strict=True,
        )
    )
    taken, pull = _interchange_results(model, reference.test_pairs, reference.sites)
    own_taken, _ = _interchange_results(model, reference.test_pairs, own)
    here = run_references(model, reference.tasks[1])
    alone_ = run_circuits(here, edge_masks(here, [reference.circuit]))[0]
    edges = edge_attribution(model, reference.tasks[0]).per_prompt
    assert edges is not None, "scores of single prompts are kept unless told otherwise"
    return CheckpointMeasurements(
        correct={name: right[:, k] for k, name in enumerate(reference.answers)},
        interchange_hits=taken,
        logit_shift=pull,
        own_site_hits=own_taken,
        own_sites={variable: str(cell) for variable, cell in own.items()},
        logit_diff=_to_numpy(here.clean_logit_diffs - here.ablated_logit_diffs),
        circuit_logit_diff=_to_numpy(alone_ - here.ablated_logit_diffs),
        edge_scores=edges,
    )


def _interchange_results(
    model: Model, pairs: InterchangePairs, sites: Mapping[str, Site]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Put each variable's site in, and mark what was taken up and how far the answer was pulled."""
    crossed = run_interchange_pairs(model, pairs, joined_roles=joined_roles(*sites.values()))
    before = interchange_intervention(crossed, [])
    cells = tuple(dict.fromkeys(sites.values()))
    found = interchange_intervention(crossed, cells)
    taken, pull = {}, {}
    for variable, cell in sites.items():
        row, answer = (
            found.site_index(str(cell)),
            OBJECT_READOUT if variable == OBJECT else NUMBER_READOUT,
        )
        taken[variable] = takes_only(found, variable)[row].astype(float)
        moved = found.logit_shift(variable, answer)[row] - before.logit_shift(variable, answer)[0]
        pull[variable] = moved.astype(float)
    return taken, pull


def edge_overlap(
    edge_scores: Float[Tensor, "prompt edge"],
    final_edges: Float[Tensor, "prompt edge"],
    count: int,
    weights: Float[np.ndarray, "draw prompt"],
) -> Float[np.ndarray, " draw"]:
    """Return the Jaccard of two models' strongest edges under each draw of prompts."""
    drawn = torch.from_numpy(weights).float()
    sides = [(drawn @ each).abs().topk(count, dim=1).indices for each in (edge_scores, final_edges)]
    member = [torch.zeros(len(drawn), edge_scores.shape[1]).scatter_(1, top, 1.0) for top in sides]
    both = (member[0] * member[1]).sum(1)
    return (both / (2 * count - both)).double().numpy()


def require_same_shape(model: Model, shape: Shape) -> None:
    """Refuse a model whose heads are not those of the final model.

    Raises:
        ModelError: It has another shape.
    """
    found, wanted = (
        (one.layers, one.heads, one.kv_heads, one.parallel) for one in (model.shape, shape)
    )
    if found != wanted:
        raise ModelError(
            f"{model.name} has {found[0]} layers of {found[1]} heads, the final model {wanted[0]} "
            f"of {wanted[1]}: checkpoints have the shape of the final model. Give those of one run."
        )


def _to_numpy(values: Tensor) -> Float[np.ndarray, " prompt"]:
    return values.double().cpu().numpy()
