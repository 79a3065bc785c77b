import sys
from dataclasses import replace

import numpy as np
import pytest
from svg_reader import (
    MAGIC,
    NASTY,
    box,
    check_page_is_safe,
    check_styles_are_scoped,
    drawing,
    groups_by_tooltip,
    texts,
)

from probes.errors import FigureError
from probes.interventions.hotspots.result import Hotspot, Hotspots, InterchangeExample
from probes.models.site import Site
from probes.stats.intervals import Estimate
from probes.viz.colors import apply_colormap, to_hex
from probes.viz.page import page
from probes.viz.plots.hotspot_map import HotspotMapBlock, hotspot_map

ROLES = ("x", "op", "y", "answer")
VARIABLES = ("operation", "x", "y", "object")


def result(name, values, roles, null=0.2, ring=(0, 0), prompts=128):
    """Search result with given maps: for each variable rows are roles, columns are layers."""
    layers = next(iter(values.values())).shape[1]
    sure = Estimate(1.0, 0.97, 1.0)
    role, layer = ring
    return Hotspots(
        model=name,
        pattern="take-away",
        accuracy=(sure, sure),
        prompts=prompts,
        sites=tuple(Site(at, "resid", role) for at in range(layers) for role in roles),
        hotspots=tuple(
            Hotspot(variable, Site(layer, "resid", roles[role]), sure, sure, sure, {})
            for variable in values
        ),
        thresholds=dict.fromkeys(values, null),
        maps=values,
        number_outcomes={},
        readout_role=roles[-1],
        example=InterchangeExample("", "", (), ()),
    )


def model(name="full", layers=4, seed=0, roles=ROLES, variables=VARIABLES):
    draw = np.random.default_rng(seed)
    return result(name, {v: draw.random((len(roles), layers + 1)) for v in variables}, roles)


def single(values, null=0.3, ring=(0, 0)):
    values = np.array(values)
    return HotspotMapBlock(
        [result("m", {"operation": values}, ROLES[: len(values)], null=null, ring=ring)]
    )


def test_a_cell_at_or_above_the_null_is_full_and_one_below_is_a_small_square():
    found = groups_by_tooltip(single([[0.3, 0.29]]))
    (full,), text = found["x, layer 0: 0.300 of 128 (null 0.300)"]
    assert text == "0.30" and full.get("fill") == to_hex(
        apply_colormap(np.array(0.3), "sequential")
    )
    (frame, square), text = found["x, layer out: 0.290 of 128 (null 0.300)"]
    assert text is None and frame.get("fill") == "var(--paper)"
    assert square.get("fill") == to_hex(apply_colormap(np.array(0.29), "sequential"))
    assert box(square)[2] < box(frame)[2] / 3 and box(frame)[2:] == box(full)[2:]


def test_an_absent_role_is_a_dash_without_a_cell():
    paths, text = groups_by_tooltip(single([[np.nan, 0.5]]))["x, layer 0: no such role"]
    assert paths == [] and text == "–"


def test_cells_are_in_the_row_of_their_role_and_the_column_of_their_layer():
    found = groups_by_tooltip(single([[0.5, 0.6], [0.7, 0.8]]))
    corner = {says.split(":")[0]: box(paths[0]) for says, (paths, _) in found.items() if paths}
    a, b, c = corner["x, layer 0"], corner["x, layer out"], corner["op, layer 0"]
    assert b[0] > a[0] and b[1] == a[1] and c[1] > a[1] and c[0] == a[0]
    labels = {
        t.text: float(t.get("y", "nan")) for t in drawing(single([[0.5], [0.7]])).iter("text")
    }
    assert c[1] < labels["op"] < c[1] + c[3]


def test_a_ring_marks_the_hotspot_only():
    block = single([[0.5, 0.6], [0.7, 0.1]], ring=(1, 0))
    rings = [p for p in drawing(block).findall("path") if p.get("stroke") == "var(--mark)"]
    assert len(rings) == 2 and "hotspot" in texts(block)  # one is the legend's
    (cell,), _ = groups_by_tooltip(block)["op, layer 0: 0.700 of 128 (null 0.300)"]
    left, top, wide, high = box(rings[0])
    x, y, w, h = box(cell)
    assert left < x and top < y and left + wide >= x + w and top + high >= y + h


def test_the_null_is_a_tick_on_the_color_bar():
    def mark(null):
        (line,) = (
            path
            for path in drawing(single([[0.5]], null)).findall("path")
            if path.get("stroke") == "var(--ink)"
        )
        return float(line.get("d", "")[1:].split()[0])

    low, middle, high = mark(0.25), mark(0.5), mark(0.75)
    assert high - middle == pytest.approx(middle - low, abs=0.2) and high > low


def test_nulls_that_differ_are_listed_model_by_model():
    one, other = (
        result(name, {"x": np.ones((1, 2))}, ROLES[:1], null)
        for name, null in (("full", 0.1), ("distilled", 0.25))
    )
    assert "null: full 0.10, distilled 0.25" in texts(HotspotMapBlock([one, other]))
    assert "null 0.10" in texts(HotspotMapBlock([one, one]))


def test_models_may_differ_in_layers_and_variables():
    block = HotspotMapBlock([model(), model("distilled", 2, variables=("x", "z"))])
    found = texts(block)
    assert found.count("out") == 4 + 2 and {
        "full",
        "distilled",
        "z",
        "accuracy: number 1.00,",
    } <= set(found)
    assert found.count("not measured") == 3 + 1


@pytest.mark.parametrize("count", [1, 3])
def test_cells_do_not_overlap_and_fit_900_pixels(count):
    roles = tuple(f"role number {at}" for at in range(12))
    block = HotspotMapBlock([model(f"m{at}", roles=roles) for at in range(count)])
    root = drawing(block)
    assert float(root.get("width", "nan")) <= 910
    frames = [box(group.find("path")) for group in root.findall("g") if group.findall("path")]
    assert len(frames) == count * 4 * 12 * 5
    left, top, wide, high = np.array(frames).T
    assert (left + wide <= float(root.get("width", "nan"))).all()
    assert (top + high <= float(root.get("height", "nan"))).all()
    apart_x = left[:, None] + wide[:, None] <= left[None] + 0.11
    apart_y = top[:, None] + high[:, None] <= top[None] + 0.11
    apart = apart_x | apart_x.T | apart_y | apart_y.T
    assert apart[~np.eye(len(frames), dtype=bool)].all()


def test_narrow_cells_hold_no_numbers():
    found = groups_by_tooltip(
        HotspotMapBlock([model(layers=30, variables=("x",)), model("b", 30, variables=("x",))])
    )
    texts = [text for says, (_, text) in found.items() if "null" in says]
    assert texts and not any(texts)


def test_the_numbers_are_also_a_table():
    block = HotspotMapBlock([model(), model("distilled", 2)])
    table = block.body[block.body.index("<details") :]
    share = block.results[1].maps["y"][3]
    assert f"0: {share[0]:.2f}, 1: {share[1]:.2f}, out: {share[2]:.2f}" in table
    assert table.count("<tr>") == 1 + 4 * 4


def nasty():
    bad = NASTY[1]
    return HotspotMapBlock([result(bad, {bad: np.full((6, 6), 0.5)}, NASTY)], bad)


def test_hostile_text_makes_no_tag_and_no_handler(tmp_path):
    text = page("p", [("h", "", [nasty()])]).save(tmp_path / "p.html").read_text()
    check_page_is_safe(text)


def test_styles_stay_inside_the_picture():
    check_styles_are_scoped(nasty())


@pytest.mark.parametrize("suffix", MAGIC)
def test_the_picture_saves_as_a_figure(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    saved = hotspot_map(nasty().results, title=NASTY[1]).save(tmp_path / f"p.{suffix}").read_bytes()
    assert saved.startswith(MAGIC[suffix]) and len(saved) > 2000


def test_the_same_picture_is_the_same_file(tmp_path):
    pytest.importorskip("matplotlib")
    for suffix in ("svg", "html"):
        first, second = (
            hotspot_map(nasty().results).save(tmp_path / f"{name}.{suffix}").read_bytes()
            for name in "ab"
        )
        assert first == second


def test_drawing_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "<svg" in hotspot_map(nasty().results)._repr_html_()


def test_a_result_without_a_variable_is_refused():
    for results in ([], [replace(model(), maps={})]):
        with pytest.raises(FigureError, match="nothing to draw"):
            HotspotMapBlock(results)
