"""Parts of the tests of the claims that need no runs of other parts: units of an engine.

Each is a function of models, a pattern, a site and settings.
"""

from dataclasses import dataclass

from probes.claims.base_model import BaseComparisonSettings, compare_with_base
from probes.claims.patterns import (
    has_behavior,
    operation_free_pattern,
    statement_pattern,
    two_object_pattern,
)
from probes.claims.plan import ClaimSettings
from probes.claims.result import BaseModelComparison
from probes.errors import ModelError, PatternError, SiteError
from probes.interventions.bindings import swap_bindings
from probes.interventions.confounds import (
    distractor_sentence,
    operation_free_question,
    unseen_verbs,
)
from probes.interventions.dissociation import dissociate
from probes.interventions.hotspots.measure import HotspotSettings, hotspots
from probes.interventions.result import (
    BindingSwap,
    ControlAccuracy,
    DecodingResult,
    DirectionComparison,
    Dissociation,
    UnseenVerbs,
)
from probes.interventions.subspaces.das_search import decode_object
from probes.interventions.subspaces.directions import DirectionSettings, compare_directions
from probes.models.model import Model
from probes.models.site import Site
from probes.observe.gate import gate
from probes.prompts.interchange_pairs import (
    OBJECT,
    OPERATION,
    BaseFilter,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.pattern import Pattern

_FEW_OBJECTS = 8  # Few enough that each occurs in many prompts.


@dataclass(frozen=True, eq=False)
class SiteTests:
    """What is tested at the operation's site beside interchange.

    Attributes:
        object_decoding, unseen_verbs, operation_free_accuracy, distractor_accuracy: As in
            `SharedStateEvidence`.
    """

    object_decoding: DecodingResult
    unseen_verbs: UnseenVerbs | None
    operation_free_accuracy: ControlAccuracy | None
    distractor_accuracy: ControlAccuracy | None


def run_site_tests(
    model: Model, pattern: Pattern, site: Site, settings: ClaimSettings
) -> SiteTests:
    """Test the site of the operation with few objects, unseen verbs and misleading ones."""
    seed = settings.seed
    few_objects = _sample_few_objects(model, pattern, seed)
    operation_free, distractor = _verb_detector_tests(model, pattern, site, seed)
    return SiteTests(
        object_decoding=decode_object(model, few_objects, site, seed=seed),
        unseen_verbs=_unseen_verbs(model, pattern, site, settings),
        operation_free_accuracy=operation_free,
        distractor_accuracy=distractor,
    )


def _sample_few_objects(model: Model, pattern: Pattern, seed: int) -> InterchangePairs:
    """Sample bases about few objects, so that each occurs in many."""
    words = {OBJECT: list(pattern.lexicon.words("noun")[:_FEW_OBJECTS])}
    count = 20 * _FEW_OBJECTS
    return sample_interchange_pairs(
        pattern,
        count,
        tokenizers=(model.tokenizer,),
        seed=seed + 2,
        base_filter=BaseFilter(allowed_words=words),
    )


def dissociate_two_objects(
    model: Model, pattern: Pattern, settings: ClaimSettings
) -> tuple[Dissociation | None, tuple[BindingSwap, ...]]:
    """Dissociate number and noun with two objects in the text, if the model has the behavior."""
    seed = settings.seed
    two_objects = two_object_pattern(pattern)
    if two_objects is None or not has_behavior(model, two_objects, seed):
        return None, ()
    both = hotspots(
        model,
        two_objects,
        HotspotSettings(
            bases=settings.bases // 2, nulls=0, seed=seed, screened=settings.screen == "always"
        ),
        variables=(OPERATION, OBJECT),
    )
    return dissociate(both, seed=seed), swap_bindings(both.runs, seed=seed)


def compare_objects(
    model: Model, pattern: Pattern, site: Site, settings: ClaimSettings
) -> tuple[DirectionComparison | None, str]:
    """Compare directions between objects, or return the reason why that is impossible."""
    try:
        return compare_directions(model, pattern, site, DirectionSettings(seed=settings.seed)), ""
    except PatternError as error:  # Such as nouns of which no two have as many tokens.
        return None, str(error)


def compare_base(
    model: Model,
    pattern: Pattern,
    site: Site,
    base: Model | str,
    settings: ClaimSettings,
) -> tuple[BaseModelComparison | None, str]:
    """Compare a model with its base model, or return the reason why that is impossible."""
    if isinstance(base, str):
        return None, base
    statements = statement_pattern(pattern)
    if statements is None:
        return None, f"{pattern.name!r} has no questions with a pattern of the same statements"
    sizes = BaseComparisonSettings(
        bases=settings.bases // 2,
        nulls=settings.nulls,
        seed=settings.seed,
        screened=settings.screen == "always",
    )
    try:
        found = compare_with_base(model, base, (pattern, statements), site, sizes)
    except (ModelError, SiteError) as error:  # Such as a base model that lacks the site.
        return None, str(error)
    return found, ""


def _verb_detector_tests(
    model: Model, pattern: Pattern, site: Site, seed: int
) -> tuple[ControlAccuracy | None, ControlAccuracy | None]:
    """Return the accuracies that a detector of verbs would lower."""
    distractor = distractor_sentence(model, pattern, seed=seed)
    operation_free = operation_free_pattern(pattern)
    if operation_free is None or not gate(model, operation_free, seed=seed)[0].has_behavior:
        return None, distractor
    return operation_free_question(model, operation_free, site, seed=seed), distractor


def _unseen_verbs(
    model: Model, pattern: Pattern, site: Site, settings: ClaimSettings
) -> UnseenVerbs | None:
    """Unseen verbs; None where a pattern has too few verbs to hold some out."""
    try:
        return unseen_verbs(model, pattern, site, bases=settings.bases // 5, seed=settings.seed)
    except PatternError:
        return None
