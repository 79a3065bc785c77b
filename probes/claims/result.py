"""What a proof found: verdicts, the numbers they rest on, and how they are saved."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.claims.base_model import Lineage
from probes.errors import ProbeError
from probes.files import jsonable, write_whole
from probes.interventions.confounds import Unseen
from probes.interventions.das_search import Search
from probes.interventions.directions import Alignment
from probes.interventions.dissociation import (
    Binding,
    Branch,
    Dissociation,
    Necessity,
)
from probes.interventions.geometry import Decoded
from probes.interventions.hotspots import Hotspots
from probes.interventions.projection import Space
from probes.models.site import site_name
from probes.observe.gate import Gate
from probes.stats.evidence import Verdict

if TYPE_CHECKING:
    from probes.viz.picture import Picture

SCHEMA = 1
TOLD = "-told"
_SHOWN_OBJECTS = 8  # Few enough that each stands in many prompts.


@dataclass(frozen=True, eq=False, repr=False)
class Proof:
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
    verdicts: tuple[Verdict, ...]
    hot: Hotspots
    variance: dict[str, float]
    object_there: Decoded
    unseen: Unseen | None
    searched: Search
    parted: Dissociation
    two: Dissociation | None
    needed: Necessity
    heads: Branch
    bound: tuple[Binding, ...]
    aligned: Alignment
    line: Lineage | None
    protocol: tuple[tuple[str, str], ...]
    points: Space | None = None

    def verdict(self, claim: str) -> Verdict:
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
            lines.append(f"{found.claim}, {found.title}: {found.word} ({found.reason}).")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return verdicts and numbers as plain JSON values; runs and weights are left out."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        hot = own.pop("hot")
        own.pop("points")
        spots = [
            {**jsonable(_without(spot, "cell")), "site": site_name(spot.cell)} for spot in hot.spots
        ]
        maps = {spot.variable: hot.map(spot.variable).tolist() for spot in hot.spots}
        own["searched"] = _without(self.searched, "space")
        return {
            "summary": list(self.summary()),
            **jsonable(own),
            "hotspots": spots,
            "roles": list(hot.roles),
            "maps": jsonable(maps),
            "bars": dict(hot.bars),
        }

    def save(self, path: str | Path) -> None:
        """Write the page (.html) or the numbers (.json), whole or not at all."""
        save_proofs((self,), path)

    def picture(self) -> "Picture":
        """Lay it out as a page."""
        from probes.viz.reports.claims import proved_page

        return proved_page((self,), spaces=() if self.points is None else (self.points,))

    def _repr_html_(self) -> str:
        return self.picture()._repr_html_()

    def __repr__(self) -> str:
        words = ", ".join(f"{found.claim} {found.word}" for found in self.verdicts)
        return f"<Proof of {self.model}: {words}>"


def save_proofs(proofs: Sequence[Proof], path: str | Path) -> None:
    """Write one page (.html) about several models, or all their numbers (.json)."""
    from probes.viz.reports.claims import proved_page

    if Path(path).suffix == ".json":
        found = {"schema": SCHEMA, "proofs": [proof.to_dict() for proof in proofs]}
        write_whole(Path(path), json.dumps(found, indent=1).encode())
    else:
        points = [proof.points for proof in proofs if proof.points is not None]
        proved_page(tuple(proofs), spaces=points).save(path)


def _without(value: Any, name: str) -> dict[str, Any]:  # noqa: ANN401
    return {item.name: getattr(value, item.name) for item in fields(value) if item.name != name}
