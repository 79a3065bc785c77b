"""What a student is taught at each token: the text's own, or some of what a teacher says."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from probes.errors import ModelError

TargetKind = Literal["hard", "soft", "top-k", "sampled", "smoothed", "permuted"]
TARGET_KINDS: tuple[TargetKind, ...] = get_args(TargetKind)


@dataclass(frozen=True, slots=True)
class DistillationTargets:
    """A distribution over the next token, for each token that is trained on.

    Attributes:
        kind: "hard", the token that the text goes on with; "soft", all that the teacher says
            (Hinton et al. 2015, arXiv 1503.02531); "top-k", its k greatest probabilities made to
            sum to one, which is biased; "sampled", the shares of k tokens drawn from it, which is
            not (Anshumann et al. 2025, arXiv 2503.16870), and with k = 1 one token of the
            teacher's own; "smoothed", the text's token and a little of every other (Szegedy et
            al. 2016, arXiv 1512.00567); "permuted", what the teacher says, but all save its
            greatest probability dealt at random among the other tokens: as sure as the teacher,
            and silent on what is like what (Furlanello et al. 2018, arXiv 1805.04770).
        k: Tokens kept or drawn.
        temperature: What logits are divided by, the teacher's and the student's, for "soft",
            "top-k" and "permuted".
        smoothing: Share of the labels that goes to all tokens alike.
    """

    kind: TargetKind = "hard"
    k: int = 8
    temperature: float = 1.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0 or not 0 <= self.smoothing < 1:
            raise ModelError(
                f"Labels cannot be made with k {self.k}, temperature {self.temperature:g} and "
                f"smoothing {self.smoothing:g}: give k of 1 or more, a temperature above 0 and a "
                "smoothing from 0 to below 1."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is needed."""
        return self.kind not in ("hard", "smoothed")

    def __str__(self) -> str:
        dial = {"top-k": self.k, "sampled": self.k, "smoothed": self.smoothing}.get(self.kind)
        return self.kind if dial is None else f"{self.kind}:{dial:g}"


def parse_labels(text: str, *, temperature: float = 1.0) -> DistillationTargets:
    """Read labels as they are written: "soft", "hard", "top-k:8", "sampled:1", "smoothed:0.1".

    Raises:
        ModelError: There are no such labels.
    """
    kind, _, dial = text.partition(":")
    if kind not in TARGET_KINDS:
        raise ModelError(f"Unknown labels: {kind!r} found. Use one of {', '.join(TARGET_KINDS)}.")
    given: dict = {"kind": kind, "temperature": temperature}
    try:
        if dial:
            given |= {"smoothing": float(dial)} if kind == "smoothed" else {"k": int(dial)}
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
    """Return the distribution that a student is taught at each token; each row sums to one.

    Args:
        labels: Which.
        truth: What the text goes on with.
        teacher: The teacher's logits; their shape alone matters where no teacher is asked.
        generator: Draws what is drawn.
    """
    vocab = teacher.shape[-1]
    if labels.kind in ("hard", "smoothed"):
        share = labels.smoothing if labels.kind == "smoothed" else 0.0
        return functional.one_hot(next_tokens, vocab) * (1 - share) + share / vocab
    if labels.kind == "sampled":
        drawn = torch.multinomial(
            teacher.softmax(-1), labels.k, replacement=True, generator=generator
        )
        return functional.one_hot(drawn, vocab).to(teacher.dtype).mean(1)
    said = (teacher / labels.temperature).softmax(-1)
    if labels.kind == "top-k":
        best = said.topk(min(labels.k, vocab), dim=-1)
        kept = torch.zeros_like(said).scatter(-1, best.indices, best.values)
        return kept / kept.sum(-1, keepdim=True)
    return _permute_tail(said, generator) if labels.kind == "permuted" else said


def _permute_tail(
    probabilities: Float[Tensor, "token vocab"], generator: torch.Generator
) -> Float[Tensor, "token vocab"]:
    """Deal all but the greatest probability of each row at random among the other tokens."""
    first = probabilities.argmax(-1, keepdim=True)
    keys = torch.rand(probabilities.shape, generator=generator, device=probabilities.device)
    # The greatest stands first in both orders, so that it stays where it is.
    order = keys.scatter(-1, first, -1.0).argsort(-1)
    old = torch.arange(probabilities.shape[-1], device=probabilities.device).expand_as(
        probabilities
    )
    here = torch.cat([first, old[old != first].reshape(len(probabilities), -1)], -1)
    return torch.empty_like(probabilities).scatter(-1, order, probabilities.gather(-1, here))


def distillation_loss(
    labels: DistillationTargets,
    student: Float[Tensor, "token vocab"],
    target: Float[Tensor, "token vocab"],
) -> Float[Tensor, ""]:
    """Return the mean divergence KL(wanted || student), in nats, times the temperature squared."""
    soft = labels.kind in ("soft", "top-k", "permuted")
    heat = labels.temperature if soft else 1.0
    said = functional.log_softmax(student / heat, dim=-1)
    return heat**2 * functional.kl_div(said, target, reduction="batchmean")
