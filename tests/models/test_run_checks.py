"""Every probe refuses models in training mode and NaN or infinite logits."""

import pytest
import torch

import probes as pb
from probes.errors import ModelError
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


def test_padding_and_masked_tokens_of_the_vocabulary_may_be_infinite():
    logits, mask = torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    logits[..., 4] = -torch.inf
    mask[1, 0] = False
    logits[1, 0] = torch.nan
    require_finite("mine", logits, mask)
    logits[1, 2, 1] = torch.inf
    with pytest.raises(ModelError, match=r"prompt 1, position 2"):
        require_finite("mine", logits, mask)
