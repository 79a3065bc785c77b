"""Hotspots: the sites that hold the operation, the operands and the object.

A hotspot is a site whose interchange changes one variable of the answer and no other. It is found
on some prompts and evaluated on others, and compared with random-init models.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.errors import ModelError, PatternError
from probes.interventions.hotspots.nulls import best_null_rates, null_thresholds, permuted_rates
from probes.interventions.hotspots.result import (
    Hotspot,
    Hotspots,
    InterchangeExample,
    NullKind,
)
from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
)
from probes.interventions.interchange_outcomes import (
    NUMBER_READOUT,
    OBJECT_READOUT,
    InterchangeOutcomes,
    SourceObject,
)
from probes.interventions.screening.sites import SiteScreen, screen_sites
from probes.interventions.site_search import (
    all_sites,
    choose_sites,
    search_all_sites,
    search_words,
    takes_only,
    variables_of,
)
from probes.models.model import Model, ModelSpec, load
from probes.models.site import Site, joined_roles
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import (
    BASE,
    OBJECT,
    BaseFilter,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.interchange_sampler import NUMBER_ANSWER
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.scale.engine import HERE, Engine, starting
from probes.stats.intervals import Estimate, proportion
from probes.stats.paired import mcnemar_test


@dataclass(frozen=True, slots=True)
class HotspotSettings:
    """Sizes and seed of the search for hotspots.

    Attributes:
        bases: Bases of the evaluation; half as many are used for the search.
        nulls: Random-init models of the null.
        null_bases: Bases for each of these.
        seed: Of prompts and random-init models.
        screened: Whether gradients choose the sites that are interchanged, as for large models; see
            `screening.sites`. By default all sites are.
        null: What gives the thresholds: "random-init" models, or "permuted" bases, whose answers
            are those of other bases.
    """

    bases: int = 200
    nulls: int = 20
    null_bases: int = 24
    seed: int = 0
    screened: bool = False
    null: NullKind = "random-init"


def hotspots(
    model: ModelSpec,
    pattern: str | Pattern,
    settings: HotspotSettings = HotspotSettings(),
    *,
    variables: Sequence[str] = (),
    engine: Engine = HERE,
) -> Hotspots:
    """Find the site of each variable on some prompts and evaluate it on others.

    Args:
        model: A family name, a folder, a hub id or a loaded model.
        pattern: A pattern with an opposite, whose outcomes are different tokens, or its name.
        settings: Sizes and seed.
        variables: "operation", operands, "thing"; all of the pattern's by default.
        engine: Where random-init models are measured, one a unit.

    Raises:
        PatternError: Outcomes of the pattern coincide, there are too few bases, or it has no such
            variable.
        ModelError: The model has one block.
    """
    model, pattern = load(model), find_pattern(pattern)
    if model.shape.layers < 2:
        raise ModelError(
            f"{model.name} has one block, so no site between blocks: choose a model with two or "
            "more"
        )
    bases, seed, tokenizers = settings.bases, settings.seed, (model.tokenizer,)
    search_pairs = sample_interchange_pairs(
        pattern,
        max(bases // 2, 8),
        tokenizers=tokenizers,
        seed=seed + 1,
        base_filter=BaseFilter(allowed_words=search_words(pattern)),
    )
    searched = {pair.clean.text for pair in search_pairs.same}
    pairs = sample_interchange_pairs(
        pattern,
        bases,
        tokenizers=tokenizers,
        seed=seed,
        base_filter=BaseFilter(keep=lambda base: base.text not in searched),
    )
    known = variables_of(pairs)
    variables = tuple(variables) or known
    if unknown := set(variables) - set(known):
        raise PatternError(
            f"{pattern.name!r} has no variable {sorted(unknown)}: choose from {', '.join(known)}"
        )
    null_pairs = pairs.select(range(min(settings.null_bases, len(pairs))))
    screen = SiteScreen(seed=seed) if settings.screened else None
    with starting(engine) as start:
        null_units = [
            start(best_null_rates, model, null_pairs, variables, screen, seed=seed + n)
            for n in range(settings.nulls if settings.null == "random-init" else 0)
        ]
        search_runs = run_interchange_pairs(model, search_pairs)
        search = (
            screen_sites(search_runs, variables, screen)
            if screen
            else search_all_sites(search_runs)
        )
        chosen = choose_sites(search, variables)
        joined = joined_roles(*chosen)
        runs = run_interchange_pairs(model, pairs, joined_roles=joined)
        # After a screen, sources about the same object are needed at the chosen sites only.
        sites = [*dict.fromkeys([*(search.sites if screen else all_sites(runs)), *chosen])]
        same_sites = [*dict.fromkeys(chosen)] if screen else sites
        outcomes = (
            interchange_intervention(runs, sites),
            interchange_intervention(runs, same_sites, source_object="same"),
        )
        clean = interchange_intervention(runs, [])
        unseen = _measure_unseen(
            model, pattern, dict(zip(variables, chosen, strict=True)), settings
        )
        null_rates = [unit.result() for unit in null_units]
    if settings.null == "permuted":
        null_rates = permuted_rates(search, variables, settings.nulls, seed=seed)
    return Hotspots(
        model=model.name,
        pattern=pattern.name,
        accuracy=(
            clean.proportion("none", BASE, NUMBER_READOUT),
            clean.proportion("none", BASE, OBJECT_READOUT),
        ),
        prompts=len(runs),
        sites=tuple(sites),
        hotspots=tuple(
            _measure_hotspot(variable, site, outcomes, unseen[variable])
            for variable, site in zip(variables, chosen, strict=True)
        ),
        thresholds=null_thresholds(null_rates, (*variables, pairs.source_label)),
        maps={
            variable: _variable_map(runs, sites, outcomes[0], variable) for variable in variables
        },
        number_outcomes={str(site): outcomes[0].number_fractions(str(site)) for site in sites},
        readout_role=_readout_role(runs),
        example=_example(pairs, runs.roles),
        screens=search.screens,
        null=settings.null,
        search=search,
        runs=runs,
        other_outcomes=outcomes[0],
        same_outcomes=outcomes[1],
    )


def _variable_map(
    runs: InterchangeRuns, sites: Sequence[Site], outcomes: InterchangeOutcomes, variable: str
) -> Float[np.ndarray, "role layer"]:
    """Fraction of bases that take just one variable, of the bases that have the role."""
    roles = list(dict.fromkeys(site.role for site in sites))
    rates = np.full((len(roles), 1 + runs.model.shape.layers), np.nan)
    for site, taken in zip(sites, takes_only(outcomes, variable), strict=True):
        has_role = runs.role_masks[site.role].any(-1).cpu().numpy()
        rates[roles.index(site.role), site.layer] = taken[has_role].mean()
    return rates


def _readout_role(runs: InterchangeRuns) -> str:
    """Role of the token where the first base's number is read."""
    position = int(runs.clean.readout[0, NUMBER_READOUT])
    here = [role for role in runs.roles if bool(runs.role_masks[role][0, position])]
    return here[0] if here else runs.roles[-1]


def _example(pairs: InterchangePairs, roles: Sequence[str]) -> InterchangeExample:
    """First base with its source about another object."""
    pair = pairs.other[0]
    return InterchangeExample(
        base=pair.clean.text,
        source=pair.counterfactual.text,
        role_texts=tuple(
            (role, _role_words(pair.clean, role), _role_words(pair.counterfactual, role))
            for role in roles
        ),
        answers=tuple(
            zip(pairs.number_labels, dict(pair.clean.outcomes)[NUMBER_ANSWER], strict=True)
        ),
    )


def _role_words(question: Question, role: str) -> str:
    words = [question.text[start:end] for name, start, end in question.roles if name == role]
    return " … ".join(words)


def unseen_bases(pattern: Pattern) -> dict[str, BaseFilter]:
    """Filter of each group of bases with unseen values.

    "new objects" do not occur in the prompts of the search. "other objects" and "other sums" (the
    base's numbers with the source's operation) are those of `family_split`; models whose
    provenance names it never saw them in training, and the search may have.
    """
    split, opposite = family_split(), pattern.flipped().operation
    nouns, searched = pattern.lexicon.words("noun"), search_words(pattern)[OBJECT]
    new = [noun for noun in nouns if noun not in searched]
    groups = {"new objects": BaseFilter(allowed_words={OBJECT: new})}
    if len(held_out := [noun for noun in nouns if noun in split.nouns]) > 1:
        groups["other objects"] = BaseFilter(allowed_words={OBJECT: held_out})
    if all({"x", "y"} <= set(template.slots) for template in pattern.templates):
        groups["other sums"] = BaseFilter(
            keep=lambda base: (opposite, base["x"], base["y"]) in split.number_pairs
        )
    return groups


def _measure_unseen(
    model: Model, pattern: Pattern, sites: Mapping[str, Site], settings: HotspotSettings
) -> dict[str, dict[str, Estimate]]:
    """Interchange accuracy of each variable in each group; groups with too few bases are omitted.

    One group is run at a time, as the runs of a large model take much memory.
    """
    found: dict[str, dict[str, Estimate]] = {variable: {} for variable in sites}
    count = max(settings.bases // 4, 20)
    for n, (group, base_filter) in enumerate(unseen_bases(pattern).items()):
        with suppress(PatternError):
            pairs = sample_interchange_pairs(
                pattern,
                count,
                tokenizers=(model.tokenizer,),
                seed=settings.seed + 20 + n,
                base_filter=base_filter,
            )
            runs = run_interchange_pairs(model, pairs, joined_roles=joined_roles(*sites.values()))
            for variable, site in sites.items():
                source_object: SourceObject = "other" if variable == OBJECT else "same"
                outcome = interchange_intervention(runs, [site], source_object=source_object)
                found[variable][group] = proportion(takes_only(outcome, variable)[0])
    return found


def _measure_hotspot(
    variable: str,
    site: Site,
    outcomes: tuple[InterchangeOutcomes, InterchangeOutcomes],
    unseen_groups: Mapping[str, Estimate],
) -> Hotspot:
    rows = [one.site_index(str(site)) for one in outcomes]
    other, same = (takes_only(one, variable)[n] for one, n in zip(outcomes, rows, strict=True))
    if variable == OBJECT:  # A source about the same object changes nothing.
        same = outcomes[1].unchanged()[rows[1]]
    return Hotspot(
        variable=variable,
        site=site,
        other_object=proportion(other),
        same_object=proportion(same),
        difference=mcnemar_test(other, same).difference,
        unseen_groups=unseen_groups,
    )
