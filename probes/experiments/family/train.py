"""Training texts, initial weights and training of the shipped models."""

import random
from dataclasses import replace

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from probes.compression.derived_model import DerivedModel
from probes.compression.distillation.plan import TrainingConfig, TrainingText
from probes.errors import ModelError
from probes.experiments.family.corpus import CorpusSettings, sample_texts
from probes.experiments.family.recipes import Recipe, recipe
from probes.experiments.family.tokenizer import BOS, EOS, PAD
from probes.models.process_state import seeded_init


def training_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> list[TrainingText]:
    """Tokenized texts of a recipe, between <bos> and <eos>, in random order."""
    settings = CorpusSettings(nouns=recipe.nouns, task=recipe.task)
    rows = []
    statements = round(recipe.statements * recipe.items)
    for kind, count in (("statements", statements), ("questions", recipe.items - statements)):
        if not count:
            continue
        texts = list(sample_texts(kind, count, seed=recipe.seed, settings=settings))
        ids = tokenizer([item.text for item in texts], add_special_tokens=False).input_ids
        prompts = tokenizer([item.prompt for item in texts], add_special_tokens=False).input_ids
        for text, prompt in zip(ids, prompts, strict=True):
            skipped = len(prompt) + 1 if kind == "questions" and recipe.answers_only else 0
            rows.append(TrainingText((BOS, *text, EOS), skipped))
    random.Random(recipe.seed).shuffle(rows)
    return rows


def family_corpus(
    model: DerivedModel, *, count: int, seed: int, statements: float = 0.3
) -> list[TrainingText]:
    """Tokenized texts of the corpus of the shipped models, a fraction of them statements.

    Raises:
        ModelError: The model has another tokenizer.
    """
    if not has_family_tokenizer(model):
        raise ModelError(
            f"{model.name} does not have the tokenizer of the shipped models, so their corpus does "
            "not fit: give a file of texts, one a line"
        )
    chosen = replace(recipe("full"), items=count, seed=seed, statements=statements)
    return training_rows(chosen, model.tokenizer)


def has_family_tokenizer(model: DerivedModel) -> bool:
    """Whether a model has the tokenizer of the shipped models."""
    tokens = {} if model.tokenizer is None else model.tokenizer.get_vocab()
    return tokens.get("<bos>") == BOS and tokens.get("<eos>") == EOS and "Ġfoxes" in tokens


def random_init_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random-init model of the recipe's shape."""
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
        # Eager attention: on CPUs the backward pass of the fused kernel doubles the time of a step.
        return LlamaForCausalLM._from_config(config, attn_implementation="eager")


def training_config(recipe: Recipe) -> TrainingConfig:
    """Settings of the optimizer of a recipe."""
    return TrainingConfig(
        steps=recipe.steps,
        seed=recipe.seed,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
    )
