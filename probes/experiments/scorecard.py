"""Where relatives stand: what each can do, how far it is from its parent, and what came down.

One row a model, cheap enough for the twenty students of a study: accuracy on each held-out axis,
divergence from the parent, kinship by interchange, where it holds the operation, and how far
the parent's own circuit serves it.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import log, nan
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from probes.circuits.attribution import attribute
from probes.circuits.circuit import Circuit
from probes.circuits.faithfulness import faithfulness
from probes.circuits.reference_runs import stage
from probes.circuits.task import Task
from probes.circuits.trace import cut, tasks
from probes.comparison.variables.held_out_folds import Trials, distinct, draw_trials
from probes.comparison.variables.stitching import Host, held_at, read_donor, read_host
from probes.comparison.variables.transfer import handed
from probes.errors import ModelError
from probes.experiments.family.accuracy import BOTH, Asked, every_axis, measure
from probes.interventions.hotspots import alone
from probes.interventions.interchange import cross, exchange
from probes.models.model import Model, load
from probes.models.site import join, site_name
from probes.prompts.batch import encode
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_pairs import OPERATION
from probes.prompts.pair_batch import fits
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.stats.intervals import Estimate, draws, interval, mean, share

_DRAWS = 2000
Row = dict[str, float | str]


@dataclass(frozen=True, eq=False)
class Yardstick:
    """A parent and everything that relatives are held against, made once.

    Attributes:
        parent: The model.
        trials: What states are carried over by.
        host: The parent as a recipient.
        questions: What divergence is measured on.
        asked: What accuracy is measured on, for every axis that can be held out.
        circuit: The parent's circuit, for relatives of its shape.
        judging: The prompts that the circuit is judged on; it was found by others.
        seed: Of everything drawn.
    """

    parent: Model
    trials: Trials
    host: Host
    questions: tuple[Question, ...]
    asked: tuple[Asked, ...]
    circuit: Circuit
    judging: Task
    seed: int

    @cached_property
    def said(self) -> Float[torch.Tensor, "prompt position vocab"]:
        """What the parent says at every place of the questions, as log-probabilities."""
        return _said(self.parent, self.questions)


def yardstick(  # noqa: PLR0913 (how much of each thing is drawn)
    parent: str | Path | Model,
    pattern: str | Pattern = "take-away",
    *,
    bases: int = 200,
    prompts: int = 400,
    per_cell: int = 2,
    seed: int = 0,
) -> Yardstick:
    """Run a parent once on everything that its relatives will be held against.

    Args:
        parent: The model.
        pattern: What states are carried over on, and what the circuit answers.
        bases: Questions whose states are carried over, each way.
        prompts: Questions that the maps between the models are fitted on and tested with.
        per_cell: Questions that accuracy is measured on, for each pair of numbers.
        seed: Of everything drawn.
    """
    model = load(parent)
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    trials = draw_trials(
        asked, tokenizers=distinct([model.tokenizer]), bases=bases, prompts=prompts, seed=seed
    )
    finding, judging = tasks(model, asked, "number", (), prompts=32, seed=seed)
    graph = attribute(model, finding, method="eap-ig")
    circuit = cut(stage(model, finding), graph, 0.9)
    questions = tuple(asked.questions(128, seed=seed + 3, keep=fits(model.tokenizer)))
    cells = tuple(every_axis(model.tokenizer, per_cell=per_cell, seed=seed))
    host = read_host(model, trials, seed=seed)
    return Yardstick(model, trials, host, questions, cells, circuit, judging, seed)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one model stands beside a parent.

    Attributes:
        model: Its name.
        seen, cells, nouns, combinations, jointly: Share of numbers right on questions as in
            training, and on each axis held out of it, both operations together.
        divergence: KL(parent || model), in bits, the mean over the tokens of questions with
            their answers.
        operation, x, y, thing: Share of the parent's answers that turn as foretold when the
            model's states are put into it, through a map that saw none of the words.
        kinship: Their mean.
        site: Where the model itself holds the operation.
        held: Share of its answers that turn there, by a state from other words.
        circuit: Faithfulness of the parent's circuit run alone in it; NaN for another shape.
    """

    model: str
    seen: Estimate
    cells: Estimate
    nouns: Estimate
    combinations: Estimate
    jointly: Estimate
    divergence: Estimate
    operation: Estimate
    x: Estimate
    y: Estimate
    thing: Estimate
    kinship: Estimate
    site: str
    held: Estimate
    circuit: Estimate

    def row(self) -> Row:
        """Return it as plain numbers, each with the ends of its interval."""
        found: Row = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Estimate):
                found |= {
                    part.name: value.value,
                    f"{part.name}_low": value.low,
                    f"{part.name}_high": value.high,
                }
            else:
                found[part.name] = value
        return found


def standing(yard: Yardstick, relative: str | Path | Model) -> Standing:
    """Measure one relative.

    Args:
        yard: The parent, as `yardstick` made it.
        relative: A model that reads with the parent's tokenizer.

    Raises:
        ModelError: It reads with another tokenizer.
    """
    model = load(relative)
    if len(distinct([yard.parent.tokenizer, model.tokenizer])) > 1:
        raise ModelError(
            f"{model.name} and {yard.parent.name} read with different tokenizers: their tokens "
            "cannot be held against each other. Compare them with `compare`."
        )
    accuracy = _accuracy(yard, model)
    kin = _kin(yard, model)
    site, held = _held(yard, model)
    return Standing(
        model=model.name,
        divergence=_divergence(yard, model),
        **accuracy,
        **{name: share(hits) for name, hits in kin.items()},
        kinship=_mean_share(kin, seed=yard.seed),
        site=site,
        held=held,
        circuit=_served(yard, model),
    )


def _accuracy(yard: Yardstick, model: Model) -> dict[str, Estimate]:
    found = {}
    for score in measure(model, yard.asked, seed=yard.seed):
        # Nouns are held out of sentences that take away, and of no others.
        both = score.pattern == BOTH or score.axis == "nouns"
        if score.answer == "number" and both:
            found[score.axis] = score.accuracy
    return found


def _said(
    model: Model, questions: Sequence[Question]
) -> Float[torch.Tensor, "prompt position vocab"]:
    batch = encode(model.tokenizer, list(questions), limit=model.shape.context)
    logits = model.logits(batch.ids.to(model.device), batch.mask.to(model.device))
    return logits.float().log_softmax(-1).cpu()


def _divergence(yard: Yardstick, model: Model) -> Estimate:
    mask = encode(model.tokenizer, list(yard.questions), limit=model.shape.context).mask
    ours, theirs = yard.said, _said(model, yard.questions)
    each = (ours.exp() * (ours - theirs)).sum(-1) / log(2)
    by_text = (each * mask).sum(-1) / mask.sum(-1)
    return mean(by_text.double().numpy(), seed=yard.seed)


def _kin(yard: Yardstick, model: Model) -> Mapping[str, np.ndarray]:
    donor = read_donor(model, yard.trials)
    (hits,) = handed(yard.host, [donor], yard.trials, yard.trials.variables).values()
    return hits


def _mean_share(hits: Mapping[str, np.ndarray], *, seed: int) -> Estimate:
    drawn = [
        draws(len(one), _DRAWS, seed=seed + k) @ one.astype(float) / len(one)
        for k, one in enumerate(hits.values())
    ]
    value = float(np.mean([one.mean() for one in hits.values()]))
    return interval(value, np.mean(drawn, axis=0))


def _held(yard: Yardstick, model: Model) -> tuple[str, Estimate]:
    cell = held_at(model, yard.trials, seed=yard.seed)[OPERATION]
    crossed = cross(model, yard.trials.crossings, roles=join(cell))
    found = alone(exchange(crossed, [cell]), OPERATION)[0]
    return site_name(cell), share(found)


def _served(yard: Yardstick, model: Model) -> Estimate:
    ours, theirs = yard.parent.shape, model.shape
    if (ours.layers, ours.heads) != (theirs.layers, theirs.heads):
        return Estimate(nan, nan, nan)
    return faithfulness(model, yard.judging, [yard.circuit], seed=yard.seed)[0].value


def write_rows(rows: Sequence[Mapping[str, float | str]], path: Path) -> None:
    """Write rows as a table with all of their columns: counts whole, all else in four digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({name: _written(value) for name, value in row.items()})


def _written(value: float | str) -> float | str:
    if not isinstance(value, float):
        return value
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
