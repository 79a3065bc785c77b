"""A report as one page: verdicts first, then what they rest on."""

import zlib
from collections.abc import Sequence

from probes.viz.blocks import Block, Note
from probes.viz.html_text import escape, escape_lines, show_invisible
from probes.viz.picture import Picture

Section = tuple[str, str, Sequence[Block | Picture]]


def page(
    title: str,
    sections: Sequence[Section],
    verdicts: Sequence[Note] = (),
    subtitle: str = "",
) -> Picture:
    """A report that is one file.

    Args:
        title: The heading of the page.
        sections: For each its heading, a paragraph, and its blocks and pictures.
        verdicts: The findings in plain words, in large type at the top.
        subtitle: What was compared, and how.
    """
    lines = "".join(note.body for note in verdicts)
    top = (
        f"<header><h1>{escape(title)}</h1>"
        + (f'<p class="pv-sub">{escape_lines(subtitle)}</p>' if subtitle else "")
        + (f'<div class="pv-verdicts">{lines}</div>' if lines else "")
        + (_contents(sections) if len(sections) > 1 else "")
        + "</header>"
    )
    parts = "".join(_section_html(at, section) for at, section in enumerate(sections, start=1))
    return Picture(show_invisible(title), top + parts)


def _contents(sections: Sequence[Section]) -> str:
    items = "".join(
        f'<li><a href="#{_anchor(heading, at)}">{escape(heading)}</a></li>'
        for at, (heading, _, _) in enumerate(sections, start=1)
    )
    return f'<nav class="pv-toc" aria-label="Contents">Contents<ol>{items}</ol></nav>'


def _anchor(heading: str, index: int) -> str:
    """A name for the place that other pages of the same notebook do not have."""
    return f"part-{zlib.crc32(heading.encode(errors='replace')):08x}-{index}"


def _section_html(index: int, section: Section) -> str:
    heading, lead, blocks = section
    body = "".join(f'<div class="pv-block">{block.body}</div>' for block in blocks)
    paragraph = f'<p class="pv-lead">{escape_lines(lead)}</p>' if lead else ""
    return (
        f'<section class="pv-part" id="{_anchor(heading, index)}"><h2>{index}. {escape(heading)}</h2>'
        f"{paragraph}{body}</section>"
    )
