"""Training trajectories: when a model gets a behavior, and when the mechanism of its final state.

checkpoints → interchange at the final model's sites, its circuit alone → measures → emergence steps
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.errors import SiteError
from probes.experiments.training_dynamics.checkpoints import (
    TrajectorySettings,
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
from probes.models.model import ModelSpec, load, random_init
from probes.prompts.catalog import pattern as load_pattern
from probes.prompts.pattern import Pattern
from probes.result import Result
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd


Checkpoint = tuple[int, ModelSpec]

_ORDER_TEXT: Mapping[Order, str] = {
    "before": "before",
    "after": "after",
    "with": "at the same checkpoint as",
    "cannot tell": "not distinguishable from",
}


@dataclass(frozen=True, eq=False, repr=False)
class TrainingTrajectory(Result):
    """Measures over one training run, relative to its final model.

    Attributes:
        final: Name of the final model.
        pattern: Name of the pattern.
        steps: Steps of the checkpoints.
        measures: Accuracy of each answer; the logit difference of the first answer, and that of
            the final circuit alone, as fractions of the final model's logit difference; for each
            variable the interchange accuracy at the final site and at the checkpoint's own best
            site, and the logit shift at the final site as a fraction of the final model's; and the
            overlap of the strongest edges with those of the final model. A variable with a low
            interchange accuracy in the final model has no logit shift.
        circuit_faithfulness: Logit difference of the circuit over the checkpoint's own; None where
            that is not above a tenth of the final one.
        sites: Site of each variable in the final model.
        edges: Number of edges of the final circuit.
        protocol: Settings, as names and texts.
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
        """One measure, such as "number accuracy" or "operation interchange accuracy"."""
        for measure in self.measures:
            if measure.name == name:
                return measure
        known = ", ".join(measure.name for measure in self.measures)
        raise SiteError(f"There is no measure {name!r}: use one of {known}")

    def emergence(self, name: str) -> EmergenceStep:
        """Step at which a measure emerges."""
        return emergence_step(self.steps, self.measure(name))

    def order(self, name: str, other: str = "") -> Order:
        """Whether a measure emerges before another, by default before its accuracy."""
        measure = self.measure(name)
        return emergence_order(measure, self.measure(other or measure.accuracy_name))

    def until(self, step: int) -> "TrainingTrajectory":
        """The run up to a step, relative to the same final model.

        A measure that falls again later has not emerged; this gives its first emergence.

        Raises:
            SiteError: The first checkpoint is later.
        """
        count = sum(one <= step for one in self.steps)
        if not count:
            raise SiteError(f"The first checkpoint is at step {self.steps[0]:,}, after {step:,}")
        measures = tuple(
            replace(
                m, values=m.values[:count], bootstrap=m.bootstrap[:count], notes=m.notes[:count]
            )
            for m in self.measures
        )
        return replace(
            self,
            steps=self.steps[:count],
            measures=measures,
            circuit_faithfulness=self.circuit_faithfulness[:count],
        )

    def table(self) -> "pd.DataFrame":
        """A row for each measure and checkpoint."""
        import pandas as pd

        rows = []
        for m in self.measures:
            when = self.emergence(m.name)
            common = {
                "measure": m.name, "final": m.final.value, "chance": m.chance,
                "null": max(m.nulls, default=math.nan),
                "random": m.random_interval[1] if m.random_interval else math.nan,
                "seeds": max((e.value for e in (m.other_seeds or {}).values()), default=math.nan),
                "appears": math.nan if when.step is None else when.step,
                "appears_low": when.low, "appears_high": when.high,
                "than_accuracy": "" if m.name == m.accuracy_name else self.order(m.name),
                "than_logit_diff": self.order(m.name, LOGIT_DIFF) if self._is_logit(m) else "",
            }  # fmt: skip
            for at, (step, value) in enumerate(zip(self.steps, m.values, strict=True)):
                note = m.notes[at] if m.notes else ""
                rows.append({"step": step, **asdict(value), "site": note, **common})
        return pd.DataFrame(rows)

    def summary(self) -> tuple[str, ...]:
        """Emergence of each measure, a sentence each."""
        head = (
            f"{self.final} on {self.pattern!r}: {len(self.steps)} checkpoints, steps "
            f"{self.steps[0]:,} to {self.steps[-1]:,}; a measure emerges where its 95 % interval "
            "stays above half the way from chance to its final value."
        )
        return (head, *(f"{m.name}: {self._emergence_text(m)}" for m in self.measures))

    def _emergence_text(self, measure: MeasureOverTraining) -> str:
        if not measure.is_present:
            return f"absent in the final model ({measure.final}, chance {measure.chance:.2f})."
        when = self.emergence(measure.name)
        text = f"{when} [{when.interval}]"
        if measure.name != measure.accuracy_name:
            text += f", {self._order_text(measure.name, measure.accuracy_name)}"
        if self._is_logit(measure):
            text += f" ({self._order_text(measure.name, LOGIT_DIFF)})"
        return f"{text}; {measure.final} in the final model, chance {measure.chance:.2f}."

    def _order_text(self, name: str, other: str) -> str:
        if self.emergence(name).step is None and self.emergence(other).step is None:
            return f"nor does {other!r} emerge"
        return f"{_ORDER_TEXT[self.order(name, other)]} {other!r}"

    def _is_logit(self, measure: MeasureOverTraining) -> bool:
        """Whether a measure has the unit of the logit difference and belongs to its answer."""
        same = measure.accuracy_name == self.measure(LOGIT_DIFF).accuracy_name
        return same and (measure.name == CIRCUIT_ONLY or measure.name.endswith(LOGIT_SHIFT))

    def to_dict(self) -> dict[str, Any]:
        """All but the bootstrap samples, as plain JSON values."""
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
        return f"<TrainingTrajectory of {self.final}: {len(self.steps)} checkpoints>"


def training_trajectory(
    checkpoints: Sequence[Checkpoint],
    final: ModelSpec,
    pattern: str | Pattern = "take-away",
    settings: TrajectorySettings | None = None,
    *,
    other_seeds: Sequence[ModelSpec] = (),
) -> TrainingTrajectory:
    """Measures at every checkpoint of a training run, relative to its final model.

    Sites and circuit are found once, in the final model: sites with half of the nouns, the circuit
    with half of the pairs. All checkpoints are tested on the other halves. Interchange accuracy
    needs a correct answer, so it cannot come long before the accuracy. Logit shifts can, and are
    compared with the logit difference, which has the same unit.

    Args:
        checkpoints: Steps with models of one shape and tokenizer, in the order of training.
        final: The final model.
        pattern: Pattern with an opposite; a declarative one for models that never saw a question.
        settings: Size of the measurement.
        other_seeds: Other-seed models of the same shape, measured at the final model's sites.

    Raises:
        ProbeError: There are no checkpoints, or their steps do not ascend.
        GateError: The final model does not have the behavior.
        ModelError: A checkpoint has another shape than the final model.
    """
    settings, pattern = settings or TrajectorySettings(), load_pattern(pattern)
    steps = tuple(step for step, _ in checkpoints)
    require_ascending(steps)
    final_model = load(final)
    # Before the reference, which takes minutes; each is checked again when it is measured.
    for one in (checkpoints[0][1], *other_seeds):
        require_same_shape(load(one), final_model.shape)
    reference = prepare_final_reference(final_model, pattern, settings)
    seed, nulls, bases = settings.seed, settings.nulls, settings.bases
    log = CheckpointLog(
        final=measure_checkpoint(final_model, reference),
        checkpoints=[measure_checkpoint(load(model), reference) for _, model in checkpoints],
        nulls=[
            measure_checkpoint(random_init(final_model, seed=seed + n), reference)
            for n in range(nulls)
        ],
        other_seeds={
            model.name: measure_checkpoint(model, reference) for model in map(load, other_seeds)
        },
        seed=seed,
    )
    circuit, tasks = reference.circuit, reference.tasks
    return TrainingTrajectory(
        final=final_model.name,
        pattern=pattern.name,
        steps=steps,
        measures=measures_over_training(log, reference, final_model),
        circuit_faithfulness=tuple(
            circuit_faithfulness(one, log.final, seed) for one in log.checkpoints
        ),
        sites={variable: str(site) for variable, site in reference.sites.items()},
        edges=len(circuit),
        protocol=(
            ("final", final_model.origin),
            ("questions", str(len(reference.questions))),
            ("interchange pairs", f"{bases} to find sites, {bases} of other nouns to test"),
            ("pairs", f"{len(tasks[0])} to find edges, {len(tasks[1])} to test"),
            ("circuit", f"{len(circuit)} of {len(circuit.graph)} edges, keeps {settings.keep:g}"),
            ("nulls", f"{nulls} random-init models; {RANDOM_EDGE_SETS} random edge sets"),
            ("bootstrap", f"{DRAWS} samples of prompts"),
        ),
    )
