"""Messages: what a worker gets is what was sent, once, and without what was measured before."""

import math
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes.comparison.nulls import RandomInit
from probes.errors import EngineError
from probes.models.site import Site
from probes.scale.messages import keeps_measurements, pack, unpack
from probes.scale.worker import _UNITS_KEPT, Packer, Worker, value_of
from probes.stats.intervals import Estimate, bootstrap_mean
from probes.testing.tiny_models import tiny

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def crossed(value):
    return unpack(pack(value, lambda _: None), lambda key: key)


class Here:
    """Packer and worker of one process, with what the worker fetched."""

    def __init__(self):
        self.packer, self.places, self.fetched = Packer(lambda packed: packed), {}, []
        self.worker = Worker(self.fetch)

    def fetch(self, key):
        self.fetched.append(key)
        return self.places[key]

    def call(self, function, *args, **kwargs):
        unit, places = self.packer.pack(function, args, kwargs)
        self.places |= places
        return value_of(self.worker.run(unit), self.packer.models)


@given(PLAIN)
def test_plain_values_arrive_as_they_are(value):
    assert crossed(value) == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.bool])
def test_tensors_arrive_with_their_kind_and_without_what_they_are_a_part_of(dtype):
    whole = torch.arange(3000).reshape(3, 1000).to(dtype)
    for tensor in (whole, whole[:, 1], whole.T, whole[0, 0], whole[:0]):
        found = crossed(tensor)
        assert found.dtype == dtype
        assert torch.equal(found, tensor)
    assert len(pack(whole[:, 1], lambda _: None)) < whole.nbytes / 4


def test_collections_functions_and_paths_arrive():
    value = (
        np.array([1.5, math.inf]),
        np.float32(0.1),
        {"a", "b"},
        frozenset({1}),
        Path("runs"),
        MappingProxyType({"x": Site(1, 0, "op")}),
        partial(bootstrap_mean, seed=3),
    )
    array, *others, shared, function = crossed(value)
    assert np.array_equal(array, value[0])
    assert others == [*value[1:5]]
    assert type(others[0]) is np.float32
    assert shared == {"x": Site(1, 0, "op")}
    assert function(np.arange(4.0)) == bootstrap_mean(np.arange(4.0), seed=3)


def test_nan_arrives_as_nan():
    found = crossed(Estimate(math.nan, math.nan, math.nan))
    assert math.isnan(found.value)


def test_what_has_no_bytes_is_one_line():
    with pytest.raises(EngineError, match=r"cannot go to a worker .*--engine inprocess") as failed:
        pack(lambda: 1, lambda _: None)
    assert "\n" not in str(failed.value)


def is_same(first, second):
    return first is second


def count_calls(null):
    null._made.append(1)
    return len(null._made)


def test_a_dataclass_that_keeps_measurements_is_one_object_in_all_arguments_and_units():
    here, null = Here(), RandomInit(tiny("llama"), 0)
    assert keeps_measurements(null)
    assert here.call(is_same, null, null)
    assert [here.call(count_calls, null) for _ in range(3)] == [1, 2, 3]
    assert null._made == []
    assert len(here.fetched) == len({*here.fetched}) == 2  # It and its model.


def test_what_units_no_longer_name_is_forgotten():
    here, null = Here(), RandomInit(tiny("llama"), 0)
    assert here.call(count_calls, null) == 1
    for _ in range(_UNITS_KEPT - 1):
        here.call(abs, -1)
    assert here.call(count_calls, null) == 2
    for _ in range(_UNITS_KEPT):
        here.call(abs, -1)
    assert here.call(count_calls, null) == 1
