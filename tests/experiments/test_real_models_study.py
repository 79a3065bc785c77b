"""The study of real models, on shipped models in place of pretrained ones."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from probes.circuits.circuit import Circuit
from probes.errors import ModelError, PatternError
from probes.experiments.real_models.behavior import (
    BehaviorSizes,
    circuit_rows,
    circuit_tasks,
    kept_circuit,
    study_pattern,
)
from probes.experiments.real_models.pairs import one_digit_pairs
from probes.experiments.real_models.relatives import FULL, RELATIVES
from probes.experiments.real_models.run import (
    BEHAVIORS,
    Behavior,
    RealModelSettings,
    real_model_rows,
)
from probes.experiments.real_models.states import StateSizes, run_states, state_rows
from probes.experiments.studies.tables import read_study
from probes.files import data_folder
from probes.models.model import load, random_init
from probes.models.site import Site
from probes.prompts.interchange_pairs import BASE, OPERATION

FAMILY = data_folder() / "models"
SIZES = BehaviorSizes(questions=12, pairs=8, random_circuits=3)
SMALL = RealModelSettings(
    (Behavior("full", "take-away-told", "operation", states=True, sizes=SIZES),),
    StateSizes(search=4, fit=6, test=6, permutations=2),
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of two relatives of a shipped model."""
    work = tmp_path_factory.mktemp("work")
    every = real_model_rows(folder=FAMILY, work=work, settings=SMALL)
    return list(islice(every, 2 * 17))


def test_numbers_of_one_digit_pairs_identify_what_was_taken():
    pattern = study_pattern("lose")
    nouns = pattern.lexicon.words("noun")[:6]
    pairs = one_digit_pairs(pattern, 40, verbs=["lose", "eat", "find", "buy"], nouns=nouns, seed=0)
    assert len(pairs) == 40
    for index, (same, other) in enumerate(zip(pairs.same, pairs.other, strict=True)):
        base, source = same.clean, other.counterfactual
        x, y, u, v = (int(side[n]) for side in (base, source) for n in ("x", "y"))
        numbers = {label: pairs.target_number(index, label) for label in pairs.number_labels}
        assert numbers == {
            BASE: str(x - y),
            OPERATION: str(x + y),
            "x + y": str(u - v),
            "operation + x + y": str(u + v),
        }
        assert len({*numbers.values()}) == 4
        assert x + y not in (x, y, u, v)
        assert source.answer("number") == str(u + v)
        assert (base["op"], source["op"]) in {
            (a, b) for a in ("lose", "eat") for b in ("find", "buy")
        }
        assert base["thing"] != source["thing"]
        assert same.counterfactual["thing"] == base["thing"]
        assert {base["thing"], source["thing"]} <= {*nouns}


def test_one_digit_pairs_need_a_verb_of_each_operation():
    pattern = study_pattern("lose")
    with pytest.raises(PatternError, match="give a verb of each operation"):
        one_digit_pairs(pattern, 4, verbs=["lose", "eat"], nouns=["coins", "books"], seed=0)


def test_each_measurement_has_its_prompts_interval_and_null(rows):
    assert {row["relative"] for row in rows} == {*islice(RELATIVES, 2)}
    for row in rows:
        assert row["n"] > 0
        assert row["low"] <= row["value"] <= row["high"]
        assert row["null"] == row["null"]
    first = {row["measure"]: row for row in rows if row["relative"] == FULL}
    assert first["circuit alone"]["value"] > 0.8 > first["circuit alone"]["null"] + 0.5
    assert first["state at the verb"]["n"] == 12
    assert first["state at the verb"]["null"] == 0


def test_a_stopped_study_goes_on_where_it_was(rows, tmp_path):
    """Nothing known is measured again: there is no model in the folder."""
    again = real_model_rows(folder=tmp_path, work=tmp_path, known=rows, settings=SMALL)
    assert list(islice(again, len(rows))) == rows
    with pytest.raises(ModelError, match="give a folder that holds smollm2"):
        next(again)


def test_the_circuit_of_a_model_does_nothing_in_a_random_one(tmp_path):
    full, sizes = load("full"), SIZES
    discovery, held_out = circuit_tasks(full, "take-away-told", "operation", sizes)
    circuit = kept_circuit(full, discovery, tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json") == circuit
    alone, _ = circuit_rows(random_init(full, seed=0), circuit, held_out, sizes)
    assert not alone["value"] > 0.3


def test_states_of_a_random_model_change_no_operation():
    model, sizes = random_init(load("full"), seed=0), SMALL.state_sizes
    runs = run_states(model, study_pattern("take-away-told"), sizes)
    sites = {"at the verb": Site(2, "resid", "op")}
    found = {row["measure"]: row for row in state_rows(runs, runs, sites, sizes)}
    assert found["state at the verb"]["value"] == 0
    assert found["direction at the verb"]["value"] == 0


def test_words_that_directions_are_tested_on_were_not_fitted_on():
    model, sizes = load("full"), SMALL.state_sizes
    runs = run_states(model, study_pattern("take-away-told"), sizes)
    for fit, test in zip(runs.fits, runs.tests, strict=True):
        for slot in ("op", "thing"):
            fitted, tested = (
                {
                    side[slot]
                    for pair in one.interchange_pairs.other
                    for side in (pair.clean, pair.counterfactual)
                }
                for one in (fit, test)
            )
            assert not fitted & tested


def test_relatives_keep_their_names_and_their_parent():
    assert RELATIVES[FULL].bits == 16
    assert [one.bits for one in RELATIVES.values() if not one.zeros] == [16, 8, 4, 3, 2]
    assert [one.zeros for one in RELATIVES.values() if one.zeros] == [0.2, 0.5]


def test_the_shipped_table_has_all_of_the_smaller_model_and_nothing_unknown():
    """Relatives of the larger one are measured as time allows: the study goes on where it was."""
    table = read_study("real-models")
    found = {(r["model"], r["relative"], r["pattern"], r["kind"]) for r in table}
    study = {
        (one.model, relative, one.pattern, kind)
        for one in BEHAVIORS
        for relative in RELATIVES
        for kind in one.kinds
    }
    assert found <= study
    assert {group for group in study - found if group[0] == "smollm2"} == set()
    assert {group for group in study - found if group[1] == FULL} == set()
    keys = [(r["model"], r["relative"], r["pattern"], r["measure"]) for r in table]
    assert len({*keys}) == len(keys)


@pytest.mark.real
def test_a_row_of_the_shipped_table_is_measured_again(real_folder, tmp_path):
    """Answers of SmolLM2 on IOI."""
    folder = real_folder("smollm2").parent
    settings = replace(RealModelSettings(), behaviors=BEHAVIORS[:1])
    torch.set_num_threads(1)
    row = next(real_model_rows(folder=folder, work=tmp_path, settings=settings))
    known = read_study("real-models")[0]
    assert {key: row[key] for key in ("model", "relative", "pattern", "measure", "n")} == {
        key: known[key] for key in ("model", "relative", "pattern", "measure", "n")
    }
    assert row["value"] == pytest.approx(known["value"], abs=0.05)
