"""Score the methods on models whose circuit is known, and print how well they rank its edges.

    python benchmarks/ground_truth.py [--seeds 3] [--distractors 4]

AUROC: how often an edge of the circuit scores higher, in size, than one that is not; 0.5 is
chance. "hits": the share of the circuit among as many edges of highest score. A writer's score is
that of its best edge, and it counts as true where one of its edges is. Scores below a thousandth
of the largest are rounding, and count as 0: ties are half right. Beside each mean stands the worst
seed. "exact" is each edge's own effect; the noisy models are labelled by it, the others by hand.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import mannwhitneyu

from probes.attribution import attribute
from probes.errors import ModelError
from probes.planted import Planted, and_gate, decoy, induction, noisy, or_gate

ROUNDING = 1e-3

METHODS: dict[str, dict] = {
    "eap": {"method": "eap"},
    "eap at 0": {"method": "eap", "at": 0.0},
    "eap-ig 5": {"method": "eap-ig", "steps": 5},
    "eap-ig 30": {"method": "eap-ig", "steps": 30},
    "exact": {"method": "exact"},
}


@dataclass(frozen=True)
class Row:
    """One model, how it is built from a seed."""

    name: str
    build: Callable[[int], Planted]


def rows(distractors: int) -> Iterator[Row]:
    """List the models."""
    yield Row("induction", lambda seed: induction(seed, distractors=distractors))
    yield Row(
        "induction, sharp", lambda seed: induction(seed, distractors=distractors, sharpness=20.0)
    )
    for snr in (10.0, 3.0, 1.0, 0.7):
        yield Row(
            f"noisy, snr {snr:g}", lambda seed, snr=snr: noisy(seed, snr, distractors=distractors)
        )
    yield Row("decoy", decoy)
    for steep in (2.0, 20.0):
        yield Row(f"or-gate, steep {steep:g}", lambda seed, steep=steep: or_gate(seed, steep=steep))
        yield Row(
            f"and-gate, steep {steep:g}", lambda seed, steep=steep: and_gate(seed, steep=steep)
        )


def auroc(score: np.ndarray, true: np.ndarray) -> float:
    """Return the chance that a true one scores higher than another; ties count as half."""
    ranked = mannwhitneyu(score[true], score[~true]).statistic
    return float(ranked / (true.sum() * (~true).sum()))


def judge(planted: Planted, score: np.ndarray) -> tuple[float, float, float]:
    """Return the AUROC of the edges and that of the writers, and the share of hits."""
    score = np.where(score < ROUNDING * score.max(), 0.0, score)
    true = np.zeros(len(planted.wiring), dtype=bool)
    true[planted.wiring.numbers(planted.truth)] = True
    source = planted.wiring.table[0]
    count = len(planted.wiring.writers)
    best, inside = np.zeros(count), np.zeros(count, dtype=bool)
    np.maximum.at(best, source, score)
    np.logical_or.at(inside, source, true)
    top = np.argsort(-score, kind="stable")[: true.sum()]
    hits = (true[top] & (score[top] > 0)).mean()
    return auroc(score, true), auroc(best, inside), float(hits)


def measure(row: Row, models: list[Planted], name: str) -> str:
    """Write one line of the table."""
    true = statistics.mean(len(planted.truth) for planted in models)
    start, found, refused = time.perf_counter(), [], 0
    for planted in models:
        try:
            graph = attribute(planted.model, planted.task, **METHODS[name])
        except ModelError:
            refused += 1
            continue
        found.append(judge(planted, graph.mean.abs().cpu().double().numpy()))
    spent = (time.perf_counter() - start) / len(models)
    line = f"{row.name:<20} {true:>5.1f} {name:<10}"
    for column in zip(*found, strict=True):
        line += f" {statistics.mean(column):>6.3f} {min(column):>6.3f}"
    return f"{line} {spent:>6.2f}" + (f"  {refused} refused" if refused else "")


def main() -> None:
    """Print one line for each model and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--distractors", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':<20} {'true':>5} {'method':<10}", end="")
    print("".join(f" {name:>6} {'worst':>6}" for name in ("edges", "nodes", "hits")), f"{'s':>6}")
    for row in rows(given.distractors):
        models = [row.build(seed) for seed in range(given.seeds)]
        for name in METHODS:
            print(measure(row, models, name), flush=True)


if __name__ == "__main__":
    main()
