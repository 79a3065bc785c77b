"""Target distributions of distillation."""

import math

import pytest
import torch

from probes.compression.distillation import targets
from probes.compression.distillation.targets import (
    TARGET_KINDS,
    DistillationTargets,
    distillation_loss,
    mean_loss,
    parse_labels,
    target_distribution,
)
from probes.errors import ModelError

TEACHER = torch.tensor([[4.0, 2.0, 1.0, 0.0, -3.0], [0.0, 0.0, 3.0, 2.0, 1.0]]).log_softmax(-1)
TRUTH = torch.tensor([1, 2])


def drawn(kind, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return target_distribution(DistillationTargets(kind, **settings), TRUTH, TEACHER, generator)


@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_targets_of_every_kind_are_distributions(kind):
    found = drawn(kind)
    assert found.shape == TEACHER.shape
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(2))


def test_hard_targets_are_the_text_and_soft_ones_the_teacher():
    assert drawn("hard").tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    torch.testing.assert_close(drawn("soft"), TEACHER.exp())
    cooled = (TEACHER / 3).softmax(-1)
    torch.testing.assert_close(drawn("soft", temperature=3.0), cooled)


def test_top_k_keeps_the_k_largest_probabilities():
    found = drawn("top-k", k=2)
    assert (found > 0).sum(-1).tolist() == [2, 2]
    odds = TEACHER.exp()[0, :2] / TEACHER.exp()[0, :2].sum()
    torch.testing.assert_close(found[0, :2], odds)


def test_sampled_targets_are_unbiased_and_top_k_ones_are_not():
    many = torch.stack([drawn("sampled", seed, k=2) for seed in range(4000)]).mean(0)
    assert (many - TEACHER.exp()).abs().max() < 0.02
    assert (drawn("top-k", k=2) - TEACHER.exp()).abs().max() > 0.02
    assert drawn("sampled", k=1).max(-1).values.tolist() == [1, 1]


def test_permuted_targets_keep_the_largest_probability_and_permute_the_others():
    found, said = drawn("permuted"), TEACHER.exp()
    assert found.argmax(-1).equal(said.argmax(-1))
    torch.testing.assert_close(found.sort(-1).values, said.sort(-1).values)
    orders = {tuple(drawn("permuted", seed)[0].argsort().tolist()) for seed in range(400)}
    assert len(orders) == math.factorial(4)


def test_smoothed_targets_mix_in_a_uniform_distribution():
    found = drawn("smoothed", smoothing=0.5)
    torch.testing.assert_close(found[0], torch.tensor([0.1, 0.6, 0.1, 0.1, 0.1]))


def test_the_loss_of_a_perfect_student_is_zero_and_that_of_hard_labels_cross_entropy():
    for kind in ("soft", "permuted", "top-k"):
        labels = DistillationTargets(kind, temperature=2.0, k=5)
        aim = target_distribution(labels, TRUTH, TEACHER, torch.Generator().manual_seed(0))
        perfect = aim.log() * 2.0  # Divided by the temperature again in the loss.
        assert distillation_loss(labels, perfect, aim).abs() < 1e-5
    expected = torch.nn.functional.cross_entropy(TEACHER, TRUTH)
    torch.testing.assert_close(
        distillation_loss(DistillationTargets("hard"), TEACHER, drawn("hard")), expected
    )


@pytest.mark.parametrize("text", ["hard", "soft", "top-k:3", "sampled:12", "smoothed:0.2"])
def test_labels_parse_as_they_print(text):
    assert str(parse_labels(text)) == text


@pytest.mark.parametrize("text", ["firm", "top-k:many", "top-k:0", "smoothed:1", "sampled:-2"])
def test_invalid_labels_are_refused(text):
    with pytest.raises(ModelError):
        parse_labels(text)
    for temperature in (0.0, math.nan, math.inf):
        with pytest.raises(ModelError, match=f"temperature {temperature:g}"):
            DistillationTargets("soft", temperature=temperature)


@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("chunk", [1, 5 * 3, 5 * 7, 5 * 100])
def test_a_loss_in_chunks_and_its_gradient_are_those_of_all_tokens_at_once(
    kind, chunk, monkeypatch
):
    monkeypatch.setattr(targets, "_CHUNK", chunk)
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, 5, generator=rng) for _ in range(2))
    text = torch.randint(5, (7,), generator=rng)
    labels, found = DistillationTargets(kind, k=3, temperature=2.0), []
    for whole in (False, True):
        generator, logits = torch.Generator().manual_seed(1), student.clone().requires_grad_()
        if whole and kind in ("sampled", "permuted") and chunk < 5 * 7:
            return  # Draws in chunks are other draws.
        if whole:
            target = target_distribution(labels, text, teacher, generator)
            loss = distillation_loss(labels, logits, target)
        else:
            loss = mean_loss(labels, (logits, teacher, text), generator)
        loss.backward()
        found.append((loss.detach(), logits.grad))
    torch.testing.assert_close(*found)
