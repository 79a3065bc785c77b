"""Equivalence of a relative to the full model: a regression test for compression.

Every test needs its whole 95 % interval inside the margin. A part that was not tested is listed as
such, never as equivalent. The comparison as a whole passes where another part of the mechanism was
tested.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from probes.comparison.model_facts import ModelFacts
from probes.comparison.paths.result import PathEffect
from probes.comparison.variables.result import CrossModelTransfer
from probes.comparison.verdict import NON_INFERIORITY, REFERENCE_SITE, Verdict
from probes.errors import EquivalenceError, NotTestedError
from probes.observe.result import Gate
from probes.stats.intervals import Estimate


@runtime_checkable
class Compared(Protocol):
    """The fields of a `Comparison` that are tested."""

    @property
    def full(self) -> ModelFacts: ...  # noqa: D102
    @property
    def other(self) -> ModelFacts: ...  # noqa: D102
    @property
    def answers(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def gates(self) -> tuple[Gate, ...]: ...  # noqa: D102
    @property
    def accuracy_changes(self) -> tuple[Estimate, ...]: ...  # noqa: D102
    @property
    def verdicts(self) -> tuple[Verdict, ...]: ...  # noqa: D102
    @property
    def transfers_to_other(self) -> tuple[CrossModelTransfer, ...]: ...  # noqa: D102
    @property
    def paths(self) -> tuple[PathEffect, ...]: ...  # noqa: D102
    @property
    def transfer_skip_reason(self) -> str: ...  # noqa: D102


_ELSEWHERE = ("split", "merged", "moved")
_MOST_NAMES, _FIRST_NAMES = 8, 3  # Of heads: a longer list is cut, as models have hundreds.


@dataclass(frozen=True, slots=True)
class EquivalenceCheck:
    """What an equivalence test found.

    Attributes:
        full, other: Names of the models.
        margin: Allowed loss, a fraction.
        passed: Parts shown to be equivalent.
        failed: Parts not shown to be equivalent, each with its reason.
        untested: Parts that were not tested, each with its reason.
        mechanism_tested: Whether a path, a variable or a head was tested.
    """

    full: str
    other: str
    margin: float
    passed: tuple[str, ...]
    failed: tuple[str, ...]
    untested: tuple[str, ...]
    mechanism_tested: bool

    def lines(self) -> tuple[str, ...]:
        """What passed, failed and was not tested."""
        parts = (("equivalent", self.passed), ("not shown to be equivalent", self.failed))
        found = [f"{self.other}: {word}: {'; '.join(names)}" for word, names in parts if names]
        if self.untested:
            found.append(f"{self.other}: not tested: {'; '.join(self.untested)}")
        return tuple(found)

    def require(self) -> None:
        """Raise unless everything that was tested is equivalent, the mechanism among it.

        Raises:
            EquivalenceError: A part is not shown to be equivalent.
            NotTestedError: No path, variable or head was tested.
        """
        if self.failed:
            raise EquivalenceError(
                f"{self.other} is not shown to be equivalent to {self.full} within {self.margin}: "
                + "; ".join(self.failed)
            )
        if not self.mechanism_tested:
            raise NotTestedError(
                f"mechanism not tested: {'; '.join(self.untested)}. {self.other} was compared with "
                f"{self.full} by its answers only. Use a pattern or pairs that show a mechanism."
            )


def require_all(checks: Iterable[EquivalenceCheck]) -> None:
    """Raise for the relatives that are not equivalent, or were not tested."""
    failed, untested = [], []
    for check in checks:
        try:
            check.require()
        except NotTestedError as error:
            untested.append(str(error))
        except EquivalenceError as error:
            failed.append(str(error))
    if failed:
        raise EquivalenceError("\n".join(failed))
    if untested:
        raise NotTestedError("\n".join(untested))


def check_equivalence(
    comparison: Compared, margin: float, *, heads: bool | None
) -> EquivalenceCheck:
    """Test each answer, path, variable and head; see `Comparison.assert_equivalent`."""
    passed, failed, untested = [], [], []
    _check_answers(comparison, margin, passed, failed)
    variables = [v for v in comparison.verdicts if v.kind == "variable"]
    tested = 0
    if comparison.transfer_skip_reason:
        untested.append(f"variables ({comparison.transfer_skip_reason})")
    elif not variables:
        failed.append("no variable has a verdict, as a gate is closed")
    for verdict in variables if not comparison.transfer_skip_reason else ():
        held = verdict.test(REFERENCE_SITE)
        if held and held.passed is not True:
            untested.append(
                f"{verdict.subject} ({comparison.full.name} holds it at no single site)"
            )
            continue
        tested += 1
        reason = _variable_failure(comparison, verdict, margin)
        (failed if reason else passed).append(reason or verdict.subject)
    on_paths = _check_paths(comparison, margin, passed, failed, untested)
    if heads or (heads is None and not tested):
        tested += _check_heads(comparison, passed, failed, untested)
    elif any(v.kind == "head" for v in comparison.verdicts):
        untested.append("heads (not requested)")
    names = (comparison.full.name, comparison.other.name)
    return EquivalenceCheck(
        *names, margin, tuple(passed), tuple(failed), tuple(untested), tested + on_paths > 0
    )


def _check_answers(
    comparison: Compared, margin: float, passed: list[str], failed: list[str]
) -> None:
    gates = comparison.gates[: len(comparison.answers)]
    for gate in gates:
        if gate.state == "too few to tell":
            failed.append(gate.too_few_reason)
        elif gate.state == "closed":
            failed.append(f"{gate.answer} is correct in {gate.accuracy} of {gate.model} itself")
        elif gate.state == "not established":
            failed.append(f"{gate.answer}: the gate asked nothing of {gate.model} itself")
    for gate, change in zip(gates, comparison.accuracy_changes, strict=True):
        if change.low <= -margin:
            failed.append(f"{gate.answer}: {gate.counted} changes by {change.beside(margin)}")
        else:
            passed.append(f"{gate.counted} of {gate.answer}")


def _check_paths(
    comparison: Compared, margin: float, passed: list[str], failed: list[str], untested: list[str]
) -> int:
    """Sort the role paths by the difference of their fractions; return how many were tested."""
    verdicts = {v.subject or v.counterpart: v for v in comparison.verdicts if v.kind == "path"}
    known = [path for path in comparison.paths if path.subject in verdicts]
    tested = [path for path in known if not path.is_forced]
    for path in tested:
        if -margin < path.shortfall.low and path.shortfall.high < margin:
            passed.append(path.subject)
        else:
            label = verdicts[path.subject].label
            shortfall = path.shortfall.beside(margin)
            failed.append(f"{path.subject}: {label}, falls short by {shortfall}")
    forced = [path.subject for path in known if path.is_forced]
    untested += [f"{subject} (the only way to the answer, in any model)" for subject in forced]
    if not known:
        untested.append("role paths (none was found with aligned tokens)")
    return len(tested)


def _variable_failure(comparison: Compared, verdict: Verdict, margin: float) -> str:
    """Reason why a variable is not shown to be equivalent; "" if it is."""
    transfers = {one.variable: one for one in comparison.transfers_to_other}
    transfer = transfers.get(verdict.subject)  # None for a relative with a closed gate.
    reasons = [verdict.reason]
    equivalent = transfer is not None and verdict.label not in _ELSEWHERE
    # The margin below replaces the fixed margin of this one test.
    equivalent &= all(t.passed or t.id == NON_INFERIORITY for t in verdict.tests if t.is_deciding)
    if transfer and (
        transfer.shortfall.high >= margin or transfer.own_ridge_accuracy.low <= margin
    ):
        equivalent = False
        reasons.append(
            f"states of {comparison.full.name} fall short by {transfer.shortfall.beside(margin)} "
            f"of {transfer.own_ridge_accuracy}"
        )
    return "" if equivalent else f"{verdict.subject}: {verdict.label} ({', '.join(reasons)})"


def _check_heads(
    comparison: Compared, passed: list[str], failed: list[str], untested: list[str]
) -> int:
    """Sort the heads of the full model; return how many have a reliable effect."""
    unreliable, tested = [], 0
    for verdict in comparison.verdicts:
        if verdict.kind != "head" or not verdict.subject:
            continue
        if verdict.label == "no reliable effect":
            unreliable.append(verdict.subject)
            continue
        tested += 1
        if verdict.equivalent:
            passed.append(verdict.subject)
        else:
            failed.append(
                f"{verdict.subject}: {verdict.label}, not equivalent in similarity and strength"
            )
    if unreliable:
        untested.append(f"{_few(unreliable)} (no reliable effect)")
    if not tested:
        untested.append("heads (none has a reliable effect)")
    return tested


def _few(names: Sequence[str]) -> str:
    """Names of heads, or the first of many and the number of the others."""
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    more = len(names) - _FIRST_NAMES
    return f"{', '.join(names[:_FIRST_NAMES])} and {more} other heads"
