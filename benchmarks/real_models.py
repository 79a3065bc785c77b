"""CPU seconds and peak memory of jobs on real models, beside their goals.

Run with `python -m benchmarks.real_models FOLDER [JOB …]`. FOLDER holds a folder for each model:
`smollm2` (SmolLM2-135M-Instruct) and `qwen` (Qwen2.5-0.5B-Instruct). Each job runs in a process of
its own, on one thread: with more of them, CPU seconds count threads that wait.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from probes.circuits.edges.edge_attribution import EAPIG, edge_attribution
from probes.circuits.faithfulness import evaluate_circuit
from probes.circuits.pruning import PruningRule, prune_circuit
from probes.circuits.runs.reference import run_references
from probes.circuits.task import TaskSettings, sample_tasks
from probes.circuits.trace import TraceSettings, trace
from probes.circuits.trace_plan import TRACE_PRUNING
from probes.interventions.sweep import activation_patching
from probes.models.model import load
from probes.prompts.catalog import pattern
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs


@dataclass(frozen=True, slots=True)
class Job:
    """A job: what it runs on a folder of models, and its goals.

    Attributes:
        name: Its name on the command line.
        run: Runs it and returns what it found, by name.
        goals: Most of "CPU-s" and "GB", and of what it found by "<=" or ">=" and a number.
    """

    name: str
    run: Callable[[Path], dict[str, float]]
    goals: dict[str, str]


def trace_ioi(folder: Path, model: str) -> dict[str, float]:
    """Trace IOI on 32 pairs whose second subject differs, and evaluate it on 32 others."""
    settings = TraceSettings(contrasts=("s2",), other_pattern="")
    found = trace(folder / model, "ioi", settings=settings)
    return {"edges": len(found.circuit), "held-out faithfulness": found.held_out.value.value}


def circuit_overlap(folder: Path, model: str) -> dict[str, float]:
    """Circuits of `trace` and of five steps of EAP-IG, pruned by the size of scores to f >= 0.9.

    Jaccard index of their edges, and of the heads and MLPs that the edges begin at.
    """
    loaded = load(folder / model)
    discovery, held_out = sample_tasks(loaded, pattern("ioi"), TaskSettings(contrasts=("s2",)))
    found = {}
    for name, steps, rule in (("trace", 1, TRACE_PRUNING), ("five steps", 5, PruningRule())):
        scores = edge_attribution(loaded, discovery, method=EAPIG(steps))
        found[name] = prune_circuit(run_references(loaded, discovery), scores, 0.9, rule)
    runs = run_references(loaded, held_out)
    figures = {f"edges, {name}": float(len(circuit)) for name, circuit in found.items()}
    for name, circuit in found.items():
        figures[f"held-out faithfulness, {name}"] = evaluate_circuit(runs, circuit).value.value
    edges = [{*circuit.edges} for circuit in found.values()]
    nodes = [{edge.source for edge in circuit.edges} for circuit in found.values()]
    for name, (one, other) in (("edges", edges), ("heads and MLPs", nodes)):
        figures[f"Jaccard of {name}"] = len(one & other) / len(one | other)
    return figures


def patching_cell(folder: Path, model: str) -> dict[str, float]:
    """CPU seconds of one component, role and pair: all heads and MLPs at the answer's token."""
    loaded = load(folder / model)
    pairs = sample_pairs(pattern("ioi"), "s2", 4, tokenizers=(loaded.tokenizer,), seed=0)
    batch = tokenize_pairs(loaded.tokenizer, pairs, max_length=loaded.shape.context)
    start = time.process_time()
    effects = activation_patching(loaded, batch, roles=["to"])
    cells = int((~effects.per_prompt[..., 0].isnan()).sum())
    return {"cells": cells, "CPU-s a cell": (time.process_time() - start) / cells}


JOBS = (
    Job(
        "trace-smollm2",
        lambda folder: trace_ioi(folder, "smollm2"),
        {"CPU-s": "<= 120", "GB": "<= 2.5", "held-out faithfulness": ">= 0.88"},
    ),
    Job(
        "trace-qwen",
        lambda folder: trace_ioi(folder, "qwen"),
        {"CPU-s": "<= 500", "GB": "<= 6"},
    ),
    Job("overlap-smollm2", lambda folder: circuit_overlap(folder, "smollm2"), {}),
    Job("cell-smollm2", lambda folder: patching_cell(folder, "smollm2"), {}),
    Job("cell-qwen", lambda folder: patching_cell(folder, "qwen"), {"CPU-s a cell": "<= 0.02"}),
)


def run_alone(job: Job, folder: Path) -> None:
    """Run one job in this process; its figures are one line of JSON on standard output."""
    torch.set_num_threads(1)
    found = job.run(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"CPU-s": time.process_time(), "GB": peak, **found}))


def show(job: Job, figures: dict[str, float]) -> str:
    """One line: each figure, with its goal and whether that is reached."""
    parts = []
    for name, value in figures.items():
        text = f"{name} {value:.4g}"
        if goal := job.goals.get(name):
            sign, bound = goal.split()
            reached = value <= float(bound) if sign == "<=" else value >= float(bound)
            text += f" ({goal}{'' if reached else ', not reached'})"
        parts.append(text)
    return f"{job.name}: {', '.join(parts)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the jobs one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", nargs="*", help=", ".join(job.name for job in JOBS))
    parser.add_argument("--alone", action="store_true", help="in this process, as JSON")
    given = parser.parse_args(arguments)
    if unknown := set(given.jobs) - {job.name for job in JOBS}:
        parser.error(
            f"unknown jobs {', '.join(unknown)}: choose from {', '.join(j.name for j in JOBS)}"
        )
    for job in JOBS:
        if given.jobs and job.name not in given.jobs:
            continue
        if given.alone:
            run_alone(job, given.folder)
            continue
        command = [sys.executable, "-m", "benchmarks.real_models", str(given.folder), job.name]
        ran = subprocess.run([*command, "--alone"], stdout=subprocess.PIPE, text=True, check=False)
        lines = ran.stdout.strip().splitlines()
        print(show(job, json.loads(lines[-1])) if ran.returncode == 0 else f"{job.name}: failed")


if __name__ == "__main__":
    main()
