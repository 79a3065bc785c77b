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
from pathlib import Path

from probes.compression.distillation.plan import TrainingConfig
from probes.experiments.inheritance.scores import (
    InheritanceSettings,
    inheritance_scores,
    run_model,
    run_reference,
    sample_shared_prompts,
)
from probes.experiments.soft_labels.cohort import student_recipe, train_students
from probes.files import TableRow
from probes.models.model import load
from probes.prompts.catalog import pattern

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


def inheritance_rows(
    *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """Scores of each student against each teacher; arguments as in `run_study`."""
    done = {(row["model"], row["reference"]): dict(row) for row in known}
    settings, prompts, references = InheritanceSettings(), None, ()
    for student, path in train_inheritance_students(folder=folder, work=work, done=done):
        keys = [(student.name, teacher) for teacher in TEACHERS]
        if all(key in done for key in keys):
            yield from (done[key] for key in keys)
            continue
        if prompts is None:
            teachers = [load(folder / teacher) for teacher in TEACHERS]
            prompts = sample_shared_prompts(teachers[0], pattern("take-away"), settings)
            references = [run_reference(teacher, prompts) for teacher in teachers]
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
    *, folder: Path, work: Path, done: Mapping[tuple, object] = {}
) -> Iterator[tuple[InheritanceStudent, Path]]:
    """Students with their folders, cohort by cohort; missing ones are trained unless measured."""
    for seeds in COHORTS:
        for teacher in TEACHERS:
            students = [InheritanceStudent(teacher, seed) for seed in seeds]
            paths = [work / student.name for student in students]
            if not all((s.name, t) in done for s in students for t in TEACHERS):
                recipes = {
                    s.name: replace(
                        student_recipe(LAYERS, WIDTH, s.seed), learning_rate=LEARNING_RATE
                    )
                    for s in students
                }
                training = TrainingConfig(STEPS, seeds[0], batch=BATCH)
                paths = train_students(recipes, folder / teacher, training, work=work)
            yield from zip(students, paths, strict=True)
