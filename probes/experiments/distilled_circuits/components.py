"""Measurements of the published alignment score: zero ablation of each head and MLP."""

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
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.pair_batch import tokenizable_by
from probes.prompts.tokens.tokenization import TokenizedPrompt, tokenize_questions

_TOP = 3
_OVERSAMPLING = (1, 4, 16, 64)


@dataclass(frozen=True, eq=False)
class AnswerPrompts:
    """Prompts of one length, each up to the readout.

    Attributes:
        ids: Token ids, without padding.
        answer, foil: Token of the answer, and of the first other outcome (the answer of the other
            operation for a number).
    """

    ids: Int[Tensor, "prompt position"]
    answer: Int[Tensor, " prompt"]
    foil: Int[Tensor, " prompt"]


@dataclass(frozen=True, eq=False)
class ComponentMeasurements:
    """Measurements of one model.

    Attributes:
        model: Name.
        logit_diff: Mean logit difference of answer and foil.
        head_influence, mlp_influence: Effect of the zero ablation of each head (layer by layer)
            and of each MLP, in percent of the logit difference: 100 |1 - ablated / clean|.
        attention: Attention of each head, mean over prompts.
        mlp_directions: Three leading eigenvectors of the uncentered second moment of each MLP's
            outputs at all positions of all prompts.
    """

    model: str
    logit_diff: float
    head_influence: Float[np.ndarray, " component"]
    mlp_influence: Float[np.ndarray, " layer"]
    attention: Float[np.ndarray, "component query key"]
    mlp_directions: Float[np.ndarray, "layer d_model 3"]


@torch.no_grad()
def measure_components(model: Model, prompts: AnswerPrompts) -> ComponentMeasurements:
    """Zero ablation of each head and MLP, attention, and directions of MLPs.

    Raises:
        ModelError: The mean logit difference is exactly 0.
    """
    ids = prompts.ids.to(model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    clean, attention = _record_with_attention(model, ids, mask)
    layers, heads = model.shape.layers, model.shape.heads
    sites = [Site(layer, head, "all") for layer in range(layers) for head in range(heads)]
    sites += [Site(layer, "mlp", "all") for layer in range(layers)]
    answer, foil = prompts.answer.to(model.device), prompts.foil.to(model.device)

    def logit_diff(logits: Tensor, rows: Tensor) -> Tensor:
        last = logits[:, 0]
        return last.gather(1, answer[rows, None]) - last.gather(1, foil[rows, None])

    all_rows = torch.arange(len(ids), device=model.device)
    base = float(logit_diff(clean.logits, all_rows).double().mean())
    if base == 0:
        raise ModelError(
            f"The logit difference of {model.name} is exactly 0, and influences are fractions of "
            "it: score a model that distinguishes answer and foil"
        )
    zero = replace(clean, z=torch.zeros_like(clean.z), mlp_out=torch.zeros_like(clean.mlp_out))
    ablated = patch_sites(clean, zero, sites, {"all": mask}, logit_diff)[..., 0].double().mean(1)
    influence = 100 * np.abs(1 - ablated.cpu().numpy() / base)
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
    """Questions of one frame with equal numbers of tokens in every role, up to the answer.

    The most frequent layout is taken. Errors as in `distilled_circuits_score`.
    """
    if count < 1:
        raise BatchError(f"The number of prompts is {count}: give at least one")
    groups: dict[tuple, list[Question]] = {}
    for times in _OVERSAMPLING:
        try:
            sampled = pattern.sample_questions(
                times * count, seed=seed, keep=tokenizable_by(*tokenizers)
            )
        except PatternError:
            if times == 1:
                raise
            break  # There are no more.
        groups = _group_by_layout(sampled, tokenizers, answer)
        if any(len(group) >= count for group in groups.values()):
            break
    layout, questions = max(groups.items(), key=lambda item: len(item[1]), default=((), []))
    if len(set(layout[1:])) > 1:
        lengths = " and ".join(str(len(roles)) for roles in layout[1:])
        raise TokenizerError(
            f"The tokenizers split {questions[0].text!r} differently, into {lengths} tokens, and "
            "this score compares attention by position: use `compare`, which compares it by role"
        )
    if len(questions) < count:
        raise BatchError(
            f"{pattern.name!r} yielded {len(questions)} of {count} prompts with equal numbers of "
            "tokens in every role: use fewer"
        )
    return tuple(questions[:count])


def tokenize_answer_prompts(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], answer: str
) -> AnswerPrompts:
    """Tokenized questions of one length, up to the readout of an answer."""
    k = _answer_index(questions[0], answer)
    rows = tokenize_questions(tokenizer, questions)

    def cut(row: TokenizedPrompt) -> tuple[int, ...]:
        return row.ids[: row.outcome_starts[k]]

    if len({len(cut(row)) for row in rows}) > 1:
        raise BatchError("The prompts differ in length: sample them with `sample_same_length`")
    return AnswerPrompts(
        ids=torch.tensor([cut(row) for row in rows]),
        answer=torch.tensor([row.outcomes[k][0] for row in rows]),
        foil=torch.tensor([row.outcomes[k][1] for row in rows]),
    )


def _group_by_layout(
    questions: Sequence[Question], tokenizers: Sequence[PreTrainedTokenizerBase], answer: str
) -> dict[tuple, list[Question]]:
    """Questions by their frame and the roles of their tokens, up to the answer."""
    k = _answer_index(questions[0], answer)
    groups: dict[tuple, list[Question]] = {}
    for question, *rows in zip(
        questions, *(tokenize_questions(t, questions) for t in tokenizers), strict=True
    ):
        if all(len(row.outcomes[k]) > 1 for row in rows):  # There is a foil.
            layout = (question.template, *(row.roles[: row.outcome_starts[k]] for row in rows))
            groups.setdefault(layout, []).append(question)
    return groups


def _answer_index(question: Question, answer: str) -> int:
    names = [name for name, _ in question.answers]
    if answer and answer not in names:
        raise SiteError(f"The pattern has no answer {answer!r}: use one of {', '.join(names)}")
    return names.index(answer) if answer else 0


def _record_with_attention(
    model: Model, ids: Tensor, mask: Tensor
) -> tuple[CachedRun, Float[Tensor, "component query key"]]:
    """Clean run, and the attention of every head, mean over prompts."""
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
