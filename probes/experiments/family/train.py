"""Trains the members of the embedded family."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from probes.compression.derived_model import DerivedModel
from probes.compression.distillation.plan import TrainingConfig, TrainingPlan, TrainingText
from probes.compression.distillation.targets import parse_labels
from probes.compression.distillation.trainer import TrainingCallback, fit
from probes.errors import ModelError
from probes.experiments.family.corpus import CorpusSettings, sample_texts
from probes.experiments.family.recipes import Recipe, recipe
from probes.experiments.family.tokenizer import BOS, EOS, PAD
from probes.models.process_state import seeded_init


def training_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> list[TrainingText]:
    """Write and encode the texts of a recipe, each open between <bos> and <eos>."""
    settings = CorpusSettings(nouns=recipe.nouns, task=recipe.task)
    found = []
    statements = round(recipe.statements * recipe.items)
    for kind, count in (("statements", statements), ("questions", recipe.items - statements)):
        if not count:
            continue
        texts = list(sample_texts(kind, count, seed=recipe.seed, settings=settings))
        ids = tokenizer([item.text for item in texts], add_special_tokens=False).input_ids
        prompts = tokenizer([item.prompt for item in texts], add_special_tokens=False).input_ids
        for whole, prompt in zip(ids, prompts, strict=True):
            row = (BOS, *whole, EOS)
            skipped = len(prompt) + 1 if kind == "questions" and recipe.answers_only else 0
            found.append(TrainingText(row, skipped))
    random.Random(recipe.seed).shuffle(found)
    return found


def family_corpus(
    model: DerivedModel, *, count: int, seed: int, statements: float = 0.3
) -> list[TrainingText]:
    """Return `count` texts of the family's corpus, a fraction of them statements.

    Raises:
        ModelError: The model does not have the family's tokenizer.
    """
    if not has_family_tokenizer(model):
        raise ModelError(
            f"{model.name} does not have the family's tokenizer, so the family's corpus does not "
            "fit: give a file of texts, one a line"
        )
    chosen = replace(recipe("full"), items=count, seed=seed, statements=statements)
    return training_rows(chosen, model.tokenizer)


def has_family_tokenizer(model: DerivedModel) -> bool:
    """Return whether a model has the tokenizer of the embedded family."""
    words = {} if model.tokenizer is None else model.tokenizer.get_vocab()
    return words.get("<bos>") == BOS and words.get("<eos>") == EOS and "Ġfoxes" in words


def random_init_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build an untrained model of the recipe's shape."""
    config = LlamaConfig(
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
    )
    with seeded_init(recipe.seed):
        # Eager attention: on CPUs the fused kernel's backward pass takes twice the whole step.
        return LlamaForCausalLM._from_config(config, attn_implementation="eager")


def training_config(recipe: Recipe) -> TrainingConfig:
    """Return the optimizer's dials of a recipe."""
    return TrainingConfig(
        steps=recipe.steps,
        seed=recipe.seed,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
    )


def train(  # noqa: PLR0913 (whom, what, where, by whom)
    recipe: Recipe,
    student: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    folder: Path,
    teacher: LlamaForCausalLM | None = None,
    masks: Mapping[str, Tensor] | None = None,
    callback: TrainingCallback | None = None,
    texts: Sequence[TrainingText] = (),
    until: int = 0,
) -> LlamaForCausalLM:
    """Train a model by its recipe, with checkpoints in `folder` to go on from.

    `texts` are the rows of the recipe where they are at hand: they take a while to write.
    `until` stops after so many steps.
    """
    kind = recipe.labels or ("soft" if teacher is not None else "hard")
    plan = TrainingPlan(
        texts or training_rows(recipe, tokenizer),
        replace(training_config(recipe), stop_after=until),
        PAD,
        parse_labels(kind, temperature=recipe.temperature),
        teacher,
        masks or {},
    )
    fit(student, plan, folder=folder, callback=callback, progress=True)
    return student
