import base64
import json
import re
import sys
import zlib
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from probes.errors import FigureError
from probes.viz import (
    AttentionMaps,
    Interval,
    IntervalPlot,
    Matrix,
    Note,
    Picture,
    Table,
    TableCell,
    head_grid,
    head_map,
    page,
)
from probes.viz.colors import COLOR_STOPS, MISSING_COLOR, apply_colormap, text_color, to_hex
from probes.viz.drawing import DARK_COLORS, LIGHT_COLORS
from probes.viz.embedding_data import encode_array, encode_png
from probes.viz.html_text import axis_label, escape, json_attribute, show_invisible
from probes.viz.picture import html_fragment
from probes.viz.plots.attention.heatmap import _pairs_by_attention, _sharpest_heads
from probes.viz.plots.heat_table import HeatTableStyle, format_short

NASTY = (
    "</script>",
    "<img src=x onerror=alert(1)>",
    "&amp;",
    "\"'",
    "\n",
    "\u202eabc",
    "\x00",
    "\ud800",
    "\u2028",
    " the",
    "",
    "$x$",
    "日本",
)


def heads(model="full", layers=4, count=4, labels=("bos", "x", "op", "ask"), seed=0):
    """Made-up causal attention whose rows sum to 1."""
    draw = np.random.default_rng(seed)
    size = len(labels)
    weights = draw.random((layers, count, size, size)) ** 4
    later = np.triu(np.ones((size, size), dtype=bool), k=1)
    weights[..., later] = 0
    weights /= weights.sum(axis=-1, keepdims=True)
    weights[..., later] = np.nan
    return AttentionMaps(model, weights, tuple(labels), tuple(labels), error=weights * 0.1)


def report():
    """A page with every kind of block, and hostile text wherever text may stand."""
    bad = NASTY[1]
    picture = head_grid(heads(bad, labels=NASTY), heads("distilled", 2, labels=NASTY, seed=1))
    blocks = [
        Table([bad, "b"], [[bad, TableCell("0.3", "bad", hover=bad)]], caption=bad, notes=[bad]),
        Note(bad, "good"),
        Matrix(np.array([[0.5, np.nan]]), [bad], ["x", NASTY[0]], caption=bad, corner=(bad, "")),
        IntervalPlot(
            [Interval(bad, 0.5, 0.4, 0.6, (0.1, 0.2), (0.3,), 0.9, "good")], bad, axis=bad
        ),
        picture,
    ]
    return page(bad, [(bad, bad, blocks), ("two", "", [])], [Note(NASTY[0], "bad")], bad)


class Reader(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.depth = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("img", "meta", "br", "input"):
            self.depth.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.depth.pop() == tag, f"</{tag}> closes something else"


def live(cell):
    """HTML that the script of a notebook cell puts in place of the static picture."""
    packed = re.search(r'data-live="([^"]+)"', cell)[1]
    return zlib.decompress(base64.b64decode(packed)).decode()


@pytest.fixture
def unchecked():
    """What a user meets, without the runtime shape checks of this suite."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=["head", "grid", "page"])
def picture(request):
    made = {
        "head": lambda: head_map(heads(labels=NASTY), 1, 2),
        "grid": lambda: head_grid(heads(labels=NASTY), heads("distilled", 2, labels=NASTY)),
        "page": report,
    }
    return made[request.param]()


# --- text -------------------------------------------------------------------------------------


def test_invisible_characters_are_written_out():
    assert show_invisible("a\nb\x00\u202e\ud800") == "a⏎b␀<U+202E><U+D800>"


def test_spaces_at_the_ends_of_a_token_and_empty_tokens_are_visible():
    assert [axis_label(text) for text in (" the", "a b", "  ", "")] == ["␣the", "a b", "␣␣", "∅"]


def test_escaped_text_cannot_leave_an_attribute_or_open_a_tag():
    assert not set(escape("<\"'>")) & set("<\"'>")


def test_json_in_an_attribute_survives_and_cannot_close_a_script():
    words = ["</script>", "&", "\u2028\u2029", "\"'"]
    text = json_attribute(words)
    assert json.loads(unescape(text)) == words
    assert not set(unescape(text)) & set("<>&\u2028\u2029")


# --- colors and numbers ----------------------------------------------------------------------


def test_missing_cells_are_gray_and_gray_is_on_neither_scale():
    for scale in COLOR_STOPS:
        assert tuple(apply_colormap(np.array([np.nan]), scale)[0]) == MISSING_COLOR
        assert (
            not (apply_colormap(np.linspace(-1, 1, 2001), scale) == MISSING_COLOR)
            .all(axis=-1)
            .any()
        )


def test_zero_is_the_middle_of_the_signed_scale():
    less, none, more = apply_colormap(np.array([-1.0, 0.0, 1.0]), "diverging").astype(int)
    assert np.ptp(none) <= 2 and none.min() > 240
    assert less[2] > less[0] and more[0] > more[2]


def test_fractions_grow_lighter_steadily():
    brightness = apply_colormap(np.linspace(0, 1, 50), "sequential") @ np.array(
        [0.299, 0.587, 0.114]
    )
    assert (np.diff(brightness) > 0).all()


def test_numbers_fit_their_cells_and_changes_carry_their_sign():
    share, change = HeatTableStyle("", cell_px=22), HeatTableStyle("", signed=True, cell_px=22)
    assert [format_short(v, share) for v in (0.414, 1.0, 0.001, np.nan)] == [".41", "1", "0", ""]
    assert [format_short(v, change) for v in (0.414, -0.414)] == ["+.41", "\N{MINUS SIGN}.41"]


def test_encoded_numbers_are_exact_to_four_decimals():
    import base64
    import zlib

    values = np.array([0.0, 0.12345, 1.0, np.nan])
    packed = encode_array(values)
    ints = np.frombuffer(zlib.decompress(base64.b64decode(packed["text"])), "<u2")
    assert ints[3] == packed["levels"] + 1
    assert np.allclose(ints[:3] / packed["levels"], values[:3], atol=1e-5)


def test_a_png_decodes_to_the_same_pixels():
    image = pytest.importorskip("matplotlib.image")
    import io

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (np.rint(image.imread(io.BytesIO(encode_png(pixels))) * 255) == pixels).all()


# --- the input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": np.zeros((2, 3, 3))}, "layer x head x query x key"),
        ({"rows": ("a",)}, "name each one"),
        ({"weights": np.full((1, 1, 2, 2), 1.5)}, "after the softmax"),
        ({"weights": np.full((1, 1, 2, 2), -0.5)}, "after the softmax"),
        ({"weights": np.full((1, 1, 2, 2), np.inf)}, "after the softmax"),
        ({"error": np.zeros((1, 1, 2, 1))}, "one standard error for each"),
        ({"error": np.full((1, 1, 2, 2), -0.1)}, "not negative"),
    ],
)
def test_maps_that_are_not_attention_are_refused(change, says, unchecked):
    given = {"model": "m", "weights": np.zeros((1, 1, 2, 2)), "rows": ("a", "b")}
    given |= {"columns": ("a", "b")} | change
    with pytest.raises(FigureError, match=says):
        AttentionMaps(**given)


def test_rounding_just_above_one_is_accepted():
    AttentionMaps("m", np.full((1, 1, 1, 1), 1.00001, dtype=np.float32), ("a",), ("a",))


# --- any picture ------------------------------------------------------------------------------


def test_nothing_refers_to_external_resources(picture):
    text = live(picture._repr_html_()) + picture._repr_html_()
    reader = Reader(text)
    assert not re.search(r"https?:|@import|url\(", text)
    assert not {"link", "iframe", "object", "embed", "base"} & set(reader.tags)
    for tag, name, value in reader.attributes:
        if name in ("src", "href", "srcset", "action"):
            assert value.startswith(("data:image/png;base64,", "#part-")), (tag, name, value)


def test_hostile_text_makes_no_tag_and_no_handler(picture, tmp_path):
    cell = picture._repr_html_()
    for text in (cell, live(cell), picture.save(tmp_path / "p.html").read_text()):
        reader = Reader(text)
        assert not reader.depth
        assert reader.tags.count("script") == 1
        assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
        assert all(
            value.startswith("data:") for _, name, value in reader.attributes if name == "src"
        )
        assert "\u202e" not in text and "\x00" not in text


def test_a_saved_page_forbids_the_network_and_foreign_scripts(picture, tmp_path):
    text = picture.save(tmp_path / "p.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none';")
    assert "script-src 'sha256-" in policy and "img-src data:" in policy


def test_a_notebook_gets_html_and_one_line_of_text(picture):
    bundle = picture._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert bundle["text/plain"] == repr(picture)
    assert repr(picture).startswith("Picture(") and "\n" not in repr(picture)


def test_styles_stay_inside_the_picture(picture):
    style = re.search(r"<style>(.*?)</style>", html_fragment(picture.body), re.DOTALL)[1]
    flat = re.sub(r"@media[^{]*\{|/\*.*?\*/", "", style)
    for rule in re.findall(r"([^{}]+)\{", flat):
        for selector in re.split(r",(?![^()]*\))", rule):
            # The theme of a notebook stands on an element around the picture.
            own = re.sub(r"^(\[data-jp-theme-light=\w+\]|\.vscode-\w+) ", "", selector.strip())
            assert own.startswith((".pv", "body.pv-page")), selector


def test_drawings_in_files_have_the_colors_of_the_page():
    style = html_fragment("")
    for name, dark in DARK_COLORS.items():
        light = {"#ffffff": "#fff"}.get(LIGHT_COLORS[name], LIGHT_COLORS[name])
        assert f"--{name}:light-dark({light},{dark})" in style
    assert {name for name, color in LIGHT_COLORS.items() if color != "none"} == set(DARK_COLORS)


def test_numbers_on_colors_have_enough_contrast():
    """WCAG 2 asks for 4.5."""
    for scale in COLOR_STOPS:
        for color in apply_colormap(np.linspace(-1, 1, 101), scale):
            linear = np.where(
                color <= 0.04045 * 255, color / 255 / 12.92, ((color / 255 + 0.055) / 1.055) ** 2.4
            )
            ground = 0.05 + linear @ (0.2126, 0.7152, 0.0722)
            contrast = 1.05 / ground if text_color(color) == "#fff" else ground / 0.05
            assert contrast >= 4.5


def test_the_same_picture_is_the_same_page(tmp_path):
    first, second = (report().save(tmp_path / f"{name}.html").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.filterwarnings("error")
def test_figures_are_saved_in_each_form_even_with_hostile_labels(suffix, tmp_path):
    pytest.importorskip("matplotlib")
    ours, theirs = heads(labels=NASTY), heads("dis$tilled$", 2, labels=NASTY)
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for name, made in (("head", head_map(ours, 0, 1)), ("grid", head_grid(ours, theirs))):
        saved = made.save(tmp_path / f"{name}{suffix}").read_bytes()
        assert saved.startswith(starts[suffix]) and len(saved) > 2000


def test_without_matplotlib_a_figure_names_the_extra_and_a_page_works(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    made = head_map(heads(), 0, 0)
    with pytest.raises(FigureError, match=r"pip install 'circuit-relatives\[figures\]'"):
        made.save(tmp_path / "p.png")
    assert made.save(tmp_path / "p.html").exists()
    assert [found.name for found in tmp_path.iterdir()] == ["p.html"]


@pytest.mark.parametrize("name", ["p", "p.jpg", "none/p.html", "folder.html"])
def test_a_path_that_cannot_be_written_is_refused_without_leftovers(name, tmp_path):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(FigureError):
        head_map(heads(), 0, 0).save(tmp_path / name)
    assert [found.name for found in tmp_path.rglob("*")] == ["folder.html"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    place = tmp_path / "p.html"
    place.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(FigureError, match="No space left"):
        head_map(heads(), 0, 0).save(place)
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_a_page_has_no_figure_form(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(FigureError, match=r"save it as \.html"):
        report().save(tmp_path / "p.pdf")


# --- heads ------------------------------------------------------------------------------------


def test_a_head_shows_labels_numbers_and_errors():
    maps = heads(labels=(" the", "cat"))
    body = head_map(maps, 1, 2).body
    assert "␣the" in body and "cat" in body
    value, error = maps.weights[1, 2, 1, 0], maps.error[1, 2, 1, 0]
    assert f'data-v="{value:.3f} ± {error:.3f}"' in body


def test_masked_cells_of_a_head_are_gray_with_a_tooltip():
    body = head_map(heads(labels=("a", "b")), 0, 0).body
    color = f"background-color:{to_hex(MISSING_COLOR)}"
    gray = f'<td class="pv-none" style="{color}" data-v="no such cell">'
    assert body.count(gray) == 1


@pytest.mark.parametrize("place", [(4, 0), (0, 4), (-1, 0)])
def test_a_head_that_the_model_lacks_is_refused(place):
    with pytest.raises(FigureError, match="choose a layer from 0 to 3"):
        head_map(heads(), *place)


def cells(body):
    """The color and the number of each cell of each enlarged map."""
    tables = re.findall(r'<table class="pv-heat.*?</table>', body, re.DOTALL)
    return [
        re.findall(r'<td.*?background-color:(#\w+).*?data-v="([^"]+)"', table) for table in tables
    ]


def test_equal_numbers_have_equal_colors_in_both_models():
    """One head is faint and the other strong; each keeps the same scale from 0 to 1."""
    faint, strong = (
        AttentionMaps(name, np.array([[[[0.2, top]]]]), ("q",), ("a", "b"))
        for name, top in (("faint", 0.3), ("strong", 0.8))
    )
    left, right, _ = cells(head_grid(faint, strong).body)
    assert left[0] == right[0] and left[1] != right[1]


def test_a_difference_is_right_minus_left():
    ours, theirs = (
        AttentionMaps(name, np.array([[[[weight]]]]), ("q",), ("k",))
        for name, weight in (("full", 0.75), ("distilled", 0.25))
    )
    body = head_grid(ours, theirs).body
    assert cells(body)[2][0][1] == "\N{MINUS SIGN}0.500"
    assert "distilled \N{MINUS SIGN} full" in body
    assert 'class="pv-change">\N{MINUS SIGN}0.50<' in body


def thumbs(body, panel):
    part = re.search(rf'data-panel="{panel}".*?</figure>', body, re.DOTALL)[0]
    return re.findall(r'aria-label="([^"]*)" aria-pressed', part)


def test_models_of_different_size_are_compared_on_common_heads():
    body = head_grid(heads(layers=4, count=2), heads("distilled", layers=2, count=3)).body
    assert [len(thumbs(body, panel)) for panel in ("left", "right", "change")] == [8, 6, 6]
    assert ["no partner" in says for says in thumbs(body, "change")] == [0, 0, 1, 0, 0, 1]


def test_given_pairs_are_the_ones_compared():
    ours, theirs = heads(), heads("distilled", 2, seed=1)
    body = head_grid(ours, theirs, pairs=[((3, 1), (0, 2))]).body
    known = [says for says in thumbs(body, "change") if "no partner" not in says]
    assert len(known) == 1 and "L0.H2 \N{MINUS SIGN} L3.H1" in known[0]
    value = theirs.weights[0, 2, 1, 0] - ours.weights[3, 1, 1, 0]
    shown = cells(body)[2][len(ours.columns)][1].replace("\N{MINUS SIGN}", "-")
    assert float(shown) == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize(
    "pairs", [[((9, 0), (0, 0))], [((0, 0), (0, 0)), ((0, 0), (0, 1))], [((0, 0), (3, 0))]]
)
def test_pairs_that_do_not_fit_the_models_are_refused(pairs):
    with pytest.raises(FigureError):
        head_grid(heads(), heads("distilled", 2), pairs=pairs)


def test_the_start_head_is_enlarged_even_without_a_partner():
    body = head_grid(heads(), heads("distilled", 2), start=(3, 1)).body
    assert "L3.H1</figcaption>" in body and "No partner in distilled" in body


def test_models_with_other_labels_are_shown_without_a_difference():
    body = head_grid(heads(), heads("distilled", 2, labels=("a", "b", "c"))).body
    assert 'data-panel="change"' not in body
    assert "no difference to show" in body


def test_one_model_alone_has_one_panel():
    body = head_grid(heads()).body
    assert re.findall('data-panel="([^"]+)"', body) == ["left"]


def test_missing_heads_are_gray_thumbnails():
    maps = heads()
    weights = maps.weights.copy()
    weights[0, 3] = np.nan
    body = head_grid(AttentionMaps("m", weights, maps.rows, maps.columns)).body
    assert [says for says in thumbs(body, "left") if "no such head" in says] == [
        "m, L0.H3: no such head"
    ]


def test_every_thumbnail_is_a_labeled_button_with_an_image():
    body = head_grid(heads()).body
    assert len(re.findall(r'<button type="button"[^>]*aria-label="full, L\d.H\d"', body)) == 16
    assert len(re.findall(r'<img alt="full, L\d.H\d"[^>]*src="data:image/png', body)) == 16


@pytest.mark.parametrize(
    ("layers", "count", "tokens", "most"), [(4, 4, 14, 150), (12, 12, 24, 800), (12, 12, 128, 2000)]
)
def test_pages_stay_small(layers, count, tokens, most):
    ours = heads("full", layers, count, [f"t{at}" for at in range(tokens)])
    theirs = heads("distilled", layers // 2, count, ours.rows, seed=1)
    ours, theirs = (AttentionMaps(m.model, m.weights, m.rows, m.columns) for m in (ours, theirs))
    assert len(html_fragment(head_grid(ours, theirs).body)) < most * 1024


# --- reports ----------------------------------------------------------------------------------


def test_a_page_leads_with_its_verdicts_and_contents():
    sections = [("First", "Lead.", [Note("n")]), ("Second", "", [])]
    body = page("Title", sections, [Note("It was kept.", "good")], "sub").body
    order = [body.index(text) for text in ("Title", "sub", "It was kept.", "Contents", "Lead.")]
    assert order == sorted(order)
    targets = re.findall(r'href="#([^"]+)"', body)
    assert targets == re.findall(r'id="([^"]+)"', body) and len(targets) == 2


def test_blocks_show_themselves_in_a_notebook():
    blocks = [
        Table(["a"], [["1"]]),
        Note("n"),
        Matrix(np.zeros((1, 1)), ["r"], ["c"]),
        IntervalPlot([Interval("a", 0.5)]),
    ]
    for block in blocks:
        assert block.body in live(block._repr_html_())
        assert "\n" not in repr(block)


def test_a_table_cell_has_a_tone_mark_and_a_tooltip():
    body = Table(["a"], [[TableCell("0.9", "good", hover="why")]]).body
    assert 'data-tone="good"' in body and 'title="why"' in body
    assert 'data-tone=good]::before{content:"✓' in live(Note("n")._repr_html_())


def test_rows_that_do_not_fit_their_columns_are_refused(unchecked):
    with pytest.raises(FigureError, match="row 1 has 1 cells"):
        Table(["a", "b"], [["1", "2"], ["3"]])
    with pytest.raises(FigureError, match="align"):
        Table(["a", "b"], [["1", "2"]], align="lx")
    with pytest.raises(FigureError, match="name each row and column"):
        Matrix(np.zeros((2, 1)), ["r"], ["c"])


def test_a_matrix_has_signs_errors_and_gray_missing_cells():
    body = Matrix(np.array([[0.5, -0.25, np.nan]]), ["r"], list("abc"), np.full((1, 3), 0.1)).body
    assert "+0.50<small>±0.10" in body and "\N{MINUS SIGN}0.25<small>±0.10" in body
    assert to_hex(MISSING_COLOR) in body


def test_an_interval_plot_places_each_number_on_its_axis():
    plot = IntervalPlot(
        [Interval("a", 0.5, 0.25, 0.75, chance=(0.1, 0.2), null=(0.3,), upper_reference=0.9)]
    )
    body = plot.body
    assert '<circle class="pv-dot" cx="50.00%"' in body
    assert 'x1="25.00%" x2="75.00%"' in body
    assert '<rect class="pv-band" x="10.00%" y="4" width="10.00%"' in body
    assert 'x1="30.00%"' in body and '<svg x="90.00%"' in body
    assert "0.50 [0.25, 0.75]" in body


def test_the_axis_widens_for_numbers_beyond_it():
    body = IntervalPlot([Interval("a", -1.0), Interval("b", 1.0)]).body
    assert 'cx="0.00%"' in body and 'cx="100.00%"' in body


@pytest.mark.parametrize("wrong", [(np.nan, None, None), (0.5, 0.6, 0.4), (0.5, 0.4, None)])
def test_invalid_intervals_are_refused(wrong, unchecked):
    with pytest.raises(FigureError):
        Interval("a", *wrong)


def test_viz_imports_without_torch():
    """Results may be read and drawn where no model can run."""
    import subprocess

    code = "import sys, probes.viz; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_are_compared_by_identity():
    assert Picture("a", "b") != Picture("a", "b")


def sharp(at, layers=2, size=4):
    """Uniform heads, but one whose queries attend to the token before them."""
    weights = np.tril(np.ones((layers, 2, size, size)))
    weights[at] = 0.01
    weights[at][np.arange(1, size), np.arange(size - 1)] = 1.0
    weights = np.tril(weights)
    weights /= weights.sum(-1, keepdims=True)
    return AttentionMaps("m", weights, tuple("abcd"), tuple("abcd"))


def test_a_heatmap_opens_on_the_head_that_attends_most_to_one_token():
    assert _sharpest_heads(sharp((1, 0)), None)[0] == (1, 0)
    assert _sharpest_heads(sharp((0, 1)), [((0, 1), (0, 0))]) == [(0, 1)]


def test_heads_of_models_of_another_depth_are_paired_by_their_attention():
    assert _pairs_by_attention(sharp((1, 0)), sharp((0, 1))) is None
    pairs = dict(_pairs_by_attention(sharp((1, 0)), sharp((0, 1), layers=1)))
    assert pairs[1, 0] == (0, 1) and len(pairs) == 2
