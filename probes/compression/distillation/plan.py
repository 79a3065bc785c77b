"""Training plans: settings, texts, targets, and the fingerprint that checkpoints carry."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import probes
from probes.compression.distillation.targets import DistillationTargets
from probes.errors import ModelError
from probes.files import write_atomic
from probes.models.files.loading import find_device

PLAN_FILE = "plan.json"
"""Name of the fingerprint in a folder of checkpoints."""


@dataclass(frozen=True, slots=True)
class TrainingText:
    """Tokens of one text, and the number of tokens at its start that are not trained on."""

    ids: tuple[int, ...]
    ignored_prefix: int = 0


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Settings of the optimizer (AdamW) and of checkpoints.

    Attributes:
        steps, batch: Number of steps, and texts per step.
        seed: Seed of the order of texts and of sampled labels.
        learning_rate, weight_decay, warmup: Settings of AdamW; the warmup is in steps.
        schedule: "cosine" to a twentieth, "stable" with a linear decay to a twentieth in the last
            quarter, or "constant".
        save_every: Number of steps between checkpoints.
        stop_after: Step of the schedule to stop after; 0 runs all of it.
        device: Device to train on, such as "cuda"; PyTorch's default device if empty.
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

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.save_every) < 1:
            raise ModelError(
                f"A run of {self.steps} steps of {self.batch} texts, saved every "
                f"{self.save_every} steps, is impossible: give numbers of 1 or more"
            )
        rates = (self.learning_rate, self.weight_decay, self.warmup)
        if not all(0 <= rate < math.inf for rate in rates) or not 0 <= self.seed < 2**32:
            raise ModelError(
                f"A run with learning rate {self.learning_rate:g}, weight decay "
                f"{self.weight_decay:g}, warmup {self.warmup} and seed {self.seed!s:.40} is "
                "impossible: give finite numbers of 0 or more, and a seed below 2**32"
            )
        if not 0 <= self.stop_after <= self.steps:
            raise ModelError(
                f"A run of {self.steps} steps cannot stop after {self.stop_after}: give 0 (all) to "
                f"{self.steps}"
            )

    def torch_device(self) -> torch.device:
        """Return the device to train on.

        Raises:
            ModelError: There is no such device.
        """
        return find_device(self.device)


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """What shapes a training run, except for the student.

    Attributes:
        texts: Texts to train on.
        settings: Settings of the optimizer.
        pad_token: Token that fills up short texts; it is masked.
        labels: Targets at each token; the tokens of the text by default.
        teacher: Hugging Face model with the student's vocabulary, for labels that need one.
        masks: Masks by parameter name; weights outside of them stay zero.
    """

    texts: Sequence[TrainingText]
    settings: TrainingConfig
    pad_token: int = 0
    labels: DistillationTargets = field(default_factory=DistillationTargets)
    teacher: Any = field(default=None, repr=False)
    masks: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def fingerprint(self, student: Any) -> dict[str, Any]:  # noqa: ANN401 (a Hugging Face model)
        """Return all that shapes the trained weights, as JSON values.

        Weights, texts and masks are SHA-256 hashes. When to save and where to stop do not shape
        the weights and are left out.
        """
        settings = asdict(self.settings)
        for name in ("save_every", "stop_after", "device"):
            del settings[name]
        device = self.settings.torch_device()
        return {
            "student": hash_model(student),
            "teacher": hash_model(self.teacher) if self.labels.needs_teacher else "",
            "texts": hash_texts(self.texts),
            "masks": _hash_tensors(self.masks),
            "pad_token": self.pad_token,
            **{f"labels.{name}": value for name, value in asdict(self.labels).items()},
            **settings,
            "device": device.type,
            "half_precision": supports_bf16(device),
            "probes": probes.__version__,
            **{name: version(name) for name in ("torch", "transformers", "accelerate")},
        }


def claim_checkpoints(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Tie a folder of checkpoints to a plan.

    Raises:
        ModelError: The folder has checkpoints of another plan, or of an unknown one.
    """
    path = folder / PLAN_FILE
    if last_checkpoint(folder) is not None:
        advice = "Use another folder or name, or delete the folder to train again."
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name in fingerprint if found.get(name) != fingerprint[name]]
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(
                f"The checkpoints in {str(folder)!r} have no readable {PLAN_FILE}, so the run that "
                f"they belong to is unknown. {advice}"
            ) from error
        if changed:
            values = ", ".join(_describe_change(name, found, fingerprint) for name in changed)
            raise ModelError(
                f"The checkpoints in {str(folder)!r} belong to another run: {values}. {advice}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(fingerprint, indent=1) + "\n").encode())


def last_checkpoint(folder: Path) -> str | None:
    """Return the last complete checkpoint of a folder; None if there is none."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((int(state["global_step"]), str(path)))
        except (OSError, ValueError, KeyError):
            continue
    return max(found)[1] if found else None


def hash_model(hf_model: Any) -> str:  # noqa: ANN401 (a Hugging Face model)
    """Return the SHA-256 hash of a model's class, config and weights."""
    config = hf_model.config.to_dict()
    # Where a model was loaded from, and by which version, does not change its outputs.
    config = {n: v for n, v in config.items() if n not in ("_name_or_path", "transformers_version")}
    header = json.dumps([type(hf_model).__name__, config], sort_keys=True, default=str)
    digest = hashlib.sha256(header.encode())
    digest.update(_hash_tensors(hf_model.state_dict()).encode())
    return digest.hexdigest()


def supports_bf16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 instructions; emulation is eight times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(known.get(name) for name in ("amx_bf16", "avx512_bf16", "arm_bf16"))


def _hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_texts(texts: Sequence[TrainingText]) -> str:
    """Return the SHA-256 hash of the tokens of texts."""
    digest = hashlib.sha256()
    for text in texts:
        row = (len(text.ids), text.ignored_prefix, *text.ids)
        digest.update(np.array(row, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _describe_change(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if name in ("student", "teacher", "texts", "masks"):
        return f"{name} differ" if name.endswith("s") else f"the {name} differs"
    return f"{name} is {found.get(name)!r} there and {wanted[name]!r} here"
