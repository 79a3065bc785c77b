"""Recipes of the shipped models and of the models of studies."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from probes.errors import ModelError
from probes.experiments.family.corpus import TrainingTask


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run.

    Attributes:
        name: Name of the model.
        start: Initial weights: "fresh"; the name of a model; "alternate:<model>" for every second
            layer of a model; "identity:<model>", "stack:<model>" or "wider:<model>" for a model
            grown to the recipe's shape; "early:<model>:<steps>" for a model after some steps.
        steps, batch, learning_rate, weight_decay: Settings of AdamW.
        seed: Seed of weights, texts and their order.
        teacher: Name of the teacher, or "".
        layers, d_model, heads, d_mlp: Shape.
        statements: Fraction of statements among the texts; the rest are questions with answers.
        answers_only: Whether only the answers of questions are trained on.
        items: Number of different texts.
        nouns: Number of nouns in sentences with an operation, or None for all.
        task: Task of the questions; see `CorpusSettings`.
        temperature: Temperature of soft labels.
        labels: Distillation targets, as `parse_labels` reads them; by default "soft" with a
            teacher and "hard" without.
        masks: Weights that stay zero: "smallest:<model>", the smaller half of the nonzero weights
            of a trained model; "like:<model>", as many random ones in every matrix;
            "of:<model>", the zero weights of a model; none by default.
        schedule: "cosine" to a twentieth, "stable" with a decay in the last quarter, or
            "constant". Weight decay acts through the learning rate, and number pairs generalize
            because of it.
        shipped: Whether the model comes with the kit.
    """

    name: str
    start: str
    steps: int
    seed: int
    teacher: str = ""
    layers: int = 4
    d_model: int = 128
    heads: int = 4
    d_mlp: int = 384
    statements: float = 0.0
    answers_only: bool = True
    items: int = 200_000
    nouns: int | None = None
    task: TrainingTask = "counting"
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    temperature: float = 1.0
    labels: str = ""
    masks: str = ""
    schedule: Literal["cosine", "stable", "constant"] = "stable"
    shipped: bool = True


NEGATIVE_CONTROL_TASKS: tuple[TrainingTask, ...] = ("copying", "permuted")
"""Tasks with the same words that need no arithmetic: a stricter null than random-init models."""

_NEGATIVE_CONTROLS: Mapping[str, str | tuple[str, ...]] = {
    "negative_control": NEGATIVE_CONTROL_TASKS
}
COMPARED_WITH: dict[str, Mapping[str, str | tuple[str, ...]]] = {
    "base": _NEGATIVE_CONTROLS,
    "copying": {"negative_control": ("permuted",)},
    "distilled": {"control": "scratch", **_NEGATIVE_CONTROLS},
    "distilled-narrow": _NEGATIVE_CONTROLS,
    "full": {"base_model": "base", "other_seed": "full-b", **_NEGATIVE_CONTROLS},
    "full-b": {"other_seed": "full", **_NEGATIVE_CONTROLS},
    "permuted": {"negative_control": ("copying",)},
    "regrown": _NEGATIVE_CONTROLS,
    "scratch": _NEGATIVE_CONTROLS,
    "ticket": {"base_model": "base", **_NEGATIVE_CONTROLS},
}
"""Base model, other seed and controls in the provenance of each shipped model."""

_BASE = Recipe(
    name="base",
    start="fresh",
    statements=1.0,
    answers_only=False,
    steps=4000,
    schedule="cosine",
    seed=1,
)
_FULL = Recipe(
    name="full",
    start="base",
    statements=0.3,
    # Whole texts: trained on answers only, the model generalizes less.
    answers_only=False,
    steps=3000,
    seed=2,
    schedule="cosine",
)

# Tickets from the weights of `base`, and models grown from `distilled`, are trained for less.
_RETRAINED = replace(_FULL, items=48_000, steps=1500, batch=32, shipped=False)
_TICKET = replace(_RETRAINED, start="base")
_GROWN = replace(_RETRAINED, schedule="stable", seed=81)
_HALF = replace(_TICKET, name="ticket-half", masks="smallest:full")

RECIPES = (
    _BASE,
    replace(_BASE, name="base-b", seed=21, shipped=False),
    _FULL,
    replace(_FULL, name="full-b", start="base-b", seed=22),
    replace(
        _FULL,
        name="distilled",
        start="alternate:full",
        teacher="full",
        layers=2,
        steps=4000,
        schedule="stable",
        seed=3,
    ),
    replace(
        _FULL,
        name="distilled-narrow",
        start="fresh",
        teacher="full",
        layers=3,
        d_model=96,
        heads=6,
        d_mlp=288,
        steps=4000,
        schedule="stable",
        seed=4,
    ),
    replace(
        _FULL,
        name="scratch",
        start="fresh",
        layers=2,
        steps=4000,
        schedule="stable",
        seed=5,
    ),
    *(
        replace(
            _FULL,
            name=task,
            start="fresh",
            layers=2,
            task=task,
            steps=2000,
            schedule="stable",
            seed=61,
        )
        for task in NEGATIVE_CONTROL_TASKS
    ),
    _HALF,
    replace(_TICKET, name="ticket", masks="smallest:ticket-half", shipped=True),
    replace(_GROWN, name="regrown", start="identity:distilled", shipped=True),
)

_SCRATCH = next(entry for entry in RECIPES if entry.name == "scratch")
_DISTILLED = next(entry for entry in RECIPES if entry.name == "distilled")


# Variation over seeds, and over the number of objects.
SEED_SERIES = (
    *(
        replace(recipe_of, name=f"{recipe_of.name}-{seed}", seed=seed, shipped=False)
        for seeds in zip(range(51, 55), range(31, 35), strict=True)
        for recipe_of, seed in zip((_SCRATCH, _DISTILLED), seeds, strict=True)
    ),
    *(
        replace(_SCRATCH, name=f"dose-{nouns}", nouns=nouns, layers=3, steps=3000, shipped=False)
        for nouns in (1, 4, 12, 40)
    ),
    *(
        replace(_SCRATCH, name=f"{task}-{k}", task=task, seed=60 + k, steps=2000, shipped=False)
        for k in (2, 3)
        for task in NEGATIVE_CONTROL_TASKS
    ),
)

# Soft or hard labels x the teacher's layers or fresh weights, with the same texts and steps.
LABELS_GRID = tuple(
    replace(
        _FULL,
        name=f"{labels}-{start}-{seed}",
        start="fresh" if start == "fresh" else "alternate:full",
        teacher="full" if labels == "soft" else "",
        layers=2,
        items=48_000,
        steps=1500,
        batch=32,
        schedule="stable",
        seed=seed,
        shipped=False,
    )
    for seed in range(71, 76)
    for labels in ("soft", "hard")
    for start in ("layers", "fresh")
)

# Winning tickets of `full`, and their control: as many random weights.
TICKET_RECIPES = (
    _HALF,
    next(entry for entry in RECIPES if entry.name == "ticket"),
    replace(_TICKET, name="random-quarter", masks="like:ticket"),
)


EARLY_STEPS = 100
"""Step of the early weights: the end of the warmup."""


def _tickets_and_students(parent: Recipe) -> tuple[Recipe, ...]:
    """{Same, other} early weights x {ticket, distilled}, for one parent."""
    name, seed = parent.name, parent.seed
    same = replace(parent, start=f"early:{name}:{EARLY_STEPS}")
    other = replace(parent, start="fresh", seed=seed + 100)
    return (
        replace(same, name=f"ticket-1-of-{name}", masks=f"smallest:{name}"),
        replace(same, name=f"ticket-2-of-{name}", masks=f"smallest:ticket-1-of-{name}"),
        replace(same, name=f"random-of-{name}", masks=f"like:ticket-2-of-{name}"),
        replace(other, name=f"reinitialized-of-{name}", masks=f"of:ticket-2-of-{name}"),
        replace(same, name=f"student-of-{name}", teacher=name),
        replace(other, name=f"fresh-student-of-{name}", teacher=name),
    )


TICKETS_BY_PARENT = {
    entry.name: _tickets_and_students(entry)
    for entry in LABELS_GRID
    if entry.name in ("soft-fresh-71", "soft-fresh-72", "soft-fresh-73")
}
"""Tickets, students and controls of some parents."""

# `distilled`, grown in several ways, and controls with as much training.
_GROWN_IN_EACH_WAY = (
    next(entry for entry in RECIPES if entry.name == "regrown"),
    replace(_GROWN, name="grown-stack", start="stack:distilled"),
    replace(_GROWN, name="grown-wider", start="wider:distilled", layers=2, d_mlp=768),
    replace(_GROWN, name="ungrown", start="distilled", layers=2),
)
GROWN_RECIPES = (
    *_GROWN_IN_EACH_WAY,
    # As many layers times texts as `distilled` and `regrown` together.
    replace(_GROWN, name="large-scratch", start="fresh", items=200_000, steps=4750, batch=64),
    *(
        replace(entry, name=f"{entry.name}-{seed}", seed=seed, shipped=False)
        for seed in (82, 83)
        for entry in _GROWN_IN_EACH_WAY
    ),
)

ALL_RECIPES = tuple(
    dict.fromkeys(
        (
            *RECIPES,
            *SEED_SERIES,
            *LABELS_GRID,
            *TICKET_RECIPES,
            *chain.from_iterable(TICKETS_BY_PARENT.values()),
            *GROWN_RECIPES,
        )
    )
)
"""All recipes."""


def recipe(name: str) -> Recipe:
    """Recipe by its name.

    Raises:
        ModelError: The name is unknown.
    """
    known = {entry.name: entry for entry in ALL_RECIPES}
    if name not in known:
        raise ModelError(
            f"There is no recipe {name!r}: use one of {', '.join([*known][:20])} or "
            f"{len(known) - 20} others in probes/experiments/family/recipes.py"
        )
    return known[name]
