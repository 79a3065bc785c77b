"""Trains the members of the embedded family, with the Hugging Face `Trainer`."""

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from probes.family.corpus import Dials, items
from probes.family.recipes import Recipe
from probes.family.tokenizer import BOS, EOS, PAD

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of one text, and how many at its start are not trained on."""

    ids: tuple[int, ...]
    skipped: int


class Corpus(torch.utils.data.Dataset):
    """Rows of one kind of text, drawn afresh from a seed."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {"input_ids": row.ids, "skipped": row.skipped}


def rows(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, dials: Dials) -> list[Row]:
    """Write and encode the texts of a recipe, each open between <bos> and <eos>."""
    found = []
    statements = round(recipe.statements * recipe.items)
    for kind, count in (("statements", statements), ("questions", recipe.items - statements)):
        if not count:
            continue
        texts = list(items(kind, count, seed=recipe.seed, dials=dials))
        ids = tokenizer([item.text for item in texts], add_special_tokens=False).input_ids
        prompts = tokenizer([item.prompt for item in texts], add_special_tokens=False).input_ids
        for whole, prompt in zip(ids, prompts, strict=True):
            row = (BOS, *whole, EOS)
            skipped = len(prompt) + 1 if kind == "questions" and recipe.answers_only else 0
            found.append(Row(row, skipped))
    random.Random(recipe.seed).shuffle(found)
    return found


def collate(features: list[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    """Pad rows on the right; labels leave out padding and what is not trained on."""
    width = max(len(feature["input_ids"]) for feature in features)
    ids = torch.full((len(features), width), pad)
    mask = torch.zeros((len(features), width), dtype=torch.long)
    labels = torch.full((len(features), width), _IGNORED)
    for index, feature in enumerate(features):
        row, skipped = torch.tensor(feature["input_ids"]), feature["skipped"]
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
        labels[index, skipped : len(row)] = row[skipped:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class SoftLabelTrainer(Trainer):
    """A trainer that matches a teacher's distribution at every trained token.

    The loss is T^2 * KL(teacher || student) at temperature T (Hinton et al. 2015,
    arXiv 1503.02531), with no hard labels mixed in.
    """

    def __init__(
        self, *args: Any, teacher: LlamaForCausalLM, temperature: float, **kw: Any
    ) -> None:
        super().__init__(*args, **kw)
        self.teacher, self.temperature = teacher, temperature

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Tensor],
        *args: Any,
        **kw: Any,
    ) -> Tensor:
        """Return the mean divergence over the trained tokens of a batch."""
        feed = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        wanted = inputs["labels"][:, 1:] != _IGNORED
        with torch.no_grad():
            teacher = self.teacher(**feed).logits[:, :-1][wanted].float()
        student = model(**feed).logits[:, :-1][wanted].float()
        return self.temperature**2 * functional.kl_div(
            functional.log_softmax(student / self.temperature, dim=-1),
            functional.log_softmax(teacher / self.temperature, dim=-1),
            log_target=True,
            reduction="batchmean",
        )


def fresh(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build an untrained model of the recipe's shape."""
    torch.manual_seed(recipe.seed)
    # Eager attention: on CPUs the fused kernel's backward pass takes twice the whole step.
    return LlamaForCausalLM._from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.d_model,
            intermediate_size=recipe.d_mlp,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        ),
        attn_implementation="eager",
    )


def alternate_layers(teacher: LlamaForCausalLM, layers: int) -> LlamaForCausalLM:
    """Build a model from every second layer of a teacher, the first one among them."""
    step = teacher.config.num_hidden_layers // layers
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = layers
    student = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    taken = {str(new): str(new * step) for new in range(layers)}
    source = teacher.state_dict()
    state = {}
    for name in student.state_dict():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = taken[parts[2]]
        state[name] = source[".".join(parts)]
    student.load_state_dict(state)
    return student


def _schedule(recipe: Recipe) -> dict[str, Any]:
    if recipe.schedule == "cosine":
        return {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
        }
    fall = recipe.steps // 4
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": fall, "min_lr_ratio": 0.05},
    }


def train(
    recipe: Recipe,
    student: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    folder: Path,
    teacher: LlamaForCausalLM | None = None,
) -> LlamaForCausalLM:
    """Train a model by its recipe, with checkpoints in `folder` to go on from."""
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adam_beta2=0.98,
        warmup_steps=100,
        **_schedule(recipe),
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        logging_steps=100,
        save_steps=500,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=True,
        seed=recipe.seed,
        data_seed=recipe.seed,
    )
    shared: dict[str, Any] = {
        "model": student,
        "args": settings,
        "train_dataset": Corpus(
            rows(recipe, tokenizer, Dials(nouns=recipe.nouns, task=recipe.task))
        ),
        "data_collator": lambda features: collate(features, PAD),
    }
    if teacher is not None:
        teacher.eval()
        trainer = SoftLabelTrainer(teacher=teacher, temperature=recipe.temperature, **shared)
    else:
        trainer = Trainer(**shared)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    return student.eval()
