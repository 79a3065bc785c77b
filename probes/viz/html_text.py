"""Text for HTML: invisible characters written out, everything escaped, numbers formatted.

A token may be `</script>`, a newline, a right-to-left mark or a lone surrogate. All text of a page
passes through here.
"""

import html
import json
import math
import re
import unicodedata

MINUS = "\N{MINUS SIGN}"

# Other, Format, Surrogate, Private use, unassigned, and the two separators that end a line.
_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_CONTROL_SYMBOLS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\x7f": "␡"}


def show_invisible(text: str) -> str:
    """Write out each invisible character, such as `⏎` or `<U+202E>`."""
    return "".join(map(_show_char, text))


def axis_label(text: str) -> str:
    """Axis label with visible spaces at both ends; `∅` for the empty text."""
    shown = show_invisible(text)
    body = shown.strip(" ")
    if not body:
        return "␣" * len(shown) or "∅"
    left = len(shown) - len(shown.lstrip(" "))
    right = len(shown) - len(shown.rstrip(" "))
    return "␣" * left + body + "␣" * right


def typographic_minus(text: str) -> str:
    """Replace the hyphen of negative numbers by a minus sign; other hyphens stay."""
    return re.sub(r"(?<!\w)-(?=\d)", MINUS, text)


def nonbreaking(text: str) -> str:
    """Replace spaces by no-break spaces."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def format_number(value: float, digits: int = 2) -> str:
    """Fixed-point number with a minus sign, without -0; a dash for NaN."""
    return (
        "–" if math.isnan(value) else typographic_minus(f"{round(value, digits) + 0.0:.{digits}f}")
    )


def escape(text: str) -> str:
    """Visible text that is safe inside an element and a quoted attribute."""
    return html.escape(show_invisible(text), quote=True)


def escape_lines(text: str) -> str:
    """Like `escape`, with `<br>` for each line break."""
    return "<br>".join(map(escape, text.split("\n")))


def json_attribute(value: object) -> str:
    """JSON that is safe in a quoted attribute and in a script."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return html.escape(text, quote=True)


def _show_char(char: str) -> str:
    if char in _CONTROL_SYMBOLS:
        return _CONTROL_SYMBOLS[char]
    if unicodedata.category(char) not in _INVISIBLE_CATEGORIES:
        return char
    return chr(0x2400 + ord(char)) if ord(char) < 0x20 else f"<U+{ord(char):04X}>"
