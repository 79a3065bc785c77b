"""Target distributions of distillation: labels of the text or of a teacher."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from probes.errors import ModelError

TargetKind = Literal["hard", "soft", "top-k", "sampled", "smoothed", "permuted"]
TARGET_KINDS: tuple[TargetKind, ...] = get_args(TargetKind)

_CHUNK = 2**24
"""Logits whose divergence is computed at once, to bound the memory of a large vocabulary."""


@dataclass(frozen=True, slots=True)
class DistillationTargets:
    """Target distribution over the next token.

    Attributes:
        kind: "hard", the next token of the text; "soft", the teacher's probabilities (Hinton et
            al. 2015, arXiv 1503.02531); "top-k", its k largest probabilities, renormalized
            (biased); "sampled", the frequencies of k tokens drawn from the teacher (unbiased;
            Anshumann et al. 2025, arXiv 2503.16870); "smoothed", the token of the text mixed with
            a uniform distribution (Szegedy et al. 2016, arXiv 1512.00567); "permuted", the
            teacher's probabilities with all but the largest permuted among the other tokens,
            which keeps its confidence and removes similarities (Furlanello et al. 2018, arXiv
            1805.04770).
        k: Number of tokens kept or drawn.
        temperature: Divisor of the logits of teacher and student, for "soft", "top-k" and
            "permuted".
        smoothing: Weight of the uniform distribution, 0 to below 1.
    """

    kind: TargetKind = "hard"
    k: int = 8
    temperature: float = 1.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 < self.temperature < math.inf or not 0 <= self.smoothing < 1:
            raise ModelError(
                f"Labels are impossible with k {self.k}, temperature {self.temperature:g} and "
                f"smoothing {self.smoothing:g}: give k of 1 or more, a temperature above 0 and a "
                "smoothing from 0 to below 1."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether the targets come from a teacher."""
        return self.kind not in ("hard", "smoothed")

    def __str__(self) -> str:
        number = {"top-k": self.k, "sampled": self.k, "smoothed": self.smoothing}.get(self.kind)
        return self.kind if number is None else f"{self.kind}:{number:g}"


def parse_labels(text: str, *, temperature: float = 1.0) -> DistillationTargets:
    """Parse labels such as "soft", "hard", "top-k:8", "sampled:1" or "smoothed:0.1".

    Raises:
        ModelError: The kind is unknown, or its number is invalid.
    """
    kind, _, number = text.partition(":")
    if kind not in TARGET_KINDS:
        raise ModelError(f"Unknown labels: {kind!r} found. Use one of {', '.join(TARGET_KINDS)}.")
    given: dict = {"kind": kind, "temperature": temperature}
    try:
        if number:
            given |= {"smoothing": float(number)} if kind == "smoothed" else {"k": int(number)}
    except ValueError:
        raise ModelError(
            f"The labels {text!r} have no number after the colon: write them as in 'top-k:8', "
            "'sampled:12' or 'smoothed:0.1'."
        ) from None
    return DistillationTargets(**given)


@torch.no_grad()
def target_distribution(
    labels: DistillationTargets,
    next_tokens: Int[Tensor, " token"],
    teacher: Float[Tensor, "token vocab"],
    generator: torch.Generator,
) -> Float[Tensor, "token vocab"]:
    """Return the target distribution at each token; each row sums to one.

    Args:
        labels: Kind of targets.
        next_tokens: Next tokens of the text.
        teacher: Logits of the teacher; without a teacher only their shape is used.
        generator: Random generator of "sampled" and "permuted".
    """
    vocab = teacher.shape[-1]
    if labels.kind in ("hard", "smoothed"):
        uniform = labels.smoothing if labels.kind == "smoothed" else 0.0
        return functional.one_hot(next_tokens, vocab) * (1 - uniform) + uniform / vocab
    if labels.kind == "sampled":
        drawn = torch.multinomial(
            teacher.softmax(-1), labels.k, replacement=True, generator=generator
        )
        return functional.one_hot(drawn, vocab).to(teacher.dtype).mean(1)
    probabilities = (teacher / labels.temperature).softmax(-1)
    if labels.kind == "top-k":
        top = probabilities.topk(min(labels.k, vocab), dim=-1)
        kept = torch.zeros_like(probabilities).scatter(-1, top.indices, top.values)
        return kept / kept.sum(-1, keepdim=True)
    return _permute_tail(probabilities, generator) if labels.kind == "permuted" else probabilities


def _permute_tail(
    probabilities: Float[Tensor, "token vocab"], generator: torch.Generator
) -> Float[Tensor, "token vocab"]:
    """Permute all but the largest probability of each row among the other tokens."""
    first = probabilities.argmax(-1, keepdim=True)
    keys = torch.rand(probabilities.shape, generator=generator, device=probabilities.device)
    # The largest is first in both orders, so it keeps its token.
    order = keys.scatter(-1, first, -1.0).argsort(-1)
    old = torch.arange(probabilities.shape[-1], device=probabilities.device).expand_as(
        probabilities
    )
    source = torch.cat([first, old[old != first].reshape(len(probabilities), -1)], -1)
    return torch.empty_like(probabilities).scatter(-1, order, probabilities.gather(-1, source))


def distillation_loss(
    labels: DistillationTargets,
    student: Float[Tensor, "token vocab"],
    target: Float[Tensor, "token vocab"],
) -> Float[Tensor, ""]:
    """Return the mean KL(target || student) in nats, times the squared temperature."""
    soft = labels.kind in ("soft", "top-k", "permuted")
    temperature = labels.temperature if soft else 1.0
    log_probabilities = functional.log_softmax(student / temperature, dim=-1)
    return temperature**2 * functional.kl_div(log_probabilities, target, reduction="batchmean")


def mean_loss(
    labels: DistillationTargets,
    tokens: tuple[
        Float[Tensor, "token vocab"], Float[Tensor, "token vocab"], Int[Tensor, " token"]
    ],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Return the mean loss over tokens, from logits of student and teacher and the next tokens.

    Many logits are taken in chunks whose intermediate values are computed again for the gradient.
    """
    size = max(1, _CHUNK // tokens[0].shape[-1])
    total, losses = len(tokens[0]), []
    for student, teacher, following in zip(*(each.split(size) for each in tokens), strict=True):
        target = target_distribution(labels, following, teacher.float(), generator)
        if total <= size:
            return distillation_loss(labels, student.float(), target)
        part = checkpoint(
            lambda one, other: distillation_loss(labels, one.float(), other),
            *(student, target),
            use_reentrant=False,
        )
        losses.append(part * (len(student) / total))
    return torch.stack(losses).sum()
