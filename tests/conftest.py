"""What several test files share: tokenizers, and one thread, as the tests run beside training."""

import gc
import json
import os
import string
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from probes import load
from probes.circuits import trace_plan
from probes.claims import plan as claims_plan
from probes.comparison.rate_distortion import plan as curve_plan
from probes.comparison.setup import plan as comparison_plan
from probes.compression import plan as training_plan
from probes.experiments.family.tokenizer import train_tokenizer
from probes.models.pass_costs import seconds_per_prompt
from probes.prompts.tokens.once import tokenize_once

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish():
    """Keep modules out of garbage collection, which takes half a second with them.

    Each pass that runs out of memory collects once, and many tests let passes run out.
    """
    import transformer_lens.model_bridge.sources._bridge_builder  # noqa: F401 (later it is not kept out)

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def quick_plans():
    """Plans time a few passes only, and the tests of a file tokenize each prompt once."""
    plans = (curve_plan, comparison_plan, claims_plan, trace_plan)
    quick = partial(seconds_per_prompt, limit=0.05)
    with pytest.MonkeyPatch.context() as patch, tokenize_once():
        for plan in plans:
            patch.setattr(plan, "seconds_per_prompt", quick)
        patch.setattr(training_plan, "_SECONDS", 0.1)
        yield


@pytest.fixture(scope="session")
def own():
    """The family's tokenizer, from less text: the words that split still do."""
    return train_tokenizer(seed=0, count=400)


@pytest.fixture(scope="session")
def letters():
    """One token for each character, spaces too; neither a start token nor one to pad with."""
    vocab = {letter: index for index, letter in enumerate(["<unk>", *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def _gpt2():
    folder = SHARED / "tokenizers" / "gpt2"
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    return GPT2TokenizerFast(
        vocab=json.loads((folder / "vocab.json").read_text(encoding="utf-8")),
        merges=[tuple(line.split()) for line in lines if line],
    )


def _pythia():
    path = SHARED / "tokenizers" / "pythia_20B" / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(path))


SHARED_TOKENIZERS = {
    "gpt2": _gpt2,
    "pythia": _pythia,
    "stories": lambda: AutoTokenizer.from_pretrained(SHARED / "stories260K"),
}


@pytest.fixture(scope="session")
def shared_data():
    """A path inside the shared folder, or a skip where there is none."""

    def find(*parts):
        path = SHARED.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"no shared data at {path}")
        return path

    return find


@pytest.fixture(scope="session")
def shared_tokenizer(shared_data):
    """Read a tokenizer of the shared folder by its name, or skip where there is none."""
    kept = {}

    def read(name):
        shared_data("tokenizers")
        if name not in kept:
            kept[name] = SHARED_TOKENIZERS[name]()
        return kept[name]

    return read


@pytest.fixture(scope="session", params=["own", "letters", *SHARED_TOKENIZERS])
def tokenizer(request):
    """Each kind of tokenizer in turn: offsets with the space, without it, a space of its own."""
    if request.param in ("own", "letters"):
        return request.getfixturevalue(request.param)
    return request.getfixturevalue("shared_tokenizer")(request.param)


@pytest.fixture(scope="session")
def real_folder():
    """Folder of a pretrained model by its name, or a skip where the machine has none.

    Tests that use it are marked `real`.
    """

    def find(name):
        parent = os.environ.get("PROBES_REAL_MODELS")
        if not parent:
            pytest.skip("PROBES_REAL_MODELS names no folder with pretrained models")
        folder = Path(parent) / name
        if not (folder / "config.json").is_file():
            pytest.skip(f"no pretrained model at {folder}")
        return folder

    return find


@pytest.fixture(scope="session")
def real_model(real_folder):
    """A pretrained model by its name, loaded once, or a skip where the machine has none."""
    kept = {}

    def read(name):
        folder = real_folder(name)
        if name not in kept:
            kept[name] = load(folder)
        return kept[name]

    return read
