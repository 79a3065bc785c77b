"""Lineage of models that others published: the parent, and which meaning of "distilled" applies.

A student is distilled in one of two senses: its logits were matched with the teacher's (Hinton et
al. 2015, 1503.02531), or it was fine-tuned on text that the teacher wrote (DeepSeek-AI 2025,
2501.12948), where the parent is another model than the teacher.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from probes.files import data_folder
from probes.models.files.provenance import Provenance, folder_storage

_TABLE = "lineage.toml"
_RELATIONS = {"quantized": "quantized", "finetune": "tuned", "adapter": "tuned", "merge": "merged"}
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)")


def known_lineage() -> dict[str, Mapping[str, str]]:
    """Facts of well-known models by hub id: "kind", "parent", "teacher", "method"."""
    content = tomllib.loads((data_folder() / _TABLE).read_text(encoding="utf-8"))
    facts = {}
    for entry in content["models"]:
        names = [entry["name"], *entry.get("aliases", ())]
        own = {key: entry.get(key, "") for key in ("kind", "parent", "teacher", "method")}
        for size in entry.get("sizes", [""]):
            row = {key: text.replace("{}", size) for key, text in own.items()}
            facts |= {name.replace("{}", size): row for name in names}
    return facts


def find_lineage(names: Iterable[str]) -> tuple[str, Mapping[str, str]] | None:
    """Hub id and facts of the first name that is known, whole or without its owner."""
    table = {}
    for hub_id, facts in known_lineage().items():
        for key in (hub_id, hub_id.rpartition("/")[2]):
            table[_plain(key)] = (hub_id, facts)
    return next((table[_plain(name)] for name in names if _plain(name) in table), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9./]+", "-", name.lower().partition("@")[0])


def published_provenance(hub_id: str, folder: Path) -> Provenance | None:
    """Provenance of a fetched hub id by the table, its card and packed weights; None without."""
    read = card_provenance(folder)
    if found := find_lineage([hub_id]):
        return replace(read, **found[1])
    return read if read.parent or read.states_storage else None


def card_provenance(folder: Path) -> Provenance:
    """Provenance of a folder that has no provenance file: by its name, its config and its card."""
    storage, is_packed = folder_storage(folder)
    own = Provenance("trained", "", storage, states_storage=is_packed)
    # The name of a folder that the hub's cache holds is a commit.
    cached = [f"{owner}/{name}" for owner, name in _SNAPSHOT.findall(str(folder.resolve()))]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stated = [str(config.get("_name_or_path", ""))] if isinstance(config, dict) else []
    if found := find_lineage([*cached, folder.resolve().name, *stated]):
        return replace(own, **found[1])
    card = _card_fields(folder)
    bases = card.get("base_model")
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        return own
    relation = str(card.get("base_model_relation", ""))
    return replace(own, kind=_RELATIONS.get(relation, "trained"), parent=", ".join(bases))


def _card_fields(folder: Path) -> Mapping[str, Any]:
    """Fields at the head of a model card; none where it has none that can be read."""
    import yaml

    card = folder / "README.md"
    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        fields = yaml.safe_load(parts[1])
    except yaml.YAMLError:  # A card is prose: it must not keep the weights from loading.
        return {}
    return fields if isinstance(fields, dict) else {}


def describe_lineage(provenance: Provenance | None) -> str:
    """How a model was made and from what, in words; "" where it is not known."""
    if provenance is None or not provenance.parent:
        return ""
    kind = {"tuned": "fine-tuned"}.get(provenance.kind, provenance.kind)
    line = f"{kind} from {provenance.parent}"
    if method := provenance.method or _distillation_method(provenance):
        line += f": {method}"
        if provenance.teacher not in ("", provenance.parent):
            line += f" ({provenance.teacher})"
    if further := find_lineage([provenance.parent]):
        parent = replace(provenance, settings={}, **further[1])
        line += f"; {provenance.parent} is {describe_lineage(parent)}"
    return line


def _distillation_method(provenance: Provenance) -> str:
    """Which meaning of "distilled" the settings of a student of this kit give."""
    if provenance.kind != "distilled":
        return ""
    settings = provenance.settings
    # A recipe without labels has soft ones if it names a teacher.
    default = "soft" if settings.get("teacher") else "hard"
    labels = str(settings.get("labels") or default).partition(":")[0]
    if labels not in ("hard", "smoothed"):
        return "permuted logits matched" if labels == "permuted" else "logits matched"
    if settings.get("own_text"):
        return "fine-tuned on the teacher's text"
    return "trained on the tokens of other text"
