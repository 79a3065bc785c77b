"""Scene of a walk-through: words in rows, layers from left to right, and what each state holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.viz.drawing import (
    Curve,
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    Single,
    TextLabel,
    rectangle,
    text_width,
    truncate_text,
)
from probes.viz.plots.role_path_map import Word

_ROW, _CHIP, _WORD = 28.0, 22.0, 100.0
_HEAD, _SIDE = 34.0, 348.0
_PITCH = (30.0, 92.0)
_MIN_RATE = 0.1  # Of a state that is drawn.

COLORS = {"x": "#0b6fb8", "y": "#c65102", "operation": "#00805f", "thing": "#b0518e"}
"""Color of each variable; its shape is told apart as well."""
LABELS = {"x": "first number", "y": "second number", "operation": "verb", "thing": "noun"}
_OFFSETS = {"x": (-1, -1), "y": (1, -1), "operation": (-1, 1), "thing": (1, 1)}


@dataclass(frozen=True, slots=True)
class Line:
    """Attention from `query` after a layer to `key` before it."""

    layer: int
    query: str
    key: str
    weight: float
    label: str


@dataclass(frozen=True, eq=False)
class Scene:
    """What is drawn of one model.

    Attributes:
        name: Name of the drawing.
        words: Words of the question, then those of the reply.
        roles: Roles of the maps.
        layers: Number of layers.
        maps: For each variable the fraction of answers that change with a state.
        lines: Attention.
        rings: Role and layer of each state to point at; layer 0 is the word itself.
    """

    name: str
    words: Sequence[Word]
    roles: Sequence[str]
    layers: int
    maps: Mapping[str, Float[np.ndarray, "role layer"]]
    lines: Sequence[Line] = ()
    rings: Sequence[tuple[str, int]] = ()


def scene_drawing(scene: Scene) -> Drawing:
    """Grid of words and layers with a shape for each variable that a state holds."""
    pitch = min(_PITCH[1], max(_PITCH[0], (_SIDE - _WORD) / scene.layers))
    rows = {word.role: _HEAD + _ROW * (at + 0.5) for at, word in enumerate(scene.words)}

    def at(role: str, layer: int) -> tuple[Pixels, Pixels]:
        return (_WORD if layer == 0 else _WORD + pitch * layer), rows[role]

    width = _WORD + pitch * scene.layers + 24
    parts: list[Part] = [TextLabel(_WORD + pitch * 0.55, 11, "layer", 11, "start", "soft")]
    for layer in range(1, scene.layers + 1):
        x = _WORD + pitch * layer
        parts.append(TextLabel(x, 26, str(layer), 11.5, "middle", "soft"))
        parts.append(DrawingShape(((x, _HEAD), (x, _HEAD + _ROW * len(rows))), stroke="line"))
    for word in scene.words:
        y = rows[word.role]
        parts.append(DrawingShape(((_WORD, y), (width - 18, y)), stroke="wash"))
    drawn = [line for line in scene.lines if line.query in rows and line.key in rows]
    parts += [
        _line(line, at(line.key, line.layer), at(line.query, line.layer + 1)) for line in drawn
    ]
    parts += [
        part
        for role, layer in scene.rings
        if role in rows
        for part in _ring(at(role, layer), layer)
    ]
    for row, role in enumerate(scene.roles):
        for layer in range(1, scene.layers + 1):
            held = {name: float(rates[row, layer]) for name, rates in scene.maps.items()}
            if role in rows and max(held.values(), default=0.0) >= _MIN_RATE:
                parts.append(_state(at(role, layer), held, role, layer))
    parts += [_word(word, rows[word.role]) for word in scene.words]
    height = _HEAD + _ROW * len(rows) + 4
    return Drawing(width, height, tuple(parts), scene.name, _description(scene))


def legend_drawing(variables: Sequence[str], words: Mapping[str, str]) -> Drawing:
    """Shape of each variable, with its words in the question."""
    parts: list[Part] = []
    x, y = 8.0, 12.0
    for name in variables:
        text = f"{LABELS[name]}: {words[name]}"
        if x > 8 and x + text_width(text, 12) + 18 > _SIDE:
            x, y = 8.0, y + 22
        parts += [_shape(name, (x, y), 5.0), TextLabel(x + 11, y + 4, text, 12)]
        x += 34 + text_width(text, 11)
    return Drawing(_SIDE + 40, y + 12, tuple(parts), "Legend", "Shapes of the variables.")


def _word(word: Word, y: Pixels) -> Group:
    fill, stroke = ("paper", "ink") if word.is_reply else ("wash", "line")
    box = rectangle((1, y - _CHIP / 2, _WORD - 6, _CHIP), fill, stroke)
    text = truncate_text(word.text, _WORD - 8, 11.5)
    label = TextLabel(_WORD / 2 - 2, y + 4.5, text, 13, "middle", bold=word.is_reply)
    return Group(word.role, (box, label), css_class="pv-reply" if word.is_reply else "")


def _line(line: Line, start: tuple[Pixels, Pixels], end: tuple[Pixels, Pixels]) -> Group:
    """From what is read, one layer on, to what reads it."""
    middle = (start[0] + end[0]) / 2
    points = (start, (middle, start[1]), (middle, end[1]), end)
    thickness = 0.8 + 4 * line.weight
    return Group(line.label, (Curve(points, "soft", thickness, 0.25 + 0.6 * line.weight),))


def _ring(center: tuple[Pixels, Pixels], layer: int) -> list[Part]:
    if layer == 0:
        y = center[1]
        return [rectangle((-1, y - _CHIP / 2 - 2, _WORD - 2, _CHIP + 4), "none", "mark")]
    return [DrawingShape((center,), "paper", "mark", 2.4, 14.0)]


def _state(
    center: tuple[Pixels, Pixels], held: Mapping[str, float], role: str, layer: int
) -> Group:
    """Up to four shapes around the center, their area as the fraction."""
    present = {name: rate for name, rate in held.items() if rate >= _MIN_RATE}
    parts: list[Single] = []
    for name, rate in present.items():
        dx, dy = _OFFSETS[name] if len(present) > 1 else (0, 0)
        place = (center[0] + 5.4 * dx, center[1] + 5.4 * dy)
        parts.append(_shape(name, place, 5.2 * rate**0.5))
    texts = ", ".join(f"{LABELS[name]} {rate:.0%}" for name, rate in present.items())
    return Group(f"{role}, after layer {layer}: {texts}".replace("%", " %"), tuple(parts))


def _shape(variable: str, center: tuple[Pixels, Pixels], radius: Pixels) -> DrawingShape:
    x, y = center
    color, r = COLORS[variable], radius
    corners = {
        "y": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "operation": ((0, -1.25 * r), (1.2 * r, r), (-1.2 * r, r)),
        "thing": ((0, -1.35 * r), (1.35 * r, 0), (0, 1.35 * r), (-1.35 * r, 0)),
    }
    if variable not in corners:
        return DrawingShape((center,), color, "paper", 0.6, r * 1.1)
    points = tuple((x + dx * 0.9, y + dy * 0.9) for dx, dy in corners[variable])
    return DrawingShape(points, color, "paper", 0.6)


def _description(scene: Scene) -> str:
    texts = []
    for name, rates in scene.maps.items():
        held = [
            f"{role} after layer {layer}"
            for row, role in enumerate(scene.roles)
            for layer in range(1, scene.layers + 1)
            if rates[row, layer] >= 0.5
        ]
        texts.append(f"The {LABELS[name]} is in the states of {', '.join(held) or 'no word'}")
    return ". ".join(texts) + "."
