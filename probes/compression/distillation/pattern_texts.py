"""Training texts for pretrained models: prompts of the shipped patterns, and a teacher's text."""

import json
import random
import time
from collections.abc import Iterable
from pathlib import Path

from probes.compression.derived_model import DerivedModel
from probes.compression.distillation.plan import TrainingText, hash_model, hash_texts
from probes.compression.distillation.texts import generate_continuations
from probes.errors import ModelError
from probes.files import write_atomic
from probes.prompts.catalog import unasked_questions
from probes.prompts.tokens.special_tokens import special_prefix

_QUESTIONS, _WRITTEN = 512, 1024
"""Most questions of a pattern, and texts that the teacher writes."""

_TIMED = 32
"""Texts that are written to tell the time of all."""

_BEGINNING, _LENGTH = 0.25, 40
"""Fraction of a prompt that the teacher continues, and tokens of the whole text."""


def pattern_texts(
    teacher: DerivedModel, count: int, *, seed: int, written_file: Path
) -> list[TrainingText]:
    """Texts for a run of `count` rows, in random order; every text once before any comes again.

    They are questions of each pattern with their answers (`unasked_questions`), and texts that the
    teacher writes from the first quarter of such questions. Those are kept in a file, so that a
    run that goes on reads the same ones.

    Raises:
        ModelError: The teacher has no tokenizer.
    """
    prompts, rng = pattern_questions(teacher, seed=seed), random.Random(seed)
    sources = rng.sample(prompts, min(_WRITTEN, len(prompts)))
    distinct = [*prompts, *_written_texts(teacher, sources, seed, written_file)]
    result: list[TrainingText] = []
    while len(result) < count:
        result += rng.sample(distinct, len(distinct))
    return result[:count]


def pattern_questions(teacher: DerivedModel, *, seed: int) -> list[TrainingText]:
    """Questions of the patterns for pretrained models, with their answers.

    Raises:
        ModelError: The teacher has no tokenizer.
    """
    if teacher.tokenizer is None:
        raise ModelError(f"{teacher.name} has no tokenizer: save one in the folder of its weights")
    questions = unasked_questions(_QUESTIONS, seed=seed)
    texts = [question.full_text for each in questions.values() for question in each]
    prefix = special_prefix(teacher.tokenizer)
    found = teacher.tokenizer(texts, add_special_tokens=False).input_ids
    return [TrainingText((*prefix, *ids)) for ids in found]


def time_written_texts(teacher: DerivedModel, prompts: list[TrainingText], *, seed: int) -> float:
    """Seconds in which the teacher writes the texts of `pattern_texts`, from a few of them."""
    few, start = prompts[:_TIMED], time.thread_time()
    generate_continuations(teacher, few, seed=seed, prefix_fraction=_BEGINNING, length=_LENGTH)
    return (time.thread_time() - start) / len(few) * min(_WRITTEN, len(prompts))


def _written_texts(
    teacher: DerivedModel, sources: list[TrainingText], seed: int, path: Path
) -> Iterable[TrainingText]:
    """Continuations of the beginnings of texts, from the file if it has them."""
    key = f"{hash_model(teacher.hf_model)} {hash_texts(sources)} {seed}"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return [TrainingText(tuple(ids)) for ids in kept["texts"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # They are written again.
    texts = generate_continuations(
        teacher, sources, seed=seed, prefix_fraction=_BEGINNING, length=_LENGTH
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"key": key, "texts": [text.ids for text in texts]}
    write_atomic(path, (json.dumps(content) + "\n").encode())
    return texts
