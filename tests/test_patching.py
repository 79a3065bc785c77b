"""Sweeps give the effects that patching by hand, one cell at a time, gives."""

import math

import pytest
import torch

from probes.activations import capture
from probes.counterfactuals import draw_pairs, encode_pairs
from probes.errors import SiteError
from probes.lens import logit_lens
from probes.metrics import behaviour
from probes.patching import Effects, component_cells, sweep
from probes.patterns import pattern
from probes.questions import Pair
from probes.testing import hook_count, tiny

HOOKS = {"H": "attn.hook_z", "MLP": "hook_mlp_out", "resid": "hook_resid_pre"}
NAMES = {"H": "z", "MLP": "mlp_out", "resid": "resid"}
KINDS = ("heads", "mlps", "resid")


def pairs_of(own, contrast, count=5):
    take = pattern("take-away")
    return encode_pairs(own, draw_pairs(take, contrast, count, tokenizers=(own,), seed=1))


@pytest.fixture(scope="module")
def model(own):
    return tiny("llama-gqa", vocab_size=len(own))


def leads_by_hand(logits, pairs):
    """Each prompt's lead over the counterfactual's answer, or else over all other outcomes."""
    found = []
    for row in range(len(pairs)):
        each = []
        for mine, theirs in zip(pairs.clean.readouts, pairs.counterfactual.readouts, strict=True):
            here = logits[row, mine.position[row]]
            if mine.answer[row] != theirs.answer[row]:
                foil = here[theirs.answer[row]]
            else:
                foil = here[list(mine.outcomes[row][1:])].mean()
            each.append(here[mine.answer[row]] - foil)
        found.append(torch.stack(each))
    return torch.stack(found)


def effect_by_hand(model, pairs, component, role):
    """Patch one component at one role by a whole pass through all layers."""
    layer, kind = component[1:].split(".")
    head = int(kind[1:]) if kind.startswith("H") else None
    kind = "H" if head is not None else kind
    clean, other = pairs.clean, pairs.counterfactual
    theirs = capture(model, other, (NAMES[kind],))[NAMES[kind]][int(layer)]

    def put(value):
        new = value.clone()
        for row, here in (clean.where(role) & pairs.exchanged).nonzero().tolist():
            there = pairs.source[row, here]
            part = (row, here) if head is None else (row, here, head)
            new[part] = theirs[row, there] if head is None else theirs[row, there, head]
        return new

    before = model.logits(clean.ids, clean.mask)
    with model.editing({f"blocks.{layer}.{HOOKS[kind]}": put}):
        after = model.logits(clean.ids, clean.mask)
    return leads_by_hand(before, pairs) - leads_by_hand(after, pairs)


@pytest.mark.parametrize("contrast", ["operation", "thing", "paraphrase", "order"])
def test_an_effect_is_what_a_whole_pass_with_the_component_replaced_gives(model, own, contrast):
    pairs = pairs_of(own, contrast)
    assert not pairs.clean.mask.all() or contrast == "order"
    found = sweep(model, pairs, kinds=KINDS)
    assert found.exact == float(contrast in ("operation", "thing"))
    largest = 0.0
    for component in ("L0.resid", "L0.H1", "L0.MLP", "L1.H3", "L2.H0", "L1.MLP", "L2.resid"):
        for role in ("op", "thing", "thing_asked", "answer"):
            mine = found.each[:, found.components.index(component), found.roles.index(role)]
            expected = effect_by_hand(model, pairs, component, role)
            torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)
            largest = max(largest, float(expected.abs().max()))
    assert largest > 1e-2


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_other_blocks_are_patched_as_exactly(own, kind):
    model, pairs = tiny(kind, vocab_size=len(own)), pairs_of(own, "operation", 3)
    found = sweep(model, pairs, kinds=KINDS)
    for component in ("L0.H1", "L1.MLP", "L1.resid", "L2.H0"):
        mine = found.each[:, found.components.index(component), found.roles.index("op")]
        expected = effect_by_hand(model, pairs, component, "op")
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)


def test_a_question_put_into_itself_changes_nothing_at_all(model, own):
    questions = pattern("take-away").questions(4, seed=3)
    pairs = encode_pairs(own, [Pair("none", question, question) for question in questions])
    found = sweep(model, pairs, kinds=KINDS)
    assert (found.each.nan_to_num() == 0).all()
    assert (found.total == 0).all()


def test_the_first_residual_at_the_changed_role_carries_the_whole_change(model, own):
    """The pairs differ in these tokens alone, and so do the runs behind them."""
    found = sweep(model, pairs_of(own, "operation"), kinds=("resid",))
    whole = found.each[:, found.components.index("L0.resid"), found.roles.index("op")]
    torch.testing.assert_close(whole, found.total, atol=1e-5, rtol=0)
    assert (found.total.abs() > 1e-3).all()


def test_the_total_is_the_fall_of_the_lead_in_the_counterfactual_run(model, own):
    pairs = pairs_of(own, "operation")
    found = sweep(model, pairs, kinds=("mlps",), roles=("op",))
    before = leads_by_hand(model.logits(pairs.clean.ids, pairs.clean.mask), pairs)
    other = pairs.counterfactual
    assert torch.equal(pairs.clean.positions, other.positions)
    after = leads_by_hand(model.logits(other.ids, other.mask), pairs)
    torch.testing.assert_close(found.total, before - after, atol=1e-5, rtol=0)


def test_roles_behind_a_readout_have_no_effect_on_it(model, own):
    pairs = pairs_of(own, "operation")
    found = sweep(model, pairs, kinds=KINDS, roles=("op", "answer", "reply_number", "reply_noun"))
    effect = found.each.abs().amax((0, 1))  # role answer
    number, noun = (found.answers.index(name) for name in ("number", "noun"))
    assert effect[2, number] == 0
    assert effect[3, number] == effect[3, noun] == 0
    assert (effect[:2] > 1e-4).all()
    assert effect[2, noun] > 1e-4


def test_roles_before_the_change_have_no_effect(model, own):
    found = sweep(model, pairs_of(own, "y"), kinds=KINDS, roles=("bos", "have", "x", "thing", "y"))
    first = found.roles.index("y")
    assert (found.each[:, :, :first].nan_to_num() == 0).all()
    assert (found.each[:, :, first].abs() > 1e-4).any()


def test_a_role_that_a_prompt_lacks_has_no_effect_to_speak_of(model, own):
    pairs = pairs_of(own, "x", 8)
    lacks = ~pairs.clean.where("name").any(1)
    assert 0 < int(lacks.sum()) < len(pairs)
    found = sweep(model, pairs, roles=("x", "name"))
    assert torch.equal(found.each[:, 0, 1, 0].isnan(), lacks)
    assert not found.each[:, :, 0].isnan().any()
    here = found.each[~lacks]
    torch.testing.assert_close(found.mean[:, 1], here[:, :, 1].mean(0))
    expected = here[:, :, 1].std(0) / math.sqrt(len(here))
    torch.testing.assert_close(found.error[:, 1], expected, atol=1e-6, rtol=0)


def test_an_error_is_the_standard_error_of_the_mean():
    each = torch.tensor([0.2, 0.6, 0.7, torch.nan])[:, None, None, None]
    found = Effects("hand", "x", ("L0.H0",), ("x",), ("number",), each, torch.zeros(4, 1), 1.0)
    assert math.isclose(found.mean.item(), 0.5, abs_tol=1e-6)
    assert math.isclose(found.error.item(), math.sqrt(0.14 / 2 / 3), abs_tol=1e-6)


def test_components_are_named_by_layer_and_kind(model, own):
    found = sweep(model, pairs_of(own, "x", 2), kinds=KINDS, roles=("x",))
    one = ("resid", "H0", "H1", "H2", "H3", "MLP")
    assert found.components == tuple(f"L{layer}.{name}" for layer in range(3) for name in one)
    assert found.each.shape == (2, 18, 1, 2)


def test_no_hook_is_left_behind_by_a_sweep(model, own):
    pairs = pairs_of(own, "x", 2)
    model.logits(pairs.clean.ids, pairs.clean.mask)
    before = hook_count(model)
    sweep(model, pairs, kinds=KINDS, roles=("x",))
    assert hook_count(model) == before


def test_unknown_components_and_roles_are_refused(model, own):
    with pytest.raises(SiteError, match=r"\['neurons'\] are unknown: choose from heads, mlps, re"):
        component_cells(model, ("neurons",), "op")
    with pytest.raises(SiteError, match="'verb' is not in this batch: it has bos, rest"):
        sweep(model, pairs_of(own, "x", 2), roles=("verb",))


# The logit lens reads the same streams.


def test_the_last_layer_of_the_lens_reads_what_the_model_answers(model, own):
    batch = pairs_of(own, "x").clean
    found = logit_lens(model, batch)
    assert found.layers == ("embed", "L0", "L1", "L2")
    # The number is read at the last token of "Answer:", the noun at that of the number.
    ends = [found.roles.index(role) for role in ("answer", "reply_number")]
    said = torch.stack([found.each[:, -1, role, k] for k, role in enumerate(ends)], 1)
    torch.testing.assert_close(said, behaviour(model, batch).lead, atol=1e-5, rtol=0)


def test_the_lens_is_blank_where_a_prompt_lacks_the_role(model, own):
    batch = pairs_of(own, "x", 8).clean
    found = logit_lens(model, batch)
    lacks = torch.stack([~batch.where(role).any(1) for role in batch.roles], 1)
    assert lacks.any()
    assert torch.equal(found.each.isnan(), lacks[:, None, :, None].expand_as(found.each))
    assert not found.mean.isnan().any()
