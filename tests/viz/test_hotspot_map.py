import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import jaxtyping
import numpy as np
import pytest

from probes.errors import FigureError
from probes.viz.colors import apply_colormap, to_hex
from probes.viz.page import page
from probes.viz.plots.hotspot_grid import (
    HotspotMap,
    HotspotMapBlock,
    ModelHotspotMaps,
    hotspot_map_picture,
)

NASTY = ("</script>", "<img src=x onerror=alert(1)>", "\"'&amp;\n", "\u202eabc", "$x$", "日本")
START = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
ROLES = ("x", "op", "y", "answer")
VARIABLES = ("operation", "x", "y", "object")


def model(name="full", layers=4, seed=0, roles=ROLES, variables=VARIABLES):
    draw = np.random.default_rng(seed)
    names = (*map(str, range(layers)), "out")
    maps = tuple(
        HotspotMap(v, draw.random((len(roles), layers + 1)), 0.2, ((0, 0),)) for v in variables
    )
    return ModelHotspotMaps(name, roles, names, maps, "accuracy 1.00")


def single(shares, null=0.3, **options):
    shares = np.array(shares)
    rows, columns = shares.shape
    one = HotspotMap("operation", shares, null, **options)
    return HotspotMapBlock(
        [ModelHotspotMaps("m", ROLES[:rows], [str(at) for at in range(columns)], [one])]
    )


def drawing(block):
    return ElementTree.fromstring(re.findall(r"<svg.*?</svg>", block.body, re.DOTALL)[0])


def hovers(block):
    """What says something on hover: its words, its shapes, and its text if it has any."""
    return {
        group.findtext("title", ""): (group.findall("path"), group.findtext("text"))
        for group in drawing(block).findall("g")
    }


def size(path):
    """Left, top, width and height of a rectangle."""
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d", ""))]
    return numbers[0], numbers[1], numbers[2], numbers[5]


def words(block):
    return [text.text for text in drawing(block).iter("text")]


@pytest.fixture
def unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen, self.names = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.names += [name for name, _ in attrs]


def test_a_cell_at_or_above_the_null_is_full_and_one_below_is_a_small_square():
    found = hovers(single([[0.3, 0.29]]))
    (full,), text = found["x, layer 0: 0.300 (null 0.300)"]
    assert text == "0.30" and full.get("fill") == to_hex(apply_colormap(np.array(0.3), "share"))
    (frame, square), text = found["x, layer 1: 0.290 (null 0.300)"]
    assert text is None and frame.get("fill") == "var(--paper)"
    assert square.get("fill") == to_hex(apply_colormap(np.array(0.29), "share"))
    assert size(square)[2] < size(frame)[2] / 3 and size(frame)[2:] == size(full)[2:]


def test_an_absent_role_is_a_dash_without_a_cell():
    paths, text = hovers(single([[np.nan]]))["x, layer 0: no such role"]
    assert paths == [] and text == "–"


def test_a_cell_says_of_how_many_it_is_where_that_is_known():
    block = single([[0.5]], counts=np.array([[128]]))
    assert "x, layer 0: 0.500 of 128 (null 0.300)" in hovers(block)


def test_cells_stand_in_the_row_of_their_role_and_the_column_of_their_layer():
    found = hovers(single([[0.5, 0.6], [0.7, 0.8]]))
    corner = {says.split(":")[0]: size(paths[0]) for says, (paths, _) in found.items() if paths}
    a, b, c = corner["x, layer 0"], corner["x, layer 1"], corner["op, layer 0"]
    assert b[0] > a[0] and b[1] == a[1] and c[1] > a[1] and c[0] == a[0]
    labels = {
        t.text: float(t.get("y", "nan")) for t in drawing(single([[0.5], [0.7]])).iter("text")
    }
    assert c[1] < labels["op"] < c[1] + c[3]


def test_a_ring_stands_around_its_cell_and_nowhere_else():
    block = single([[0.5, 0.6], [0.7, 0.1]], marked_sites=((1, 0),))
    rings = [p for p in drawing(block).findall("path") if p.get("stroke") == "var(--mark)"]
    assert len(rings) == 2 and "hotspot" in words(block)  # one is the legend's
    (cell,), _ = hovers(block)["op, layer 0: 0.700 (null 0.300)"]
    left, top, wide, high = size(rings[0])
    x, y, w, h = size(cell)
    assert left < x and top < y and left + wide >= x + w and top + high >= y + h
    plain = single([[0.5]])
    assert "hotspot" not in words(plain) and "var(--mark)" not in plain.body


def test_the_null_is_marked_on_the_color_bar_at_its_place():
    def mark(null):
        (line,) = (
            path
            for path in drawing(single([[0.5]], null)).findall("path")
            if path.get("stroke") == "var(--ink)"
        )
        return float(line.get("d", "")[1:].split()[0])

    low, middle, high = mark(0.0), mark(0.5), mark(1.0)
    assert high - middle == pytest.approx(middle - low, abs=0.2) and high > low


def test_nulls_that_differ_are_told_model_by_model():
    one, other = (
        ModelHotspotMaps(name, ROLES[:1], ["0"], [HotspotMap("x", np.ones((1, 1)), null)])
        for name, null in (("full", 0.1), ("distilled", 0.25))
    )
    assert "null: full 0.10, distilled 0.25" in words(HotspotMapBlock([one, other]))
    assert "null 0.10" in words(HotspotMapBlock([one, one]))


def test_models_may_differ_in_layers_and_variables():
    block = HotspotMapBlock([model(), model("distilled", 2, variables=("x", "z"))])
    found = words(block)
    assert found.count("out") == 4 + 2 and {"full", "distilled", "z", "accuracy 1.00"} <= set(found)
    assert found.count("not measured") == 3 + 1


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_overlaps_and_all_fits_nine_hundred_pixels(count):
    roles = tuple(f"role number {at}" for at in range(12))
    block = HotspotMapBlock([model(f"m{at}", roles=roles) for at in range(count)])
    root = drawing(block)
    assert float(root.get("width", "nan")) <= 910
    frames = [size(group.find("path")) for group in root.findall("g") if group.findall("path")]
    assert len(frames) == count * 4 * 12 * 5
    left, top, wide, high = np.array(frames).T
    assert (left + wide <= float(root.get("width", "nan"))).all()
    assert (top + high <= float(root.get("height", "nan"))).all()
    apart_x = left[:, None] + wide[:, None] <= left[None] + 0.11
    apart_y = top[:, None] + high[:, None] <= top[None] + 0.11
    apart = apart_x | apart_x.T | apart_y | apart_y.T
    assert apart[~np.eye(len(frames), dtype=bool)].all()


def test_many_layers_leave_no_room_for_numbers():
    found = hovers(
        HotspotMapBlock([model(layers=30, variables="x"), model("b", 30, variables="x")])
    )
    texts = [text for says, (_, text) in found.items() if "null" in says]
    assert texts and not any(texts)


def test_the_numbers_are_there_as_a_table_too():
    block = HotspotMapBlock([model(), model("distilled", 2)])
    table = block.body[block.body.index("<details") :]
    share = block.models[1].maps[2].fractions[3]
    assert f"0: {share[0]:.2f}, 1: {share[1]:.2f}, out: {share[2]:.2f}" in table
    assert table.count("<tr>") == 1 + 4 * 4


def nasty():
    bad = NASTY[1]
    maps = [HotspotMap(bad, np.full((6, 6), 0.5), 0.2)]
    return HotspotMapBlock([ModelHotspotMaps(bad, NASTY, NASTY, maps, bad)], bad)


def test_hostile_text_makes_no_tag_and_no_handler(tmp_path):
    text = page("p", [("h", "", [nasty()])]).save(tmp_path / "p.html").read_text()
    tags = Tags(text)
    assert tags.seen.count("script") == 1 and "img" not in tags.seen
    assert not [name for name in tags.names if name.startswith("on")]
    assert "\u202e" not in text and not re.search(r"https?:|url\(|@import", text)


def test_styles_stay_inside_the_picture():
    for style in re.findall(r"<style>(.*?)</style>", nasty().body):
        assert all(one.startswith(".pv.pv ") for one in re.findall(r"([^{}]+)\{", style))


@pytest.mark.parametrize("suffix", START)
def test_the_picture_saves_as_a_figure(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    saved = hotspot_map_picture(nasty(), title=NASTY[1]).save(tmp_path / f"p.{suffix}").read_bytes()
    assert saved.startswith(START[suffix]) and len(saved) > 2000


def test_the_same_picture_is_the_same_file(tmp_path):
    pytest.importorskip("matplotlib")
    for suffix in ("svg", "html"):
        first, second = (
            hotspot_map_picture(nasty()).save(tmp_path / f"{name}.{suffix}").read_bytes()
            for name in "ab"
        )
        assert first == second


def test_drawing_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "<svg" in hotspot_map_picture(nasty())._repr_html_()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: HotspotMap("x", np.full((1, 1), 1.2), 0.1), "outside 0 to 1"),
        (lambda: HotspotMap("x", np.ones((1, 1)), np.nan), "outside 0 to 1"),
        (lambda: HotspotMap("x", np.ones((1, 1)), 0.1, ((0, 1),)), r"no cell \(0, 1\)"),
        (
            lambda: HotspotMap("x", np.ones((1, 1)), 0.1, (), np.ones((2, 1), int)),
            "one count for each",
        ),
        (
            lambda: ModelHotspotMaps("m", ["a"], ["0"], [HotspotMap("x", np.ones((2, 1)), 0.1)]),
            "1 roles",
        ),
        (lambda: model(variables=("x", "x")), "two maps of one variable"),
        (lambda: HotspotMapBlock([]), "nothing to draw"),
        (lambda: HotspotMapBlock([model(), model(roles=ROLES[::-1])]), "different roles"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, says, unchecked):
    with pytest.raises(FigureError, match=says):
        make()
