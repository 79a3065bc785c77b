"""Picture: HTML that shows itself in a notebook and saves as a page or a figure.

A page is one file that fetches nothing; its content security policy enforces this.

A notebook gets a static picture, which its script replaces by the interactive one. Viewers that
do not trust a notebook remove scripts, styles and most attributes, and keep what stands between
the tags: JupyterLab (its sanitizer allows images with their data inside), and GitHub, which also
removes `class`, `style` and `hidden`. So the interactive picture is packed into an attribute, where
a viewer without scripts shows nothing of it.
"""

import base64
import hashlib
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from probes.errors import FigureError
from probes.files import write_atomic
from probes.viz.html_text import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".html", ".png", ".svg", ".pdf")

Draw = Callable[["Figure"], None]
"""Draws on an empty matplotlib figure."""


@runtime_checkable
class HasBody(Protocol):
    """A picture, or a block of a page."""

    @property
    def body(self) -> str:
        """HTML with all text escaped."""
        ...


@dataclass(frozen=True, eq=False)
class Picture:
    """HTML picture with an optional figure.

    Attributes:
        title: One line of plain text.
        body: HTML with all text escaped.
        draw: Draws on an empty matplotlib figure; None for pages, which have no figure.
        static: Makes the HTML that a notebook shows where scripts do not run; by default the
            figure, or the body with its drawings as images.
    """

    title: str
    body: str
    draw: Draw | None = None
    static: Callable[[], str] | None = None

    def save(self, path: str | Path) -> Path:
        """Write as .html, or with matplotlib as .png, .svg or .pdf.

        Raises:
            FigureError: The suffix or folder is wrong, or there is no figure or no matplotlib.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in _SUFFIXES:
            raise FigureError(
                f"cannot save a picture as {path.name!r}: end the name in .html, .png, .svg "
                "or .pdf; the numbers of a result are saved as .json or .csv"
            )
        if not path.parent.is_dir():
            raise FigureError(f"there is no folder {str(path.parent)!r}: make it first")
        is_page = suffix == ".html"
        write_atomic(path, html_document(self).encode() if is_page else _render(self, suffix))
        return path

    def _repr_html_(self) -> str:
        return notebook_cell(self, self.static)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Picture({self.title!r}, {len(self.body) // 1024 + 1} kB)"


def notebook_cell(part: HasBody, static: Callable[[], str] | None = None) -> str:
    """Static HTML of a picture or a block, which its script replaces by the interactive one.

    Without matplotlib there is no static picture, and the interactive one stands there as it is.
    """
    live = html_fragment(part.body)
    try:
        # Found late and by name: it draws, so it imports this file.
        shown = static() if static else import_module("probes.viz.static").static_html(part)
    except FigureError:
        return live
    packed = base64.b64encode(zlib.compress(live.encode(), 9)).decode()
    script = _asset("cell.js")
    return f'<div class="pv-cell" data-live="{packed}">{shown}</div><script>{script}</script>'


def html_fragment(body: str) -> str:
    """Body with style and script; styles do not leak out of it."""
    style, script = _asset("style.css"), _asset("viewer.js")
    return f'<style>{style}</style><div class="pv">{body}</div><script>{script}</script>'


def html_document(picture: Picture) -> str:
    """Page that may fetch nothing and run no script but its own."""
    style, script = _asset("style.css"), _asset("viewer.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(picture.title)}</title><style>{style}</style></head>\n"
        f'<body class="pv-page"><main class="pv">{picture.body}</main>\n'
        f"<script>{script}</script></body></html>\n"
    )


@cache
def _asset(name: str) -> str:
    return files("probes.viz").joinpath("assets", name).read_text(encoding="utf-8")


def _render(picture: Picture, suffix: str) -> bytes:
    if picture.draw is None:
        raise FigureError(
            f"{picture.title!r} is a page and has no {suffix} form: save it as .html, "
            "or save one of its pictures"
        )
    return figure_bytes(picture.draw, suffix, 200.0)


def figure_bytes(draw: Draw, suffix: str, dpi: float) -> bytes:
    """Figure file in the format of a suffix.

    Raises:
        FigureError: There is no matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FigureError(
            f"saving {suffix} needs matplotlib, which is not installed: "
            "pip install 'circuit-relatives[figures]', or save as .html"
        ) from error
    stream = io.BytesIO()
    # A fixed salt and no date: equal pictures are equal files.
    with rc_context({"svg.hashsalt": "probes", "svg.fonttype": "path"}):
        figure = Figure(layout="constrained", facecolor="white")
        draw(figure)
        date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
        figure.savefig(stream, format=suffix[1:], dpi=dpi, metadata=date)
    return stream.getvalue()
