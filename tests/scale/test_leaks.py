"""Fifty times each call: memory stays flat, and no hook, thread or open file is left."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

import probes as pb
from probes.models.files.memory import process_memory
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.scale.store import Store
from probes.stats.intervals import bootstrap_mean
from probes.testing.tiny_models import hook_count

TIMES, WARM = 50, 20
MOST_GROWTH = 12e6  # Bytes; a leaked batch of activations of these models is 0.3 MB a call.
FILES = Path("/proc/self/fd")
FOX = "If I have two foxes and I take away one, how many foxes do I have?"


pytestmark = pytest.mark.skipif(not FILES.is_dir(), reason="open files are counted on Linux")


@pytest.fixture(scope="module")
def full():
    return pb.load("distilled")


@pytest.fixture(scope="module")
def pairs(full):
    pattern = pb.pattern("take-away")
    drawn = sample_pairs(pattern, "x", 4, tokenizers=[full.tokenizer], seed=0)
    return tokenize_pairs(full.tokenizer, drawn)


CALLS = {
    "load": lambda model, pairs: pb.load("distilled"),
    "random_init": lambda model, pairs: pb.random_init(model, seed=0),
    "capture": lambda model, pairs: pb.capture(model, pairs.clean),
    "role_attention": lambda model, pairs: pb.role_attention(model, pairs.clean),
    "evaluate_behavior": lambda model, pairs: pb.evaluate_behavior(model, pairs.clean),
    "activation_patching": lambda model, pairs: pb.activation_patching(model, pairs),
    "attribution_patching": lambda model, pairs: pb.attribution_patching(model, pairs),
    "heatmap": lambda model, pairs: pb.heatmap(model, FOX),
    "quantize": lambda model, pairs: pb.quantize(model, "int4"),
    "prune": lambda model, pairs: pb.prune(model, 0.3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_nothing_behind(full, pairs, name):
    call = CALLS[name]

    def state():
        gc.collect()
        return hook_count(full), threading.active_count(), len([*FILES.iterdir()])

    for _ in range(WARM):  # Caches of libraries fill.
        call(full, pairs)
    before, memory = state(), process_memory()
    for _ in range(TIMES):
        call(full, pairs)
    assert state() == before
    assert process_memory() - memory < MOST_GROWTH


def test_a_store_leaves_no_file_open(tmp_path):
    sample, counts = np.arange(8.0), []
    for number in range(TIMES):
        with Store(tmp_path).running() as store:
            store.remember("mean", bootstrap_mean, sample, seed=number % 5)
        counts.append((threading.active_count(), len([*FILES.iterdir()])))
    assert len(set(counts[1:])) == 1
