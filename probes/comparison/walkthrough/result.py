"""Result of a walk-through: what each intervention did to the answer, in plain numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from probes.comparison.paths.result import PathEffect
from probes.comparison.verdict import VerdictLabel
from probes.observe.result import Gate
from probes.result import Result
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Look:
    """Attention of one head from one role of the question to another.

    Attributes:
        layer, head: The head.
        query, key: Role that reads, and role that is read.
        weight: Attention from the last token of `query` to all tokens of `key`, 0 to 1.
        uniform: The same if attention were equal over all tokens so far.
    """

    layer: int
    head: str
    query: str
    key: str
    weight: float
    uniform: float


@dataclass(frozen=True, slots=True)
class Swap:
    """One intervention: a state is replaced by that of a changed version of the question.

    Attributes:
        variable: What the changed version has otherwise: "x", "y", "x and y", "operation", "thing".
        site, role, layer: Address of the state. Layer 0 is the embedding of the words themselves.
        old, new: Words of the variable in the question, and in its changed version.
        expected: Answer to the changed version.
        says: What the model answers to the question after the swap: its most likely token.
        rate: Fraction of other questions whose answer becomes that of their changed version. All
            fractions are of other numbers in one text where `Walkthrough.same_question` is true;
            intervals over questions mean nothing there.
        other_kept: Fraction in which the other answer stays; None where there is one answer.
        elsewhere: Largest such rate among the other roles of the layer, or among all other heads.
        null: Largest such rate in random-init models.
        prompts: Number of other questions, or of other numbers.
    """

    variable: str
    site: str
    role: str
    layer: int
    old: str
    new: str
    expected: str
    says: str
    rate: Estimate
    other_kept: Estimate | None
    elsewhere: float
    null: float
    prompts: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Head that, alone, brings an answer most often to the role where it is read.

    Attributes:
        look: Where it attends there.
        swaps: Swaps of its output there, one for each variable.
    """

    look: Look
    swaps: tuple[Swap, ...]

    @property
    def is_object(self) -> bool:
        """Whether it brings the object, and not the number."""
        return self.swaps[0].variable == "thing"

    @property
    def rate(self) -> float:
        """Mean rate of its swaps."""
        return float(np.mean([swap.rate.value for swap in self.swaps]))


@dataclass(frozen=True, eq=False)
class ModelWalk:
    """Steps of one model.

    Attributes:
        model, layers, heads: Its name and size.
        reply: What it writes behind the question.
        gates: Gate of each answer.
        words: Swaps of the words themselves.
        looks: For each head and role, where it attends most in the question.
        maps: For each variable the fraction of other questions whose answer changes with the state
            of a role before a layer, or behind the last one.
        meeting: Swaps where the numbers and the operation meet; empty where there is no such place.
        noun: Swap of the object at its own words, in the latest layer in which the answer is
            still read from there; None without one.
        fetch: Best head of the number and of the object, at the role where each is read.
    """

    model: str
    layers: int
    heads: int
    reply: str
    gates: tuple[Gate, ...]
    words: tuple[Swap, ...]
    looks: tuple[Look, ...]
    maps: Mapping[str, Float[np.ndarray, "role layer"]]
    meeting: tuple[Swap, ...]
    noun: Swap | None
    fetch: tuple[Fetch, ...]

    def swaps(self) -> tuple[Swap, ...]:
        """All interventions, in the order of the steps."""
        fetched = (swap for fetch in self.fetch for swap in fetch.swaps)
        return (*self.words, *self.meeting, *fetched, *([self.noun] if self.noun else ()))


@dataclass(frozen=True, eq=False, repr=False)
class Walkthrough(Result):
    """One question, step by step through a model, and through a relative beside it.

    Attributes:
        text, pattern: The question, and the pattern that it matches.
        stretches: Roles with their words, in the order of the text.
        answers: Name and correct text of each answer.
        roles: Roles of the maps.
        models: Steps of the model, and of the relative.
        paths: Role paths that were found in one of them, with their effects in both.
        path_labels: Verdict on each path in the relative; without a relative those of the model.
        other_seed: Model that differs from the first in its seed, or "".
        skipped: Why the relative has no steps; "".
        prompts, nulls, seed: Other questions that were asked for, for each variable; random-init
            models; seed.
        same_question: Whether places are chosen and measured with other numbers in this same
            question, as it fits no template; by default on other questions of its form.
        left_out: Variables for which too few of them were found to test.
    """

    text: str
    pattern: str
    stretches: tuple[tuple[str, str], ...]
    answers: tuple[tuple[str, str], ...]
    roles: tuple[str, ...]
    models: tuple[ModelWalk, ...]
    paths: tuple[PathEffect, ...]
    path_labels: Mapping[str, VerdictLabel]
    other_seed: str
    skipped: str
    prompts: int
    nulls: int
    seed: int
    same_question: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def too_few(self) -> dict[str, int]:
        """Variables with fewer pairs than were asked for, with their number."""
        words = self.models[0].words
        return {one.variable: one.prompts for one in words if one.prompts < self.prompts}

    @property
    def others(self) -> str:
        """What places are measured on, in words."""
        return "other numbers in this same question" if self.same_question else "other questions"

    def summary(self) -> tuple[str, ...]:
        """The steps, one sentence each."""
        lines = []
        for one in self.models:
            right = ", ".join(f"{gate.answer} {gate.accuracy.value:.0%}" for gate in one.gates)
            lines.append(f"{one.model} answers {one.reply!r}; right in other questions: {right}.")
            lines += [f"{one.model}: {self._sentence(swap)}" for swap in one.swaps()]
        if self.too_few or self.left_out:
            found = [f"{name} {count}" for name, count in self.too_few.items()]
            found += [f"{name} too few to test" for name in self.left_out]
            lines.append(
                f"Fewer {self.others} than the {self.prompts} asked for: {', '.join(found)}."
            )
        return (*lines, *([self.skipped] if self.skipped else []))

    def table(self) -> "pd.DataFrame":
        """One row for each swap; without an interval where all are of one question."""
        import pandas as pd

        rows = [
            {
                "model": one.model, "variable": swap.variable, "site": swap.site,
                "says": swap.says, "expected": swap.expected, "rate": swap.rate.value,
                "low": math.nan if self.same_question else swap.rate.low,
                "high": math.nan if self.same_question else swap.rate.high,
                "elsewhere": swap.elsewhere, "null": swap.null,
            }
            for one in self.models
            for swap in one.swaps()
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def _sentence(self, swap: Swap) -> str:
        rate = f"{swap.rate.value:.2f}" if self.same_question else str(swap.rate)
        return (
            f"with the state {swap.site} as for {swap.new!r} in place of {swap.old!r}, it says "
            f"{swap.says!r} ({swap.expected!r} is right; {self.others} {rate}, elsewhere at "
            f"most {swap.elsewhere:.2f}, random-init at most {swap.null:.2f})."
        )

    def __repr__(self) -> str:
        names = " | ".join(one.model for one in self.models)
        return f"<Walkthrough of {names}: {self.text[:80]!r}>"
