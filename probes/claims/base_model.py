"""Taken over or built anew: a model beside the one that it was tuned from."""

from dataclasses import dataclass

from probes.errors import ModelError, SiteError
from probes.interventions.directions import flips, operation_direction, transplanted
from probes.interventions.dissociation import Branch, branches
from probes.interventions.hotspots import finding_words
from probes.interventions.interchange import cross
from probes.models.model import Model, untrained
from probes.models.site import Cell, join, site_name
from probes.prompts.interchange_pairs import crossings
from probes.prompts.pattern import Pattern
from probes.prompts.tokenization import REST
from probes.stats.intervals import Estimate, share
from probes.stats.paired import paired


@dataclass(frozen=True, eq=False)
class Lineage:
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

    before: str
    after: str
    own: Estimate
    theirs: Estimate
    difference: Estimate
    state: Estimate
    stranger: Estimate
    heads_before: tuple[str, ...]
    heads_after: tuple[str, ...]

    @property
    def shared(self) -> float:
        """The Jaccard overlap of the heads that read the number out, 0 to 1."""
        both = {*self.heads_before, *self.heads_after}
        common = {*self.heads_before} & {*self.heads_after}
        return len(common) / len(both) if both else float("nan")


def lineage(  # noqa: PLR0913 (two models, two patterns, a site)
    after: Model,
    before: Model,
    pattern: Pattern,
    told: Pattern,
    cell: Cell,
    *,
    bases: int = 100,
    seed: int = 0,
) -> Lineage:
    """Use the operation of a model before tuning in the model after it.

    Args:
        after: The tuned model.
        before: The model it was tuned from, of the same shape: they share their coordinates.
        pattern: What the tuned model is asked.
        told: What the model before completes: the same facts, as a statement.
        cell: The operation's site in the tuned model.
        bases: Prompts to judge on; as many fit directions.
        seed: Of prompts.

    Raises:
        ModelError: The models have other shapes.
        SiteError: The statements lack the roles of the site.
    """
    if (after.shape.d_model, after.shape.layers) != (before.shape.d_model, before.shape.layers):
        raise ModelError(
            f"{after.name} was not tuned from {before.name}: {after.shape.layers} layers of width "
            f"{after.shape.d_model} found, {before.shape.layers} of {before.shape.d_model} before. "
            "Give the model that it began as."
        )
    parts = {*cell.role.split("+")}
    roles = {part.role for frame in told.frames for part in frame.parts}
    if lacking := parts - roles - {REST}:
        raise SiteError(
            f"The hotspot {site_name(cell)} has no counterpart in {told.name!r}, which lacks the "
            f"role {', '.join(sorted(lacking))}. Compare at a site that both have."
        )
    joined = join(cell)
    kinds = (pattern, told)
    fits, judged = (
        [
            crossings(
                kind, bases, tokenizers=(after.tokenizer,), seed=seed + k,
                words=finding_words(pattern) if k else None,
            )
            for kind in kinds
        ]
        for k in (1, 0)
    )  # fmt: skip
    crossed = cross(after, judged[0], roles=joined)
    own = flips(crossed, operation_direction(cross(after, fits[0], roles=joined), cell))
    theirs = flips(crossed, operation_direction(cross(before, fits[1], roles=joined), cell))
    null = untrained(after, seed=seed)
    strange = operation_direction(cross(null, fits[1], roles=joined), cell)
    donor = cross(before, judged[0], roles=joined)
    heads: list[Branch] = [
        branches(cross(model, fits[k]), cross(model, judged[k]))
        for k, model in enumerate((after, before))
    ]
    return Lineage(
        before=before.name,
        after=after.name,
        own=share(own),
        theirs=share(theirs),
        difference=paired(theirs, own).difference,
        state=share(transplanted(crossed, donor, cell)),
        stranger=share(flips(crossed, strange)),
        heads_before=heads[1].number_heads,
        heads_after=heads[0].number_heads,
    )
