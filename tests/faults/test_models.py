"""Models of the user: no call changes their weights or tokenizers, and none runs their code."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import probes as pb
from probes.circuits.task import Task
from probes.errors import ModelError
from probes.models.model import load, wrap
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.scale.encoding import model_digest
from probes.testing.tiny_models import tiny_hf

FOX = "If I have two foxes and I take away one, how many foxes do I have?"


@pytest.fixture(scope="module")
def model():
    return pb.load("distilled")


@pytest.fixture(scope="module")
def pairs(model):
    drawn = sample_pairs(pb.pattern("take-away"), "x", 4, tokenizers=[model.tokenizer], seed=0)
    return tokenize_pairs(model.tokenizer, drawn)


CALLS = {
    "random_init": lambda model, pairs: pb.random_init(model, seed=0),
    "capture": lambda model, pairs: pb.capture(model, pairs.clean),
    "evaluate_behavior": lambda model, pairs: pb.evaluate_behavior(model, pairs.clean),
    "activation_patching": lambda model, pairs: pb.activation_patching(model, pairs),
    "attribution_patching": lambda model, pairs: pb.attribution_patching(model, pairs),
    "edge_attribution": lambda model, pairs: pb.edge_attribution(model, Task.from_pairs(pairs)),
    "heatmap": lambda model, pairs: pb.heatmap(model, FOX),
    "quantize": lambda model, pairs: pb.quantize(model, "rtn-3"),
    "prune": lambda model, pairs: pb.prune(model, 0.3),
    "grow": lambda model, pairs: pb.grow(model, "identity", model.shape.layers + 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_changes_no_weight_of_the_model_that_is_given(name, model, pairs):
    weights = {
        name: weight.clone() for name, weight in model.bridge.original_model.state_dict().items()
    }
    digest = model_digest(model)
    CALLS[name](model, pairs)
    after = model.bridge.original_model.state_dict()
    assert weights.keys() == after.keys()
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert not model.bridge.original_model.training
    assert model_digest(pb.load("distilled")) == digest


def nameless_tokenizer():
    """Tokenizer that was built in memory: no name, no folder, no padding token."""
    words = {word: k for k, word in enumerate(["<unk>", "one", "two", "three", "is", "more"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def test_a_tokenizer_without_a_name_works_and_is_not_changed():
    tokenizer = nameless_tokenizer()
    before = (tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map)
    model = wrap(tiny_hf("llama", 0), tokenizer=tokenizer, name="mine")
    batch = tokenize(model.tokenizer, ["one is more", "two is two is three"])
    assert model.logits(batch.ids, batch.mask).isfinite().all()
    assert batch.mask.sum(1).tolist() == [3, 5]
    after = (tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map)
    assert after == before
    assert tokenizer.pad_token_id is None
    assert tokenizer.padding_side == nameless_tokenizer().padding_side


def test_a_model_may_have_more_rows_than_its_tokenizer_has_tokens():
    model = wrap(tiny_hf("llama", 0), tokenizer=nameless_tokenizer(), name="mine")
    assert model.shape.d_vocab > len(model.tokenizer)
    batch = tokenize(model.tokenizer, ["one is more"])
    assert model.logits(batch.ids, batch.mask).shape[-1] == model.shape.d_vocab
    assert model.tokenizer.decode([model.shape.d_vocab - 1]) == ""  # What a page would show.


CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class Mine(LlamaForCausalLM): pass
class MineConfig(LlamaConfig): model_type = "mine"
"""


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "marker"
    tiny_hf("llama", 0).save_pretrained(folder)
    (folder / "modeling_mine.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "architectures": ["Mine"],
        "auto_map": {
            "AutoConfig": "modeling_mine.MineConfig",
            "AutoModelForCausalLM": "modeling_mine.Mine",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as refused:
        load(folder)
    assert "\n" not in str(refused.value)
    assert not marker.exists()
