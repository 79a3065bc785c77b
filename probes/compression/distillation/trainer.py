"""Trains a plain Hugging Face model on rows of tokens, with the Hugging Face `Trainer`.

Checkpoints are written beside their place and moved there when they are whole, so that a run that
was stopped at any moment goes on from the last whole one.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probes.compression.distillation.targets import (
    DistillationTargets,
    distillation_loss,
    target_distribution,
)
from probes.errors import ModelError
from probes.models.process_state import suppress_library_warnings

with (
    suppress_library_warnings()
):  # torchao, where it is installed, is loaded with it and has much to say.
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

_IGNORED_LABEL = -100

TrainingCallback = Callable[[int, nn.Module], None]
"""Called with how many steps were taken and the model as it stands; it must not change it."""


@dataclass(frozen=True, slots=True)
class TrainingText:
    """The tokens of one text, and how many at its start are not trained on."""

    ids: tuple[int, ...]
    ignored_prefix: int = 0


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The optimizer's dials (AdamW), and when to write down how far it came.

    Attributes:
        steps, batch: How many steps, of how many rows.
        seed: Of the order of the rows and of labels that are drawn.
        learning_rate, weight_decay, warmup: As usual; the warmup is in steps.
        schedule: "cosine" to a twentieth, "stable" with the fall in the last quarter alone, or
            "constant".
        save_every: Steps between checkpoints.
        until: Stop after so many steps of the schedule: 0 runs all of it.
        device: Where to train, such as "cuda"; torch's default device if empty.
    """

    steps: int
    seed: int
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    warmup: int = 100
    schedule: Literal["cosine", "stable", "constant"] = "stable"
    save_every: int = 500
    stop_after: int = 0
    device: str = ""


class TextDataset(torch.utils.data.Dataset):
    """Rows as the trainer asks for them."""

    def __init__(self, texts: Sequence[TrainingText]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.texts[index]
        return {"input_ids": row.ids, "skipped": row.ignored_prefix}


def collate(features: Sequence[Mapping[str, Any]], pad_token: int) -> dict[str, Tensor]:
    """Pad rows on the right; labels leave out padding and what is not trained on."""
    width = max(len(feature["input_ids"]) for feature in features)
    ids = torch.full((len(features), width), pad_token)
    mask = torch.zeros((len(features), width), dtype=torch.long)
    labels = torch.full((len(features), width), _IGNORED_LABEL)
    for index, feature in enumerate(features):
        row, skipped = torch.tensor(feature["input_ids"]), feature["skipped"]
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
        labels[index, skipped : len(row)] = row[skipped:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class DistillationTrainer(Trainer):
    """A trainer that teaches what `Labels` say, and whose checkpoints are whole or not there."""

    def __init__(
        self, *args: Any, labels: DistillationTargets, teacher: nn.Module | None, **kw: Any
    ) -> None:
        super().__init__(*args, **kw)
        self.targets = labels
        self.teacher = None if teacher is None else teacher.to(self.args.device)

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Tensor], *args: Any, **kw: Any
    ) -> Tensor:
        """Return the mean divergence over the trained tokens of a batch."""
        feed = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        truth = inputs["labels"][:, 1:]
        trained = truth != _IGNORED_LABEL
        student = model(**feed).logits[:, :-1][trained].float()
        said = student.detach()
        if self.teacher is not None:
            with torch.no_grad():
                said = self.teacher(**feed).logits[:, :-1][trained].float()
        draw = torch.Generator(said.device)
        # By the step, not by what was drawn before: a resumed run draws the same.
        draw.manual_seed((self.args.seed << 24) + self.state.global_step)
        return distillation_loss(
            self.targets, student, target_distribution(self.targets, truth[trained], said, draw)
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        draft = folder / ".draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            self.args.output_dir = str(draft)
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(folder)
        shutil.rmtree(folder / name, ignore_errors=True)
        (draft / name).rename(folder / name)
        draft.rmdir()
        for old in folder.glob("checkpoint-*"):
            if old.name != name:
                shutil.rmtree(old)


class _StepCallback(TrainerCallback):
    """Keeps what was pruned at zero, and lets others look at certain steps."""

    def __init__(
        self, masks: Mapping[str, Tensor], callback: TrainingCallback | None, stop_after: int
    ) -> None:
        self.masks, self.callback, self.until = masks, callback, stop_after

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        with torch.no_grad():
            for name, weight in kw["model"].named_parameters():
                if name in self.masks:
                    weight.mul_(self.masks[name].to(weight.device))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        if state.global_step == 0:
            self.on_step_end(args, state, control, **kw)

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        if self.callback is not None:
            training = kw["model"].training
            self.callback(state.global_step, kw["model"])
            kw["model"].train(training)
        if state.global_step == self.until > 0:
            control.should_training_stop = control.should_save = True


def fit(  # noqa: PLR0913 (whom, what, how, where, by whom)
    hf_model: Any,
    texts: Sequence[TrainingText],
    settings: TrainingConfig,
    *,
    folder: Path,
    pad_token: int,
    labels: DistillationTargets | None = None,
    teacher: Any = None,
    masks: Mapping[str, Tensor] | None = None,
    callback: TrainingCallback | None = None,
    progress: bool = False,
) -> nn.Module:
    """Train a model in place, and go on where a run in the same folder was stopped.

    Args:
        hf_model: The student.
        rows: What it reads.
        dials: How.
        folder: Where checkpoints go, the last whole one alone.
        pad: The token that fills rows up; it is never attended to.
        labels: What is taught at each token; the text's own tokens by default.
        teacher: A model with the student's vocabulary, for labels that need one.
        masks: For parameters by name, where they may differ from zero.
        watch: What looks on, at step 0 and after every step.
        progress: Whether to show a bar.

    Returns:
        The student, ready to be asked.

    Raises:
        ModelError: The labels need a teacher and there is none, or its vocabulary differs.
    """
    labels = labels or DistillationTargets()
    _check_teacher(hf_model, teacher, labels)
    if teacher is not None:
        teacher.eval()
    # The trainer seeds the generators of the process; what stood there before comes back.
    with torch.random.fork_rng():
        trainer = DistillationTrainer(
            model=hf_model,
            args=_training_arguments(settings, folder, progress),
            train_dataset=TextDataset(texts),
            data_collator=lambda features: collate(features, pad_token),
            callbacks=[_StepCallback(masks or {}, callback, settings.stop_after)],
            labels=labels,
            teacher=teacher if labels.needs_teacher else None,
        )
        trainer.remove_callback(PrinterCallback)
        last = last_checkpoint(folder)
        if last and last.endswith(f"-{settings.stop_after or settings.steps}"):
            trainer._load_from_checkpoint(last)  # The trainer would take one step more.
        else:
            trainer.train(resume_from_checkpoint=last)
    return hf_model.eval()


def last_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint that was written to its end; None where there is none."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((int(state["global_step"]), str(path)))
        except (OSError, ValueError, KeyError):
            continue
    return max(found)[1] if found else None


def _check_teacher(student: Any, teacher: Any, labels: DistillationTargets) -> None:
    if not labels.needs_teacher:
        return
    if teacher is None:
        raise ModelError(f"The labels {str(labels)!r} are a teacher's, and there is none: name one")
    sizes = [int(model.config.vocab_size) for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"The teacher has {sizes[0]} tokens and the student {sizes[1]}: soft labels need one "
            "vocabulary. Train the student on the teacher's text instead."
        )


def _training_arguments(
    settings: TrainingConfig, folder: Path, progress: bool
) -> TrainingArguments:
    device = torch.device(settings.device) if settings.device else torch.get_default_device()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        warmup_steps=settings.warmup,
        **_schedule_arguments(settings),
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        logging_steps=100,
        save_steps=settings.save_every,
        report_to=[],
        disable_tqdm=not progress,
        use_cpu=device.type == "cpu",
        bf16=_supports_bf16(device),
        seed=settings.seed,
        data_seed=settings.seed,
    )


def _supports_bf16(device: torch.device) -> bool:
    """Say whether a device multiplies in half precision, and does not merely act as if it did.

    A processor without such instructions takes eight times as long as in single precision.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(known.get(name) for name in ("amx_bf16", "avx512_bf16", "arm_bf16"))


def _schedule_arguments(settings: TrainingConfig) -> dict[str, Any]:
    if settings.schedule == "constant":
        return {"lr_scheduler_type": "constant_with_warmup"}
    if settings.schedule == "cosine":
        return {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
        }
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": settings.steps // 4, "min_lr_ratio": 0.05},
    }
