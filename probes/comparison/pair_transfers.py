"""Cross-model interchange between a full model and a relative, draw by draw, and its verdicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from probes.comparison.circuits.edge_result import EdgeComparison
from probes.comparison.measurements import ModelMeasurements, ReferenceModel
from probes.comparison.nulls import NullDraw, architecture_key
from probes.comparison.paths.measure import PathMeasurements
from probes.comparison.setup.parallel import RunAll
from probes.comparison.setup.prompts import ComparisonPrompts
from probes.comparison.variables.donors import AnyDonor, ModelDonor, Recipient, find_recipient
from probes.comparison.variables.draws import (
    MeasuredDraw,
    pool_sites,
    pool_transfers,
    settle_verdict,
    shared_roles,
)
from probes.comparison.variables.held_out_folds import HeldOutFolds
from probes.comparison.variables.result import CrossModelTransfer, VariableDraw
from probes.comparison.variables.transfer import Hits, TransferBaselines, evaluate_donor
from probes.comparison.variables.verdicts import (
    VariableSite,
    absent_variable_verdict,
    variable_site,
    variable_verdict,
)
from probes.comparison.verdict import Verdict
from probes.models.model import Model

_FURTHER = "further draws"

DrawRuns = Recipient | AnyDonor | None
"""A model as a recipient, whose own states are those of a donor, or as a donor alone."""


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """Models that a pair of models is compared against.

    Attributes:
        nulls: Draws of the null: random-init models by architecture, or permuted measurements by
            name of the relative.
        other_seed: The full model trained from another seed.
        same_shape: By name of the relative, a control of its shape trained without the full model.
        negative_controls: Models trained on another task.
        paths: Effects of role paths in all models.
        negative_control_hits: By name of the recipient and of the negative control, the prompts
            whose answer an interchange from that control changes to the source's.
        edges: By name of the relative, the comparison edge by edge where it was made.
    """

    nulls: Mapping[object, Sequence[NullDraw]]
    other_seed: ReferenceModel | None
    same_shape: Mapping[str, ReferenceModel]
    negative_controls: Sequence[ReferenceModel]
    paths: PathMeasurements
    negative_control_hits: Mapping[str, Mapping[str, Hits]]
    edges: Mapping[str, EdgeComparison] = field(default_factory=dict)

    def nulls_of(self, model: Model) -> Sequence[NullDraw]:
        """Draws of the null of a model; none for a donor whose measurements are not permuted."""
        return self.nulls.get(architecture_key(model)) or self.nulls.get(model.name, ())


@dataclass(frozen=True, eq=False)
class PairDraw:
    """Transfers between a full model and a relative in one draw of prompts, words and folds.

    Attributes:
        seed: Seed of the draw.
        to_other, to_full: Transfer of each variable; empty where the recipient has a closed gate.
        sites: Site of each variable in the full model and in the relative; empty where one has a
            closed gate.
    """

    seed: int
    to_other: tuple[CrossModelTransfer, ...]
    to_full: tuple[CrossModelTransfer, ...]
    sites: tuple[tuple[VariableSite, VariableSite], ...]


@dataclass(frozen=True, eq=False)
class MeasuredPair:
    """A full model and a relative with their transfers in each draw; none without folds."""

    full: ModelMeasurements
    other: ModelMeasurements
    draws: tuple[PairDraw, ...]


def measure_pairs(
    prompts: ComparisonPrompts,
    measured: Sequence[ModelMeasurements],
    references: ReferenceSet,
    run_all: RunAll,
    run_unit: Callable[..., Any],
) -> list[MeasuredPair]:
    """Interchange between the full model and each relative; `run_unit` is that of `run_all`."""
    full, *relatives = measured
    if prompts.folds is None:
        return [MeasuredPair(full, other, ()) for other in relatives]
    first = partial(first_draw, prompts, full, references=references)
    firsts = run_all(first, relatives, "interchange")
    # A draw at a time in each thread, and a relative at a time in it: few runs are in memory.
    draw = partial(_further_draws, measured=measured, run_unit=partial(run_unit, _FURTHER))
    draws = [firsts, *run_all(draw, [*prompts.further_folds.items()], _FURTHER, is_unit=False)]
    return [
        MeasuredPair(full, other, tuple(own))
        for other, own in zip(relatives, zip(*draws, strict=True), strict=True)
    ]


def _further_draws(
    draw: tuple[int, HeldOutFolds],
    measured: Sequence[ModelMeasurements],
    run_unit: Callable[..., Any],
) -> list[PairDraw]:
    """Transfers of each relative in one further draw, given with its seed."""
    seed, folds = draw
    run = partial(run_unit, run_draw, folds=folds, seed=seed)
    full, relatives = run(measured[0]), measured[1:]
    return [run_unit(further_draw, (full, run(relative)), seed=seed) for relative in relatives]


def run_draw(measured: ModelMeasurements, folds: HeldOutFolds, seed: int) -> DrawRuns:
    """Run a model on the prompts of a further draw, as a recipient if it is one."""
    if measured.recipient is None:
        return ModelDonor(measured.model, folds)
    with measured.model.turn:  # Another thread may run another draw.
        return find_recipient(measured.model, folds, seed=seed)


def first_draw(
    prompts: ComparisonPrompts,
    full: ModelMeasurements,
    other: ModelMeasurements,
    *,
    references: ReferenceSet,
) -> PairDraw:
    """Transfers with random-init models of the donor's shape and with negative controls."""

    def baselines(
        donor: ModelMeasurements, recipient: ModelMeasurements
    ) -> TransferBaselines | None:
        random_init = references.nulls_of(donor.model)
        if not any(null.hits for null in random_init):
            return None  # The permuted null: shuffled states and labels are the controls.
        hits = references.negative_control_hits.get(recipient.name, {}).items()
        return TransferBaselines(
            nulls={
                str(n): null.hits[recipient.name]
                for n, null in enumerate(random_init)
                if recipient.name in null.hits
            },
            negative_controls={
                name: one for name, one in hits if name not in (donor.name, recipient.name)
            },
        )

    runs = full.recipient or full.donor, other.recipient or other.donor
    return _pair_draw(runs, (baselines(full, other), baselines(other, full)), prompts.seed)


def further_draw(runs: tuple[DrawRuns, DrawRuns], seed: int) -> PairDraw:
    """Transfers of another draw, without random-init models and negative controls."""
    return _pair_draw(runs, (None, None), seed)


def _pair_draw(
    runs: tuple[DrawRuns, DrawRuns],
    baselines: tuple[TransferBaselines | None, TransferBaselines | None],
    seed: int,
) -> PairDraw:
    a, b = (one if isinstance(one, Recipient) else None for one in runs)
    a_donor, b_donor = (one.self_donor if isinstance(one, Recipient) else one for one in runs)
    to_other, to_full = (
        evaluate_donor(recipient, donor, recipient.folds.variables, baseline, seed=seed)
        if recipient and donor
        else ()
        for recipient, donor, baseline in ((b, a_donor, baselines[0]), (a, b_donor, baselines[1]))
    )
    names = a.folds.variables if a and b else ()
    sites = [(variable_site(a, name), variable_site(b, name)) for name in names if a and b]
    return PairDraw(seed, to_other, to_full, tuple(sites))


def pool_directions(
    draws: Sequence[PairDraw],
) -> tuple[tuple[CrossModelTransfer, ...], tuple[CrossModelTransfer, ...]]:
    """Transfers to the relative and to the full model, pooled over the draws."""
    to_other, to_full = (
        tuple(pool_transfers(transfers) for transfers in zip(*by_draw, strict=True))
        for by_draw in ([draw.to_other for draw in draws], [draw.to_full for draw in draws])
    )
    return to_other, to_full


def variable_verdicts(
    pair: MeasuredPair, prompts: ComparisonPrompts, other_seed: ReferenceModel | None
) -> tuple[tuple[Verdict, ...], tuple[VariableDraw, ...]]:
    """Verdict on each variable by all draws, and what each draw gave."""
    gates = pair.other.gates
    if prompts.folds is None or pair.full.recipient is None:
        return (), ()
    if pair.other.recipient is None:
        names = prompts.folds.variables
        return tuple(absent_variable_verdict(name, gates) for name in names), ()
    verdicts, results = [], []
    for number, variable in enumerate(prompts.folds.variables):
        roles = _other_seed_roles(other_seed, pair.other.name, variable)
        draws = []
        for draw in pair.draws:
            sites, transfer = draw.sites[number], draw.to_other[number]
            verdict = variable_verdict(*sites, transfer, gates, other_seed_roles=roles)
            draws.append(MeasuredDraw(draw.seed, *sites, transfer, verdict))
        pooled = draws[0].verdict
        if len(draws) > 1:
            same_roles = shared_roles(draws)
            pooled = variable_verdict(
                pool_sites([draw.full for draw in same_roles]),
                pool_sites([draw.other for draw in same_roles]),
                pool_transfers([draw.transfer for draw in draws]),
                gates,
                other_seed_roles=roles,
            )
        verdicts.append(settle_verdict(pooled, draws))
        results += [draw.result() for draw in draws]
    return tuple(verdicts), tuple(results)


def _other_seed_roles(
    other_seed: ReferenceModel | None, relative: str, variable: str
) -> frozenset[str] | None:
    """Roles at which the other-seed model codes a variable; none where no site carries it.

    None where there is no such model, or the relative is that model itself.
    """
    if other_seed is None or other_seed.name == relative:
        return None
    site = other_seed.sites.get(variable)
    return frozenset(site.role.split("+")) if site else frozenset()
