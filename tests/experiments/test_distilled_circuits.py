"""The published alignment score equals its definition, has bounds and a null."""

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from probes.errors import BatchError, ModelError, SiteError, TokenizerError
from probes.experiments.distilled_circuits.components import (
    AnswerPrompts,
    ComponentMeasurements,
    measure_components,
    sample_same_length,
    tokenize_answer_prompts,
)
from probes.experiments.distilled_circuits.score import (
    AlignmentScore,
    ScoreSettings,
    attention_similarity,
    distilled_circuits_score,
    match_components,
    mlp_similarity,
    rescale_mlp_similarity,
)
from probes.models.model import random_init, wrap
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.tokenization import tokenize_questions
from probes.testing.planted_patterns import fox_pattern, planted_fox
from probes.testing.tiny_models import KINDS, hook_count, tiny_hf

FOX = fox_pattern()
COUNT = 12


@cache
def words():
    return planted_fox("template").model.tokenizer


@cache
def model(kind="llama", seed=0, width=32, layers=2):
    hf_model = tiny_hf(
        kind, seed, vocab_size=len(words()), hidden_size=width, num_hidden_layers=layers
    )
    return wrap(hf_model, name=f"tiny {kind} {seed} {width}", tokenizer=words())


@cache
def prompts():
    questions = sample_same_length(FOX, COUNT, tokenizers=(words(),), seed=0)
    return tokenize_answer_prompts(words(), questions, "number")


@cache
def parts(kind="llama", seed=0):
    return measure_components(model(kind, seed), prompts())


@cache
def scored():
    return distilled_circuits_score(model(), model(seed=1), FOX, ScoreSettings(prompts=COUNT))


def by_hand(heads, mlps=(1.0,), attention=None, seed=0):
    """Components with given influences; by default head k attends to position k alone."""
    count = len(heads)
    rng = np.random.default_rng(seed)
    attention = np.eye(count)[:, None] if attention is None else attention
    directions = np.linalg.qr(rng.normal(size=(len(mlps), 6, 3)))[0]
    return ComponentMeasurements(
        "by hand", 1.0, np.array(heads), np.array(mlps), attention, directions
    )


def sampled(seed):
    """Components with random heavy-tailed influences and random causal attention."""
    rng = np.random.default_rng(seed)
    attention = np.tril(rng.gamma(0.3, size=(6, 5, 5)) + 1e-6)
    attention /= attention.sum(-1, keepdims=True)
    return by_hand(rng.pareto(1, 6), rng.pareto(1, 2), attention, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_influence_is_the_effect_of_zero_ablation_by_a_hook(kind):
    ids, found, at = prompts().ids, parts(kind), torch.arange(COUNT)

    def logit_diff(edits):
        with model(kind).editing(edits):
            last = model(kind).logits(ids, torch.ones_like(ids, dtype=torch.bool))[:, -1]
        return float((last[at, prompts().answer] - last[at, prompts().foil]).mean())

    def without_head(z):
        z = z.clone()
        z[:, :, 3] = 0
        return z

    base = logit_diff({})
    assert found.logit_diff == pytest.approx(base, abs=1e-4)
    for layer in range(2):
        head = 100 * abs(1 - logit_diff({f"blocks.{layer}.attn.hook_z": without_head}) / base)
        mlp = 100 * abs(1 - logit_diff({f"blocks.{layer}.hook_mlp_out": torch.zeros_like}) / base)
        assert found.head_influence[layer * 4 + 3] == pytest.approx(head, abs=0.02, rel=1e-3)
        assert found.mlp_influence[layer] == pytest.approx(mlp, abs=0.02, rel=1e-3)
    assert hook_count(model(kind)) == 0


def test_attention_is_averaged_and_directions_are_leading_eigenvectors():
    ids, kept = prompts().ids, {}
    names = ("attn.hook_pattern", "hook_mlp_out")
    edits = {f"blocks.1.{n}": lambda value, n=n: kept.update({n: value.double()}) for n in names}
    with model().editing(edits):
        model().logits(ids, torch.ones_like(ids, dtype=torch.bool))
    expected = kept["attn.hook_pattern"].mean(0).numpy()
    assert np.allclose(parts().attention[4:], expected, atol=1e-6)
    flat = kept["hook_mlp_out"].reshape(-1, 32).numpy()
    _, vectors = np.linalg.eigh(flat.T @ flat)
    alike = np.abs(np.sum(vectors[:, ::-1][:, :3] * parts().mlp_directions[1], axis=0))
    assert np.allclose(alike, 1, atol=1e-4)


def test_heads_of_a_model_match_themselves():
    assert match_components(parts(), parts(), mlps=False).value == pytest.approx(1)


def test_random_init_models_score_high():
    """The reason for the null: a causal mask makes attention similar."""
    measured = [
        measure_components(random_init(planted_fox("template").model, seed=s), prompts())
        for s in range(4)
    ]
    for one, other in pairwise(measured):
        assert match_components(one, other, mlps=False).value > 0.85


@pytest.mark.parametrize("seed", range(20))
def test_the_score_is_within_the_bounds_of_its_similarities(seed):
    found = match_components(sampled(seed), sampled(seed + 100))
    assert found.lower_bound <= found.value <= found.similarity
    # The bounds hold for shuffled influences, too.
    rng = np.random.default_rng(seed)
    one = sampled(seed)
    other = match_components(
        replace(one, head_influence=rng.permutation(one.head_influence)), sampled(seed + 100)
    )
    assert other.similarity == found.similarity
    assert found.lower_bound <= other.value <= found.similarity


def test_both_bounds_are_reached():
    one, other = by_hand([5.0, 0.0]), by_hand([0.0, 2.0])
    assert match_components(one, one, mlps=False) == AlignmentScore(1.0, 1.0, 1.0, 2)
    assert (
        match_components(one, other, mlps=False).value
        == match_components(one, other, mlps=False).lower_bound
        == 0.0
    )


def test_influence_is_a_fraction_of_all_pairs():
    """Fractions are .75, .25 and .25, .75, so either pair keeps half of its similarity of 1."""
    found = match_components(by_hand([6.0, 2.0]), by_hand([1.0, 3.0]), mlps=False)
    assert found.value == pytest.approx(0.5)


def test_two_components_may_have_one_match():
    same = np.array([[[0.5, 0.5]], [[0.5, 0.5]]])
    one = by_hand([1.0, 1.0], attention=same)
    other = by_hand([4.0, 0.0], attention=np.array([[[0.5, 0.5]], [[1.0, 0.0]]]))
    # Both match the first, whose influence counts twice: fractions of one half each.
    assert match_components(one, other, mlps=False).value == pytest.approx(1)
    assert match_components(other, one, mlps=False).value < 1


def test_similarities_of_mlps_get_the_mean_and_deviation_of_heads_and_a_maximum_of_one():
    heads = np.array([[0.2, 0.4], [0.6, 0.8]])
    mlps = np.array([[0.01, 0.03]])
    low, high = (0.5 + sign * heads.std(ddof=1) for sign in (-1, 1))
    assert rescale_mlp_similarity(mlps, heads) == pytest.approx(np.array([[low / high, 1.0]]))
    assert rescale_mlp_similarity(np.array([[0.1]]), heads) == pytest.approx(np.array([[1.0]]))


def test_similarities_are_mean_cosines():
    one, other = sampled(1), sampled(2)
    pairs = zip(one.attention[2], other.attention[4], strict=True)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    assert attention_similarity(one, other)[2, 4] == pytest.approx(np.mean(cosines))
    every = [a @ b for a in one.mlp_directions[0].T for b in other.mlp_directions[1].T]
    assert mlp_similarity(one, other)[0, 1] == pytest.approx(abs(np.mean(every)))


def test_prompts_have_one_frame_and_one_role_for_each_token():
    questions = sample_same_length(FOX, COUNT, tokenizers=(words(),), seed=0)
    rows = tokenize_questions(words(), questions)
    assert len(set(questions)) == COUNT
    assert (
        len(
            {
                (q.template, r.roles[: r.outcome_starts[0]])
                for q, r in zip(questions, rows, strict=True)
            }
        )
        == 1
    )
    assert questions == sample_same_length(FOX, COUNT, tokenizers=(words(),), seed=0)


def test_prompts_end_at_the_readout():
    questions = sample_same_length(FOX, COUNT, tokenizers=(words(),), seed=0)
    found = tokenize_answer_prompts(words(), questions, "number")
    for question, ids, answer, foil in zip(
        questions, found.ids, found.answer, found.foil, strict=True
    ):
        assert words().decode(ids[-1]).strip() == "Answer:"
        outcomes = dict(question.outcomes)["number"]
        assert [words().decode(t).strip() for t in (answer, foil)] == list(outcomes[:2])


def test_a_negative_logit_difference_is_scored_with_a_warning():
    turned = AnswerPrompts(prompts().ids, prompts().foil, prompts().answer)
    found = measure_components(model(), turned)
    assert found.logit_diff == -parts().logit_diff
    assert found.head_influence == pytest.approx(parts().head_influence)
    negative = replace(scored(), logit_diffs=(2.0, -0.5))
    warning = "The logit difference of tiny llama 1 32 is not positive (-0.50)"
    assert negative.summary()[-1].startswith(warning)
    positive = replace(scored(), logit_diffs=(2.0, 1.0))
    assert not any("not positive" in line for line in positive.summary())


def test_a_logit_difference_of_zero_is_refused():
    with pytest.raises(ModelError, match="exactly 0"):
        measure_components(
            model(), AnswerPrompts(prompts().ids, prompts().answer, prompts().answer)
        )


def test_the_score_has_a_null_of_random_init_models():
    found = scored()
    assert len(found.null) == 20
    assert len(set(found.null)) == 20
    first = int(np.random.default_rng(0).integers(2**31, size=20)[0])
    null = measure_components(random_init(model(seed=1), seed=first), prompts())
    assert found.null[0] == match_components(null, parts()).value
    assert found.score == match_components(parts(seed=1), parts()).value
    assert found.heads_only == match_components(parts(seed=1), parts(), mlps=False).value
    assert found.heads_and_mlps.similarity >= found.score


def test_the_other_direction_matches_every_component_of_the_full_model():
    settings = ScoreSettings(prompts=COUNT, direction="full to other")
    found = distilled_circuits_score(model(layers=3), model(seed=1), FOX, settings)
    assert found.heads_and_mlps.pairs == 3 * 5
    assert found.heads.pairs == 3 * 4
    assert scored().heads_and_mlps.pairs == 2 * 5


def test_the_summary_says_whether_the_null_is_exceeded():
    low = replace(scored(), null_heads_and_mlps=np.full(20, 2.0))
    assert not low.exceeds_null
    assert low.nulls_below == 0
    assert low.p == 1
    assert "does not exceed its null, and is above 0 of 20" in low.summary()[1]
    assert "no evidence" in low.summary()[1]
    high = replace(scored(), null_heads_and_mlps=np.zeros(20))
    assert high.exceeds_null
    assert high.p == pytest.approx(1 / 21)
    assert "the score exceeds its null, and is above 20 of 20" in high.summary()[1]


def test_the_null_is_exceeded_where_p_is_at_most_five_percent():
    """The quantile at 0.95 of 20 nulls lies between the two highest, where p is 2 / 21."""
    for count in (20, 39, 64, 200):
        null = np.arange(count, dtype=float)
        for rank in range(count + 1):
            score = AlignmentScore(rank - 0.5, 0.0, 0.0, 1)
            found = replace(scored(), heads_and_mlps=score, null_heads_and_mlps=null)
            assert found.exceeds_null == (found.p <= 0.05), (count, rank)
    between = AlignmentScore(18.9, 0.0, 0.0, 1)
    null = np.arange(20, dtype=float)
    found = replace(scored(), heads_and_mlps=between, null_heads_and_mlps=null)
    assert found.score > np.quantile(null, 0.95) and not found.exceeds_null
    assert "a further one exceeds 19.000 with probability 0.048" in found.summary()[1]


def test_models_of_different_widths_are_scored_by_heads():
    other = model(seed=2, width=16)
    found = distilled_circuits_score(model(), other, FOX, ScoreSettings(prompts=COUNT))
    assert found.heads_and_mlps is None
    assert found.score == found.heads_only
    assert len(found.null_heads_and_mlps) == 0
    assert np.array_equal(found.null, found.null_heads_only)
    assert "The widths differ, so MLPs cannot be compared" in found.summary()[3]


def test_tokenizers_that_split_differently_are_refused(letters):
    with pytest.raises(TokenizerError, match=r"differently, into .* use `compare`"):
        sample_same_length(FOX, 2, tokenizers=(words(), letters), seed=0)


def test_impossible_settings_are_refused():
    with pytest.raises(ModelError, match="19 random-init models: use 20 or more, whose highest"):
        ScoreSettings(nulls=19)
    with pytest.raises(SiteError, match="no answer 'color'"):
        sample_same_length(FOX, COUNT, tokenizers=(words(),), seed=0, answer="color")
    with pytest.raises(BatchError, match="at least one"):
        sample_same_length(FOX, 0, tokenizers=(words(),), seed=0)


def test_prompts_of_unequal_length_are_refused(own, tmp_path):
    texts = ("Tom has 3 foxes. Answer:", "Tom now has 3 foxes. Answer:")
    pairs = [
        {"clean": text, "counterfactual": text.replace("3", "7"), "answer": "3"}
        | {"counterfactual_answer": "7"}
        for text in texts
    ]
    path = tmp_path / "given.jsonl"
    path.write_text("\n".join(json.dumps(pair) for pair in pairs), encoding="utf-8")
    given = Pattern.from_pairs(path)
    assert len(sample_same_length(given, 2, tokenizers=(own,), seed=0)) == 2
    with pytest.raises(BatchError, match="yielded 2 of 3 prompts"):
        sample_same_length(given, 3, tokenizers=(own,), seed=0)
    with pytest.raises(BatchError, match="differ in length"):
        tokenize_answer_prompts(own, given.sample_questions(4, seed=0), "answer")
