"""One relative on the curve: what it stores, how it behaves, and what is left of the mechanism."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from probes.circuits.attribution import attribute
from probes.circuits.circuit import Circuit
from probes.circuits.edge_patching import run
from probes.circuits.faithfulness import marks, ratio
from probes.circuits.reference_runs import stage
from probes.circuits.sampling import tasks
from probes.circuits.task import Task
from probes.circuits.trace import cut
from probes.comparison.rate_distortion.mechanism import (
    Cells,
    Exam,
    Runs,
    Turned,
    draw_exam,
    run_trial,
    turned,
)
from probes.comparison.rate_distortion.order import (
    UNKNOWN,
    Copy,
    Noise,
    beside_noise,
    kept,
    order_of,
)
from probes.comparison.rate_distortion.result import Mechanism, Point
from probes.comparison.rate_distortion.weight_noise import Shaken, match
from probes.compression.storage import rate_of
from probes.errors import CircuitError, PatternError
from probes.models.model import Model
from probes.models.site import site_name
from probes.observe.divergence import Behaved, Sitting, behaved, kl, put, readouts, sit
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, share

KEEP = 0.9
"""The share of the parent's lead that its circuit keeps."""


@dataclass(frozen=True, eq=False)
class Side:
    """What is measured of the parent once, for all relatives.

    Attributes:
        turned: What became of the exam in it.
        circuit, finding, judging: None where the pattern gives no circuit.
    """

    model: Model
    sitting: Sitting
    exam: Exam
    cells: Cells
    runs: Runs
    turned: Turned
    circuit: Circuit | None
    finding: Task | None
    judging: Task | None


def prepare(model: Model, pattern: Pattern, dials: tuple[int, int, int]) -> Side:
    """Measure the parent; the dials are bases, prompts and the seed."""
    bases, prompts, seed = dials
    sitting = sit(model, pattern, count=bases, seed=seed)
    exam = draw_exam(model, pattern, bases=bases, seed=seed)
    cells = exam.find(model)
    runs = run_trial(model, exam.judging)
    circuit, finding, judging = None, None, None
    # Pairs may be too few to part, or their roles too unequal: then there is no circuit.
    with suppress(CircuitError, PatternError):
        if pattern.given:
            prompts = min(prompts, *(Counter(p.contrast for p in pattern.given).values())) // 2
        finding, judging = tasks(
            model, pattern, pattern.answers[0][0], prompts=max(prompts, 1), seed=seed
        )
        circuit = _own_circuit(model, finding)
    return Side(
        model, sitting, exam, cells, runs, turned(runs, cells), circuit, finding, judging
    )  # fmt: skip


def _own_circuit(model: Model, finding: Task) -> Circuit:
    return cut(stage(model, finding), attribute(model, finding), KEEP)


def _alike(a: Model, b: Model) -> bool:
    """Say whether two models have one graph, with all its widths."""
    names = ("architecture", "layers", "heads", "kv_heads", "d_model", "d_head", "parallel")
    return all(getattr(a.shape, name) == getattr(b.shape, name) for name in names)


def point_of(
    model: Model, side: Side, noisy: Shaken | None, dials: tuple[int, int],
    words: Mapping[str, int],
) -> Point:  # fmt: skip
    """Measure one model beside its parent; the dials are the number of copies and the seed."""
    count, seed = dials
    found = behaved(side.sitting, put(side.sitting, model), seed=seed)
    mechanism, noise = None, None
    if not found.absent:
        mechanism, here = _mechanism(model, side, seed)
        if noisy is not None and _alike(model, side.model) and _compressed(model):
            noise = _noise(here, found, side, noisy, (count, seed))
    return Point(
        name=model.name,
        kind=model.made.kind if model.made else _kind(model),
        rate=rate_of(model),
        behaved=found,
        same_graph=_alike(model, side.model),
        mechanism=mechanism,
        noise=noise,
        verdicts=dict(words),
    )


def _compressed(model: Model) -> bool:
    """Say whether it may be what became of its parent's weights: what was trained anew is not."""
    return model.made is None or model.made.kind in ("quantized", "pruned", "ticket")


def _kind(model: Model) -> str:
    return "untrained" if model.origin.startswith("untrained") else "trained"


def _mechanism(model: Model, side: Side, seed: int) -> tuple[Mechanism, Turned]:
    same, itself = _alike(model, side.model), model is side.model
    runs = side.runs if itself else run_trial(model, side.exam.judging)
    own = side.cells if itself else side.exam.find(model)
    cells = side.cells if same else own
    here, carried = turned(runs, cells), {}
    both = side.turned.solved & here.solved
    if same:
        carried = turned(runs, cells, source=side.runs.source).hits
    found = Mechanism(
        sites={name: site_name(cell) for name, cell in cells.items()},
        own_sites={name: site_name(cell) for name, cell in own.items()},
        every={name: _share(hits) for name, hits in here.hits.items()},
        matched={name: _share(hits[both]) for name, hits in here.hits.items()},
        kept=kept(side.turned, here, seed=seed),
        at_own=kept(side.turned, turned(runs, own), seed=seed),
        carried={name: _share(hits[both]) for name, hits in carried.items()},
        circuit=_transfer(model, side, seed) if same else UNKNOWN,
        order=order_of(side.turned, here, seed=seed),
        **_size(model, side, same=same),
    )
    return found, here


def _share(hits: np.ndarray) -> Estimate:
    """Return the share of hits among the items that were tried."""
    return share(hits[~np.isnan(hits)] > 0)


def _transfer(model: Model, side: Side, seed: int) -> Estimate:
    """Run the parent's circuit alone in a relative."""
    if side.circuit is None or side.judging is None:
        return UNKNOWN
    there = stage(model, side.judging)
    return ratio(there, run(there, marks(there, [side.circuit]))[0], seed=seed)


def _size(model: Model, side: Side, *, same: bool) -> dict:
    circuit = side.circuit
    if not same and side.finding is not None:
        with suppress(CircuitError):
            circuit = _own_circuit(model, side.finding)
    if circuit is None:
        return {"circuit_edges": 0, "circuit_share": float("nan")}
    return {"circuit_edges": len(circuit), "circuit_share": len(circuit) / len(circuit.wiring)}


def _noise(
    here: Turned, found: Behaved, side: Side, noisy: Shaken, dials: tuple[int, int]
) -> Noise | None:
    count, seed = dials

    def far(model: Model) -> float:
        return float(kl(side.sitting.logs, readouts(model, side.sitting.batch)).double().mean())

    copies = []
    for number in range(count):
        done = match(noisy, found.kl.value, seed + number, far)
        if done is not None:
            model = noisy.shake(done.scale, seed + number)
            there = turned(run_trial(model, side.exam.judging), side.cells)
            circuit = _transfer(model, side, seed).value
            copies.append(Copy(done.scale, done.value, there, circuit))
    return beside_noise(side.turned, here, copies, seed=seed)
