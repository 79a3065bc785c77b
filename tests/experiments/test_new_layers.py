"""New layers that write nothing are needed by nothing; layers that do the work are."""

import pytest

from probes.compression.grow import grow
from probes.errors import ModelError
from probes.experiments.new_layers import new_layers
from probes.models.model import load


@pytest.fixture(scope="module")
def silent():
    return new_layers(
        grow("scratch", "identity", insert_after=(0,)).to_model(), prompts=60, pairs=6
    )


def test_no_answer_needs_a_layer_that_writes_nothing(silent):
    assert silent.layers == (1,)
    assert silent.accuracy == silent.accuracy_without_new
    assert silent.accuracy_drop.value == 0
    assert silent.edges_new_fraction == 0 < silent.all_new_fraction < 1
    assert silent.edges > 0


def test_answers_need_the_layers_that_were_there_before(silent):
    """As many old layers as there are new ones are silenced beside them, from the top."""
    assert silent.accuracy_drop_old.low > 0.5


def test_any_layers_may_be_asked_about():
    found = new_layers(load("scratch"), (1,), prompts=60, pairs=6)
    assert found.accuracy_without_new.value < 0.5 < found.accuracy.value
    assert found.accuracy_drop.low > 0.5
    assert found.edges_new_fraction > 0


@pytest.mark.parametrize(
    ("layers", "reason"), [(None, "not known which"), ((), "not known"), ((2,), "layers 0 to 1")]
)
def test_layers_that_are_unknown_or_not_there_are_refused(layers, reason):
    with pytest.raises(ModelError, match=reason):
        new_layers(load("scratch"), layers)
