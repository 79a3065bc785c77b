"""Encoding of values: what is read is what was written, and nothing else can be read."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import StoreError
from probes.models.site import Site
from probes.scale.decoding import decode
from probes.scale.encoding import Digests, encode, model_digest
from probes.stats.intervals import Estimate
from probes.testing.tiny_models import tiny

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
arrays = st.builds(np.array, st.lists(st.floats(width=32), max_size=4))
values = st.recursive(
    scalars | arrays,
    lambda part: (
        st.lists(part, max_size=3)
        | st.tuples(part, part)
        | st.dictionaries(st.text(max_size=3) | st.integers(), part, max_size=3)
    ),
    max_leaves=8,
)


def again(value, models=()):
    made = encode(value)
    return decode(made.tree, made.tensors, {model_digest(model): model for model in models})


@given(values)
def test_a_value_is_read_as_it_was_written(value):
    assert Digests().of(again(value)) == Digests().of(value)
    assert repr(again(value)) == repr(value)


@given(st.frozensets(st.integers() | st.text(max_size=2)))
def test_a_set_is_read_as_it_was_written_in_any_order(value):
    assert again(value) == value
    assert Digests().of(set(value)) == Digests().of(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.bool])
def test_tensors_keep_their_bits_and_number_format(dtype):
    tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = again({"t": tensor.T})["t"]
    assert found.dtype == dtype
    assert torch.equal(found, tensor.T)


def test_dataclasses_paths_and_scalars_of_numpy_keep_their_types():
    value = (Estimate(0.5, 0.1, 0.9), Site.parse("L1.resid@op"), Path("a/b"), np.float64(0.25))
    found = again(value)
    assert found == value
    assert [type(part) for part in found] == [type(part) for part in value]


def test_equal_values_have_equal_digests_and_others_have_others():
    digests = Digests()
    one = Estimate(0.5, 0.1, 0.9)
    assert digests.of([one]) == digests.of([replace(one)]) == Digests().of([one])
    different = [
        [replace(one, high=0.8)],
        (one,),
        [one, one],
        {"a": one},
        [1],
        [1.0],
        ["1"],
        [True],
    ]
    assert len({digests.of(value) for value in [[one], *different]}) == len(different) + 1


def test_a_digest_depends_on_the_numbers_the_shape_and_the_kind_of_a_tensor():
    tensor = torch.zeros(2, 3)
    others = [tensor.T, tensor.half(), tensor.numpy(), tensor + 1, tensor.flatten()]
    assert len({Digests().of(value) for value in [tensor, *others]}) == len(others) + 1


def test_a_function_with_its_arguments_is_part_of_a_key():
    digests = Digests()
    keys = [digests.of(partial(encode, n)) for n in (1, 2)]
    keys += [digests.of(encode), digests.of(decode)]
    assert len(set(keys)) == 4


def test_a_model_is_known_by_its_weights_and_its_name():
    one, same, other = (tiny("llama", seed=seed) for seed in (0, 0, 1))
    assert model_digest(one) == model_digest(same) != model_digest(other)
    renamed = replace(one, name="b")
    assert model_digest(renamed) != model_digest(one)
    assert again([one], [same]) == [same]


def test_a_model_that_is_not_loaded_is_named():
    with pytest.raises(StoreError, match="refers to 'tiny llama', which is not loaded"):
        again([tiny("llama")])


@dataclass
class Foreign:
    number: int = 0


@dataclass(frozen=True)
class Own:
    kept: int
    live: object = field(default=None, metadata={"saved": False})


def test_what_has_no_plain_form_is_refused():
    for value in (Foreign(), object(), lambda: 0, open, 1j):
        with pytest.raises(StoreError, match="cannot be stored"):
            encode([value])


@pytest.mark.parametrize(
    "tree",
    [
        ["object", "os", "system", ["command", "true"]],
        ["name", "subprocess", "run"],
        ["object", "probes.files", "write_atomic"],
        ["partial", ["name", "builtins", "print"], ["tuple"], ["dict"]],
        ["pickle", "gASV"],
    ],
)
def test_a_file_names_only_dataclasses_of_this_package(tree):
    with pytest.raises(StoreError):
        decode(tree, {}, {})
