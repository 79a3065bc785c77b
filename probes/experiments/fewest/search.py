"""Looks for the fewest directions, the fewest wires and the smallest student that will do."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from probes.circuits.attribution import attribute
from probes.circuits.faithfulness import Faithfulness, chance, judge, lots, marks
from probes.circuits.reference_runs import Stage, stage
from probes.circuits.sampling import open_gate, tasks
from probes.circuits.trace import cut
from probes.errors import ProbeError
from probes.experiments.fewest.result import Directions, Few, Fewest, Student, Wires
from probes.interventions.confounds import verb_groups
from probes.interventions.hotspots import MARGIN, alone, find_sites, finding_words, variables_of
from probes.interventions.interchange import NOUN, NUMBER, Crossed, cross, exchange, with_states
from probes.interventions.subspace import Subspace, das
from probes.models.model import Model, load, untrained
from probes.models.site import Cell, join, site_name
from probes.observe.gate import gate
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_pairs import OBJECT, Crossings, crossings
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, share

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_KEEPS = (0.0, 0.25, 0.5, 0.75, 0.9)  # Of the way from what is asked for to the whole model.
_LOTS = 50


def fewest_parameters(  # noqa: PLR0913 (whom, what, and how hard)
    models: Sequence[str | Path | Model],
    pattern: str | Pattern = "take-away",
    *,
    students: Sequence[str | Path | Model] = (),
    variables: Sequence[str] = ("operation", "y"),
    enough: float = 0.9,
    sizes: Sequence[int] = SIZES,
    bases: int = 60,
    prompts: int = 16,
    nulls: int = 1,
    seed: int = 0,
) -> Fewest:
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
        GateError: One of the models does not have the behaviour; students may lack it.
    """
    if not models or not 0 < enough <= 1:
        raise ProbeError(
            f"{len(models)} models were given, to keep {enough}: give one or more, and a share "
            "above 0, up to 1"
        )
    if not sizes or sizes[0] < 1 or any(np.diff(sizes) <= 0):
        raise ProbeError(f"The sizes {tuple(sizes)} do not ascend from 1: give few to many")
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    found = []
    for model in map(load, models):
        answer = open_gate(model, asked, "", seed=seed).answer
        places = _places(model, asked, variables, (bases, seed))
        dials = (enough, tuple(sizes), nulls, seed)
        few = tuple(_directions(places, variable, dials) for variable in variables)
        wires = _wires(model, asked, answer, (enough, prompts, seed))
        found.append(Few(model.name, parameters(model), sum(_inner(model)), few, wires))
    return Fewest(asked.name, enough, tuple(found), measured_students(students, asked, seed=seed))


def measured_students(
    students: Sequence[str | Path | Model], pattern: str | Pattern = "take-away", *, seed: int = 0
) -> tuple[Student, ...]:
    """Ask smaller models whether they do a task, and count their weights; the largest first."""
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    found = [_student(load(one), asked, seed) for one in students]
    return tuple(sorted(found, key=lambda one: -one.parameters))


def parameters(model: Model) -> int:
    """Count a model's weights, tied ones once."""
    return sum(weight.numel() for weight in model.bridge.original_model.parameters())


# Directions.


class _Places:
    """Crossings of two sets of words, and the sites of the first."""

    def __init__(
        self, model: Model, crossed: tuple[Crossings, Crossings], sites: Mapping[str, Cell]
    ) -> None:
        self.model, self.crossed, self.sites = model, crossed, sites

    def runs(self, model: Model) -> tuple[Crossed, Crossed]:
        """Run a model on both."""
        first, second = (cross(model, c, roles=join(*self.sites.values())) for c in self.crossed)
        return first, second


def _places(
    model: Model, asked: Pattern, variables: Sequence[str], dials: tuple[int, int]
) -> _Places:
    """Draw crossings whose nouns, and verbs if there are several, are in one half only."""
    bases, seed = dials
    found_by = dict(finding_words(asked))
    every = asked.lexicon.words("noun")
    others = {slot: [w for w in every if w not in used] for slot, used in found_by.items()}
    groups = verb_groups(asked)
    if len(groups) > 1:
        found_by["op"] = [verb for group in groups[::2] for verb in group]
        others["op"] = [verb for group in groups[1::2] for verb in group]
    drawn = tuple(
        crossings(asked, bases, tokenizers=(model.tokenizer,), seed=seed + 1 - k, words=words)
        for k, words in enumerate((found_by, others))
    )
    if strange := set(variables) - set(variables_of(drawn[0])):
        raise ProbeError(
            f"{asked.name!r} has no variable {sorted(strange)}: it has "
            f"{', '.join(variables_of(drawn[0]))}"
        )
    cells = find_sites(model, drawn[0], tuple(variables))
    return _Places(model, (drawn[0], drawn[1]), dict(zip(variables, cells, strict=True)))


def _directions(
    places: _Places, variable: str, dials: tuple[float, tuple[int, ...], int, int]
) -> Directions:
    """Search for more and more directions until they do enough."""
    enough, sizes, nulls, seed = dials
    cell, model = places.sites[variable], places.model
    finding, judging = places.runs(model)
    whole = share(alone(exchange(judging, [cell]), variable)[0])
    tried: list[int] = []
    shares: list[Estimate] = []
    done = False
    for size in (size for size in sizes if size <= model.shape.d_model):
        tried.append(size)
        shares.append(share(_carried(finding, judging, variable, (cell, size, seed))))
        # Where even the whole state carries nothing there is nothing to look for.
        if done := whole.value > MARGIN and shares[-1].value >= enough * whole.value:
            break
        if whole.value <= MARGIN:
            break
    strange = []
    for n in range(nulls):
        here, there = places.runs(untrained(model, seed=seed + n))
        strange.append(_carried(here, there, variable, (cell, tried[-1], seed)).mean())
    return Directions(
        variable=variable,
        site=site_name(cell),
        whole=whole,
        sizes=tuple(tried),
        shares=tuple(shares),
        fewest=tried[-1] if done else None,
        of=model.shape.d_model,
        null=float(max(strange, default=np.nan)),
    )


def _carried(
    finding: Crossed, judging: Crossed, variable: str, dials: tuple[Cell, int, int]
) -> Bool[np.ndarray, " prompt"]:
    """Search on some crossings, and mark on others where just the variable is handed over."""
    cell, size, seed = dials
    answer = NOUN if variable == OBJECT else NUMBER
    place = finding.crossings.noun if variable == OBJECT else finding.crossings.number
    space = das(
        finding.clean,
        finding.sources["other"],
        finding.where[cell.role],
        layer=cell.layer,
        role=cell.role,
        dims=size,
        read=answer,
        target=finding.tokens[answer][:, place.index(variable)],
        seed=seed,
    )
    return _flips(judging, space, cell, variable)


def _flips(
    judging: Crossed, space: Subspace, cell: Cell, variable: str
) -> Bool[np.ndarray, " prompt"]:
    theirs = judging.sources["other"].resid[cell.layer]
    mixed = with_states(judging, cell.layer, space.mix(judging.clean.resid[cell.layer], theirs))
    return alone(exchange(judging, [cell], source=mixed), variable)[0]


# Wires.


def _wires(model: Model, asked: Pattern, answer: str, dials: tuple[float, int, int]) -> Wires:
    """Cut circuits out, each keeping more where it is found, until one keeps enough elsewhere."""
    enough, prompts, seed = dials
    finding, judging = tasks(model, asked, answer, prompts=prompts, seed=seed)
    graph, here, there = attribute(model, finding), stage(model, finding), stage(model, judging)
    found: Faithfulness | None = None
    nodes: tuple[str, ...] = ()
    for part in _KEEPS:
        circuit = cut(here, graph, enough + part * (1 - enough))
        found, nodes = judge(there, marks(there, [circuit]), seed=seed)[0], circuit.nodes
        if found.value.value >= enough:
            break
    assert found is not None, "there is at least one share to try"
    return Wires(
        held_out=found,
        enough=found.value.value >= enough,
        of=len(graph),
        lot=_lot(there, found, seed),
        parameters=_owned(model, nodes),
    )


def _lot(there: Stage, found: Faithfulness, seed: int) -> float:
    drawn = lots(there, found.edges, "paths", _LOTS, seed=seed)
    return max(chance(there, drawn, found.value.value, "paths").values)


def _owned(model: Model, nodes: Sequence[str]) -> int:
    """Count the weights of heads and MLPs; heads that share keys have a part in them each."""
    attention, mlp = _parts(model)
    total = 0.0
    for node in {name.split("@")[0] for name in nodes}:
        if found := re.fullmatch(r"L(\d+)\.H\d+", node):
            total += attention[int(found[1])] / model.shape.heads
        elif found := re.fullmatch(r"L(\d+)\.MLP", node):
            total += mlp[int(found[1])]
    return round(total)


def _inner(model: Model) -> list[int]:
    attention, mlp = _parts(model)
    return [*attention, *mlp]


def _parts(model: Model) -> tuple[list[int], list[int]]:
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


def _student(model: Model, asked: Pattern, seed: int) -> Student:
    return Student(
        model=model.name,
        layers=model.shape.layers,
        d_model=model.shape.d_model,
        parameters=parameters(model),
        gates=gate(model, asked, seed=seed),
    )
