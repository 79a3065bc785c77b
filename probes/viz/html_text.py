"""Strangers' text made harmless and visible: tokens, prompts and model names.

A token may be `</script>`, a newline, a right-to-left mark or half a character. Nothing of the
kind reaches a page: what would be invisible is written out, and the rest is escaped.
"""

import html
import json
import unicodedata

MINUS = "\N{MINUS SIGN}"

# Other, Format, Surrogate, Private use, unassigned, and the two separators that end a line.
_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_CONTROL_SYMBOLS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\x7f": "␡"}


def show_invisible(text: str) -> str:
    """The text with every invisible character written out, such as `⏎` or `<U+202E>`."""
    return "".join(_show_char(char) for char in text)


def axis_label(text: str) -> str:
    """The text as an axis label: spaces at its ends show, and the empty text does too."""
    shown = show_invisible(text)
    body = shown.strip(" ")
    if not body:
        return "␣" * len(shown) or "∅"
    left = len(shown) - len(shown.lstrip(" "))
    right = len(shown) - len(shown.rstrip(" "))
    return "␣" * left + body + "␣" * right


def typographic_minus(text: str) -> str:
    """A formatted number with a minus sign in place of its hyphen."""
    return text.replace("-", MINUS)


def escape(text: str) -> str:
    """The visible text, safe inside an element and inside a quoted attribute."""
    return html.escape(show_invisible(text), quote=True)


def escape_lines(text: str) -> str:
    """Like `escaped`, but a line break of the writer stays a line break."""
    return "<br>".join(escape(line) for line in text.split("\n"))


def json_attribute(value: object) -> str:
    """The value as JSON that is safe in an attribute, and would be safe in a script too."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return html.escape(text, quote=True)


def _show_char(char: str) -> str:
    if char in _CONTROL_SYMBOLS:
        return _CONTROL_SYMBOLS[char]
    if unicodedata.category(char) not in _INVISIBLE_CATEGORIES:
        return char
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))
    return f"<U+{ord(char):04X}>"
