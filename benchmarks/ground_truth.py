"""Score the methods on models whose circuit is known, and print how well they rank its edges.

    python benchmarks/ground_truth.py [--seeds 3] [--distractors 4]

The rows: (a) planted by hand among distractors; (b) labeled by exact edge patching, as nobody set
the weights: planted under noise, and two of the embedded family on take-away, where a seed draws
prompts; (c) made to defeat a method: saturated attention, a decoy, gates; (d) compiled by Tracr.

AUROC: how often an edge of the circuit scores higher, in size, than one that is not; 0.5 is
chance. "hits": the share of the circuit among as many edges of highest score. A writer's score is
that of its best edge, and it counts as true where one of its edges is. Scores below a thousandth
of the largest are rounding, and count as 0: ties are half right. Beside each mean stands the worst
seed. "exact" is each edge's own effect, and not judged where it made the labels. "dead": the
largest score of an edge from or into a writer that never writes, nothing taken for rounding.

Fails if a dead edge has a gradient at all or an effect beyond rounding, if eap-ig in 5 steps is
below 0.99 for edges in (a), or if a method refuses a model.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import mannwhitneyu
from torch import set_num_threads

from probes.circuits.edges.edge_attribution import EAPIG, edge_attribution
from probes.circuits.task import TaskSettings, sample_tasks
from probes.errors import ModelError
from probes.models.model import Model, load
from probes.prompts.catalog import pattern
from probes.testing.planted_circuits import (
    PlantedModel,
    and_gate,
    decoy,
    find_true_edges,
    induction,
    noisy_induction,
    or_gate,
)
from probes.testing.tracr import frac_prevs

ROUNDING = 1e-3
# "exact" subtracts leads of two routes through the model, which may round differently (logits).
ROUTES = {"exact": 1e-5}
PROMISED = 0.99  # Edge AUROC of PROMISES in (a).
PROMISES = "eap-ig 5"

METHODS: dict[str, dict] = {
    "eap": {"method": "eap"},
    PROMISES: {"method": "eap-ig"},
    "eap-ig 30": {"method": EAPIG(steps=30)},
    "exact": {"method": "exact"},
}


@dataclass(frozen=True)
class Row:
    """One kind of model, and how it is built from a seed."""

    group: str
    name: str
    build: Callable[[int], PlantedModel]


def rows(distractors: int) -> Iterator[Row]:
    """List the models."""
    yield Row("a", "induction", lambda seed: induction(seed, distractors=distractors))
    for snr in (10.0, 3.0, 1.0, 0.7):
        yield Row(
            "b",
            f"noisy, snr {snr:g}",
            lambda n, snr=snr: noisy_induction(n, snr, distractors=distractors),
        )
    for member in ("full", "distilled"):
        yield Row("b", member, lambda seed, member=member: of_family(member, seed))
    yield Row(
        "c",
        "saturated",
        lambda seed: induction(seed, distractors=distractors, sharpness=20.0),
    )
    yield Row("c", "decoy", decoy)
    for steep in (2.0, 20.0):
        yield Row(
            "c", f"or, steep {steep:g}", lambda seed, steep=steep: or_gate(seed, steepness=steep)
        )
        yield Row(
            "c", f"and, steep {steep:g}", lambda seed, steep=steep: and_gate(seed, steepness=steep)
        )
    yield Row("d", "share of x so far", frac_prevs)


@cache
def member_of(name: str) -> Model:
    """Load one of the embedded family once."""
    return load(name)


def of_family(name: str, seed: int) -> PlantedModel:
    """Label the edges of a trained model by exact patching; the seed draws prompts."""
    model, none = member_of(name), frozenset()
    settings = TaskSettings(answer="number", prompts=8, seed=seed)
    task = sample_tasks(model, pattern("take-away"), settings)[0]
    truth = find_true_edges(model, task)
    return PlantedModel(model, task, task.computation_graph(model), truth, none, none, "Trained.")


def auroc(score: np.ndarray, true: np.ndarray) -> float:
    """Return the chance that a true one scores higher than another; ties count as half."""
    ranked = mannwhitneyu(score[true], score[~true]).statistic
    return float(ranked / (true.sum() * (~true).sum()))


def judge(planted: PlantedModel, score: np.ndarray) -> tuple[float, float, float]:
    """Return the AUROC of the edges and that of the writers, and the share of hits."""
    score = np.where(score < ROUNDING * score.max(), 0.0, score)
    true = np.zeros(len(planted.graph), dtype=bool)
    true[planted.graph.indices_of(planted.truth)] = True
    source = planted.graph.edge_table[0]
    count = len(planted.graph.writers)
    best, inside = np.zeros(count), np.zeros(count, dtype=bool)
    np.maximum.at(best, source, score)
    np.logical_or.at(inside, source, true)
    top = np.argsort(-score, kind="stable")[: true.sum()]
    hits = (true[top] & (score[top] > 0)).mean()
    return auroc(score, true), auroc(best, inside), float(hits)


def dead(planted: PlantedModel, score: np.ndarray) -> float:
    """Return the largest score of an edge from or into a dead writer; NaN if there is none."""
    names = planted.graph.readers
    ends = [name.rpartition(".")[0] if name[-1] in "qkv" else name for name in names]
    source, target = planted.graph.edge_table[:2]
    from_them = np.isin(planted.graph.writers, list(planted.dead))[source]
    into_them = np.isin(ends, list(planted.dead))[target]
    return score[from_them | into_them].max(initial=0) if planted.dead else np.nan


def measure(row: Row, models: list[PlantedModel], name: str) -> Iterator[str]:
    """Print one line of the table, and yield what is not as it must be."""
    true = statistics.mean(len(planted.truth) for planted in models)
    start, found, loud = time.process_time(), [], []
    for planted in models:
        try:
            graph = edge_attribution(planted.model, planted.task, **METHODS[name], per_prompt=False)
        except ModelError as error:
            yield f"({row.group}) {row.name}, {name}: refused. {error}"
            continue
        score = graph.mean.abs().cpu().double().numpy()
        found.append(judge(planted, score))
        loud.append(dead(planted, score))
    if not found:
        return
    spent = (time.process_time() - start) / len(found)
    line = f"({row.group}) {row.name:<18} {true:>5.1f} {name:<10}"
    for column in zip(*found, strict=True):
        line += f" {statistics.mean(column):>6.3f} {min(column):>6.3f}"
    quiet = "-" if np.isnan(loud[0]) else f"{max(loud):.1g}"
    print(f"{line} {quiet:>6} {spent:>6.2f}", flush=True)
    where = f"({row.group}) {row.name}, {name}"
    if max(loud) > ROUTES.get(name, 0):
        yield f"{where}: a dead edge scores {max(loud):.1g}"
    worst = min(edges for edges, _, _ in found)
    if row.group == "a" and name == PROMISES and worst < PROMISED:
        yield f"{where}: edges {worst:.3f}, and {PROMISED} is promised"


def main() -> None:
    """Print one line for each model and method, and fail if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--distractors", type=int, default=4)
    given = parser.parse_args()
    set_num_threads(1)
    columns = "".join(f" {name:>6} {'worst':>6}" for name in ("edges", "nodes", "hits"))
    print(f"{'model':<22} {'true':>5} {'method':<10}{columns} {'dead':>6} {'CPU s':>6}")
    broken = []
    for row in rows(given.distractors):
        models = [row.build(seed) for seed in range(given.seeds)]
        for name in METHODS:
            if row.group != "b" or name != "exact":
                broken += measure(row, models, name)
    print(f"{time.process_time():.0f} s of CPU in all")
    if broken:
        raise SystemExit("\n".join(broken))


if __name__ == "__main__":
    main()
