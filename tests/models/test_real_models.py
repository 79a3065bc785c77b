"""Pretrained models, where the machine has them: `PROBES_REAL_MODELS=FOLDER pytest -m real`."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import probes as pb

pytestmark = pytest.mark.real


def test_logits_of_a_pretrained_model_are_those_of_transformers(real_folder, real_model):
    text = "When Mary and John went to the store, John gave a drink to"
    batch = pb.tokenize(real_model("smollm2"), text)
    ours = real_model("smollm2").logits(batch.ids, batch.mask)
    theirs = AutoModelForCausalLM.from_pretrained(
        real_folder("smollm2"), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = theirs(batch.ids, attention_mask=batch.mask.long()).logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert real_model("smollm2").tokenizer.decode(int(ours[0, -1].argmax())) == " Mary"
