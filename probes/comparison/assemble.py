"""What became of a model's heads and variables in one relative, put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.comparison.failing_prompts import head_items, variable_items
from probes.comparison.heads.matching import RELIABLE_FROM, Pairing, match_heads, pair_heads
from probes.comparison.heads.profiles import Profiles, similarity
from probes.comparison.heads.verdicts import Chance, head_fates
from probes.comparison.measurements import Aside, Measured, Net, Plan, relative
from probes.comparison.result import Comparison, Overall, Solved
from probes.comparison.variables.transfer import Hits, Transfer, judged, turned
from probes.comparison.variables.verdicts import absent_variable, held, variable_fate
from probes.comparison.verdict import Fate
from probes.models.model import Model
from probes.observe.behaviour import Behaviour
from probes.observe.gate import Gate, State
from probes.stats.intervals import interval, mean, share
from probes.stats.paired import paired

_DRAWS = 200
_WHERE_FROM = ("_name_or_path", "transformers_version")


@dataclass(frozen=True, eq=False)
class Around:
    """What two models are held against.

    Attributes:
        nets: Untrained nets, by shape.
        twin: Another seed of the full model.
        controls: For relatives, by name, one of their shape that never saw the full model.
        strangers: Models trained for another end.
        passed: For each recipient, by name, what the states of each stranger turn in it.
    """

    nets: Mapping[object, Sequence[Net]]
    twin: Aside | None
    controls: Mapping[str, Aside]
    strangers: Sequence[Aside]
    passed: Mapping[str, Mapping[str, Hits]]


def shape_of(model: Model) -> object:
    """Return what untrained nets of a model depend on: its config, but for where it came from."""
    told = {k: v for k, v in model.config.to_dict().items() if k not in _WHERE_FROM}
    return (model.shape, str(sorted(told.items())))


def compared(
    plan: Plan, a: Measured, b: Measured, around: Around, dials: tuple[int, int, int]
) -> Comparison:
    """Put together what was found of two models."""
    prompts, seed, nulls = dials
    nets = around.nets[shape_of(b.model)]
    twin = around.twin if around.twin and around.twin.name != b.name else None
    profiles = [found.profiles for found in nets if found.profiles]
    pairings = [pair_heads(a.profiles, found) for found in profiles]
    ceiling = pair_heads(a.profiles, around.twin.profiles) if around.twin else None
    matches = match_heads(
        a.profiles,
        b.profiles,
        nulls=np.stack([pairing.score for pairing in pairings]),
        ceiling=ceiling,
        seed=seed,
    )
    taken = {match.partner for match in matches if match.word == "matched"}
    repeats = b.profiles.halves().reliability()
    free = [h for h, r in zip(b.profiles.heads, repeats, strict=True) if r >= RELIABLE_FROM]
    heads = head_fates(
        a.heads,
        b.heads,
        Chance(
            untrained=profiles,
            strangers=[one.profiles for one in around.strangers if one.name != b.name],
            controls=[one.profiles for name, one in around.controls.items() if name == b.name],
            twin=twin.profiles if twin else None,
        ),
        gate=_worst((*a.gates, *b.gates)),
        seed=seed,
    )
    forth, back = _carried(plan, a, b, around), _carried(plan, b, a, around)
    variables = _variables(plan, a, b, twin, forth)
    items = {fate.subject: head_items(a, b, fate) for fate in heads if fate.subject}
    items |= {one.variable: variable_items(one, plan.trials) for one in forth if plan.trials}
    return Comparison(
        full=relative(a.model),
        other=relative(b.model),
        pattern=plan.pattern.name,
        title=plan.pattern.title,
        example=plan.questions[0].full_text,
        contrasts={contrast: a.exact[contrast] for contrast in plan.pairs},
        roles=plan.roles,
        answers=a.behaviour.answers,
        prompts=prompts,
        seed=seed,
        nulls=nulls,
        ceiling=around.twin.name if around.twin else "",
        gates=(*a.gates, *b.gates),
        untrained_accuracy=tuple(
            float(x) for x in np.mean([n.accuracy for n in nets if n.accuracy is not None], axis=0)
        ),
        solved=_solved({a.name: a.behaviour, b.name: b.behaviour}, seed),
        matches=matches,
        unmatched=tuple(head for head in free if head not in taken),
        overall=_overall(a.profiles, b.profiles, pairings, ceiling, seed),
        views={a.name: a.view, b.name: b.view},
        changes=tuple(
            paired(a.behaviour.right[:, k].numpy(), b.behaviour.right[:, k].numpy()).difference
            for k in range(len(a.behaviour.answers))
        ),
        fates=(*variables, *heads),
        forth=forth,
        back=back,
        untried=plan.why,
        items=items,
    )


def _worst(gates: Sequence[Gate]) -> State:
    order: tuple[State, ...] = ("open", "partial", "closed")
    return order[max(order.index(gate.state) for gate in gates)]


def _carried(plan: Plan, donor: Measured, host: Measured, around: Around) -> tuple[Transfer, ...]:
    """Judge what the donor's states turn in the host, beside nets of the donor's shape."""
    if plan.trials is None or host.host is None or donor.donor is None:
        return ()
    nets = around.nets[shape_of(donor.model)]
    passed = around.passed[host.name].items()
    return judged(
        host.host,
        donor.donor,
        plan.trials,
        plan.trials.variables,
        nulls={str(n): found.hits[host.name] for n, found in enumerate(nets)},
        strangers={name: hits for name, hits in passed if name not in (donor.name, host.name)},
        seed=plan.seed,
    )


def _variables(
    plan: Plan, a: Measured, b: Measured, twin: Aside | None, forth: Sequence[Transfer]
) -> tuple[Fate, ...]:
    if plan.trials is None or a.host is None:
        return ()
    if b.host is None:
        return tuple(absent_variable(variable, b.gates) for variable in plan.trials.variables)
    found = []
    for one in forth:
        mine = share(turned(a.host, plan.trials, one.variable))
        found.append(
            variable_fate(
                held(a.host, plan.trials, one.variable, mine),
                held(b.host, plan.trials, one.variable, one.whole),
                one,
                b.gates,
                twin=_roles(twin, one.variable),
            )
        )
    return tuple(found)


def _roles(twin: Aside | None, variable: str) -> frozenset[str] | None:
    """Return where another seed holds a variable; nowhere, if it cannot do it itself."""
    if twin is None or variable not in twin.cells:
        return None
    return frozenset(twin.cells[variable].role.split("+"))


def _solved(behaviours: Mapping[str, Behaviour], seed: int) -> tuple[Solved, ...]:
    both = np.logical_and.reduce([b.right.numpy().all(1) for b in behaviours.values()])
    found = []
    for name, seen in behaviours.items():
        for k, answer in enumerate(seen.answers):
            values = seen.lead[:, k].double().numpy()[both]
            lead = mean(values, seed=seed) if len(values) > 1 else None
            found.append(Solved(name, answer, int(both.sum()), lead))
    return tuple(found)


def _overall(
    a: Profiles, b: Profiles, nulls: Sequence[Pairing], ceiling: Pairing | None, seed: int
) -> Overall:
    found = pair_heads(a, b)
    drawn = similarity(a.drawn(_DRAWS, seed=seed), b.drawn(_DRAWS, seed=seed))
    rows = [k for k, partner in enumerate(found.partner) if partner >= 0]
    columns = [found.partner[k] for k in rows]
    chance = [pairing.mean for pairing in nulls]
    return Overall(
        score=interval(found.mean, drawn[:, rows, columns].mean(1)),
        chance=float(np.mean(chance)),
        chance_high=float(np.quantile(chance, 0.95)),
        # The best pairs of the other seed, as many as these models have: a mean over more is lower.
        ceiling=float(np.sort(ceiling.score)[::-1][: len(rows)].mean()) if ceiling else np.nan,
    )
