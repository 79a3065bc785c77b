"""Reading of pages and drawings, for the tests of charts."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

NASTY = ("</script>", "<img src=x onerror=alert(1)>", "\"'&amp;\n", "\u202eabc", "$x$", "日本")
MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


class Tags(HTMLParser):
    """Names of all tags and attributes."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.names = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.names += [name for name, _ in attrs]


def drawing(block):
    """The first drawing of a block as a tree."""
    return ElementTree.fromstring(re.findall(r"<svg.*?</svg>", block.body, re.DOTALL)[0])


def texts(block):
    return [text.text for text in drawing(block).iter("text")]


def groups_by_tooltip(block):
    """For each tooltip the shapes of its group, and its text if it has any."""
    return {
        group.findtext("title", ""): (group.findall("path"), group.findtext("text"))
        for group in drawing(block).findall("g")
    }


def box(path):
    """Left, top, width and height of a rectangle."""
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d", ""))]
    return numbers[0], numbers[1], numbers[2], numbers[5]


def outline(shape):
    """Shape of a mark, wherever it is."""
    return re.sub(r"^M[-\d.]+ [-\d.]+", "", shape.get("d", "circle"))


def check_page_is_safe(text):
    """No tag or handler comes from data, and nothing is fetched."""
    tags = Tags(text)
    assert tags.seen.count("script") == 1 and "img" not in tags.seen
    assert not [name for name in tags.names if name.startswith("on")]
    assert "\u202e" not in text and not re.search(r"https?:|url\(|@import", text)


def check_styles_are_scoped(block):
    styles = re.findall(r"<style>(.*?)</style>", block.body)
    selectors = [one for style in styles for one in re.findall(r"([^{}]+)\{", style)]
    assert selectors and all(one.startswith(".pv.pv ") for one in selectors)
