"""The alignment score of "Distilled Circuits", as its authors code it, with the null they lack.

Haskins and Adams 2025 (arXiv 2505.10822; code: Reih02/distilled_circuits). It is here as a baseline
to be held against, not as a measure to trust: a causal mask alone makes attention look alike, and
nets that were never trained score high. It is all but a mean cosine, as shares that sum to 1 leave
influence next to no weight.

Where the code differs from one notebook to the next, this takes: zero ablation, each pair once,
and similarities of MLPs scaled as in the first version of the paper.
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

Direction = Literal["other to full", "full to other"]

MIN_NULLS = 20


@dataclass(frozen=True, slots=True)
class AlignmentScore:
    """The score of one pair of models on some of their components.

    Attributes:
        value: Mean over pairs of similarity times (1 - difference of the shares of influence).
        similarity: Mean similarity of the pairs alone. No score exceeds it.
        largest: The largest similarity of a pair.
        pairs: How many components sought a partner; two may take the same one.
    """

    value: float
    similarity: float
    max_similarity: float
    pairs: int

    @property
    def lower_bound(self) -> float:
        """Return the lowest score that these similarities allow, whatever the influences are."""
        return self.similarity - 2 * self.max_similarity / self.pairs


@dataclass(frozen=True, eq=False)
class DistilledCircuitsScore:
    """The alignment score of two models beside that of untrained nets of the other's shape.

    Attributes:
        full, other: Names of the models.
        pattern, answer: What was asked, and which answer was read.
        prompts, tokens: How many prompts, and how many tokens each has.
        direction: Whose components sought their best match in the other model.
        leads: The answer's logit less the foil's, of `full` and of `other`.
        whole: The score of heads and MLPs, or None where the widths differ: eigenvectors of
            residual streams of different widths share no axes.
        attention: The score of heads alone.
        null, null_heads_only: The same two scores of `full` with each untrained net (the first
            is empty where `whole` is None).
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
        """The published number, of heads and MLPs; of heads alone where the widths differ."""
        return (self.heads_and_mlps or self.heads).value

    @property
    def heads_only(self) -> float:
        """The score of heads alone."""
        return self.heads.value

    @property
    def mean_similarity(self) -> float:
        """Mean similarity of the pairs behind `score`, with influence left out."""
        return (self.heads_and_mlps or self.heads).similarity

    @property
    def null(self) -> Float[np.ndarray, " model"]:
        """What untrained nets score: the null of `score`."""
        return self.null_heads_and_mlps if self.heads_and_mlps else self.null_heads_only

    @property
    def chance(self) -> float:
        """Mean score of the untrained nets."""
        return float(self.null.mean())

    @property
    def chance_high(self) -> float:
        """95th percentile of the untrained nets' scores."""
        return float(np.quantile(self.null, 0.95))

    @property
    def nulls_below(self) -> int:
        """How many untrained nets score lower."""
        return int((self.null < self.score).sum())

    @property
    def p(self) -> float:
        """How likely one more untrained net would score as high, if the other model were one."""
        return (1 + len(self.null) - self.nulls_below) / (1 + len(self.null))

    @property
    def exceeds_null(self) -> bool:
        """Whether the score is above the 95th percentile of its null."""
        return self.score > self.chance_high

    def summary(self) -> tuple[str, ...]:
        """Say what the score is, what untrained nets score, and what to make of it."""
        nets = f"{len(self.null)} untrained nets of {self.other}'s shape"
        found = "exceeds" if self.exceeds_null else "does not exceed"
        meaning = (
            "This alone does not say which circuit they share."
            if self.exceeds_null
            else "It is no evidence that the two are related."
        )
        whole = self.heads_and_mlps or self.heads
        lines = [
            f"{self.full} and {self.other} on {self.pattern}: alignment score {self.score:.3f} "
            f"(Haskins and Adams 2025), heads only {self.heads_only:.3f}.",
            f"{nets} score {self.chance:.3f} (95th percentile {self.chance_high:.3f}): the score "
            f"{found} its null, and beats {self.nulls_below} of {len(self.null)}. {meaning}",
            f"The mean similarity alone is {whole.similarity:.3f}; whatever the influences, the "
            f"score could not leave {whole.lower_bound:.3f} to {whole.similarity:.3f}.",
        ]
        if self.heads_and_mlps is None:
            lines.append("The widths differ, so MLPs cannot be compared: the score is of heads.")
        lines += [
            f"{name} does not lead with the answer ({lead:.2f}): its influences are per cent of a "
            "lead that is not there."
            for name, lead in zip((self.full, self.other), self.logit_diffs, strict=True)
            if lead <= 0
        ]
        return tuple(lines)


def distilled_circuits_score(  # noqa: PLR0913 (the published score has its dials)
    full: Model,
    other: Model,
    pattern: Pattern,
    *,
    answer: str = "",
    prompts: int = 64,
    seed: int = 0,
    nulls: int = MIN_NULLS,
    direction: Direction = "other to full",
) -> DistilledCircuitsScore:
    """Score two models as Haskins and Adams do (2025, arXiv 2505.10822), and their null with them.

    Args:
        full, other: The models. Attention is compared position by position, so their tokenizers
            must cut the prompts alike.
        pattern: What is asked. Prompts are drawn until enough have one frame and as many tokens
            in every role, so that a position means the same in all of them.
        answer: The answer that is read; the pattern's first by default.
        prompts: How many prompts.
        seed: Of the prompts and the untrained nets.
        nulls: How many untrained nets of the other's shape, at least 20.
        direction: Whose components seek their best match in the other model.

    Raises:
        BatchError: The pattern has too few prompts of one length.
        TokenizerError: The tokenizers cut the prompts differently.
        ModelError: There are fewer than 20 nets, or a model's mean lead is exactly 0.
        SiteError: The pattern has no such answer.
    """
    if nulls < MIN_NULLS:
        raise ModelError(
            f"{nulls} untrained nets were asked for: a 95th percentile needs {MIN_NULLS} or more"
        )
    questions = sample_same_length(
        pattern, prompts, tokenizers=(full.tokenizer, other.tokenizer), seed=seed, answer=answer
    )
    name = answer or questions[0].answers[0][0]
    own = measure_components(full, tokenize_answer_prompts(full.tokenizer, questions, name))
    there = tokenize_answer_prompts(other.tokenizer, questions, name)
    theirs = measure_components(other, there)
    drawn = np.random.default_rng(seed).integers(2**31, size=nulls).tolist()
    nets = [measure_components(random_init(other, seed=number), there) for number in drawn]
    mlps = full.shape.d_model == other.shape.d_model

    def scored(parts: ComponentMeasurements, *, mlps: bool) -> AlignmentScore:
        pair = (parts, own) if direction == "other to full" else (own, parts)
        return match_components(*pair, mlps=mlps)

    return DistilledCircuitsScore(
        full=full.name,
        other=other.name,
        pattern=pattern.name,
        answer=name,
        prompts=prompts,
        tokens=there.ids.shape[1],
        direction=direction,
        logit_diffs=(own.logit_diff, theirs.logit_diff),
        heads_and_mlps=scored(theirs, mlps=True) if mlps else None,
        heads=scored(theirs, mlps=False),
        null_heads_and_mlps=np.array([scored(net, mlps=True).value for net in nets if mlps]),
        null_heads_only=np.array([scored(net, mlps=False).value for net in nets]),
    )


def match_components(
    source: ComponentMeasurements, target: ComponentMeasurements, *, mlps: bool = True
) -> AlignmentScore:
    """Give every component of the first model its best match in the second, and score the pairs."""
    heads = attention_similarity(source, target)
    found = [(heads, source.head_influence, target.head_influence)]
    if mlps:
        found.append(
            (
                rescale_mlp_similarity(mlp_similarity(source, target), heads),
                source.mlp_influence,
                target.mlp_influence,
            )
        )
    best = [similarity.argmax(1) for similarity, _, _ in found]
    similarity = np.concatenate([s.max(1) for s, _, _ in found])
    seeking = _to_fractions(np.concatenate([influence for _, influence, _ in found]))
    taken = _to_fractions(
        np.concatenate([i[at] for (_, _, i), at in zip(found, best, strict=True)])
    )
    value = float((similarity * (1 - np.abs(seeking - taken))).mean())
    return AlignmentScore(value, float(similarity.mean()), float(similarity.max()), len(similarity))


def attention_similarity(
    a: ComponentMeasurements, b: ComponentMeasurements
) -> Float[np.ndarray, "head_a head_b"]:
    """Return the mean over queries of the cosine of two heads' average attention, 0 to 1."""
    units = [x.attention / np.linalg.norm(x.attention, axis=-1, keepdims=True) for x in (a, b)]
    return np.einsum("aqk,bqk->ab", *units, optimize=True) / units[0].shape[1]


def mlp_similarity(
    a: ComponentMeasurements, b: ComponentMeasurements
) -> Float[np.ndarray, "layer_a layer_b"]:
    """Return |mean cosine| of two MLPs' leading eigenvectors, each with each, 0 to 1.

    The sign of an eigenvector is arbitrary, and the mean is not: this is how it is published.
    """
    return np.abs(a.mlp_directions.mean(-1) @ b.mlp_directions.mean(-1).T)


def rescale_mlp_similarity(
    mlps: Float[np.ndarray, "layer_a layer_b"], heads: Float[np.ndarray, "head_a head_b"]
) -> Float[np.ndarray, "layer_a layer_b"]:
    """Give the similarities of MLPs the mean and spread of the heads', then make the largest 1."""
    spread = mlps.std() or 1.0  # one pair alone has no spread, and is the mean
    # Two kinds of standard deviation, as in the code: numpy's and torch's.
    alike = (mlps - mlps.mean()) / spread * heads.std(ddof=min(1, heads.size - 1)) + heads.mean()
    return alike / alike.max()


def _to_fractions(influence: Float[np.ndarray, " component"]) -> Float[np.ndarray, " component"]:
    """Scale to a sum of 1; where nothing has influence, nothing has a share."""
    return influence / (influence.sum() or 1.0)
