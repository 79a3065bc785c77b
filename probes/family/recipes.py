"""How each member of the embedded family is made."""

from dataclasses import dataclass, replace

from probes.family.corpus import Task


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run.

    Attributes:
        name: The member it makes.
        start: "fresh", the name of the member it goes on from, or "alternate:<member>" for
            every second layer of that member.
        teacher: The member whose soft labels it learns, or "" for hard labels.
        layers, d_model, heads, d_mlp: The shape.
        statements: Share of statements among its texts; the rest are questions with answers.
        answers_only: Whether questions are trained on in their answers only.
        items: How many different texts it sees.
        nouns: How many nouns stand in its sentences with an operation, or None for all.
        task: What its questions train; see `corpus.Dials`.
        steps, batch, learning_rate, weight_decay: The optimiser's dials (AdamW, cosine).
        temperature: Of the soft labels.
        schedule: "cosine" to a twentieth, or "stable" with the fall in the last quarter alone:
            weight decay acts through the learning rate, and it is what makes cells generalise.
        seed: Of weights, texts and their order.
        shipped: Whether the member is part of the family, or only a step towards one.
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
    task: Task = "counting"
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    temperature: float = 1.0
    schedule: str = "stable"
    shipped: bool = True


STRANGERS: tuple[Task, ...] = ("copying", "permuted")
"""Tasks of the same words that never ask to count on: a stricter null than fresh weights."""

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
    # Whole texts, not answers alone: trained on answers only, it forgets how to generalise.
    answers_only=False,
    steps=3000,
    seed=2,
    schedule="cosine",
)

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
        for task in STRANGERS
    ),
)

_SCRATCH = next(entry for entry in RECIPES if entry.name == "scratch")
_DISTILLED = next(entry for entry in RECIPES if entry.name == "distilled")


# What one model cannot tell: how much of a finding is the seed's, and what more objects do.
SERIES = (
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
        for task in STRANGERS
    ),
)


def recipe(name: str) -> Recipe:
    """Return the recipe of a member by its name."""
    return next(entry for entry in (*RECIPES, *SERIES) if entry.name == name)
