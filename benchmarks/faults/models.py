"""Odd folders and names of models."""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import probes as pb
from benchmarks.faults.trial import OddInput
from probes.errors import ModelError
from probes.models.model import Model, load, wrap
from probes.prompts.tokens.batch import tokenize
from probes.testing.tiny_models import tiny_hf

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"
TEXT = "Tom has 2 foxes."

Change = Callable[[Path], object]


@cache
def original() -> Path:
    """Folder of a small model with the tokenizer of the shipped models."""
    tokenizer = pb.load("full").tokenizer
    folder = Path(tempfile.mkdtemp())
    hf_model = tiny_hf("llama", 0, vocab_size=len(tokenizer), max_position_embeddings=128)
    hf_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path, change: Change, name: str = "small") -> Model:
    """Model of a changed copy of the folder."""
    copy = folder / name
    shutil.copytree(original(), copy)
    change(copy)
    return load(copy)


def same(model: object) -> bool:
    """Whether a model gives the logits of the small one."""
    assert isinstance(model, Model)
    batch = tokenize(model, TEXT)
    reference = load(original())
    gap = model.logits(batch.ids, batch.mask) - reference.logits(batch.ids, batch.mask)
    return bool(gap.abs().max() < 0.1)  # In bfloat16.


def config(**settings: object) -> Change:
    """Change settings of config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def weights(change_tensors: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change tensors of the weights."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change_tensors(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def file(name: str, content: str | bytes) -> Change:
    """Write a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def truncated(size: int) -> Change:
    """Cut the weights to a number of bytes, counted from the end if negative."""
    return lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:size])


def index(target: str | None, content: str = "") -> Change:
    """Turn the weights into one shard with an index that points to a file."""

    def change(folder: Path) -> None:
        keys = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        map_ = {"metadata": {}, "weight_map": dict.fromkeys(keys, target)}
        (folder / INDEX).write_text(content or json.dumps(map_))

    return change


def replaced(name: str, by: str) -> Change:
    """Put a folder, a symlink to itself, or nothing in place of a file."""

    def change(folder: Path) -> None:
        path = folder / name
        path.unlink()
        if by == "a folder":
            path.mkdir()
        elif by == "a symlink loop":
            path.symlink_to(path)

    return change


REFUSED: dict[str, Change] = {
    "a missing weight": weights(lambda w: w.pop(UP)),
    "an unexpected weight": weights(lambda w: w.update(extra=torch.ones(2))),
    "a NaN weight": weights(lambda w: w[UP].view(-1)[0].fill_(torch.nan)),
    "an infinite weight": weights(lambda w: w[UP].view(-1)[0].fill_(torch.inf)),
    "a weight of other sizes": weights(lambda w: w.update({UP: torch.ones(2, 2)})),
    "a transposed weight": weights(lambda w: w.update({UP: w[UP].T.contiguous()})),
    "two weights files": lambda f: shutil.copy(f / WEIGHTS, f / "consolidated.safetensors"),
    "weights of 0 bytes": truncated(0),
    "weights of 8 bytes": truncated(8),
    "half of the weights": truncated(20_000),
    "weights without the last byte": truncated(-1),
    "weights with a huge header": file(WEIGHTS, b"\xff" * 64),
    "weights that are an HTML page": file(WEIGHTS, "<html>404</html>"),
    "weights that are a Git LFS pointer": file(
        WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    "pickled weights": lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
    "an index to a .bin": index("pytorch_model.bin"),
    "an index to ..": index("../small.safetensors"),
    "an index to an absolute path": index("/tmp/small.safetensors"),
    "an index to a missing shard": index("model-00002-of-00002.safetensors"),
    "an index of null": index(None),
    "an index that is a list": index("", "[]"),
    "an index without a map": index("", "{}"),
    "an index that is no JSON": index("", "{"),
    "an index beside one file": file(INDEX, '{"metadata": {}, "weight_map": {}}'),
    "an adapter beside the weights": file("adapter_config.json", "{}"),
    "a config with fewer layers": config(num_hidden_layers=2),
    "a config with more layers": config(num_hidden_layers=4),
    "a config with -1 layers": config(num_hidden_layers=-1),
    "a config with 0 heads": config(num_attention_heads=0),
    "a config with heads that do not divide": config(num_attention_heads=5),
    "a config with another width": config(hidden_size=64),
    "a config with a vocabulary of 0": config(vocab_size=0),
    "a config with a smaller vocabulary": config(vocab_size=100),
    "a config with words for numbers": config(num_hidden_layers="three"),
    "a config with an unknown activation": config(hidden_act="magic"),
    "a config with an unknown rope": config(rope_parameters={"rope_type": "spiral"}),
    "a config of no known type": config(model_type="nobody"),
    "a config of an encoder": config(model_type="bert"),
    "a config of an encoder and a decoder": config(model_type="t5"),
    "a config with remote code": config(model_type="x", auto_map={"AutoModelForCausalLM": "m.M"}),
    "a GPTQ config": config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "an AWQ config": config(quantization_config={"quant_method": "awq", "bits": 4}),
    "a quantization config that is a number": config(quantization_config=4),
    "an empty config": file("config.json", ""),
    "a config that is a list": file("config.json", "[]"),
    "a config of 100,000 brackets": file("config.json", "[" * 100_000),
    "a config in Latin-1": file("config.json", b'{"a": "\xe9"}'),
    "a config with a number of 5,000 digits": file("config.json", f'{{"a": {"1" * 5000}}}'),
    "a tokenizer of 0 bytes": file("tokenizer.json", ""),
    "a tokenizer that is a list": file("tokenizer.json", "[1]"),
    "a tokenizer that is cut off": lambda f: file(
        "tokenizer.json", (f / "tokenizer.json").read_bytes()[:5000]
    )(f),
    "a tokenizer config that is a list": file("tokenizer_config.json", "[1]"),
    "a provenance that is a list": file("relative.json", "[1]"),
    "a provenance of 100,000 brackets": file("relative.json", "[" * 100_000),
    "a provenance without storage": file("relative.json", '{"kind": "trained"}'),
    "a folder in place of the config": replaced("config.json", "a folder"),
    "a folder in place of the weights": replaced(WEIGHTS, "a folder"),
    "a symlink loop in place of the config": replaced("config.json", "a symlink loop"),
    "a symlink loop in place of the weights": replaced(WEIGHTS, "a symlink loop"),
    "no config": replaced("config.json", "nothing"),
    "no weights": replaced(WEIGHTS, "nothing"),
}
LOADED: dict[str, Change] = {
    "hidden files of a Mac": file("._model.safetensors", b"fork"),
    "a second file of other kind": file("onnx.txt", "x"),
    "weights in bfloat16": weights(lambda w: w.update({k: v.bfloat16() for k, v in w.items()})),
    "weights in float64": weights(lambda w: w.update({k: v.double() for k, v in w.items()})),
    "a config with a byte of padding": lambda f: file(
        "config.json", b" \n" + (f / "config.json").read_bytes()
    )(f),
    "a pad token outside of the vocabulary": config(pad_token_id=9999),
    "a sharded folder": index("model-00001-of-00001.safetensors"),
}
NAMES = {
    "an empty name": "",
    "a misspelt name": "ful",
    "a folder without a model": ".",
    "the root folder": "/",
    "a null in the name": "a\0b",
    "a name of 5,000 letters": "a" * 5000,
    "a name with a newline": "full\n",
    "a lone surrogate in the name": "\udcff",
    "a random-init model of nothing": "random-init:",
    "a random-init model of an unknown one": "random-init:ful:3",
    "a random-init model of seed -1": "random-init:full:-1",
    "a random-init model of seed 1.5": "random-init:full:1.5",
    "a random-init model of a huge seed": "random-init:full:" + "9" * 30,
    "a random-init model of a seed of 5,000 digits": "random-init:full:" + "9" * 5000,
    "a URL": "https://huggingface.co/gpt2",
    "a path above": "../full",
}


def _vocabulary_too_small() -> object:
    tokenizer = pb.load("full").tokenizer
    model = wrap(tiny_hf("llama", 0, vocab_size=20), name="small", tokenizer=tokenizer)
    batch = tokenize(tokenizer, TEXT)
    return model.logits(batch.ids, batch.mask)


def inputs() -> list[OddInput]:
    """All odd models."""
    found = [
        OddInput(f"model: {name}", lambda f, c=change: loaded(f, c), ModelError)
        for name, change in REFUSED.items()
    ]
    found += [
        OddInput(f"model: {name}", lambda f, c=change: loaded(f, c), check=same)
        for name, change in LOADED.items()
    ]
    found += [
        OddInput(f"model: a folder named {name!r}", lambda f, n=name: loaded(f, id, n), check=same)
        for name in ("with a space", "näme", "模型", "a.b")
    ]
    found += [
        OddInput(
            "model: integer weights",
            lambda f: loaded(f, weights(lambda w: w.update({UP: (w[UP] * 10).to(torch.int8)}))),
            ModelError,
        ),
        OddInput("model: an empty folder", load, ModelError),
        OddInput("model: a file", lambda f: load(original() / "config.json"), ModelError),
        OddInput("model: a hidden folder", lambda f: loaded(f, id, ".small"), ModelError),
        OddInput("model: a vocabulary too small", lambda _: _vocabulary_too_small(), ModelError),
        OddInput("model: a symlink to a folder", _linked, check=same),
        OddInput("model: an unknown dtype", lambda _: load("full", dtype="float8"), ModelError),
        OddInput("model: an unknown device", lambda _: load("full", device="gpu"), ModelError),
        OddInput(
            "model: a device that is absent", lambda _: load("full", device="cuda:99"), ModelError
        ),
        OddInput("model: an adapter that is absent", lambda f: load("full", adapter=f), ModelError),
    ]
    found += [
        OddInput(f"model: {name}", lambda _, n=text: load(n), ModelError)
        for name, text in NAMES.items()
    ]
    return found


def _linked(folder: Path) -> Model:
    (folder / "link").symlink_to(original())
    return load(folder / "link")
