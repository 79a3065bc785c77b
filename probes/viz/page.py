"""Page of a report: title, verdicts, contents, and numbered sections."""

import zlib
from collections.abc import Collection, Sequence
from itertools import takewhile

from probes.viz.blocks import Block, Note
from probes.viz.html_text import escape, escape_lines, show_invisible
from probes.viz.picture import Picture
from probes.viz.static import static_html

Section = tuple[str, str, Sequence[Block | Picture]]
"""Heading, introduction and content."""


def page(
    title: str,
    sections: Sequence[Section],
    lead: Sequence[Block | Picture] = (),
    subtitle: str = "",
    folded: Collection[str] = (),
) -> Picture:
    """Page in one HTML file.

    Args:
        title: Heading of the page.
        sections: Heading, introduction and content of each section.
        lead: What stands above them: findings, in large type down to the first block that is no
            note, such as a drawing.
        subtitle: Line below the title.
        folded: Headings of sections that open on a click; they are printed open.
    """
    header = (
        f"<header><h1>{escape(title)}</h1>"
        + (f'<p class="pv-sub">{escape_lines(subtitle)}</p>' if subtitle else "")
        + _lead(lead)
        + (_contents(sections) if len(sections) > 1 else "")
        + "</header>"
    )
    parts = "".join(
        _section_html(at, section, is_folded=section[0] in folded)
        for at, section in enumerate(sections, start=1)
    )
    shown = [(at, one) for at, one in enumerate(sections, start=1) if one[0] not in folded]
    top = f"<h3>{escape(title)}</h3><p>{escape_lines(subtitle)}</p>"
    return Picture(
        show_invisible(title), header + parts, static=lambda: top + _static(lead, shown, folded)
    )


def _static(
    lead: Sequence[Block | Picture],
    sections: Sequence[tuple[int, Section]],
    left_out: Collection[str],
) -> str:
    """Findings, and the main sections below them folded."""
    parts = [
        f"<details><summary><b>{at}. {escape(heading)}</b></summary>"
        f"<p>{escape_lines(intro)}</p>{''.join(map(static_html, blocks))}</details>"
        for at, (heading, intro, blocks) in sections
    ]
    rest = f"<p>Left out without scripts: {escape(', '.join(left_out))}.</p>" if left_out else ""
    return "".join(map(static_html, lead)) + "".join(parts) + rest


def _lead(blocks: Sequence[Block | Picture]) -> str:
    verdicts = list(takewhile(lambda block: isinstance(block, Note), blocks))
    large = "".join(note.body for note in verdicts)
    rest = "".join(
        block.body if isinstance(block, Note) else f'<div class="pv-block">{block.body}</div>'
        for block in blocks[len(verdicts) :]
    )
    return (f'<div class="pv-verdicts">{large}</div>' if large else "") + rest


def _contents(sections: Sequence[Section]) -> str:
    items = "".join(
        f'<li><a href="#{_anchor(heading, at)}">{escape(heading)}</a></li>'
        for at, (heading, _, _) in enumerate(sections, start=1)
    )
    return f'<nav class="pv-toc" aria-label="Contents">Contents<ol>{items}</ol></nav>'


def _anchor(heading: str, index: int) -> str:
    """Id that differs from those of other pages in the same notebook."""
    return f"part-{zlib.crc32(heading.encode(errors='replace')):08x}-{index}"


def _section_html(index: int, section: Section, *, is_folded: bool) -> str:
    heading, intro, blocks = section
    body = "".join(f'<div class="pv-block">{block.body}</div>' for block in blocks)
    paragraph = f'<p class="pv-lead">{escape_lines(intro)}</p>' if intro else ""
    title, content = f"<h2>{index}. {escape(heading)}</h2>", f"{paragraph}{body}"
    if is_folded:
        title, content = "", f"<details><summary>{title}</summary>{content}</details>"
    return f'<section class="pv-part" id="{_anchor(heading, index)}">{title}{content}</section>'
