"""Taken over or built anew: a model beside the one that it was tuned from."""

from probes.claims.result import BaseModelComparison
from probes.errors import ModelError, SiteError
from probes.interventions.directions import cross_model_hits, operation_direction, patch_direction
from probes.interventions.dissociation import output_heads
from probes.interventions.interchange import run_interchange_pairs
from probes.interventions.result import OutputHeads
from probes.interventions.site_search import search_words
from probes.models.model import Model, random_init
from probes.models.site import Site, joined_roles
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.tokenization import REST
from probes.stats.intervals import proportion
from probes.stats.paired import mcnemar_test


def compare_with_base(  # noqa: PLR0913 (two models, two patterns, a site)
    tuned: Model,
    base: Model,
    pattern: Pattern,
    statement_pattern: Pattern,
    site: Site,
    *,
    bases: int = 100,
    seed: int = 0,
) -> BaseModelComparison:
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
    if (tuned.shape.d_model, tuned.shape.layers) != (base.shape.d_model, base.shape.layers):
        raise ModelError(
            f"{tuned.name} was not tuned from {base.name}: {tuned.shape.layers} layers of width "
            f"{tuned.shape.d_model} found, {base.shape.layers} of {base.shape.d_model} before. "
            "Give the model that it began as."
        )
    parts = {*site.role.split("+")}
    roles = {part.role for frame in statement_pattern.templates for part in frame.parts}
    if lacking := parts - roles - {REST}:
        raise SiteError(
            f"The hotspot {site!s} has no counterpart in {statement_pattern.name!r}, which lacks the "
            f"role {', '.join(sorted(lacking))}. Compare at a site that both have."
        )
    joined = joined_roles(site)
    kinds = (pattern, statement_pattern)
    fits, judged = (
        [
            sample_interchange_pairs(
                kind, bases, tokenizers=(tuned.tokenizer,), seed=seed + k,
                allowed_words=search_words(pattern) if k else None,
            )
            for kind in kinds
        ]
        for k in (1, 0)
    )  # fmt: skip
    crossed = run_interchange_pairs(tuned, judged[0], joined_roles=joined)
    own = patch_direction(
        crossed,
        operation_direction(run_interchange_pairs(tuned, fits[0], joined_roles=joined), site),
    )
    theirs = patch_direction(
        crossed,
        operation_direction(run_interchange_pairs(base, fits[1], joined_roles=joined), site),
    )
    null = random_init(tuned, seed=seed)
    strange = operation_direction(run_interchange_pairs(null, fits[1], joined_roles=joined), site)
    donor = run_interchange_pairs(base, judged[0], joined_roles=joined)
    heads: list[OutputHeads] = [
        output_heads(run_interchange_pairs(model, fits[k]), run_interchange_pairs(model, judged[k]))
        for k, model in enumerate((tuned, base))
    ]
    return BaseModelComparison(
        base=base.name,
        tuned=tuned.name,
        own_direction=proportion(own),
        base_direction=proportion(theirs),
        difference=mcnemar_test(theirs, own).difference,
        base_state=proportion(cross_model_hits(crossed, donor, site)),
        random_init_direction=proportion(patch_direction(crossed, strange)),
        base_heads=heads[1].number_heads,
        tuned_heads=heads[0].number_heads,
    )
