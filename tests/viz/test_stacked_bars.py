import jaxtyping
import numpy as np
import pytest
from svg_reader import (
    NASTY,
    box,
    check_page_is_safe,
    check_styles_are_scoped,
    groups_by_tooltip,
    texts,
)

from probes.errors import FigureError
from probes.viz.page import page
from probes.viz.plots.stacked_bars import OutcomeBlock

OUTCOMES = ("base", "operation", "x", "operation + x", "copies x", "strange", "other")


def outcomes(shares, **options):
    sites = [f"site {at}" for at in range(len(shares))]
    return OutcomeBlock(sites, OUTCOMES, np.array(shares, dtype=float), **options)


@pytest.fixture
def unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_bar_is_as_long_as_its_fraction():
    block = outcomes([[0.5, 0.25, 0.25, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]])
    found = groups_by_tooltip(block)
    base, operation = (found[f"site 0: {name} %"][0] for name in ("base 50.0", "operation 25.0"))
    whole = found["site 1: x 100.0 %"][0]
    assert box(base[0])[2] == pytest.approx(2 * box(operation[0])[2], abs=1)
    assert box(whole[0])[2] == pytest.approx(2 * box(base[0])[2], abs=1)
    assert box(operation[0])[0] == pytest.approx(sum(box(base[0])[::2]), abs=1)
    assert found["site 0: base 50.0 %"][1] == "50 %"


def test_outcomes_with_fraction_0_are_not_drawn():
    assert (
        len(groups_by_tooltip(outcomes([[0, 0, 1, 0, 0, 0, 0]]))) == 2
    )  # the site's name and one bar


def test_a_joint_outcome_has_the_colors_of_its_parts():
    found = groups_by_tooltip(outcomes([[0, 0.25, 0.25, 0.5, 0, 0, 0]]))
    color = {says: [p.get("fill") for p in paths] for says, (paths, _) in found.items()}
    joint = color["site 0: operation + x 50.0 %"]
    assert joint[:2] == color["site 0: operation 25.0 %"] + color["site 0: x 25.0 %"]


def test_an_outcome_has_the_same_color_in_every_chart():
    def fill(names, name):
        block = OutcomeBlock(["s"], names, np.full((1, len(names)), 1 / len(names)))
        return next(
            [p.get("fill") for p in paths]
            for says, (paths, _) in groups_by_tooltip(block).items()
            if says.startswith(f"s: {name} ")
        )

    for name in ("x", "base", "other", "copies x"):
        assert fill(OUTCOMES, name) == fill((name, "object"), name)
    looks = {tuple(fill(OUTCOMES, name)[:2]) for name in OUTCOMES}
    assert len(looks) == len(OUTCOMES)


def test_a_site_that_was_not_measured_has_a_note():
    block = outcomes([[np.nan] * 7, [1, 0, 0, 0, 0, 0, 0]], counts=[0, 1280])
    assert {"not measured", "n = 1,280"} <= set(texts(block))


def nasty():
    return OutcomeBlock([NASTY[1]], NASTY, np.full((1, 6), 1 / 6), caption=NASTY[1])


def test_hostile_text_makes_no_tag_and_no_handler(tmp_path):
    text = page("p", [("h", "", [nasty()])]).save(tmp_path / "p.html").read_text()
    check_page_is_safe(text)


def test_styles_stay_inside_the_picture():
    check_styles_are_scoped(nasty())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: outcomes([[0.5, 0.4, 0, 0, 0, 0, 0]]), "do not sum to 1"),
        (lambda: outcomes([[1.5, -0.5, 0, 0, 0, 0, 0]]), "do not sum to 1"),
        (lambda: outcomes([[1.0]]), "name each one"),
        (lambda: outcomes([[1, 0, 0, 0, 0, 0, 0]], counts=[1, 2]), "2 counts for 1 sites"),
    ],
)
def test_invalid_fractions_are_refused(make, says, unchecked):
    with pytest.raises(FigureError, match=says):
        make()
