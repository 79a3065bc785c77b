"""Measurements of one checkpoint at the sites and edges of the final model, prompt by prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.faithfulness import edge_masks
from probes.circuits.pruning import prune_circuit
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task, TaskSettings, require_open_gate, sample_tasks
from probes.errors import ModelError
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.interchange_outcomes import NUMBER_READOUT, OBJECT_READOUT
from probes.interventions.site_search import find_sites, search_words, takes_only, variables_of
from probes.models.model import Model, Shape
from probes.models.site import Site, joined_roles
from probes.observe.gate import answer_questions
from probes.prompts.interchange_pairs import (
    OBJECT,
    BaseFilter,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.pair_batch import tokenizable_by

PromptValues = Mapping[str, Float[np.ndarray, " _"]]


@dataclass(frozen=True, slots=True)
class TrajectorySettings:
    """Size of the measurement.

    Attributes:
        nulls: Number of random-init models.
        bases: Interchange pairs to find sites, and as many to test; twice as many questions.
        prompts: Pairs of each contrast to find edges, and as many to test the circuit.
        keep: Faithfulness of the final circuit on the pairs that it is found on.
        seed: Seed of prompts, bootstrap and random-init models.
    """

    nulls: int = 3
    bases: int = 80
    prompts: int = 12
    keep: float = 0.9
    seed: int = 0


@dataclass(frozen=True, eq=False)
class FinalModelReference:
    """Prompts, sites and circuit of the final model, for all checkpoints.

    Attributes:
        shape: Shape of the final model.
        pattern: Pattern.
        questions: Questions for the accuracy.
        answers: Names of the answers; the circuit is that of the first.
        finding_pairs: Interchange pairs with every second noun, to find sites.
        test_pairs: Interchange pairs with the other nouns, to test sites.
        sites: Site of each variable in the final model.
        tasks: Pairs to find edges, and pairs to test the circuit.
        circuit: The final model's circuit.
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
    """Measurements of one model, for each prompt.

    Attributes:
        correct: For each answer, 1 where the whole answer is correct.
        interchange_hits: For each variable, 1 where the interchange intervention at the final
            model's site gives the output with the source's value of this variable alone.
        logit_shift: For each variable, how far the interchange intervention moves the logit of
            that output above the logit of the base's answer.
        own_site_hits: `interchange_hits` at the site that is found in this model.
        own_sites: That site, for each variable.
        logit_diff: Logit difference, minus that with every edge ablated.
        circuit_logit_diff: The same with the final model's circuit alone.
        edge_scores: Attribution score of each edge, on the prompts that edges are found on.
    """

    correct: PromptValues
    interchange_hits: PromptValues
    logit_shift: PromptValues
    own_site_hits: PromptValues
    own_sites: Mapping[str, str]
    logit_diff: Float[np.ndarray, " prompt"]
    circuit_logit_diff: Float[np.ndarray, " prompt"]
    edge_scores: Float[Tensor, "_ edge"]


def prepare_final_reference(
    final: Model, pattern: Pattern, settings: TrajectorySettings
) -> FinalModelReference:
    """Sites and circuit of the final model.

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
    seed = settings.seed
    answer = require_open_gate(final, pattern, "", seed=seed).answer
    finding_pairs, test_pairs = (
        sample_interchange_pairs(
            pattern,
            settings.bases,
            tokenizers=(final.tokenizer,),
            seed=pair_seed,
            base_filter=BaseFilter(allowed_words=words),
        )
        for pair_seed, words in (
            (seed + 1, search_words(pattern)),
            (seed, search_words(pattern, held_out=True)),
        )
    )
    variables = variables_of(test_pairs)
    tasks = sample_tasks(
        final, pattern, TaskSettings(answer=answer, prompts=settings.prompts, seed=seed)
    )
    scores = edge_attribution(final, tasks[0])
    return FinalModelReference(
        shape=final.shape,
        pattern=pattern,
        questions=pattern.sample_questions(
            2 * settings.bases, seed=seed, keep=tokenizable_by(final.tokenizer)
        ),
        answers=tuple(name for name, _ in pattern.answers),
        finding_pairs=finding_pairs,
        test_pairs=test_pairs,
        sites=dict(zip(variables, find_sites(final, finding_pairs, variables), strict=True)),
        tasks=tasks,
        circuit=prune_circuit(run_references(final, tasks[0]), scores, settings.keep),
    )


def measure_checkpoint(model: Model, reference: FinalModelReference) -> CheckpointMeasurements:
    """Measurements of a model of the final model's shape.

    Raises:
        ModelError: The shape differs.
    """
    require_same_shape(model, reference.shape)
    correct = answer_questions(model, reference.questions).correct.numpy().astype(float)
    variables = tuple(reference.sites)
    own_sites = dict(
        zip(variables, find_sites(model, reference.finding_pairs, variables), strict=True)
    )
    hits, shift = _interchange_results(model, reference.test_pairs, reference.sites)
    own_hits, _ = _interchange_results(model, reference.test_pairs, own_sites)
    runs = run_references(model, reference.tasks[1])
    circuit_only = run_circuits(runs, edge_masks(runs, [reference.circuit]))[0]
    edge_scores = edge_attribution(model, reference.tasks[0]).per_prompt
    assert edge_scores is not None, "scores of single prompts are kept by default"
    return CheckpointMeasurements(
        correct={name: correct[:, k] for k, name in enumerate(reference.answers)},
        interchange_hits=hits,
        logit_shift=shift,
        own_site_hits=own_hits,
        own_sites={variable: str(site) for variable, site in own_sites.items()},
        logit_diff=_to_numpy(runs.clean_logit_diffs - runs.ablated_logit_diffs),
        circuit_logit_diff=_to_numpy(circuit_only - runs.ablated_logit_diffs),
        edge_scores=edge_scores,
    )


def _interchange_results(
    model: Model, pairs: InterchangePairs, sites: Mapping[str, Site]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Hits and logit shifts of the interchange intervention at each variable's site."""
    runs = run_interchange_pairs(model, pairs, joined_roles=joined_roles(*sites.values()))
    before = interchange_intervention(runs, [])
    after = interchange_intervention(runs, tuple(dict.fromkeys(sites.values())))
    hits, shifts = {}, {}
    for variable, site in sites.items():
        row = after.site_index(str(site))
        readout = OBJECT_READOUT if variable == OBJECT else NUMBER_READOUT
        hits[variable] = takes_only(after, variable)[row].astype(float)
        shift = after.logit_shift(variable, readout)[row] - before.logit_shift(variable, readout)[0]
        shifts[variable] = shift.astype(float)
    return hits, shifts


def edge_overlap(
    edge_scores: Float[Tensor, "prompt edge"],
    final_edges: Float[Tensor, "prompt edge"],
    count: int,
    weights: Float[np.ndarray, "draw prompt"],
) -> Float[np.ndarray, " draw"]:
    """Jaccard index of two models' strongest edges in each bootstrap sample of prompts."""
    sampled = torch.from_numpy(weights).float()
    tops = [
        (sampled @ scores).abs().topk(count, dim=1).indices for scores in (edge_scores, final_edges)
    ]
    members = [
        torch.zeros(len(sampled), edge_scores.shape[1]).scatter_(1, top, 1.0) for top in tops
    ]
    both = (members[0] * members[1]).sum(1)
    return (both / (2 * count - both)).double().numpy()


def require_same_shape(model: Model, shape: Shape) -> None:
    """Refuse a model whose heads are not those of the final model.

    Raises:
        ModelError: The shape differs.
    """
    own, final = (
        (one.layers, one.heads, one.kv_heads, one.parallel) for one in (model.shape, shape)
    )
    if own != final:
        raise ModelError(
            f"{model.name} has {own[0]} layers of {own[1]} heads, the final model {final[0]} of "
            f"{final[1]}: checkpoints have the shape of the final model. Give those of one run."
        )


def _to_numpy(values: Tensor) -> Float[np.ndarray, " prompt"]:
    return values.cpu().double().numpy()
