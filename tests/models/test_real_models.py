"""Pretrained models, where the machine has them: `PROBES_REAL_MODELS=FOLDER pytest -m real`."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import probes as pb
from probes.interventions.activation_patching import patch_sites, run_with_cache
from probes.models.site import Site

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


def test_a_patch_of_qwen_that_restarts_equals_a_hook_on_transformers(
    real_folder, real_model, recwarn
):
    """One head's output at the second subject, from the counterfactual into the clean prompt."""
    model, layer, head = real_model("qwen"), 13, 2
    texts = (
        f"When Mary and John went to the store, {name} gave a ring to" for name in ("John", "Mary")
    )
    ids, other = (torch.tensor([model.tokenizer(text).input_ids]) for text in texts)
    mask, end = torch.ones_like(ids, dtype=torch.bool), torch.tensor([[ids.shape[1] - 1]])
    clean, source = (run_with_cache(model, each, mask, end) for each in (ids, other))
    role = {"subject": ids != other}
    found = patch_sites(
        clean, source, [Site(layer, head, "subject")], role, lambda logits, _: logits
    )
    assert clean._block_caches and not recwarn.list
    theirs = AutoModelForCausalLM.from_pretrained(
        real_folder("qwen"), dtype=torch.float32, attn_implementation="eager"
    )
    attention, kept = theirs.model.layers[layer].self_attn.o_proj, []
    own = slice(head * model.shape.d_head, (head + 1) * model.shape.d_head)

    def put(_module, args):
        z = args[0].clone()
        kept.append(z)
        if len(kept) == 2:
            z[..., own] = torch.where(role["subject"][..., None], kept[0][..., own], z[..., own])
        return (z,)

    handle = attention.register_forward_pre_hook(put)
    with torch.no_grad():
        theirs(other, use_cache=False)
        expected = theirs(ids, use_cache=False).logits[:, -1]
    handle.remove()
    torch.testing.assert_close(found[0, :, 0], expected, rtol=0, atol=1e-4)
    assert (expected - clean.logits[:, 0]).abs().max() > 0.1
