"""Zero ablation of new layers: silent layers are not needed, layers that compute are."""

import pytest

from probes.compression.grow import grow
from probes.errors import ModelError
from probes.experiments.new_layers import NewLayersSettings, new_layers
from probes.models.model import load

SMALL = NewLayersSettings(prompts=60, pairs=6)


@pytest.fixture(scope="module")
def silent():
    grown = grow("scratch", "identity", insert_after=(0,)).to_model()
    return new_layers(grown, settings=SMALL)


def test_no_answer_needs_a_layer_that_writes_nothing(silent):
    assert silent.layers == (1,)
    assert silent.accuracy == silent.accuracy_without_new
    assert silent.accuracy_drop.value == 0
    assert silent.edges_new_fraction == 0 < silent.all_new_fraction < 1
    assert silent.edges > 0


def test_answers_need_the_old_layers(silent):
    """As many old layers as there are new ones are ablated, from the top."""
    assert silent.accuracy_drop_old.low > 0.5


def test_any_layers_may_be_named():
    result = new_layers(load("scratch"), (1,), settings=SMALL)
    assert result.accuracy_without_new.value < 0.5 < result.accuracy.value
    assert result.accuracy_drop.low > 0.5
    assert result.edges_new_fraction > 0


@pytest.mark.parametrize(
    ("layers", "reason"), [(None, "not known which"), ((), "not known"), ((2,), "layers 0 to 1")]
)
def test_layers_that_are_unknown_or_out_of_range_are_refused(layers, reason):
    with pytest.raises(ModelError, match=reason):
        new_layers(load("scratch"), layers)
