"""What a proof found: verdicts, the numbers they rest on, and how they are saved."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from probes.claims.base_model import BaseModelComparison
from probes.errors import ProbeError
from probes.files import to_jsonable, write_atomic
from probes.interventions.confounds import UnseenVerbs
from probes.interventions.das_search import DASResult
from probes.interventions.directions import DirectionComparison
from probes.interventions.dissociation import (
    BindingSwap,
    Dissociation,
    Necessity,
    OutputHeads,
)
from probes.interventions.geometry import DecodingResult
from probes.interventions.hotspots import Hotspots
from probes.interventions.projection import StateProjection
from probes.observe.gate import Gate
from probes.result import Result, page_of
from probes.stats.evidence import ClaimVerdict

SCHEMA = 1
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

    def to_dict(self) -> dict[str, Any]:
        """Return verdicts and numbers as plain JSON values; runs and weights are left out."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        hot = own.pop("hotspots")
        own.pop("projection")
        spots = [
            {**to_jsonable(_fields_without(spot, "site")), "site": str(spot.site)}
            for spot in hot.hotspots
        ]
        maps = {spot.variable: hot.map(spot.variable).tolist() for spot in hot.hotspots}
        own["subspace_search"] = _fields_without(self.subspace_search, "subspace")
        return {
            "summary": list(self.summary()),
            **to_jsonable(own),
            "hotspots": spots,
            "roles": list(hot.roles),
            "maps": to_jsonable(maps),
            "thresholds": dict(hot.thresholds),
        }

    def __repr__(self) -> str:
        words = ", ".join(f"{found.claim} {found.label}" for found in self.verdicts)
        return f"<Proof of {self.model}: {words}>"


def save_reports(reports: Sequence[ClaimsReport], path: str | Path) -> None:
    """Write one page (.html) about several models, or all their numbers (.json)."""
    if Path(path).suffix == ".json":
        found = {"schema": SCHEMA, "proofs": [proof.to_dict() for proof in reports]}
        write_atomic(Path(path), json.dumps(found, indent=1).encode())
    else:
        page_of(tuple(reports)).save(path)


def _fields_without(value: Any, name: str) -> dict[str, Any]:  # noqa: ANN401
    return {item.name: getattr(value, item.name) for item in fields(value) if item.name != name}
