"""A second device for tests on a machine that has none: it computes on the CPU, and never mixes.

Its tensors name the device type that PyTorch reserves for lazy execution, and hold CPU tensors. An
operation with tensors of both devices raises an error where CUDA would. So does `numpy()`.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

SECOND = torch.device("lazy")
"""Autograd runs it in the thread of the CPU, so that it needs no driver."""

_COPIES = ("copy_", "_to_copy")
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class SecondTensor(torch.Tensor):
    """A tensor of the second device; `held` is the CPU tensor with its values."""

    held: torch.Tensor
    has_doubles = True

    @staticmethod
    def __new__(cls, held):
        if held.dtype is torch.float64 and not cls.has_doubles:
            raise TypeError("This device has no double precision")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=SECOND,
        )
        made.held = held
        return made

    def __repr__(self, **_):
        return f"SecondTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """Also reaches what makes new tensors from none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What never reaches the dispatcher, or allocates on the device by itself."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_second(given.get("device")):
            del given["device"]
            return func(*args, **given).to(SECOND)
        if func is torch.Tensor.tolist and isinstance(args[0], SecondTensor):
            return args[0].held.tolist()
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            at = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(map(_as_index, at)), *args[2:])
        return func(*args, **given)


def _as_index(value):
    return (
        torch.tensor(value, dtype=None if value else torch.long) if type(value) is list else value
    )


def _is_second(device):
    return device is not None and torch.device(device).type == SECOND.type


@contextmanager
def second_device(*, has_doubles=True):
    """Make the device usable in this thread, which also runs the jobs of thread pools.

    Devices of Apple have no double precision.
    """
    inline = mock.patch.object(ThreadPoolExecutor, "map", _map_here)
    doubles = mock.patch.object(SecondTensor, "has_doubles", has_doubles)
    with _Functions(), _Dispatch(), inline, doubles:
        yield SECOND


def _map_here(_pool, job, *items):
    """The modes of PyTorch count for the thread that entered them alone."""
    return map(job, *items)


def _dispatch(func, args, kwargs):
    name = func.overloadpacket.__name__
    tensors = [*_tensors(args), *_tensors(kwargs.values())]
    is_own = any(type(each) is SecondTensor for each in tensors)
    if is_own and name not in _COPIES:
        _require_one_device(name, args, tensors)
    given = {key: _held(value) for key, value in kwargs.items()}
    if kwargs.get("device") is not None:
        is_own = _is_second(kwargs["device"])
        given["device"] = torch.device("cpu") if is_own else kwargs["device"]
    out = func(*_held(args), **given)
    if not is_own or name == "_local_scalar_dense":
        return out
    writes = func._schema.arguments[0].alias_info if func._schema.arguments else None
    return args[0] if writes and writes.is_write else _wrapped(out)


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _held(value):
    if type(value) is SecondTensor:
        return value.held
    return type(value)(map(_held, value)) if type(value) in (list, tuple) else value


def _wrapped(value):
    if isinstance(value, torch.Tensor):
        return SecondTensor(value)
    return type(value)(map(_wrapped, value)) if type(value) in (list, tuple) else value


def _require_one_device(name, args, tensors):
    """Numbers of the CPU mix with any device, and its indices with tensors of any."""
    indices = ()
    if name in _INDEXED and isinstance(args[0], SecondTensor):
        indices = tuple(args[1])
    wrong = [
        each
        for each in tensors
        if not isinstance(each, SecondTensor)
        and each.ndim
        and not any(each is index for index in indices)
    ]
    if wrong:
        shapes = [f"{type(each).__name__} {[*each.shape]}" for each in tensors]
        raise RuntimeError(f"Tensors of two devices in {name}: {', '.join(shapes)}")
