"""Fewest parameters: directions that carry a variable, wires that do the task, students that learn.

Three sizes that are not one another: how little of a state matters, how little of a model, and how
little there need be of a model at all.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.circuits.result import Faithfulness
from probes.files import to_jsonable, write_atomic
from probes.observe.result import Gate
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class MinimalDirections:
    """The fewest directions of the residual stream that carry a variable.

    Attributes:
        variable, site: What, and where; the site is found by other words.
        whole: How often the whole state there hands over just the variable.
        sizes, shares: For each number of directions how often those do that a search found (DAS),
            on verbs and nouns that it did not see.
        fewest: The first size that does the asked share of what the whole does; None if none did.
        of: How many directions there are.
        null: What the same search at the last size reaches in untrained nets, the most of them.
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
    """The smallest circuit found that keeps a share of the behavior on held-out prompts.

    Attributes:
        held_out: Its faithfulness there; the size was chosen so that it is enough.
        enough: Whether any circuit but the whole model was.
        of: How many edges the model has.
        lot: The highest faithfulness of as many edges of random paths.
        parameters: Weights of the heads and MLPs that have an edge; embedding not counted.
    """

    held_out: Faithfulness
    is_sufficient: bool
    total_edges: int
    random_max: float
    parameters: int


@dataclass(frozen=True, eq=False)
class ModelMinimum:
    """What one model needs of itself.

    Attributes:
        parameters: All weights, tied ones once.
        inner: Those of heads and MLPs.
    """

    model: str
    parameters: int
    block_parameters: int
    directions: tuple[MinimalDirections, ...]
    circuit: MinimalCircuit


@dataclass(frozen=True, slots=True)
class Student:
    """A smaller model, and whether it does the task."""

    model: str
    layers: int
    d_model: int
    parameters: int
    gates: tuple[Gate, ...]

    @property
    def passes_gates(self) -> bool:
        """Whether the gates of all answers are open."""
        return all(found.state == "open" for found in self.gates)


@dataclass(frozen=True, eq=False, repr=False)
class FewestParameters:
    """Three kinds of fewest, side by side.

    Attributes:
        pattern: What was asked.
        enough: The share of the whole that had to be kept.
        models: What each needs of itself.
        students: Smaller models, the largest first.
    """

    pattern: str
    threshold: float
    models: tuple[ModelMinimum, ...]
    students: tuple[Student, ...]

    @property
    def smallest(self) -> tuple[int, tuple[Student, ...]] | None:
        """The fewest parameters at which every student of the shape does the task, and they.

        A shape is known by its layers and its width; one student of several that fails is enough
        to say that the size does not do it surely.
        """
        shapes: dict[tuple[int, int], list[Student]] = {}
        for one in self.students:
            shapes.setdefault((one.layers, one.d_model), []).append(one)
        sure = [tuple(some) for some in shapes.values() if all(one.passes_gates for one in some)]
        if not sure:
            return None
        best = min(sure, key=lambda some: some[0].parameters)
        return best[0].parameters, best

    def table(self) -> "pd.DataFrame":
        """Return a row for each fewest: of what, how many, of how many, and the null beside it."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for few in self.models:
            rows += [_table_row(few.model, d.variable, "directions", (d.fewest, d.total), d.null) | {
                "kept": d.interchange_accuracy[-1].value, "kept_low": d.interchange_accuracy[-1].low,
                "kept_high": d.interchange_accuracy[-1].high, "whole": d.full_state.value, "place": d.site,
            } for d in few.directions]  # fmt: skip
            held = few.circuit.held_out
            kept = {
                "kept": held.value.value, "kept_low": held.value.low, "kept_high": held.value.high,
                "whole": 1.0, "place": "",
            }  # fmt: skip
            edges = held.edges if few.circuit.is_sufficient else None
            rows.append(
                _table_row(
                    few.model,
                    "task",
                    "edges",
                    (edges, few.circuit.total_edges),
                    few.circuit.random_max,
                )
                | kept
            )
            owned = few.circuit.parameters if few.circuit.is_sufficient else None
            rows.append(
                _table_row(
                    few.model, "task", "weights of its nodes", (owned, few.block_parameters), np.nan
                )
                | kept
            )
        sizes = [few.parameters for few in self.models] or [one.parameters for one in self.students]
        for one in self.students:
            found = one.gates[0]
            state = {
                "kept": found.accuracy.value, "kept_low": found.accuracy.low,
                "kept_high": found.accuracy.high, "whole": 1.0,
                "place": "; ".join(f"{g.answer} {g.state}" for g in one.gates),
            }  # fmt: skip
            size = (one.parameters, sizes[0])
            row = _table_row(one.model, "student", "parameters", size, found.heuristic_accuracy)
            rows.append(row | state)
        return pd.DataFrame(rows)

    def summary(self) -> tuple[str, ...]:
        """Say what was found, a plain sentence each."""
        lines = []
        for few in self.models:
            for d in few.directions:
                what = f"{few.model}, {d.variable} at {d.site}: "
                if d.fewest is None:
                    lines.append(
                        f"{what}{d.sizes[-1]} of {d.total} directions hand over {d.interchange_accuracy[-1]} where "
                        f"the whole state does {d.full_state}: not enough."
                    )
                    continue
                lines.append(
                    f"{what}{d.fewest} of {d.total} directions hand over {d.interchange_accuracy[-1]} on words that "
                    f"the search did not see (the whole state {d.full_state}; the same search in "
                    f"untrained nets {d.null:.2f})."
                )
            held = few.circuit.held_out
            lines.append(
                f"{few.model}: {held.edges} of {few.circuit.total_edges} edges keep {held.value} of the lead "
                f"on held-out prompts (as many random ones at most {few.circuit.random_max:.2f}); their "
                f"heads and MLPs own {few.circuit.parameters:,} of {few.block_parameters:,} weights."
                if few.circuit.is_sufficient
                else f"{few.model}: no circuit keeps {self.threshold:g} on held-out prompts."
            )
        return (*lines, *self._students_summary())

    def _students_summary(self) -> tuple[str, ...]:
        if not self.students:
            return ()
        found = self.smallest
        if found is None:
            return (f"None of {len(self.students)} students does the task.",)
        size, some = found
        whole = self.models[0].parameters if self.models else size
        below = [s for s in self.students if s.parameters < size]
        fail = ", ".join(f"{s.model} ({s.gates[0].accuracy.value:.2f})" for s in below)
        return (
            f"The smallest student that does the task has {size:,} parameters, {size / whole:.0%} "
            f"of the model's: {some[0].layers} layers of width {some[0].d_model}, {len(some)} "
            f"seeds. Smaller ones do not surely: {fail or 'none was tried'}.",
        )

    def save(self, path: str | Path) -> None:
        """Write the table (.csv) or all numbers (.json), whole or not at all."""
        if Path(path).suffix == ".csv":
            write_atomic(Path(path), self.table().to_csv(index=False).encode())
            return
        plain = {
            "pattern": self.pattern,
            "summary": list(self.summary()),
            "models": [to_jsonable(few) for few in self.models],
            "students": [to_jsonable(one) for one in self.students],
        }
        write_atomic(Path(path), json.dumps(plain, indent=1).encode())

    def __repr__(self) -> str:
        return f"<Fewest of {len(self.models)} models and {len(self.students)} students>"


def _table_row(
    model: str, target: str, unit: str, size: tuple[int | None, int], null: float
) -> dict[str, Any]:
    count = np.nan if size[0] is None else size[0]
    return {
        "model": model, "what": target, "unit": unit, "fewest": count, "of": size[1],
        "part": count / size[1], "null": null,
    }  # fmt: skip
