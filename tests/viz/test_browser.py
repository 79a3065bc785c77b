"""The pages in a real browser without a network. Needs playwright and a Chromium of the system."""

from itertools import pairwise

import numpy as np
import pytest

from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.viz import AttentionMaps, Interval, IntervalPlot, Matrix, Note, Table, head_grid, page

pytestmark = pytest.mark.slow

NASTY = ("</script>", "<img src=x onerror=alert(1)>", "&", "\n", "\u202eabc", "\ud800", " the", "'")


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
    tab.wait_for_function("document.querySelectorAll('.pv-ready').length === 2")
    one, two = (tab.locator(".pv-grid").nth(at) for at in (0, 1))
    one.locator("[data-panel=left] [data-at='3']").click()
    assert "L0.H3" in one.locator(".pv-detail figcaption").first.inner_text()
    assert "L0.H0" in two.locator(".pv-detail figcaption").first.inner_text()


def whole_page():
    reason = "a text of some length, which must not become a column of single words"
    blocks = [
        Table(["head", "score", "why"], [["L0.H1", "0.71", reason]], caption="Scores"),
        Table(["head", "why"], [["L0.H1", reason]], caption="Folded", folded=True),
        IntervalPlot(
            [
                Interval("full", 0.9, 0.8, 0.95, chance=(0.1, 0.2), null=(0.3,)),
                Interval("copying-for-long (negative control)", 0.9, 0.8, 1.0, upper_reference=1.0),
            ]
        ),
        Matrix(np.eye(3) - 0.5, list("abc"), ["xyg", "query", "jpq"], caption="Effects"),
        grid(),
    ]
    lead = [Note("The answer."), circuit().picture(), Note("Evidence.", "good")]
    sections = [("One", "Lead.", blocks), ("Two", "", [Note("Method.")])]
    return page("Report", sections, lead, "sub", folded=("Two",))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_a_whole_page(visit, violations, scheme):
    tab = visit(whole_page(), color_scheme=scheme)
    tab.locator("details").evaluate_all("all => all.forEach(x => { x.open = true; })")
    assert violations(tab) == []


def test_long_texts_keep_their_width_and_headers_their_descenders(visit):
    tab = visit(whole_page(), 390)
    assert tab.locator(".pv-rows td.pv-long").first.bounding_box()["width"] >= 180
    labels = tab.locator(".pv-line th[scope=row]")
    assert all(labels.nth(n).bounding_box()["width"] >= 80 for n in range(2))
    heads = tab.locator(".pv-wide th[scope=col] span")
    sizes = heads.evaluate_all("all => all.map(x => [x.scrollHeight, x.clientHeight])")
    assert all(inner <= outer for inner, outer in sizes)
    boxes = [heads.nth(n).bounding_box() for n in range(3)]
    assert all(a["x"] + a["width"] + 8 < b["x"] for a, b in pairwise(boxes))


def test_what_is_folded_is_printed_open(visit):
    tab = visit(whole_page())
    folded = tab.locator("details", has_text="Method.").locator(".pv-note")
    assert not folded.is_visible()
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.is_visible()
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not folded.is_visible()


def color_of(tab, css_class):
    paint = "x => getComputedStyle(x).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)"
    return sum(tab.locator(css_class).first.evaluate(paint))


@pytest.mark.parametrize("theme", ["true", "false"])
def test_a_notebook_cell_follows_the_theme_of_the_notebook(visit, theme, tmp_path):
    """Under a desktop of the other scheme."""
    place = tmp_path / "cell.html"
    cell = grid()._repr_html_()
    place.write_text(f"<!doctype html><meta charset=utf-8><body data-jp-theme-light={theme}>{cell}")
    tab = visit(place, color_scheme="dark" if theme == "true" else "light")
    tab.wait_for_selector(".pv-ready")
    is_light = theme == "true"
    assert (color_of(tab, ".pv") > 600) == is_light
    assert (color_of(tab, ".pv-heat td.pv-none") > 600) == is_light
    flipped = tab.locator("[data-panel=change] img").first.evaluate(
        "x => getComputedStyle(x).filter"
    )
    assert (flipped == "none") == is_light


@pytest.mark.parametrize("width", [390, 700, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_whole_page_is_drawn_and_fits_the_window(visit, width, scheme, tmp_path):
    tab = visit(whole_page(), width, color_scheme=scheme)
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
        clear = {wire for wire, (clear, _, _) in fades(tab).items() if clear == 1}
        # The script adds the path that the edge is on.
        assert name in clear and (clear == lit(tab) if scripts else clear == {name})
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
    assert sorted(set(clear[len(WIRES) :])) == [0.18, 1]


# --- long texts -------------------------------------------------------------------------------


def long_text(model, tokens=300, shift=1):
    weights = np.zeros((1, 4, tokens, tokens))
    for head in range(4):
        for query in range(tokens):
            weights[0, head, query, 0] += 0.25
            weights[0, head, query, max(0, query - head - shift)] += 0.75
    weights[..., np.triu(np.ones((tokens, tokens), dtype=bool), k=1)] = np.nan
    labels = tuple(f"t{at}" for at in range(tokens))
    return AttentionMaps(model, weights, labels, labels, kv_heads=2)


def labels_of_windows(tab):
    """First and last query, and first and last key, of each enlarged part."""
    return tab.locator(".pv-detail .pv-heat").evaluate_all(
        """all => all.map(table => {
            const rows = [...table.querySelectorAll('th[scope=row]')].map(x => x.textContent);
            const columns = [...table.querySelectorAll('th[scope=col]')].map(x => x.textContent);
            return [rows[0], rows.at(-1), columns[0], columns.at(-1)].join(' ');
        })"""
    )


def test_a_long_map_opens_in_parts_that_move_and_zoom_together(visit):
    tab = visit(head_grid(long_text("full"), long_text("int4", shift=5)))
    assert tab.locator(".pv-detail td[data-v]").count() == 3 * 20 * 20
    before = labels_of_windows(tab)
    assert len(set(before)) == 1 and len(before) == 3
    tab.locator(".pv-overview").nth(2).focus()
    tab.keyboard.press("ArrowDown")
    moved = labels_of_windows(tab)
    assert moved != before and len(set(moved)) == 1
    assert moved[0].split()[2:] == before[0].split()[2:]  # The keys stay.
    tab.keyboard.press("+")
    assert tab.locator(".pv-detail td[data-v]").count() == 3 * 10 * 10
    tab.locator(".pv-overview").first.click(position={"x": 5, "y": 300})
    assert labels_of_windows(tab)[0].startswith("t2") and "t0 t9" in labels_of_windows(tab)[0]


def test_a_head_of_a_long_text_shows_its_exact_cells(visit):
    tab = visit(head_grid(long_text("full")))
    tab.locator(".pv-overview").click(position={"x": 2, "y": 2})
    assert tab.locator(".pv-detail td[data-v]").first.get_attribute("data-v") == "1.000"
    assert "0.750" in numbers(tab) and "0.250" in numbers(tab)
    assert "shares K,V with H1" in enlarged(tab)[0]


def test_the_first_key_can_be_left_out_and_the_rest_renormalized(visit):
    tab = visit(head_grid(long_text("full", tokens=12)))
    assert {"0.750", "0.250"} <= set(numbers(tab))
    images = "all => all.map(x => x.src)"
    same = tab.locator(".pv-thumb img").evaluate_all(images)
    tab.locator(".pv-no-sink").check()
    assert set(numbers(tab)) == {"1.000", "0.000", "no such cell"}
    assert "without the first key" in enlarged(tab)[0]
    assert tab.locator(".pv-thumb img").evaluate_all(images) != same
    tab.locator(".pv-no-sink").uncheck()
    assert tab.locator(".pv-thumb img").evaluate_all(images) == same


def test_1024_tokens_of_two_models_open_within_seconds_and_fit_a_narrow_window(visit, violations):
    tab = visit(head_grid(long_text("full", 1024), long_text("int4", 1024, shift=9)), 390)
    assert tab.locator(".pv-detail td[data-v]").count() == 3 * 20 * 20
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.locator("[data-panel=left] [data-at='2']").click()
    assert enlarged(tab)[0].startswith("full L0.H2")
    assert violations(tab) == []


# --- circuits of two models -------------------------------------------------------------------


def lit(tab):
    return set(
        tab.locator(".pv-wire.pv-lit > title").evaluate_all(
            "all => all.map(x => x.textContent.split(':')[0].replace('→', '->'))"
        )
    )


def test_a_path_of_the_table_lights_up_and_shows_its_evidence(visit):
    tab = visit(circuit().picture())
    row = tab.locator("tr[data-edges]", has_text="embed → L0.H0.v → L1.MLP → logits")
    way = {"embed->L0.H0.v", "L0.H0->L1.MLP", "L1.MLP->logits"}
    row.hover()
    assert lit(tab) == way
    assert {clear for name, (clear, _, _) in fades(tab).items() if name not in way} == {0.1}
    minus = "\N{MINUS SIGN}"
    assert f"L0.H0->L1.MLP: {minus}1.500 ± 0.100" in tab.locator(".pv-evidence").inner_text()
    tab.mouse.move(1, 1)
    assert lit(tab) == set()
    row.locator("button").click()
    tab.mouse.move(1, 1)
    assert lit(tab) == way  # A click keeps it.
    tab.keyboard.press("Escape")
    assert lit(tab) == set()


def test_the_keyboard_reaches_every_path(visit):
    tab = visit(circuit().picture())
    seen = set()
    for _ in range(12):
        tab.keyboard.press("Tab")
        seen |= lit(tab)
    assert seen == set(WIRES)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_circuit_with_its_paths_fits_the_window_and_is_accessible(
    visit, violations, width, scheme
):
    tab = visit(circuit().picture(), width, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    clipped = tab.locator(".pv-paths td").evaluate_all(
        "all => all.filter(x => x.scrollWidth > x.clientWidth + 1).length"
    )
    assert clipped == 0
    assert violations(tab) == []
