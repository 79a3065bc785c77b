"""Specificity of a circuit: what its ablation leaves of its own task and of another one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from probes.stats.intervals import Estimate

MIN_EXTRA_DAMAGE = 0.01
"""Damage beyond that of random paths that counts as more, a fraction of the logit difference."""

DamageLabel = Literal["more", "no more", "cannot tell"]

# Earlier versions had one row of random paths for each task, and no intervals.
_RANDOM = "random paths"


@dataclass(frozen=True, slots=True)
class Specificity:
    """What remains of a task when the circuit of this or another task is ablated.

    Attributes:
        cut_circuit: Whose circuit is ablated. Files of earlier versions also have rows of "random
            paths", the median of 20, and lack the fields below `remaining`.
        task: Whose logit difference is measured.
        edges: Number of ablated edges: those of the circuit that exist in the task's prompts.
        remaining: f of all other edges. A specific circuit leaves near 0 of its own task and near
            1 of others. NaN where f is undefined.
        interval: 95 % interval of `remaining` over prompts.
        random: f of all other edges where as many edges of random paths are ablated, for each
            random circuit.
        extra_damage: Mean of `random` minus `remaining`, with its 95 % interval over prompts and
            random circuits.
    """

    cut_circuit: str
    task: str
    edges: int
    remaining: float
    interval: tuple[float, float] | None = None
    random: tuple[float, ...] = ()
    extra_damage: Estimate | None = None

    @property
    def damage(self) -> DamageLabel:
        """Whether the circuit does more damage than random paths of as many edges.

        "more" where the interval of the extra damage is above 0.01, "no more" where it is below.
        "cannot tell" in all other cases, also where no edge was ablated.
        """
        if self.extra_damage is None or self.edges == 0:
            return "cannot tell"
        if self.extra_damage.low > MIN_EXTRA_DAMAGE:
            return "more"
        return "no more" if self.extra_damage.high < MIN_EXTRA_DAMAGE else "cannot tell"


def specificity_lines(tests: Sequence[Specificity], skipped: str) -> tuple[str, ...]:
    """What ablation does to both tasks, or why this was not tested, for a summary."""
    if not tests:
        reason = f": {skipped.removesuffix('.')}" if skipped else ""
        return (f"Specificity was not tested{reason}.",)
    found = {(test.cut_circuit, test.task): test for test in tests}
    own, other = dict.fromkeys(test.task for test in tests)
    whole, cross, back = found[own, own], found[own, other], found[other, own]
    lacking = ""
    if cross.edges != whole.edges:
        lacking = f" ({cross.edges} of its {whole.edges} edges exist there)"
    if cross.random:
        left, n = _fraction(np.mean(cross.random)), len(cross.random)
        lowest, highest = _fraction(min(cross.random)), _fraction(max(cross.random))
        control = f"{left} of {other!r} (mean of {n}; {lowest} to {highest})"
    else:
        control = f"{_fraction(found[_RANDOM, other].remaining)} of {other!r}"
    count = "as many" if back.edges == whole.edges else back.edges
    return (
        f"Ablating the circuit leaves {_fraction(whole.remaining)} of {own!r} and "
        f"{_fraction(cross.remaining)} of {other!r}{lacking}; ablating as many edges of random "
        f"paths leaves {control}. {_damage_sentence(cross)} Ablating {count} edges of {other!r} "
        f"leaves {_fraction(back.remaining)} of {own!r}.",
    )


def _damage_sentence(cross: Specificity) -> str:
    damage = f"damage to {cross.task!r} than random paths do"
    if cross.extra_damage is None:
        return f"The file has no interval to tell whether the circuit does more {damage}."
    extra = f"{cross.extra_damage.beside(MIN_EXTRA_DAMAGE)} more, threshold {MIN_EXTRA_DAMAGE}"
    if cross.damage == "cannot tell":
        return f"This cannot tell whether the circuit does more {damage} ({extra})."
    return f"The circuit does {cross.damage} {damage} ({extra})."


def _fraction(value: float | np.floating) -> str:
    if np.isnan(value):
        return "an undefined fraction"
    return f"{round(float(value), 2) + 0.0:.2f}"  # Adding 0 turns -0 into 0.
