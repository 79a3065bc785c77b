"""Provenance files, and the hashes of files in them."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from probes import files
from probes.cli.app import app
from probes.compression.derived_model import load_parent
from probes.compression.pruning.prune import prune
from probes.compression.storage import measure_rate
from probes.errors import ModelError
from probes.files import data_folder, list_models
from probes.models.files import loading, names
from probes.models.files.provenance import (
    PROVENANCE_FILE,
    Provenance,
    StorageCost,
    changed_files,
    folder_storage,
    read_provenance,
    recorded_hashes,
    write_provenance,
)
from probes.models.model import load, wrap
from probes.testing.tiny_models import tiny_hf


def test_comparison_models_are_one_name_or_a_list(tmp_path):
    cost = StorageCost(1.0, 2.0, 3.0)
    write_provenance(
        Provenance("trained", "", cost, other_seed="full-b", negative_control=["copying", "base"]),
        tmp_path,
    )
    content = read_provenance(tmp_path)
    assert content.other_seeds == ("full-b",)
    assert (content.controls, content.negative_controls) == ((), ("copying", "base"))


def test_a_name_that_is_no_text_is_refused(tmp_path):
    write_provenance(Provenance("trained", "", StorageCost(1.0, 2.0, 3.0)), tmp_path)
    path = tmp_path / PROVENANCE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"control": [3]}))
    with pytest.raises(ModelError, match="not a provenance file"):
        read_provenance(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 100_000, '{"sha256": 3}', '{"sha256": {"../x": ""}}']
)
def test_a_provenance_file_without_usable_hashes_is_refused(content, tmp_path):
    (tmp_path / PROVENANCE_FILE).write_text(content)
    with pytest.raises(ModelError, match="not a provenance file") as caught:
        recorded_hashes(tmp_path)
    assert "\n" not in str(caught.value)


def flip_bit(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def verify(*folders):
    done = CliRunner().invoke(app, ["verify", *map(str, folders)])
    return done.exit_code, done.stdout.splitlines()


@pytest.mark.parametrize("name", list_models())
def test_each_shipped_model_records_the_hashes_that_its_files_have(name):
    folder = data_folder() / "models" / name
    hashes = recorded_hashes(folder)
    assert set(hashes) == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    for file, recorded in hashes.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == recorded
    assert verify(name) == (0, [f"{name}: 4 files have their recorded SHA-256"])


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_shipped_model_with_a_flipped_bit_is_not_loaded(file, tmp_path, monkeypatch):
    folder = tmp_path / "models" / "scratch"
    shutil.copytree(data_folder() / "models" / "scratch", folder)
    for module in (loading, names, files):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    assert load("scratch").name == "scratch"
    flip_bit(folder / file, -100)
    for name in ("scratch", folder):
        for read in (load, load_parent):
            with pytest.raises(ModelError, match=rf"changed or damaged: {file} does not have"):
                read(name)


def test_a_flipped_bit_of_a_saved_model_is_found_in_the_file_that_has_it(tmp_path):
    saved = load_parent("scratch").save(tmp_path / "mine")
    assert verify(saved) == (0, [f"{saved}: 4 files have their recorded SHA-256"])
    weights = saved / "model.safetensors"
    for at in (0, 9, weights.stat().st_size // 2, -1):
        flip_bit(weights, at)
        assert changed_files(saved) == (weights.name,)
        flip_bit(weights, at)
    assert changed_files(saved) == ()
    flip_bit(weights, -1)
    (saved / "tokenizer_config.json").unlink()
    changed = (
        f"{saved}: model.safetensors, tokenizer_config.json changed: make or fetch the model again"
    )
    assert verify(saved, "full") == (5, [changed, "full: 4 files have their recorded SHA-256"])
    # Made from changed files, a copy records what it holds itself.
    assert verify(load_parent(saved).save(tmp_path / "copy"))[0] == 0


def test_a_folder_without_hashes_says_so_and_does_not_pass(tmp_path):
    saved = load_parent("scratch").save(tmp_path / "mine")
    (saved / PROVENANCE_FILE).unlink()
    line = f"{saved}: no SHA-256 is recorded in relative.json, so nothing was compared"
    assert verify(saved, "full")[0] == 4
    assert verify(saved) == (4, [line])
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "none")]).exit_code == 1


def test_a_file_that_was_added_later_counts_as_changed(tmp_path):
    saved = load_parent("scratch").save(tmp_path / "mine")
    shutil.copy(saved / "model.safetensors", saved / "model-00001-of-00002.safetensors")
    (saved / "README.md").write_text("Notes are no part of a model.")
    assert changed_files(saved) == ("model-00001-of-00002.safetensors",)
    assert verify(saved)[0] == 5


def test_an_empty_record_of_hashes_says_that_nothing_was_compared(tmp_path):
    saved = load_parent("scratch").save(tmp_path / "mine")
    content = json.loads((saved / PROVENANCE_FILE).read_text()) | {"sha256": {}}
    (saved / PROVENANCE_FILE).write_text(json.dumps(content))
    assert changed_files(saved) is None
    line = f"{saved}: no SHA-256 is recorded in relative.json, so nothing was compared"
    assert verify(saved) == (4, [line])


def save_as(dtype, folder, **more):
    """A tiny model whose matrices of the layers have a number format, as a folder of its files."""
    tiny_hf("llama", seed=0).save_pretrained(folder)
    path = folder / "model.safetensors"
    weights = {
        name: weight.to(dtype) if "proj" in name else weight
        for name, weight in load_file(path).items()
    }
    save_file(weights | more, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plain_floats_count_16_bits_in_whatever_width_they_were_saved(dtype, tmp_path):
    folder = save_as(dtype, tmp_path)
    wrapped = measure_rate(wrap(tiny_hf("llama", seed=0), name="it"))
    assert measure_rate(load(folder)) == wrapped and not wrapped.is_recorded
    assert load_parent(folder).provenance.storage == wrapped.storage
    # Pruning nothing saves nothing.
    assert prune(folder, 0.0).provenance.storage == wrapped.storage


def test_storage_that_was_not_recorded_stays_so_in_a_copy(tmp_path):
    copied = load_parent(save_as(torch.float32, tmp_path / "own")).save(tmp_path / "copy")
    assert not measure_rate(load(copied)).is_recorded
    made = prune(tmp_path / "own", 0.5)
    assert measure_rate(load(made.save(tmp_path / "pruned"))).is_recorded


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_counts_8_bits(dtype, tmp_path):
    storage, is_packed = folder_storage(save_as(dtype, tmp_path))
    plain = measure_rate(wrap(tiny_hf("llama", seed=0), name="it")).storage
    assert (storage.weights, storage.embeddings) == (plain.weights / 2, plain.embeddings)
    assert is_packed


def test_a_causal_mask_in_the_files_takes_no_storage(tmp_path):
    mask = {"model.layers.0.attn.bias": torch.ones(1, 1, 48, 48, dtype=torch.bool)}
    storage, is_packed = folder_storage(save_as(torch.float32, tmp_path, **mask))
    assert storage == measure_rate(wrap(tiny_hf("llama", seed=0), name="it")).storage
    assert not is_packed


def test_a_number_format_of_unknown_width_is_named(tmp_path):
    folder = save_as(torch.complex64, tmp_path)
    with pytest.raises(ModelError, match=r"stores model\.layers\S+ as C64, whose bits") as caught:
        folder_storage(folder)
    assert "\n" not in str(caught.value)
