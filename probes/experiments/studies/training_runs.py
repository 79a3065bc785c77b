"""Along training: what appears when, in `base` and `full` and in a student of alternate layers."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from probes.compression.derived_model import DerivedModel, dense_storage
from probes.compression.distillation.plan import last_checkpoint
from probes.experiments.family.make import initialize_member
from probes.experiments.family.recipes import recipe
from probes.experiments.scorecard import TableRow
from probes.experiments.studies.grids import cached_texts, ensure_member
from probes.experiments.training_dynamics.trajectory import Checkpoint, training_trajectory
from probes.models.provenance import Provenance

_EARLY = (0, 50, 100, 200, 400, 600, 800)


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One course of training that is looked at.

    Attributes:
        name: What it is called in the table.
        stages: Members that were trained one after the other, each with the steps looked at.
        final: The member whose sites and circuit are looked for.
        seed: The same from another seed: what the final places are worth there.
        pattern: What is asked.
    """

    name: str
    stages: tuple[tuple[str, tuple[int, ...]], ...]
    final: str
    other_seed: str
    pattern: str = "take-away"


_BASE = ("base", (*_EARLY, 1200, 1600, 2000, 2500, 3000, 4000))

RUNS = (
    TrainingRun(
        "student, alternate layers; questions",
        (("soft-layers-71", (0, 25, 50, 100, 150, 200, 300, 450, 600, 1000, 1500)),),
        "soft-layers-71",
        "soft-layers-72",
    ),
    TrainingRun("base; statements", (_BASE,), "full", "full-b", "take-away-told"),
    TrainingRun(
        "base, then full; statements",
        (_BASE, ("full", (50, 100, 200, 400, 800, 1500, 3000))),
        "full",
        "full-b",
        "take-away-told",
    ),
    TrainingRun(
        "full; questions",
        (("full", (0, 50, 100, 200, 400, 800, 1500, 3000)),),
        "full",
        "full-b",
    ),
)
"""The student's first: it takes minutes, and the others hours."""


def training_dynamics_rows(
    *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """Train members once more, looking on, and say what appeared when; arguments as in `study`."""
    done = {row["run"] for row in known}
    texts = cached_texts(work)
    for run in RUNS:
        if run.name in done:
            yield from (dict(row) for row in known if row["run"] == run.name)
            continue
        final, seed = (
            ensure_member(recipe(name), folder, work, texts) for name in (run.final, run.other_seed)
        )
        checkpoints: list[Checkpoint] = []
        before = 0
        for name, steps in run.stages:
            at = checkpoint_folders(name, steps, folder=folder, work=work)
            checkpoints += [(before + step, place) for step, place in zip(steps, at, strict=True)]
            before += steps[-1]
        found = training_trajectory(checkpoints, final, run.pattern, other_seeds=(seed,))
        same = {"run": run.name, "pattern": run.pattern, "final_model": run.final}
        for row in found.table().to_dict("records"):
            yield {**same, **{str(name): value for name, value in row.items()}}


def checkpoint_folders(name: str, steps: Sequence[int], *, folder: Path, work: Path) -> list[Path]:
    """Return where a member is as it was after some steps; it is trained anew for those not there.

    Its training draws the same texts in the same order each time.
    """
    home = work / f"{name}-along"
    places = {step: home / str(step) for step in steps}
    missing = {s for s, place in places.items() if not (place / "config.json").is_file()}
    if not missing:
        return list(places.values())
    checkpoints = home / "checkpoints"
    last = last_checkpoint(checkpoints)
    if last and int(last.rpartition("-")[2]) > min(missing):
        shutil.rmtree(checkpoints)  # Training would go on behind what is looked for.
    begun = initialize_member(recipe(name), folder=folder, work=work)

    def keep(step: int, model: nn.Module) -> None:
        if step in missing:
            whole: Any = model
            made = Provenance("trained", name, dense_storage(whole, bits=32), {"until": step})
            DerivedModel(f"{name}-{step}", whole, begun.tokenizer, made).save(places[step])

    begun.train(checkpoints, callback=keep)
    return list(places.values())
