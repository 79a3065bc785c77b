"""Logit lens: logits that the residual stream gives at each layer and role."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.model import ModelSpec, load
from probes.observe.activations import Activations, capture, last_positions
from probes.observe.behavior import foil_tokens, logit_diff, require_answers
from probes.prompts.question import Question
from probes.prompts.tokens.batch import Batch, tokenize


@dataclass(frozen=True, eq=False)
class LogitLens:
    """Logit difference of each answer, read from the residual stream at each layer.

    Attributes:
        model: Name of the model.
        layers: "embed", then "L0" and so on for the output of each block.
        roles: Roles, read at their last token.
        answers: Answers that are scored.
        per_prompt: The answer's logit minus the mean logit of its foils; NaN where the prompt
            lacks the role.
    """

    model: str
    layers: tuple[str, ...]
    roles: tuple[str, ...]
    answers: tuple[str, ...]
    per_prompt: Float[Tensor, "prompt layer role answer"] = field(repr=False)

    @property
    def mean(self) -> Float[Tensor, "layer role answer"]:
        """Mean over the prompts that have the role."""
        return self.per_prompt.nanmean(0)


@torch.no_grad()
def logit_lens(
    model: ModelSpec,
    batch: Batch | Question | Sequence[Question],
    *,
    activations: Activations | None = None,
) -> LogitLens:
    """Apply the final norm and the unembedding to every layer (nostalgebraist 2020).

    A logit difference of 0 at an early layer does not show that the answer is absent: the stream
    may hold it in directions that the unembedding does not read.

    Args:
        model: Decoder whose final norm and unembedding give its logits, or its name.
        batch: Tokenized prompts with roles and answers, or questions to tokenize.
        activations: "resid" of the same batch, as `capture` gives it, which saves the run.

    Returns:
        Logit differences in logits, by prompt, layer, role and answer.

    Raises:
        ModelError: The lens does not give the model's own logits at the last layer.
        BatchError: The prompts have no answers.
    """
    model = load(model)
    batch = batch if isinstance(batch, Batch) else tokenize(model, batch)
    require_answers(batch, "the lens reads the logits of")
    resid = (activations or capture(model, batch, ("resid",)))["resid"]
    layers = ("embed", *(f"L{layer}" for layer in range(model.shape.layers)))
    foils = [foil_tokens(readout) for readout in batch.readouts]
    per_prompt = torch.full((len(batch), len(layers), len(batch.roles), len(foils)), torch.nan)
    for r, role in enumerate(batch.roles):
        last = last_positions(batch, role)
        (rows,) = (last >= 0).nonzero(as_tuple=True)
        for layer in range(len(layers)):

            def read(part: Int[Tensor, " row"], at: tuple = (layer, r, last)) -> None:
                layer, r, last = at
                stream = resid[layer][part, last[part].to(resid.device)]
                logits = model.unembed(stream[:, None])[:, 0].cpu()
                for k, readout in enumerate(batch.readouts):
                    per_prompt[part, layer, r, k] = logit_diff(
                        logits, foils[k][part], readout.answer[part]
                    )

            for _ in run_micro_batches(
                model, rows, read, MicroBatches("logit lens", len(batch), 1)
            ):
                pass
    answers = tuple(readout.name for readout in batch.readouts)
    return LogitLens(model.name, layers, batch.roles, answers, per_prompt)
