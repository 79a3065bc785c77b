"""Verdicts on models whose mechanism is known, and the files in which benchmarks keep them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from probes.comparison.verdict import UNDECIDED, SubjectKind
from probes.files import read_rows, write_rows


@dataclass(frozen=True)
class JudgedVerdict:
    """A verdict, and whether it contradicts what is known of the relative.

    Attributes:
        relative: Name of the relative.
        kind: "path", "variable" or "head".
        subject: Path, variable or head.
        label: The verdict.
        wrong: Whether it is wrong; "cannot tell" never is.
        seed: Seed of the prompts.
        known: Whether the right verdict is known.
    """

    relative: str
    kind: SubjectKind
    subject: str
    label: str
    wrong: bool
    seed: int = 0
    known: bool = True

    @property
    def decided(self) -> bool:
        """Whether the label claims something about a mechanism."""
        return self.label not in UNDECIDED


def kept_verdicts(
    path: Path, measure: Callable[[], Iterable[JudgedVerdict]]
) -> Sequence[JudgedVerdict]:
    """Verdicts of an earlier run, or measured and kept."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows([asdict(one) for one in measure()], path)
    return [
        JudgedVerdict(
            str(row["relative"]),
            row["kind"],  # pyright: ignore[reportArgumentType]
            str(row["subject"]),
            str(row["label"]),
            row["wrong"] == "True",
            int(row["seed"]),
            row["known"] == "True",
        )
        for row in read_rows(path)
    ]
