"""Knowledge distillation: a student from layers of a teacher, fresh weights or another model."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from probes.compression.derived_model import DerivedModel, dense_storage, load_parent
from probes.compression.distillation.plan import TrainingConfig, TrainingPlan
from probes.compression.distillation.targets import DistillationTargets
from probes.compression.distillation.texts import (
    Texts,
    generate_continuations,
    load_texts,
    pad_token,
)
from probes.compression.distillation.trainer import TrainingReport, fit
from probes.errors import ModelError
from probes.models.files.provenance import Provenance
from probes.models.process_state import seeded_init

Decoder = TypeVar("Decoder", bound=nn.Module)

LAYER_STARTS = ("layers", "alternate")
"""Names of the start from evenly spaced layers of the teacher."""

_LARGE = 10_000_000  # Weights.


@dataclass(frozen=True, slots=True)
class DistillationSettings:
    """Settings of `distill`.

    Attributes:
        start: "layers" takes evenly spaced layers of the teacher and its embeddings (Sanh et al.
            2019, arXiv 1910.01108), "alternate" is another name for it, as half of the layers are
            every second one; "fresh" random weights; a name or folder continues that model.
        layers: Number of layers; half of the teacher's if 0.
        width: Residual width of a fresh student; the teacher's if 0. The head size is kept.
        labels: Targets at each token.
        teacher_text: Whether to train on continuations that the teacher writes.
        training: Settings of the optimizer.
        progress: Whether to show a progress bar, or a function to call after every step.
    """

    start: str = "layers"
    layers: int = 0
    width: int = 0
    labels: DistillationTargets = field(default_factory=lambda: DistillationTargets("soft"))
    teacher_text: bool = False
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(1500, 0, batch=64))
    progress: bool | TrainingReport = False


def distill(
    teacher: str | Path | DerivedModel,
    texts: Texts,
    settings: DistillationSettings | None = None,
    *,
    folder: Path,
) -> DerivedModel:
    """Train a student of a teacher, continuing an interrupted run of the same settings.

    Args:
        teacher: Name, folder or hub id of a model, or a derived model.
        texts: File with one text per line, or tokenized texts.
        settings: Student, targets and training.
        folder: Folder of checkpoints.

    Raises:
        ModelError: Vocabularies differ, the student's shape is impossible, there are no texts, or
            the folder has checkpoints of another run.
    """
    settings = settings or DistillationSettings()
    origin = load_parent(teacher)
    training, labels = settings.training, settings.labels
    student = build_student(origin, settings)
    rows = load_texts(origin, texts)
    if settings.teacher_text:
        rows = generate_continuations(origin, rows, seed=training.seed)
    source = origin.hf_model if labels.needs_teacher else None
    plan = TrainingPlan(rows, training, pad_token(origin), labels, source)
    hf_model = fit(student, plan, folder=folder, progress=settings.progress)
    record: Mapping[str, Any] = {
        "start": settings.start,
        "labels": str(labels),
        "own_text": settings.teacher_text,
        **asdict(training),
    }
    made = Provenance("distilled", origin.name, dense_storage(hf_model, bits=16), record)
    return DerivedModel(f"{origin.name}-distilled", hf_model, origin.tokenizer, made)


def default_training(
    teacher: DerivedModel,
    start: str = LAYER_STARTS[0],
    steps: int | None = None,
    batch: int | None = None,
) -> TrainingConfig:
    """Return settings that suit the size of a teacher and the start of its student.

    Models of fewer than 10 million weights take those of the shipped models. Others take smaller
    steps, as in Sanh et al. (2019, arXiv 1910.01108), ten times smaller where a trained model is
    continued, with little weight decay: a decay of 1 would shrink pretrained weights. Steps and
    texts in each are those given, if any.
    """
    if sum(weight.numel() for weight in teacher.hf_model.parameters()) < _LARGE:
        return TrainingConfig(
            1500 if steps is None else steps, 0, batch=64 if batch is None else batch
        )
    steps = 1000 if steps is None else steps
    return TrainingConfig(
        steps,
        0,
        batch=16 if batch is None else batch,
        learning_rate=5e-4 if start in (*LAYER_STARTS, "fresh") else 5e-5,
        weight_decay=0.01,
        warmup=min(100, steps // 10),
        save_every=100,
    )


def continue_training(
    model: DerivedModel,
    texts: Texts,
    settings: TrainingConfig,
    *,
    folder: Path,
    progress: bool | TrainingReport = False,
) -> DerivedModel:
    """Train a copy of a model on the tokens of texts, which may hold what training left out."""
    hf_model = copy.deepcopy(model.hf_model)
    plan = TrainingPlan(load_texts(model, texts), settings, pad_token(model))
    fit(hf_model, plan, folder=folder, progress=progress)
    record = {**model.provenance.settings, **asdict(settings)}
    made = replace(model.provenance, settings=record, held_out=())
    return replace(model, hf_model=hf_model, provenance=made)


def build_student(teacher: DerivedModel, settings: DistillationSettings) -> nn.Module:
    """Return an untrained student.

    Raises:
        ModelError: Its shape is impossible, or it has another vocabulary.
    """
    config = teacher.hf_model.config
    layers = settings.layers or max(1, int(config.num_hidden_layers) // 2)
    if settings.start in LAYER_STARTS:
        if settings.width not in (0, int(config.hidden_size)):
            raise ModelError(
                f"A student from the teacher's layers has its width, {config.hidden_size}, and "
                f"{settings.width} was asked for: use start='fresh'"
            )
        return take_layers(teacher.hf_model, evenly_spaced_layers(teacher, layers))
    if settings.start == "fresh":
        return _random_init_student(teacher, layers, settings.width, settings.training.seed)
    found = load_parent(settings.start)
    sizes = [int(model.hf_model.config.vocab_size) for model in (teacher, found)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"{teacher.name} has {sizes[0]} tokens and {found.name} {sizes[1]}: a student needs "
            "its teacher's vocabulary. Start from another model, or train on the teacher's text."
        )
    return copy.deepcopy(found.hf_model)


def evenly_spaced_layers(teacher: DerivedModel, layers: int) -> list[int]:
    """Return the indices of the layers that a student takes: the first, and others after it.

    Raises:
        ModelError: The teacher has fewer layers.
    """
    count = int(teacher.hf_model.config.num_hidden_layers)
    if not 1 <= layers <= count:
        raise ModelError(f"{teacher.name} has {count} layers: give a student 1 to {count}")
    return [round(index * count / layers) for index in range(layers)]


def _random_init_student(teacher: DerivedModel, layers: int, width: int, seed: int) -> nn.Module:
    config: Any = copy.deepcopy(teacher.hf_model.config)
    old = int(config.hidden_size)
    width = width or old
    d_head = old // int(config.num_attention_heads)
    if width % d_head:
        raise ModelError(
            f"A student of width {width} has no whole number of heads of {d_head}: give a multiple"
        )
    kv_heads = int(getattr(config, "num_key_value_heads", 0) or config.num_attention_heads)
    heads, ratio = width // d_head, int(config.num_attention_heads) // kv_heads
    kv_heads = max(1, heads // ratio)
    if heads % kv_heads:
        raise ModelError(
            f"A student of width {width} has {heads} heads, and {ratio} of {teacher.name} share "
            f"keys and values: give a multiple of {ratio * d_head}"
        )
    config.num_hidden_layers, config.hidden_size = layers, width
    config.num_attention_heads = heads
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = kv_heads
    for name in ("intermediate_size", "n_inner"):  # GPT-2 has the second, and it may be None.
        if getattr(config, name, None):
            setattr(config, name, int(getattr(config, name)) * width // old)
    kind: Any = type(teacher.hf_model)
    with seeded_init(seed):
        return kind._from_config(config, attn_implementation="eager", dtype=torch.float32)


def take_layers(hf_model: Decoder, order: Sequence[int]) -> Decoder:
    """Return a model of some layers of another, in the given order, with its other weights.

    Raises:
        ModelError: The list of layers was not found.
    """
    source: dict[str, Tensor] = hf_model.state_dict()
    config: Any = copy.deepcopy(hf_model.config)
    path = layers_path(hf_model)
    config.num_hidden_layers = len(order)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in order]
    kind: Any = type(hf_model)
    with seeded_init(0):  # The weights are overwritten below.
        result = kind._from_config(config, attn_implementation="eager", dtype=hf_model.dtype)
    state = {}
    for name in result.state_dict():
        found = re.fullmatch(rf"{re.escape(path)}\.(\d+)(\..*)", name)
        state[name] = source[f"{path}.{order[int(found[1])]}{found[2]}" if found else name]
    result.load_state_dict(state)
    return result.eval()


def layers_path(hf_model: nn.Module) -> str:
    """Return the path of the list of a model's layers, such as "model.layers".

    Raises:
        ModelError: There is no list of as many modules as the config has layers.
    """
    config: Any = hf_model.config
    count = int(config.num_hidden_layers)
    for name, module in hf_model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name
    raise ModelError(
        f"The layers of a {type(hf_model).__name__} were not found: no list of {count} modules. "
        "Use a decoder such as Llama, GPT-2 or GPT-NeoX."
    )
