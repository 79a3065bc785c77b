"""Page of a report: title, verdicts, contents, and numbered sections."""

import zlib
from collections.abc import Sequence

from probes.viz.blocks import Block, Note
from probes.viz.html_text import escape, escape_lines, show_invisible
from probes.viz.picture import Picture

Section = tuple[str, str, Sequence[Block | Picture]]
"""Heading, introduction and content."""


def page(
    title: str,
    sections: Sequence[Section],
    verdicts: Sequence[Note] = (),
    subtitle: str = "",
) -> Picture:
    """Page in one HTML file.

    Args:
        title: Heading of the page.
        sections: Heading, introduction and content of each section.
        verdicts: Findings in large type at the top.
        subtitle: Line below the title.
    """
    lines = "".join(note.body for note in verdicts)
    header = (
        f"<header><h1>{escape(title)}</h1>"
        + (f'<p class="pv-sub">{escape_lines(subtitle)}</p>' if subtitle else "")
        + (f'<div class="pv-verdicts">{lines}</div>' if lines else "")
        + (_contents(sections) if len(sections) > 1 else "")
        + "</header>"
    )
    parts = "".join(_section_html(at, section) for at, section in enumerate(sections, start=1))
    return Picture(show_invisible(title), header + parts)


def _contents(sections: Sequence[Section]) -> str:
    items = "".join(
        f'<li><a href="#{_anchor(heading, at)}">{escape(heading)}</a></li>'
        for at, (heading, _, _) in enumerate(sections, start=1)
    )
    return f'<nav class="pv-toc" aria-label="Contents">Contents<ol>{items}</ol></nav>'


def _anchor(heading: str, index: int) -> str:
    """Id that differs from those of other pages in the same notebook."""
    return f"part-{zlib.crc32(heading.encode(errors='replace')):08x}-{index}"


def _section_html(index: int, section: Section) -> str:
    heading, intro, blocks = section
    body = "".join(f'<div class="pv-block">{block.body}</div>' for block in blocks)
    paragraph = f'<p class="pv-lead">{escape_lines(intro)}</p>' if intro else ""
    return (
        f'<section class="pv-part" id="{_anchor(heading, index)}"><h2>{index}. '
        f"{escape(heading)}</h2>{paragraph}{body}</section>"
    )
