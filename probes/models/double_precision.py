"""Double precision, which some devices lack."""

import torch
from torch import Tensor


def has_doubles(device: torch.device) -> bool:
    """Whether tensors of a device can have double precision; those of Apple's devices cannot."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def to_double(value: Tensor) -> Tensor:
    """Values in double precision, on the CPU where their device has none."""
    return (value if has_doubles(value.device) else value.cpu()).double()
