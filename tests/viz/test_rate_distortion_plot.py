"""The drawing of a curve: every model a mark, every name readable, nothing left out silently."""

import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from svg_reader import (
    MAGIC,
    NASTY,
)

from probes.comparison.rate_distortion.losses import LossOrder, NoiseComparison
from probes.comparison.rate_distortion.result import CurvePoint, Mechanism, RateDistortionCurve
from probes.models.files.provenance import Rate, StorageCost
from probes.observe.result import BehavioralDistance, Gate
from probes.result import load_result, page_of
from probes.stats.intervals import Estimate
from probes.viz.drawing import DrawingShape, TextLabel, text_width
from probes.viz.label_placement import place_labels
from probes.viz.plots.rate_distortion_plot import RateDistortionBlock, rate_distortion_plot
from probes.viz.reports.rate_distortion import rate_distortion_page


def near(value, wide=0.02):
    return Estimate(float(value), value - wide, value + wide)


def gate(name, state):
    flat = near(0.9)
    return Gate(name, "take-away", "number", 200, flat, "copy x", 0.1, flat, flat, state)


def point(name, kb, right=0.9, kept=0.8, kind="quantized", noise=True):
    behaved = BehavioralDistance(
        near(0.1), near(0.05), {"number": near(right)}, near(right), near(right),
        (gate(name, "closed" if kept is None else "open"),),
    )  # fmt: skip
    mechanism, beside = None, None
    if kept is not None:
        order = LossOrder(
            150, near(1 - kept), near(1 - right), near(right - kept, 0.01), "together"
        )
        mechanism = Mechanism(
            {"x": "L1.resid@x"}, {"x": "L2.resid@y"}, {"x": near(kept)}, {"x": near(kept)},
            near(kept), near(kept), {"x": near(kept)}, near(0.9), 24, 0.05, order,
        )  # fmt: skip
        shares = (0.7, float("nan"))
        beside = NoiseComparison(
            (0.1, 0.2),
            (0.1, 0.1),
            (0.8, 0.9),
            shares,
            shares,
            near(-0.2),
            near(0),
            "worse than noise",
            2,
        )
    storage = StorageCost(weights=6000.0 * kb, embeddings=1500.0 * kb, other=500.0 * kb)
    rate = Rate(storage, 1.0, 1000, True)
    return CurvePoint(name, kind, rate, behaved, True, mechanism, beside if noise else None, {})


def curve(*points, parent="full"):
    first = point(parent, 2000, 1.0, 1.0, "trained", noise=False)
    return RateDistortionCurve(first, points, "take-away", 200, 0.07, (0.0, 0.01), (("seed", "0"),))


def drawing(found):
    return ElementTree.fromstring(
        re.findall(r"<svg.*?</svg>", RateDistortionBlock(found).body, re.DOTALL)[0]
    )


def titles(found):
    return [group.findtext("title", "") for group in drawing(found).findall("g")]


def words(found):
    return [text.text for text in drawing(found).iter("text")]


def boxes(parts):
    return [
        (p.x, p.y - 10, text_width(p.text, p.size), 13.0) for p in parts if isinstance(p, TextLabel)
    ]


def overlap(a, b):
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return across > 0.01 and down > 0.01


def test_every_model_has_a_mark_with_its_number_in_each_panel():
    found = curve(point("rtn-4", 700), point("rtn-3", 500, 0.6, 0.5))
    says = titles(found)
    for name, count in (("full,", 2), ("rtn-4,", 3), ("rtn-3,", 3)):
        assert sum(text.startswith(name) for text in says) == count
    assert "rtn-3, 500 kB: 0.5 [0.48, 0.52]" in says


def test_noise_is_at_the_size_of_its_relative_and_nan_is_left_out():
    says = titles(curve(point("rtn-4", 700)))
    assert sum("with noise, as far as rtn-4" in text for text in says) == 3


def test_a_model_without_the_behavior_is_named_and_has_no_mark_below():
    found = curve(point("rtn-4", 700), point("rtn-2", 400, 0.01, None))
    assert "behavior absent: rtn-2" in words(found)
    assert sum(text.startswith("rtn-2,") for text in titles(found)) == 2
    assert "behavior absent" in rate_distortion_page(found).body


@pytest.mark.parametrize("seed", range(4))
def test_labels_overlap_neither_each_other_nor_marks(seed):
    draw = np.random.default_rng(seed)
    places = [(float(x), float(y)) for x, y in draw.uniform((80, 60), (800, 190), (14, 2))]
    marks = [(x - 7, y - 7, 14.0, 14.0) for x, y in places]
    parts = place_labels([f"relative-{n}" for n in range(14)], places, (46, 40, 840, 210), marks)
    texts = boxes(parts)
    assert len(texts) == 14
    assert not [pair for pair in combinations(texts, 2) if overlap(*pair)]
    assert not [1 for text in texts for mark in marks if overlap(text, mark)]
    assert all(x >= 46 and x + size <= 886 for x, _, size, _ in texts)


def test_marks_at_one_point_have_separate_labels():
    parts = place_labels(["a", "b", "c"], [(400, 100)] * 3, (46, 40, 840, 210), [(393, 93, 14, 14)])
    assert not [pair for pair in combinations(boxes(parts), 2) if overlap(*pair)]


def test_leader_lines_cross_no_other_label():
    # All but one answer as well as their parent: a row of marks, two of them nearly on each other.
    across = (110, 133, 227, 253, 313, 313, 324, 385, 387, 494, 494, 506, 506, 548, 550, 688, 822)
    places = [(float(x), 63.4 + 5 * (n % 2)) for n, x in enumerate(across)]
    marks = [(x - 7, y - 7, 14.0, 14.0) for x, y in places]
    parts = place_labels([f"relative-{n}" for n in range(17)], places, (45, 52, 840, 210), marks)
    lines = [n for n, part in enumerate(parts) if isinstance(part, DrawingShape)]
    assert lines
    for n in lines:
        start, end = np.array(parts[n].points)
        others = boxes(part for part in parts if part is not parts[n + 1])  # Its own comes next.
        for t in np.linspace(0, 1, 50):
            dot = (*((1 - t) * start + t * end), 0.5, 0.5)
            assert not [text for text in others if overlap(dot, text)]


def test_relatives_of_one_size_can_be_drawn():
    assert RateDistortionBlock(curve(point("a", 2000), point("b", 2000))).body
    assert RateDistortionBlock(curve(point("a", 2000, 0.01, None))).body


def test_kinds_differ_in_outline_as_well_as_in_color():
    kinds = ("distilled", "quantized", "pruned", "ticket", "grown", "trained", "new kind")
    found = curve(*(point(kind, 300 + 100 * n, kind=kind) for n, kind in enumerate(kinds)))
    shapes = {}
    for group in drawing(found).findall("g"):
        name = group.findtext("title", "").split(",")[0]
        if name in kinds:
            mark = list(group)[-1]
            outline = re.sub(r"^M[-\d.]+ [-\d.]+", "", mark.get("d", "circle"))
            shapes[name] = (outline, mark.get("fill"))
    assert len({outline for outline, _ in shapes.values()}) == 6  # The unknown kind is a circle.
    assert len({fill for _, fill in shapes.values()}) == 6


@pytest.mark.parametrize("name", NASTY)
def test_untrusted_names_are_escaped(name):
    body = rate_distortion_page(curve(point(name, 700), parent=name)).body
    assert "<img" not in body and "</script" not in body and "\u202e" not in body


@pytest.mark.parametrize("suffix", MAGIC)
def test_it_is_saved_as_a_figure(suffix, tmp_path):
    place = tmp_path / f"it.{suffix}"
    rate_distortion_plot(curve(point("rtn-4", 700))).save(place)
    assert place.read_bytes().startswith(MAGIC[suffix])


def test_the_page_has_drawing_tables_and_findings():
    body = rate_distortion_page(curve(point("rtn-4", 700))).body
    for text in (
        "Rate and distortion",
        "Mechanism or accuracy first",
        "rtn-4 (700 kB)",
        "worse than noise",
        "L1.resid@x",
        "Storage",
    ):
        assert text in body


def test_a_saved_curve_is_loaded_again_and_draws_the_same_page(tmp_path):
    saved = curve(point("rtn-4", 700), point("rtn-2", 400, 0.01, None))
    loaded = load_result(saved.save(tmp_path / "curve.json"))
    assert loaded.to_dict() == saved.to_dict()
    assert page_of(loaded).body == page_of(saved).body
