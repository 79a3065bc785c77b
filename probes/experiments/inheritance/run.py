"""The study of inheritance: students of two teachers that differ in their seed.

Design
- Teachers: `full` and `full-b`, one recipe with two seeds, equally accurate.
- Students: small, from fresh weights, with soft labels. For each seed there is one student of each
  teacher; the two have the same initial weights, texts, order and settings. So neither accuracy nor
  initial weights tell whose student a model is.
- Every student is scored against both teachers. Against one teacher its own students are kin and
  the students of the other teacher are not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path

from probes.compression.distillation.plan import TrainingConfig
from probes.experiments.inheritance.scores import (
    InheritanceReference,
    InheritanceSettings,
    SharedPrompts,
    inheritance_scores,
    run_model,
    run_reference,
    sample_shared_prompts,
)
from probes.experiments.soft_labels.cohort import student_recipe, train_students
from probes.experiments.studies.parts import Part, run_parts
from probes.files import TableRow
from probes.models.model import load
from probes.prompts.catalog import pattern
from probes.scale.engine import HERE, Engine

TEACHERS = ("full", "full-b")
LAYERS, WIDTH = 2, 64
COHORTS = ((91, 92, 93, 94, 95), (96, 97, 98, 99, 100))
"""Seeds of students that are trained together, on the same texts."""

STEPS, BATCH, LEARNING_RATE = 2500, 32, 2e-3


@dataclass(frozen=True, slots=True)
class InheritanceStudent:
    """Student of the study."""

    teacher: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder and in the table."""
        return f"student-of-{self.teacher}-{self.seed}"


@dataclass(frozen=True)
class Teachers:
    """The teachers as an argument of units.

    Attributes:
        folder: Folder of the shipped models.
    """

    folder: Path

    @cached_property
    def references(self) -> tuple[SharedPrompts, list[InheritanceReference]]:
        """The prompts, and the teachers' runs on them, made at first use."""
        teachers = [load(self.folder / teacher) for teacher in TEACHERS]
        prompts = sample_shared_prompts(teachers[0], pattern("take-away"), InheritanceSettings())
        return prompts, [run_reference(teacher, prompts) for teacher in teachers]


def inheritance_rows(
    *,
    folder: Path,
    work: Path,
    known: Sequence[Mapping[str, float | str]] = (),
    engine: Engine = HERE,
) -> Iterator[TableRow]:
    """Scores of each student against each teacher; arguments as in `run_study`.

    Students that are trained together are one unit.
    """
    done = {(str(row["model"]), str(row["reference"])): dict(row) for row in known}
    teachers, parts = Teachers(folder), []
    for seeds, teacher in product(COHORTS, TEACHERS):
        students = [InheritanceStudent(teacher, seed) for seed in seeds]
        keys = [(student.name, reference) for student in students for reference in TEACHERS]
        rows = [done[key] for key in keys if key in done]
        name = f"students of {teacher}, seeds {seeds[0]} to {seeds[-1]}"
        measure = partial(_measure_students, teachers, students, work, rows)
        is_known = len(rows) == len(keys)
        parts.append(Part(name, known=rows) if is_known else Part(name, measure))
    return run_parts(parts, engine)


def _measure_students(
    teachers: Teachers,
    students: Sequence[InheritanceStudent],
    work: Path,
    known: Sequence[TableRow],
) -> list[TableRow]:
    """Train students of one teacher if they are missing, and measure those that are not known."""
    found: list[TableRow] = []
    paths = train_inheritance_students(students, folder=teachers.folder, work=work)
    for student, path in zip(students, paths, strict=True):
        rows = [row for row in known if row["model"] == student.name]
        found += rows if len(rows) == len(TEACHERS) else _student_rows(teachers, student, path)
    return found


def _student_rows(
    teachers: Teachers, student: InheritanceStudent, path: Path
) -> Iterator[TableRow]:
    prompts, references = teachers.references
    runs = run_model(load(path), prompts)
    for reference in references:
        name = reference.runs.model.name
        yield {
            "model": student.name,
            "teacher": student.teacher,
            "seed": float(student.seed),
            "reference": name,
            "kin": float(student.teacher == name),
            **inheritance_scores(reference, runs, prompts),
        }


def train_inheritance_students(
    students: Sequence[InheritanceStudent], *, folder: Path, work: Path
) -> list[Path]:
    """Folders of students of one teacher; missing ones are trained together."""
    recipes = {
        student.name: replace(
            student_recipe(LAYERS, WIDTH, student.seed), learning_rate=LEARNING_RATE
        )
        for student in students
    }
    training = TrainingConfig(STEPS, students[0].seed, batch=BATCH)
    return train_students(recipes, folder / students[0].teacher, training, work=work)
