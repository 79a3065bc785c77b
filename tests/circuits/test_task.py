"""A task holds pairs that are alike token for token, and nothing else gets in."""

import jaxtyping
import pytest
import torch

from probes.circuits.task import Task
from probes.errors import BatchError, SiteError
from probes.prompts.catalog import pattern
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.testing.tiny_models import tiny


def pairs_of(own, *contrasts, count=4):
    take = pattern("take-away")
    drawn = [sample_pairs(take, name, count, tokenizers=(own,), seed=1) for name in contrasts]
    return tokenize_pairs(own, [pair for group in drawn for pair in group])


def small(roles=()):
    clean = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])
    other = torch.tensor([[1, 5, 16, 7], [1, 8, 19, 10]])
    return Task.from_tokens(
        clean, other, torch.tensor([3, 4]), torch.tensor([[11, 12], [13, -1]]), roles=roles
    )


@pytest.mark.parametrize("contrast", ["operation", "x", "thing"])
def test_pairs_of_equal_length_are_taken_as_they_were_encoded(own, contrast):
    pairs = pairs_of(own, contrast)
    found = Task.from_pairs(pairs)
    assert torch.equal(found.clean, pairs.clean.ids)
    assert torch.equal(found.counterfactual, pairs.counterfactual.ids)
    assert torch.equal(found.mask, pairs.clean.mask)
    assert torch.equal(found.mask, pairs.counterfactual.mask)
    assert torch.equal(found.role_of, pairs.clean.role_of)
    assert found.roles == pairs.clean.roles
    assert len(found) == 4
    assert (found.clean != found.counterfactual).any(1).all()
    assert found.name == f"take-away: {contrast}, {pairs.clean.readouts[0].name}"


def test_any_answer_of_the_pattern_may_be_the_one_that_is_scored(own):
    pairs = pairs_of(own, "operation")
    for readout in pairs.clean.readouts:
        found = Task.from_pairs(pairs, readout.name)
        assert torch.equal(found.readout, readout.position)
        assert torch.equal(found.answer, readout.answer)
        assert found.name.endswith(readout.name)
    assert torch.equal(Task.from_pairs(pairs).readout, pairs.clean.readouts[0].position)


def test_an_answer_is_held_against_the_counterfactuals_where_that_is_another(own):
    pairs = pairs_of(own, "operation")
    mine, theirs = pairs.clean.readout("number"), pairs.counterfactual.readout("number")
    assert (mine.answer != theirs.answer).all()
    found = Task.from_pairs(pairs, "number")
    assert torch.equal(found.foils[:, 0], theirs.answer)
    assert (found.foils[:, 1:] == -1).all()


@pytest.mark.parametrize("contrast", ["paraphrase", "order"])
def test_pairs_of_unequal_length_are_refused(own, contrast):
    pairs = pairs_of(own, contrast)
    with pytest.raises(BatchError, match=r"4 of 4 pairs are unequal: .* equal token counts"):
        Task.from_pairs(pairs)
    with pytest.raises(BatchError, match="4 of 4 pairs are unequal"):
        Task.from_pairs(pairs, skip_unequal=True)


def test_exact_leaves_unequal_pairs_out(own):
    pairs = pairs_of(own, "paraphrase", "operation")
    assert pairs.fully_aligned.tolist() == [False] * 4 + [True] * 4
    with pytest.raises(BatchError, match="4 of 8 pairs are unequal"):
        Task.from_pairs(pairs)
    found = Task.from_pairs(pairs, skip_unequal=True)
    assert torch.equal(found.clean, pairs.clean.ids[4:])
    assert torch.equal(found.counterfactual, pairs.counterfactual.ids[4:])
    assert torch.equal(found.answer, pairs.clean.readouts[0].answer[4:])
    alone = Task.from_pairs(pairs_of(own, "operation"))
    width = alone.clean.shape[1]
    assert torch.equal(found.clean[:, -width:], alone.clean)
    assert not found.mask[:, :-width].any()


def test_an_unknown_answer_is_refused(own):
    with pytest.raises(SiteError, match="Answer 'verb' is not read in this batch"):
        Task.from_pairs(pairs_of(own, "operation"), "verb")


def test_the_first_difference_is_that_of_any_pair_and_padding_does_not_count(own):
    found = small()
    assert found.first_difference == 2
    earlier = found.counterfactual.clone()
    earlier[1, 1] = 99
    clean, mask = found.clean, found.mask.clone()
    args = (found.readout, found.answer, found.foils, found.roles, found.role_of)
    assert Task(clean, earlier, mask, *args).first_difference == 1
    mask[1, :2] = False
    assert Task(clean, earlier, mask, *args).first_difference == 2
    assert Task(clean, clean, mask, *args).first_difference == 3
    pairs = Task.from_pairs(pairs_of(own, "operation"))
    differs = (pairs.clean != pairs.counterfactual).any(0).nonzero()[:, 0]
    assert pairs.first_difference == int(differs.min())


def test_a_slice_is_a_task_of_some_of_the_pairs(own):
    whole = Task.from_pairs(pairs_of(own, "operation"))
    for rows in (slice(1, 3), torch.tensor([3, 0])):
        part = whole[rows]
        assert len(part) == 2
        assert (part.roles, part.name) == (whole.roles, whole.name)
        for name in ("clean", "counterfactual", "mask", "readout", "answer", "foils", "role_of"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows])
    with pytest.raises(BatchError, match="at least one pair of prompts"):
        whole[4:]


def test_by_hand_reads_the_last_position_and_gives_each_a_role_of_its_own():
    found = small()
    assert found.readout.tolist() == [3, 3]
    assert found.roles == ("p0", "p1", "p2", "p3")
    assert found.role_of.tolist() == [[0, 1, 2, 3]] * 2
    assert found.mask.all()
    assert small(("a", "b", "c", "d")).roles == ("a", "b", "c", "d")


@pytest.fixture
def unchecked():
    """Turn the checks of shapes off, as they are for users: their error would come first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize("rows", [(slice(None), slice(3)), (slice(1), slice(None))])
def test_prompts_of_unequal_shape_are_refused(rows, unchecked):
    found = small()
    with pytest.raises(BatchError, match=r"unequal: clean prompts are \(2, 4\).* equal length"):
        Task.from_tokens(found.clean, found.counterfactual[rows], found.answer, found.foils)


def test_no_prompts_are_refused():
    none = torch.zeros(0, 4, dtype=torch.long)
    with pytest.raises(BatchError, match="at least one pair of prompts"):
        Task.from_tokens(none, none, none[:, 0], none[:, :1])


def test_the_lead_is_the_answer_less_the_mean_of_its_foils():
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
    expected = [
        logits[0, 3] - (logits[0, 11] + logits[0, 12]) / 2,
        logits[1, 4] - logits[1, 13],
    ]
    torch.testing.assert_close(small().logit_diff(logits), torch.stack(expected))


def test_a_wiring_without_roles_is_the_models_alone():
    for kind, shape in {"llama-gqa": (3, 4, 2, False), "neox": (3, 4, 4, True)}.items():
        found = small().computation_graph(tiny(kind))
        assert (found.layers, found.heads, found.kv_heads, found.parallel) == shape
        assert found.roles == found.role_pairs == found.readouts == ()


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


def test_by_hand_every_position_may_read_every_earlier_one(model):
    found = small().computation_graph(model, roles=True)
    assert found.roles == ("p0", "p1", "p2", "p3")
    expected = {(f"p{a}", f"p{b}") for b in range(4) for a in range(b + 1)}
    assert set(found.role_pairs) == expected
    assert len(found.role_pairs) == len(expected)
    assert found.readouts == ("p3",)


def test_passages_are_the_pairs_of_roles_that_stand_in_this_order_in_some_prompt(own, model):
    found = Task.from_pairs(pairs_of(own, "x", count=8))
    passages = set()
    for row in found.role_of.tolist():
        for there, reader in enumerate(row):
            for here in row[: there + 1]:
                if here >= 0 and reader >= 0:
                    passages.add((found.roles[here], found.roles[reader]))
    wiring = found.computation_graph(model, roles=True)
    assert set(wiring.role_pairs) == passages
    assert wiring.roles == found.roles
    assert all((role, role) in passages for role in wiring.readouts)
    read = {found.roles[found.role_of[n, found.readout[n]]] for n in range(len(found))}
    assert set(wiring.readouts) == read


def test_roles_that_no_token_plays_have_no_passage(model):
    found = small(("a", "b", "c", "d"))
    bare = torch.tensor([[-1, 3, 1, 1], [-1, -1, 3, 1]])
    args = (found.clean, found.counterfactual, bare >= 0, found.readout, found.answer)
    wiring = Task(*args, found.foils, found.roles, bare).computation_graph(model, roles=True)
    assert set(wiring.role_pairs) == {("d", "d"), ("d", "b"), ("b", "b")}
    assert wiring.readouts == ("b",)


def test_too_few_roles_by_hand_are_refused():
    with pytest.raises(BatchError):
        small(("a", "b"))
