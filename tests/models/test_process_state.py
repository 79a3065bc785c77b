"""Process-global state: restored, changed by one thread at a time, and not drawn from."""

import logging
import os
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from probes.errors import ModelError
from probes.models.model import load, random_init, wrap
from probes.models.process_state import isolated, seeded_init, suppress_library_warnings
from probes.testing.tiny_models import KINDS, tiny_hf


def weights(model):
    return torch.cat([w.detach().flatten() for w in model.bridge.original_model.parameters()])


def process_state():
    return {
        "dtype": torch.get_default_dtype(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "random": random.getstate(),
        "warnings": [str(entry) for entry in warnings.filters],
        "logging": logging.root.manager.disable,
        "environment": dict(os.environ),
    }


def change_everything():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(99)
    torch.rand(3)
    np.random.seed(99)
    random.seed(99)
    warnings.simplefilter("error")
    logging.disable(logging.CRITICAL)
    os.environ["PROBES_TEST_NEW"] = "1"
    os.environ["PATH"] = "nowhere"


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_restored_even_after_an_error(fails):
    before = process_state()
    try:
        with isolated():
            change_everything()
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert process_state() == before


def test_silenced_libraries_do_not_warn_and_the_filters_come_back():
    before = process_state()
    with warnings.catch_warnings(record=True) as seen, suppress_library_warnings():
        warnings.warn("a kernel is missing", stacklevel=1)
    assert not seen
    assert process_state() == before


def test_only_one_thread_at_a_time_changes_the_state():
    inside, most = [], []

    def work(_):
        with isolated():
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.002)
            inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert max(most) == 1


def test_a_private_generator_gives_the_values_of_a_seeded_default_one():
    def draws():
        return [
            torch.empty(40).normal_(),
            torch.empty(7).uniform_(-1, 1),
            torch.rand(5),
            torch.randn(5, dtype=torch.float64),
            torch.randint(10, (6,)),
            torch.randint(3, 10, (6,)),
            torch.randperm(9),
            torch.bernoulli(torch.full((9,), 0.5)),
            torch.rand_like(torch.zeros(4)),
        ]

    with isolated():
        torch.manual_seed(5)
        expected = draws()
    before = torch.get_rng_state()
    with seeded_init(5):
        found = draws()
        assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("seed", [-1, 2**63, 10**100])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ModelError, match=r"The seed .* is out of range: give one from 0 to"):
        random_init(wrap(tiny_hf("llama", 0), name="tiny"), seed=seed)


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_threads_give_the_random_init_weights_of_one(kind):
    model = wrap(tiny_hf(kind, 0), name=kind)
    expected = {seed: weights(random_init(model, seed=seed)) for seed in range(4)}
    start = threading.Barrier(16)

    def work(number):
        start.wait()
        return number % 4, weights(random_init(model, seed=number % 4))

    with ThreadPoolExecutor(16) as pool:
        for seed, found in pool.map(work, range(16)):
            assert torch.equal(found, expected[seed])


def test_random_init_and_load_leave_the_process_as_it_was():
    model = load("scratch")
    before = process_state()
    random_init(model, seed=3)
    load("scratch", dtype="bfloat16")
    load("random-init:scratch:3")
    # The run-time type checks of these tests draw from `random`.
    assert process_state() | {"random": None} == before | {"random": None}


def test_draws_of_another_thread_are_the_same_while_models_are_initialized():
    """The default generator is never seeded, not even for a moment."""
    model = wrap(tiny_hf("llama", 0), name="tiny")
    stop, states = threading.Event(), set()

    def watch():
        while not stop.is_set():
            states.add(tuple(torch.get_rng_state().tolist()))

    expected = tuple(torch.get_rng_state().tolist())
    watcher = threading.Thread(target=watch)
    watcher.start()
    for seed in range(5):
        random_init(model, seed=seed)
    stop.set()
    watcher.join()
    assert states == {expected}


def test_threads_that_load_in_different_formats_get_their_own():
    def work(dtype):
        return load("scratch", dtype=dtype).dtype

    formats = ["float32", "bfloat16", "float16", "float32"]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, formats)) == [getattr(torch, name) for name in formats]
    assert torch.get_default_dtype() == torch.float32
