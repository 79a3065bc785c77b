"""Check of gradients against finite differences, before edges are scored with them."""

import torch

from probes.circuits.edges.gradients import GradientRecorder
from probes.errors import ModelError
from probes.models.model import Model

# Difference between a finite difference and the gradient, relative to the gradient's length;
# rounding error of a logit difference, relative to the largest logit; and that of a slope up to
# which a step tells, relative to the gradient's length.
_SLOPE_TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.2, torch.float16: 0.1}
_ROUNDING_TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 0.02, torch.float16: 0.002}
_LARGEST_ROUNDING = 0.1
_STEP_FRACTIONS = (0.1, 0.03, 0.01, 0.003, 0.001)
_MOST_CHECKS = 3  # An inconclusive check costs many passes: it is retried twice.


def check_first_gradients(recorder: GradientRecorder, inconclusive: list[Model]) -> None:
    """Check gradients of a batch, unless the model passed before or checks tell nothing.

    Args:
        recorder: Runs the model on the batch.
        inconclusive: Grows by the model where the check is inconclusive.

    Raises:
        ModelError: The gradients are wrong.
    """
    model = recorder.model
    if "gradients" in model.passed_checks or len(inconclusive) >= _MOST_CHECKS:
        return
    if check_gradients(recorder):
        model.passed_checks.add("gradients")
    else:
        inconclusive.append(model)


@torch.no_grad()
def check_gradients(recorder: GradientRecorder) -> bool:
    """Compare the first prompt's gradient at the embeddings with finite differences.

    Random directions are weighted to where the gradient is steep. Curvature requires short
    steps, and rounding long ones: logits are rounded in proportion to their size, however
    small their difference and its gradient. So each direction must agree at one of the steps
    that are long enough to tell, unless these do not agree with each other.

    Returns:
        Whether any direction agrees; false where rounding and curvature hide all slopes.

    Raises:
        ModelError: Finite differences of a direction agree with each other, but not with it.
    """
    # Twice the first prompt: both ends of a step share a pass, which costs little more than one.
    model, task = recorder.model, recorder.task[torch.zeros(2, dtype=torch.long)]
    one = GradientRecorder(model, recorder.weights, task, recorder.by_role, clean=None)
    run, other = one.gradients(one.task.clean), one.outputs(one.task.counterfactual)
    embed, grad = (run.outputs or other).embed[:1], run.grads["embed"][0][:1].float()
    change = (other.embed[:1] - embed).float()
    reaches = (float(change.norm()), float(embed.float().norm()))
    sizes = {part * reach for part in _STEP_FRACTIONS for reach in reaches if reach}
    steepness = float(grad.norm())
    largest_logit = float(one.logits_from(embed.repeat(2, 1, 1)).abs().max())
    noise = _ROUNDING_TOLERANCE[model.dtype] * max(1.0, largest_logit)
    draw = torch.Generator().manual_seed(0)
    random = [torch.randn(grad.shape, generator=draw).to(grad) * grad.abs() for _ in range(4)]
    is_conclusive = False
    for direction in (change, *random):
        if not (length := float(direction.norm())):
            continue
        slope = float((grad * direction).sum()) / length
        slopes, gaps = [], []
        for size in sorted(sizes, reverse=True):
            step = (direction * (size / length)).to(embed.dtype)
            ends = one.logits_from(torch.cat([embed + step, embed - step]))
            ends = one.task.logit_diff(ends).tolist()
            measured, rounding = (ends[0] - ends[1]) / (2 * size), noise / (2 * size)
            if rounding > _LARGEST_ROUNDING * max(steepness, abs(measured)):
                continue
            slopes.append(measured)
            gaps.append(abs(measured - slope) - rounding)
            if gaps[-1] <= _SLOPE_TOLERANCE[model.dtype] * steepness:
                is_conclusive = True
                break
        else:
            if len(gaps) < 2 or abs(slopes[-1] - slopes[-2]) > min(gaps):
                continue  # Curved at every step that is long enough: inconclusive.
            raise ModelError(
                f"The gradients of {model.name} are wrong: finite differences deviate by "
                f"{min(gaps):.2g} per unit, and the gradient has length {steepness:.2g}. "
                "Quantized modules can do this silently: dequantize the model before loading "
                "it."
            )
    return is_conclusive
