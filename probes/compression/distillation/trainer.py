"""Training of a Hugging Face model on texts, resumable, with the Hugging Face `Trainer`.

A checkpoint is written to a draft folder and moved when complete, so an interrupted run continues
from the last complete one.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from probes.compression.distillation.plan import (
    TrainingConfig,
    TrainingPlan,
    TrainingText,
    claim_checkpoints,
    last_checkpoint,
    supports_bf16,
)
from probes.compression.distillation.targets import (
    DistillationTargets,
    mean_loss,
)
from probes.errors import ModelError, StoreError
from probes.models.process_state import isolated, suppress_library_warnings

with suppress_library_warnings():  # It imports torchao, if installed, which warns.
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

_IGNORED_LABEL = -100
_WRAPPER_ATTRIBUTES = ("forward", "_original_forward")

TrainingCallback = Callable[[int, nn.Module], None]
"""Called with the number of steps taken and the model, which it must not change."""

TrainingReport = Callable[[int, float], None]
"""Called with the number of steps taken and the loss of the last one."""


class TextDataset(torch.utils.data.Dataset):
    """Texts as the trainer reads them."""

    def __init__(self, texts: Sequence[TrainingText]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        text = self.texts[index]
        return {"input_ids": text.ids, "skipped": text.ignored_prefix}


def collate(features: Sequence[Mapping[str, Any]], pad_token: int) -> dict[str, Tensor]:
    """Pad texts on the right; labels ignore padding and prefixes."""
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
    """Trainer with distillation targets and atomic checkpoints."""

    def __init__(
        self, *args: Any, labels: DistillationTargets, teacher: nn.Module | None, **kw: Any
    ) -> None:
        super().__init__(*args, **kw)
        self.targets, self.last_loss = labels, torch.tensor(float("nan"))
        self.teacher = None if teacher is None else teacher.to(self.args.device)

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Tensor], *args: Any, **kw: Any
    ) -> Tensor:
        """Return the mean divergence over the trained tokens of a batch."""
        feed = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        next_tokens = inputs["labels"][:, 1:]
        trained = next_tokens != _IGNORED_LABEL
        student = model(**feed).logits[:, :-1][trained]
        teacher = student.detach()
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(**feed).logits[:, :-1][trained]
        # Seeded by the step, so a resumed run draws the same labels.
        generator = torch.Generator(teacher.device)
        generator.manual_seed((self.args.seed << 24) + self.state.global_step)
        loss = mean_loss(self.targets, (student, teacher, next_tokens[trained]), generator)
        self.last_loss = loss.detach()
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        draft = folder / ".draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            self.args.output_dir = str(draft)
            super()._save_checkpoint(model, trial)
        except BaseException as error:
            shutil.rmtree(draft, ignore_errors=True)  # On a full disk it takes the last room.
            if _is_of_writing(error):
                reason = " ".join(str(error).split())[:200]
                raise StoreError(
                    f"The {name} cannot be written in {str(folder)!r} ({reason}): free the disk "
                    "and run the same again; it goes on from the checkpoint before"
                ) from error
            raise
        finally:
            self.args.output_dir = str(folder)
        shutil.rmtree(folder / name, ignore_errors=True)
        (draft / name).rename(folder / name)
        draft.rmdir()
        for old in folder.glob("checkpoint-*"):
            if old.name != name:
                shutil.rmtree(old)


def _is_of_writing(error: BaseException) -> bool:
    """Whether a file could not be written: torch raises a RuntimeError of its archives."""
    is_archive = isinstance(error, RuntimeError) and "inline_container" in str(error)
    return is_archive or isinstance(error, OSError | SafetensorError)


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """The model without the mixed-precision wrapper that the trainer puts around its forward."""
    wrapper = {name: vars(model).pop(name) for name in _WRAPPER_ATTRIBUTES if name in vars(model)}
    try:
        yield
    finally:
        vars(model).update(wrapper)


class _StepCallback(TrainerCallback):
    """Applies masks after each step, calls the caller's functions, and stops early."""

    def __init__(self, plan: TrainingPlan, callback: TrainingCallback | None) -> None:
        self.masks, self.stop_after = plan.masks, plan.settings.stop_after
        self.callback = callback

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
            with _own_forward(kw["model"]):
                self.callback(state.global_step, kw["model"])
            kw["model"].train(training)
        if state.global_step == self.stop_after > 0:
            control.should_training_stop = control.should_save = True


class _ReportCallback(TrainerCallback):
    """Reports the loss of each step."""

    def __init__(self, trainer: DistillationTrainer, report: TrainingReport) -> None:
        self.trainer, self.report = trainer, report

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.report(state.global_step, float(self.trainer.last_loss))


def fit(
    hf_model: Any,
    plan: TrainingPlan,
    *,
    folder: Path,
    callback: TrainingCallback | None = None,
    progress: bool | TrainingReport = False,
) -> nn.Module:
    """Train a model in place, continuing an interrupted run of the same plan.

    The run holds the lock of process-global state (see `process_state.isolated`).

    Args:
        hf_model: The student.
        plan: Texts, settings, targets, teacher and masks.
        folder: Folder of checkpoints; only the last complete one is kept.
        callback: Called at step 0 and after every step.
        progress: Whether to show a progress bar, or a function to call after every step.

    Returns:
        The student in evaluation mode.

    Raises:
        ModelError: The labels need a teacher and there is none, its vocabulary differs, or the
            folder has checkpoints of another plan or of a later step.
        StoreError: A checkpoint cannot be written.
    """
    _check_teacher(hf_model, plan)
    if plan.teacher is not None:
        plan.teacher.eval()
    claim_checkpoints(folder, plan.fingerprint(hf_model))
    last, end = last_checkpoint(folder), plan.settings.stop_after or plan.settings.steps
    reached = int(last.rpartition("-")[2]) if last else 0
    if reached > end:
        raise ModelError(
            f"The checkpoint in {str(folder)!r} is at step {reached}, after the last step {end} of "
            "this run: use another folder, or delete it to train again"
        )
    # The trainer seeds the generators of the process, on every device.
    with isolated(), torch.random.fork_rng():
        trainer = DistillationTrainer(
            model=hf_model,
            args=_training_arguments(plan.settings, folder, progress),
            train_dataset=TextDataset(plan.texts),
            data_collator=lambda features: collate(features, plan.pad_token),
            callbacks=[_StepCallback(plan, callback)],
            labels=plan.labels,
            teacher=plan.teacher if plan.labels.needs_teacher else None,
        )
        trainer.remove_callback(PrinterCallback)
        if callable(progress):
            trainer.add_callback(_ReportCallback(trainer, progress))
        if last and reached == end:
            trainer._load_from_checkpoint(last)  # `train` would take one more step.
        else:
            trainer.train(resume_from_checkpoint=last)
        for name in _WRAPPER_ATTRIBUTES:
            vars(hf_model).pop(name, None)
    return hf_model.eval()


def _check_teacher(student: Any, plan: TrainingPlan) -> None:
    if not plan.labels.needs_teacher:
        return
    if plan.teacher is None:
        raise ModelError(f"{str(plan.labels)!r} labels need a teacher, and there is none: give one")
    sizes = [int(model.config.vocab_size) for model in (plan.teacher, student)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"The teacher has {sizes[0]} tokens and the student {sizes[1]}: soft labels need one "
            "vocabulary. Train the student on the teacher's text instead."
        )


def _training_arguments(
    settings: TrainingConfig, folder: Path, progress: bool | TrainingReport
) -> TrainingArguments:
    device = settings.torch_device()
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
        disable_tqdm=progress is not True,
        use_cpu=device.type == "cpu",
        bf16=supports_bf16(device),
        seed=settings.seed,
        data_seed=settings.seed,
    )


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
