"""What became of each variable: is it held at the same place, in the same code?

Rules, in this order (`HELD` and the margin are shares of crossings):

behaviour absent  the relative's gate for the answer that the variable moves is closed
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

from probes.comparison.variables.held_out_folds import Trials
from probes.comparison.variables.stitching import Host
from probes.comparison.variables.transfer import EMBEDDING, Transfer
from probes.comparison.verdict import AS_GOOD, Fate, Word
from probes.interventions.interchange import exchange
from probes.models.site import site_name
from probes.observe.gate import Gate
from probes.prompts.interchange_pairs import OBJECT
from probes.stats.evidence import Evidence, above, below, untested
from probes.stats.intervals import Estimate, share

HELD = 0.5
"""A place holds a variable if it hands it over, alone, in more of the crossings than this."""


@dataclass(frozen=True, eq=False)
class Held:
    """Where a model holds a variable.

    Attributes:
        site: The place, such as "L1.resid@op".
        roles: Its roles.
        alone: How often just the variable is handed over there.
        along: How often it is, alone or with others.
    """

    site: str
    roles: frozenset[str]
    alone: Estimate
    along: Estimate


def held(host: Host, trials: Trials, variable: str, alone: Estimate) -> Held:
    """Say where a model holds a variable; `alone` is what its site was measured to hand over."""
    cell = host.cells[variable]
    along = alone
    if variable != OBJECT:
        with host.turn:
            found = exchange(host.crossed, [cell])
        along = share(found.takes(variable)[0][trials.judged(variable)])
    return Held(site_name(cell), frozenset(cell.role.split("+")), alone, along)


def absent_variable(variable: str, gates: Sequence[Gate]) -> Fate:
    """Say that a model does not do what a variable is for; the other answer may be there."""
    gate = _gate(variable, gates)
    if gate.state == "closed":
        return Fate(variable, "variable", "behaviour absent", "", _nothing(gate))
    why = f"{gate.answer} is there, but not all of the behaviour: nothing was put in"
    return Fate(variable, "variable", "cannot tell", "", why)


def _gate(variable: str, gates: Sequence[Gate]) -> Gate:
    return gates[-1] if variable == OBJECT else gates[0]


def _nothing(gate: Gate) -> str:
    return f"{gate.answer} is right in {gate.accuracy}: there is nothing to keep"


def variable_fate(  # noqa: PLR0913 (two models, what was carried over, and the other seed)
    full: Held,
    other: Held,
    carried: Transfer,
    gates: Sequence[Gate],
    *,
    twin: frozenset[str] | None = None,
    margin: float = 0.1,
) -> Fate:
    """Judge one variable; see the rules at the head of this module.

    Args:
        full, other: Where the two models hold it.
        carried: The transfer of it from the full model to the relative.
        gates: The relative's gates, one for each answer.
        twin: The roles at which another seed of the full model holds it.
        margin: How much less than the relative's own the full model's states may do.
    """
    name, gate = carried.variable, _gate(carried.variable, gates)
    tests = tuple(_tests(full, other, carried, margin))

    def fate(word: Word, reason: str) -> Fate:
        return Fate(name, "variable", word, other.site, reason, tests)

    if gate.state == "closed":
        return fate("behaviour absent", _nothing(gate))
    if not full.alone.low > HELD:
        return fate("cannot tell", f"no place of the full model surely holds it: {full.alone}")
    if not other.alone.low > HELD:
        if other.along.low > HELD and other.alone.high < HELD:
            return fate(
                "merged",
                f"handed over in {other.along}, but alone only in {other.alone}: the place holds "
                "other variables with it",
            )
        return fate(
            "cannot tell", f"no single place or pair surely hands it over alone: {other.alone}"
        )
    if full.roles != other.roles:
        return fate(*_elsewhere(full, other, twin))
    return fate(*_coded(carried, margin))


def _elsewhere(full: Held, other: Held, twin: frozenset[str] | None) -> tuple[Word, str]:
    here, there = (" and ".join(sorted(found.roles)) for found in (full, other))
    if twin not in (None, full.roles):
        return "cannot tell", f"held at {there}, not {here}; seeds differ in that, too"
    if full.roles < other.roles:
        return "split", f"held at {here}, it now takes {there} together"
    if other.roles < full.roles:
        return "merged", f"held at {here} together, it now stands at {there} alone"
    if twin is None:
        return (
            "cannot tell",
            f"held at {there}, not {here}; no other seed says whether that is rare",
        )
    return "moved", f"held at {there}, where both seeds of the full model hold it at {here}"


def _coded(carried: Transfer, margin: float) -> tuple[Word, str]:
    best = max(value.value for name, value in carried.controls.items() if name != EMBEDDING)
    done = f"states of {carried.donor} turn {carried.value}, its own {carried.ceiling}"
    if carried.shortfall.high < margin and carried.value.low > best:
        return "kept", f"the same role: {done}, the best stand-in {best:.2f}"
    if carried.shortfall.low > margin:
        return "cannot tell", f"the same role in a code of its own: {done}"
    if not carried.ceiling.low > HELD:
        return "cannot tell", f"the same role, in a code that no map takes over: {done}"
    return "cannot tell", f"the same role, and the codes are not surely one: {done}"


def _tests(full: Held, other: Held, carried: Transfer, margin: float) -> list[Evidence]:
    controls = {name: e for name, e in carried.controls.items() if name != EMBEDDING}
    best = max(controls, key=lambda name: controls[name].value)
    found = [
        above(f"held at {full.site} of the full model", "no one place holds it", full.alone, HELD),
        above(f"held at {other.site}", "no one place or pair holds it", other.alone, HELD),
        below(AS_GOOD, "the full model's states do less", carried.shortfall, margin)
        if carried.ceiling.low > HELD
        else untested(AS_GOOD, "its own states do not go through a map either"),
        above(
            f"beyond stand-ins ({best})",
            "what is not the full model's work does as much",
            carried.value,
            controls[best].value,
        ),
        above(
            "beyond the bare embedding",
            "the words' embedding carries it already",
            carried.value,
            carried.controls[EMBEDDING].value,
            decides=False,
        ),
    ]
    if full.roles != other.roles:
        found.append(untested("at the same roles", "it stands at others, for whatever reason"))
    if carried.strangers:
        name = max(carried.strangers, key=lambda stranger: carried.strangers[stranger])
        found.append(
            above(
                f"beyond {name}",
                "a net trained for another end carries as much",
                carried.value,
                carried.strangers[name],
                decides=False,
            )
        )
    return found
