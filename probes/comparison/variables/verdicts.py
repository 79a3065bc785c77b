"""What became of each variable: is it held at the same place, in the same code?

Rules, in this order (`HELD` and the margin are shares of crossings):

behavior absent  the relative's gate for the answer that the variable moves is closed
cannot tell       no place of the full model hands the variable over in more than half
merged            the relative hands it over in more than half, but only along with other
                  variables
cannot tell       no single place, and no pair, of the relative surely hands it over in half
cannot tell       its roles are others, and the full model's other seed has others as well
split             the relative needs further roles besides the full model's
merged            one of the roles that the full model needs together is enough
moved             its role is another, and in the full model's other seed it is not
cannot tell       its role is another, and no other seed is known
kept              the full model's states, put in at that role, do what the relative's own do,
                  less the margin at most, and surely more than any stand-in
cannot tell       the same role, but the codes do not surely map onto each other

A variable is never lost while the gate is open: the answer depends on it. What may be lost are
places and heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from probes.comparison.variables.held_out_folds import HeldOutFolds
from probes.comparison.variables.result import EMBEDDING_CONTROL, CrossModelTransfer
from probes.comparison.variables.stitching import Recipient
from probes.comparison.verdict import NON_INFERIORITY, REFERENCE_SITE, Verdict, VerdictLabel
from probes.interventions.interchange import interchange_intervention
from probes.observe.result import Gate
from probes.prompts.interchange_pairs import OBJECT
from probes.stats.evidence import StatisticalTest, check_above, check_below, skipped_test
from probes.stats.intervals import Estimate, proportion

MIN_INTERCHANGE_ACCURACY = 0.5
"""A place holds a variable if it hands it over, alone, in more of the crossings than this."""


@dataclass(frozen=True, eq=False)
class VariableSite:
    """Where a model holds a variable.

    Attributes:
        site: The place, such as "L1.resid@op".
        roles: Its roles.
        alone: How often just the variable is handed over there.
        along: How often it is, alone or with others.
    """

    site: str
    roles: frozenset[str]
    exclusive_accuracy: Estimate
    inclusive_accuracy: Estimate


def variable_site(
    recipient: Recipient, folds: HeldOutFolds, variable: str, exclusive_accuracy: Estimate
) -> VariableSite:
    """Say where a model holds a variable; `alone` is what its site was measured to hand over."""
    cell = recipient.sites[variable]
    along = exclusive_accuracy
    if variable != OBJECT:
        with recipient.lock:
            found = interchange_intervention(recipient.runs, [cell])
        along = proportion(found.takes_variable(variable)[0][folds.test_mask(variable)])
    return VariableSite(str(cell), frozenset(cell.role.split("+")), exclusive_accuracy, along)


def absent_variable_verdict(variable: str, gates: Sequence[Gate]) -> Verdict:
    """Say that a model does not do what a variable is for; the other answer may be there."""
    gate = _gate(variable, gates)
    if gate.state == "closed":
        return Verdict(variable, "variable", "behavior absent", "", _absent_reason(gate))
    if not gate.has_behavior:
        return Verdict(variable, "variable", "cannot tell", "", gate.too_few_reason)
    why = f"{gate.answer} is there, but not all of the behavior: nothing was put in"
    return Verdict(variable, "variable", "cannot tell", "", why)


def _gate(variable: str, gates: Sequence[Gate]) -> Gate:
    return gates[-1] if variable == OBJECT else gates[0]


def _absent_reason(gate: Gate) -> str:
    return f"{gate.answer} is right in {gate.accuracy}: there is nothing to keep"


def variable_verdict(  # noqa: PLR0913 (two models, what was carried over, and the other seed)
    full: VariableSite,
    other: VariableSite,
    transfer: CrossModelTransfer,
    gates: Sequence[Gate],
    *,
    other_seed_roles: frozenset[str] | None = None,
    margin: float = 0.1,
) -> Verdict:
    """Judge one variable; see the rules at the head of this module.

    Args:
        full, other: Where the two models hold it.
        carried: The transfer of it from the full model to the relative.
        gates: The relative's gates, one for each answer.
        twin: The roles at which another seed of the full model holds it.
        margin: How much less than the relative's own the full model's states may do.
    """
    name, gate = transfer.variable, _gate(transfer.variable, gates)
    tests = tuple(_tests(full, other, transfer, margin))

    def verdict(word: VerdictLabel, reason: str) -> Verdict:
        return Verdict(name, "variable", word, other.site, reason, tests)

    if gate.state == "closed":
        return verdict("behavior absent", _absent_reason(gate))
    if not gate.has_behavior:
        return verdict("cannot tell", gate.too_few_reason)
    if not full.exclusive_accuracy.low > MIN_INTERCHANGE_ACCURACY:
        return verdict(
            "cannot tell", f"no place of the full model surely holds it: {full.exclusive_accuracy}"
        )
    if not other.exclusive_accuracy.low > MIN_INTERCHANGE_ACCURACY:
        if (
            other.inclusive_accuracy.low > MIN_INTERCHANGE_ACCURACY
            and other.exclusive_accuracy.high < MIN_INTERCHANGE_ACCURACY
        ):
            return verdict(
                "merged",
                f"handed over in {other.inclusive_accuracy}, but alone only in {other.exclusive_accuracy}: the place holds "
                "other variables with it",
            )
        return verdict(
            "cannot tell",
            f"no single place or pair surely hands it over alone: {other.exclusive_accuracy}",
        )
    if full.roles != other.roles:
        return verdict(*_different_roles(full, other, other_seed_roles))
    return verdict(*_same_roles(transfer, margin))


def _different_roles(
    full: VariableSite, other: VariableSite, other_seed_roles: frozenset[str] | None
) -> tuple[VerdictLabel, str]:
    here, there = (" and ".join(sorted(found.roles)) for found in (full, other))
    if other_seed_roles not in (None, full.roles):
        return "cannot tell", f"held at {there}, not {here}; seeds differ in that, too"
    if full.roles < other.roles:
        return "split", f"held at {here}, it now takes {there} together"
    if other.roles < full.roles:
        return "merged", f"held at {here} together, it now stands at {there} alone"
    if other_seed_roles is None:
        return (
            "cannot tell",
            f"held at {there}, not {here}; no other seed says whether that is rare",
        )
    return "moved", f"held at {there}, where both seeds of the full model hold it at {here}"


def _same_roles(transfer: CrossModelTransfer, margin: float) -> tuple[VerdictLabel, str]:
    best = max(
        value.value for name, value in transfer.controls.items() if name != EMBEDDING_CONTROL
    )
    done = f"states of {transfer.donor} turn {transfer.interchange_accuracy}, its own {transfer.own_ridge_accuracy}"
    if transfer.shortfall.high < margin and transfer.interchange_accuracy.low > best:
        return "kept", f"the same role: {done}, the best stand-in {best:.2f}"
    if transfer.shortfall.low > margin:
        return "cannot tell", f"the same role in a code of its own: {done}"
    if not transfer.own_ridge_accuracy.low > MIN_INTERCHANGE_ACCURACY:
        return "cannot tell", f"the same role, in a code that no map takes over: {done}"
    return "cannot tell", f"the same role, and the codes are not surely one: {done}"


def _tests(
    full: VariableSite, other: VariableSite, transfer: CrossModelTransfer, margin: float
) -> list[StatisticalTest]:
    controls = {name: e for name, e in transfer.controls.items() if name != EMBEDDING_CONTROL}
    best = max(controls, key=lambda name: controls[name].value)
    found = [
        check_above(
            f"held at {full.site} of the full model",
            "no one place holds it",
            full.exclusive_accuracy,
            MIN_INTERCHANGE_ACCURACY,
            id=REFERENCE_SITE,
        ),
        check_above(
            f"held at {other.site}",
            "no one place or pair holds it",
            other.exclusive_accuracy,
            MIN_INTERCHANGE_ACCURACY,
            id="site",
        ),
        check_below(
            "as good as its own",
            "the full model's states do less",
            transfer.shortfall,
            margin,
            id=NON_INFERIORITY,
        )
        if transfer.own_ridge_accuracy.low > MIN_INTERCHANGE_ACCURACY
        else skipped_test(
            "as good as its own",
            "its own states do not go through a map either",
            id=NON_INFERIORITY,
        ),
        check_above(
            f"beyond stand-ins ({best})",
            "what is not the full model's work does as much",
            transfer.interchange_accuracy,
            controls[best].value,
            id="above_controls",
        ),
        check_above(
            "beyond the bare embedding",
            "the words' embedding carries it already",
            transfer.interchange_accuracy,
            transfer.controls[EMBEDDING_CONTROL].value,
            id="above_embedding",
        ).non_deciding(),
    ]
    if full.roles != other.roles:
        found.append(
            skipped_test(
                "at the same roles", "it stands at others, for whatever reason", id="same_roles"
            )
        )
    if transfer.negative_controls:
        name = max(
            transfer.negative_controls, key=lambda stranger: transfer.negative_controls[stranger]
        )
        found.append(
            check_above(
                f"beyond {name}",
                "a net trained for another end carries as much",
                transfer.interchange_accuracy,
                transfer.negative_controls[name],
                id="above_negative_controls",
            ).non_deciding()
        )
    return found
