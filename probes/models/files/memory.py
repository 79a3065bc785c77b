"""Memory of this machine, and what a model takes of it."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

from probes.errors import ModelError, OutOfMemoryError

_CGROUP = Path("/sys/fs/cgroup")
_GB = 1e9
# What PyTorch's allocators say in a RuntimeError that has no type of its own: that of the CPU on
# each system, and those of accelerators and their libraries.
_OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")


def available_memory() -> int:
    """Bytes that this process can still take: of the machine, and within its control group."""
    import psutil

    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # No control group, or one without a limit.
        limit = int((_CGROUP / "memory.max").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        pages = dict(line.split() for line in lines)
        used = int((_CGROUP / "memory.current").read_text()) - int(pages["inactive_file"])
        free = min(free, max(limit - used, 0))
    return free


def free_memory(device: torch.device) -> int | None:
    """Bytes that tensors can still take on a device; None where the device does not say."""
    if device.type == "cpu":
        return available_memory()
    with suppress(AttributeError, RuntimeError, NotImplementedError):
        module = torch.get_device_module(device)
        free, _ = module.mem_get_info(device)
        # PyTorch keeps freed blocks for itself, and uses them again.
        return int(free + module.memory_reserved(device) - module.memory_allocated(device))
    return None


def process_memory() -> int:
    """Bytes of memory that this process has."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def release_memory(device: torch.device | None = None) -> None:
    """Give freed memory back to the system, where the C library can, and to a device.

    glibc keeps blocks of many sizes: gigabytes after the matrices of a large model were replaced.
    PyTorch keeps those of an accelerator.
    """
    if device is not None:
        gc.collect()  # A failed pass leaves tensors in circles of frames and errors.
        with suppress(AttributeError, RuntimeError):  # The CPU keeps none; others do not say.
            torch.get_device_module(device).empty_cache()
    with suppress(OSError, AttributeError, TypeError):  # Another C library, or none by that name.
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or an accelerator."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(each in text for each in _OUT_OF_MEMORY)


def require_memory(source: str, weights: int, dtype: torch.dtype) -> None:
    """Refuse a model whose weights do not fit into memory, before they are read.

    Args:
        source: Name of the model.
        weights: Number of weights, tied ones once.
        dtype: Number format that they are loaded in.

    Raises:
        ModelError: Names the bytes needed and those that are free.
    """
    needed, free = weights * dtype.itemsize, available_memory()
    if needed <= free:
        return
    half = torch.bfloat16
    fix = "Use a smaller model, or a machine with more memory."
    if weights * half.itemsize <= free:
        fix = f'Load it with dtype="bfloat16" ({weights * half.itemsize / _GB:.1f} GB).'
    name = str(dtype).removeprefix("torch.")
    raise ModelError(
        f"{source!r} is too big for this machine: its {weights / _GB:.2f} billion weights take "
        f"{needed / _GB:.1f} GB in {name}, and {free / _GB:.1f} GB of memory are free. {fix}"
    )
