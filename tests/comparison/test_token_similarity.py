"""Sums over tokens give debiased CKA exactly, in any order; texts are read once and never held."""

from dataclasses import replace

import numpy as np
import pytest

import probes
from probes.comparison.representations.token_chunks import pair_across_texts, read_states
from probes.comparison.representations.token_result import LayerSimilarity, TokenSimilarity
from probes.comparison.representations.token_sums import TokenSums, row_features, sums_bytes
from probes.comparison.representations.tokens import (
    TokenSimilaritySettings,
    jackknife_interval,
    token_similarity,
)
from probes.errors import BatchError, ModelError, SiteError, TokenizerError
from probes.models.model import wrap
from probes.observe.activations import record
from probes.prompts.question import Question
from probes.prompts.tokens.tokenization import BOS
from probes.result import load_result
from probes.stats.intervals import Estimate
from probes.testing.tiny_models import tiny, tiny_hf

LAYERS = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1))
SMALL = TokenSimilaritySettings(chunk_tokens=400, permutations=2)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def states(rows=300, *, seed=0):
    """Three layers of width 12 and two of width 9 that share some dimensions, off the origin."""
    shared = normal(rows, 5, seed=seed)
    a = shared @ normal(3, 5, 12, seed=91) + normal(3, rows, 12, seed=seed + 1) + 3
    b = shared @ normal(2, 5, 9, seed=92) + normal(2, rows, 9, seed=seed + 2) - 2
    return a, b


def sums(a, b, shifts=None, pairs=LAYERS):
    a_shift, b_shift = shifts or (a.mean(1), b.mean(1))
    found = TokenSums.zeros(pairs, a_shift, b_shift)
    found.add_rows(row_features(a, a_shift), row_features(b, b_shift))
    return found


def hsic(x, y):
    """Unbiased HSIC by its definition (Song et al. 2012)."""
    n = len(x)
    k, other = (z @ z.T * (1 - np.eye(n)) for z in (x, y))
    whole = (k * other).sum() + k.sum() * other.sum() / ((n - 1) * (n - 2))
    return (whole - 2 / (n - 2) * (k @ other).sum()) / (n * (n - 3))


def gram_cka(x, y):
    """Debiased CKA from the Gram matrices of all rows."""
    x, y = x - x.mean(0), y - y.mean(0)
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def gram_matrix(a, b, pairs=LAYERS):
    return np.array([gram_cka(a[i], b[j]) for i, j in pairs])


# Sums.


def test_sums_give_the_cka_of_gram_matrices():
    a, b = states()
    np.testing.assert_allclose(sums(a, b).cka(), gram_matrix(a, b), atol=1e-9)


def test_a_shift_of_the_first_rows_alone_changes_nothing():
    a, b = states()
    first = a[:, :20].mean(1), b[:, :20].mean(1)
    np.testing.assert_allclose(sums(a, b, first).cka(), gram_matrix(a, b), atol=1e-9)


@pytest.mark.parametrize("offset", [3000.0, -1500.0])
def test_a_massive_activation_costs_no_precision(offset):
    a, b = states()
    wanted = gram_matrix(a, b)
    a, b = a.copy(), b.copy()
    a[:, :, 2] += offset
    b[:, :, 5] += offset / 2
    shifts = a[:, :20].mean(1), b[:, :20].mean(1)
    np.testing.assert_allclose(sums(a, b, shifts).cka(), wanted, atol=1e-9)
    parts = sums(a[:, :90], b[:, :90]) + sums(a[:, 90:], b[:, 90:])
    np.testing.assert_allclose(parts.cka(), wanted, atol=1e-9)


def test_single_precision_rows_are_summed_in_double_precision():
    a, b = (side.astype(np.float32) for side in states())
    a[:, :, 2] += 3000
    wanted = gram_matrix(a.astype(float), b.astype(float))
    np.testing.assert_allclose(sums(a, b).cka(), wanted, atol=1e-9)


def test_parts_about_shifts_of_their_own_add_up_in_any_order():
    a, b = states()
    cuts = [(0, 40), (40, 41), (41, 200), (200, 300)]
    parts = [sums(a[:, i:j], b[:, i:j]) for i, j in cuts]
    wanted = sums(a, b).cka()
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        first, *others = (parts[n] for n in order)
        total = sum(others, start=first)
        assert total.count == 300
        np.testing.assert_allclose(total.cka(), wanted, atol=1e-9)


def test_leaving_rows_out_equals_sums_of_the_others():
    a, b = states()
    shifts = a.mean(1), b.mean(1)
    part = sums(a[:, 100:], b[:, 100:], shifts)
    found = sums(a, b, shifts).cka(without=part)
    np.testing.assert_allclose(found, gram_matrix(a[:, :100], b[:, :100]), atol=1e-9)


def test_rotated_and_scaled_rows_have_cka_1_and_unrelated_ones_0():
    a, _ = states()
    turned = 3 * a @ np.linalg.qr(normal(12, 12, seed=5))[0] + 7
    same = ((0, 0), (1, 1), (2, 2))
    np.testing.assert_allclose(sums(a, turned, pairs=same).cka(), 1, atol=1e-9)
    found = [
        sums(normal(1, 60, 30, seed=n), normal(1, 60, 30, seed=n + 500), pairs=((0, 0),)).cka()[0]
        for n in range(200)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)


def test_a_constant_layer_has_no_cka():
    a, b = states()
    a = a.copy()
    a[1] = 100 + 1e-5 * normal(300, 12)
    found = sums(a, b).cka()
    assert np.isnan(found[2:4]).all()
    assert not np.isnan(found[[0, 1, 4, 5]]).any()


def test_sums_of_other_layers_are_refused():
    a, b = states()
    with pytest.raises(BatchError, match=r"6 and 1 pairs of layers.*add sums of the same pairs"):
        sums(a, b) + sums(a, b, pairs=((0, 0),))
    with pytest.raises(BatchError, match=r"shapes \(14, 11\) and \(14, 10\)"):
        sums(a, b).ab + sums(a, b[:, :, 1:]).ab


def test_the_size_of_sums_is_known_before_them():
    a, b = states()
    made = [sums(a, b) for _ in range(3)]
    arrays = [side.products.nbytes for one in made for side in (one.a, one.b, one.ab)]
    shapes = [(3, 12), (2, 9)]
    assert sums_bytes(LAYERS, shapes, blocks=3, permutations=0) == sum(arrays)
    more = sums_bytes(LAYERS, shapes, blocks=3, permutations=2) - sum(arrays)
    assert more == 2 * made[0].ab.products.nbytes


# Null and interval.


@pytest.mark.parametrize("lengths", [[5] * 20, [40, 3, 9, 1, 30], [1, 1], list(range(1, 30))])
def test_the_null_pairs_each_text_with_another_one_place_by_place(lengths):
    text = np.repeat(np.arange(len(lengths)), lengths)
    place = np.concatenate([np.arange(length) for length in lengths])
    for seed in range(20):
        first, second = pair_across_texts(text, np.random.default_rng(seed))
        assert (text[first] != text[second]).all()
        assert (place[first] == place[second]).all()
        assert len(first) == len({*first}) == len({*second})
        assert set(text[first]) == set(text[second]) == set(range(len(lengths)))


def test_the_null_pairs_texts_of_about_one_length_and_differs_between_permutations():
    lengths = np.arange(20, 60)
    text = np.repeat(np.arange(40), lengths)
    found = [pair_across_texts(text, np.random.default_rng(seed)) for seed in range(5)]
    assert min(len(first) for first, _ in found) > 0.85 * len(text)
    assert len({tuple(zip(text[first], text[second], strict=True)) for first, second in found}) == 5


def test_a_text_alone_in_its_chunk_has_no_partner():
    first, second = pair_across_texts(np.zeros(9, dtype=np.int64), np.random.default_rng(0))
    assert not len(first) and not len(second)


def test_the_null_has_the_bias_that_dependent_tokens_give_to_unrelated_models():
    unrelated, null = [], []
    for seed in range(60):
        text = np.repeat(np.arange(40), 10)
        topics = (2 * normal(40, 6, seed=seed + n)[text] for n in (1000, 2000))
        a, b = (
            topic + normal(400, 6, seed=seed + n) for n, topic in zip((3, 4), topics, strict=True)
        )
        unrelated.append(sums(a[None], b[None], pairs=((0, 0),)).cka()[0])
        first, second = pair_across_texts(text, np.random.default_rng(seed))
        null.append(sums(a[None, first], b[None, second], pairs=((0, 0),)).cka()[0])
    assert np.mean(unrelated) > 0.02
    error = np.hypot(np.std(unrelated), np.std(null)) / np.sqrt(60)
    assert abs(np.mean(unrelated) - np.mean(null)) < 3 * error


def drawn_interval(seed, texts=64, tokens=10):
    """Interval over texts, whose tokens share a topic; and the share of the topic is 0.8."""
    text = np.repeat(np.arange(texts), tokens)
    topic = 2 * normal(texts, 4, seed=seed)[text]
    a, b = (topic + normal(len(text), 4, seed=seed + n)[None] for n in (5000, 9000))
    shifts = a.mean(1), b.mean(1)
    blocks = [sums(a[:, text % 8 == n], b[:, text % 8 == n], shifts, ((0, 0),)) for n in range(8)]
    whole = sum(blocks[1:], start=blocks[0])
    return jackknife_interval(whole.cka(), [whole.cka(without=block) for block in blocks])


def test_intervals_over_blocks_of_texts_contain_the_value_of_many_texts():
    wanted = 0.8**2  # ‖4 I‖² / ‖5 I‖²: the covariance of the topic over that of the states.
    inside = [low[0] < wanted < high[0] for low, high in map(drawn_interval, range(100))]
    assert sum(inside) >= 88


# Models.


@pytest.fixture(scope="module")
def full():
    return probes.load("full")


@pytest.fixture(scope="module")
def distilled():
    return probes.load("distilled")


@pytest.fixture(scope="module")
def texts():
    """Texts of different lengths."""
    names, things = ("Tom", "Anna", "Mia", "Ben"), ("dogs", "books", "foxes", "cups")
    sentences = [
        f"{name} had {number} {thing}."
        for name in names
        for thing in things
        for number in ("two", "three", "nine")
    ]
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(sentences, 1 + n % 5)) for n in range(48)]


def read_at_once(models, texts):
    (chunk,) = read_states(models, texts, 10**9)
    return chunk


def test_the_result_is_the_gram_form_over_all_tokens_of_all_texts(full, distilled, texts):
    result = token_similarity(full, distilled, iter(texts), settings=SMALL)
    chunk = read_at_once([full, distilled], texts)
    wanted = gram_matrix(*chunk.states, tuple(np.ndindex(5, 3)))
    np.testing.assert_allclose(result.matrix.ravel(), wanted, atol=1e-9)
    assert (result.texts, result.tokens) == (48, len(chunk.text))
    for pair in result.pairs:
        assert pair.cka.low < pair.cka.value < pair.cka.high
        assert pair.chance < pair.chance_high < pair.cka.value
        assert np.isnan(pair.other_seed)


def test_named_pairs_keep_sums_of_their_own_layers_alone(full, distilled, texts, monkeypatch):
    module, sizes = "probes.comparison.representations.tokens.require_room", []
    monkeypatch.setattr(module, lambda _names, _count, size: sizes.append(size))
    twin, few = probes.load("full-b"), replace(SMALL, layers=((3, 1), (0, 1)))
    every = token_similarity(full, distilled, texts, other_seed=twin, settings=SMALL)
    named = token_similarity(full, distilled, texts, other_seed=twin, settings=few)
    assert [(p.layer_a, p.layer_b) for p in named.pairs] == [(3, 1), (0, 1)]
    for pair in named.pairs:
        whole = every.pair(pair.layer_a, pair.layer_b)
        assert pair.cka.value == pytest.approx(whole.cka.value, abs=1e-12)
        assert pair.other_seed == pytest.approx(whole.other_seed, abs=1e-12)
    shapes = [(2, full.shape.d_model), (1, distilled.shape.d_model)]
    own = sums_bytes(((1, 0), (0, 0)), shapes, blocks=SMALL.blocks, permutations=2)
    assert sizes[1] == own < sizes[0]


def test_sums_that_do_not_fit_into_memory_are_refused_before_a_text_is_read(
    full, distilled, monkeypatch
):
    module = "probes.comparison.representations.token_sums.available_memory"
    monkeypatch.setattr(module, lambda: 10)
    wanted = r"The sums of 15 pairs of layers of full and distilled take 0\.\d GB.* name fewer"
    with pytest.raises(BatchError, match=wanted):
        token_similarity(full, distilled, iter(()), settings=SMALL)


def test_rows_are_the_states_of_each_text_alone_without_its_start_token(full, texts):
    chunk = read_at_once([full], texts)
    for number in (0, 7, 33):
        captured = probes.capture(full, texts[number], ("resid",))
        own = captured["resid"][:, 0, ~captured.batch.role_mask(BOS)[0]]
        np.testing.assert_allclose(chunk.states[0][:, chunk.text == number], own, atol=1e-4)


def test_the_order_of_texts_and_the_size_of_chunks_change_nothing(full, distilled, texts):
    found = [
        token_similarity(full, distilled, order, settings=replace(SMALL, chunk_tokens=tokens))
        for order, tokens in ((texts, 60), (texts[::-1], 100), (texts, 10**6))
    ]
    for other in found[1:]:
        # Passes over other batches round differently in single precision.
        np.testing.assert_allclose(other.matrix, found[0].matrix, atol=1e-6)


def test_a_stream_of_texts_is_read_chunk_by_chunk(full, texts):
    taken = []

    def stream():
        for n in range(40):
            taken.append(n)
            yield texts[n]

    chunks = read_states([full], stream(), 60)
    rows = len(next(chunks).text)
    assert len(taken) < 10
    assert rows + sum(len(chunk.text) for chunk in chunks) == len(
        read_at_once([full], texts[:40]).text
    )


def test_one_long_text_among_short_ones_makes_no_long_padding(full, texts, monkeypatch):
    filled = []

    def watched(model, batch, *rest):
        filled.append(float(batch.mask.float().mean()))
        return record(model, batch, *rest)

    monkeypatch.setattr("probes.comparison.representations.token_chunks.record", watched)
    read_at_once([full], [*["Tom had two dogs."] * 30, "Tom had two dogs. " * 18])
    assert min(filled) > 0.5


def test_the_same_seed_gives_the_same_null(full, distilled, texts):
    first, again, other = (
        token_similarity(full, distilled, texts, settings=replace(SMALL, seed=seed))
        for seed in (0, 0, 1)
    )
    assert first.to_dict() == again.to_dict()
    assert first.pairs[0].chance != other.pairs[0].chance
    assert first.pairs[0].cka == other.pairs[0].cka


def test_questions_are_read_without_their_answers(full, distilled, texts):
    question = Question.from_text("Tom had two dogs.")
    answered = replace(question, answers=(("number", "2"),), outcomes=(("number", ("2", "3")),))
    chunk = read_at_once([full], [answered, texts[0]])
    assert (chunk.text == 0).sum() == len(read_at_once([full], [question.text]).text)


def test_another_seed_stands_beside_each_layer_of_a(full, distilled, texts):
    twin = probes.load("full-b")
    result = token_similarity(full, distilled, texts, other_seed=twin, settings=SMALL)
    same = token_similarity(full, twin, texts, settings=replace(SMALL, layers="matched"))
    assert result.other_seed == twin.name
    for pair in result.pairs:
        wanted = same.pair(pair.layer_a, pair.layer_a).cka.value
        assert pair.other_seed == pytest.approx(wanted, abs=1e-9)
    with pytest.raises(ModelError, match="distilled has 2 blocks and full 4: give as other seed"):
        token_similarity(full, twin, texts, other_seed=distilled)


def test_a_model_equals_itself_and_its_layers_can_be_matched_or_named(full, texts):
    matched = token_similarity(full, full, texts, settings=replace(SMALL, layers="matched"))
    assert [(p.layer_a, p.layer_b) for p in matched.pairs] == [(n, n) for n in range(5)]
    np.testing.assert_allclose(np.diagonal(matched.matrix), 1, atol=1e-9)
    assert np.isnan(matched.matrix).sum() == 20
    named = token_similarity(full, full, texts, settings=replace(SMALL, layers=[(3, 1), (0, 4)]))
    every = token_similarity(full, full, texts, settings=SMALL)
    assert named.pair(3, 1).cka.value == pytest.approx(every.matrix[3, 1], abs=1e-9)
    with pytest.raises(SiteError, match=r"Layers 2 and 2 were not compared: the pairs are \[\(3"):
        named.pair(2, 2)


def test_layers_of_unequal_depth_are_not_matched_by_themselves(full, distilled, texts, monkeypatch):
    settings = replace(SMALL, layers="matched")
    with pytest.raises(ModelError, match=r'full has 4 blocks and distilled 2.*layers="all"'):
        token_similarity(full, distilled, texts, settings=settings)
    monkeypatch.setattr("probes.comparison.representations.tokens._MOST_BYTES", 1)
    with pytest.raises(ModelError, match="fewer blocks and permutations, or name the pairs"):
        token_similarity(full, distilled, texts)
    assert len(token_similarity(full, full, texts, settings=SMALL).pairs) == 5


def test_a_saved_result_is_read_again(full, distilled, texts, tmp_path):
    result = token_similarity(full, distilled, texts, settings=SMALL)
    loaded = load_result(result.save(tmp_path / "tokens.json"))
    assert loaded.to_dict() == result.to_dict()
    assert loaded.summary() == result.summary()
    assert loaded.table().equals(result.table())
    assert len(result.table()) == 15
    page = result.save(tmp_path / "tokens.html").read_text(encoding="utf-8")
    assert "full and distilled over tokens" in page
    assert "48 texts, 15 pairs of layers" in result.summary()[0]


def similar(layer, low, chance_high):
    estimate = Estimate((low + 1) / 2, low, 1.0)
    return LayerSimilarity(layer, layer, estimate, chance_high - 0.1, chance_high, float("nan"))


def test_layers_that_chance_explains_are_named(tmp_path):
    pairs = [similar(0, 0.9, 0.3), *(similar(n, 0.8, 0.95) for n in range(1, 9))]
    result = TokenSimilarity("a", "b", "", 20, 100, 90, 8, 4, 0, tuple(pairs))
    assert [pair.is_above_chance for pair in pairs] == [True] + [False] * 8
    found = "\n".join(result.summary())
    assert "1 of 9 pairs of layers are above their own threshold" in found
    assert "not L1–L1, L2–L2, L3–L3, L4–L4, L5–L5, L6–L6 and 2 others." in found
    assert "massive activation" in found
    page = result.save(tmp_path / "few.html").read_text(encoding="utf-8")
    assert "chance, from its mean to the threshold" in page  # No matrix that is mostly empty.
    clear = replace(result, pairs=tuple(pairs[:1]))
    assert "1 of 1 pairs" in clear.summary()[-1] and "massive" not in clear.summary()[-1]


# Errors.


def test_too_few_texts_are_refused(full, distilled, texts):
    with pytest.raises(BatchError, match="No text is given: give at least 2 for each block"):
        token_similarity(full, distilled, iter(()))
    with pytest.raises(BatchError, match="15 texts are too few for 8 blocks of at least 2"):
        token_similarity(full, distilled, texts[:15])
    with pytest.raises(BatchError, match="One text is given, 'Tom"):
        token_similarity(full, distilled, "Tom had two dogs.")
    with pytest.raises(BatchError, match="2 tokens outside of one block are too few"):
        token_similarity(full, distilled, ["."] * 4, settings=replace(SMALL, blocks=2))


def test_neighbors_stay_in_one_block(full, distilled, texts):
    with pytest.raises(BatchError, match=r"48 texts .* smallest has 0.* fewer blocks or neighbors"):
        token_similarity(full, distilled, texts, settings=replace(SMALL, neighbors=10))
    twice = [text for text in texts for _ in range(2)]
    width = [
        token_similarity(full, distilled, given, settings=settings).pair(4, 2).cka
        for given, settings in (
            (texts, SMALL), (twice, replace(SMALL, neighbors=2)), (twice, SMALL)
        )
    ]  # fmt: skip
    once, as_one, as_two = (cka.high - cka.low for cka in width)
    assert as_one == pytest.approx(once, rel=0.1)
    assert as_two != pytest.approx(once, rel=0.1)


def test_a_text_that_cannot_be_read_is_named(full, distilled, texts):
    with pytest.raises(BatchError, match=r"Text 48, 'Tom .* has 2.. tokens, and full takes 128"):
        token_similarity(full, distilled, [*texts, "Tom had two dogs. " * 50])
    with pytest.raises(BatchError, match=r"Text 2, ' '.*has no text"):
        token_similarity(full, distilled, [*texts[:2], " "])
    with pytest.raises(BatchError, match="Text 0 is of type int: give texts, or questions"):
        token_similarity(full, distilled, iter([3]))


def test_settings_out_of_range_are_refused(full, distilled, texts):
    for name, value in (("blocks", 1), ("neighbors", 0), ("permutations", 0), ("chunk_tokens", 0)):
        with pytest.raises(BatchError, match=f"{value} {name} are too few"):
            token_similarity(full, distilled, texts, settings=replace(SMALL, **{name: value}))
    with pytest.raises(SiteError, match=r"Layers \(5, 0\) are not in full and distilled.*\(4, 2\)"):
        token_similarity(full, distilled, texts, settings=replace(SMALL, layers=[(5, 0)]))
    with pytest.raises(SiteError, match="layers is \\[\\]: choose"):
        token_similarity(full, distilled, texts, settings=replace(SMALL, layers=[]))


def test_models_that_read_other_tokens_are_refused(full, letters, texts):
    other = wrap(tiny_hf("llama", 0, vocab_size=128), name="letters", tokenizer=letters)
    with pytest.raises(
        TokenizerError, match=r"Text 0, .* tokens for full and .* for letters.*roles"
    ):
        token_similarity(full, other, texts)


def test_a_model_without_tokenizer_or_with_edits_is_refused(full, texts):
    with pytest.raises(ModelError, match="'tiny llama' has no tokenizer: load it with one"):
        token_similarity(full, tiny("llama"), texts)
    with (
        full.editing({"L0.MLP": lambda value: value * 0}),
        pytest.raises(ModelError, match="edits"),
    ):
        token_similarity(full, full, texts)


def test_states_that_are_not_finite_are_refused_with_their_place(full, texts):
    def spoil(value):
        value = value.clone()
        value[:, 3] = float("inf")
        return value

    # The logits of the last token stay finite where no later token reads the spoiled state.
    with (
        full.hooked({"blocks.3.hook_out": spoil}),
        pytest.raises(ModelError, match="of full are not finite in layer 4 on text"),
    ):
        read_at_once([full], texts)
