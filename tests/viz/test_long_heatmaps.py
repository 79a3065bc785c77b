"""Heatmaps of long texts, shared keys and values, and axes of the user's own."""

import inspect
import re
import time

import numpy as np
import pytest

from probes.errors import BatchError, FigureError
from probes.models.model import load
from probes.observe.activations import capture
from probes.prompts.catalog import pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import tokenize
from probes.viz import AttentionMaps, head_grid, head_map
from probes.viz.picture import Picture
from probes.viz.plots.attention import pooling
from probes.viz.plots.attention.heatmap import heatmap
from probes.viz.plots.attention.pooling import block_size, pool_blocks

FOX = "If I have two foxes and I take away one, how many foxes do I have?"


def long_maps(model="full", layers=1, count=2, tokens=1024, seed=0, **options):
    """Each query attends to one earlier token, a head's own distance back, and to the first."""
    weights = np.full((layers, count, tokens, tokens), np.nan, dtype=np.float32)
    weights[..., np.tril(np.ones((tokens, tokens), dtype=bool))] = 0
    for layer, head in np.ndindex(layers, count):
        for query in range(tokens):
            weights[layer, head, query, 0] += 0.25
            weights[layer, head, query, max(0, query - 1 - head - seed)] += 0.75
    names = tuple(f"t{at}" for at in range(tokens))
    return AttentionMaps(model, weights, names, names, **options)


def test_attention_between_blocks_is_summed_over_keys_and_averaged_over_queries():
    weights = np.array(
        [[1, np.nan, np.nan], [0.5, 0.5, np.nan], [0.2, 0.3, 0.5]], dtype=float
    )  # The last block of keys and of queries has one token.
    assert pool_blocks(weights, 2) == pytest.approx(
        np.array([[1.0, np.nan], [0.5, 0.5]]), nan_ok=True
    )
    assert pool_blocks(weights, 1) is weights


@pytest.mark.parametrize("block", [2, 5, 16])
def test_rows_of_pooled_attention_sum_to_1(block):
    pooled = pool_blocks(long_maps(tokens=37).weights, block)
    assert np.nansum(pooled, -1) == pytest.approx(np.ones(pooled.shape[:-1]), abs=1e-5)
    assert np.isnan(pooled[..., np.triu(np.ones(pooled.shape[-2:], dtype=bool), k=1)]).all()


def test_the_size_of_a_block_follows_the_number_of_heads():
    assert block_size(20, 300) == 1
    assert block_size(1024, 16) == 4  # At most 256 blocks a side.
    assert 270 * (1024 // block_size(1024, 270)) ** 2 <= pooling.MAX_CELLS


def test_a_grid_of_1024_tokens_is_pooled_and_says_so():
    left, right = long_maps(), long_maps("int4", seed=3)
    began = time.thread_time()
    body = head_grid(left, right, start=(0, 1)).body
    assert time.thread_time() - began < 20
    assert len(body) < 500_000
    assert "full: 1,024 tokens, pooled in blocks of 4 × 4" in body
    assert body.count("Token by token: L0.H1.") == 2
    assert body.count("<td") < 100  # Cells are left to the script.


def test_tokens_of_two_long_texts_that_differ_have_no_difference():
    left, right = long_maps(), long_maps("b")
    other = AttentionMaps("b", right.weights, left.rows, ("other", *left.columns[1:]))
    assert "no difference to show" in head_grid(left, other).body
    assert "no difference to show" not in head_grid(left, right).body


def test_one_head_of_1024_tokens_keeps_its_name_and_is_exact():
    picture = head_map(long_maps(), 0, 1)
    assert "pooled" not in picture.body and "full, L0.H1" in picture.body
    assert picture.title == "Attention of full L0.H1"
    assert picture.body.count("<td") < 10


def test_a_figure_of_1024_tokens_has_labels_that_do_not_overlap(tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    picture = head_map(long_maps(), 0, 1)
    picture.draw(figure)
    assert len(figure.axes[0].get_xticks()) <= 64
    assert max(figure.get_size_inches()) < 16
    assert picture.save(tmp_path / "p.png").stat().st_size > 2000


def test_heads_that_share_keys_and_values_are_marked():
    names = ("a", "b")
    maps = AttentionMaps("m", np.zeros((1, 6, 2, 2)), names, names, kv_heads=2)
    body = head_grid(maps).body
    assert re.findall(r'colspan="3" class="pv-group">(K,V \d)<', body) == ["K,V 0", "K,V 1"]
    assert 'aria-label="m, L0.H4 (shares K,V with H3, H5)"' in body
    for kv_heads in (0, 6):
        plain = AttentionMaps("m", np.zeros((1, 6, 2, 2)), names, names, kv_heads=kv_heads)
        assert "K,V" not in head_grid(plain).body
    with pytest.raises(FigureError, match="kv_heads is 4 for 6 heads"):
        AttentionMaps("m", np.zeros((1, 6, 2, 2)), names, names, kv_heads=4)


# --- models -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full():
    return load("full")


def test_a_long_text_is_run_layer_by_layer_and_its_sharpest_heads_are_exact(full, monkeypatch):
    monkeypatch.setattr(pooling, "MAX_CELLS", 16 * 64)
    kept = []

    def keep(maps, **_):
        kept.append(maps)
        return Picture("", "")

    monkeypatch.setattr("probes.viz.plots.attention.heatmap.head_grid", keep)
    heatmap(full, FOX)
    (maps,) = kept
    batch = tokenize(full.tokenizer, (Question.from_text(FOX),))
    whole = capture(full, batch, ("attention",))["attention"][:, 0].numpy().astype(float)
    tokens = whole.shape[-1]
    whole = np.where(np.tril(np.ones((tokens, tokens), dtype=bool)), whole, np.nan)
    block = maps.long_text.block
    assert block > 1 and maps.weights == pytest.approx(pool_blocks(whole, block), nan_ok=True)
    assert maps.long_text.tokens == batch.tokens[0]
    assert maps.long_text.exact
    for head, weights in maps.long_text.exact.items():
        assert weights == pytest.approx(whole[head], nan_ok=True)


def test_heads_are_drawn_on_axes_of_the_user(full):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    one, every = figure.subplots(1, 2)
    heatmap(full, FOX, head="L1.H0", ax=one)
    heatmap(full, FOX, ax=every)
    assert one.get_title() == "full L1.H0" and len(one.images) == 1
    assert len(every.images) == 1 and len(figure.axes) == 2  # One image of all heads.
    with pytest.raises(FigureError, match="ax holds one model"):
        heatmap(full, FOX, compare_with=full, ax=one)


@pytest.mark.parametrize("texts", [["a b", "c d"], ["a b"], 3])
def test_a_heatmap_of_several_texts_is_refused_with_what_was_given(texts):
    unchecked = inspect.unwrap(heatmap)
    with pytest.raises(BatchError, match=f"'{type(texts).__name__}' found: give a single text or"):
        unchecked("full", texts)


def test_the_roles_of_a_heatmap_are_those_of_a_pattern_or_of_its_name():
    full = load("full")
    by_name, given = (
        heatmap(full, FOX, roles=roles) for roles in ("take-away", pattern("take-away"))
    )
    assert by_name.body == given.body
