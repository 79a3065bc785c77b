"""Hotspots as a result: plain numbers, so that a saved result loads without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from probes.errors import SiteError
from probes.interventions.screening.check import ScreenCheck
from probes.models.site import Site
from probes.result import not_saved
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    from probes.interventions.interchange import InterchangeRuns
    from probes.interventions.interchange_outcomes import InterchangeOutcomes
    from probes.interventions.site_search import SiteSearch
else:
    # Fields of these types are not saved; `load_result` needs a type that exists.
    InterchangeOutcomes = InterchangeRuns = SiteSearch = Any

NullKind = Literal["random-init", "permuted"]


@dataclass(frozen=True, eq=False)
class Hotspot:
    """Site where an interchange most often changes one variable alone.

    The site is chosen on other prompts than those that it is measured on.

    Attributes:
        variable: "operation", an operand such as "x", or "thing".
        site: The site.
        other_object: Interchange accuracy with sources about another object: the base takes this
            variable from the source, and no other.
        same_object: Interchange accuracy with sources about the base's object.
        difference: `same_object` minus `other_object`, paired by base; near 0: the object does not
            matter.
        unseen_groups: Interchange accuracy among bases whose objects are not in the prompts of the
            search, or that some models never saw in training; see `unseen_bases`.
    """

    variable: str
    site: Site
    other_object: Estimate
    same_object: Estimate
    difference: Estimate
    unseen_groups: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class InterchangeExample:
    """One base and one source, as an illustration.

    Attributes:
        base, source: The two texts.
        role_texts: For each role its words in the base and in the source, "" where it has none.
        answers: For each set of variables taken from the source, the number that it gives.
    """

    base: str
    source: str
    role_texts: tuple[tuple[str, str, str], ...]
    answers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False, repr=False)
class Hotspots:
    """Interchange interventions at the sites of a model, and the best site of each variable.

    Every site is interchanged, or in a large model those that a screen has left.

    Attributes:
        model, pattern: Names of model and pattern.
        accuracy: Accuracy on the bases without intervention: number and noun.
        prompts: Number of bases.
        sites: The sites, role by role within each layer; layer 0 is the token embedding.
        hotspots: The best site of each variable, in the order that was asked for.
        thresholds: For each variable, and for all of the number together ("operation + x + y"),
            the threshold over the null of the best site's interchange accuracy; NaN without one.
        maps: For each variable the fraction of bases that take this variable alone, 0 to 1; NaN
            where a role is absent, or a screen left the site out.
        number_outcomes: For each site the fraction of bases by what their number becomes.
        readout_role: Role of the token where the number is read.
        example: One base and one source.
        screens: Error of the screen for each variable; empty where every site was interchanged.
        null: What gives the thresholds: "random-init" models, or "permuted" bases, each scored by
            the answers of another one.
        search: Interchange on the prompts that the sites were chosen on; None in a loaded result.
        runs, other_outcomes, same_outcomes: Runs and outcomes of all sites, by the source's object;
            None in a loaded result.
    """

    model: str
    pattern: str
    accuracy: tuple[Estimate, Estimate]
    prompts: int
    sites: tuple[Site, ...]
    hotspots: tuple[Hotspot, ...]
    thresholds: Mapping[str, float]
    maps: Mapping[str, Float[np.ndarray, "role layer"]]
    number_outcomes: Mapping[str, Mapping[str, float]]
    readout_role: str
    example: InterchangeExample
    screens: tuple[ScreenCheck, ...] = ()
    null: NullKind = "random-init"
    search: SiteSearch = not_saved()
    runs: InterchangeRuns = not_saved()
    other_outcomes: InterchangeOutcomes = not_saved()
    same_outcomes: InterchangeOutcomes = not_saved()

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles in the order of the text; joined roles come last."""
        return tuple(dict.fromkeys(site.role for site in self.sites))

    def hotspot(self, variable: str) -> Hotspot:
        """Hotspot of a variable."""
        for hotspot in self.hotspots:
            if hotspot.variable == variable:
                return hotspot
        raise self._unknown(variable)

    def map(self, variable: str) -> Float[np.ndarray, "role layer"]:
        """Fraction of bases that take this variable alone, by role and layer."""
        if variable not in self.maps:
            raise self._unknown(variable)
        return self.maps[variable]

    def without_runs(self) -> "Hotspots":
        """The same as a loaded result: without the runs, which hold the model."""
        return replace(self, search=None, runs=None, other_outcomes=None, same_outcomes=None)

    def _unknown(self, variable: str) -> SiteError:
        return SiteError(f"No hotspot of {variable!r} was measured: choose from {[*self.maps]}")

    def __repr__(self) -> str:
        sites = ", ".join(f"{one.variable} {one.site}" for one in self.hotspots)
        return f"<Hotspots of {self.model} on {self.pattern}: {sites}>"
