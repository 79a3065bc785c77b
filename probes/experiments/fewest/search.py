"""Search for the fewest directions, the fewest edges and the smallest student."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.faithfulness import (
    edge_masks,
    evaluate_masks,
    random_baseline,
    sample_random_circuits,
)
from probes.circuits.pruning import prune_circuit
from probes.circuits.result import Faithfulness
from probes.circuits.runs.reference import run_references
from probes.circuits.task import TaskSettings, require_open_gate, sample_tasks
from probes.errors import ProbeError
from probes.experiments.fewest.result import (
    FewestParameters,
    FewestSettings,
    MinimalCircuit,
    MinimalDirections,
    ModelMinimum,
    Student,
)
from probes.interventions.confounds import verb_groups
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
from probes.interventions.subspaces.das import DASSettings, das
from probes.interventions.subspaces.das_search import interchange_objective
from probes.models.model import Model, ModelSpec, load, random_init
from probes.models.site import Site, joined_roles
from probes.observe.gate import gate
from probes.prompts.catalog import pattern as load_pattern
from probes.prompts.interchange_pairs import BaseFilter, InterchangePairs, sample_interchange_pairs
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, proportion

# Faithfulness that the circuit search keeps: fractions of the way from the threshold to 1.
_KEEP_STEPS = (0.0, 0.25, 0.5, 0.75, 0.9)
_RANDOM_CIRCUITS = 50


def fewest_parameters(
    models: Sequence[ModelSpec],
    pattern: str | Pattern = "take-away",
    settings: FewestSettings | None = None,
    *,
    students: Sequence[ModelSpec] = (),
) -> FewestParameters:
    """Fewest directions at a hotspot, edges of a model, and parameters of a student.

    Directions are searched with half of the nouns and half of the verbs, and tested with the
    others; a circuit is searched on some pairs and tested on others.

    Args:
        models: Models to search in; students are compared with the first.
        pattern: Pattern with an opposite.
        settings: Settings of the search.
        students: Smaller models, one or more seeds of each shape; see `distill_cohort`.

    Raises:
        ProbeError: There is no model, or a variable is unknown.
        GateError: One of the models does not have the behavior; students may lack it.
    """
    if not models:
        raise ProbeError("There are 0 models to search in: give one or more")
    settings, pattern = settings or FewestSettings(), load_pattern(pattern)
    minima = []
    for model in map(load, models):
        answer = require_open_gate(model, pattern, "", seed=settings.seed).answer
        finding_pairs, test_pairs = _sample_split_pairs(model, pattern, settings)
        sites = find_sites(model, finding_pairs, tuple(settings.variables))
        split = _SplitPairs(model, finding_pairs, test_pairs, tuple(sites))
        minima.append(
            ModelMinimum(
                model=model.name,
                parameters=count_parameters(model),
                block_parameters=sum(map(sum, _count_layer_weights(model))),
                directions=tuple(
                    _fewest_directions(split, variable, site, settings)
                    for variable, site in zip(settings.variables, sites, strict=True)
                ),
                circuit=_smallest_circuit(model, pattern, answer, settings),
            )
        )
    tested = evaluate_students(students, pattern, seed=settings.seed)
    return FewestParameters(pattern.name, settings.threshold, tuple(minima), tested)


def evaluate_students(
    students: Sequence[ModelSpec], pattern: str | Pattern = "take-away", *, seed: int = 0
) -> tuple[Student, ...]:
    """Gates and sizes of smaller models, the largest first."""
    pattern = load_pattern(pattern)
    evaluated = [
        Student(
            model=model.name,
            layers=model.shape.layers,
            d_model=model.shape.d_model,
            parameters=count_parameters(model),
            gates=gate(model, pattern, seed=seed),
        )
        for model in map(load, students)
    ]
    return tuple(sorted(evaluated, key=lambda student: -student.parameters))


def count_parameters(model: Model) -> int:
    """Number of weights, tied ones once."""
    return sum(weight.numel() for weight in model.bridge.original_model.parameters())


# Directions.


@dataclass(frozen=True, eq=False)
class _SplitPairs:
    """Interchange pairs to search with and to test with, and the sites of all variables."""

    model: Model
    finding: InterchangePairs
    test: InterchangePairs
    sites: tuple[Site, ...]

    def runs(self, model: Model) -> tuple[InterchangeRuns, InterchangeRuns]:
        joined = joined_roles(*self.sites)
        finding = run_interchange_pairs(model, self.finding, joined_roles=joined)
        return finding, run_interchange_pairs(model, self.test, joined_roles=joined)


def _sample_split_pairs(
    model: Model, pattern: Pattern, settings: FewestSettings
) -> tuple[InterchangePairs, InterchangePairs]:
    """Interchange pairs whose nouns, and verbs if there are several groups, are of one half."""
    halves = [dict(search_words(pattern, held_out=held_out)) for held_out in (False, True)]
    groups = verb_groups(pattern)
    if len(groups) > 1:
        for at, words in enumerate(halves):
            words["op"] = [verb for group in groups[at::2] for verb in group]
    finding, test = (
        sample_interchange_pairs(
            pattern,
            settings.bases,
            tokenizers=(model.tokenizer,),
            seed=settings.seed + 1 - at,
            base_filter=BaseFilter(allowed_words=words),
        )
        for at, words in enumerate(halves)
    )
    if unknown := set(settings.variables) - set(variables_of(finding)):
        raise ProbeError(
            f"{pattern.name!r} has no variable {sorted(unknown)}: it has "
            f"{', '.join(variables_of(finding))}"
        )
    return finding, test


def _fewest_directions(
    split: _SplitPairs, variable: str, site: Site, settings: FewestSettings
) -> MinimalDirections:
    """DAS with more and more directions, until they reach the threshold."""
    model, seed = split.model, settings.seed
    runs = split.runs(model)
    outcomes = interchange_intervention(runs[1], [site])
    full_state = proportion(takes_only(outcomes, variable)[0])
    tried: list[int] = []
    accuracy: list[Estimate] = []
    is_enough = False
    for size in (size for size in settings.sizes if size <= model.shape.d_model):
        tried.append(size)
        accuracy.append(proportion(_subspace_hits(runs, variable, site, size, seed)))
        if full_state.value <= EQUIVALENCE_MARGIN:  # Even the whole state carries nothing.
            break
        is_enough = accuracy[-1].value >= settings.threshold * full_state.value
        if is_enough:
            break
    nulls = [
        _subspace_hits(
            split.runs(random_init(model, seed=seed + n)), variable, site, tried[-1], seed
        ).mean()
        for n in range(settings.nulls)
    ]
    return MinimalDirections(
        variable=variable,
        site=str(site),
        full_state=full_state,
        sizes=tuple(tried),
        interchange_accuracy=tuple(accuracy),
        fewest=tried[-1] if is_enough else None,
        total=model.shape.d_model,
        null=float(max(nulls, default=np.nan)),
    )


def _subspace_hits(
    runs: tuple[InterchangeRuns, InterchangeRuns], variable: str, site: Site, size: int, seed: int
) -> Bool[np.ndarray, " prompt"]:
    """Where the subspace of the first runs carries just the variable in the second ones."""
    finding, test = runs
    objective = interchange_objective(finding, site, variable)
    subspace = das(objective, site, dims=size, settings=DASSettings(seed=seed))
    base, source = (run.resid[site.layer] for run in (test.clean, test.sources["other"]))
    mixed = with_residual(test, site.layer, subspace.replace_projection(base, source))
    return takes_only(interchange_intervention(test, [site], source=mixed), variable)[0]


# Circuits.


def _smallest_circuit(
    model: Model, pattern: Pattern, answer: str, settings: FewestSettings
) -> MinimalCircuit:
    """Circuits that keep more and more, until one reaches the threshold on held-out prompts."""
    threshold, seed = settings.threshold, settings.seed
    task, held_out_task = sample_tasks(
        model, pattern, TaskSettings(answer=answer, prompts=settings.prompts, seed=seed)
    )
    scores = edge_attribution(model, task)
    runs, held_out_runs = run_references(model, task), run_references(model, held_out_task)
    result: Faithfulness | None = None
    nodes: tuple[str, ...] = ()
    for step in _KEEP_STEPS:
        circuit = prune_circuit(runs, scores, threshold + step * (1 - threshold))
        masks, nodes = edge_masks(held_out_runs, [circuit]), circuit.nodes
        result = evaluate_masks(held_out_runs, masks, seed=seed)[0]
        if result.value.value >= threshold:
            break
    assert result is not None, "there is at least one step"
    random = sample_random_circuits(
        held_out_runs, result.edges, "paths", _RANDOM_CIRCUITS, seed=seed
    )
    return MinimalCircuit(
        held_out=result,
        is_sufficient=result.value.value >= threshold,
        total_edges=len(scores),
        random_max=max(random_baseline(held_out_runs, random, result.value.value, "paths").values),
        parameters=_count_node_weights(model, nodes),
    )


def _count_node_weights(model: Model, nodes: Sequence[str]) -> int:
    """Number of weights of heads and MLPs; heads share the weights of an attention layer evenly."""
    attention, mlp = _count_layer_weights(model)
    total = 0.0
    for node in {name.split("@")[0] for name in nodes}:
        if match := re.fullmatch(r"L(\d+)\.H\d+", node):
            total += attention[int(match[1])] / model.shape.heads
        elif match := re.fullmatch(r"L(\d+)\.MLP", node):
            total += mlp[int(match[1])]
    return round(total)


def _count_layer_weights(model: Model) -> tuple[list[int], list[int]]:
    """Number of weights of each layer's attention and of its MLP, without norms."""
    attention, mlp = [0] * model.shape.layers, [0] * model.shape.layers
    for name, weight in model.bridge.original_model.named_parameters():
        if layer := re.search(r"\.(\d+)\.", name):
            if ".mlp." in name:
                mlp[int(layer[1])] += weight.numel()
            elif re.search(r"\.(self_attn|attn|attention)\.", name):
                attention[int(layer[1])] += weight.numel()
    return attention, mlp
