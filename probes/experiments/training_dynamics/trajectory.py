"""Along training: when a model comes to answer, and when to answer the way its final self does.

checkpoints → the final model's sites put in, its circuit run alone → courses → first steps
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.errors import SiteError
from probes.experiments.training_dynamics.checkpoints import (
    measure_checkpoint,
    prepare_final_reference,
    require_same_shape,
)
from probes.experiments.training_dynamics.emergence import (
    EmergenceStep,
    MeasureOverTraining,
    Order,
    emergence_order,
    emergence_step,
    require_ascending,
)
from probes.experiments.training_dynamics.measures import (
    CIRCUIT_ONLY,
    DRAWS,
    LOGIT_DIFF,
    LOGIT_SHIFT,
    RANDOM_EDGE_SETS,
    CheckpointLog,
    circuit_faithfulness,
    measures_over_training,
)
from probes.models.model import Model, load, random_init
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern
from probes.result import Result
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd


Checkpoint = tuple[int, str | Path | Model]

_ORDER_TEXT: Mapping[Order, str] = {
    "before": "before",
    "after": "after",
    "with": "at the same checkpoint as",
    "cannot tell": "not told apart from",
}


@dataclass(frozen=True, eq=False, repr=False)
class TrainingTrajectory(Result):
    """One training run, beside where it ended.

    Attributes:
        final: The model whose sites and circuit are looked for.
        pattern: What was asked.
        steps: Of the checkpoints.
        courses: Every measure along them: for each answer the accuracy ("number right"); the
            answer's "lead", and the lead that the final circuit holds alone, both as a share of
            the final model's lead; for each variable how often just it is "taken up" at the final
            site, at the checkpoint's own best site, and how far that pulls the answer's logit, as
            a share of the final model's pull; and the share of "edges shared" with the final model
            among as many of the strongest. A variable that the final model hardly takes up at any
            one site has no pull.
        faithful: The circuit's lead over the checkpoint's own lead; None where that is not surely
            above a tenth of the final one: a share of nothing says nothing.
        sites: For each variable where the final model holds it.
        edges: How many edges the final circuit has.
        protocol: How it was measured.
    """

    final: str
    pattern: str
    steps: tuple[int, ...]
    measures: tuple[MeasureOverTraining, ...]
    circuit_faithfulness: tuple[Estimate | None, ...]
    sites: Mapping[str, str]
    edges: int
    protocol: tuple[tuple[str, str], ...]

    def measure(self, name: str) -> MeasureOverTraining:
        """Return one measure, such as "number accuracy" or "operation interchange accuracy"."""
        for found in self.measures:
            if found.name == name:
                return found
        raise SiteError(f"Nothing is called {name!r}: there are {[c.name for c in self.measures]}")

    def emergence(self, name: str) -> EmergenceStep:
        """Return when a measure appeared."""
        return emergence_step(self.steps, self.measure(name))

    def order(self, name: str, other: str = "") -> Order:
        """Say whether a measure appeared before another, by default the accuracy it serves."""
        found = self.measure(name)
        return emergence_order(found, self.measure(other or found.accuracy_name))

    def until(self, step: int) -> "TrainingTrajectory":
        """Return the part of the run up to a step, held against the same final model.

        What is lost again later has not appeared for good; this tells when it first had.

        Raises:
            SiteError: There is no checkpoint up to there.
        """
        count = sum(one <= step for one in self.steps)
        if not count:
            raise SiteError(f"The first checkpoint is at step {self.steps[0]:,}: ask for that one")
        courses = tuple(
            replace(
                c, values=c.values[:count], bootstrap=c.bootstrap[:count], notes=c.notes[:count]
            )
            for c in self.measures
        )
        return replace(
            self,
            steps=self.steps[:count],
            measures=courses,
            circuit_faithfulness=self.circuit_faithfulness[:count],
        )

    def table(self) -> "pd.DataFrame":
        """Return a row for each measure and checkpoint."""
        import pandas as pd

        rows = []
        for found in self.measures:
            when = self.emergence(found.name)
            same = {
                "measure": found.name, "final": found.final.value, "chance": found.chance,
                "null": max(found.nulls, default=math.nan),
                "random": found.random_interval[1] if found.random_interval else math.nan,
                "seeds": max((e.value for e in (found.other_seeds or {}).values()), default=math.nan),
                "appears": math.nan if when.step is None else when.step,
                "appears_low": when.low, "appears_high": when.high,
                "than_accuracy": "" if found.name == found.accuracy_name else self.order(found.name),
                "than_logit_diff": self.order(found.name, LOGIT_DIFF) if self._is_logit_measure(found) else "",
            }  # fmt: skip
            for at, (step, value) in enumerate(zip(self.steps, found.values, strict=True)):
                note = found.notes[at] if found.notes else ""
                rows.append({"step": step, **asdict(value), "site": note, **same})
        return pd.DataFrame(rows)

    def summary(self) -> tuple[str, ...]:
        """Say when each measure appeared, a plain sentence each."""
        lines = [
            f"{self.final} on {self.pattern!r}: {len(self.steps)} checkpoints, steps "
            f"{self.steps[0]:,} to {self.steps[-1]:,}; a measure has appeared where it surely "
            "stays above half the way from chance to its final value."
        ]
        for found in self.measures:
            lines.append(f"{found.name}: {self._emergence_text(found)}")
        return tuple(lines)

    def _emergence_text(self, measure: MeasureOverTraining) -> str:
        if not measure.is_present:
            return f"the final model hardly has it ({measure.final}, chance {measure.chance:.2f})."
        when = self.emergence(measure.name)
        ends = " to ".join("never" if math.isinf(n) else f"{n:,.0f}" for n in (when.low, when.high))
        text = f"{when} [{ends}]"
        if measure.name != measure.accuracy_name:
            word = _ORDER_TEXT[self.order(measure.name)]
            text += f", {word} {measure.accuracy_name!r}"
        if self._is_logit_measure(measure):
            text += f" ({_ORDER_TEXT[self.order(measure.name, LOGIT_DIFF)]} {LOGIT_DIFF!r})"
        return f"{text}; {measure.final} in the end, chance {measure.chance:.2f}."

    def _is_logit_measure(self, measure: MeasureOverTraining) -> bool:
        """Whether a course of logits stands beside the lead, in the same unit."""
        same = measure.accuracy_name == self.measure(LOGIT_DIFF).accuracy_name
        return same and (measure.name == CIRCUIT_ONLY or measure.name.endswith(LOGIT_SHIFT))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the draws as plain JSON values."""
        rows = self.table().replace({np.inf: None, np.nan: None}).to_dict("records")
        return {
            "final": self.final,
            "pattern": self.pattern,
            "summary": list(self.summary()),
            "sites": dict(self.sites),
            "edges": self.edges,
            "faithful": [None if f is None else asdict(f) for f in self.circuit_faithfulness],
            "protocol": dict(self.protocol),
            "rows": rows,
        }

    def __repr__(self) -> str:
        return f"<Trajectory of {self.final}: {len(self.steps)} checkpoints>"


def training_trajectory(  # noqa: PLR0913 (whom, what, beside what)
    checkpoints: Sequence[Checkpoint],
    final: str | Path | Model,
    pattern: str | Pattern = "take-away",
    *,
    other_seeds: Sequence[str | Path | Model] = (),
    nulls: int = 3,
    bases: int = 80,
    prompts: int = 12,
    keep: float = 0.9,
    seed: int = 0,
) -> TrainingTrajectory:
    """Hold every checkpoint of a training run against where it ended.

    Sites and circuit are found once, in the final model: sites by half of the nouns, the circuit
    by half of the pairs. All checkpoints are judged on the other halves. What is "taken up"
    needs a right answer and so cannot come before the accuracy by much; pulls can, and the lead is
    what they are fairly held against, as both are logits.

    Args:
        checkpoints: Steps with models of one shape and tokenizer, in the order of training.
        final: Where it ended.
        pattern: A pattern with an opposite; one ending in "-told" is read by completion, for
            models that never saw a question.
        seeds: Models of the same shape from other seeds: what the final places are worth there.
        nulls: Untrained nets of the same shape.
        bases: Crossings to find sites by, and as many to judge by; twice as many questions.
        prompts: Pairs for each contrast to find edges by, and as many to judge the circuit by.
        keep: The faithfulness of the final circuit on the pairs that it is found by.
        seed: Of prompts, draws and nets.

    Raises:
        ProbeError: No checkpoints, or steps that do not ascend.
        GateError: The final model does not have the behavior.
        ModelError: A checkpoint has another shape than the final model.
    """
    steps = tuple(step for step, _ in checkpoints)
    require_ascending(steps)
    last = load(final)
    # Before the ruler is made, which takes minutes; each is looked at again when it is measured.
    for one in (checkpoints[0][1], *other_seeds):
        require_same_shape(load(one), last.shape)
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    by = prepare_final_reference(last, asked, bases=bases, prompts=prompts, keep=keep, seed=seed)
    end = measure_checkpoint(last, by)
    readings = [measure_checkpoint(load(model), by) for _, model in checkpoints]
    strange = [measure_checkpoint(random_init(last, seed=seed + n), by) for n in range(nulls)]
    twins = {one.name: measure_checkpoint(one, by) for one in map(load, other_seeds)}
    log = CheckpointLog(readings, end, strange, twins, seed)
    return TrainingTrajectory(
        final=last.name,
        pattern=asked.name,
        steps=steps,
        measures=measures_over_training(log, by, last),
        circuit_faithfulness=tuple(circuit_faithfulness(found, end, seed) for found in readings),
        sites={variable: str(cell) for variable, cell in by.sites.items()},
        edges=len(by.circuit),
        protocol=(
            ("final", last.origin),
            ("questions", str(len(by.questions))),
            ("crossings", f"{bases} to find sites by, {bases} of other nouns to judge by"),
            ("pairs", f"{len(by.tasks[0])} to find edges by, {len(by.tasks[1])} to judge by"),
            ("circuit", f"{len(by.circuit)} of {len(by.circuit.graph)} edges, keeps {keep:g}"),
            ("nulls", f"{nulls} untrained nets; {RANDOM_EDGE_SETS} sets of edges drawn by lot"),
            ("draws", f"{DRAWS} of prompts"),
        ),
    )
