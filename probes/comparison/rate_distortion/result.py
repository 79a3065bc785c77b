"""Result of a rate–distortion measurement: storage against loss of behavior and mechanism."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from probes.comparison.rate_distortion.losses import (
    LOSS_MARGIN,
    MIN_PAIRS,
    UNKNOWN,
    LossOrder,
    NoiseComparison,
)
from probes.errors import SiteError
from probes.models.files.provenance import Rate
from probes.observe.result import GATE_STATES, BehavioralDistance
from probes.plan import LEFT_OUT
from probes.result import Result, figure_of
from probes.stats.intervals import Estimate


@dataclass(frozen=True, eq=False)
class Mechanism:
    """The parent's mechanism in a relative.

    Attributes:
        sites: Site of each variable: the parent's, or for another graph the relative's.
        own_sites: The relative's site of each variable.
        all_pairs: Interchange accuracy of each variable on all pairs.
        solved_pairs: The same on pairs that both models solve without intervention.
        interchange_accuracy: Mean of the latter over the variables.
        accuracy_at_own_sites: The same at the relative's own sites.
        parent_states: `solved_pairs` with the parent's states interchanged into the relative;
            empty for another graph.
        circuit_kept: Faithfulness of the parent's circuit in it; unknown for another graph.
        circuit_edges: Size of the parent's circuit, or for another graph of the relative's own
            circuit of the same faithfulness; 0 if none was found.
        circuit_fraction: The same as a fraction of all edges.
        loss_order: None if both models solve too few pairs.
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
    """One model on the curve.

    Attributes:
        kind: Kind of its provenance, "trained" without one, or "random-init".
        behavior: Distance of its behavior from the parent's.
        same_graph: Whether it has the parent's computation graph and widths.
        mechanism: None if it lacks the behavior.
        noise: Comparison with weight noise; None if none was made.
        verdicts: Number of heads and variables with each verdict; empty if not measured.
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
    def loss_order(self) -> LossOrder | None:
        """Order of losses; None if it was not measured."""
        return self.mechanism.loss_order if self.mechanism else None

    @property
    def label(self) -> str:
        """Label of the order of losses, or "behavior absent"."""
        if self.mechanism is None:
            return "behavior absent"
        return self.loss_order.label if self.loss_order else "cannot tell"


@dataclass(frozen=True, eq=False, repr=False)
class RateDistortionCurve(Result):
    """Rate–distortion curve of a model and its relatives.

    Attributes:
        parent, points: The model itself, and its relatives.
        pairs: Number of pairs for the mechanism.
        heuristic_accuracy: Upper bound of a simple heuristic's accuracy on all answers.
        random_init: Largest accuracy on all answers, and largest interchange accuracy at the
            parent's sites, of some random-init models; NaN without them.
        protocol: Settings in words.
    """

    parent: CurvePoint
    points: tuple[CurvePoint, ...]
    pattern: str
    pairs: int
    heuristic_accuracy: float
    random_init: tuple[float, float]
    protocol: tuple[tuple[str, str], ...]

    def __getitem__(self, name: str) -> CurvePoint:
        """Point of one model."""
        for point in (self.parent, *self.points):
            if point.name == name:
                return point
        raise SiteError(
            f"{name!r} is not on the curve: choose from {[p.name for p in self.points]}"
        )

    def table(self) -> pd.DataFrame:
        """One row per model, the parent first; NaN for what was not measured."""
        return pd.DataFrame([_point_row(point) for point in (self.parent, *self.points)])

    def summary(self) -> tuple[str, ...]:
        """One sentence per model, then one per order of losses and per comparison with noise.

        A sentence between them says why interchange accuracies are undefined, where any is.
        """
        lines = [self._parent_line(), *map(_point_line, self.points), *self._too_few_line()]
        capable = [point for point in self.points if point.mechanism]
        for same, prefix in ((True, ""), (False, "At their own sites, in another graph: ")):
            for label, sentence in _ORDER_SENTENCES.items():
                if names := [p.name for p in capable if p.same_graph is same and p.label == label]:
                    start = sentence if same else sentence[0].lower() + sentence[1:]
                    lines.append(f"{prefix}{start}: {', '.join(names)}.")
        for label, sentence in _NOISE_SENTENCES.items():
            if names := [p.name for p in capable if p.noise and p.noise.label == label]:
                lines.append(f"{sentence}: {', '.join(names)}.")
        lines += [f"{key.capitalize()}: {text}." for key, text in self.protocol if key == LEFT_OUT]
        return tuple(lines)

    def _parent_line(self) -> str:
        mechanism, correct = self.parent.mechanism, self.parent.behavior.all_correct
        notices = "".join(f"{g.notice} " for g in self.parent.behavior.gates if g.notice)
        line = f"{notices}{self.parent.name} on {self.pattern!r}: all answers correct in {correct}"
        if mechanism is None:
            return f"{line}; behavior absent, so there is no mechanism to lose."
        sites = ", ".join(f"{variable} at {site}" for variable, site in mechanism.sites.items())
        return f"{line}; interchange accuracy {mechanism.interchange_accuracy} ({sites})."

    def _too_few_line(self) -> tuple[str, ...]:
        """Why an interchange accuracy is undefined, and of which models; empty where none is."""
        names = [
            point.name
            for point in (self.parent, *self.points)
            if point.mechanism and np.isnan(point.mechanism.interchange_accuracy.value)
        ]
        if not names:
            return ()
        return (
            f"Interchange accuracy is undefined with fewer than {MIN_PAIRS} pairs that the parent "
            f"and the model both solve, of {self.pairs} here: {', '.join(names)}. Measure on more "
            "bases.",
        )

    def picture(self) -> Any:  # noqa: ANN401
        """Drawing of rate against distortion."""
        return figure_of(self)

    def __repr__(self) -> str:
        labels = ", ".join(f"{point.name} {point.label}" for point in self.points)
        return f"<RateDistortionCurve of {self.parent.name} on {self.pattern}: {labels}>"


_ORDER_SENTENCES = {
    "mechanism first": "The mechanism breaks before the accuracy",
    "accuracy first": "The accuracy breaks before the mechanism, on texts that both solve",
    "together": "Accuracy and mechanism break together",
    "neither": f"Neither accuracy nor mechanism is lost by {LOSS_MARGIN} or more",
    "cannot tell": "Which breaks first cannot be told",
}
_NOISE_SENTENCES = {
    "worse than noise": "More of the mechanism is lost than by weight noise at the same KL",
    "better than noise": "Less of the mechanism is lost than by weight noise at the same KL",
    "like noise": "As much of the mechanism is lost as by weight noise at the same KL",
    "cannot tell": "Whether weight noise at the same KL costs as much cannot be told",
}


def _point_line(point: CurvePoint) -> str:
    behavior, order, noise = point.behavior, point.loss_order, point.noise
    line = (
        f"{point.name} ({point.rate.bits / 8000:.0f} kB): KL {behavior.readout_kl.value:.3g} bits, "
        f"all answers correct in {behavior.all_correct} of the gate's questions"
    )
    if point.mechanism is None:
        return f"{line}; behavior absent."
    if order is None:
        return f"{line}; both models solve too few pairs to measure the mechanism."
    line += (
        f"; of the interchange pairs, loss of interchange accuracy {order.mechanism_loss} on the "
        f"{order.pairs} that both solve, loss of accuracy {order.accuracy_loss} on all bases: "
        f"{order.label}."
    )
    if noise:
        copies, every = noise.compared, len(noise.kl)
        count = f"{copies} {'copy' if copies == 1 else 'copies'}"
        if copies < every:
            count = f"{copies} of {every} copies (the others solve too few pairs)"
        line += (
            f" Interchange accuracy minus that of {count} with weight noise at the same KL: "
            f"{noise.difference}, {noise.label}."
        )
    return line


def _point_row(point: CurvePoint) -> dict[str, Any]:
    behavior, mechanism, order, rate = point.behavior, point.mechanism, point.loss_order, point.rate
    row: dict[str, Any] = {
        "name": point.name, "kind": point.kind, "kB": rate.bits / 8000, "bits": rate.bits,
        **{f"{part} bits": bits for part, bits in asdict(rate.storage).items()},
        "density": rate.density, "parameters": rate.parameters, "storage stated": rate.is_recorded,
        "kl": behavior.readout_kl, "text kl": behavior.text_kl, "right": behavior.all_correct,
        **{f"{name} right": accuracy for name, accuracy in behavior.accuracy.items()},
        "agreement": behavior.agreement,
        "gate": max((gate.state for gate in behavior.gates), key=GATE_STATES.index),
        "same graph": point.same_graph, "word": point.label,
        "items": order.pairs if order else np.nan,
        "mechanism": mechanism.interchange_accuracy if mechanism else UNKNOWN,
        "mechanism at own sites": mechanism.accuracy_at_own_sites if mechanism else UNKNOWN,
        "mechanism loss": order.mechanism_loss if order else UNKNOWN,
        "accuracy loss": order.accuracy_loss if order else UNKNOWN,
        "loss difference": order.difference if order else UNKNOWN,
        "circuit": mechanism.circuit_kept if mechanism else UNKNOWN,
        "circuit edges": (mechanism and mechanism.circuit_edges) or np.nan,
    }  # fmt: skip
    row |= _variable_columns(mechanism) if mechanism else {}
    row |= _noise_columns(point.noise) if point.noise else {}
    return _expand_estimates(row) | {f"verdict {k}": n for k, n in point.verdicts.items()}


def _variable_columns(mechanism: Mechanism) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for variable, site in mechanism.sites.items():
        row[f"{variable} site"] = site
        row[f"{variable}, all"] = mechanism.all_pairs[variable]
        row[variable] = mechanism.solved_pairs[variable]
        row[f"{variable}, parent's states"] = mechanism.parent_states.get(variable, UNKNOWN)
    return row


def _noise_columns(noise: NoiseComparison) -> dict[str, Any]:
    return {
        "noise copies": len(noise.kl),
        "noise scale": float(np.mean(noise.scales)),
        "noise kl": float(np.mean(noise.kl)),
        "noise right": float(np.mean(noise.right)),
        "noise mechanism": float(np.mean(noise.mechanism)),
        "noise circuit": float(np.mean(noise.circuit)),
        "mechanism beyond noise": noise.difference,
        "right beyond noise": noise.accuracy_difference,
        "noise word": noise.label,
    }


def _expand_estimates(row: dict[str, Any]) -> dict[str, Any]:
    """Give every estimate columns for its interval."""
    expanded: dict[str, Any] = {}
    for name, value in row.items():
        expanded[name] = value.value if isinstance(value, Estimate) else value
        if isinstance(value, Estimate):
            expanded |= {f"{name} low": value.low, f"{name} high": value.high}
    return expanded
