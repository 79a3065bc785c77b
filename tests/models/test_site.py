"""Sites and their addresses."""

import pytest

from probes.errors import SiteError
from probes.models.site import Site, head_names, parse_head


@pytest.mark.parametrize("text", ["L0.H1", "L1.MLP", "L2.resid@op", "L10.H12@x+rest"])
def test_an_address_is_parsed_and_written(text):
    assert str(Site.parse(text)) == text


NINES = "9" * 5000
OTHERS = ("L0", "H1", "L0.h1", "L-1.H0", "L0.H1@", "blocks.0.hook_mlp_out")


@pytest.mark.parametrize(
    "text", [*OTHERS, f"L{NINES}.MLP", f"L0.H{NINES}"], ids=lambda text: text[:40]
)
def test_other_texts_are_refused(text):
    with pytest.raises(SiteError, match="is not a site"):
        Site.parse(text)


def test_heads_are_listed_layer_by_layer():
    assert [parse_head(name) for name in head_names(2, 2)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(SiteError, match="is not a head"):
        parse_head("L0.MLP")
