"""The studies by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from probes.errors import ModelError
from probes.experiments.scorecard import TableRow
from probes.experiments.studies.grids import grid_rows
from probes.experiments.studies.single_models import adaptation_rows, fewest_rows, name_study_rows
from probes.experiments.studies.training_runs import training_dynamics_rows

STUDIES: Mapping[str, tuple[str, Callable[..., Iterator[TableRow]]]] = {
    "labels": (
        "soft or hard labels x the teacher's layers or fresh weights, over seeds",
        partial(grid_rows, "labels"),
    ),
    "names": ("'My name is': accuracy against examples seen, label by label", name_study_rows),
    "adapting": ("steps of training until a new noun works", adaptation_rows),
    "tickets": (
        "winning tickets of `full` and of a net from fresh weights, beside what they must beat",
        partial(grid_rows, "tickets"),
    ),
    "growing": (
        "`distilled`, grown back in three ways, beside what only more training does",
        partial(grid_rows, "growing"),
    ),
    "along": ("what appears when, along training", training_dynamics_rows),
    "fewest": ("fewest directions, edges, and weights of a student", fewest_rows),
}
"""What each study turns, and what makes its rows."""


def run_study(
    name: str, *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """Make the models of a study that are not there yet, and measure each.

    Args:
        name: Which of STUDIES.
        folder: Where the shipped family is.
        work: Where the models of the study are, or go.
        known: Rows that were measured before; they are given back as they are.

    Raises:
        ModelError: There is no such study.
    """
    if name not in STUDIES:
        raise ModelError(f"Unknown study {name!r}: use one of {', '.join(STUDIES)}")
    return STUDIES[name][1](folder=folder, work=work, known=known)
