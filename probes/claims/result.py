"""What a proof found: verdicts, the numbers they rest on, and how they are saved."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.errors import ProbeError
from probes.interventions.hotspot_result import Hotspots
from probes.interventions.result import (
    BindingSwap,
    DASResult,
    DecodingResult,
    DirectionComparison,
    Dissociation,
    Necessity,
    OutputHeads,
    StateProjection,
    UnseenVerbs,
)
from probes.observe.result import Gate
from probes.result import Result
from probes.stats.evidence import ClaimVerdict
from probes.stats.intervals import Estimate


@dataclass(frozen=True, eq=False)
class BaseModelComparison:
    """What a tuned model does at the sites of the model before it.

    Attributes:
        before, after: The two models.
        own: How often the operation is taken up in the tuned model by its own direction.
        theirs: How often by the direction fitted in the model before, at the same site.
        difference: Own less theirs, paired by base.
        state: How often by the whole state of the model before, on the same text.
        stranger: How often by the direction fitted in an untrained model.
        heads_before, heads_after: The heads that bring the number to where it is read.
    """

    base: str
    tuned: str
    own_direction: Estimate
    base_direction: Estimate
    difference: Estimate
    base_state: Estimate
    random_init_direction: Estimate
    base_heads: tuple[str, ...]
    tuned_heads: tuple[str, ...]

    @property
    def head_overlap(self) -> float:
        """The Jaccard overlap of the heads that read the number out, 0 to 1."""
        both = {*self.base_heads, *self.tuned_heads}
        common = {*self.base_heads} & {*self.tuned_heads}
        return len(common) / len(both) if both else float("nan")


if TYPE_CHECKING:
    import pandas as pd

DECLARATIVE_SUFFIX = "-told"
_FEW_OBJECTS = 8  # Few enough that each stands in many prompts.


@dataclass(frozen=True, eq=False, repr=False)
class ClaimsReport(Result):
    """What became of the claims in one model, and all that was measured for it.

    Attributes:
        gates: Whether the model does the task: number, noun.
        verdicts: One for each claim.
        hot: Hotspots.
        variance: For the operation's site, the share of variance of each factor.
        object_there: Whether the object can be read at the operation's site.
        unseen: Directions tried on verbs that they were not fitted on.
        searched: Subspaces searched for at the operation's site.
        parted: The double dissociation; `two` where two things are spoken of.
        needed: What resampling the operation's directions costs.
        heads: The heads that bring each answer, and knocking them out.
        bound: Exchanging what binds two things to their numbers, layer by layer.
        aligned: Directions across objects.
        line: The model beside the one that it was tuned from.
        points: The states at the operation's site, as points.
    """

    model: str
    pattern: str
    gates: tuple[Gate, ...]
    verdicts: tuple[ClaimVerdict, ...]
    hotspots: Hotspots
    variance_fractions: dict[str, float]
    object_decoding: DecodingResult
    unseen_verbs: UnseenVerbs | None
    subspace_search: DASResult
    dissociation: Dissociation
    two_object_dissociation: Dissociation | None
    necessity: Necessity
    output_heads: OutputHeads
    binding: tuple[BindingSwap, ...]
    direction_comparison: DirectionComparison
    base_comparison: BaseModelComparison | None
    protocol: tuple[tuple[str, str], ...]
    projection: StateProjection | None = None

    def verdict(self, claim: str) -> ClaimVerdict:
        """Return the verdict on a claim, "H1" to "H5"."""
        for found in self.verdicts:
            if found.claim == claim:
                return found
        raise ProbeError(f"There is no claim {claim!r}: {[v.claim for v in self.verdicts]}")

    def summary(self) -> tuple[str, ...]:
        """Say what was found, a plain sentence a claim."""
        lines = [
            f"{self.model} on {self.pattern!r}: number right in {self.gates[0].accuracy}, noun in "
            f"{self.gates[1].accuracy}."
        ]
        for found in self.verdicts:
            lines.append(f"{found.claim}, {found.title}: {found.label} ({found.reason}).")
        return tuple(lines)

    def table(self) -> "pd.DataFrame":
        """Return the verdicts, a claim to a row."""
        import pandas as pd

        rows = [(verdict.claim, verdict.label) for verdict in self.verdicts]
        return pd.DataFrame(rows, columns=["claim", self.model])

    def __repr__(self) -> str:
        words = ", ".join(f"{found.claim} {found.label}" for found in self.verdicts)
        return f"<Proof of {self.model}: {words}>"


@dataclass(frozen=True, eq=False, repr=False)
class ClaimsReports(Result):
    """Claims in several models, for one page.

    Attributes:
        reports: One for each model.
    """

    reports: tuple[ClaimsReport, ...]

    def summary(self) -> tuple[str, ...]:
        """Return the summaries, model by model."""
        return tuple(line for report in self.reports for line in report.summary())

    def table(self) -> "pd.DataFrame":
        """Return the verdicts: a claim to a row, a model to a column."""
        import pandas as pd

        return pd.concat([report.table().set_index("claim") for report in self.reports], axis=1)

    def __repr__(self) -> str:
        return f"<ClaimsReports of {', '.join(report.model for report in self.reports)}>"
