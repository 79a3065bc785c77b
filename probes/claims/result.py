"""Results of the claims: verdicts and the measurements that they depend on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.errors import ProbeError
from probes.interventions.hotspots.result import Hotspots
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
from probes.models.site import Site
from probes.observe.result import Gate
from probes.plan import LEFT_OUT
from probes.result import Result
from probes.stats.evidence import ClaimVerdict
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd

NUMBER_OUTCOMES = "number outcomes"
"""Name, in a protocol, of the outcomes that a narrow range of numbers cannot tell apart."""

ITEMS = "items"
"""Name, in a protocol, of the part of a pattern that a model with a partial gate solves."""

SCREEN = "screen"
"""Name, in a protocol, of the error of the gradients that chose sites and heads."""


@dataclass(frozen=True, eq=False)
class JointSite:
    """Site between blocks whose interchange most often gives the number of the source.

    Attributes:
        site: The site, chosen on other prompts than those that it is measured on.
        label: Operation and operands together, such as "operation + x + y".
        variables: For the operation and each operand, the fraction of bases whose number takes it
            at the site, alone or with others.
        all_variables: Fraction of bases whose number takes all of them.
        new_numbers: Bases whose operands and those of the source are together in none of the
            prompts that the subspace was fitted on.
        operation_alone: Interchange accuracy of the operation alone on these bases by a subspace at
            the site (DAS); near 0 where the state holds only the result of operation and operands.
            None where the bases are too few.
    """

    site: Site
    label: str
    variables: Mapping[str, Estimate]
    all_variables: Estimate
    new_numbers: int
    operation_alone: Estimate | None


@dataclass(frozen=True, eq=False)
class BaseModelComparison:
    """Direction, state and output heads of a base model in the model tuned from it.

    Attributes:
        base, tuned: Names of the two models.
        own_direction: Interchange accuracy of the operation in the tuned model by its own
            direction.
        base_direction: The same by the direction fitted in the base model, at the same site.
        difference: `own_direction` minus `base_direction`, paired by base.
        base_state: Interchange accuracy of the base model's whole state, on the same texts.
        random_init_direction: The same by a direction fitted in a random-init model.
        base_heads, tuned_heads: Output heads of the number in the two models.
        head_overlap: Their Jaccard overlap, 0 to 1, with its bootstrap interval over prompts.
        null_head_overlaps: Overlap of the tuned model's output heads with as many heads of each
            random-init model as `base_heads`, those with the largest fractions.
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
    head_overlap: Estimate
    null_head_overlaps: tuple[float, ...]


@dataclass(frozen=True, eq=False, repr=False)
class ClaimsReport(Result):
    """Verdicts on the claims in one model, and the measurements that they depend on.

    Attributes:
        model, pattern: Names of model and pattern.
        gates: Gates of number and noun.
        verdicts: One for each claim.
        hotspots: Hotspots of all variables.
        joint_site: Site where the operation and the operands meet.
        variance_fractions: For each factor its fraction of the states' variance at the operation's
            site; see `geometry.FACTORS`.
        object_decoding: Decoding of the object at the operation's site.
        unseen_verbs: Directions on verbs that they were not fitted on; None with too few verbs.
        subspace_search: DAS at the operation's site.
        dissociation: Double dissociation of operation and object.
        two_object_dissociation: The same with two objects in the text; None without such questions.
        necessity: Resample ablation of the operation's directions.
        output_heads: Heads that write each answer, and their ablation.
        binding: Swaps of the binding vectors of two objects, block by block.
        direction_comparison: Transfer of directions between objects; None where no two objects can
            be compared.
        base_comparison: Comparison with the base model; None if there is none.
        protocol: Settings as name and text.
        projection: States at the operation's site in two dimensions.
    """

    model: str
    pattern: str
    gates: tuple[Gate, ...]
    verdicts: tuple[ClaimVerdict, ...]
    hotspots: Hotspots
    joint_site: JointSite
    variance_fractions: dict[str, float]
    object_decoding: DecodingResult
    unseen_verbs: UnseenVerbs | None
    subspace_search: DASResult
    dissociation: Dissociation
    two_object_dissociation: Dissociation | None
    necessity: Necessity
    output_heads: OutputHeads
    binding: tuple[BindingSwap, ...]
    direction_comparison: DirectionComparison | None
    base_comparison: BaseModelComparison | None
    protocol: tuple[tuple[str, str], ...]
    projection: StateProjection | None = None

    def verdict(self, claim: str) -> ClaimVerdict:
        """Return the verdict on a claim, such as "H1a"."""
        for verdict in self.verdicts:
            if verdict.claim == claim:
                return verdict
        raise ProbeError(f"There is no claim {claim!r}: {[v.claim for v in self.verdicts]}")

    def summary(self) -> tuple[str, ...]:
        """Return accuracies, and one sentence for each claim."""
        number, noun = self.gates[0].accuracy, self.gates[1].accuracy
        return (
            *(gate.notice for gate in self.gates if gate.notice),
            f"{self.model} on {self.pattern!r}: number right in {number}, noun in {noun}.",
            *(f"{v.claim}, {v.title}: {v.label} ({v.reason})." for v in self.verdicts),
            *(
                f"{name.capitalize()}: {text}."
                for name, text in self.protocol
                if name in (LEFT_OUT, NUMBER_OUTCOMES, ITEMS, SCREEN)
            ),
        )

    def table(self) -> "pd.DataFrame":
        """Return the verdicts, one row for each claim."""
        import pandas as pd

        rows = [(verdict.claim, verdict.label) for verdict in self.verdicts]
        return pd.DataFrame(rows, columns=["claim", self.model])

    def __repr__(self) -> str:
        labels = ", ".join(f"{verdict.claim} {verdict.label}" for verdict in self.verdicts)
        return f"<ClaimsReport of {self.model}: {labels}>"


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
        """Return the verdicts: one row for each claim, one column for each model."""
        import pandas as pd

        return pd.concat([report.table().set_index("claim") for report in self.reports], axis=1)

    def __repr__(self) -> str:
        return f"<ClaimsReports of {', '.join(report.model for report in self.reports)}>"
