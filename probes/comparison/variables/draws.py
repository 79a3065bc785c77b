"""Repeated draws of prompts, held-out words, folds and sites: what holds in all of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from probes.comparison.variables.result import CrossModelTransfer, VariableDraw
from probes.comparison.variables.verdicts import VariableSite
from probes.comparison.verdict import Verdict
from probes.stats.intervals import Estimate, pool_draws

_ACCURACIES = ("own_accuracy", "own_ridge_accuracy")
_DIFFERENCES = ("excess", "shortfall")


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
    """Mean of the transfers of one variable; sites, nulls and missed pairs are the first draw's."""
    first = draws[0]
    return replace(
        first,
        pairs=sum(draw.pairs for draw in draws),
        maps=_pool_mappings([draw.maps for draw in draws]),
        controls=_pool_mappings([draw.controls for draw in draws]),
        by_words=_pool_mappings([draw.by_words for draw in draws]),
        **{name: pool_accuracies([getattr(draw, name) for draw in draws]) for name in _ACCURACIES},
        **{
            name: pool_draws([getattr(draw, name) for draw in draws], bounds=(-1, 1))
            for name in _DIFFERENCES
        },
    )


def pool_sites(draws: Sequence[VariableSite]) -> VariableSite:
    """Site of the first draw with the mean accuracies of all draws."""
    return replace(
        draws[0],
        exclusive_accuracy=pool_accuracies([draw.exclusive_accuracy for draw in draws]),
        inclusive_accuracy=pool_accuracies([draw.inclusive_accuracy for draw in draws]),
    )


def settle_verdict(pooled: Verdict, draws: Sequence[Verdict]) -> Verdict:
    """Verdict by all draws together, unless a single draw decides for another one."""
    labels = Counter(draw.label for draw in draws)
    if pooled.label == "cannot tell" or labels.keys() <= {pooled.label, "cannot tell"}:
        return pooled
    counts = ", ".join(f"{label} in {count}" for label, count in labels.most_common())
    reason = f"{len(draws)} draws of prompts and words differ: {counts}"
    return replace(pooled, label="cannot tell", reason=reason)


def _pool_mappings(draws: Sequence[Mapping]) -> dict:
    shared = [key for key in draws[0] if all(key in draw for draw in draws)]
    return {key: pool_accuracies([draw[key] for draw in draws]) for key in shared}
