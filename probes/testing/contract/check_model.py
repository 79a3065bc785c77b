"""Contract suite: what every probe relies on, tried on one model.

Each check passes, fails, or is refused: the kit raises its own error and says what is not
supported. A model on which every check passes or is refused gives no wrong number silently.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from probes.errors import ProbeError
from probes.models.model import Model, load, wrap
from probes.testing.contract import model_checks
from probes.testing.contract.check_result import CheckOutcome, ModelCheck
from probes.testing.contract.model_checks import Trial, WrongNumberError


def check_model(model: Model, reference: nn.Module | None = None, *, seed: int = 0) -> ModelCheck:
    """Run the contract suite on a model.

    Args:
        model: Any decoder; it is not changed.
        reference: Untouched Hugging Face model with the same weights, in eager attention. Without
            it the logits are compared with those of the model itself.
        seed: Seed of the random tokens.

    Raises:
        ModelError: The model is in training mode.
    """
    trial = Trial.draw(model, seed)
    checks: dict[str, Callable[[], str]] = {
        "logits": lambda: model_checks.check_logits(trial, reference),
        "padding": lambda: model_checks.check_padding(trial),
        "causal": lambda: model_checks.check_causal(trial),
        "deterministic": lambda: model_checks.check_deterministic(trial),
        "hooks removed": lambda: model_checks.check_hooks(trial),
        "identity edit": lambda: model_checks.check_identity_edit(trial),
        "activation patching": lambda: model_checks.check_patching(trial),
        "logit lens": lambda: model_checks.check_logit_lens(trial),
        "attention": lambda: model_checks.check_attention(trial),
        "gradients": lambda: model_checks.check_gradients(trial),
        "edge attribution": lambda: model_checks.check_attribution(trial),
        "circuits": lambda: model_checks.check_circuits(trial),
        "roles": lambda: model_checks.check_roles(trial),
        "save and load": lambda: model_checks.check_save_and_load(trial),
    }
    with torch.random.fork_rng(devices=[]):  # Building a model again draws weights.
        outcomes = tuple(_run_check(name, check) for name, check in checks.items())
    return ModelCheck(model.name, model.shape.architecture, outcomes)


def check_named_model(name: str | Path, *, dtype: str = "float32", seed: int = 0) -> ModelCheck:
    """Load a model and run the contract suite against its untouched Hugging Face model.

    A model that the kit refuses to load has one check, "load", with the reason.
    """
    from probes.models.files.loading import load_hf_model, parse_dtype
    from probes.models.files.names import find_model

    try:
        model = load(name, dtype=dtype)
        reference, _ = load_hf_model(find_model(name)[0], parse_dtype(dtype))
    except ProbeError as error:
        return refused_model(str(name), error)
    return check_model(model, reference.to(model.device), seed=seed)


def check_hf_model(hf_model: nn.Module, *, name: str, seed: int = 0) -> ModelCheck:
    """Wrap a Hugging Face model and run the contract suite against it."""
    try:
        model = wrap(hf_model, name=name)
    except ProbeError as error:
        return refused_model(name, error, type(hf_model).__name__)
    return check_model(model, hf_model.eval(), seed=seed)


def refused_model(name: str, error: ProbeError, architecture: str = "unknown") -> ModelCheck:
    """The outcome for a model that the kit refuses to load."""
    return ModelCheck(name, architecture, (CheckOutcome("load", "refused", str(error)),))


def _run_check(name: str, check: Callable[[], str]) -> CheckOutcome:
    try:
        return CheckOutcome(name, "pass", check())
    except WrongNumberError as error:
        return CheckOutcome(name, "fail", str(error))
    except ProbeError as error:
        return CheckOutcome(name, "refused", str(error))
    except Exception as error:  # Anything else is a crash, and a crash is a failed check.
        return CheckOutcome(name, "fail", f"{type(error).__name__}: {str(error).splitlines()[:1]}")
