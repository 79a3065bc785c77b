"""Hotspots: where a model holds the operation, the operands and the object, and how sure that is.

bases and sources → every role × layer put in → what was taken up, beside untrained nets
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from probes.errors import ModelError, PatternError
from probes.interventions.interchange import (
    NUMBER_READOUT,
    OBJECT_READOUT,
    InterchangeOutcomes,
    InterchangeRuns,
    SourceObject,
    interchange_intervention,
    run_interchange_pairs,
)
from probes.interventions.result import Hotspot, Hotspots, InterchangeExample
from probes.models.model import Model, random_init
from probes.models.site import Site, joined_roles
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import (
    OBJECT,
    OPERATION,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.interchange_sampler import NUMBER_ANSWER
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.stats.intervals import proportion
from probes.stats.paired import mcnemar_test

EQUIVALENCE_MARGIN = 0.1
"""How far two shares may differ and still count as the same."""

SamplingOptions = dict[str, Any]
"""What `crossings` is to be told."""

_NULL_QUANTILE = 0.95
_MIN_PROPORTION = (
    0.03  # A role that takes this share of a variable may belong to a site of two roles.
)


def all_sites(runs: InterchangeRuns) -> list[Site]:
    """List the residual of every role that all bases can hand over, before each block and after."""
    layers = range(runs.model.shape.layers + 1)
    return [Site(layer, "resid", role) for layer in layers for role in runs.roles]


def inner_sites(runs: InterchangeRuns) -> list[Site]:
    """List the residuals that a block reads and another has written: where hotspots may be."""
    last = runs.model.shape.layers
    return [cell for cell in all_sites(runs) if 0 < cell.layer < last]


def hotspots(  # noqa: PLR0913 (what is looked for, how hard, and beside what)
    model: Model,
    pattern: Pattern,
    *,
    variables: Sequence[str] = (),
    bases: int = 200,
    seed: int = 0,
    nulls: int = 20,
    null_bases: int = 24,
) -> Hotspots:
    """Find where a model holds each variable, on some prompts, and judge it on others.

    Args:
        model: Any decoder.
        pattern: A pattern with an opposite, whose outcomes are all different tokens.
        variables: "operation", operands, "thing"; all of the pattern's by default.
        bases: How many bases to judge on; half as many find the sites.
        seed: Of prompts and nets.
        nulls: How many untrained nets of the same shape say what chance gives.
        null_bases: How many bases each of them is given.

    Raises:
        PatternError: The pattern's outcomes collide, or there are too few bases.
        ModelError: The model has one block.
    """
    if model.shape.layers < 2:
        raise ModelError(
            f"{model.name} has one block: there is no site between it and the embedding or the "
            "answer. Choose a model of two blocks or more."
        )
    tokenizers = (model.tokenizer,)
    words = search_words(pattern)
    finding = sample_interchange_pairs(
        pattern, max(bases // 2, 8), tokenizers=tokenizers, seed=seed + 1, allowed_words=words
    )
    seen = {pair.clean.text for pair in finding.same}
    judging = sample_interchange_pairs(
        pattern, bases, tokenizers=tokenizers, seed=seed, keep=lambda base: base.text not in seen
    )
    known = variables_of(judging)
    wanted = tuple(variables) or known
    if strange := set(wanted) - set(known):
        raise PatternError(
            f"{pattern.name!r} has no variable {sorted(strange)}: it has {', '.join(known)}"
        )
    sites = find_sites(model, finding, wanted)
    joined = joined_roles(*sites)
    crossed = run_interchange_pairs(model, judging, joined_roles=joined)
    cells = all_sites(crossed)
    every = [*cells, *(site for site in sites if site.role in joined)]
    other, same = _interchange_both(crossed, every)
    plain = interchange_intervention(crossed, [])
    strange = _run_unseen(model, pattern, sites, (max(bases // 4, 20), seed))
    return Hotspots(
        model=model.name,
        pattern=pattern.name,
        accuracy=(
            plain.proportion("none", "base", NUMBER_READOUT),
            plain.proportion("none", "base", OBJECT_READOUT),
        ),
        prompts=len(crossed),
        sites=tuple(every),
        hotspots=tuple(
            _measure_hotspot(variable, cell, (other, same), strange, seed)
            for variable, cell in zip(wanted, sites, strict=True)
        ),
        thresholds=_null_thresholds(model, judging, wanted, (nulls, null_bases, seed)),
        maps={variable: _variable_map(crossed, every, other, variable) for variable in wanted},
        number_outcomes={str(site): other.number_fractions(str(site)) for site in every},
        readout_role=_readout_role(crossed),
        example=_example(judging, crossed.roles),
        runs=crossed,
        other_outcomes=other,
        same_outcomes=same,
    )


def _variable_map(
    runs: InterchangeRuns, sites: Sequence[Site], outcomes: InterchangeOutcomes, variable: str
) -> Float[np.ndarray, "role layer"]:
    """Fraction of bases that take just one variable, of the bases that have the role."""
    roles = list(dict.fromkeys(site.role for site in sites))
    rates = np.full((len(roles), 1 + max(site.layer for site in sites)), np.nan)
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


def variables_of(interchange_pairs: InterchangePairs) -> tuple[str, ...]:
    """Return the variables of crossings: the operation, the operands, the object."""
    single = [
        text for text in interchange_pairs.number_labels if text != "base" and " " not in text
    ]
    return (*single, OBJECT)


def search_words(pattern: Pattern) -> dict[str, list[str]]:
    """Return the words that sites are found by: every second noun, wherever nouns stand."""
    slots = {slot for frame in pattern.templates for slot in frame.slots}
    nouns = list(pattern.lexicon.words("noun")[::2])
    return {slot: nouns for slot in sorted(slots) if pattern.lexicon.kind_of(slot) == "noun"}


def unseen_sampling(pattern: Pattern) -> dict[str, SamplingOptions]:
    """Say how to draw bases whose sources hand over what was not met before.

    "new objects" stand in no prompt that the sites were found by; "untrained objects" and
    "untrained cells" in no such text of the embedded family's corpus (the cell is the sum that the
    base must do once the operation is put in).
    """
    split, turned = family_split(), pattern.flipped().operation
    nouns = pattern.lexicon.words("noun")
    found_by = search_words(pattern)[OBJECT]
    groups: dict[str, SamplingOptions] = {
        "new objects": {"allowed_words": {OBJECT: [noun for noun in nouns if noun not in found_by]}}
    }
    if len(held := [noun for noun in nouns if noun in split.nouns]) > 1:
        groups["untrained objects"] = {"allowed_words": {OBJECT: held}}
    if all({"x", "y"} <= set(frame.slots) for frame in pattern.templates):
        groups["untrained cells"] = {
            "keep": lambda base: (turned, base["x"], base["y"]) in split.number_pairs
        }
    return groups


def _run_unseen(
    model: Model, pattern: Pattern, sites: Sequence[Site], settings: tuple[int, int]
) -> dict[str, InterchangeRuns]:
    """Run the bases that hold what was not met before; a group that cannot be drawn is left out."""
    bases, seed = settings
    joined = joined_roles(*sites)
    found = {}
    for n, (name, draw) in enumerate(unseen_sampling(pattern).items()):
        with suppress(PatternError):
            drawn = sample_interchange_pairs(
                pattern, bases, tokenizers=(model.tokenizer,), seed=seed + 20 + n, **draw
            )
            found[name] = run_interchange_pairs(model, drawn, joined_roles=joined)
    return found


def find_sites(
    model: Model,
    search_pairs: InterchangePairs,
    variables: Sequence[str],
    *,
    shared_roles_only: bool = False,
) -> list[Site]:
    """Return, past the embedding, where each variable and no other is handed over most.

    Sources about the same object count as much as those about another: a state that serves one
    object only must be found, too. `everywhere`: only at roles that every prompt has.
    """
    crossed = run_interchange_pairs(model, search_pairs)
    cells = inner_sites(crossed)
    if shared_roles_only:
        cells = [cell for cell in cells if bool(crossed.role_masks[cell.role].any(-1).all())]
    found = _interchange_both(crossed, cells)
    sites = []
    for variable in variables:
        shares = _takes_only_rate(found, variable)
        best = int(shares.argmax())
        if (
            shares[best] < EQUIVALENCE_MARGIN
        ):  # Nowhere: so look at its own tokens, behind the first block.
            own = "op" if variable == OPERATION else variable
            sites.append(Site(1, "resid", own if own in crossed.roles else cells[best].role))
            continue
        part = found[0].takes_variable(variable).mean(1) if variable != OBJECT else shares
        some = [cell for cell, share in zip(cells, part, strict=True) if share > _MIN_PROPORTION]
        joined = None
        if shares[best] <= 1 - EQUIVALENCE_MARGIN:
            joined = _find_joint_site(model, search_pairs, variable, some, float(shares[best]))
        sites.append(joined or cells[best])
    return sites


def _find_joint_site(
    model: Model,
    search_pairs: InterchangePairs,
    variable: str,
    sites: Sequence[Site],
    single_best: float,
) -> Site | None:
    """Return two roles of one layer that together hand over more by the margin, if any do."""
    couples = [(a, b) for a, b in combinations(sites, 2) if a.layer == b.layer]
    if not couples:
        return None
    both = [Site(a.layer, "resid", f"{a.role}+{b.role}") for a, b in couples]
    crossed = run_interchange_pairs(model, search_pairs, joined_roles=joined_roles(*both))
    together = _takes_only_rate(_interchange_both(crossed, both), variable)
    more = int(together.argmax())
    return both[more] if together[more] > single_best + EQUIVALENCE_MARGIN else None


def _interchange_both(
    runs: InterchangeRuns, sites: Sequence[Site]
) -> tuple[InterchangeOutcomes, InterchangeOutcomes]:
    """Put sites in from sources about another object, and about the same."""
    return interchange_intervention(runs, sites), interchange_intervention(
        runs, sites, source_object="same"
    )


def _takes_only_rate(
    outcomes: tuple[InterchangeOutcomes, InterchangeOutcomes], variable: str
) -> Float[np.ndarray, " site"]:
    """Return how often sites hand over just a variable; an object, from another object only."""
    other, same = (takes_only(one, variable).mean(1) for one in outcomes)
    return other if variable == OBJECT else (other + same) / 2


def _measure_hotspot(
    variable: str, site: Site, outcomes: tuple[InterchangeOutcomes, InterchangeOutcomes],
    unseen: Mapping[str, InterchangeRuns], seed: int,
) -> Hotspot:  # fmt: skip
    row = outcomes[0].site_index(str(site))
    kind: SourceObject = "other" if variable == OBJECT else "same"
    other, same = (takes_only(one, variable)[row] for one in outcomes)
    if variable == OBJECT:  # From a source about the same object there is none to take up.
        same = (
            outcomes[1].is_outcome("base", OBJECT_READOUT)[row]
            & outcomes[1].is_outcome("base", NUMBER_READOUT)[row]
        )
    return Hotspot(
        variable=variable,
        site=site,
        other_object=proportion(other),
        same_object=proportion(same),
        difference=mcnemar_test(other, same).difference,
        unseen_groups={
            name: proportion(
                takes_only(interchange_intervention(crossed, [site], source_object=kind), variable)[
                    0
                ]
            )
            for name, crossed in unseen.items()
        },
    )


def _null_thresholds(
    model: Model,
    evaluation_pairs: InterchangePairs,
    variables: Sequence[str],
    settings: tuple[int, int, int],
) -> dict[str, float]:
    """Say what the best single site of untrained nets reaches, searched and judged on one set."""
    nulls, bases, seed = settings
    few, best = evaluation_pairs.select(range(min(bases, len(evaluation_pairs)))), []
    for n in range(nulls):
        crossed = run_interchange_pairs(random_init(model, seed=seed + n), few)
        found = interchange_intervention(crossed, inner_sites(crossed))
        best.append([takes_only(found, variable).mean(1).max() for variable in variables])
    if not best:
        return dict.fromkeys(variables, float("nan"))
    levels = np.quantile(np.array(best), _NULL_QUANTILE, axis=0)
    return dict(zip(variables, map(float, levels), strict=True))


def takes_only(outcomes: InterchangeOutcomes, variable: str) -> Bool[np.ndarray, "site prompt"]:
    """Mark where a variable and nothing else was taken up."""
    if variable == OBJECT:
        return outcomes.is_outcome(OBJECT, OBJECT_READOUT) & outcomes.is_outcome(
            "base", NUMBER_READOUT
        )
    return outcomes.is_outcome(variable) & outcomes.is_outcome("base", OBJECT_READOUT)
