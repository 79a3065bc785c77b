"""Prompts that all models of a comparison read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from probes.comparison.setup.cost import (
    exact_cells,
    is_cheaper,
    null_operations,
    sweep_operations,
)
from probes.comparison.setup.references import ComparisonSettings
from probes.comparison.variables.held_out_folds import (
    HeldOutFolds,
    distinct_tokenizers,
    sample_held_out_folds,
)
from probes.errors import BatchError, PatternError
from probes.interventions.screening.patching import ExactCells
from probes.models.model import Model
from probes.observe.gate import GATE_QUESTIONS, default_criterion
from probes.observe.result import GateCriterion
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair, Question
from probes.prompts.tokens.pair_batch import (
    PairBatch,
    sample_pairs,
    sample_readable_questions,
    tokenize_pairs,
)
from probes.prompts.tokens.tokenization import REST

_MIN_PAIRS = 4
_DRAW_SEED_STEP = 10_007  # Seeds that users choose seldom differ by it.
_PATH_SEED_STEP = 20_011  # Pairs of paths are not those of heads.

TRANSFER_SIZES, SCREENED_TRANSFER_SIZES = (150, 400), (60, 160)
"""Bases and questions of the cross-model interchange; fewer where the comparison is screened."""


@dataclass(frozen=True, eq=False)
class PathPrompts:
    """Pairs for role paths, all tokens aligned, of each contrast that changes an answer.

    Attributes:
        search: Pairs on which paths are found.
        test: Other pairs, on which they are measured.
    """

    search: Mapping[str, tuple[Pair, ...]]
    test: Mapping[str, tuple[Pair, ...]]


@dataclass(frozen=True, eq=False)
class ComparisonPrompts:
    """Prompts that all compared models read.

    Attributes:
        pattern: Query pattern.
        questions: Questions of the gate.
        pairs: Clean and counterfactual prompts of each contrast.
        roles: Roles that all models have, in the order of the text.
        folds: Prompts of the cross-model interchange; None where the pattern does not allow it.
        further_folds: Further draws of them, by seed.
        transfer_skip_reason: Why it does not; else "".
        missing_draws: Why there are fewer further draws than asked for; else "".
        paths: Pairs for role paths.
        seed: Seed of all draws.
        screen: Cells that are patched exactly after a screen; None where all are.
        permuted_null: Whether the null permutes measurements, without random-init models.
        gate_criterion: What the gate asks.
    """

    pattern: Pattern
    questions: tuple[Question, ...]
    pairs: Mapping[str, Sequence[Pair]]
    roles: tuple[str, ...]
    folds: HeldOutFolds | None
    further_folds: Mapping[int, HeldOutFolds]
    transfer_skip_reason: str
    missing_draws: str
    paths: PathPrompts
    seed: int
    screen: ExactCells | None = None
    permuted_null: bool = False
    gate_criterion: GateCriterion = "accuracy"


def sample_comparison_prompts(
    pattern: Pattern,
    models: Sequence[Model],
    settings: ComparisonSettings,
) -> ComparisonPrompts:
    """Sample prompts that the tokenizers of all models can encode.

    Where the comparison is screened, variables are measured in one draw of fewer prompts, and role
    paths on half as many.
    """
    tokenizers, seed = distinct_tokenizers([model.tokenizer for model in models]), settings.seed
    pairs = {
        contrast: sample_contrast_pairs(pattern, contrast, settings.prompts, tokenizers, seed)
        for contrast in pattern.contrasts
    }
    batches = [tokenize_contrasts(model, pairs) for model in models]
    roles = shared_roles(batches)
    both = list(zip(models, batches, strict=True))
    is_screened = is_cheaper(
        settings.screen, "always", [sweep_operations(*one, roles) for one in both]
    )
    draws = 1 if is_screened else settings.draws
    folds, skip_reason = [], ""
    try:
        for draw in range(draws):
            draw_seed = seed + draw * _DRAW_SEED_STEP
            folds.append((draw_seed, _sample_folds(pattern, tokenizers, draw_seed, is_screened)))
    except PatternError as error:  # Of the first draw: the pattern does not allow interchange.
        skip_reason = str(error)
    return ComparisonPrompts(
        pattern=pattern,
        questions=sample_readable_questions(
            pattern, GATE_QUESTIONS, tokenizers=tokenizers, seed=seed
        ),
        pairs=pairs,
        roles=roles,
        folds=folds[0][1] if folds else None,
        further_folds=dict(folds[1:]),
        transfer_skip_reason="" if folds else skip_reason,
        missing_draws=skip_reason if folds else "",
        paths=sample_path_prompts(
            pattern, pairs, tokenizers, settings, limit=settings.prompts if is_screened else None
        ),
        seed=seed,
        screen=exact_cells(both, seed=seed) if is_screened else None,
        permuted_null=(is_screened or settings.null == "permuted")
        and is_cheaper(
            settings.null, "permuted", [null_operations(*one, settings.nulls) for one in both]
        ),
        gate_criterion=settings.gate or default_criterion(pattern),
    )


def _sample_folds(
    pattern: Pattern, tokenizers: Sequence[PreTrainedTokenizerBase], seed: int, is_screened: bool
) -> HeldOutFolds:
    bases, prompts = SCREENED_TRANSFER_SIZES if is_screened else TRANSFER_SIZES
    return sample_held_out_folds(
        pattern, tokenizers=tokenizers, bases=bases, prompts=prompts, seed=seed
    )


def tokenize_contrasts(model: Model, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, PairBatch]:
    """Tokenize the pairs of each contrast for one model."""
    context = model.shape.context
    return {c: tokenize_pairs(model.tokenizer, p, max_length=context) for c, p in pairs.items()}


def sample_contrast_pairs(
    pattern: Pattern,
    contrast: str,
    prompts: int,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    seed: int,
) -> tuple[Pair, ...]:
    """Sample pairs of a contrast; of a pattern's given pairs there may be fewer."""
    if pattern.user_pairs:
        prompts = min(prompts, sum(pair.contrast == contrast for pair in pattern.user_pairs))
    if prompts < _MIN_PAIRS:
        raise BatchError(
            f"Contrast {contrast!r} has {prompts} pairs: split halves and intervals need at least "
            f"{_MIN_PAIRS}"
        )
    return sample_pairs(pattern, contrast, prompts, tokenizers=tokenizers, seed=seed)


def sample_path_prompts(
    pattern: Pattern,
    sampled: Mapping[str, Sequence[Pair]],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    settings: ComparisonSettings,
    *,
    limit: int | None = None,
) -> PathPrompts:
    """Pairs of each contrast that changes an answer; contrasts with too few pairs are left out.

    Paths are tested on at most `limit` pairs of a contrast.
    """
    search, test = {}, {}
    for contrast, few in sampled.items():
        if not any(map(changes_an_answer, few)):
            continue
        own = [pair for pair in pattern.user_pairs if pair.contrast == contrast]
        count = len(own) if pattern.user_pairs else 5 * settings.prompts // 2
        try:
            seed = settings.seed + _PATH_SEED_STEP
            pairs = sample_pairs(pattern, contrast, count, tokenizers=tokenizers, seed=seed)
        except (BatchError, PatternError):
            continue  # A pattern with few words: its heads are still compared.
        aligned = np.all(
            [tokenize_pairs(t, pairs).fully_aligned.numpy() for t in tokenizers], axis=0
        )
        kept = [
            pair
            for pair, exact in zip(pairs, aligned, strict=True)
            if exact and changes_an_answer(pair)
        ]
        cut = min(len(kept) // 3, max(_MIN_PAIRS, settings.prompts // 2))
        if cut >= _MIN_PAIRS:
            search[contrast], test[contrast] = tuple(kept[:cut]), tuple(kept[cut:][:limit])
    return PathPrompts(search, test)


def changes_an_answer(pair: Pair) -> bool:
    """Whether the counterfactual has another answer."""
    return any(pair.changes_answer(name) for name, _ in pair.clean.answers)


def shared_roles(batches_by_model: Sequence[Mapping[str, PairBatch]]) -> tuple[str, ...]:
    """Roles that all models have, by mean position in the first model; the rest role is last.

    The role of the last answer is left out, because no token follows it.
    """
    positions: dict[str, list[float]] = {}
    for pairs in batches_by_model[0].values():
        for role in pairs.clean.roles:
            mean = pairs.clean.role_mask(role).nonzero()[:, 1].double().mean()
            positions.setdefault(role, []).append(float(mean))
    first = next(iter(batches_by_model[0].values())).clean
    last = f"reply_{first.readouts[-1].name}" if first.readouts else ""
    roles = [
        {role for pairs in batches.values() for role in pairs.clean.roles}
        for batches in batches_by_model
    ]
    shared = [role for role in positions if role != last and all(role in own for own in roles)]
    return tuple(sorted(shared, key=lambda role: (role == REST, float(np.mean(positions[role])))))
