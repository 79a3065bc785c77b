"""Role paths of a model and its relatives side by side: the words of a question, joined by paths.

Paths of the number run to the right of the words, those of the object to the left. A path that a
relative keeps, one that it lost and one that is new differ by color and by stroke.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probes.viz.drawing import (
    Curve,
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    Point,
    TextLabel,
    rectangle,
    text_width,
    truncate_text,
)

Mark = Literal["own", "kept", "new", "lost", "unshared", "open"]
"""State of a path.

`own` is one of the full model itself; `unshared` one that is lost, but that the full model lacks as
well when it is trained from another seed; `open` one that cannot be told.
"""

_ROW, _CHIP, _WORD = 25.0, 19.0, 92.0  # Rows of words, and the height and width of a word.
_LEFT, _RIGHT = 34.0, 88.0  # Room for the paths beside the words.
_PANEL = _LEFT + _WORD + _RIGHT
_GAP, _FOOT = 4.0, 12.0
_MAX_THICKNESS, _MIN_THICKNESS = 6.0, 1.5
_ORDER: tuple[Mark, ...] = ("unshared", "lost", "open", "new", "kept", "own")
_STROKES: dict[Mark, tuple[str, tuple[float, float] | None]] = {
    "own": ("ink", None),
    "kept": ("kept", None),
    "new": ("new", (9.0, 4.0)),
    "lost": ("up", (2.0, 3.5)),
    "unshared": ("soft", (2.0, 3.5)),
    "open": ("soft", (5.0, 5.0)),
}
_MEANINGS: dict[Mark, str] = {
    "own": "role path of the full model",
    "kept": "the relative has it as well",
    "new": "only the relative has it",
    "lost": "lost in the relative",
    "unshared": "lost, but another seed of the full model lacks it as well",
    "open": "cannot tell",
}


@dataclass(frozen=True, slots=True)
class Word:
    """Words of one role in a question; `is_reply` marks those that the model writes."""

    role: str
    text: str
    is_reply: bool = False


@dataclass(frozen=True, slots=True)
class MarkedPath:
    """Role path of one model.

    Attributes:
        roles: Roles along the path.
        mark: Its verdict, which sets color and stroke.
        fraction: Fraction of the effect that it carries; of a lost path, in the full model.
        is_object: Whether it carries the object, and not the number.
    """

    roles: tuple[str, ...]
    mark: Mark
    fraction: float
    is_object: bool = False


@dataclass(frozen=True, slots=True)
class PathPanel:
    """Paths of one model.

    Attributes:
        name: Name of the model.
        score: Such as its accuracy, in large type.
        lines: Further lines above the words.
        words: Words of the question, and the reply of this model.
        paths: Its paths.
        note: Text in place of paths, where there are none.
    """

    name: str
    score: str
    lines: tuple[str, ...]
    words: tuple[Word, ...]
    paths: tuple[MarkedPath, ...]
    note: str = ""


def role_path_drawing(
    panels: Sequence[PathPanel], columns: int, title: str, lines: Sequence[str] = ()
) -> Drawing:
    """Panels in rows of `columns`, below a title and above a legend with further lines."""
    width = columns * _PANEL + (columns - 1) * _GAP
    head = max(24 + 19 * bool(panel.score) + 15.5 * len(panel.lines) for panel in panels)
    tall = head + _ROW * max(len(panel.words) for panel in panels) + _FOOT
    parts: list[Part] = [TextLabel(0, 24, title, 24, bold=True)] if title else []
    top = 44.0 if title else 4.0
    for at, panel in enumerate(panels):
        left = (at % columns) * (_PANEL + _GAP)
        y = top + (at // columns) * tall
        parts += [*_heading(panel, left, y), *_words_and_paths(panel, left, y + head)]
    y = top + -(-len(panels) // columns) * tall + 8
    marks: list[Mark] = [
        mark for mark in _MEANINGS if any(p.mark == mark for one in panels for p in one.paths)
    ]
    legend, y = _legend(marks, y, width)
    parts += legend
    for line in lines:
        parts.append(TextLabel(0, y + 4, line, 12, color="soft"))
        y += 17
    return Drawing(width, y + 2, tuple(parts), title or "Role paths", _description(panels))


def _heading(panel: PathPanel, left: Pixels, top: Pixels) -> list[Part]:
    parts: list[Part] = [
        TextLabel(left + _LEFT, top + 16, panel.name, 16, bold=True),
        TextLabel(left + _LEFT, top + 35, panel.score, 14, bold=True),
    ]
    parts += [
        TextLabel(left + _LEFT, top + 51 + 15 * at, line, 11.5, color="soft")
        for at, line in enumerate(panel.lines)
    ]
    return parts


def _words_and_paths(panel: PathPanel, left: Pixels, first: Pixels) -> list[Part]:
    parts: list[Part] = []
    rows = {word.role: first + _ROW * (at + 0.5) for at, word in enumerate(panel.words)}
    last = {path.roles[-1] for path in panel.paths}
    for edge in sorted(_edges(panel.paths), key=lambda edge: _ORDER.index(edge.mark)):
        if all(role in rows for role in edge.roles):
            start, end = (rows[role] for role in edge.roles)
            parts += _arc(edge, (start, end), left, is_last=edge.roles[1] in last)
    parts += [
        part for word in panel.words for part in _word(word, left + _LEFT, rows[word.role], panel)
    ]
    if panel.note:
        middle = first + _ROW * len(panel.words) / 2
        parts += [
            TextLabel(left + _LEFT + _WORD + 8, middle + 15 * at, line, 11.5, color="soft")
            for at, line in enumerate(panel.note.split("\n"))
        ]
    return parts


def _word(word: Word, left: Pixels, y: Pixels, panel: PathPanel) -> list[Part]:
    starts = {path.roles[0] for path in panel.paths}
    stroke = "ink" if word.role in starts or word.is_reply else "line"
    fill = "paper" if word.is_reply else "wash"
    text = truncate_text(word.text, _WORD - 6, 11.0)
    box = rectangle((left, y - _CHIP / 2, _WORD, _CHIP), fill, stroke)
    bold = word.is_reply
    return [
        Group(word.role, (box, TextLabel(left + _WORD / 2, y + 4, text, 12, "middle", bold=bold)))
    ]


def _edges(paths: Sequence[MarkedPath]) -> list[MarkedPath]:
    """Steps of all paths, each once: with its best mark and its largest fraction."""
    found: dict[tuple[tuple[str, ...], bool], MarkedPath] = {}
    for path in paths:
        for step in zip(path.roles, path.roles[1:], strict=False):
            old = found.get((step, path.is_object))
            new = MarkedPath(step, path.mark, path.fraction, path.is_object)
            if old is None or _rank(new) > _rank(old):
                found[step, path.is_object] = new
    return list(found.values())


def _rank(edge: MarkedPath) -> tuple[int, float]:
    return _ORDER.index(edge.mark), edge.fraction


def _arc(
    edge: MarkedPath, ends: tuple[Pixels, Pixels], left: Pixels, *, is_last: bool
) -> list[Part]:
    """Arc beside the words, with an arrowhead at its end; `is_last` ends at the answer."""
    start, end = ends
    side = -1.0 if edge.is_object else 1.0
    at = left + _LEFT + (0.0 if edge.is_object else _WORD)
    room = (_LEFT if edge.is_object else _RIGHT) - 6
    # Ways by another word bend less than those to the answer, so that they lie apart.
    bend = 0.44 if is_last else 0.2
    bulge = side * min(room / 0.75, 12 + bend * abs(end - start))
    color, dash = _STROKES[edge.mark]
    thickness = _MIN_THICKNESS + (_MAX_THICKNESS - _MIN_THICKNESS) * min(1.0, edge.fraction)
    tip = at + side * (5 + thickness * 0.5)
    points: tuple[Point, ...] = (
        (at, start), (at + bulge, start + 2), (at + bulge, end - 2), (tip, end - 1)
    )  # fmt: skip
    size = 3.2 + thickness * 0.55
    head = DrawingShape(
        ((at, end), (at + side * 1.9 * size, end - size), (at + side * 1.9 * size, end + size)),
        color,
    )
    name = f"{edge.roles[0]} → {edge.roles[1]}: {_MEANINGS[edge.mark]}, {edge.fraction:.2f}"
    return [Group(name, (Curve(points, color, thickness, 0.85, dash), head))]


def _legend(marks: Sequence[Mark], y: Pixels, width: Pixels) -> tuple[list[Part], Pixels]:
    parts: list[Part] = []
    x = 0.0
    for mark in marks:
        color, dash = _STROKES[mark]
        room = 58 + text_width(_MEANINGS[mark], 11)
        if x and x + room > width:
            x, y = 0.0, y + 19
        ends = ((x, y), (x + 12, y), (x + 20, y), (x + 32, y))
        parts += [
            Curve(ends, color, 4.0, dash=dash),
            TextLabel(x + 38, y + 4, _MEANINGS[mark], 12),
        ]
        x += room
    return parts, y + 20


def _description(panels: Sequence[PathPanel]) -> str:
    texts = []
    for panel in panels:
        counts = [
            f"{sum(path.mark == mark for path in panel.paths)} {_MEANINGS[mark]}"
            for mark in _MEANINGS
            if any(path.mark == mark for path in panel.paths)
        ]
        texts.append(f"{panel.name}, {panel.score}: {'; '.join(counts) or 'no path'}")
    return ". ".join(texts) + "."
