"""What is measured once of each model, and of each net that stands for chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np

from probes.comparison.heads.head_sets import HeadView
from probes.comparison.heads.profiles import Profiles, profile
from probes.comparison.result import Relative, View
from probes.comparison.variables.held_out_folds import Trials, distinct, draw_trials
from probes.comparison.variables.stitching import (
    Donor,
    Host,
    Texts,
    held_at,
    read_donor,
    read_host,
    texts,
)
from probes.comparison.variables.transfer import Hits, handed
from probes.errors import BatchError, PatternError
from probes.interventions.sweep import Effects
from probes.models.model import Model, untrained
from probes.models.site import Cell
from probes.observe.attention import role_attention
from probes.observe.behaviour import Behaviour, behaviour
from probes.observe.gate import Gate, ask, judge
from probes.prompts.batch import Batch, encode
from probes.prompts.pair_batch import PairBatch, draw_pairs, encode_pairs, fits
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair, Question
from probes.prompts.tokenization import REST

_GATE_ITEMS = 200
_FEWEST_PAIRS = 4
_BASES, _FITTED = 150, 400  # Crossings and questions of a transfer.


@dataclass(frozen=True, eq=False)
class Plan:
    """What all compared models read.

    Attributes:
        pattern: The pattern.
        questions: Asked of each, for the gate.
        pairs: For each contrast, what is patched.
        roles: The roles that all models have.
        trials: What states are carried over on; None where that cannot be tried.
        why: Why it cannot.
        seed: Of everything.
    """

    pattern: Pattern
    questions: tuple[Question, ...]
    pairs: Mapping[str, Sequence[Pair]]
    roles: tuple[str, ...]
    trials: Trials | None
    why: str
    seed: int


@dataclass(frozen=True, eq=False)
class Measured:
    """One model, measured on the plan.

    Attributes:
        model: The model.
        behaviour, gates: What it answered, and whether it can do it.
        heads: What its heads do, by contrast.
        view: What its pictures are drawn from.
        exact: For each contrast the share of pairs whose tokens all had a counterpart.
        donor: Its states, to be put into others.
        host: Itself, to be put into; None where it cannot do it.
    """

    model: Model
    behaviour: Behaviour
    gates: tuple[Gate, ...]
    heads: HeadView
    view: View
    exact: Mapping[str, float]
    donor: Donor | None
    host: Host | None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def profiles(self) -> Profiles:
        """What each head does, prompt by prompt."""
        return self.heads.profiles

    def beside(self) -> "Aside":
        """Return it as one that others are held against."""
        cells = self.host.cells if self.host else {}
        return Aside(self.model, self.profiles, self.donor, cells)


@dataclass(frozen=True, eq=False)
class Aside:
    """A model that others are held against: another seed, a control, a stranger.

    Attributes:
        model: The model.
        profiles: What its heads do.
        donor: Its states.
        cells: Where it holds each variable; none where that was not asked for.
    """

    model: Model
    profiles: Profiles
    donor: Donor | None
    cells: Mapping[str, Cell]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name


@dataclass(frozen=True, eq=False)
class Nulls:
    """Untrained nets of one shape, and what they all read.

    Attributes:
        like: A model of the shape.
        hosts: Whom their states are put into.
        read: What they read for that.
        pairs, asked: What else is measured of them; None where nothing is.
    """

    like: Model
    hosts: Sequence[Host]
    read: Texts | None
    pairs: Mapping[str, PairBatch] | None
    asked: Batch | None


@dataclass(frozen=True, eq=False)
class Net:
    """An untrained net: what its heads do, how often it is right, and what its states turn.

    Attributes:
        profiles, accuracy: None where only its states were asked for.
        hits: For each recipient, by name.
    """

    profiles: Profiles | None
    accuracy: np.ndarray | None
    hits: Mapping[str, Hits]


def draw_plan(
    pattern: Pattern,
    models: Sequence[Model],
    prompts: int,
    seed: int,
    steps: Any,  # noqa: ANN401 (a bar around the contrasts)
) -> Plan:
    """Draw what all models read; nothing that one of their tokenizers cannot."""
    tokenizers = distinct([model.tokenizer for model in models])
    pairs = {c: _pairs(pattern, c, prompts, tokenizers, seed) for c in steps(pattern.contrasts)}
    trials, why = None, ""
    try:
        trials = draw_trials(
            pattern, tokenizers=tokenizers, bases=_BASES, prompts=_FITTED, seed=seed
        )
    except PatternError as error:
        why = str(error)
    return Plan(
        pattern=pattern,
        questions=pattern.questions(_GATE_ITEMS, seed=seed, keep=fits(*tokenizers)),
        pairs=pairs,
        roles=_shared_roles([_encoded(model, pairs) for model in models]),
        trials=trials,
        why=why,
        seed=seed,
    )


def measured(model: Model, plan: Plan) -> Measured:
    """Ask a model, patch each of its components, pool its attention, and keep its states."""
    batches = _encoded(model, plan.pairs)
    found, effects = profile(model, batches, plan.roles, kinds=("heads", "mlps"))
    said = ask(model, plan.questions)
    gates = judge(said, plan.questions, seed=plan.seed)
    host, turn = None, Lock()
    if plan.trials and all(gate.state != "closed" for gate in gates):
        host = replace(read_host(model, plan.trials, seed=plan.seed), turn=turn)
    donor = host.own if host else read_donor(model, plan.trials) if plan.trials else None
    return Measured(
        model=model,
        behaviour=said,
        gates=gates,
        heads=HeadView(model, batches, found, turn),
        view=_view(model, batches, plan.roles, effects),
        exact={contrast: effect.exact for contrast, effect in effects.items()},
        donor=donor,
        host=host,
    )


def aside(model: Model, plan: Plan, *, sites: bool) -> Aside:
    """Measure a model that others are held against; `sites`: where it holds variables as well."""
    found, _ = profile(model, _encoded(model, plan.pairs), plan.roles)
    trials = plan.trials
    return Aside(
        model=model,
        profiles=found,
        donor=read_donor(model, trials) if trials and not sites else None,
        cells=held_at(model, trials, seed=plan.seed) if trials and sites else {},
    )


def nulls_like(like: Model, plan: Plan, hosts: Sequence[Host], *, alone: bool) -> Nulls:
    """Prepare the untrained nets of one shape; `alone`: only what their states turn in hosts."""
    return Nulls(
        like=like,
        hosts=hosts if plan.trials else (),
        read=texts(like, plan.trials) if plan.trials and hosts else None,
        pairs=None if alone else _encoded(like, plan.pairs),
        asked=None if alone else encode(like.tokenizer, plan.questions, limit=like.shape.context),
    )


def net(one: Nulls, number: int, plan: Plan, building: Lock) -> Net:
    """Measure the untrained net of one shape and number."""
    with building:  # Fresh weights are drawn from torch's one generator.
        model = untrained(one.like, seed=plan.seed + number)
    hits = {}
    if plan.trials and one.read:
        donor = read_donor(model, plan.trials, read=one.read)
        for host in one.hosts:
            found = handed(host, [donor], plan.trials, plan.trials.variables)
            hits[host.name] = found[model.name]
    if one.pairs is None or one.asked is None:
        return Net(None, None, hits)
    found, _ = profile(model, one.pairs, plan.roles)
    right = behaviour(model, one.asked).right
    return Net(found, right.float().mean(0).numpy(), hits)


def relative(model: Model) -> Relative:
    """Return the plain facts of a model."""
    shape = model.shape
    count = int(model.bridge.n_params_total)
    return Relative(model.name, model.origin, shape.layers, shape.heads, shape.d_model, count)


def _pairs(
    chosen: Pattern, contrast: str, prompts: int, tokenizers: Sequence[Any], seed: int
) -> tuple[Pair, ...]:
    if chosen.given:
        prompts = min(prompts, sum(pair.contrast == contrast for pair in chosen.given))
    if prompts < _FEWEST_PAIRS:
        raise BatchError(
            f"Contrast {contrast!r} has {prompts} pairs: halves and intervals need at least "
            f"{_FEWEST_PAIRS}"
        )
    return draw_pairs(chosen, contrast, prompts, tokenizers=tokenizers, seed=seed)


def _encoded(model: Model, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, PairBatch]:
    limit = model.shape.context
    return {c: encode_pairs(model.tokenizer, given, limit=limit) for c, given in pairs.items()}


def _shared_roles(everyone: Sequence[Mapping[str, PairBatch]]) -> tuple[str, ...]:
    """Return the roles that all models have, in the order in which texts show them.

    The answer that is read last is left out: nothing is read behind it.
    """
    places: list[dict[str, list[float]]] = []
    for batches in everyone:
        found: dict[str, list[float]] = {}
        for pairs in batches.values():
            for role in pairs.clean.roles:
                where = pairs.clean.where(role).nonzero()[:, 1].double()
                found.setdefault(role, []).append(float(where.mean()))
        places.append(found)
    first = next(iter(everyone[0].values())).clean
    last = f"reply_{first.readouts[-1].name}" if first.readouts else ""
    shared = [r for r in places[0] if r != last and all(r in found for found in places)]
    return tuple(sorted(shared, key=lambda r: (r == REST, float(np.mean(places[0][r])))))


def _view(
    model: Model,
    batches: Mapping[str, PairBatch],
    roles: tuple[str, ...],
    effects: Mapping[str, Effects],
) -> View:
    seen = role_attention_over(model, batches, roles)
    mean_of = {c: _laid(e.mean.numpy(), e.roles, roles) for c, e in effects.items()}
    error_of = {c: _laid(e.error.numpy(), e.roles, roles) for c, e in effects.items()}
    components = next(iter(effects.values())).components
    return View(*seen, components, mean_of, error_of)


def role_attention_over(
    model: Model, batches: Mapping[str, PairBatch], roles: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Pool attention over the clean prompts of all contrasts: mean and standard error."""
    found = []
    for pairs in batches.values():
        seen = role_attention(model, pairs.clean)
        each = seen.each.numpy()
        full = np.full((*each.shape[:3], len(roles), len(roles)), np.nan)
        here = [role for role in roles if role in seen.roles]
        at = np.array([seen.roles.index(role) for role in here])
        to = np.array([roles.index(role) for role in here])
        full[..., to[:, None], to] = each[..., at[:, None], at]
        found.append(full)
    every = np.concatenate(found)
    there = (~np.isnan(every)).sum(0)
    total = np.where(there > 0, np.nansum(every, 0) / np.maximum(there, 1), np.nan)
    spread = np.nansum((every - total) ** 2, 0) / np.maximum(there * (there - 1), 1)
    return total, np.where(there > 1, np.sqrt(spread), np.nan)


def _laid(values: np.ndarray, here: Sequence[str], roles: Sequence[str]) -> np.ndarray:
    full = np.full((values.shape[0], len(roles), values.shape[2]), np.nan)
    full[:, [roles.index(role) for role in here]] = values
    return full
