"""Process-global state: one lock, restored afterwards; random draws from a private generator."""

import logging
import os
import random
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from probes.errors import ModelError

_LOCK = threading.RLock()


@contextmanager
def isolated() -> Iterator[None]:
    """Run code that changes process-global state, in one thread at a time, and restore the state.

    Restores the default dtype, the environment, the logging threshold, warning filters, and the
    CPU generators of PyTorch, NumPy and `random`.
    """
    with _LOCK, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        dtype, threshold = torch.get_default_dtype(), logging.root.manager.disable
        numpy_state, python_state = np.random.get_state(), random.getstate()
        environment = dict(os.environ)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            logging.disable(threshold)
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            _restore_environment(environment)


@contextmanager
def suppress_library_warnings() -> Iterator[None]:
    """Silence the libraries' warnings about missing kernels."""
    with isolated():
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        yield


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Draw the initial weights of new modules on the CPU, from a generator with this seed.

    The default generator is neither seeded nor read, so the weights depend on the seed alone and
    draws of other threads stay as they are.

    Raises:
        ModelError: The seed is negative, or has more than 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise ModelError(f"The seed {seed!s:.40} is out of range: give one from 0 to {2**63 - 1}")
    with isolated(), torch.device("cpu"), _PrivateGenerator(seed):
        yield


@contextmanager
def exclusive(lock: Any, name: str) -> Iterator[None]:  # noqa: ANN401 (an RLock)
    """Hold the lock of a model; a second thread is an error, and does not wait.

    Raises:
        ModelError: Another thread holds it.
    """
    if not lock.acquire(blocking=False):
        raise ModelError(f"{name} is in use by another thread: load one model for each thread")
    try:
        yield
    finally:
        lock.release()


class _PrivateGenerator(TorchDispatchMode):
    """Pass one generator to all random operations of this thread that name none."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 (an operation of PyTorch)
        types: Any,  # noqa: ANN401
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = dict(kwargs or {})
        on_cpu = all(value.device.type == "cpu" for value in args if isinstance(value, Tensor))
        if on_cpu and torch.Tag.nondeterministic_seeded in func.tags:
            func = _with_generator(func)
            if _takes_generator(func) and given.get("generator") is None:
                given["generator"] = self.generator
        return func(*args, **given)


def _takes_generator(func: Any) -> bool:  # noqa: ANN401 (an operation of PyTorch)
    return "generator" in {argument.name for argument in func._schema.arguments}


def _with_generator(func: Any) -> Any:  # noqa: ANN401 (an operation of PyTorch)
    """Overload of a random operation that takes a generator, such as `rand.generator`."""
    if _takes_generator(func):
        return func
    default = func._overloadname == "default"
    name = "generator" if default else f"{func._overloadname}_generator"
    return getattr(func.overloadpacket, name, func)


def _restore_environment(before: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
