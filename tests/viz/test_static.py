"""Pictures in notebooks that are not trusted: what is left where scripts and styles are removed."""

import base64
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from svg_reader import NASTY

from probes.viz import AttentionMaps, Interval, IntervalPlot, Note, Table, head_grid, page
from probes.viz.drawing import Curve, Drawing, DrawingShape, Group, TextLabel, scrollable_svg
from probes.viz.figure import drawing_picture
from probes.viz.static import parse_svg, small_png, static_html

pytest.importorskip("matplotlib")

# Of the sanitizer of JupyterLab 4 (packages/apputils/src/sanitizer.ts), what pictures could use:
# scripts and styles go with their content, other tags only themselves, and `src` may hold data.
TAGS = {"a", "b", "br", "button", "details", "div", "figcaption", "figure", "h1", "h2", "h3"}
TAGS |= {"header", "img", "input", "label", "li", "nav", "ol", "p", "section", "small", "span"}
TAGS |= {"summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr"}
JUPYTERLAB = {"alt", "class", "colspan", "height", "hidden", "href", "id", "open", "scope", "src"}
JUPYTERLAB |= {"style", "tabindex", "title", "type", "width"}
# GitHub's viewer removes these, too.
GITHUB = JUPYTERLAB - {"class", "hidden", "id", "style", "tabindex"}
VOID = {"br", "img", "input"}


class Sanitizer(HTMLParser):
    """HTML with the allowed tags and attributes, and the text between all tags."""

    def __init__(self, text, attributes):
        super().__init__(convert_charrefs=False)
        self.attributes, self.parts, self.words, self.skipped = attributes, [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "style"):
            self.skipped = tag
        elif tag in TAGS:
            kept = "".join(f' {n}="{v}"' for n, v in attrs if n in self.attributes)
            self.parts.append(f"<{tag}{kept}>")

    def handle_endtag(self, tag):
        if tag == self.skipped:
            self.skipped = None
        elif tag in TAGS - VOID:
            self.parts.append(f"</{tag}>")

    def handle_data(self, data):
        if not self.skipped:
            self.parts.append(data)
            self.words.append(data)

    @property
    def html(self):
        return "".join(self.parts)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def grid(labels=("bos", "x", "op", "ask")):
    size = len(labels)
    weights = np.tril(np.ones((2, 2, size, size))) / np.arange(1, size + 1)[:, None]
    return head_grid(AttentionMaps("full", weights, labels, labels))


def drawing():
    parts = (
        DrawingShape(((10, 10), (60, 10), (60, 30.5)), "#0072b2", "ink", 2),
        Group("a < b", (DrawingShape(((80, 20),), "mark", radius=4), TextLabel(90, 24, "<x> & y"))),
        Curve(((0, 50), (10, 60), (20, 40), (30, 50)), "up", 1.5, 0.5, (4.0, 2.0)),
        TextLabel(5, 70, "tall", 9, "middle", "soft", bold=True, rotated=True),
    )
    return Drawing(200, 80, parts, "a drawing", "what it shows")


def chart():
    return drawing_picture("A chart", scrollable_svg(drawing(), ""), drawing())


def whole_page():
    sections = [
        ("Seen", "Intro.", [Table(["head", "score"], [["L0.H1", 0.5]]), chart(), grid()]),
        ("Folded", "", [Table(["secret"], [["left out"]])]),
    ]
    return page("A page", sections, [Note("The finding.", "good")], folded=("Folded",))


PICTURES = {"grid": (grid, 1), "chart": (chart, 1), "page": (whole_page, 2)}


@pytest.mark.parametrize("viewer", [JUPYTERLAB, GITHUB], ids=["JupyterLab", "GitHub"])
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_left_where_scripts_and_styles_are_removed(name, viewer):
    picture, images = PICTURES[name]
    left = Sanitizer(picture()._repr_html_(), viewer)
    data = re.findall(r'<img src="data:image/png;base64,([^"]+)"', left.html)
    assert len(data) == images == left.html.count("<img")
    assert all(base64.b64decode(one).startswith(b"\x89PNG") for one in data)
    if name != "page":
        assert left.text == ""  # Nothing of the interactive picture is shown as bare text.


@pytest.mark.parametrize("viewer", [JUPYTERLAB, GITHUB], ids=["JupyterLab", "GitHub"])
def test_a_page_without_scripts_has_its_findings_and_tables(viewer):
    left = Sanitizer(whole_page()._repr_html_(), viewer)
    for words in ("A page", "The finding.", "1. Seen", "Intro.", "L0.H1", "0.50"):
        assert words in left.text
    assert "left out" not in left.text and "Left out without scripts: Folded." in left.text
    assert left.html.count("<table>") == 1


def test_estimates_are_a_table_without_scripts():
    block = IntervalPlot([Interval("full", 0.9, 0.8, 1.0, upper_reference=0.95)], "Scores")
    left = Sanitizer(block._repr_html_(), JUPYTERLAB)
    assert left.text == "Scores full 0.90 [0.80, 1.00]"


@pytest.mark.parametrize("text", NASTY)
def test_hostile_text_stays_text(text):
    for one in (grid((text, "x", "op", "ask")), page(text, [(text, text, [Note(text)])])):
        cell = one._repr_html_()
        assert cell.count("<script>") == 1 and "onerror=alert(1)>" not in cell
        assert not re.search(r"https?:|url\(|@import|\u202e", cell)


def test_a_drawing_is_read_back_from_its_svg():
    svg = re.search(r"<svg.*</svg>", scrollable_svg(drawing(), ""))[0]
    again, old = parse_svg(svg), drawing()
    assert (again.width, again.height, again.name) == (200, 80, "a drawing")
    assert again.description == "what it shows" and again.parts == old.parts


def test_an_image_keeps_its_colors():
    from PIL import Image

    ramp = np.zeros((20, 1200, 3), dtype=np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 1200)
    ramp[..., 1] = 255 - ramp[..., 0]
    ramp[:4, :4] = (0, 0, 255)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, "png")
    again = np.asarray(Image.open(io.BytesIO(small_png(stream.getvalue()))).convert("RGB"))
    assert np.abs(again.astype(int) - ramp).max() <= 4


def test_without_matplotlib_the_interactive_picture_stands_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    cell = chart()._repr_html_()
    assert "<svg" in cell and "<img" not in cell


def test_a_picture_is_as_wide_as_on_the_page():
    width = int(re.search(r'width="(\d+)"', static_html(chart()))[1])
    assert width == pytest.approx(216, abs=2)


@pytest.mark.slow
@pytest.mark.parametrize("java_script_enabled", [True, False])
def test_only_one_of_the_two_pictures_is_visible(visit, tmp_path, java_script_enabled):
    place = tmp_path / "cell.html"
    cells = "".join(one()._repr_html_() for one, _ in PICTURES.values())
    place.write_text(f"<!doctype html><meta charset=utf-8>{cells}", encoding="utf-8")
    tab = visit(place, java_script_enabled=java_script_enabled)
    static = tab.locator(".pv-cell > img, .pv-cell > h3, .pv-cell details > img")
    if java_script_enabled:
        tab.wait_for_selector(".pv-part .pv-ready")
        assert tab.locator(".pv-cell > .pv").count() == 3 and static.count() == 0
        assert tab.locator(".pv-sheet").count() == 2
    else:
        assert tab.locator(".pv").count() == 0 and static.count() == 5
        assert tab.locator(".pv-cell > img").first.is_visible()


@pytest.mark.slow
def test_a_page_in_a_notebook_takes_up_one_screen(visit, tmp_path):
    place = tmp_path / "cell.html"
    long = page("Long", [("Part", "", [Note(f"line {at}") for at in range(80)])])
    place.write_text(f"<!doctype html><meta charset=utf-8>{long._repr_html_()}", encoding="utf-8")
    tab = visit(place)
    tab.wait_for_selector(".pv-cell > .pv")
    assert tab.locator(".pv").bounding_box()["height"] < 900
