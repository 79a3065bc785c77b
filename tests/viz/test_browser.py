"""The pages in a real browser without a network. Needs playwright and a Chromium of the system."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.viz import AttentionMaps, Interval, IntervalPlot, Matrix, Note, Table, head_grid, page

pytestmark = pytest.mark.slow

_PLACES = ("chromium", "chromium-browser", "google-chrome", "/usr/lib/chromium/chromium")
NASTY = ("</script>", "<img src=x onerror=alert(1)>", "&", "\n", "\u202eabc", "\ud800", " the", "'")


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = next((found for name in _PLACES if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    arguments = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens a picture; afterwards nothing may have been fetched and nothing may have failed."""
    wrong, contexts = [], []

    def open_page(picture, width=1280, **options):
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        tab = context.new_page()
        place = picture if isinstance(picture, Path) else picture.save(tmp_path / "picture.html")
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda asked: asked.url.startswith("data:") or wrong.append(asked.url))
        tab.goto(place.as_uri())
        wrong.remove(place.as_uri())
        if options.get("java_script_enabled", True) and tab.locator(".pv-grid").count():
            tab.wait_for_selector(".pv-grid.pv-ready")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def heads(model, layers, labels=("bos", "x", "op", "ask"), seed=0):
    draw = np.random.default_rng(seed)
    size = len(labels)
    weights = np.tril(draw.random((layers, 4, size, size)) ** 3)
    weights /= weights.sum(axis=-1, keepdims=True)
    weights[..., np.triu(np.ones((size, size), dtype=bool), k=1)] = np.nan
    return AttentionMaps(model, weights, tuple(labels), tuple(labels), error=weights * 0.1)


def grid(labels=("bos", "x", "op", "ask"), **options):
    return head_grid(heads("full", 4, labels), heads("distilled", 2, labels, seed=1), **options)


def enlarged(tab):
    return tab.locator(".pv-detail figcaption").all_text_contents()


def numbers(tab):
    return tab.locator(".pv-detail td[data-v]").evaluate_all("all => all.map(x => x.dataset.v)")


def test_a_click_enlarges_a_head_and_its_partner(visit):
    tab = visit(grid(pairs=[((0, 0), (0, 0)), ((2, 1), (1, 3))]))
    tab.locator("[data-panel=left] [data-at='9']").click()
    minus = "\N{MINUS SIGN}"
    names = ["full L2.H1", "distilled L1.H3", f"distilled {minus} full L1.H3 {minus} L2.H1"]
    assert enlarged(tab) == names
    assert tab.locator("[aria-pressed=true]").count() == 3
    tab.locator("[data-panel=left] [data-at='5']").click()
    assert enlarged(tab) == ["full L1.H1"]
    assert tab.locator(".pv-absent").inner_text() == "No partner in distilled"


def test_arrow_keys_walk_through_the_heads(visit):
    tab = visit(grid())
    tab.locator("[data-panel=right] [data-at='0']").focus()
    for key, name in [("ArrowRight", "L0.H1"), ("ArrowDown", "L1.H1"), ("Home", "L0.H0")]:
        tab.keyboard.press(key)
        assert enlarged(tab)[1] == f"distilled {name}"
    tab.keyboard.press("ArrowLeft")
    assert enlarged(tab)[1] == "distilled L0.H0"


def test_the_script_draws_what_the_plain_page_shows(visit):
    """The same head as HTML from Python and from the script: texts, hover and colors agree."""
    tab = visit(grid())
    first, shown = numbers(tab), tab.locator(".pv-detail").inner_text()
    colors = "all => all.map(x => getComputedStyle(x).backgroundColor)"
    before = tab.locator(".pv-detail td").evaluate_all(colors)
    tab.locator("[data-panel=left] [data-at='1']").click()
    assert numbers(tab) != first
    tab.locator("[data-panel=left] [data-at='0']").click()
    again = numbers(tab)
    assert [text.split(" ")[0][:4] for text in again] == [text.split(" ")[0][:4] for text in first]
    assert tab.locator(".pv-detail").inner_text() == shown
    assert tab.locator(".pv-detail td").evaluate_all(colors) == before


def test_hover_and_arrow_keys_show_query_key_value_and_error(visit):
    maps = heads("full", 4)
    tab = visit(head_grid(maps))
    value, error = maps.weights[0, 0, 1, 0], maps.error[0, 0, 1, 0]
    tab.locator(".pv-detail tr").nth(2).locator("td").nth(0).hover()
    assert tab.locator(".pv-tip").inner_text() == f"x → bos: {value:.3f} ± {error:.3f}"
    tab.locator(".pv-detail .pv-heat").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator(".pv-tip").inner_text() == "x → x: " + numbers(tab)[5]


def test_each_head_can_have_its_own_scale_and_return_to_the_common_one(visit):
    tab = visit(grid())
    images = "all => all.map(x => x.src)"
    same = tab.locator(".pv-thumb img").evaluate_all(images)
    tab.locator(".pv-own").check()
    assert tab.locator(".pv-thumb img").evaluate_all(images) != same
    assert "max" in tab.locator(".pv-legend").inner_text()
    tab.locator(".pv-own").uncheck()
    assert tab.locator(".pv-thumb img").evaluate_all(images) == same


@pytest.mark.parametrize(
    "labels", [NASTY, tuple(f"{text}{at}" for at in range(4) for text in NASTY)]
)
def test_hostile_tokens_are_only_text(visit, labels):
    tab = visit(grid(labels))
    tab.locator("[data-panel=left] [data-at='6']").click()
    heads = tab.locator(".pv-detail figure").first.locator("th[scope=row]").all_text_contents()
    assert heads[0].startswith("</script>") and heads[4].startswith("<U+202E>abc")
    assert tab.locator("script").count() == 1 and tab.locator("img[onerror]").count() == 0


def test_without_scripts_the_picture_is_still_there(visit):
    tab = visit(grid(), java_script_enabled=False)
    assert tab.locator(".pv-thumb img").count() == 32
    assert enlarged(tab)[0] == "full L0.H0"
    assert not tab.locator(".pv-own").is_visible()


def test_two_notebook_cells_are_independent(visit, tmp_path):
    cells = [grid()._repr_html_(), grid()._repr_html_(), Note("n", "good")._repr_html_()]
    place = tmp_path / "cells.html"
    place.write_text("<!doctype html><meta charset=utf-8>" + "".join(cells), encoding="utf-8")
    tab = visit(place)
    one, two = (tab.locator(".pv-grid").nth(at) for at in (0, 1))
    one.locator("[data-panel=left] [data-at='3']").click()
    assert "L0.H3" in one.locator(".pv-detail figcaption").first.inner_text()
    assert "L0.H0" in two.locator(".pv-detail figcaption").first.inner_text()


@pytest.mark.parametrize("width", [700, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_whole_page_is_drawn_and_fits_the_window(visit, width, scheme, tmp_path):
    blocks = [
        Table(["head", "score"], [["L0.H1", "0.71"]], caption="Scores"),
        IntervalPlot(
            [Interval("full", 0.9, 0.8, 0.95, chance=(0.1, 0.2), null=(0.3,), upper_reference=1.0)]
        ),
        Matrix(np.eye(3) - 0.5, list("abc"), list("xyz"), caption="Effects"),
        grid(),
    ]
    tab = visit(page("Report", [("One", "Lead.", blocks)]), width, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    shot = tab.screenshot(full_page=True, path=tmp_path / "shot.png")
    image = pytest.importorskip("matplotlib.image").imread(tmp_path / "shot.png")
    assert len(shot) > 20_000 and len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 100
    assert (image[0, 0, :3] > 0.9).all() == (scheme == "light")


WIRES = {
    "embed->L0.H0.v": 2.0,
    "L0.H0->L1.MLP": -1.5,
    "embed->L1.H1.q": 0.4,
    "L1.H1->logits": 1.0,
    "L1.MLP->logits": 3.0,
}


def circuit(model="full"):
    names = tuple(map(Edge.parse, WIRES))
    return Circuit(
        model, ComputationGraph(2, 2, 2), names, tuple(WIRES.values()), (0.1,) * len(names)
    )


def fades(tab):
    """The opacity of every line, by what it says on hover, and where it lies on its way."""
    found = tab.locator(".pv-scroll .pv-wire").evaluate_all(
        """all => all.map(wire => {
            const way = wire.querySelector('path');
            const at = way.getPointAtLength(way.getTotalLength() / 2)
                .matrixTransform(way.getScreenCTM());
            return [wire.querySelector('title').textContent.split(':')[0],
                    +getComputedStyle(wire).opacity, at.x, at.y];
        })"""
    )
    return {name.replace("→", "->"): (clear, x, y) for name, clear, x, y in found}


@pytest.mark.parametrize("scripts", [True, False])
def test_an_edge_under_the_mouse_stands_out(visit, scripts):
    tab = visit(circuit().picture(), java_script_enabled=scripts)
    tab.mouse.move(1, 1)
    before = fades(tab)
    assert set(before) == set(WIRES)
    assert {clear for clear, _, _ in before.values()} == {1}
    for name, (_, x, y) in before.items():
        tab.mouse.move(x, y)
        assert {wire for wire, (clear, _, _) in fades(tab).items() if clear == 1} == {name}
        assert sorted({clear for clear, _, _ in fades(tab).values()}) == [0.18, 1]
    tab.mouse.move(1, 1)
    assert {clear for clear, _, _ in fades(tab).values()} == {1}


def test_the_mouse_catches_an_edge_from_a_few_pixels_away(visit):
    """The weakest is about one pixel wide: nobody could point at that."""
    tab = visit(circuit().picture())
    _, x, y = fades(tab)["embed->L1.H1.q"]
    caught = []
    for beside in (-3, 3):
        tab.mouse.move(x + beside, y)
        caught.append(fades(tab)["embed->L1.H1.q"][0] == 1 != fades(tab)["L1.MLP->logits"][0])
    assert any(caught)


def test_a_node_under_the_mouse_shows_only_its_edges(visit):
    tab = visit(circuit().picture())
    tab.locator(".pv-scroll g:not(.pv-wire) > title", has_text="L1.MLP").locator("..").hover()
    own = {name for name in WIRES if "L1.MLP" in name}
    assert {name for name, (clear, _, _) in fades(tab).items() if clear == 1} == own
    assert {clear for name, (clear, _, _) in fades(tab).items() if name not in own} == {0.07}


def test_two_circuits_on_a_page_fade_independently(visit):
    both = page("Two", [("One", "", [circuit().picture()]), ("Two", "", [circuit("b").picture()])])
    tab = visit(both)
    tab.locator(".pv-circuit").nth(1).scroll_into_view_if_needed()
    _, x, y = fades(tab)["L1.MLP->logits"]  # Of the second circuit: the later one is kept.
    tab.mouse.move(x, y)
    clear = tab.locator(".pv-scroll .pv-wire").evaluate_all(
        "all => all.map(wire => +getComputedStyle(wire).opacity)"
    )
    assert clear[: len(WIRES)] == [1] * len(WIRES)
    assert sorted(clear[len(WIRES) :]) == [0.18] * (len(WIRES) - 1) + [1]
