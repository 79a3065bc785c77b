"""Settings of a comparison, and loading of the compared models and of their reference models."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from probes.comparison.setup.cost import ScreenChoice
from probes.comparison.setup.method import NullChoice
from probes.comparison.variables.held_out_folds import tokenizer_rules
from probes.comparison.variables.transfer import with_unique_names
from probes.errors import ModelError
from probes.models.files.names import stored_source
from probes.models.model import Model, ModelSpec, load, random_init
from probes.models.run_checks import require_unedited
from probes.models.shared_weights import share_weights
from probes.observe.result import GateCriterion
from probes.plan import PlannedSettings

_SEED_OFFSET = 10_000  # Separates a compared random-init model from those of the null.


@dataclass(frozen=True, slots=True, eq=False)
class ComparisonSettings(PlannedSettings):
    """Settings of a comparison.

    Attributes:
        prompts: Pairs for each contrast; role paths are tested on twice as many others.
        draws: Draws of prompts, held-out words, folds and sites for the cross-model interchange.
            The interval of one draw covers its own prompts only. Pairs for heads and role paths
            are drawn once.
        repeats: Whole comparisons, each with other prompts and random-init models. The numbers and
            verdicts are those of the first; `Comparison.repeats` has the verdicts of all. They
            share the budget equally, and the plan is that of one.
        seed: Seed of the prompts, the random-init models and the bootstrap.
        nulls: Number of random-init models of the other's shape.
        other_seed: Model that differs from the full model in its training seed only. By default
            the one that the provenance of the full model names.
        negative_controls: Models trained on the same texts for another task. By default those that
            the provenance of the full model names.
        screen: How effects of heads and MLPs are measured: "never" patches every component at every
            role exactly; "always" screens them by attribution patching and patches the strongest
            and a random sample exactly, which also bounds the other parts (`setup.prompts`); "auto"
            screens where exact patching of a model needs more than 1e13 operations. Heads of
            random-init models are always measured by attribution patching.
        null: "random-init" models of the relative's shape; "permuted": the relative's own
            measurements with permuted roles and signs, without a further pass; "auto" permutes
            where the comparison is screened and the random-init models need more than 1e13
            operations.
        edges: Whether circuits of relatives with the same graph are compared edge by edge; by
            default where the comparison is screened.
        gate: What the gate asks; see `GateCriterion`. By default accuracy for patterns with free
            answers, choice for pairs.
        format: Prompt format, such as "few-shot-4", or "auto" for one in which all compared models
            have the behavior; see `PromptFormat`. Each model reads its own chat template.
        engine: Where units run: "inprocess", "processes", "ray" …; see `scale.engine`. The result
            does not depend on it.
        workers: Units that run at once. The result does not depend on it; give torch one thread if
            it is more than one.
    """

    prompts: int = 32
    draws: int = 5
    repeats: int = 1
    seed: int = 0
    nulls: int = 20
    other_seed: ModelSpec | None = None
    negative_controls: Sequence[ModelSpec] | None = None
    gate: GateCriterion | None = None
    format: str = "plain"
    screen: ScreenChoice = "auto"
    null: NullChoice = "auto"
    edges: bool | None = None
    engine: Any = field(default="inprocess", compare=False, metadata={"saved": False})
    workers: int = field(default=1, compare=False, metadata={"saved": False})


@dataclass(frozen=True, eq=False)
class ReferenceModels:
    """Reference models, not compared themselves.

    Attributes:
        other_seed: The full model trained from another seed.
        same_shape: For each relative, by name, a model of its shape trained without the full model.
        negative_controls: Models trained for another task.
    """

    other_seed: Model | None
    same_shape: Mapping[str, Model]
    negative_controls: Sequence[Model]

    def not_compared(self, compared: Collection[str]) -> list[Model]:
        """Reference models whose names are not among those of the compared models."""
        every = [
            *([self.other_seed] if self.other_seed else []),
            *self.same_shape.values(),
            *self.negative_controls,
        ]
        return list({model.name: model for model in every if model.name not in compared}.values())


def load_models(
    full: ModelSpec, others: Sequence[ModelSpec], seed: int, *, device: str = ""
) -> tuple[Model, list[Model]]:
    """Load the models, with unique names."""
    if not others:
        name = str(getattr(full, "name", full))
        raise ModelError(f"Only one model was given, {name!r}: name a relative to compare it with")
    a = load(full, device=device)
    relatives = [
        random_init(a, seed=seed + _SEED_OFFSET)
        if other == "random-init"
        else load(other, device=device)
        for other in others
    ]
    given = [spec for spec in (full, *others) if isinstance(spec, Model)]
    # Models of the caller keep weights of their own.
    share_weights([one for one in (a, *relatives) if one not in given])
    for model in (a, *relatives):
        require_unedited(model)
        if model.tokenizer is None:
            raise ModelError(f"{model.name!r} has no tokenizer: add its files and load again")
    a, *relatives = _share_tokenizers([a, *with_unique_names(relatives, [a.name])])
    return a, relatives


def load_references(
    a: Model,
    bs: Sequence[Model],
    settings: ComparisonSettings,
) -> ReferenceModels:
    """Load the other-seed model, same-shape controls and negative controls.

    The provenance of the models names those that are not given.
    """
    facts = {model.name: model.provenance for model in (a, *bs)}
    full_facts = facts[a.name]
    seed_model, negative_controls = settings.other_seed, settings.negative_controls
    if seed_model is None and full_facts and full_facts.other_seeds:
        seed_model = full_facts.other_seeds[0]
    shaped = {b.name: made.controls[0] for b in bs if (made := facts[b.name]) and made.controls}
    if negative_controls is None:
        names = full_facts.negative_controls if full_facts else ()
        negative_controls = [name for name in names if name not in facts]
    given = [
        *([seed_model] if seed_model is not None else []),
        *shaped.values(),
        *negative_controls,
    ]
    loaded = [load(one, device=settings.device) for one in given]
    every = _share_tokenizers([a, *bs, *_deduplicate(loaded, [a, *bs])])[1 + len(bs) :]
    if seed_model is not None:
        seed_model, *every = every
    return ReferenceModels(
        other_seed=seed_model,
        same_shape=dict(zip(shaped, every, strict=False)),
        negative_controls=list({model.name: model for model in every[len(shaped) :]}.values()),
    )


def _share_tokenizers(models: Sequence[Model]) -> list[Model]:
    """Models that share the tokenizers that do the same, so that they can share its prompts."""
    first: dict[object, Any] = {}
    return [
        replace(one, tokenizer=first.setdefault(_tokenizer_key(one), one.tokenizer))
        for one in models
    ]


def _tokenizer_key(model: Model) -> object:
    if not getattr(model.tokenizer, "is_fast", False):
        return model.name
    return tokenizer_rules(model.tokenizer), str(model.tokenizer.chat_template)


def _deduplicate(models: Sequence[Model], compared: Sequence[Model]) -> list[Model]:
    """Reuse compared models, and give the others unique names."""
    unique: list[Model] = []
    for model in models:
        before = [*compared, *unique]
        same = next((one for one in before if _is_same_model(one, model)), None)
        unique.append(same or with_unique_names([model], [one.name for one in before])[0])
    return unique


def _is_same_model(one: Model, other: Model) -> bool:
    """Whether two values are the same model, loaded once or twice."""
    stored = bool(stored_source(one.origin))
    return one.bridge is other.bridge or (stored and one.origin == other.origin)
