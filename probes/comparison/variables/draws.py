"""Repeated draws of prompts, held-out words, folds and sites: what holds in all of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from probes.comparison.variables.result import RANDOM_INIT, CrossModelTransfer, VariableDraw
from probes.comparison.variables.verdicts import VariableSite
from probes.comparison.verdict import Verdict
from probes.stats.intervals import Estimate, difference, pool_draws, pool_groups


@dataclass(frozen=True, eq=False)
class MeasuredDraw:
    """Measurements of one variable in one draw.

    Attributes:
        seed: Seed of the draw.
        full, other: Site in the full model and in the relative.
        transfer: Transfer from the full model to the relative.
        verdict: Verdict by this draw alone.
    """

    seed: int
    full: VariableSite
    other: VariableSite
    transfer: CrossModelTransfer
    verdict: Verdict

    def result(self) -> VariableDraw:
        """The numbers that a saved comparison keeps."""
        return VariableDraw(
            variable=self.verdict.subject,
            seed=self.seed,
            full_site=self.full.site,
            site=self.other.site,
            interchange_accuracy=self.transfer.interchange_accuracy,
            label=self.verdict.label,
        )


def pool_accuracies(draws: Sequence[Estimate]) -> Estimate:
    """Mean of an accuracy over draws; its interval stays within 0 and 1."""
    return pool_draws(draws, bounds=(0, 1))


def pool_transfers(draws: Sequence[CrossModelTransfer]) -> CrossModelTransfer:
    """Transfer of one variable over all draws.

    Accuracies and paired differences are means over the draws. Sites, missed pairs, random-init
    models and negative controls are those of the first draw, the only one in which these run.
    """
    first = draws[0]
    if len(draws) == 1:
        return first
    kinds = [kind for kind in first.maps if all(kind in draw.maps for draw in draws)]
    maps = _pool_mappings([{kind: draw.maps[kind] for kind in kinds} for draw in draws])
    paired = [name for name in first.controls if name != RANDOM_INIT]
    controls = _pool_mappings([{name: d.controls[name] for name in paired} for d in draws])
    excesses = {
        name: pool_draws([draw.excesses[name] for draw in draws], bounds=(-1, 1)) for name in paired
    }
    if RANDOM_INIT in first.controls:
        controls[RANDOM_INIT] = first.controls[RANDOM_INIT]
        excesses[RANDOM_INIT] = difference(maps["ridge"], controls[RANDOM_INIT])
    return replace(
        first,
        pairs=sum(draw.pairs for draw in draws),
        maps=maps,
        controls=controls,
        excesses=excesses,
        by_verbs=_pool_verbs([draw.by_verbs for draw in draws]),
        own_accuracy=pool_accuracies([draw.own_accuracy for draw in draws]),
        own_ridge_accuracy=pool_accuracies([draw.own_ridge_accuracy for draw in draws]),
        shortfall=pool_draws([draw.shortfall for draw in draws], bounds=(-1, 1)),
    )


def shared_roles(draws: Sequence[MeasuredDraw]) -> tuple[MeasuredDraw, ...]:
    """Draws whose two sites have the most frequent roles; the others found other sites."""
    roles = Counter((draw.full.roles, draw.other.roles) for draw in draws)
    (most, _), *_ = roles.most_common(1)
    return tuple(draw for draw in draws if (draw.full.roles, draw.other.roles) == most)


def pool_sites(draws: Sequence[VariableSite]) -> VariableSite:
    """Site of the first draw with the mean accuracies of all draws."""
    return replace(
        draws[0],
        exclusive_accuracy=pool_accuracies([draw.exclusive_accuracy for draw in draws]),
        inclusive_accuracy=pool_accuracies([draw.inclusive_accuracy for draw in draws]),
    )


def settle_verdict(pooled: Verdict, draws: Sequence[MeasuredDraw]) -> Verdict:
    """Verdict by all draws together, where the single draws agree with it.

    All draws but one must find sites of the same roles, at least one draw must decide for the
    verdict, and none for another one.
    """
    if pooled.label == "cannot tell" or len(draws) == 1:
        return pooled
    same = len(shared_roles(draws))
    if same < len(draws) - 1:
        reason = f"only {same} of {len(draws)} draws of prompts and words find sites of one role"
        return replace(pooled, label="cannot tell", reason=reason)
    labels = Counter(draw.verdict.label for draw in draws)
    if labels.keys() - {"cannot tell"} == {pooled.label}:
        return pooled
    counts = ", ".join(f"{label} in {count}" for label, count in labels.most_common())
    reason = f"{len(draws)} draws of prompts and words differ: {counts}"
    return replace(pooled, label="cannot tell", reason=reason)


def _pool_mappings(draws: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """Accuracies by key; all draws have the same keys."""
    return {key: pool_accuracies([draw[key] for draw in draws]) for key in draws[0]}


def _pool_verbs(draws: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """Accuracies by group of verbs; a draw holds out only some of the groups."""
    keys = dict.fromkeys(key for draw in draws for key in draw)
    groups = [[draw[key] for draw in draws if key in draw] for key in keys]
    return dict(zip(keys, pool_groups(groups, bounds=(0, 1)), strict=True))
