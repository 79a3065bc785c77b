"""Every probe refuses models in training mode and NaN or infinite logits."""

import pytest
import torch

import probes as pb
from probes.circuits.task import TaskSettings, sample_tasks
from probes.errors import ModelError
from probes.interventions.hotspots.measure import HotspotSettings, hotspots
from probes.models.run_checks import require_finite

PATTERN = pb.pattern("take-away")
TEXT = "Tom has 5 foxes."


def pairs(model):
    return pb.tokenize_pairs(model.tokenizer, PATTERN.sample_pairs("operation", 4, seed=0))


PROBES = {
    "logits": lambda m: m.logits(torch.tensor([[4, 5]]), torch.ones(1, 2, dtype=torch.bool)),
    "generate": lambda m: m.generate(TEXT, max_new_tokens=1),
    "gate": lambda m: pb.gate(m, PATTERN, prompts=8),
    "activation_patching": lambda m: pb.activation_patching(m, pairs(m), roles=["op"]),
    "heatmap": lambda m: pb.heatmap(m, TEXT),
    "heatmap of roles": lambda m: pb.heatmap(m, PATTERN.sample_questions(1, seed=0)[0]),
    "capture": lambda m: pb.capture(m, TEXT),
    "logit_lens": lambda m: pb.logit_lens(m, pairs(m).clean),
}


@pytest.fixture
def model():
    return pb.load("scratch")


@pytest.mark.parametrize("probe", PROBES)
def test_a_model_in_training_mode_is_refused(probe, model):
    model.bridge.blocks[1].attn.train()
    with pytest.raises(ModelError, match=r"scratch is in training mode.* call eval\(\) on it"):
        PROBES[probe](model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("probe", PROBES)
def test_weights_that_became_nan_or_infinite_after_loading_are_refused(probe, value, model):
    with torch.no_grad():
        next(model.bridge.blocks[1].mlp.parameters()).fill_(value)
    with pytest.raises(ModelError, match="scratch gives NaN or infinite logits"):
        PROBES[probe](model)


def test_an_edit_that_gives_nan_is_refused(model):
    with (
        model.editing({"L0.MLP": lambda value: value * torch.nan}),
        pytest.raises(ModelError, match="check its weights and the edits"),
    ):
        PROBES["gate"](model)


MEASUREMENTS = {
    "activation_patching": PROBES["activation_patching"],
    "hotspots": lambda m: hotspots(m, PATTERN, HotspotSettings(bases=16)),
    "edge_attribution": lambda m: pb.edge_attribution(m, tasks(m)),
    "run_circuits": lambda m: pb.edge_patching(m, tasks(m), edges=[]),
    "compare": lambda m: pb.compare(m, "distilled", PATTERN),
    "compare as a relative": lambda m: pb.compare("distilled", m, PATTERN),
}


def tasks(model):
    return sample_tasks(model, PATTERN, TaskSettings(prompts=4))[0]


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_of_a_model_that_is_being_edited_is_refused(name, model):
    """Its result would name the model and not the edit."""
    with (
        model.editing({"L0.MLP": torch.zeros_like}),
        pytest.raises(ModelError, match=r"scratch has edits of 'L0.MLP' in effect.* outside of"),
    ):
        MEASUREMENTS[name](model)
    assert model.active_edits == []
    assert len(pb.activation_patching(model, pairs(model), roles=["op"]).roles) == 1


def test_nested_edits_and_recordings_leave_no_trace_of_themselves(model):
    with model.editing({"L0.MLP": torch.zeros_like}):
        with pytest.raises(KeyError), model.editing({"L1.H0": torch.zeros_like, "L1.H1": id}):
            assert model.active_edits == ["L0.MLP", "L1.H0", "L1.H1"]
            raise KeyError
        assert model.active_edits == ["L0.MLP"]
    with model.editing({}), model.recording(["L0.MLP"]):
        assert model.active_edits == []
    assert model.generate(TEXT, max_new_tokens=1)


def test_padding_and_masked_tokens_of_the_vocabulary_may_be_infinite():
    logits, mask = torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    logits[..., 4] = -torch.inf
    mask[1, 0] = False
    logits[1, 0] = torch.nan
    require_finite("mine", logits, mask)
    logits[1, 2, 1] = torch.inf
    with pytest.raises(ModelError, match=r"prompt 1, position 2"):
        require_finite("mine", logits, mask)
