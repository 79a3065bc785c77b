"""One measure after another along training, made of what the checkpoints did prompt by prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from probes.circuits.faithfulness import lots
from probes.circuits.reference_runs import stage
from probes.experiments.training_dynamics.checkpoints import Reading, Ruler, shared_edges
from probes.experiments.training_dynamics.emergence import Course
from probes.models.model import Model
from probes.prompts.interchange_pairs import OBJECT
from probes.stats.intervals import LEVEL, Estimate, draws, interval, share

DRAWS, LOTS = 1000, 200
CAPPED, PULL, OWN = "taken up", "pull", "at its own site"
LEAD, ALONE, EDGES = "lead", "circuit alone", "edges shared"

_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_HALF, _PART = 0.5, 0.1


@dataclass(frozen=True, eq=False)
class Log:
    """All readings, from which one course after another is made."""

    readings: Sequence[Reading]
    end: Reading
    strange: Sequence[Reading]
    twins: Mapping[str, Reading]
    seed: int

    def course(
        self,
        name: str,
        beside: str,
        of: Callable[[Reading], Float[np.ndarray, " prompt"]],
        unit: Float[np.ndarray, " prompt"] | None = None,
    ) -> Course:
        """Make a course of means over prompts, over the mean of `unit` in the same draw if given.

        Without a unit, prompts are 0 or 1 and the mean is a share.
        """
        every = [of(one) for one in (*self.readings, self.end, *self.strange)]
        weights = draws(len(every[0]), DRAWS, seed=self.seed) / len(every[0])
        below = 1.0 if unit is None else float(unit.mean())
        drawn_below = 1.0 if unit is None else weights @ unit
        drawn = [weights @ one / drawn_below for one in every]
        found = [float(one.mean()) / below for one in every]
        # At 0 and at 1 the draws of a share have no width; Wilson's interval has.
        values = (
            [share(one > _HALF) for one in every]
            if unit is None
            else [interval(value, draw) for value, draw in zip(found, drawn, strict=True)]
        )
        count = len(self.readings)
        return Course(
            name=name,
            beside=beside,
            values=tuple(values[:count]),
            final=values[count],
            drawn=np.stack(drawn[:count]),
            last=drawn[count],
            nulls=tuple(found[count + 1 :]),
            seeds={
                model: interval(float(of(one).mean()) / below, weights @ of(one) / drawn_below)
                for model, one in self.twins.items()
            },
        )


def courses(log: Log, by: Ruler, last: Model) -> tuple[Course, ...]:
    """Make all courses; see `Trajectory` for what they are."""
    first, end, found = by.answers[0], log.end, []
    for answer in by.answers:
        name = _right(answer)
        found.append(log.course(name, name, lambda one, a=answer: one.right[a]))
    found.append(log.course(LEAD, _right(first), lambda one: one.lead, end.lead))
    found.append(log.course(ALONE, _right(first), lambda one: one.alone, end.lead))
    for variable in by.sites:
        served = _right(by.answers[-1] if variable == OBJECT else first)
        taken = log.course(f"{variable} {CAPPED}", served, lambda one, v=variable: one.taken[v])
        found.append(taken)
        if not taken.there:  # A share of nearly nothing would be 1 in the end all the same.
            continue
        pull = log.course(
            f"{variable} {PULL}", served, lambda one, v=variable: one.pull[v], end.pull[variable]
        )
        own = log.course(f"{variable} {OWN}", served, lambda one, v=variable: one.own[v])
        sites = tuple(one.own_sites[variable] for one in log.readings)
        found += [pull, replace(own, notes=sites)]
    return (*found, _overlap(log, by, last))


def _right(answer: str) -> str:
    return f"{answer} right"


def _overlap(log: Log, by: Ruler, last: Model) -> Course:
    """Compare the strongest edges, as many as the circuit has, beside edges drawn by lot."""
    end, count = log.end.edges, len(by.circuit)
    weights = draws(len(end), DRAWS // 5, seed=log.seed)
    whole = np.ones((1, len(end)))
    top = end.sum(0).abs().topk(count).indices
    random = lots(stage(last, by.tasks[0][:1]), count, "paths", LOTS, seed=log.seed)
    both = random[:, top].sum(1).double()
    chance = torch.quantile(both / (2 * count - both), torch.tensor(_ENDS).double())

    def of(one: Reading) -> tuple[Estimate, Float[np.ndarray, " draw"]]:
        drawn = shared_edges(one.edges, end, count, weights)
        return interval(float(shared_edges(one.edges, end, count, whole)[0]), drawn), drawn

    found = [of(one) for one in log.readings]
    final = of(log.end)
    return Course(
        name=EDGES,
        beside=_right(by.answers[0]),
        values=tuple(value for value, _ in found),
        final=final[0],
        drawn=np.stack([drawn for _, drawn in found]),
        last=final[1],
        nulls=tuple(of(one)[0].value for one in log.strange),
        lot=(float(chance[0]), float(chance[1])),
        seeds={model: of(one)[0] for model, one in log.twins.items()},
    )


def faithful(found: Reading, end: Reading, seed: int) -> Estimate | None:
    """Return the circuit's share of a checkpoint's own lead; None where that is next to nothing."""
    weights = draws(len(found.lead), DRAWS, seed=seed)
    whole = weights @ found.lead
    if not np.quantile(whole, _ENDS[0]) > _PART * len(found.lead) * end.lead.mean():
        return None
    return interval(float(found.alone.mean() / found.lead.mean()), (weights @ found.alone) / whole)
