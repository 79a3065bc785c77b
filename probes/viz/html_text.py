"""Strangers' text made harmless and visible: tokens, prompts and model names.

A token may be `</script>`, a newline, a right-to-left mark or half a character. Nothing of the
kind reaches a page: what would be invisible is written out, and the rest is escaped.
"""

import html
import json
import unicodedata

MINUS = "\N{MINUS SIGN}"

# Other, Format, Surrogate, Private use, unassigned, and the two separators that end a line.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_NAMED = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\x7f": "␡"}


def visible(text: str) -> str:
    """The text with every invisible character written out, such as `⏎` or `<U+202E>`."""
    return "".join(_seen(char) for char in text)


def label(text: str) -> str:
    """The text as an axis label: spaces at its ends show, and the empty text does too."""
    shown = visible(text)
    body = shown.strip(" ")
    if not body:
        return "␣" * len(shown) or "∅"
    left = len(shown) - len(shown.lstrip(" "))
    right = len(shown) - len(shown.rstrip(" "))
    return "␣" * left + body + "␣" * right


def minus(text: str) -> str:
    """A formatted number with a minus sign in place of its hyphen."""
    return text.replace("-", MINUS)


def escaped(text: str) -> str:
    """The visible text, safe inside an element and inside a quoted attribute."""
    return html.escape(visible(text), quote=True)


def prose(text: str) -> str:
    """Like `escaped`, but a line break of the writer stays a line break."""
    return "<br>".join(escaped(line) for line in text.split("\n"))


def attribute(value: object) -> str:
    """The value as JSON that is safe in an attribute, and would be safe in a script too."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return html.escape(text, quote=True)


def _seen(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    if unicodedata.category(char) not in _UNSEEN:
        return char
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))
    return f"<U+{ord(char):04X}>"
