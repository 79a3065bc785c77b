"""Attention pooled by role, against sums by hand."""

import math

import pytest
import torch

from probes.observe.activations import capture
from probes.observe.attention import RoleAttention, pool_by_role, role_attention, uniform_attention
from probes.prompts.catalog import pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import Batch, tokenize
from probes.testing.tiny_models import tiny

NO_QUESTION = Question("", "", "", (), "digits", (), (), ())


def batch_of_roles(*rows, roles=("bos", "word", "end")):
    """Batch that has roles only; -1 is padding."""
    role_of = torch.tensor(rows)
    return Batch(
        questions=(NO_QUESTION,) * len(rows),
        ids=torch.zeros_like(role_of),
        mask=role_of >= 0,
        roles=roles,
        role_of=role_of,
        tokens=((),) * len(rows),
        readouts=(),
    )


@pytest.fixture
def grouped(own):
    """Questions of several templates and lengths, and a tiny model with grouped heads."""
    questions = pattern("take-away").sample_questions(8, seed=0)
    return tiny("llama-gqa", vocab_size=len(own)), tokenize(own, questions)


def test_attention_is_summed_over_keys_and_averaged_over_queries():
    batch = batch_of_roles([0, 1, 1], roles=("bos", "word"))
    attention = torch.tensor([[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.5, 0.125, 0.375]])
    (found,) = pool_by_role(attention[None, None, None], batch)
    assert found[0, 0].tolist() == [[1.0, 0.0], [(0.75 + 0.5) / 2, (0.25 + 0.5) / 2]]


def test_layers_and_heads_are_not_mixed():
    batch = batch_of_roles([0, 1], [-1, 1], roles=("bos", "word"))
    attention = torch.rand(3, 2, 4, 2, 2, generator=torch.Generator().manual_seed(0)).tril()
    found = pool_by_role(attention, batch)
    assert found.shape == (2, 3, 4, 2, 2)
    for layer in range(3):
        for head in range(4):
            assert torch.equal(found[0, layer, head], attention[layer, 0, head])
            assert found[1, layer, head, 1, 1] == attention[layer, 1, head, 1, 1]


def test_a_role_that_a_prompt_lacks_has_no_row_and_is_not_attended_to():
    batch = batch_of_roles([0, 1, 2], [-1, 0, 2])
    uniform = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]])
    padded = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0.5, 0.5]])
    found = pool_by_role(torch.stack([uniform, padded])[None, :, None], batch)[:, 0, 0]
    assert found[0].tolist() == uniform.tolist()
    assert found[1].isnan().tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert found[1, 2].tolist() == [0.5, 0.0, 0.5]


def test_rows_sum_to_one_where_the_prompt_has_the_role(grouped):
    model, batch = grouped
    found = role_attention(model, batch)
    assert found.roles == batch.roles
    missing = torch.stack([~batch.role_mask(role).any(1) for role in batch.roles], 1)
    assert 0 < int(missing.sum()) < missing.numel()
    total = found.per_prompt.sum(-1)
    assert torch.equal(total.isnan(), missing[:, None, None].expand_as(total))
    torch.testing.assert_close(
        total[~total.isnan()], torch.ones(int((~total.isnan()).sum())), atol=1e-5, rtol=0
    )


def test_padding_does_not_change_attention(grouped, own):
    model, batch = grouped
    assert not batch.mask.all()
    together = role_attention(model, batch)
    for row, question in enumerate(batch.questions):
        alone = role_attention(model, tokenize(own, (question,)))
        index = [batch.roles.index(role) for role in alone.roles]
        own_roles = together.per_prompt[row][:, :, index][..., index]
        torch.testing.assert_close(own_roles, alone.per_prompt[0], atol=1e-5, rtol=0)


def test_captured_activations_save_the_run_and_give_the_same(grouped):
    model, batch = grouped
    captured = capture(model, batch, ("attention", "z"))
    reused = role_attention(model, batch, activations=captured)
    torch.testing.assert_close(
        reused.per_prompt, role_attention(model, batch).per_prompt, equal_nan=True, atol=0, rtol=0
    )


def test_uniform_attention_is_that_of_a_head_that_attends_equally(grouped):
    _, batch = grouped
    length = batch.ids.shape[1]
    uniform = torch.zeros(len(batch), length, length)
    for row in range(len(batch)):
        first = int(batch.mask[row].int().argmax())
        for query in range(first, length):
            uniform[row, query, first : query + 1] = 1 / (query + 1 - first)
    torch.testing.assert_close(
        uniform_attention(batch),
        pool_by_role(uniform[None, :, None], batch)[:, 0, 0],
        equal_nan=True,
    )


def test_uniform_attention_by_hand():
    found = uniform_attention(batch_of_roles([-1, 0, 1, 1], roles=("bos", "word")))
    expected = torch.tensor([[[1.0, 0.0], [(1 / 2 + 1 / 3) / 2, (1 / 2 + 2 / 3) / 2]]])
    torch.testing.assert_close(found, expected)


def test_the_mean_and_its_error_leave_out_prompts_without_the_role():
    values = torch.tensor([0.2, 0.6, 0.7, torch.nan])
    each = values[:, None, None, None, None]
    found = RoleAttention("hand", ("word",), each)
    assert math.isclose(found.mean.item(), 0.5, abs_tol=1e-6)
    spread = (0.3**2 + 0.1**2 + 0.2**2) / 2
    assert math.isclose(found.standard_error.item(), math.sqrt(spread / 3), abs_tol=1e-6)


def test_one_prompt_has_no_error():
    found = RoleAttention(
        "hand", ("word",), torch.tensor([0.2, torch.nan])[:, None, None, None, None]
    )
    assert math.isclose(found.mean.item(), 0.2, abs_tol=1e-6)
    assert found.standard_error.isnan().all()
