"""Settings and results of the search for the fewest parameters, of three kinds.

Directions that carry a variable, edges that keep the behavior, and parameters of a student that
has the behavior.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.circuits.result import Faithfulness
from probes.errors import ProbeError
from probes.files import to_jsonable, write_atomic, write_frame
from probes.observe.result import Gate
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd


SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True, slots=True)
class FewestSettings:
    """Settings of the search.

    Attributes:
        variables: Variables whose directions are searched.
        threshold: Fraction of the whole to keep, above 0, up to 1.
        sizes: Numbers of directions to try, in ascending order.
        bases: Interchange pairs to search with, and as many to test.
        prompts: Pairs of each contrast to search the circuit with, and as many to test.
        nulls: Random-init models of each shape in which directions are searched as well.
        seed: Seed of prompts, searches and random-init models.
    """

    variables: Sequence[str] = ("operation", "y")
    threshold: float = 0.9
    sizes: Sequence[int] = SIZES
    bases: int = 60
    prompts: int = 16
    nulls: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ProbeError(f"The threshold is {self.threshold}: give a fraction above 0, up to 1")
        if not self.sizes or self.sizes[0] < 1 or any(np.diff(self.sizes) <= 0):
            raise ProbeError(f"The sizes {tuple(self.sizes)} do not ascend from 1: sort them")


@dataclass(frozen=True, slots=True)
class MinimalDirections:
    """Fewest directions of the residual stream that carry a variable.

    Attributes:
        variable, site: Variable, and its site; the site was searched with other words.
        full_state: Interchange accuracy of the whole state there.
        sizes, interchange_accuracy: Numbers of directions, and the accuracy of the subspace that
            DAS found for each, on verbs and nouns that it did not see.
        fewest: First size that reaches the threshold; None if none did.
        total: Dimension of the residual stream.
        null: Highest accuracy of the same search at the last size in random-init models.
    """

    variable: str
    site: str
    full_state: Estimate
    sizes: tuple[int, ...]
    interchange_accuracy: tuple[Estimate, ...]
    fewest: int | None
    total: int
    null: float


@dataclass(frozen=True, slots=True)
class MinimalCircuit:
    """Smallest circuit that keeps a fraction of the behavior on held-out prompts.

    Attributes:
        held_out: Faithfulness there; its size was chosen so that it reaches the threshold.
        is_sufficient: Whether a circuit smaller than the model reached it.
        total_edges: Number of edges of the model.
        random_max: Highest faithfulness of random circuits of as many edges, made of paths.
        parameters: Weights of the heads and MLPs that have an edge, without embeddings.
    """

    held_out: Faithfulness
    is_sufficient: bool
    total_edges: int
    random_max: float
    parameters: int


@dataclass(frozen=True, eq=False)
class ModelMinimum:
    """Fewest directions and edges of one model.

    Attributes:
        model: Name.
        parameters: All weights, tied ones once.
        block_parameters: Weights of heads and MLPs.
        directions: Fewest directions of each variable.
        circuit: Smallest circuit.
    """

    model: str
    parameters: int
    block_parameters: int
    directions: tuple[MinimalDirections, ...]
    circuit: MinimalCircuit


@dataclass(frozen=True, slots=True)
class Student:
    """A smaller model, and its gates."""

    model: str
    layers: int
    d_model: int
    parameters: int
    gates: tuple[Gate, ...]

    @property
    def passes_gates(self) -> bool:
        """Whether the gates of all answers are open."""
        return all(gate.state == "open" for gate in self.gates)


@dataclass(frozen=True, eq=False, repr=False)
class FewestParameters:
    """Fewest directions, edges and parameters.

    Attributes:
        pattern: Name of the pattern.
        threshold: Fraction of the whole that is kept.
        models: Fewest directions and edges of each model.
        students: Smaller models, the largest first.
    """

    pattern: str
    threshold: float
    models: tuple[ModelMinimum, ...]
    students: tuple[Student, ...]

    @property
    def smallest(self) -> tuple[int, tuple[Student, ...]] | None:
        """Fewest parameters at which every student of a shape passes its gates, and these students.

        A shape is a number of layers and a width. One student that fails excludes its shape.
        """
        shapes: dict[tuple[int, int], list[Student]] = {}
        for student in self.students:
            shapes.setdefault((student.layers, student.d_model), []).append(student)
        passing = [tuple(some) for some in shapes.values() if all(s.passes_gates for s in some)]
        if not passing:
            return None
        best = min(passing, key=lambda some: some[0].parameters)
        return best[0].parameters, best

    def table(self) -> "pd.DataFrame":
        """A row for each minimum: kind, count, total, and null."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for m in self.models:
            for d in m.directions:
                row = _table_row(m.model, d.variable, "directions", (d.fewest, d.total), d.null)
                rows.append(
                    row | _kept(d.interchange_accuracy[-1], whole=d.full_state.value, place=d.site)
                )
            circuit, kept = m.circuit, _kept(m.circuit.held_out.value)
            edges, nodes = (
                count if circuit.is_sufficient else None
                for count in (circuit.held_out.edges, circuit.parameters)
            )
            for unit, size, null in (
                ("edges", (edges, circuit.total_edges), circuit.random_max),
                ("weights of its nodes", (nodes, m.block_parameters), np.nan),
            ):
                rows.append(_table_row(m.model, "task", unit, size, null) | kept)
        total = next((one.parameters for one in (*self.models, *self.students)), 0)
        for student in self.students:
            gate, size = student.gates[0], (student.parameters, total)
            states = "; ".join(f"{g.answer} {g.state}" for g in student.gates)
            row = _table_row(student.model, "student", "parameters", size, gate.heuristic_accuracy)
            rows.append(row | _kept(gate.accuracy, place=states))
        return pd.DataFrame(rows)

    def summary(self) -> tuple[str, ...]:
        """One sentence for each minimum."""
        lines = []
        for m in self.models:
            for d in m.directions:
                count = d.sizes[-1] if d.fewest is None else d.fewest
                line = (
                    f"{m.model}, {d.variable} at {d.site}: {count} of {d.total} directions have "
                    f"interchange accuracy {d.interchange_accuracy[-1]} on words that the search "
                    f"did not see (the whole state {d.full_state}; the same search in random-init "
                    f"models {d.null:.2f})"
                )
                lines.append(f"{line}{': not enough' if d.fewest is None else ''}.")
            circuit, held_out = m.circuit, m.circuit.held_out
            lines.append(
                f"{m.model}: {held_out.edges} of {circuit.total_edges} edges keep {held_out.value} "
                "of the logit difference on held-out prompts (random circuits of this size at most "
                f"{circuit.random_max:.2f}); their heads and MLPs have {circuit.parameters:,} of "
                f"{m.block_parameters:,} weights."
                if circuit.is_sufficient
                else f"{m.model}: no circuit keeps {self.threshold:g} on held-out prompts."
            )
        return (*lines, *self._students_summary())

    def _students_summary(self) -> tuple[str, ...]:
        if not self.students:
            return ()
        if self.smallest is None:
            return (f"None of {len(self.students)} students passes its gates.",)
        size, passing = self.smallest
        total = self.models[0].parameters if self.models else size
        below = [s for s in self.students if s.parameters < size]
        failing = ", ".join(f"{s.model} ({s.gates[0].accuracy.value:.2f})" for s in below)
        return (
            f"The smallest student that passes its gates has {size:,} parameters, "
            f"{size / total:.0%} of the model's: {passing[0].layers} layers of width "
            f"{passing[0].d_model}, {len(passing)} seeds. Smaller ones do not always pass: "
            f"{failing or 'none was tried'}.",
        )

    def save(self, path: str | Path) -> None:
        """Write the table (.csv) or all numbers (.json), atomically."""
        if Path(path).suffix == ".csv":
            write_frame(self.table(), Path(path), index=False)
            return
        plain = {
            "pattern": self.pattern,
            "summary": list(self.summary()),
            "models": [to_jsonable(m) for m in self.models],
            "students": [to_jsonable(student) for student in self.students],
        }
        write_atomic(Path(path), json.dumps(plain, indent=1).encode())

    def __repr__(self) -> str:
        return f"<FewestParameters of {len(self.models)} models and {len(self.students)} students>"


def _table_row(
    model: str, target: str, unit: str, size: tuple[int | None, int], null: float
) -> dict[str, Any]:
    count = np.nan if size[0] is None else size[0]
    return {
        "model": model, "what": target, "unit": unit, "fewest": count, "of": size[1],
        "part": count / size[1], "null": null,
    }  # fmt: skip


def _kept(value: Estimate, *, whole: float = 1.0, place: str = "") -> dict[str, Any]:
    return {
        "kept": value.value, "kept_low": value.low, "kept_high": value.high,
        "whole": whole, "place": place,
    }  # fmt: skip
