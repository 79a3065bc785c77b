"""Studies by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from probes.errors import EngineError, ModelError
from probes.experiments.inheritance.run import inheritance_rows
from probes.experiments.real_models.run import real_model_rows
from probes.experiments.studies.grids import grid_rows
from probes.experiments.studies.single_models import adaptation_rows, fewest_rows, name_study_rows
from probes.experiments.studies.training_runs import training_dynamics_rows
from probes.files import TableRow
from probes.scale.engine import HERE, Engine, InProcess

STUDIES: Mapping[str, Callable[..., Iterator[TableRow]]] = {
    "labels": partial(grid_rows, "labels"),
    "names": name_study_rows,
    "adapting": adaptation_rows,
    "tickets": partial(grid_rows, "tickets"),
    "growing": partial(grid_rows, "growing"),
    "along": training_dynamics_rows,
    "fewest": fewest_rows,
    "inheritance": inheritance_rows,
    "real-models": real_model_rows,
}
"""Functions that measure the rows of each study."""

IN_ONE_PROCESS = ("real-models",)
"""Studies without units: relatives share runs that are too large to make in each worker."""


def run_study(
    name: str,
    *,
    folder: Path,
    work: Path,
    known: Sequence[Mapping[str, float | str]] = (),
    engine: Engine = HERE,
) -> Iterator[TableRow]:
    """Rows of a study; missing models are trained.

    Args:
        name: One of `STUDIES`.
        folder: Folder of the shipped models.
        work: Folder of the study's models.
        known: Rows that are not measured again.
        engine: Where its units run. Workers read and write the two
            folders at the same place.

    Raises:
        ModelError: The study is unknown.
        EngineError: The study has no units.
        ProbeError: Some rows could not be measured, after all others.
    """
    if name not in STUDIES:
        raise ModelError(f"Unknown study {name!r}: use one of {', '.join(STUDIES)}")
    paths = {"folder": folder.resolve(), "work": work.resolve()}
    if name in IN_ONE_PROCESS:
        if not isinstance(engine, InProcess):
            raise EngineError(f"The study {name!r} runs in one process: use --engine inprocess")
        return STUDIES[name](**paths, known=known)
    return STUDIES[name](**paths, known=known, engine=engine)
