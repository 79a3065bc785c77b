"""Verdicts on variables: is the variable at the same role, in the same code?

"Accuracy" is interchange accuracy; "above" and "below" mean that the 95 % interval excludes the
limit. The rules are tried in this order; the first that applies gives the verdict.

| verdict | rule for a variable |
|---|---|
| behavior absent | the relative's gate of the answer that depends on the variable is closed |
| cannot tell | no site of the full model has an accuracy above one half |
| merged | the relative's site has it above one half, but only together with other variables |
| cannot tell | no site or pair of sites of the relative has an accuracy above one half |
| cannot tell | the roles differ, and differ in the other-seed model as well |
| split | the relative needs more roles than the full model |
| merged | the relative needs fewer roles than the full model |
| moved | the role differs, and is the same in the other-seed model |
| cannot tell | the role differs, and no other-seed model has an accuracy above one half |
| kept | at the same role, states of the full model reach the accuracy of the relative's own states
minus the margin, exceed random-init models (in the first draw; none with the permuted null, which
is said), labels and shuffled states, and reach one half with each group of held-out verbs |
| cannot tell | the role is the same, but no map between the codes was shown |

A variable is never lost while the gate is open, because the answer depends on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from probes.comparison.variables.donors import Recipient
from probes.comparison.variables.result import (
    EMBEDDING_CONTROL,
    RANDOM_INIT,
    CrossModelTransfer,
)
from probes.comparison.verdict import NON_INFERIORITY, REFERENCE_SITE, Verdict, VerdictLabel
from probes.interventions.interchange import interchange_intervention
from probes.interventions.site_search import takes_only
from probes.models.site import Site
from probes.observe.result import Gate
from probes.prompts.interchange_pairs import OBJECT
from probes.stats.evidence import StatisticalTest, check_above, check_below, skipped_test
from probes.stats.intervals import Estimate, proportion

MIN_INTERCHANGE_ACCURACY = 0.5
"""Interchange accuracy that the site of a variable must exceed."""

NON_INFERIORITY_MARGIN = 0.1
"""Largest shortfall of a kept variable, in interchange accuracy."""


@dataclass(frozen=True, eq=False)
class VariableSite:
    """Site of a variable in a model.

    Attributes:
        site: The site, such as "L1.resid@op".
        roles: Its roles.
        exclusive_accuracy: How often the output takes the variable and no other.
        inclusive_accuracy: How often it takes the variable, alone or with others.
    """

    site: str
    roles: frozenset[str]
    exclusive_accuracy: Estimate
    inclusive_accuracy: Estimate


def variable_site(recipient: Recipient, variable: str) -> VariableSite:
    """Interchange accuracy of a model's own states at its site of a variable."""
    site, test = recipient.sites[variable], recipient.folds.test_mask(variable)
    with recipient.model.turn:
        outcomes = interchange_intervention(recipient.runs, [site])
    exclusive = inclusive = proportion(takes_only(outcomes, variable)[0][test])
    if variable != OBJECT:
        inclusive = proportion(outcomes.takes_variable(variable)[0][test])
    return VariableSite(str(site), frozenset(site.role.split("+")), exclusive, inclusive)


def carried_sites(recipient: Recipient) -> dict[str, Site]:
    """Sites that carry their variable alone in more than half of the pairs.

    Where nothing carries a variable, a search still names a site: the variable's own token.
    """
    return {
        variable: site
        for variable, site in recipient.sites.items()
        if variable_site(recipient, variable).exclusive_accuracy.low > MIN_INTERCHANGE_ACCURACY
    }


def absent_variable_verdict(variable: str, gates: Sequence[Gate]) -> Verdict:
    """Verdict for a model with a closed gate; the gate of the other answer may be open."""
    gate = _gate(variable, gates)
    if gate.state == "closed":
        return Verdict(variable, "variable", "behavior absent", "", _absent_reason(gate))
    if not gate.is_passed:
        return Verdict(variable, "variable", "cannot tell", "", gate.too_few_reason)
    reason = f"the gate of {gate.answer} is {gate.state}, but another is closed: no interchange"
    return Verdict(variable, "variable", "cannot tell", "", reason)


def variable_verdict(
    full: VariableSite,
    other: VariableSite,
    transfer: CrossModelTransfer,
    gates: Sequence[Gate],
    *,
    other_seed_roles: frozenset[str] | None = None,
) -> Verdict:
    """Verdict on one variable.

    Args:
        full, other: Sites in the full model and the relative.
        transfer: Transfer from the full model to the relative.
        gates: Gates of the relative, one for each answer.
        other_seed_roles: Roles of the site in the other-seed model; none where no site of it
            carries the variable. None without such a model.
    """
    label, reason = _label(full, other, transfer, _gate(transfer.variable, gates), other_seed_roles)
    tests = tuple(_tests(full, other, transfer))
    return Verdict(transfer.variable, "variable", label, other.site, reason, tests)


def _label(
    full: VariableSite,
    other: VariableSite,
    transfer: CrossModelTransfer,
    gate: Gate,
    other_seed_roles: frozenset[str] | None,
) -> tuple[VerdictLabel, str]:
    alone, together = other.exclusive_accuracy, other.inclusive_accuracy
    if gate.state == "closed":
        return "behavior absent", _absent_reason(gate)
    if not gate.is_passed:
        return "cannot tell", gate.too_few_reason
    if not full.exclusive_accuracy.low > MIN_INTERCHANGE_ACCURACY:
        reason = "no site of the full model carries it alone in more than half of the pairs"
        return "cannot tell", f"{reason}: {full.exclusive_accuracy}"
    if not alone.low > MIN_INTERCHANGE_ACCURACY:
        if together.low > MIN_INTERCHANGE_ACCURACY and alone.high < MIN_INTERCHANGE_ACCURACY:
            reason = f"the site carries it in {together}, but alone only in {alone}"
            return "merged", f"{reason}: it carries other variables as well"
        reason = "no site or pair of sites carries it alone in more than half of the pairs"
        return "cannot tell", f"{reason}: {alone}"
    if full.roles != other.roles:
        return _different_roles(full, other, other_seed_roles)
    return _same_roles(transfer)


def _different_roles(
    full: VariableSite, other: VariableSite, other_seed_roles: frozenset[str] | None
) -> tuple[VerdictLabel, str]:
    here, there = (" and ".join(sorted(site.roles)) for site in (full, other))
    if other_seed_roles and other_seed_roles != full.roles:
        return "cannot tell", f"at {there} instead of {here}; the other-seed model differs as well"
    if full.roles < other.roles:
        return "split", f"at {here} in the full model, at {there} together in the relative"
    if other.roles < full.roles:
        return "merged", f"at {here} together in the full model, at {there} alone in the relative"
    if not other_seed_roles:
        reason = "there is no other-seed model to compare"
        if other_seed_roles is not None:
            reason = "no site of the other-seed model carries it alone in half of the pairs"
        return "cannot tell", f"at {there} instead of {here}; {reason}"
    return "moved", f"at {there} instead of {here}, where both seeds of the full model have it"


def _same_roles(transfer: CrossModelTransfer) -> tuple[VerdictLabel, str]:
    best = max(estimate.value for estimate in _controls(transfer).values())
    accuracy, own = transfer.interchange_accuracy, transfer.own_ridge_accuracy
    numbers = f"accuracy {accuracy} with states of {transfer.donor}, {own} with its own"
    verbs, worst = _worst_verbs(transfer)
    if transfer.shortfall.high < NON_INFERIORITY_MARGIN and accuracy.low > best:
        if not worst.low > MIN_INTERCHANGE_ACCURACY:
            return "cannot tell", f"same role, but not for all verbs: {worst} with {verbs!r}"
        return "kept", f"same role: {numbers}, best of the controls {best:.2f}"
    if transfer.shortfall.low > NON_INFERIORITY_MARGIN:
        return "cannot tell", f"same role, but another code: {numbers}"
    if not own.low > MIN_INTERCHANGE_ACCURACY:
        return "cannot tell", f"same role, but no linear map preserves its own code: {numbers}"
    return "cannot tell", f"same role, but it is open whether the codes match: {numbers}"


def _worst_verbs(transfer: CrossModelTransfer) -> tuple[str, Estimate]:
    """Held-out verbs with the lowest accuracy; all words for the other variables."""
    if not transfer.by_verbs:
        return "all words", transfer.interchange_accuracy
    return min(transfer.by_verbs.items(), key=lambda item: item[1].low)


def _tests(
    full: VariableSite, other: VariableSite, transfer: CrossModelTransfer
) -> list[StatisticalTest]:
    controls, accuracy = _controls(transfer), transfer.interchange_accuracy
    best = max(controls, key=lambda name: controls[name].value)
    tests = [
        check_above(
            f"accuracy at {full.site} of the full model",
            "no single site carries it",
            full.exclusive_accuracy,
            MIN_INTERCHANGE_ACCURACY,
            id=REFERENCE_SITE,
        ),
        check_above(
            f"accuracy at {other.site}",
            "no site or pair of sites carries it",
            other.exclusive_accuracy,
            MIN_INTERCHANGE_ACCURACY,
            id="site",
        ),
        _non_inferiority(transfer),
        check_above(
            f"accuracy above controls ({best})",
            "a control does as much",
            accuracy,
            controls[best].value,
            id="above_controls",
        ),
        check_above(
            "accuracy above the token embedding",
            "the embedding of the words does as much",
            accuracy,
            transfer.controls[EMBEDDING_CONTROL].value,
            id="above_embedding",
        ).non_deciding(),
    ]
    if transfer.by_verbs:
        verbs, worst = _worst_verbs(transfer)
        name, meaning = f"accuracy with {verbs!r}", "it does not pass for these verbs"
        tests.append(check_above(name, meaning, worst, MIN_INTERCHANGE_ACCURACY, id="worst_verbs"))
    if RANDOM_INIT not in controls:
        name, why = "accuracy above random-init models", "none runs with a permuted null"
        test = skipped_test(name, why, is_deciding=False, id="above_random_init")
        tests.append(test)
    if full.roles != other.roles:
        tests.append(skipped_test("same roles", "the roles differ", id="same_roles"))
    if transfer.negative_controls:
        name, value = max(transfer.negative_controls.items(), key=lambda item: item[1])
        meaning, id = "a negative control does as much", "above_negative_controls"
        test = check_above(f"accuracy above {name}", meaning, accuracy, value, id=id)
        tests.append(test.non_deciding())
    return tests


def _non_inferiority(transfer: CrossModelTransfer) -> StatisticalTest:
    name, id = "shortfall from its own states", NON_INFERIORITY
    if not transfer.own_ridge_accuracy.low > MIN_INTERCHANGE_ACCURACY:
        return skipped_test(name, "no linear map preserves its own states", id=id)
    meaning = "states of the full model do less"
    return check_below(name, meaning, transfer.shortfall, NON_INFERIORITY_MARGIN, id=id)


def _controls(transfer: CrossModelTransfer) -> dict[str, Estimate]:
    """Controls that are not part of the donor."""
    return {name: e for name, e in transfer.controls.items() if name != EMBEDDING_CONTROL}


def _gate(variable: str, gates: Sequence[Gate]) -> Gate:
    return gates[-1] if variable == OBJECT else gates[0]


def _absent_reason(gate: Gate) -> str:
    return f"the gate of {gate.answer} is closed ({gate.score_name} {gate.score})"
