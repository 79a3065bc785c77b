"""The curve counts what is stored, judges on what both solve, and noise is as far as asked."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import probes
from probes.comparison.rate_distortion.measure import rate_distortion
from probes.comparison.rate_distortion.mechanism import (
    InterchangeOutcome,
    best_sites,
    interchange_outcome,
    record_runs,
    sample_mechanism_test,
    task_from_interchange_pairs,
)
from probes.comparison.rate_distortion.order import (
    NoisyCopy,
    compare_with_noise,
    loss_order,
    shared_interchange_accuracy,
)
from probes.comparison.rate_distortion.weight_noise import match_noise, noisy_model
from probes.compression.derived_model import DerivedModel, dense_storage
from probes.compression.storage import measure_rate
from probes.errors import FigureError, ModelError, PatternError, SiteError
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.site_search import takes_only
from probes.models.model import random_init, wrap
from probes.models.provenance import Provenance, StorageCost
from probes.models.site import Site, joined_roles
from probes.observe.divergence import (
    answer_as_reference,
    answer_as_relative,
    behavioral_distance,
    best_heuristic_accuracy,
    kl_divergence,
    readout_log_probs,
)
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.pair_batch import tokenize_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.splits import split_by_text
from probes.testing.equivalent_layers import round_weights
from probes.testing.tiny_models import KINDS, tiny, tiny_hf

BASES = 32


@pytest.fixture(scope="module")
def full():
    return probes.load("full")


@pytest.fixture(scope="module")
def sitting(full):
    return answer_as_reference(full, pattern("take-away"), count=BASES, seed=0)


@pytest.fixture(scope="module")
def mechanism_test(full):
    return sample_mechanism_test(full, pattern("take-away"), bases=BASES, seed=0)


@pytest.fixture(scope="module")
def sites(full, mechanism_test):
    return mechanism_test.find_sites(full)


@pytest.fixture(scope="module")
def found(full):
    relatives = [round_weights(full, 3), "distilled", "random-init:full:5"]
    return rate_distortion(full, relatives, bases=BASES, prompts=4, noise_copies=1, nulls=1)


def made_up(hits, right=None, solved=None):
    hits = np.array(hits, dtype=float)
    every = np.ones(len(hits), dtype=bool)
    right = every if right is None else np.array(right, dtype=bool)
    return InterchangeOutcome(
        right, right if solved is None else np.array(solved, dtype=bool), {"x": hits}
    )


# What is stored.


def test_what_a_slip_says_is_what_is_counted():
    kept_at = StorageCost(
        weights=80.0, embeddings=10.0, other=5.0, scales=3.0, zero_points=1.0, mask_index=1.0
    )
    model = replace(tiny("llama"), provenance=Provenance("quantized", "full", kept_at))
    assert measure_rate(model).bits == 100 and measure_rate(model).is_recorded


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_slip_each_weight_counts_once_at_16_bits(kind):
    plain = tiny_hf(kind, 0)
    rate = measure_rate(wrap(plain, name="it"))
    assert rate.parameters == sum(weight.numel() for weight in plain.parameters())
    assert rate.storage == dense_storage(plain, bits=16) and rate.bits == 16 * rate.parameters
    assert not rate.is_recorded


def test_density_is_the_share_of_weights_that_are_not_zero():
    plain = tiny_hf("llama", 0)
    before = measure_rate(wrap(plain, name="it")).density
    with torch.no_grad():
        for layer in plain.model.layers:
            layer.mlp.up_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    layer = sum(w.numel() for w in plain.model.layers[0].parameters() if w.ndim == 2)
    lost = 2 * plain.model.layers[0].mlp.up_proj.weight.numel() / layer
    assert before == 1.0 and measure_rate(wrap(plain, name="it")).density == pytest.approx(1 - lost)


# Behavior.


def test_kl_is_worked_out_in_bits():
    first, second = torch.tensor([0.5, 0.5]).log2(), torch.tensor([0.25, 0.75]).log2()
    by_hand = 0.5 * math.log2(0.5 / 0.25) + 0.5 * math.log2(0.5 / 0.75)
    assert kl_divergence(first, second).item() == pytest.approx(by_hand)
    assert kl_divergence(first, first).item() == 0


def test_a_model_is_no_distance_from_itself(sitting, full):
    same = behavioral_distance(sitting, answer_as_relative(sitting, full), seed=0)
    assert same.readout_kl.value == same.text_kl.value == 0
    assert same.agreement.value == 1 and not same.behavior_absent


def test_distance_over_texts_counts_each_token_that_another_follows(sitting, full):
    other = random_init(full, seed=1)
    answered, batch = answer_as_relative(sitting, other), sitting.batch
    for row in (0, 7):
        ids = batch.ids[row][batch.mask[row]][None]
        mask = torch.ones_like(ids, dtype=torch.bool)
        p, q = (m.logits(ids, mask).log_softmax(-1)[0, :-1] for m in (full, other))
        alone_in_batch = (p.exp() * (p - q)).sum(-1).mean().item() / math.log(2)
        assert answered.text_kl[row] == pytest.approx(alone_in_batch, rel=1e-4)


def test_an_untrained_net_lacks_the_behavior(sitting, full):
    found = behavioral_distance(
        sitting, answer_as_relative(sitting, random_init(full, seed=1)), seed=0
    )
    assert found.behavior_absent and found.readout_kl.value > 1 and found.all_correct.value == 0
    assert 0 < best_heuristic_accuracy(sitting) < 0.5


# Mechanism.


def test_variables_turn_answers_as_interchange_says_they_do(full):
    drawn = sample_interchange_pairs(
        pattern("take-away"), BASES, tokenizers=(full.tokenizer,), seed=0
    )
    sites = {
        "operation": Site(1, "resid", "op"),
        "x": Site(2, "resid", "x+rest"),
        "y": Site(3, "resid", "y"),
        "thing": Site(1, "resid", "thing_asked"),
    }

    trial = task_from_interchange_pairs(drawn, tokenize_pairs(full.tokenizer, drawn.other))
    mine = interchange_outcome(record_runs(full, trial), sites)
    crossed = run_interchange_pairs(full, drawn, joined_roles=joined_roles(*sites.values()))
    theirs, plain = (
        interchange_intervention(crossed, [*sites.values()]),
        interchange_intervention(crossed, []),
    )
    for name, cell in sites.items():
        wanted = takes_only(theirs, name)[theirs.site_index(str(cell))]
        assert (mine.hits[name] == wanted).all()
    assert (mine.right == (plain.is_outcome("base") & plain.is_outcome("base", 1))[0]).all()


def test_an_item_is_solved_where_base_and_source_are_both_right(full, mechanism_test, sites):
    runs = record_runs(full, mechanism_test.evaluation)
    found = interchange_outcome(runs, sites)
    assert found.solved.all() and found.right.all()
    runs.source.logits[3] = -runs.source.logits[3]
    spoilt = interchange_outcome(runs, {name: Site(1, "resid", "op") for name in found.hits})
    assert not spoilt.solved[3] and spoilt.right[3] and spoilt.solved.sum() == BASES - 1


def test_states_of_the_model_itself_turn_what_its_own_do(full, mechanism_test, sites):
    runs = record_runs(full, mechanism_test.evaluation)
    twin = record_runs(round_weights(full, 16), mechanism_test.evaluation)
    own, given = (
        interchange_outcome(runs, sites),
        interchange_outcome(runs, sites, source=twin.source),
    )
    assert all((own.hits[name] == given.hits[name]).all() for name in own.hits)
    other = interchange_outcome(
        runs, sites, source=record_runs(random_init(full, seed=0), mechanism_test.evaluation).source
    )
    assert other.mean_hits.mean() < 0.1 < own.mean_hits.mean()


def pairs_file(path, count=24):
    things = ["foxes", "cats", "dogs", "birds", "apples", "pens"]
    lines = []
    for n in range(count):
        thing, rival, x = things[n % 6], things[(n + 1) % 6], 5 + n % 9
        name = ("Tom", "Sam", "Tim")[n // 18]  # 6 things and 9 numbers give 18 different texts.
        side = [
            f"{name} has {x} {one} . He gives away 2 {one} . How many {one} has he got ? Answer:"
            for one in (thing, rival)
        ]
        roles = [{"thing": [one, 1]} for one in (thing, rival)]
        lines.append(
            {"clean": side[0], "counterfactual": side[1], "contrast": "thing", "roles": roles[0],
             "answer": thing, "counterfactual_answer": rival, "counterfactual_roles": roles[1]}
        )  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return Pattern.from_pairs(path)


def test_pairs_are_parted_so_that_no_text_is_on_both_sides(tmp_path):
    given = pairs_file(tmp_path / "things.jsonl", 54).user_pairs
    here, there = split_by_text(given)
    texts = [
        {t for p in side for t in (p.clean.text, p.counterfactual.text)} for side in (here, there)
    ]
    assert here and there and len(here) + len(there) == 54
    assert not texts[0] & texts[1]


def test_pairs_foretell_the_answer_of_their_counterfactual(full, tmp_path):
    mechanism_test = sample_mechanism_test(
        full, pairs_file(tmp_path / "things.jsonl", 54), bases=54, seed=0
    )
    trial = mechanism_test.evaluation
    assert trial.variables == ("thing",) and (trial.expected["thing"] == trial.source_answers).all()
    runs = record_runs(full, trial)
    all_of_it = {"thing": Site(0, "resid", "thing")}
    through = interchange_outcome(runs, all_of_it)
    said = runs.source.logits.argmax(-1)
    assert (through.hits["thing"] == (said == trial.source_answers).all(-1).numpy()).all()
    assert best_sites(runs)["thing"].layer in (1, 2, 3)


def test_pairs_of_one_text_cannot_be_parted(full, tmp_path):
    with pytest.raises(PatternError, match="parted in two"):
        sample_mechanism_test(full, pairs_file(tmp_path / "few.jsonl", 1), bases=8, seed=0)


# What breaks first.


def test_only_what_both_solve_is_judged():
    half = [True] * 100 + [False] * 100
    parent, relative = made_up([1] * 200), made_up([1] * 100 + [0] * 100, right=half)
    order = loss_order(parent, relative, seed=0)
    assert order.pairs == 100 and order.mechanism_loss.value == 0
    assert order.accuracy_loss.value == 0.5 and order.difference.value == -0.5
    assert order.label == "accuracy first"
    assert shared_interchange_accuracy(parent, relative, seed=0).value == 1


@pytest.mark.parametrize(
    ("hits", "right", "word"),
    [
        ([1] * 200, [1] * 200, "neither"),
        ([0] * 80 + [1] * 120, [1] * 200, "mechanism first"),
        ([1] * 30 + [0] * 3 + [1] * 27, [1] * 58 + [0] * 2, "cannot tell"),
    ],
)
def test_a_word_is_given_only_where_the_interval_allows_it(hits, right, word):
    parent = made_up([1] * len(hits))
    assert loss_order(parent, made_up(hits, right=right), seed=0).label == word


def test_few_items_without_a_change_do_not_show_that_nothing_is_lost():
    assert loss_order(made_up([1] * 72), made_up([1] * 72), seed=0).label == "cannot tell"
    assert loss_order(made_up([1] * 80), made_up([1] * 80), seed=0).label == "neither"


def test_nothing_is_said_of_a_handful_of_items():
    few = made_up([1] * 30, right=[True] * 19 + [False] * 11)
    assert loss_order(made_up([1] * 30), few, seed=0) is None
    assert math.isnan(shared_interchange_accuracy(made_up([1] * 30), few, seed=0).value)


def test_noise_is_met_on_items_that_all_three_solve():
    parent = made_up([1] * 200)
    solved = [True] * 120 + [False] * 80
    relative = made_up([0] * 40 + [1] * 160)
    copies = [NoisyCopy(0.1, 0.5, made_up([1] * 200, right=solved)) for _ in range(3)]
    found = compare_with_noise(parent, relative, copies, seed=0)
    assert found.difference.value == pytest.approx(-40 / 120) and found.label == "worse than noise"
    assert found.accuracy_difference.value == pytest.approx(0.4) and found.right == (
        0.6,
        0.6,
        0.6,
    )
    same = [NoisyCopy(0.1, 0.5, relative)] * 3
    assert compare_with_noise(parent, relative, same, seed=0).label == "like noise"
    assert compare_with_noise(parent, relative, [], seed=0) is None


# Noise.


@pytest.mark.parametrize("kind", KINDS)
def test_shaking_moves_the_layers_matrices_by_their_own_spread_and_nothing_else(kind):
    model = tiny(kind)
    noisy = noisy_model(model)
    still = {name: weight.clone() for name, weight in noisy.hf_model.named_parameters()}
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert noisy.add_noise(0.0, 0).logits(ids, mask).equal(model.logits(ids, mask))
    noisy.add_noise(0.5, 0)
    for name, weight in noisy.hf_model.named_parameters():
        if name in noisy.original_weights:
            moved = float(
                (weight.detach() - still[name].detach()).std() / still[name].detach().std()
            )
            assert moved == pytest.approx(0.5, rel=0.15)
        else:
            assert weight.equal(still[name])
    assert all("embed" not in name and "wte" not in name for name in noisy.original_weights)


def test_noise_is_matched_to_a_distance_and_what_was_tried_is_kept(full, sitting):
    noisy, runs = noisy_model(full), []

    def far(model):
        runs.append(model)
        return float(
            kl_divergence(sitting.log_probs, readout_log_probs(model, sitting.batch)).mean()
        )

    done = match_noise(noisy, 0.05, 0, far)
    assert done.value == pytest.approx(0.05, rel=0.03)
    assert far(noisy.add_noise(done.scale, 0)) == pytest.approx(done.value, rel=1e-3)
    before = len(runs)
    assert match_noise(noisy, done.value, 0, far) == done and len(runs) == before


def test_a_distance_that_no_noise_reaches_is_not_matched():
    noisy = noisy_model(tiny("llama"))
    assert match_noise(noisy, 5.0, 0, lambda model: 1.0) is None
    assert match_noise(noisy, 0.0, 0, lambda model: 1.0) is None
    assert match_noise(noisy, 0.5, 0, lambda model: 1.0) is None


# All of it.


def test_every_relative_has_a_point_and_the_parent_loses_nothing(found):
    assert [point.name for point in found.points] == [
        "full rounded to 3 bits", "distilled", "full random-init 5",
    ]  # fmt: skip
    own = found.parent
    assert own.behavior.readout_kl.value == 0 and own.mechanism.loss_order.difference.value == 0
    assert own.mechanism.circuit_kept.value > 0.7 and own.noise is None
    assert found.random_init[1] < 0.2 < own.mechanism.interchange_accuracy.value


def test_a_relative_of_the_same_graph_is_tried_at_the_parents_sites(found):
    near = found["full rounded to 3 bits"]
    assert near.same_graph and near.mechanism.sites == found.parent.mechanism.sites
    assert near.mechanism.parent_states and near.mechanism.circuit_kept.value > 0.5
    assert near.noise.kl[0] == pytest.approx(near.behavior.readout_kl.value, rel=0.03)


def test_a_relative_of_another_graph_is_tried_at_its_own_and_beside_no_noise(found):
    far = found["distilled"]
    assert not far.same_graph and far.mechanism.sites == far.mechanism.own_sites
    assert not far.mechanism.parent_states and math.isnan(far.mechanism.circuit_kept.value)
    assert far.mechanism.circuit_edges > 0 and far.noise is None


def test_a_closed_gate_keeps_behavior_and_says_nothing_of_the_mechanism(found):
    net = found["full random-init 5"]
    assert net.mechanism is None and net.label == "behavior absent" and net.kind == "random-init"
    assert net.behavior.readout_kl.value > 1
    row = found.table().set_index("name").loc["full random-init 5"]
    assert row["kl"] > 1 and math.isnan(row["mechanism"]) and row["gate"] == "closed"


def test_the_table_has_a_row_for_each_and_says_what_the_points_do(found):
    table = found.table().set_index("name")
    assert table.index[0] == "full" and len(table) == 4
    for point in found.points:
        assert table.loc[point.name, "kl"] == point.behavior.readout_kl.value
        assert table.loc[point.name, "kB"] == point.rate.bits / 8000
    assert {"mechanism low", "x, all", "x, parent's states", "noise kl"} <= set(table.columns)


def test_sentences_are_worked_out_from_the_numbers(found):
    said = "\n".join(found.summary())
    assert "behavior absent" in said and "full rounded to 3 bits (" in said
    kinds = {point.label for point in found.points}
    assert ("mechanism breaks before" in said) == ("mechanism first" in kinds)


def test_it_is_saved_as_numbers_and_pages(found, tmp_path):
    for name in ("it.json", "it.csv", "it.html", "it.svg"):
        found.save(tmp_path / name)
    plain = json.loads((tmp_path / "it.json").read_text())
    assert plain["points"][2]["mechanism"] is None and plain["summary"] == list(found.summary())
    assert (tmp_path / "it.csv").read_text().count("\n") == 5
    with pytest.raises(FigureError, match="end the name"):
        found.save(tmp_path / "it.txt")
    with pytest.raises(SiteError, match="not on the curve"):
        found["nobody"]


def test_pairs_give_a_curve_and_relatives_may_be_plain_models(full, tmp_path):
    given = pairs_file(tmp_path / "things.jsonl", 54)
    plain = tiny_hf("llama", 0, vocab_size=full.shape.d_vocab)
    made = Provenance("pruned", "full", dense_storage(plain, bits=4))
    relative = DerivedModel("random", plain, full.tokenizer, made)
    found = rate_distortion(
        full, [relative, full], given, bases=54, prompts=4, noise_copies=0, nulls=0
    )
    assert [point.name for point in found.points] == ["random", "full (2)"]
    assert found["random"].kind == "pruned" and found["random"].mechanism is None
    assert found["full (2)"].behavior.readout_kl.value == 0


def test_models_of_other_words_are_refused(full):
    stranger = replace(full, tokenizer=None)
    with pytest.raises(ModelError, match="without a tokenizer"):
        rate_distortion(full, [stranger])
    with pytest.raises(ModelError, match="different vocabularies"):
        rate_distortion(full, [wrap(tiny_hf("llama", 0), name="small", tokenizer=full.tokenizer)])
    with pytest.raises(ModelError, match="no relative"):
        rate_distortion(full, [])
