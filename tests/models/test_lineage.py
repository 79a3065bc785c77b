"""How models were made, and which meaning of "distilled" applies: by name, card and recipe."""

import json

import pytest

from probes.comparison.measurements import model_facts
from probes.models.files import names
from probes.models.files.lineage import describe_lineage, find_lineage, known_lineage
from probes.models.files.provenance import Provenance, StorageCost
from probes.models.model import load
from probes.testing.tiny_models import tiny_hf

TEXT, LOGITS = "fine-tuned on the teacher's text", "logits matched"


@pytest.mark.parametrize(
    ("name", "parent", "method"),
    [
        ("distilgpt2", "openai-community/gpt2", LOGITS),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "meta-llama/Llama-3.1-8B", TEXT),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "Qwen/Qwen2.5-Math-1.5B", TEXT),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "Qwen/Qwen2.5-Math-7B", TEXT),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B@main", "Qwen/Qwen2.5-14B", TEXT),
        ("DeepSeek R1 Distill Qwen 14B", "Qwen/Qwen2.5-14B", TEXT),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B", f"pruned, then {LOGITS}"),
        ("Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B", ""),
    ],
)
def test_well_known_models_are_known_by_name(name, parent, method):
    _, facts = find_lineage([name])
    assert (facts["parent"], facts["method"]) == (parent, method)


def test_each_entry_of_the_table_says_what_it_is_and_no_name_is_left_open():
    assert find_lineage(["owner/my-own-model", ""]) is None
    for name, facts in known_lineage().items():
        assert facts["kind"] in ("distilled", "tuned")
        assert facts["parent"]
        assert bool(facts["method"]) == bool(facts["teacher"]) == (facts["kind"] == "distilled")
        assert "{" not in name + "".join(facts.values())


def saved(folder, card="", **config):
    tiny_hf("llama", seed=0).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if card:
        (folder / "README.md").write_text(card)
    return folder


def lineage(folder):
    return model_facts(load(folder)).lineage


def test_a_folder_is_known_by_its_name_its_config_or_the_cache_of_the_hub(tmp_path):
    r1 = f"distilled from meta-llama/Llama-3.1-8B: {TEXT} (deepseek-ai/DeepSeek-R1)"
    assert lineage(saved(tmp_path / "DeepSeek-R1-Distill-Llama-8B")) == r1
    assert lineage(saved(tmp_path / "cached" / "models--distilbert--distilgpt2" / "abc")) == (
        f"distilled from openai-community/gpt2: {LOGITS}"
    )
    assert lineage(saved(tmp_path / "own", _name_or_path="Qwen/Qwen2.5-3B-Instruct")) == (
        "fine-tuned from Qwen/Qwen2.5-3B"
    )
    assert lineage(saved(tmp_path / "other")) == ""


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("base_model: me/fox\nbase_model_relation: quantized", "quantized from me/fox"),
        ("base_model:\n- me/fox\nbase_model_relation: finetune", "fine-tuned from me/fox"),
        ("base_model: [me/fox, me/box]\nbase_model_relation: merge", "merged from me/fox, me/box"),
        ("base_model: me/fox", "trained from me/fox"),
        ("base_model: 3", ""),
        ("base_model: [", ""),
        ("- base_model", ""),
    ],
)
def test_a_model_card_tells_the_parent_and_a_broken_one_nothing(fields, expected, tmp_path):
    assert lineage(saved(tmp_path / "own", f"---\n{fields}\n---\n# A model")) == expected


def test_the_lineage_of_a_quantized_model_goes_on_with_its_parent(tmp_path):
    card = "base_model: deepseek-ai/DeepSeek-R1-Distill-Qwen-7B\nbase_model_relation: quantized"
    assert lineage(saved(tmp_path / "own", f"---\n{card}\n---\n")) == (
        "quantized from deepseek-ai/DeepSeek-R1-Distill-Qwen-7B; "
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B is distilled from Qwen/Qwen2.5-Math-7B: "
        f"{TEXT} (deepseek-ai/DeepSeek-R1); Qwen/Qwen2.5-Math-7B is fine-tuned from "
        "Qwen/Qwen2.5-7B"
    )


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"labels": "", "teacher": "full"}, LOGITS),
        ({"labels": "top-k:8"}, LOGITS),
        ({"labels": "hard", "own_text": True}, TEXT),
        ({"labels": "hard"}, "trained on the tokens of other text"),
        ({"labels": "permuted"}, "permuted logits matched"),
    ],
)
def test_the_meaning_of_distilled_follows_from_the_recipe(settings, method):
    made = Provenance("distilled", "full", StorageCost(1.0, 1.0, 1.0), settings)
    assert describe_lineage(made) == f"distilled from full: {method}"


def test_a_name_is_given_before_the_place_and_folders_called_hf_are_named_by_their_parent(tmp_path):
    folder = saved(tmp_path / "fox" / "hf")
    assert load(folder).name == "fox"
    assert load(f"mine={folder}").name == "mine"
    assert load(folder, name="mine").name == "mine"
    assert load(f"null=random-init:{folder}:3").name == "null"
    assert load(load(folder), name="again").name == "again"
    assert load(saved(tmp_path / "a=b")).name == "a=b"


def test_a_revision_of_a_hub_id_is_fetched_and_stands_in_the_name(tmp_path, monkeypatch):
    folder, asked = saved(tmp_path / "fetched"), []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda source, **how: asked.append((source, how["revision"])) or str(folder),
    )
    monkeypatch.setattr(names, "list_models", lambda: ())
    assert load("owner/name@v1").name == "name@v1"
    assert load("owner/name", revision="refs/pr/2").origin == "hub owner/name@refs/pr/2"
    assert load("distilbert/distilgpt2").provenance.method == LOGITS
    assert set(asked) == {
        ("owner/name", "v1"), ("owner/name", "refs/pr/2"), ("distilbert/distilgpt2", None)
    }  # fmt: skip


def test_a_folder_without_a_model_says_what_it_holds(tmp_path):
    saved(tmp_path / "hf")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(Exception, match=r"neither config.json nor a GGUF file, but hf, notes\.txt"):
        load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match="but nothing: give the folder of a saved model"):
        load(tmp_path / "empty")
