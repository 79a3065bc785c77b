"""What a published alignment score reads of one model: what it does without each of its parts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probes.errors import BatchError, ModelError, PatternError, SiteError, TokenizerError
from probes.interventions.activation_patching import CachedRun, patch_sites, run_with_cache
from probes.models.model import Model
from probes.models.site import Site
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokenization import TokenizedPrompt, tokenize_questions

_TOP = 3
_OVERSAMPLING = (1, 4, 16, 64)


@dataclass(frozen=True, eq=False)
class AnswerPrompts:
    """Prompts of one length, each cut where the answer is read.

    Attributes:
        ids: Token ids, without padding.
        answer, foil: The answer's token, and that of the first other outcome (the other
            operation's answer, where that is a number).
    """

    ids: Int[Tensor, "prompt position"]
    answer: Int[Tensor, " prompt"]
    foil: Int[Tensor, " prompt"]


@dataclass(frozen=True, eq=False)
class ComponentMeasurements:
    """What the score reads of one model.

    Attributes:
        model: Its name.
        lead: The answer's logit less the foil's, averaged over prompts.
        heads, mlps: Influence of each head (layer by layer) and each MLP when its output is set to
            zero: 100 |1 - lead without it / lead|, per cent of the lead.
        attention: Attention of each head, averaged over prompts.
        directions: For each MLP the three leading eigenvectors of the second moment, not centered,
            of what it writes at all positions of all prompts.
    """

    model: str
    logit_diff: float
    head_influence: Float[np.ndarray, " component"]
    mlp_influence: Float[np.ndarray, " layer"]
    attention: Float[np.ndarray, "component query key"]
    mlp_directions: Float[np.ndarray, "layer d_model 3"]


@torch.no_grad()
def measure_components(model: Model, prompts: AnswerPrompts) -> ComponentMeasurements:
    """Run a model, and run it again without each of its heads and MLPs.

    Raises:
        ModelError: The mean lead is exactly 0, so that nothing can be a share of it.
    """
    ids = prompts.ids.to(model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    clean, attention = _record_with_attention(model, ids, mask)
    layers, heads = model.shape.layers, model.shape.heads
    cells = [Site(layer, head, "all") for layer in range(layers) for head in range(heads)]
    cells += [Site(layer, "mlp", "all") for layer in range(layers)]
    answer, foil = prompts.answer.to(model.device), prompts.foil.to(model.device)

    def lead(logits: Tensor, rows: Tensor) -> Tensor:
        seen = logits[:, 0]
        return seen.gather(1, answer[rows, None]) - seen.gather(1, foil[rows, None])

    everyone = torch.arange(len(ids), device=model.device)
    base = float(lead(clean.logits, everyone).double().mean())
    if base == 0:
        raise ModelError(
            f"{model.name} puts answer and foil exactly level: no influence is a share of a lead "
            "of 0. Score a model that tells them apart"
        )
    nothing = replace(clean, z=torch.zeros_like(clean.z), mlp_out=torch.zeros_like(clean.mlp_out))
    without = patch_sites(clean, nothing, cells, {"all": mask}, lead)[..., 0].double().mean(1)
    influence = 100 * np.abs(1 - without.cpu().numpy() / base)
    return ComponentMeasurements(
        model=model.name,
        logit_diff=base,
        head_influence=influence[: layers * heads],
        mlp_influence=influence[layers * heads :],
        attention=attention.cpu().numpy(),
        mlp_directions=_top_eigenvectors(clean.mlp_out),
    )


def sample_same_length(
    pattern: Pattern,
    count: int,
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    seed: int,
    answer: str = "",
) -> tuple[Question, ...]:
    """Draw questions of one frame with as many tokens in every role, up to the answer.

    Of all kinds of question the commonest is taken. Errors as in `alignment_score`.
    """
    if count < 1:
        raise BatchError(f"{count} prompts were asked for: ask for at least one")
    kept: dict[tuple, list[Question]] = {}
    for times in _OVERSAMPLING:
        try:
            drawn = pattern.sample_questions(
                times * count, seed=seed, keep=tokenizable_by(*tokenizers)
            )
        except PatternError:
            if times == 1:
                raise
            break  # there are no more
        kept = _group_by_layout(drawn, tokenizers, answer)
        if any(len(alike) >= count for alike in kept.values()):
            break
    kind, questions = max(kept.items(), key=lambda item: len(item[1]), default=((), []))
    if len(set(kind[1:])) > 1:
        lengths = " and ".join(str(len(roles)) for roles in kind[1:])
        raise TokenizerError(
            f"The tokenizers cut {questions[0].text!r} differently, into {lengths} tokens, and "
            "this score compares attention position by position: use `compare`, which pools it "
            "by role"
        )
    if len(questions) < count:
        raise BatchError(
            f"{pattern.name!r} yielded {len(questions)} of {count} prompts with as many tokens in "
            "every role: ask for fewer"
        )
    return tuple(questions[:count])


def tokenize_answer_prompts(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], answer: str
) -> AnswerPrompts:
    """Encode questions of one length, cut where an answer is read."""
    k = _answer_index(questions[0], answer)
    rows = tokenize_questions(tokenizer, questions)

    def cut(row: TokenizedPrompt) -> tuple[int, ...]:
        return row.ids[: row.outcome_starts[k]]

    if len({len(cut(row)) for row in rows}) > 1:
        raise BatchError("The prompts differ in length: draw them with `same_length`")
    return AnswerPrompts(
        ids=torch.tensor([cut(row) for row in rows]),
        answer=torch.tensor([row.outcomes[k][0] for row in rows]),
        foil=torch.tensor([row.outcomes[k][1] for row in rows]),
    )


def _group_by_layout(
    questions: Sequence[Question], tokenizers: Sequence[PreTrainedTokenizerBase], answer: str
) -> dict[tuple, list[Question]]:
    """Sort questions by their frame and their roles, token by token, up to the answer."""
    k = _answer_index(questions[0], answer)
    kept: dict[tuple, list[Question]] = {}
    for question, *rows in zip(
        questions, *(tokenize_questions(t, questions) for t in tokenizers), strict=True
    ):
        if all(len(row.outcomes[k]) > 1 for row in rows):  # something to hold the answer against
            kind = (question.template, *(row.roles[: row.outcome_starts[k]] for row in rows))
            kept.setdefault(kind, []).append(question)
    return kept


def _answer_index(question: Question, answer: str) -> int:
    names = [name for name, _ in question.answers]
    if answer and answer not in names:
        raise SiteError(f"Answer {answer!r} is not one of this pattern: it has {names}")
    return names.index(answer) if answer else 0


def _record_with_attention(
    model: Model, ids: Tensor, mask: Tensor
) -> tuple[CachedRun, Float[Tensor, "component query key"]]:
    """Run once, and keep every head's attention averaged over prompts."""
    names = [f"blocks.{n}.attn.hook_pattern" for n in range(model.shape.layers)]
    last = torch.full((len(ids), 1), ids.shape[1] - 1, device=ids.device)
    with model.recording(names, lambda value: value.double().mean(0)) as kept:
        clean = run_with_cache(model, ids, mask, last)
    return clean, rearrange(
        torch.stack([kept[name] for name in names]),
        "layer head query key -> (layer head) query key",
    )


def _top_eigenvectors(
    mlp_out: Float[Tensor, "layer prompt position d_model"],
) -> Float[np.ndarray, "layer d_model 3"]:
    flat = rearrange(
        mlp_out.double(), "layer prompt position d_model -> layer (prompt position) d_model"
    )
    flat = flat.cpu().numpy()
    moments = np.einsum("lpd,lpe->lde", flat, flat, optimize=True) / flat.shape[1]
    return np.linalg.svd(moments)[0][..., :_TOP]
