"""Bindings of two objects: what a swap is expected to give, and what it needs."""

import pytest

from probes.errors import SiteError
from probes.interventions.bindings import _other_object_tokens, swap_bindings
from probes.interventions.interchange import InterchangeRuns, run_interchange_pairs
from probes.models.model import load
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.testing.planted_patterns import planted_fox


@pytest.mark.parametrize(("name", "sign"), [("distractor-told", -1), ("distractor-more-told", 1)])
def test_the_number_of_the_other_object_is_what_the_operation_makes_of_it(name, sign):
    model = load("base")
    drawn = sample_interchange_pairs(pattern(name), 40, tokenizers=(model.tokenizer,), seed=0)
    looked_at = object.__new__(InterchangeRuns)
    object.__setattr__(looked_at, "interchange_pairs", drawn)
    object.__setattr__(looked_at, "model", model)
    tokens, is_possible = _other_object_tokens(looked_at)
    assert is_possible.all() == (sign > 0)
    for pair, token, possible in zip(drawn.other, tokens.tolist(), is_possible, strict=True):
        number = int(pair.clean["d"]) + sign * int(pair.clean["y"])
        assert possible == (number >= 0)
        assert not possible or model.tokenizer.decode([token]).strip() == str(number)


def test_bindings_of_one_thing_are_refused():
    fox = planted_fox("template")
    drawn = sample_interchange_pairs(fox.pattern, 4, tokenizers=(fox.model.tokenizer,), seed=3)
    with pytest.raises(SiteError, match="other_thing"):
        swap_bindings(run_interchange_pairs(fox.model, drawn))
