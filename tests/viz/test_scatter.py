import re
import sys

import jaxtyping
import numpy as np
import pytest
from svg_reader import (
    MAGIC,
    NASTY,
    check_page_is_safe,
    check_styles_are_scoped,
    drawing,
    outline,
    texts,
)

from probes.errors import FigureError
from probes.viz.page import page
from probes.viz.plots.scatter import MAX_CLASSES, PointCloud, ScatterBlock, scatter_picture


def cloud(model="full", count=8, seed=0, **colors):
    draw = np.random.default_rng(seed)
    colors = colors or {"operation": [("plus", "minus")[at % 2] for at in range(count)]}
    return PointCloud(model, draw.normal(size=(count, 2)), (0.43, 0.21), colors, "at the answer")


def prompts(count=8):
    return [f"Tom has {at} foxes. How many? Answer:" for at in range(count)]


def marks(block):
    """For each prompt its title and its points, as (place, fill, kind)."""
    found = {}
    for group in drawing(block).findall("g"):
        says = group.findtext("title", "")
        if says.split("  |  ")[0] in block.prompts:
            found[says] = [one for one in group if one.tag in ("circle", "path")]
    return found


@pytest.fixture
def unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_prompt_is_one_group_with_a_point_in_each_panel():
    block = ScatterBlock(prompts(), [cloud(), cloud("distilled", seed=1)])
    found = marks(block)
    assert len(found) == 8 and all(len(points) == 2 for points in found.values())


def test_a_tooltip_has_the_prompt_and_the_labels_that_all_models_share():
    shared = ["plus", "minus"] * 4
    own = {"full": ["7"] * 8, "distilled": ["8"] * 8}
    clouds = [cloud(name, operation=shared, answer=own[name]) for name in own]
    assert next(iter(marks(ScatterBlock(prompts(), clouds)))) == (
        "Tom has 0 foxes. How many? Answer:  |  operation: plus"
    )


def test_points_have_one_scale_on_both_axes():
    xy = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [1.0, 2.0]])
    block = ScatterBlock(prompts(4), [PointCloud("m", xy, (0.5, 0.5), {"n": np.arange(4)})])
    points = [group[0] for group in marks(block).values()]
    at = np.array([[float(one.get("cx", "nan")), float(one.get("cy", "nan"))] for one in points])
    per = (at[1, 0] - at[0, 0]) / 4
    assert per > 10
    assert np.allclose(at[:, 0], at[0, 0] + per * xy[:, 0], atol=0.1)
    assert np.allclose(at[:, 1], at[0, 1] - per * xy[:, 1], atol=0.1)


def test_all_points_are_inside_their_panel():
    block = ScatterBlock(prompts(200), [cloud(count=200, x=np.arange(200.0))])
    frame = next(
        tuple(float(n) for n in re.findall(r"-?[\d.]+", one.get("d", "")))
        for one in drawing(block).findall("path")
        if one.get("fill") == "none"
    )
    left, top, wide, _, _, high = frame[:6]
    for (one,) in marks(block).values():
        assert left + 3 < float(one.get("cx", "nan")) < left + wide - 3
        assert top + 3 < float(one.get("cy", "nan")) < top + high - 3


def test_classes_differ_in_color_or_shape_even_when_there_are_many():
    labels = [str(at) for at in range(MAX_CLASSES)]
    block = ScatterBlock(prompts(MAX_CLASSES), [cloud(count=MAX_CLASSES, x=labels)])
    looks = set()
    for (one,) in marks(block).values():
        looks.add((one.get("fill"), outline(one)))
    assert len(looks) == MAX_CLASSES


def test_the_first_classes_differ_in_shape_alone():
    labels = ["plus", "minus", "times"]
    block = ScatterBlock(prompts(3), [cloud(count=3, op=labels)])
    outlines = [
        re.sub(r"^M[-\d.]+ [-\d.]+", "", one.get("d", "")) for (one,) in marks(block).values()
    ]
    assert len(set(outlines)) == 3


def test_a_class_looks_the_same_in_all_models():
    clouds = [cloud("a", 2, op=["plus", "minus"]), cloud("b", 2, op=["minus", "times"])]
    first, second = marks(ScatterBlock(prompts(2), clouds)).values()
    assert first[1].get("fill") == second[0].get("fill") != first[0].get("fill")


def test_numbers_share_one_scale_over_all_models():
    clouds = [cloud("a", 2, n=np.array([0.0, 1.0])), cloud("b", 2, n=np.array([1.0, 2.0]))]
    first, second = marks(ScatterBlock(prompts(2), clouds)).values()
    assert first[1].get("fill") == second[0].get("fill")
    assert {"0", "2"} <= set(texts(ScatterBlock(prompts(2), clouds)))


def test_a_model_without_a_coloring_has_a_note():
    clouds = [cloud("a", 2, op=["plus", "minus"]), cloud("b", 2, x=["1", "2"])]
    assert texts(ScatterBlock(prompts(2), clouds)).count("not given") == 2


def test_a_missing_number_is_hollow_and_in_the_legend():
    block = ScatterBlock(prompts(2), [cloud(count=2, n=np.array([1.0, np.nan]))])
    hollow = [points[0] for points in marks(block).values()][1]
    assert hollow.get("fill") == "var(--wash)"
    assert "no number" in texts(block)


def test_a_prompt_that_a_model_was_not_given_is_not_drawn():
    one = cloud(count=3)
    xy = one.xy.copy()
    xy[1] = np.nan
    absent = PointCloud("m", xy, one.variance_fractions, one.color_labels)
    assert len(marks(ScatterBlock(prompts(3), [absent]))) == 2
    nothing = PointCloud("m", np.full((3, 2), np.nan), one.variance_fractions, one.color_labels)
    assert marks(ScatterBlock(prompts(3), [nothing])) == {}


def test_axes_name_their_fraction_of_variance_if_known():
    assert {"axis 1: 43 % of variance", "axis 2: 21 % of variance"} <= set(
        texts(ScatterBlock(prompts(), [cloud()]))
    )
    unknown = PointCloud("m", np.eye(2), (np.nan, np.nan), {"n": ["a", "b"]})
    assert {"axis 1", "axis 2"} <= set(texts(ScatterBlock(prompts(2), [unknown])))
    named = PointCloud(
        "m", np.eye(2), (0.5, 0.5), {"n": ["a", "b"]}, axes=("operation", "<across>")
    )
    found = texts(ScatterBlock(prompts(2), [named]))
    assert {"operation: 50 % of variance", "<across>: 50 % of variance"} <= set(found)


def test_whole_numbers_are_ordered_by_size_in_the_legend():
    found = texts(ScatterBlock(prompts(3), [cloud(count=3, x=["10", "9", "word"])]))
    assert found.index("9") < found.index("10") < found.index("word")


def test_six_panels_of_two_hundred_long_prompts_stay_small():
    texts = [
        f"{text} {'Nobody else gave Tom any of the foxes that day. ' * 2}" for text in prompts(200)
    ]
    labels = {"op": ["plus", "minus"] * 100, "x": [str(at % 16) for at in range(200)]}
    clouds = [cloud(name, 200, seed, **labels) for seed, name in enumerate("abc")]
    assert len(ScatterBlock(texts, clouds).body.encode()) <= 150_000


def test_hostile_text_makes_no_tag_and_no_handler(tmp_path):
    one = PointCloud(NASTY[1], np.ones((6, 2)), (0.5, 0.5), {NASTY[0]: NASTY}, NASTY[3])
    block = ScatterBlock(NASTY, [one])
    text = page("p", [("h", "", [block])]).save(tmp_path / "p.html").read_text()
    check_page_is_safe(text)
    assert drawing(block).tag == "svg"


def test_styles_stay_inside_the_picture():
    check_styles_are_scoped(ScatterBlock(prompts(), [cloud()]))


@pytest.mark.parametrize("suffix", MAGIC)
def test_the_picture_saves_as_a_figure(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    block = ScatterBlock(NASTY, [cloud(count=6, op=NASTY), cloud("b", 6, n=np.arange(6))])
    picture = scatter_picture(block, title=NASTY[1])
    saved = picture.save(tmp_path / f"p.{suffix}").read_bytes()
    assert saved.startswith(MAGIC[suffix]) and len(saved) > 2000


def test_drawing_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "<svg" in scatter_picture(ScatterBlock(prompts(), [cloud()]))._repr_html_()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ScatterBlock(prompts(), []), "nothing to draw"),
        (lambda: ScatterBlock(prompts(7), [cloud()]), "8 points for 7 prompts"),
        (
            lambda: PointCloud("m", np.ones((3, 2)), (0.5, 0.5), {"n": ["a"]}),
            "1 values for 3 points",
        ),
        (lambda: PointCloud("m", np.full((1, 2), np.inf), (0.5, 0.5), {}), "infinite"),
        (lambda: PointCloud("m", np.ones((1, 2)), (43.0, 21.0), {}), "give 0 to 1"),
        (
            lambda: ScatterBlock(prompts(), [cloud(n=["a"] * 8), cloud(n=np.arange(8))]),
            "labels in one model and numbers in another",
        ),
        (
            lambda: ScatterBlock(prompts(21), [cloud(count=21, n=[str(at) for at in range(21)])]),
            "21 classes",
        ),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(make, says, unchecked):
    with pytest.raises(FigureError, match=says):
        make()
