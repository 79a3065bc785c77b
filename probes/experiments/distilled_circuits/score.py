"""The alignment score of "Distilled Circuits", as in its authors' code, with a null.

Haskins and Adams 2025 (arXiv 2505.10822; code: Reih02/distilled_circuits). It is a baseline, not
evidence: a causal mask alone makes attention similar, and random-init models score high. The score
is almost a mean cosine, as influences that sum to 1 have little weight.

Where the notebooks of the code differ, this uses zero ablation, each pair once, and similarities of
MLPs scaled as in the first version of the paper.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from probes.errors import ModelError
from probes.experiments.distilled_circuits.components import (
    ComponentMeasurements,
    measure_components,
    sample_same_length,
    tokenize_answer_prompts,
)
from probes.models.model import Model, random_init
from probes.prompts.pattern import Pattern
from probes.stats.null_threshold import conformal_threshold, exceedance_rate

Direction = Literal["other to full", "full to other"]

MIN_NULLS = 20


@dataclass(frozen=True, slots=True)
class AlignmentScore:
    """The score of one pair of models on some of their components.

    Attributes:
        value: Mean over pairs of similarity times (1 - difference of their fractions of influence).
        similarity: Mean similarity of the pairs; no score exceeds it.
        max_similarity: Largest similarity of a pair.
        pairs: Number of components that are matched; two may have the same match.
    """

    value: float
    similarity: float
    max_similarity: float
    pairs: int

    @property
    def lower_bound(self) -> float:
        """Lowest score that these similarities allow, for any influences."""
        return self.similarity - 2 * self.max_similarity / self.pairs


@dataclass(frozen=True, eq=False)
class DistilledCircuitsScore:
    """Alignment score of two models, and of random-init models of the other's shape.

    Attributes:
        full, other: Names of the models.
        pattern, answer: Names of the pattern and of the answer.
        prompts, tokens: Number of prompts, and of tokens of each.
        direction: Model whose components are matched to those of the other model.
        logit_diffs: Logit differences of `full` and of `other`.
        heads_and_mlps: Score of heads and MLPs; None for different widths, whose residual streams
            share no axes.
        heads: Score of heads alone.
        null_heads_and_mlps, null_heads_only: The same scores of `full` with each random-init
            model; the first is empty if `heads_and_mlps` is None.
    """

    full: str
    other: str
    pattern: str
    answer: str
    prompts: int
    tokens: int
    direction: Direction
    logit_diffs: tuple[float, float]
    heads_and_mlps: AlignmentScore | None
    heads: AlignmentScore
    null_heads_and_mlps: Float[np.ndarray, " _"]
    null_heads_only: Float[np.ndarray, " model"]

    @property
    def score(self) -> float:
        """Published number, of heads and MLPs; of heads alone for different widths."""
        return (self.heads_and_mlps or self.heads).value

    @property
    def heads_only(self) -> float:
        """Score of heads alone."""
        return self.heads.value

    @property
    def null(self) -> Float[np.ndarray, " model"]:
        """Scores of the random-init models: the null of `score`."""
        return self.null_heads_and_mlps if self.heads_and_mlps else self.null_heads_only

    @property
    def chance(self) -> float:
        """Mean score of the random-init models."""
        return float(self.null.mean())

    @property
    def chance_high(self) -> float:
        """Score that a further random-init model exceeds with probability 0.05 or less."""
        return float(conformal_threshold(self.null))

    @property
    def nulls_below(self) -> int:
        """Number of random-init models with a lower score."""
        return int((self.null < self.score).sum())

    @property
    def p(self) -> float:
        """P-value: probability of a score as high if the other model were a random-init model."""
        return (1 + len(self.null) - self.nulls_below) / (1 + len(self.null))

    @property
    def exceeds_null(self) -> bool:
        """Whether the score is above the threshold of its null, so that `p` is at most 0.05."""
        return self.score > self.chance_high

    def summary(self) -> tuple[str, ...]:
        """Score, its null, and its meaning."""
        exceeds = "exceeds" if self.exceeds_null else "does not exceed"
        meaning = (
            "This alone does not show which circuit they share."
            if self.exceeds_null
            else "It is no evidence that the two are related."
        )
        score = self.heads_and_mlps or self.heads
        lines = [
            f"{self.full} and {self.other} on {self.pattern}: alignment score {self.score:.3f} "
            f"(Haskins and Adams 2025), heads only {self.heads_only:.3f}.",
            f"{len(self.null)} random-init models of {self.other}'s shape score {self.chance:.3f} "
            f"(a further one exceeds {self.chance_high:.3f} with probability "
            f"{exceedance_rate(len(self.null)):.3f}): the score {exceeds} its null, and is above "
            f"{self.nulls_below} of {len(self.null)} (p = {self.p:.3f}). {meaning}",
            f"The mean similarity alone is {score.similarity:.3f}; for any influences, the score "
            f"is between {score.lower_bound:.3f} and {score.similarity:.3f}.",
        ]
        if self.heads_and_mlps is None:
            lines.append(
                "The widths differ, so MLPs cannot be compared: the score is that of heads."
            )
        lines += [
            f"The logit difference of {name} is not positive ({value:.2f}), so its influences have "
            "no meaning."
            for name, value in zip((self.full, self.other), self.logit_diffs, strict=True)
            if value <= 0
        ]
        return tuple(lines)


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """Settings of the score.

    Attributes:
        answer: Name of the answer; by default the pattern's first.
        prompts: Number of prompts.
        seed: Seed of prompts and random-init models.
        nulls: Number of random-init models of the other's shape, at least 20.
        direction: Model whose components are matched to those of the other model.
    """

    answer: str = ""
    prompts: int = 64
    seed: int = 0
    nulls: int = MIN_NULLS
    direction: Direction = "other to full"

    def __post_init__(self) -> None:
        if self.nulls < MIN_NULLS:
            raise ModelError(
                f"There are {self.nulls} random-init models: use {MIN_NULLS} or more, whose "
                "highest score a further one exceeds in less than 5 % of cases"
            )


def distilled_circuits_score(
    full: Model, other: Model, pattern: Pattern, settings: ScoreSettings | None = None
) -> DistilledCircuitsScore:
    """Alignment score of Haskins and Adams (2025, arXiv 2505.10822), with its null.

    Prompts have one frame and equal numbers of tokens in every role, so that a position means the
    same in all of them.

    Args:
        full, other: Models whose tokenizers split the prompts alike.
        pattern: Pattern of the prompts.
        settings: Settings of the score.

    Raises:
        BatchError: The pattern has too few prompts of one length.
        TokenizerError: The tokenizers split the prompts differently.
        ModelError: The mean logit difference of a model is exactly 0.
        SiteError: The pattern has no such answer.
    """
    settings = settings or ScoreSettings()
    questions = sample_same_length(
        pattern,
        settings.prompts,
        tokenizers=(full.tokenizer, other.tokenizer),
        seed=settings.seed,
        answer=settings.answer,
    )
    answer = settings.answer or questions[0].answers[0][0]
    full_parts = measure_components(
        full, tokenize_answer_prompts(full.tokenizer, questions, answer)
    )
    prompts = tokenize_answer_prompts(other.tokenizer, questions, answer)
    other_parts = measure_components(other, prompts)
    seeds = np.random.default_rng(settings.seed).integers(2**31, size=settings.nulls).tolist()
    nulls = [measure_components(random_init(other, seed=seed), prompts) for seed in seeds]
    same_width = full.shape.d_model == other.shape.d_model

    def score(parts: ComponentMeasurements, *, mlps: bool) -> AlignmentScore:
        is_to_full = settings.direction == "other to full"
        pair = (parts, full_parts) if is_to_full else (full_parts, parts)
        return match_components(*pair, mlps=mlps)

    return DistilledCircuitsScore(
        full=full.name,
        other=other.name,
        pattern=pattern.name,
        answer=answer,
        prompts=settings.prompts,
        tokens=prompts.ids.shape[1],
        direction=settings.direction,
        logit_diffs=(full_parts.logit_diff, other_parts.logit_diff),
        heads_and_mlps=score(other_parts, mlps=True) if same_width else None,
        heads=score(other_parts, mlps=False),
        null_heads_and_mlps=np.array([score(p, mlps=True).value for p in nulls if same_width]),
        null_heads_only=np.array([score(p, mlps=False).value for p in nulls]),
    )


def match_components(
    source: ComponentMeasurements, target: ComponentMeasurements, *, mlps: bool = True
) -> AlignmentScore:
    """Score of the pairs of each component of the first model and its best match in the second."""
    heads = attention_similarity(source, target)
    kinds = [(heads, source.head_influence, target.head_influence)]
    if mlps:
        kinds.append(
            (
                rescale_mlp_similarity(mlp_similarity(source, target), heads),
                source.mlp_influence,
                target.mlp_influence,
            )
        )
    best = [similarity.argmax(1) for similarity, _, _ in kinds]
    similarity = np.concatenate([s.max(1) for s, _, _ in kinds])
    own = _to_fractions(np.concatenate([influence for _, influence, _ in kinds]))
    matched = _to_fractions(
        np.concatenate([i[at] for (_, _, i), at in zip(kinds, best, strict=True)])
    )
    value = float((similarity * (1 - np.abs(own - matched))).mean())
    return AlignmentScore(value, float(similarity.mean()), float(similarity.max()), len(similarity))


def attention_similarity(
    a: ComponentMeasurements, b: ComponentMeasurements
) -> Float[np.ndarray, "head_a head_b"]:
    """Cosine of two heads' average attention, mean over queries, 0 to 1."""
    units = [x.attention / np.linalg.norm(x.attention, axis=-1, keepdims=True) for x in (a, b)]
    return np.einsum("aqk,bqk->ab", *units, optimize=True) / units[0].shape[1]


def mlp_similarity(
    a: ComponentMeasurements, b: ComponentMeasurements
) -> Float[np.ndarray, "layer_a layer_b"]:
    """|Mean cosine| of all pairs of two MLPs' leading eigenvectors, 0 to 1.

    The mean depends on the arbitrary signs of eigenvectors, as published.
    """
    return np.abs(a.mlp_directions.mean(-1) @ b.mlp_directions.mean(-1).T)


def rescale_mlp_similarity(
    mlps: Float[np.ndarray, "layer_a layer_b"], heads: Float[np.ndarray, "head_a head_b"]
) -> Float[np.ndarray, "layer_a layer_b"]:
    """Similarities of MLPs with the mean and deviation of the heads', then with a maximum of 1."""
    deviation = mlps.std() or 1.0  # A single pair has none, and is the mean.
    # Two kinds of standard deviation, as in the code: that of numpy and that of torch.
    scaled = (mlps - mlps.mean()) / deviation * heads.std(
        ddof=min(1, heads.size - 1)
    ) + heads.mean()
    return scaled / scaled.max()


def _to_fractions(influence: Float[np.ndarray, " component"]) -> Float[np.ndarray, " component"]:
    """Influences scaled to a sum of 1; all 0 if there is none."""
    return influence / (influence.sum() or 1.0)
