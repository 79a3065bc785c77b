"""Studies resume where they stopped, and their recipes and tables fit together."""

import shutil
from dataclasses import fields, replace
from itertools import chain, islice

import pytest
import torch
from transformers import AutoTokenizer

import probes.experiments.studies.single_models as single
import probes.experiments.studies.training_runs as training_runs
from probes.compression.distillation.plan import TrainingConfig
from probes.errors import ModelError
from probes.experiments.adaptation.adapt import WordAdaptation
from probes.experiments.family.recipes import (
    ALL_RECIPES,
    GROWN_RECIPES,
    LABELS_GRID,
    TICKET_RECIPES,
    TICKETS_BY_PARENT,
    recipe,
)
from probes.experiments.scorecard import Scorecard
from probes.experiments.soft_labels.plan import NameRow
from probes.experiments.studies.grids import GRIDS, cached_texts
from probes.experiments.studies.growth import WAYS, circuit_table, growth_table
from probes.experiments.studies.registry import STUDIES, run_study
from probes.experiments.studies.tables import read_study
from probes.experiments.training_dynamics.measures import (
    AT_OWN_SITE,
    CIRCUIT_ONLY,
    EDGE_OVERLAP,
    INTERCHANGE_ACCURACY,
    LOGIT_DIFF,
    LOGIT_SHIFT,
)
from probes.files import data_folder, write_rows
from probes.models.model import load
from probes.stats.intervals import Estimate

FAMILY = data_folder() / "models"


def test_recipes_have_unique_names_and_need_only_earlier_models():
    names = [entry.name for entry in ALL_RECIPES]
    assert len(names) == len(set(names))
    for place, entry in enumerate(ALL_RECIPES):
        parts = (*entry.start.split(":"), *entry.masks.split(":"), entry.teacher)
        for part in parts:
            if part in names:
                assert names.index(part) < place, (entry.name, part)


def test_the_grid_crosses_labels_with_starts_and_changes_nothing_else():
    assert len(LABELS_GRID) == 4 * 5
    for seed in {entry.seed for entry in LABELS_GRID}:
        some = [entry for entry in LABELS_GRID if entry.seed == seed]
        assert {(bool(e.teacher), e.start) for e in some} == {
            (soft, start) for soft in (True, False) for start in ("alternate:full", "fresh")
        }
        alike = {replace(e, name="", teacher="", start="") for e in some}
        assert len(alike) == 1


def test_training_a_large_model_costs_as_much_as_distilling_and_growing():
    """Layers times texts."""

    def cost(name):
        entry = recipe(name)
        return entry.layers * entry.steps * entry.batch

    assert cost("large-scratch") == cost("distilled") + cost("regrown")
    assert {e.steps * e.batch for e in GROWN_RECIPES if e.name != "large-scratch"} == {1500 * 32}


def test_controls_of_a_ticket_are_trained_alike():
    ticket, random = recipe("ticket"), recipe("random-quarter")
    assert replace(random, name="ticket", masks=ticket.masks, shipped=True) == ticket
    assert {e.steps for e in (*TICKET_RECIPES, *chain(*TICKETS_BY_PARENT.values()))} == {1500}


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_known_rows_are_not_measured_again(name, tmp_path):
    known = [
        {"parent": grid.parent, "model": model, "mean_interchange_accuracy": float(k)}
        for grid in GRIDS[name]
        for k, model in enumerate([*grid.references, *(entry.name for entry in grid.recipes)])
    ]
    # The parents of later grids are models of the study.
    count = len(GRIDS[name][0].references) + len(GRIDS[name][0].recipes)
    rows = islice(run_study(name, folder=FAMILY, work=tmp_path, known=known), count)
    assert list(rows) == known[:count]


def test_an_unknown_study_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ModelError, match="labels, names, adapting"):
        run_study("unknown", folder=FAMILY, work=tmp_path)


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_study_has_a_shipped_table(name):
    assert read_study(name)


def columns(*types):
    """Columns of the fields of dataclasses; an estimate has three."""
    names = []
    for field in (field for kind in types for field in fields(kind)):
        names.append(field.name)
        if field.type is Estimate:
            names += [f"{field.name}_low", f"{field.name}_high"]
    return set(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, columns(Scorecard)) for name in ("labels", "tickets", "growing")),
        ("adapting", columns(WordAdaptation)),
        ("names", columns(NameRow)),
    ],
)
def test_the_shipped_tables_have_the_columns_of_the_results(name, expected):
    assert expected <= set(read_study(name)[0])


def test_the_shipped_measures_over_training_are_those_of_the_study():
    measures = {str(row["measure"]) for row in read_study("along")}
    kinds = (INTERCHANGE_ACCURACY, LOGIT_SHIFT, AT_OWN_SITE, LOGIT_DIFF, CIRCUIT_ONLY, EDGE_OVERLAP)
    assert all(name.endswith((*kinds, "accuracy")) for name in measures)
    assert {LOGIT_DIFF, CIRCUIT_ONLY, EDGE_OVERLAP} <= measures


@pytest.fixture
def small(monkeypatch):
    """Recipe that takes seconds."""
    chosen = replace(
        recipe("scratch"), name="small", layers=1, d_model=16, heads=2, d_mlp=16, items=40,
        steps=4, batch=4, shipped=False,
    )  # fmt: skip
    monkeypatch.setattr(training_runs, "recipe", lambda name: chosen)
    return chosen


def weights(path):
    return torch.cat([w.flatten() for w in load(path).bridge.parameters()])


@pytest.fixture
def work(tmp_path):
    """Folder of models; training the tokenizer again would take long."""
    AutoTokenizer.from_pretrained(FAMILY / "full").save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def test_missing_checkpoints_are_trained_again_with_the_same_weights(small, work):
    paths = training_runs.checkpoint_folders("small", (0, 2, 4), folder=FAMILY, work=work)
    before = [weights(path) for path in paths]
    assert not torch.equal(before[0], before[1])
    assert not torch.equal(before[1], before[2])
    shutil.rmtree(paths[1])
    again = training_runs.checkpoint_folders("small", (0, 2, 4), folder=FAMILY, work=work)
    assert again == paths
    for old, path in zip(before, again, strict=True):
        assert torch.equal(old, weights(path))


def test_small_students_are_trained_once(monkeypatch, work):
    monkeypatch.setattr(single, "SMALL_STUDENTS", {"small-1x16-3": (1, 16, 3)})
    monkeypatch.setattr(single, "_TRAINING", TrainingConfig(steps=2, seed=3, batch=2, warmup=1))
    (path,) = single.train_small_students(folder=FAMILY, work=work)
    provenance = load(path).provenance
    settings = provenance.settings
    assert (provenance.kind, provenance.parent, settings["steps"]) == ("distilled", "full", 2)
    modified = (path / "config.json").stat().st_mtime_ns
    single.train_small_students(folder=FAMILY, work=work)
    assert (path / "config.json").stat().st_mtime_ns == modified


def test_the_kept_texts_of_a_recipe_are_not_those_of_another_task(work):
    texts = cached_texts(work)
    counting = replace(recipe("full"), items=8, statements=0.0)
    first, permuted = texts(counting), texts(replace(counting, task="permuted"))
    assert first != permuted
    assert texts(replace(counting, task="permuted")) is permuted


def test_a_table_that_is_read_and_written_again_is_unchanged(tmp_path):
    table = tmp_path / "table.csv"
    write_rows([{"model": "a", "bits": 851968.0, "share": 1 / 3, "none": float("nan")}], table)
    once = table.read_text()
    write_rows(read_study("any", table), table)
    assert table.read_text() == once
    assert "851968" in once
    assert "0.3333" in once


def test_a_table_whose_writing_is_interrupted_keeps_its_old_rows(tmp_path):
    class Interrupted:
        def __str__(self):
            raise KeyboardInterrupt

    table = tmp_path / "table.csv"
    write_rows([{"model": "a"}], table)
    with pytest.raises(KeyboardInterrupt):
        write_rows([{"model": "a"}, {"model": Interrupted()}], table)
    assert table.read_text() == "model\na\n"
    assert list(tmp_path.iterdir()) == [table]


def grown_row(start, seed, value, **more):
    measured = {
        "mean_interchange_accuracy": value,
        **{f"mean_interchange_accuracy_{end}": value for end in ("low", "high")},
    }
    return {"model": f"{start}-{seed}", "start": start, "seed": seed, **measured, **more}


def test_each_way_to_grow_is_compared_with_training_alone_seed_by_seed():
    gains = {"identity:distilled": 0.2, "stack:distilled": 0.0, "wider:distilled": -0.1}
    controls = {81.0: 0.3, 82.0: 0.5, 83.0: 0.7}
    rows = [grown_row("distilled", seed, value) for seed, value in controls.items()]
    rows += [
        grown_row(start, seed, value + gain)
        for start, gain in gains.items()
        for seed, value in controls.items()
    ]
    table = growth_table([*rows, grown_row("fresh", 81.0, 0.9)]).set_index("way")
    assert set(table["models"]) == {3}
    # Seeds differ, and the differences do not.
    assert table.loc["identity blocks", "minus not grown"] == "0.20 [0.20, 0.20]"
    assert table.loc["wider", "minus not grown"] == "-0.10 [-0.10, -0.10]"
    assert table.loc["not grown", "by seed"] == "0.30, 0.50, 0.70"
    assert table.loc["not grown", "mean"].startswith("0.50 [0.")
    assert table.loc["not grown", "minus not grown"] == ""
    once = growth_table([row for row in rows if row["seed"] == 81.0]).set_index("way")
    assert once.loc["identity blocks", "minus not grown"] == "0.20"


def test_ways_without_a_measure_are_left_out_and_without_a_control_have_no_difference():
    faithful = {"circuit_faithfulness": -0.1, "circuit_faithfulness_low": -0.2}
    faithful |= {"circuit_faithfulness_high": 0.0}
    rows = [
        grown_row("stack:distilled", 81.0, 0.5, **faithful),
        grown_row("wider:distilled", 81.0, 0.5, circuit_faithfulness=float("nan")),
        grown_row("distilled", 81.0, 0.5, circuit_faithfulness=""),
    ]
    table = growth_table(rows, "circuit_faithfulness", bounds=(-1, 1))
    assert table.to_dict("records") == [
        {"way": "stacked", "models": 1, "by seed": "-0.10", "mean": "-0.10 [-0.20, 0.00]"}
        | {"minus not grown": ""}
    ]


def test_every_way_to_grow_has_three_seeds_and_a_control_of_each():
    ways = {start: {e.seed for e in GROWN_RECIPES if e.start == start} for start in WAYS}
    assert set(map(frozenset, ways.values())) == {frozenset({81, 82, 83})}


def test_the_circuit_is_shown_beside_random_paths_where_these_were_measured():
    faithful = {f"circuit_faithfulness{end}": 0.5 for end in ("", "_low", "_high")}
    random = {"random_paths": 100.0, "random_paths_median": 0.1, "random_paths_high": 0.2}
    rows = [
        grown_row("stack:distilled", 82, 0.5, **faithful, **random, above_random_paths=1.0),
        grown_row("stack:distilled", 81, 0.5, **faithful, random_paths=""),
    ]
    (row,) = circuit_table(rows).to_dict("records")
    assert row["model"] == "stack:distilled-82"
    assert row["circuit of the parent"] == "0.50 [0.50, 0.50]"
    assert (row["random paths, 95th percentile"], row["above"]) == (0.2, 1.0)
