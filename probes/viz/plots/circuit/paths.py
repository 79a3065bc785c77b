"""A circuit diagram with a table of its paths beside it, and a line for the evidence.

A path, an edge or a node under the mouse, or with the focus, stands out. Without scripts the edge
or node under the mouse still does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from probes.circuits.graph import Edge
from probes.circuits.paths import CircuitPath
from probes.viz.blocks import caption_html
from probes.viz.drawing import Curve, Drawing, inline_svg, scrollable_svg
from probes.viz.figure import drawing_picture
from probes.viz.html_text import escape, typographic_minus
from probes.viz.picture import Picture

MAX_PATHS = 60
"""More paths are not listed."""

_STYLE = (
    ".pv.pv .pv-circuit .pv-wire:hover path{stroke-opacity:1}"
    ".pv.pv .pv-circuit:has(.pv-wire:hover) .pv-wire:not(:hover,.pv-lit){opacity:.18}"
    ".pv.pv .pv-lighting .pv-circuit .pv-wire:not(.pv-lit){opacity:.1}"
)


@dataclass(frozen=True, slots=True)
class PathRow:
    """Line of the table of paths.

    Attributes:
        path: The path.
        cells: What stands behind it.
        stroke: Color and dash of its mark; none in a circuit of one model.
    """

    path: CircuitPath
    cells: tuple[str, ...]
    stroke: tuple[str, tuple[float, float] | None] | None = None


def circuit_picture(
    drawing: Drawing,
    n_nodes: int,
    edges: Sequence[Edge],
    rows: Sequence[PathRow],
    columns: Sequence[str],
) -> Picture:
    """Picture of a diagram whose groups have the classes `pv-wire pv-e{edge} pv-n{node}`.

    Args:
        drawing: The diagram.
        n_nodes: Number of its nodes.
        edges: Its edges, by number.
        rows: Paths.
        columns: Heads of the columns behind the path.
    """
    rules = "".join(
        f".pv.pv .pv-circuit:has(g.pv-n{n}:not(.pv-wire):hover) .pv-wire:not(.pv-n{n})"
        "{opacity:.07}"
        for n in range(n_nodes)
    )
    body = (
        f'<style>{_STYLE}{rules}</style><div class="pv-traced"><div class="pv-drawn">'
        f"{scrollable_svg(drawing, 'pv-circuit')}</div>{_table(edges, rows, columns)}"
        '<p class="pv-evidence" role="status">Point at an edge, a node or a path, or press Tab, '
        "for the evidence; a click keeps it.</p></div>"
    )
    return drawing_picture(drawing.name, body, drawing)


def _table(edges: Sequence[Edge], rows: Sequence[PathRow], columns: Sequence[str]) -> str:
    number = {edge: at for at, edge in enumerate(edges)}
    heads = "".join(f'<th scope="col" data-align="r">{escape(name)}</th>' for name in columns)
    lines = []
    for row in rows[:MAX_PATHS]:
        marks = " ".join(str(number[edge]) for edge in row.path.edges if edge in number)
        cells = "".join(
            f'<td data-align="r">{typographic_minus(escape(c))}</td>' for c in row.cells
        )
        lines.append(
            f'<tr data-edges="{marks}"><td data-align="l">{_sample(row)}<button type="button" '
            f'class="pv-path">{escape(str(row.path))}</button></td>{cells}</tr>'
        )
    left_out = len(rows) - len(lines)
    note = f'<p class="pv-soft">{left_out:,} weaker paths are not listed.</p>' if left_out else ""
    caption = f"Paths: each edge is on at least one of {len(rows)}"
    return (
        f'<div class="pv-paths">{caption_html(caption)}<div class="pv-scroll" tabindex="0" '
        f'role="group" aria-label="Paths"><table class="pv-rows"><thead><tr><th scope="col" '
        f'data-align="l">path, from the embedding upward</th>{heads}</tr></thead><tbody>'
        f"{''.join(lines)}</tbody></table></div>{note}</div>"
    )


def _sample(row: PathRow) -> str:
    if row.stroke is None:
        return ""
    color, dash = row.stroke
    ends = ((0, 6), (8, 6), (16, 6), (24, 6))
    return inline_svg((Curve(ends, color, 3.5, dash=dash),), 24, 12)
