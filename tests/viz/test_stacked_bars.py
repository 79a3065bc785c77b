import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import jaxtyping
import numpy as np
import pytest

from probes.errors import FigureError
from probes.viz.page import page
from probes.viz.plots.stacked_bars import OutcomeBlock

NASTY = ("</script>", "<img src=x onerror=alert(1)>", "\"'&amp;\n", "\u202eabc", "$x$", "日本")
OUTCOMES = ("base", "operation", "x", "operation + x", "copies x", "strange", "other")


def outcomes(shares, **options):
    sites = [f"site {at}" for at in range(len(shares))]
    return OutcomeBlock(sites, OUTCOMES, np.array(shares, dtype=float), **options)


def drawing(block):
    return ElementTree.fromstring(re.findall(r"<svg.*?</svg>", block.body, re.DOTALL)[0])


def hovers(block):
    """What says something on hover: its words, its shapes, and its text if it has any."""
    return {
        group.findtext("title", ""): (group.findall("path"), group.findtext("text"))
        for group in drawing(block).findall("g")
    }


def size(path):
    """Left, top, width and height of a rectangle."""
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d", ""))]
    return numbers[0], numbers[1], numbers[2], numbers[5]


def words(block):
    return [text.text for text in drawing(block).iter("text")]


@pytest.fixture
def unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen, self.names = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.names += [name for name, _ in attrs]


def test_a_bar_is_as_long_as_its_share():
    block = outcomes([[0.5, 0.25, 0.25, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]])
    found = hovers(block)
    base, operation = (found[f"site 0: {name} %"][0] for name in ("base 50.0", "operation 25.0"))
    whole = found["site 1: x 100.0 %"][0]
    assert size(base[0])[2] == pytest.approx(2 * size(operation[0])[2], abs=1)
    assert size(whole[0])[2] == pytest.approx(2 * size(base[0])[2], abs=1)
    assert size(operation[0])[0] == pytest.approx(sum(size(base[0])[::2]), abs=1)
    assert found["site 0: base 50.0 %"][1] == "50 %"


def test_outcomes_without_a_share_are_not_drawn():
    assert len(hovers(outcomes([[0, 0, 1, 0, 0, 0, 0]]))) == 2  # the site's name and one bar


def test_a_joint_outcome_has_the_colors_of_its_parts():
    found = hovers(outcomes([[0, 0.25, 0.25, 0.5, 0, 0, 0]]))
    color = {says: [p.get("fill") for p in paths] for says, (paths, _) in found.items()}
    joint = color["site 0: operation + x 50.0 %"]
    assert joint[:2] == color["site 0: operation 25.0 %"] + color["site 0: x 25.0 %"]


def test_an_outcome_has_the_same_color_in_every_picture():
    def fill(names, name):
        block = OutcomeBlock(["s"], names, np.full((1, len(names)), 1 / len(names)))
        return next(
            [p.get("fill") for p in paths]
            for says, (paths, _) in hovers(block).items()
            if says.startswith(f"s: {name} ")
        )

    for name in ("x", "base", "other", "copies x"):
        assert fill(OUTCOMES, name) == fill((name, "object"), name)
    looks = {tuple(fill(OUTCOMES, name)[:2]) for name in OUTCOMES}
    assert len(looks) == len(OUTCOMES)


def test_a_site_that_was_not_measured_says_so():
    block = outcomes([[np.nan] * 7, [1, 0, 0, 0, 0, 0, 0]], counts=[0, 1280])
    assert {"not measured", "n = 1,280"} <= set(words(block))


def nasty():
    return OutcomeBlock([NASTY[1]], NASTY, np.full((1, 6), 1 / 6), caption=NASTY[1])


def test_hostile_text_makes_no_tag_and_no_handler(tmp_path):
    text = page("p", [("h", "", [nasty()])]).save(tmp_path / "p.html").read_text()
    tags = Tags(text)
    assert tags.seen.count("script") == 1 and "img" not in tags.seen
    assert not [name for name in tags.names if name.startswith("on")]
    assert "\u202e" not in text and not re.search(r"https?:|url\(|@import", text)


def test_styles_stay_inside_the_picture():
    for style in re.findall(r"<style>(.*?)</style>", nasty().body):
        assert all(one.startswith(".pv.pv ") for one in re.findall(r"([^{}]+)\{", style))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: outcomes([[0.5, 0.4, 0, 0, 0, 0, 0]]), "do not sum to 1"),
        (lambda: outcomes([[1.5, -0.5, 0, 0, 0, 0, 0]]), "do not sum to 1"),
        (lambda: outcomes([[1.0]]), "name each one"),
        (lambda: outcomes([[1, 0, 0, 0, 0, 0, 0]], counts=[1, 2]), "2 counts for 1 sites"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, says, unchecked):
    with pytest.raises(FigureError, match=says):
        make()
