"""Provenance files."""

import json

import pytest

from probes.errors import ModelError
from probes.models.provenance import (
    PROVENANCE_FILE,
    Provenance,
    StorageCost,
    read_provenance,
    write_provenance,
)


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
