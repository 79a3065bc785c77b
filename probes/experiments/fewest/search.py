"""Looks for the fewest directions, the fewest wires and the smallest student that will do."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from probes.circuits.attribution import edge_attribution
from probes.circuits.faithfulness import (
    edge_masks,
    evaluate_masks,
    random_baseline,
    sample_random_circuits,
)
from probes.circuits.pruning import prune_circuit
from probes.circuits.reference_runs import ReferenceRuns, run_references
from probes.circuits.result import Faithfulness
from probes.circuits.task import TaskSettings, require_open_gate, sample_tasks
from probes.errors import ProbeError
from probes.experiments.fewest.result import (
    FewestParameters,
    MinimalCircuit,
    MinimalDirections,
    ModelMinimum,
    Student,
)
from probes.interventions.confounds import verb_groups
from probes.interventions.das_search import interchange_objective
from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
    with_residual,
)
from probes.interventions.site_search import (
    EQUIVALENCE_MARGIN,
    find_sites,
    search_words,
    takes_only,
    variables_of,
)
from probes.interventions.subspace import DASSettings, Subspace, das
from probes.models.model import Model, load, random_init
from probes.models.site import Site, joined_roles
from probes.observe.gate import gate
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_pairs import InterchangePairs, sample_interchange_pairs
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, proportion

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_KEEP_STEPS = (0.0, 0.25, 0.5, 0.75, 0.9)  # Of the way from what is asked for to the whole model.
_RANDOM_CIRCUITS = 50


def fewest_parameters(  # noqa: PLR0913 (whom, what, and how hard)
    models: Sequence[str | Path | Model],
    pattern: str | Pattern = "take-away",
    *,
    students: Sequence[str | Path | Model] = (),
    variables: Sequence[str] = ("operation", "y"),
    threshold: float = 0.9,
    sizes: Sequence[int] = SIZES,
    bases: int = 60,
    prompts: int = 16,
    nulls: int = 1,
    seed: int = 0,
) -> FewestParameters:
    """Count what a task needs: directions at a hotspot, edges of a model, weights of a student.

    Directions are searched for on half of the nouns and half of the verbs, and judged on the
    others; a circuit is found on some pairs and judged on others. A search may find what is there
    for no reason: see the null beside each number.

    Args:
        models: Those that are looked into; the first is what students are measured against.
        pattern: A pattern with an opposite.
        students: Smaller models, several seeds of a shape or one; see `compress.cohort`.
        variables: Whose directions are searched for.
        enough: The share of the whole to keep, above 0 to 1.
        sizes: Numbers of directions to try, from few to many.
        bases: Crossings to search on, and as many to judge by.
        prompts: Pairs for each contrast to find the circuit by, and as many to judge by.
        nulls: Untrained nets of each shape in which directions are searched for as well.
        seed: Of prompts, searches and nets.

    Raises:
        ProbeError: There is no model, `enough` is no share, or sizes do not ascend from 1.
        GateError: One of the models does not have the behavior; students may lack it.
    """
    if not models or not 0 < threshold <= 1:
        raise ProbeError(
            f"{len(models)} models were given, to keep {threshold}: give one or more, and a share "
            "above 0, up to 1"
        )
    if not sizes or sizes[0] < 1 or any(np.diff(sizes) <= 0):
        raise ProbeError(f"The sizes {tuple(sizes)} do not ascend from 1: give few to many")
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    found = []
    for model in map(load, models):
        answer = require_open_gate(model, asked, "", seed=seed).answer
        places = _sample_split_pairs(model, asked, variables, (bases, seed))
        settings = (threshold, tuple(sizes), nulls, seed)
        few = tuple(_fewest_directions(places, variable, settings) for variable in variables)
        wires = _smallest_circuit(model, asked, answer, (threshold, prompts, seed))
        found.append(
            ModelMinimum(
                model.name, count_parameters(model), sum(_block_weights(model)), few, wires
            )
        )
    return FewestParameters(
        asked.name, threshold, tuple(found), evaluate_students(students, asked, seed=seed)
    )


def evaluate_students(
    students: Sequence[str | Path | Model], pattern: str | Pattern = "take-away", *, seed: int = 0
) -> tuple[Student, ...]:
    """Ask smaller models whether they do a task, and count their weights; the largest first."""
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    found = [_evaluate_student(load(one), asked, seed) for one in students]
    return tuple(sorted(found, key=lambda one: -one.parameters))


def count_parameters(model: Model) -> int:
    """Count a model's weights, tied ones once."""
    return sum(weight.numel() for weight in model.bridge.original_model.parameters())


# Directions.


class _SplitPairs:
    """Crossings of two sets of words, and the sites of the first."""

    def __init__(
        self,
        model: Model,
        pairs: tuple[InterchangePairs, InterchangePairs],
        sites: Mapping[str, Site],
    ) -> None:
        self.model, self.crossed, self.sites = model, pairs, sites

    def runs(self, model: Model) -> tuple[InterchangeRuns, InterchangeRuns]:
        """Run a model on both."""
        first, second = (
            run_interchange_pairs(model, c, joined_roles=joined_roles(*self.sites.values()))
            for c in self.crossed
        )
        return first, second


def _sample_split_pairs(
    model: Model, pattern: Pattern, variables: Sequence[str], settings: tuple[int, int]
) -> _SplitPairs:
    """Draw crossings whose nouns, and verbs if there are several, are in one half only."""
    bases, seed = settings
    found_by = dict(search_words(pattern))
    every = pattern.lexicon.words("noun")
    others = {slot: [w for w in every if w not in used] for slot, used in found_by.items()}
    groups = verb_groups(pattern)
    if len(groups) > 1:
        found_by["op"] = [verb for group in groups[::2] for verb in group]
        others["op"] = [verb for group in groups[1::2] for verb in group]
    drawn = tuple(
        sample_interchange_pairs(
            pattern, bases, tokenizers=(model.tokenizer,), seed=seed + 1 - k, allowed_words=words
        )
        for k, words in enumerate((found_by, others))
    )
    if strange := set(variables) - set(variables_of(drawn[0])):
        raise ProbeError(
            f"{pattern.name!r} has no variable {sorted(strange)}: it has "
            f"{', '.join(variables_of(drawn[0]))}"
        )
    cells = find_sites(model, drawn[0], tuple(variables))
    return _SplitPairs(model, (drawn[0], drawn[1]), dict(zip(variables, cells, strict=True)))


def _fewest_directions(
    pairs: _SplitPairs, variable: str, settings: tuple[float, tuple[int, ...], int, int]
) -> MinimalDirections:
    """Search for more and more directions until they do enough."""
    enough, sizes, nulls, seed = settings
    cell, model = pairs.sites[variable], pairs.model
    finding, judging = pairs.runs(model)
    whole = proportion(takes_only(interchange_intervention(judging, [cell]), variable)[0])
    tried: list[int] = []
    shares: list[Estimate] = []
    done = False
    for size in (size for size in sizes if size <= model.shape.d_model):
        tried.append(size)
        shares.append(proportion(_subspace_hits(finding, judging, variable, (cell, size, seed))))
        # Where even the whole state carries nothing there is nothing to look for.
        if done := whole.value > EQUIVALENCE_MARGIN and shares[-1].value >= enough * whole.value:
            break
        if whole.value <= EQUIVALENCE_MARGIN:
            break
    strange = []
    for n in range(nulls):
        here, there = pairs.runs(random_init(model, seed=seed + n))
        strange.append(_subspace_hits(here, there, variable, (cell, tried[-1], seed)).mean())
    return MinimalDirections(
        variable=variable,
        site=str(cell),
        full_state=whole,
        sizes=tuple(tried),
        interchange_accuracy=tuple(shares),
        fewest=tried[-1] if done else None,
        total=model.shape.d_model,
        null=float(max(strange, default=np.nan)),
    )


def _subspace_hits(
    finding_runs: InterchangeRuns,
    test_runs: InterchangeRuns,
    variable: str,
    settings: tuple[Site, int, int],
) -> Bool[np.ndarray, " prompt"]:
    """Search on some crossings, and mark on others where just the variable is handed over."""
    cell, size, seed = settings
    objective = interchange_objective(finding_runs, cell, variable)
    space = das(objective, cell, dims=size, settings=DASSettings(seed=seed))
    return _interchange_hits(test_runs, space, cell, variable)


def _interchange_hits(
    test_runs: InterchangeRuns, subspace: Subspace, site: Site, variable: str
) -> Bool[np.ndarray, " prompt"]:
    theirs = test_runs.sources["other"].resid[site.layer]
    mixed = with_residual(
        test_runs,
        site.layer,
        subspace.replace_projection(test_runs.clean.resid[site.layer], theirs),
    )
    return takes_only(interchange_intervention(test_runs, [site], source=mixed), variable)[0]


# Wires.


def _smallest_circuit(
    model: Model, pattern: Pattern, answer: str, settings: tuple[float, int, int]
) -> MinimalCircuit:
    """Cut circuits out, each keeping more where it is found, until one keeps enough elsewhere."""
    enough, prompts, seed = settings
    finding, judging = sample_tasks(
        model, pattern, TaskSettings(answer=answer, prompts=prompts, seed=seed)
    )
    graph, here, there = (
        edge_attribution(model, finding),
        run_references(model, finding),
        run_references(model, judging),
    )
    found: Faithfulness | None = None
    nodes: tuple[str, ...] = ()
    for part in _KEEP_STEPS:
        circuit = prune_circuit(here, graph, enough + part * (1 - enough))
        found, nodes = (
            evaluate_masks(there, edge_masks(there, [circuit]), seed=seed)[0],
            circuit.nodes,
        )
        if found.value.value >= enough:
            break
    assert found is not None, "there is at least one share to try"
    return MinimalCircuit(
        held_out=found,
        is_sufficient=found.value.value >= enough,
        total_edges=len(graph),
        random_max=_random_circuits_max(there, found, seed),
        parameters=_count_node_weights(model, nodes),
    )


def _random_circuits_max(runs: ReferenceRuns, result: Faithfulness, seed: int) -> float:
    drawn = sample_random_circuits(runs, result.edges, "paths", _RANDOM_CIRCUITS, seed=seed)
    return max(random_baseline(runs, drawn, result.value.value, "paths").values)


def _count_node_weights(model: Model, nodes: Sequence[str]) -> int:
    """Count the weights of heads and MLPs; heads that share keys have a part in them each."""
    attention, mlp = _count_layer_weights(model)
    total = 0.0
    for node in {name.split("@")[0] for name in nodes}:
        if found := re.fullmatch(r"L(\d+)\.H\d+", node):
            total += attention[int(found[1])] / model.shape.heads
        elif found := re.fullmatch(r"L(\d+)\.MLP", node):
            total += mlp[int(found[1])]
    return round(total)


def _block_weights(model: Model) -> list[int]:
    attention, mlp = _count_layer_weights(model)
    return [*attention, *mlp]


def _count_layer_weights(model: Model) -> tuple[list[int], list[int]]:
    """Count the weights of each layer's attention and of its MLP; norms are not counted."""
    attention, mlp = [0] * model.shape.layers, [0] * model.shape.layers
    for name, weight in model.bridge.original_model.named_parameters():
        if layer := re.search(r"\.(\d+)\.", name):
            if ".mlp." in name:
                mlp[int(layer[1])] += weight.numel()
            elif re.search(r"\.(self_attn|attn|attention)\.", name):
                attention[int(layer[1])] += weight.numel()
    return attention, mlp


# Students.


def _evaluate_student(model: Model, pattern: Pattern, seed: int) -> Student:
    return Student(
        model=model.name,
        layers=model.shape.layers,
        d_model=model.shape.d_model,
        parameters=count_parameters(model),
        gates=gate(model, pattern, seed=seed),
    )
