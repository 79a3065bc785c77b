"""Rate and distortion of a model's relatives: behavior and mechanism against what they store."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from probes.errors import SiteError
from probes.models.provenance import Rate
from probes.observe.result import GATE_STATES, BehavioralDistance
from probes.result import Result, figure_of
from probes.stats.intervals import Estimate

LossOrderLabel = Literal["mechanism first", "accuracy first", "together", "neither", "cannot tell"]


NoiseLabel = Literal["worse than noise", "better than noise", "like noise", "cannot tell"]


@dataclass(frozen=True, slots=True)
class LossOrder:
    """What a relative lost of its parent's mechanism, beside what it lost of its accuracy.

    Attributes:
        items: On how many items the mechanism is judged: parent and relative answer base and
            source rightly when nothing is put in. Else a crossing would fail with the answer.
        mechanism: The parent's share of crossings that turn as foretold less the relative's, on
            these items, as a mean over the variables.
        accuracy: The parent's share of bases with all answers right less the relative's, on all.
        lead: `mechanism` less `accuracy`, both drawn from the same items anew.
        word: "neither" where both losses surely stay below 0.05; else "together" where the lead
            surely lies within 0.05 of 0; else which is surely the greater, or "cannot tell". Of
            fewer than 73 items the first two are never said.
    """

    pairs: int
    mechanism_loss: Estimate
    accuracy_loss: Estimate
    difference: Estimate
    label: LossOrderLabel


@dataclass(frozen=True, slots=True)
class NoiseComparison:
    """A relative beside copies of its parent with plain noise, as far from the parent in KL.

    Attributes:
        scales: The noise of each copy, in standard deviations of each matrix.
        kl: Its KL (bits per read-out).
        right: Its share of bases with all answers right.
        mechanism: Its share of crossings that turn as foretold, on the items that the parent and
            the copy solve, as a mean over the variables; NaN where these are too few.
        circuit: What its parent's circuit keeps of the lead in it; NaN if unknown.
        difference: The relative's mechanism less the copies', on items that parent, relative and
            copy solve; items and copies are drawn anew together.
        accuracy: The relative's share of bases with all answers right less the copies'.
        word: "worse than noise", "better than noise", "like noise" (the difference surely lies
            within 0.05 of 0) or "cannot tell".
    """

    scales: tuple[float, ...]
    kl: tuple[float, ...]
    right: tuple[float, ...]
    mechanism: tuple[float, ...]
    circuit: tuple[float, ...]
    difference: Estimate
    accuracy_difference: Estimate
    label: NoiseLabel


UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True, eq=False)
class Mechanism:
    """What became of the parent's mechanism in a relative.

    Attributes:
        sites: Where each variable is put in: the parent's site where the graph is the same, else
            the relative's own.
        own_sites: Where the relative itself holds each variable.
        every: For each variable the share of all crossings that turn as foretold.
        matched: The same on the items that parent and relative solve when nothing is put in.
        kept: The mean over the variables on these items.
        at_own: The same at the relative's own sites.
        carried: For each variable what the parent's own states turn in the relative, put in as
            they are, on these items; empty where the graph is another.
        circuit: Share of the lead that the parent's circuit keeps by itself in the relative, 1 the
            whole; unknown where the graph is another.
        circuit_edges: The size of the circuit: the parent's, or where the graph is another the
            relative's own that keeps as much; 0 if none was found.
        circuit_share: The same as a share of all edges.
        order: What broke first; None where too few items are solved by both.
    """

    sites: Mapping[str, str]
    own_sites: Mapping[str, str]
    all_pairs: Mapping[str, Estimate]
    solved_pairs: Mapping[str, Estimate]
    interchange_accuracy: Estimate
    accuracy_at_own_sites: Estimate
    parent_states: Mapping[str, Estimate]
    circuit_kept: Estimate
    circuit_edges: int
    circuit_fraction: float
    loss_order: LossOrder | None


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """A relative on the curve.

    Attributes:
        name: Its name.
        kind: How it was made, as its slip says; "random-init" for a fresh net.
        rate: What it takes to store.
        behaved: How far its behavior is from the parent's.
        same_graph: Whether it has as many layers and heads, as wide, as the parent.
        mechanism: None where the behavior is absent.
        noise: Copies of the parent with noise, as far away; None where there is none.
        verdicts: How many heads and variables `compare_family` gave each word; empty if not asked.
    """

    name: str
    kind: str
    rate: Rate
    behavior: BehavioralDistance
    same_graph: bool
    mechanism: Mechanism | None
    noise: NoiseComparison | None
    verdicts: Mapping[str, int]

    @property
    def label(self) -> str:
        """What broke first, or "behavior absent"."""
        if self.mechanism is None:
            return "behavior absent"
        return self.mechanism.loss_order.label if self.mechanism.loss_order else "cannot tell"


@dataclass(frozen=True, eq=False, repr=False)
class RateDistortionCurve(Result):
    """A model and its relatives: what they store against what is left.

    Attributes:
        parent: The model itself.
        points: One for each relative.
        pattern: What they were asked.
        items: How many crossings or pairs the mechanism is judged on.
        guessed: What no simple heuristic exceeds in having all answers right.
        untrained: The best of some fresh nets of the parent's shape: share of questions with all
            answers right, and of crossings that turn as foretold at the parent's sites; NaN
            without nets.
        protocol: How it was measured.
    """

    parent: CurvePoint
    points: tuple[CurvePoint, ...]
    pattern: str
    pairs: int
    heuristic_accuracy: float
    random_init: tuple[float, float]
    protocol: tuple[tuple[str, str], ...]

    def __getitem__(self, name: str) -> CurvePoint:
        """Return the point of one model."""
        for point in (self.parent, *self.points):
            if point.name == name:
                return point
        raise SiteError(f"{name!r} is not on the curve: {[p.name for p in self.points]} are")

    def table(self) -> pd.DataFrame:
        """Return all numbers, a model to a row, the parent first; NaN is what was not measured."""
        return pd.DataFrame([_point_row(point) for point in (self.parent, *self.points)])

    def summary(self) -> tuple[str, ...]:
        """Say in plain sentences what was found."""
        lines = [self._parent_line(), *map(_point_line, self.points)]
        told = [point for point in self.points if point.mechanism]
        for same, where in ((True, ""), (False, "At sites of their own, in another graph: ")):
            some = [point for point in told if point.same_graph is same]
            for word, says in _ORDER_SENTENCES.items():
                if names := [point.name for point in some if point.label == word]:
                    says = says if same else says[0].lower() + says[1:]
                    lines.append(f"{where}{says}: {', '.join(names)}.")
        for word, says in _NOISE_SENTENCES.items():
            if names := [p.name for p in told if p.noise and p.noise.label == word]:
                lines.append(f"{says}: {', '.join(names)}.")
        return tuple(lines)

    def _parent_line(self) -> str:
        own = self.parent.mechanism
        line = (
            f"{self.parent.name} on {self.pattern!r}: all answers right in "
            f"{self.parent.behavior.all_correct}"
        )
        if own is None:
            return f"{line}; behavior absent, so that there is no mechanism to lose."
        sites = ", ".join(f"{variable} at {site}" for variable, site in own.sites.items())
        return (
            f"{line}; put in, variables turn its answers in {own.interchange_accuracy} ({sites})."
        )

    def picture(self) -> Any:  # noqa: ANN401
        """Draw rate against distortion."""
        return figure_of(self)

    def __repr__(self) -> str:
        words = ", ".join(f"{point.name} {point.label}" for point in self.points)
        return f"<Curve of {self.parent.name} on {self.pattern}: {words}>"


_ORDER_SENTENCES = {
    "mechanism first": "The mechanism breaks before the accuracy does",
    "accuracy first": "The accuracy breaks before the mechanism does, on what is still solved",
    "together": "Accuracy and mechanism go together",
    "neither": "Neither accuracy nor mechanism is lost",
    "cannot tell": "Which breaks first cannot be told",
}
_NOISE_SENTENCES = {
    "worse than noise": "More of the mechanism is lost than by plain noise at the same KL",
    "better than noise": "Less of the mechanism is lost than by plain noise at the same KL",
    "like noise": "As much of the mechanism is left as under plain noise at the same KL",
    "cannot tell": "Whether plain noise at the same KL would do as much cannot be told",
}


def _point_line(point: CurvePoint) -> str:
    behaved = point.behavior
    line = (
        f"{point.name} ({point.rate.bits / 8000:.0f} kB): KL {behaved.readout_kl.value:.3g} bits, all "
        f"answers right in {behaved.all_correct}"
    )
    if point.mechanism is None:
        return f"{line}; behavior absent."
    if point.mechanism.loss_order is None:
        return f"{line}; too few items are solved by both to judge the mechanism."
    order = point.mechanism.loss_order
    line += (
        f"; on {order.pairs} items that both solve it lost {order.mechanism_loss} of the mechanism, "
        f"and {order.accuracy_loss} of accuracy on all: {order.label}."
    )
    if point.noise:
        line += (
            f" Beside {len(point.noise.kl)} copies with plain noise at the same KL its mechanism "
            f"is {point.noise.difference}: {point.noise.label}."
        )
    return line


def _point_row(point: CurvePoint) -> dict[str, Any]:
    behaved, found, rate = point.behavior, point.mechanism, point.rate
    row: dict[str, Any] = {
        "name": point.name, "kind": point.kind, "kB": rate.bits / 8000, "bits": rate.bits,
        **{f"{part} bits": bits for part, bits in asdict(rate.storage).items()},
        "density": rate.density, "parameters": rate.parameters, "storage stated": rate.is_recorded,
        **_estimate_columns("kl", behaved.readout_kl), **_estimate_columns("text kl", behaved.text_kl),
        **_estimate_columns("right", behaved.all_correct),
    }  # fmt: skip
    for name, value in behaved.accuracy.items():
        row |= _estimate_columns(f"{name} right", value)
    row |= _estimate_columns("agreement", behaved.agreement)
    row["gate"] = max((gate.state for gate in behaved.gates), key=GATE_STATES.index)
    row |= {"same graph": point.same_graph, "word": point.label}
    order = found.loss_order if found else None
    row |= {"items": order.pairs if order else np.nan}
    row |= _estimate_columns("mechanism", found.interchange_accuracy if found else UNKNOWN)
    row |= _estimate_columns(
        "mechanism at own sites", found.accuracy_at_own_sites if found else UNKNOWN
    )
    row |= _estimate_columns("mechanism loss", order.mechanism_loss if order else UNKNOWN)
    row |= _estimate_columns("accuracy loss", order.accuracy_loss if order else UNKNOWN)
    row |= _estimate_columns("loss difference", order.difference if order else UNKNOWN)
    row |= _estimate_columns("circuit", found.circuit_kept if found else UNKNOWN)
    row["circuit edges"] = found.circuit_edges if found and found.circuit_edges else np.nan
    for variable in found.sites if found else ():
        assert found is not None
        row[f"{variable} site"] = found.sites[variable]
        row |= _estimate_columns(f"{variable}, all", found.all_pairs[variable])
        row |= _estimate_columns(variable, found.solved_pairs[variable])
        row |= _estimate_columns(
            f"{variable}, parent's states", found.parent_states.get(variable, UNKNOWN)
        )
    return row | _noise_row(point.noise) | {f"verdict {k}": n for k, n in point.verdicts.items()}


def _noise_row(noise: NoiseComparison | None) -> dict[str, Any]:
    if noise is None:
        return {}
    return {
        "noise copies": len(noise.kl),
        "noise scale": float(np.mean(noise.scales)),
        "noise kl": float(np.mean(noise.kl)),
        "noise right": float(np.mean(noise.right)),
        "noise mechanism": float(np.mean(noise.mechanism)),
        "noise circuit": float(np.mean(noise.circuit)),
        **_estimate_columns("mechanism beyond noise", noise.difference),
        **_estimate_columns("right beyond noise", noise.accuracy_difference),
        "noise word": noise.label,
    }


def _estimate_columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name} low": estimate.low, f"{name} high": estimate.high}


"""What could not be measured."""
