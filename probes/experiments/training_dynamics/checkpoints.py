"""What one checkpoint does at the places that were found in the final model, prompt by prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.circuits.attribution import attribute
from probes.circuits.circuit import Circuit
from probes.circuits.edge_patching import run
from probes.circuits.faithfulness import marks
from probes.circuits.reference_runs import stage
from probes.circuits.sampling import open_gate, tasks
from probes.circuits.task import Task
from probes.circuits.trace import cut
from probes.errors import ModelError
from probes.interventions.hotspots import alone, find_sites, finding_words, variables_of
from probes.interventions.interchange import NOUN, NUMBER, cross, exchange
from probes.models.model import Model, Shape
from probes.models.site import Cell, join, site_name
from probes.observe.gate import ask
from probes.prompts.interchange_pairs import OBJECT, Crossings, crossings
from probes.prompts.pair_batch import fits
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question

Rows = Mapping[str, Float[np.ndarray, " _"]]


@dataclass(frozen=True, eq=False)
class Ruler:
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
    finding: Crossings
    judging: Crossings
    sites: Mapping[str, Cell]
    tasks: tuple[Task, Task]
    circuit: Circuit


@dataclass(frozen=True, eq=False)
class Reading:
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

    right: Rows
    taken: Rows
    pull: Rows
    own: Rows
    own_sites: Mapping[str, str]
    lead: Float[np.ndarray, " prompt"]
    alone: Float[np.ndarray, " prompt"]
    edges: Float[Tensor, "_ edge"]


def ruler(  # noqa: PLR0913 (what is looked for, and how hard)
    final: Model, pattern: Pattern, *, bases: int, prompts: int, keep: float, seed: int
) -> Ruler:
    """Find the final model's sites and its circuit.

    Raises:
        GateError: The final model does not have the behaviour.
        PatternError: The pattern has no opposite, or too few words.
        ModelError: The final model has one block.
    """
    if final.shape.layers < 2:
        raise ModelError(
            f"{final.name} has one block: there is no site between the embedding and the answer. "
            "Choose a model of two blocks or more."
        )
    gates = open_gate(final, pattern, "", seed=seed)
    found_by, tokenizers = finding_words(pattern), (final.tokenizer,)
    every = pattern.lexicon.words("noun")
    others = {slot: [w for w in every if w not in used] for slot, used in found_by.items()}
    finding = crossings(pattern, bases, tokenizers=tokenizers, seed=seed + 1, words=found_by)
    judging = crossings(pattern, bases, tokenizers=tokenizers, seed=seed, words=others)
    known = variables_of(judging)
    halves = tasks(final, pattern, gates.answer, prompts=prompts, seed=seed)
    graph = attribute(final, halves[0])
    return Ruler(
        shape=final.shape,
        pattern=pattern,
        questions=pattern.questions(2 * bases, seed=seed, keep=fits(final.tokenizer)),
        answers=tuple(name for name, _ in pattern.answers),
        finding=finding,
        judging=judging,
        sites=dict(zip(known, find_sites(final, finding, known), strict=True)),
        tasks=halves,
        circuit=cut(stage(final, halves[0]), graph, keep),
    )


def measured(model: Model, by: Ruler) -> Reading:
    """Measure a model of the final model's shape.

    Raises:
        ModelError: It has another shape.
    """
    refuse_other_shape(model, by.shape)
    right = ask(model, by.questions).right.numpy().astype(float)
    own = dict(zip(by.sites, find_sites(model, by.finding, tuple(by.sites)), strict=True))
    taken, pull = _exchanged(model, by.judging, by.sites)
    own_taken, _ = _exchanged(model, by.judging, own)
    here = stage(model, by.tasks[1])
    alone_ = run(here, marks(here, [by.circuit]))[0]
    edges = attribute(model, by.tasks[0]).each
    assert edges is not None, "scores of single prompts are kept unless told otherwise"
    return Reading(
        right={name: right[:, k] for k, name in enumerate(by.answers)},
        taken=taken,
        pull=pull,
        own=own_taken,
        own_sites={variable: site_name(cell) for variable, cell in own.items()},
        lead=_plain(here.leads - here.floor),
        alone=_plain(alone_ - here.floor),
        edges=edges,
    )


def _exchanged(
    model: Model, judging: Crossings, sites: Mapping[str, Cell]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Put each variable's site in, and mark what was taken up and how far the answer was pulled."""
    crossed = cross(model, judging, roles=join(*sites.values()))
    before = exchange(crossed, [])
    cells = tuple(dict.fromkeys(sites.values()))
    found = exchange(crossed, cells)
    taken, pull = {}, {}
    for variable, cell in sites.items():
        row, answer = found.row(site_name(cell)), NOUN if variable == OBJECT else NUMBER
        taken[variable] = alone(found, variable)[row].astype(float)
        moved = found.pull(variable, answer)[row] - before.pull(variable, answer)[0]
        pull[variable] = moved.astype(float)
    return taken, pull


def shared_edges(
    edges: Float[Tensor, "prompt edge"],
    last: Float[Tensor, "prompt edge"],
    count: int,
    weights: Float[np.ndarray, "draw prompt"],
) -> Float[np.ndarray, " draw"]:
    """Return the Jaccard of two models' strongest edges under each draw of prompts."""
    drawn = torch.from_numpy(weights).float()
    sides = [(drawn @ each).abs().topk(count, dim=1).indices for each in (edges, last)]
    member = [torch.zeros(len(drawn), edges.shape[1]).scatter_(1, top, 1.0) for top in sides]
    both = (member[0] * member[1]).sum(1)
    return (both / (2 * count - both)).double().numpy()


def refuse_other_shape(model: Model, shape: Shape) -> None:
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


def _plain(values: Tensor) -> Float[np.ndarray, " prompt"]:
    return values.double().cpu().numpy()
