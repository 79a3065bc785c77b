"""The study of training dynamics: `base`, `full`, and a student of alternate layers."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from probes.compression.derived_model import DerivedModel, dense_storage
from probes.compression.distillation.plan import last_checkpoint
from probes.experiments.family.make import initialize_member, lock_folder
from probes.experiments.family.recipes import recipe
from probes.experiments.studies.grids import StudyFolders
from probes.experiments.studies.parts import Part, run_parts
from probes.experiments.training_dynamics.trajectory import Checkpoint, training_trajectory
from probes.files import TableRow
from probes.models.files.provenance import Provenance
from probes.scale.engine import HERE, Engine

_EARLY = (0, 50, 100, 200, 400, 600, 800)


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Training run of the study.

    Attributes:
        name: Name in the table.
        stages: Models that are trained one after the other, with the steps of their checkpoints.
        final: Final model.
        other_seed: Other-seed model of the final model.
        pattern: Pattern.
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
"""The student's run is first: it takes minutes, the others hours."""


def training_dynamics_rows(
    *,
    folder: Path,
    work: Path,
    known: Sequence[Mapping[str, float | str]] = (),
    engine: Engine = HERE,
) -> Iterator[TableRow]:
    """Train models again with checkpoints, and measure them, one run a unit; see `run_study`."""
    folders, parts = StudyFolders(folder, work), []
    for run in RUNS:
        rows = [dict(row) for row in known if row["run"] == run.name]
        measure = partial(_measure_run, folders, run)
        parts.append(Part(run.name, known=rows) if rows else Part(run.name, measure))
    return run_parts(parts, engine)


def _measure_run(folders: StudyFolders, run: TrainingRun) -> list[TableRow]:
    """Train the models of a run if they are missing, and measure its checkpoints."""
    final, other_seed = (folders.ensure(recipe(name)) for name in (run.final, run.other_seed))
    checkpoints: list[Checkpoint] = []
    before = 0
    for name, steps in run.stages:
        with lock_folder(folders.work / f"{name}-along"):  # Other runs have some of them, too.
            paths = checkpoint_folders(name, steps, folder=folders.folder, work=folders.work)
        checkpoints += [(before + step, path) for step, path in zip(steps, paths, strict=True)]
        before += steps[-1]
    result = training_trajectory(checkpoints, final, run.pattern, other_seeds=(other_seed,))
    common = {"run": run.name, "pattern": run.pattern, "final_model": run.final}
    rows = result.table().to_dict("records")
    return [{**common, **{str(name): value for name, value in row.items()}} for row in rows]


def checkpoint_folders(name: str, steps: Sequence[int], *, folder: Path, work: Path) -> list[Path]:
    """Folders of the checkpoints of a model; it is trained again if some are missing.

    Training is deterministic: it has the same texts in the same order.
    """
    home = work / f"{name}-along"
    paths = {step: home / str(step) for step in steps}
    missing = {step for step, path in paths.items() if not (path / "config.json").is_file()}
    if not missing:
        return list(paths.values())
    checkpoints = home / "checkpoints"
    last = last_checkpoint(checkpoints)
    if last and int(last.rpartition("-")[2]) > min(missing):
        shutil.rmtree(checkpoints)  # Training would resume after a missing step.
    initial = initialize_member(recipe(name), folder=folder, work=work)

    def save(step: int, model: nn.Module) -> None:
        if step in missing:
            hf_model: Any = model
            storage = dense_storage(hf_model, bits=16)
            provenance = Provenance("trained", name, storage, {"until": step})
            derived = DerivedModel(f"{name}-{step}", hf_model, initial.tokenizer, provenance)
            derived.save(paths[step])

    initial.train(checkpoints, callback=save)
    return list(paths.values())
