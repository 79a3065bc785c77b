"""The study of real models: one row for each model, relative, pattern and measurement."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from probes.experiments.real_models.behavior import (
    BehaviorSizes,
    answer_rows,
    circuit_rows,
    circuit_tasks,
    kept_circuit,
    study_pattern,
)
from probes.experiments.real_models.relatives import FULL, RELATIVES, read_parent
from probes.experiments.real_models.states import (
    StateRuns,
    StateSizes,
    find_state_sites,
    run_states,
    state_rows,
)
from probes.files import TableRow
from probes.models.model import Model
from probes.models.site import Site

ANSWERS, CIRCUIT, STATES = "answers", "circuit", "states"
Group = tuple[str, str, str, str]
"""Model, relative, pattern and kind of measurement: what is measured at once."""


@dataclass(frozen=True, slots=True)
class Behavior:
    """A behavior of the study.

    Attributes:
        model: Folder of the model.
        pattern: Pattern that asks for it.
        contrast: What the counterfactuals of its circuit change; no circuit without one.
        states: Whether the state of its operation is interchanged.
        sizes: Numbers of prompts for answers and circuits.
    """

    model: str
    pattern: str
    contrast: str = ""
    states: bool = False
    sizes: BehaviorSizes = field(default_factory=BehaviorSizes)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of measurements."""
        return (ANSWERS, *[CIRCUIT] * bool(self.contrast), *[STATES] * self.states)


_QWEN = BehaviorSizes(questions=32, pairs=8)  # Its passes cost four times those of SmolLM2.
BEHAVIORS = (
    Behavior("smollm2", "ioi", "s2"),
    Behavior("smollm2", "agreement", "number"),
    Behavior("qwen", "lose", "operation", states=True, sizes=_QWEN),
    Behavior("qwen", "gain", sizes=_QWEN),
)


@dataclass(frozen=True, slots=True)
class RealModelSettings:
    """What the study measures, and on how much.

    Attributes:
        behaviors: Models and patterns.
        state_sizes: Numbers of prompts for states.
    """

    behaviors: Sequence[Behavior] = BEHAVIORS
    state_sizes: StateSizes = field(default_factory=StateSizes)


def real_model_rows(
    *,
    folder: Path,
    work: Path,
    known: Sequence[Mapping[str, float | str]] = (),
    settings: RealModelSettings = RealModelSettings(),
) -> Iterator[TableRow]:
    """Answers, circuits and states of two pretrained models and their relatives.

    Args:
        folder: Folder of the pretrained models.
        work: Folder of their circuits.
        known: Rows that are not measured again.
        settings: What is measured.

    Raises:
        ModelError: The folder lacks a model that is not measured yet.
    """
    done: dict[Group, list[TableRow]] = {}
    for row in known:
        done.setdefault(_group(row), []).append(dict(row))
    for model in dict.fromkeys(one.model for one in settings.behaviors):
        behaviors = [one for one in settings.behaviors if one.model == model]
        measured = _Measured(folder, work, model, settings)
        for relative in RELATIVES:
            for one in behaviors:
                for kind in one.kinds:
                    group = (model, relative, one.pattern, kind)
                    yield from done.get(group) or measured.rows(group, one)
            measured.free(relative)


def _group(row: Mapping[str, float | str]) -> Group:
    model, relative, pattern, kind = (
        str(row[name]) for name in ("model", "relative", "pattern", "kind")
    )
    return model, relative, pattern, kind


@dataclass
class _Measured:
    """One pretrained model with the relative that is being measured; both are read when needed."""

    folder: Path
    work: Path
    name: str
    settings: RealModelSettings
    kept: dict[str, Model] = field(default_factory=dict)
    states: dict[str, StateRuns] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)

    def rows(self, group: Group, behavior: Behavior) -> list[TableRow]:
        """Rows of one group."""
        _, relative, pattern, kind = group
        start = time.process_time()
        measure: Mapping[str, Callable[[], Iterable[TableRow]]] = {
            ANSWERS: lambda: answer_rows(self.model(relative), pattern, behavior.sizes),
            CIRCUIT: lambda: self._circuit_rows(relative, behavior),
            STATES: lambda: self._state_rows(relative, pattern),
        }
        found = list(measure[kind]())
        seconds = (time.process_time() - start) / len(found)
        made = RELATIVES[relative]
        head = {"model": self.name, "relative": relative, "bits": float(made.bits)}
        head |= {"zeros": made.zeros, "pattern": pattern, "kind": kind}
        return [{**head, **row, "seconds": round(seconds, 1)} for row in found]

    def model(self, relative: str) -> Model:
        """A relative, kept until it is freed."""
        if relative not in self.kept:
            parent = read_parent(self.folder, self.name)
            made = RELATIVES[relative].make(parent)
            self.kept[relative] = made
        return self.kept[relative]

    def free(self, relative: str) -> None:
        """Forget a relative, and all but the runs of the full model."""
        if relative != FULL:
            self.kept.pop(relative, None)
            self.states.pop(relative, None)

    def _circuit_rows(self, relative: str, behavior: Behavior) -> Iterator[TableRow]:
        full, sizes = self.model(FULL), behavior.sizes
        discovery, held_out = circuit_tasks(full, behavior.pattern, behavior.contrast, sizes)
        place = self.work / "real-models" / f"{self.name}-{behavior.pattern}.json"
        circuit = kept_circuit(full, discovery, place)
        return circuit_rows(self.model(relative), circuit, held_out, sizes)

    def _state_rows(self, relative: str, pattern: str) -> Iterator[TableRow]:
        sizes, query = self.settings.state_sizes, study_pattern(pattern)
        if not self.sites:
            self.sites |= find_state_sites(self.model(FULL), query, sizes)
        for each in (FULL, relative):
            if each not in self.states:
                self.states[each] = run_states(self.model(each), query, sizes)
        return state_rows(self.states[relative], self.states[FULL], self.sites, sizes)
