"""Comparison of a tuned model with its base model, and the tests of H4."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from probes.claims.definitions import MAJORITY, TITLES
from probes.claims.result import BaseModelComparison
from probes.errors import ModelError, SiteError
from probes.interventions.dissociation import MIN_HEAD_FRACTION, HeadShifts
from probes.interventions.interchange import InterchangeRuns, run_interchange_pairs
from probes.interventions.interchange_outcomes import NUMBER_READOUT
from probes.interventions.screening.heads import head_measure
from probes.interventions.site_search import EQUIVALENCE_MARGIN, search_words
from probes.interventions.subspaces.directions import (
    cross_model_hits,
    operation_direction,
    patch_direction,
)
from probes.models.model import Model, ModelSpec, load, random_init
from probes.models.site import Site, joined_roles
from probes.prompts.interchange_pairs import BaseFilter, InterchangePairs, sample_interchange_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.tokenization import REST
from probes.stats.evidence import (
    ClaimVerdict,
    StatisticalTest,
    check_above,
    check_below,
    check_within,
    claim_verdict,
    skipped_test,
)
from probes.stats.intervals import (
    BOOTSTRAP_DRAWS,
    Estimate,
    bootstrap_weights,
    percentile_interval,
    proportion,
)
from probes.stats.paired import mcnemar_test


@dataclass(frozen=True, slots=True)
class BaseComparisonSettings:
    """Sizes and seed of `compare_with_base`.

    Attributes:
        bases: Bases of the evaluation; as many fit directions and find heads.
        nulls: Random-init models of the null of shared heads.
        null_bases: Bases for each of these.
        seed: Of prompts, bootstrap, random-init models and heads of a screen.
        screened: Whether gradients give the shifts of most heads; see `screened_head_shifts`.
    """

    bases: int = 100
    nulls: int = 20
    null_bases: int = 24
    seed: int = 0
    screened: bool = False


def find_base_model(model: Model, named: ModelSpec | None, *, device: str) -> Model | str:
    """Load the model before tuning, by default that of the provenance; or say why there is none.

    Raises:
        ModelError: The one that is named cannot be loaded.
    """
    if named is not None:
        return load(named, device=device)
    name = model.provenance.base_model if model.provenance else ""
    try:
        return (
            load(name, device=device)
            if name
            else f"no base model of {model.name} is known: name it"
        )
    except ModelError as error:
        return str(error)


def compare_with_base(
    tuned: Model,
    base: Model,
    patterns: tuple[Pattern, Pattern],
    site: Site,
    settings: BaseComparisonSettings = BaseComparisonSettings(),
) -> BaseModelComparison:
    """Use the operation of a base model in the model tuned from it.

    Args:
        tuned: The tuned model.
        base: The model before tuning, of the same shape: the two share their coordinates.
        patterns: Pattern of the tuned model's questions, and the one of the same facts as
            statements, which the base model completes.
        site: Site of the operation in the tuned model.
        settings: Sizes and seed.

    Raises:
        ModelError: The models have different shapes.
        SiteError: The statements lack a role of the site.
    """
    _check_comparable(tuned, base, patterns[1], site)
    joined, seed = joined_roles(site), settings.seed
    fit_pairs, pairs = (_sample_pairs(tuned, patterns, settings, k) for k in (1, 0))
    tuned_fit = run_interchange_pairs(tuned, fit_pairs[0], joined_roles=joined)
    base_fit = run_interchange_pairs(base, fit_pairs[1], joined_roles=joined)
    null = random_init(tuned, seed=seed)
    null_fit = run_interchange_pairs(null, fit_pairs[1], joined_roles=joined)
    runs = run_interchange_pairs(tuned, pairs[0], joined_roles=joined)
    own, other, random = (
        patch_direction(runs, operation_direction(fit, site))
        for fit in (tuned_fit, base_fit, null_fit)
    )
    donor = run_interchange_pairs(base, pairs[0], joined_roles=joined)
    measure = head_measure(screened=settings.screened, seed=settings.seed)
    tuned_heads, base_heads = (measure(fit, NUMBER_READOUT) for fit in (tuned_fit, base_fit))
    return BaseModelComparison(
        base=base.name,
        tuned=tuned.name,
        own_direction=proportion(own),
        base_direction=proportion(other),
        difference=mcnemar_test(other, own).difference,
        base_state=proportion(cross_model_hits(runs, donor, site)),
        random_init_direction=proportion(random),
        base_heads=_output_head_names(base_heads),
        tuned_heads=_output_head_names(tuned_heads),
        head_overlap=bootstrap_head_overlap(tuned_heads, base_heads, seed=seed),
        null_head_overlaps=_null_head_overlaps(
            tuned, (tuned_heads, base_heads), fit_pairs[1], settings
        ),
    )


def _check_comparable(tuned: Model, base: Model, statement_pattern: Pattern, site: Site) -> None:
    own, other = (
        f"{shape.layers} layers of width {shape.d_model} with {shape.heads} heads"
        for shape in (tuned.shape, base.shape)
    )
    if own != other:
        raise ModelError(
            f"{tuned.name} was not tuned from {base.name}: {own} against {other}. Give the model "
            "before tuning."
        )
    roles = {part.role for template in statement_pattern.templates for part in template.parts}
    if missing := {*site.role.split("+")} - roles - {REST}:
        raise SiteError(
            f"The hotspot {site!s} has no counterpart in {statement_pattern.name!r}, which lacks "
            f"the role {', '.join(sorted(missing))}. Compare at a site that both have."
        )


def _sample_pairs(
    tuned: Model, patterns: tuple[Pattern, Pattern], settings: BaseComparisonSettings, k: int
) -> list[InterchangePairs]:
    """Pairs of both patterns: to fit on, from the words of site search, or to evaluate on (0)."""
    words = search_words(patterns[0]) if k else {}
    return [
        sample_interchange_pairs(
            pattern,
            settings.bases,
            tokenizers=(tuned.tokenizer,),
            seed=settings.seed + k,
            base_filter=BaseFilter(allowed_words=words),
        )
        for pattern in patterns
    ]


def _is_output_head(
    shifts: HeadShifts, weights: Float[np.ndarray, "draw prompt"]
) -> Bool[np.ndarray, "draw head"]:
    return shifts.fractions(weights) >= MIN_HEAD_FRACTION


def _output_head_names(shifts: HeadShifts) -> tuple[str, ...]:
    chosen = _is_output_head(shifts, np.ones((1, len(shifts.clean))))[0]
    return tuple(name for name, is_chosen in zip(shifts.heads, chosen, strict=True) if is_chosen)


def _jaccard(
    first: Bool[np.ndarray, "draw head"], second: Bool[np.ndarray, "draw head"]
) -> Float[np.ndarray, " draw"]:
    """Jaccard overlap of two sets of heads; 0 where both are empty."""
    return (first & second).sum(1) / np.maximum((first | second).sum(1), 1)


def bootstrap_head_overlap(first: HeadShifts, second: HeadShifts, *, seed: int) -> Estimate:
    """Jaccard overlap of the output heads of two models, with a bootstrap over their prompts."""
    all_prompts, samples = [], []
    for k, shifts in enumerate((first, second)):
        count = len(shifts.clean)
        weights = bootstrap_weights(count, BOOTSTRAP_DRAWS, seed=seed + k)
        all_prompts.append(_is_output_head(shifts, np.ones((1, count))))
        samples.append(_is_output_head(shifts, weights))
    return percentile_interval(float(_jaccard(*all_prompts)[0]), _jaccard(*samples))


def _null_head_overlaps(
    tuned: Model,
    heads: tuple[HeadShifts, HeadShifts],
    pairs: InterchangePairs,
    settings: BaseComparisonSettings,
) -> tuple[float, ...]:
    """Overlap of the tuned model's output heads with the largest heads of each random-init model.

    As many heads are taken as the base model has output heads: few reach the threshold there.
    """
    pairs = pairs.select(range(min(settings.null_bases, len(pairs))))
    own, base = (_is_output_head(shifts, np.ones((1, len(shifts.clean)))) for shifts in heads)
    overlaps = []
    for n in range(settings.nulls):
        runs: InterchangeRuns = run_interchange_pairs(
            random_init(tuned, seed=settings.seed + n), pairs
        )
        measure = head_measure(screened=settings.screened, seed=settings.seed)
        fractions = measure(runs, NUMBER_READOUT).fractions(np.ones((1, len(pairs))))
        largest = np.zeros_like(base)
        largest[0, fractions[0].argsort()[::-1][: int(base.sum())]] = True
        overlaps.append(float(_jaccard(own, largest)[0]))
    return tuple(overlaps)


def reuse_claim(comparison: BaseModelComparison | None, reason: str = "") -> ClaimVerdict:
    """H4: tuning reused the site and direction of the base model; only the heads differ.

    Args:
        comparison: Comparison with the base model; None if there is none.
        reason: Why there is none.
    """
    if comparison is None:
        test = skipped_test("base model", reason, id="base_model")
        return claim_verdict("H4", TITLES["H4"], [test])
    base, tuned = comparison.base, comparison.tuned
    meanings = (
        f"the direction of {base} works better in {tuned} than its own, which is poorly fitted",
        f"the direction of {base} does not work in {tuned}",
    )
    tests = [
        check_within(
            "own direction minus the base model's",
            meanings,
            comparison.difference,
            EQUIVALENCE_MARGIN,
            id="base_direction",
        ),
        check_above(
            "state of the base model",
            "the state is not the same",
            comparison.base_state,
            MAJORITY,
            id="base_state",
        ),
        check_below(
            "direction of a random-init model",
            "any direction works",
            comparison.random_init_direction,
            EQUIVALENCE_MARGIN,
            id="random_init_direction",
        ),
        *_head_tests(comparison),
    ]
    return claim_verdict("H4", TITLES["H4"], tests)


def _head_tests(comparison: BaseModelComparison) -> list[StatisticalTest]:
    name, id = "overlap of output heads (Jaccard)", "new_readout_heads"
    if not (comparison.base_heads and comparison.tuned_heads):
        return [skipped_test(name, "a model has no output heads of the number", id=id)]
    heads = f"{', '.join(comparison.base_heads)} before, {', '.join(comparison.tuned_heads)} after"
    same = f"the same heads write the number: {heads}"
    tests = [check_below(name, same, comparison.head_overlap, MAJORITY, id=id)]
    if comparison.null_head_overlaps:
        count, greatest = len(comparison.null_head_overlaps), max(comparison.null_head_overlaps)
        name = f"overlap above that with {count} random-init models"
        fewer = "no more heads are shared than with a random-init model"
        value = comparison.head_overlap
        test = check_above(name, fewer, value, greatest, id="null_head_overlap")
        tests.append(test.non_deciding())
    return tests
