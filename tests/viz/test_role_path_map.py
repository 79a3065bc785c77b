"""Role paths side by side: marks, legend, and a file that is light or dark."""

import re

import pytest

from probes.viz.drawing import DARK_COLORS, LIGHT_COLORS, Curve, Group, svg_document
from probes.viz.plots.role_path_map import (
    _MEANINGS,
    _STROKES,
    MarkedPath,
    PathPanel,
    Word,
    role_path_drawing,
)

WORDS = tuple(Word(role, role) for role in ("x", "op", "rest", "answer"))
PATHS = (
    MarkedPath(("x", "op", "answer"), "lost", 0.9),
    MarkedPath(("x", "answer"), "kept", 0.4),
    MarkedPath(("op", "answer"), "new", 0.2),
    MarkedPath(("x", "rest", "answer"), "unshared", 0.3),
)


def arcs(drawing):
    """The curve of each arc, by its tooltip."""
    groups = [part for part in drawing.parts if isinstance(part, Group)]
    return {g.tooltip: g.parts[0] for g in groups if isinstance(g.parts[0], Curve)}


def drawing(words=WORDS, paths=PATHS, columns=1):
    return role_path_drawing([PathPanel("m", "97 % right", ("line",), words, paths)], columns, "T")


def test_marks_differ_by_color_and_by_stroke():
    assert set(_STROKES) == set(_MEANINGS)
    relative = [mark for mark in _STROKES if mark not in ("own", "unshared")]
    assert len({_STROKES[mark][0] for mark in relative}) == len(relative)
    assert len({_STROKES[mark][1] for mark in relative if mark != "lost"}) == len(relative) - 1
    assert _STROKES["kept"][1] is None and _STROKES["lost"][1] is not None


def test_a_step_of_several_paths_is_drawn_once_with_its_best_mark():
    found = arcs(drawing())
    ends = [text.split(":")[0] for text in found]
    assert sorted(ends) == ["op → answer", "rest → answer", "x → answer", "x → op", "x → rest"]
    assert "only the relative has it" in next(t for t in found if t.startswith("op → answer"))


def test_the_width_is_the_fraction():
    found = {text.split(":")[0]: curve.stroke_width for text, curve in arcs(drawing()).items()}
    assert found["x → op"] > found["x → answer"] > found["rest → answer"] > found["op → answer"]


def test_paths_of_the_object_run_on_the_other_side():
    paths = (MarkedPath(("x", "answer"), "kept", 0.5, is_object=True),)
    (curve,) = arcs(drawing(paths=paths)).values()
    (other,) = arcs(drawing(paths=(MarkedPath(("x", "answer"), "kept", 0.5),))).values()
    assert curve.points[1][0] < curve.points[0][0] < other.points[0][0] < other.points[1][0]


def test_the_description_says_what_the_colors_say():
    text = drawing().description
    assert "1 the relative has it as well" in text and "m, 97 % right" in text


def test_a_file_is_light_and_dark_and_runs_nothing():
    nasty = (Word("x", "</text><script>alert(1)</script>"), *WORDS[1:])
    text = svg_document(drawing(words=nasty))
    assert "<script" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    light, dark = text.split("@media (prefers-color-scheme:dark)")
    assert f"--ink:{LIGHT_COLORS['ink']}" in light and f"--ink:{DARK_COLORS['ink']}" in dark
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert used <= set(LIGHT_COLORS) and used <= set(DARK_COLORS)


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_everything_lies_inside_the_drawing(columns):
    panels = [PathPanel(f"m{at}", "", (), WORDS, PATHS) for at in range(5)]
    found = role_path_drawing(panels, columns, "Title", ("A line.",))
    for curve in arcs(found).values():
        assert all(0 <= x <= found.width and 0 <= y <= found.height for x, y in curve.points)
