"""Rate–distortion: storage is counted, the mechanism is measured on solved pairs, noise matches."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import probes
from probes.comparison.rate_distortion import point as one_point
from probes.comparison.rate_distortion.losses import UNKNOWN
from probes.comparison.rate_distortion.measure import RateDistortionSettings, rate_distortion
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
from probes.comparison.rate_distortion.parent import circuit_prompts
from probes.comparison.rate_distortion.weight_noise import match_noise, noisy_model
from probes.compression.derived_model import DerivedModel, dense_storage
from probes.compression.storage import measure_rate
from probes.errors import CircuitError, FigureError, ModelError, PatternError, SiteError
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.site_search import takes_only
from probes.models.files.provenance import Provenance, StorageCost
from probes.models.model import random_init, wrap
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
from probes.prompts.pattern import Pattern
from probes.prompts.splits import split_by_text
from probes.prompts.tokens.pair_batch import tokenize_pairs
from probes.testing.equivalent_layers import round_weights
from probes.testing.tiny_models import KINDS, tiny, tiny_hf

BASES = 32


@pytest.fixture(scope="module")
def full():
    return probes.load("full")


@pytest.fixture(scope="module")
def reference(full):
    return answer_as_reference(full, pattern("take-away"), count=BASES, seed=0)


@pytest.fixture(scope="module")
def mechanism_test(full):
    return sample_mechanism_test(full, pattern("take-away"), bases=BASES, seed=0)


@pytest.fixture(scope="module")
def sites(full, mechanism_test):
    return mechanism_test.find_sites(full)


@pytest.fixture(scope="module")
def curve(full):
    relatives = [round_weights(full, 3), "distilled", "random-init:full:5"]
    settings = RateDistortionSettings(bases=BASES, prompts=4, noise_copies=1, nulls=1)
    return rate_distortion(full, relatives, settings=settings)


def outcome(hits, right=None):
    hits = np.array(hits, dtype=float)
    right = np.ones(len(hits), dtype=bool) if right is None else np.array(right, dtype=bool)
    return InterchangeOutcome(right, right, {"x": hits})


# Storage.


def test_recorded_storage_is_counted():
    cost = StorageCost(
        weights=80.0, embeddings=10.0, other=5.0, scales=3.0, zero_points=1.0, mask_index=1.0
    )
    model = replace(tiny("llama"), provenance=Provenance("quantized", "full", cost))
    assert measure_rate(model).bits == 100 and measure_rate(model).is_recorded


@pytest.mark.parametrize("kind", KINDS)
def test_without_provenance_each_weight_counts_once_at_16_bits(kind):
    plain = tiny_hf(kind, 0)
    rate = measure_rate(wrap(plain, name="it"))
    assert rate.parameters == sum(weight.numel() for weight in plain.parameters())
    assert rate.storage == dense_storage(plain, bits=16) and rate.bits == 16 * rate.parameters
    assert not rate.is_recorded


def test_density_is_the_fraction_of_nonzero_weights():
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


def test_kl_is_in_bits():
    first, second = torch.tensor([0.5, 0.5]).log2(), torch.tensor([0.25, 0.75]).log2()
    by_hand = 0.5 * math.log2(0.5 / 0.25) + 0.5 * math.log2(0.5 / 0.75)
    assert kl_divergence(first, second).item() == pytest.approx(by_hand)
    assert kl_divergence(first, first).item() == 0


def test_a_model_has_distance_0_from_itself(reference, full):
    same = behavioral_distance(reference, answer_as_relative(reference, full), seed=0)
    assert same.readout_kl.value == same.text_kl.value == 0
    assert same.agreement.value == 1 and not same.behavior_absent


def test_text_kl_is_the_mean_over_tokens_that_another_follows(reference, full):
    other = random_init(full, seed=1)
    answers, batch = answer_as_relative(reference, other), reference.batch
    for row in (0, 7):
        ids = batch.ids[row][batch.mask[row]][None]
        mask = torch.ones_like(ids, dtype=torch.bool)
        p, q = (m.logits(ids, mask).log_softmax(-1)[0, :-1] for m in (full, other))
        expected = (p.exp() * (p - q)).sum(-1).mean().item() / math.log(2)
        assert answers.text_kl[row] == pytest.approx(expected, rel=1e-4)


def test_a_random_init_model_lacks_the_behavior(reference, full):
    answers = answer_as_relative(reference, random_init(full, seed=1))
    distance = behavioral_distance(reference, answers, seed=0)
    assert distance.behavior_absent and distance.all_correct.value == 0
    assert distance.readout_kl.value > 1
    assert 0 < best_heuristic_accuracy(reference) < 0.5


# Mechanism.


def test_hits_equal_those_of_interchange_intervention(full):
    pairs = sample_interchange_pairs(
        pattern("take-away"), BASES, tokenizers=(full.tokenizer,), seed=0
    )
    sites = {
        "operation": Site(1, "resid", "op"),
        "x": Site(2, "resid", "x+rest"),
        "y": Site(3, "resid", "y"),
        "thing": Site(1, "resid", "thing_asked"),
    }
    task = task_from_interchange_pairs(pairs, tokenize_pairs(full.tokenizer, pairs.other))
    result = interchange_outcome(record_runs(full, task), sites)
    runs = run_interchange_pairs(full, pairs, joined_roles=joined_roles(*sites.values()))
    patched = interchange_intervention(runs, [*sites.values()])
    plain = interchange_intervention(runs, [])
    for name, site in sites.items():
        expected = takes_only(patched, name)[patched.site_index(str(site))]
        assert (result.hits[name] == expected).all()
    assert (result.right == (plain.is_outcome("base") & plain.is_outcome("base", 1))[0]).all()


def test_a_pair_is_solved_if_base_and_source_are_both_answered_correctly(
    full, mechanism_test, sites
):
    runs = record_runs(full, mechanism_test.evaluation)
    result = interchange_outcome(runs, sites)
    assert result.solved.all() and result.right.all()
    runs.source.logits[3] = -runs.source.logits[3]
    changed = interchange_outcome(runs, {name: Site(1, "resid", "op") for name in result.hits})
    assert not changed.solved[3] and changed.right[3] and changed.solved.sum() == BASES - 1


def test_states_of_an_equal_model_have_the_same_hits(full, mechanism_test, sites):
    runs = record_runs(full, mechanism_test.evaluation)
    own, equal, other = (
        interchange_outcome(runs, sites, source=record_runs(m, mechanism_test.evaluation).source)
        for m in (full, round_weights(full, 16), random_init(full, seed=0))
    )
    assert all((own.hits[name] == equal.hits[name]).all() for name in own.hits)
    assert other.mean_hits.mean() < 0.1 < own.mean_hits.mean()


def pairs_file(path, count=24):
    things = ["foxes", "cats", "dogs", "birds", "apples", "pens"]
    lines = []
    for n in range(count):
        thing, foil, x = things[n % 6], things[(n + 1) % 6], 5 + n % 9
        name = ("Tom", "Sam", "Tim")[n // 18]  # 6 things and 9 numbers give 18 texts
        side = [
            f"{name} has {x} {one} . He gives away 2 {one} . How many {one} has he got ? Answer:"
            for one in (thing, foil)
        ]
        roles = [{"thing": [one, 1]} for one in (thing, foil)]
        lines.append(
            {"clean": side[0], "counterfactual": side[1], "contrast": "thing", "roles": roles[0],
             "answer": thing, "counterfactual_answer": foil, "counterfactual_roles": roles[1]}
        )  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return Pattern.from_pairs(path)


def test_pairs_are_split_so_that_no_text_is_in_both_halves(tmp_path):
    halves = split_by_text(pairs_file(tmp_path / "things.jsonl", 54).user_pairs)
    texts = [{t for p in half for t in (p.clean.text, p.counterfactual.text)} for half in halves]
    assert all(halves) and sum(map(len, halves)) == 54
    assert not texts[0] & texts[1]


def test_pairs_expect_the_answer_of_their_counterfactual(full, tmp_path):
    mechanism_test = sample_mechanism_test(
        full, pairs_file(tmp_path / "things.jsonl", 54), bases=54, seed=0
    )
    task = mechanism_test.evaluation
    assert task.variables == ("thing",) and (task.expected["thing"] == task.source_answers).all()
    runs = record_runs(full, task)
    result = interchange_outcome(runs, {"thing": Site(0, "resid", "thing")})
    answers = runs.source.logits.argmax(-1)
    assert (result.hits["thing"] == (answers == task.source_answers).all(-1).numpy()).all()
    assert best_sites(runs)["thing"].layer in (1, 2, 3)


def test_pairs_with_one_text_cannot_be_split(full, tmp_path):
    with pytest.raises(PatternError, match="split into two halves"):
        sample_mechanism_test(full, pairs_file(tmp_path / "few.jsonl", 1), bases=8, seed=0)


# Order of losses.


def test_the_mechanism_is_measured_only_on_pairs_that_both_solve():
    half = [True] * 100 + [False] * 100
    parent, relative = outcome([1] * 200), outcome([1] * 100 + [0] * 100, right=half)
    order = loss_order(parent, relative, seed=0)
    assert order.pairs == 100 and order.mechanism_loss.value == 0
    assert order.accuracy_loss.value == 0.5 and order.difference.value == -0.5
    assert order.label == "accuracy first"
    assert shared_interchange_accuracy(parent, relative, seed=0).value == 1


@pytest.mark.parametrize(
    ("hits", "right", "label"),
    [
        ([1] * 200, [1] * 200, "neither"),
        ([0] * 80 + [1] * 120, [1] * 200, "mechanism first"),
        ([1] * 30 + [0] * 3 + [1] * 27, [1] * 58 + [0] * 2, "cannot tell"),
    ],
)
def test_a_label_needs_an_interval_that_supports_it(hits, right, label):
    parent = outcome([1] * len(hits))
    assert loss_order(parent, outcome(hits, right=right), seed=0).label == label


def test_few_pairs_without_a_change_do_not_show_that_nothing_is_lost():
    assert loss_order(outcome([1] * 72), outcome([1] * 72), seed=0).label == "cannot tell"
    assert loss_order(outcome([1] * 80), outcome([1] * 80), seed=0).label == "neither"


def test_too_few_solved_pairs_have_no_order():
    few = outcome([1] * 30, right=[True] * 19 + [False] * 11)
    assert loss_order(outcome([1] * 30), few, seed=0) is None
    assert math.isnan(shared_interchange_accuracy(outcome([1] * 30), few, seed=0).value)


def test_noise_is_compared_on_pairs_that_all_models_solve():
    parent = outcome([1] * 200)
    solved = [True] * 120 + [False] * 80
    relative = outcome([0] * 40 + [1] * 160)
    copies = [NoisyCopy(0.1, 0.5, outcome([1] * 200, right=solved)) for _ in range(3)]
    noise = compare_with_noise(parent, relative, copies, seed=0)
    assert noise.difference.value == pytest.approx(-40 / 120) and noise.label == "worse than noise"
    assert noise.accuracy_difference.value == pytest.approx(0.4) and noise.right == (0.6,) * 3
    same = [NoisyCopy(0.1, 0.5, relative)] * 3
    assert compare_with_noise(parent, relative, same, seed=0).label == "like noise"
    assert compare_with_noise(parent, relative, [], seed=0) is None


def test_a_copy_that_solves_too_little_is_no_silent_loss():
    parent, relative = outcome([1] * 200), outcome([0] * 40 + [1] * 160)
    solves, fails = outcome([1] * 200), outcome([1] * 200, right=[True] * 19 + [False] * 181)
    copies = [NoisyCopy(0.1, 0.5, each) for each in (solves, fails, fails)]
    noise = compare_with_noise(parent, relative, copies, seed=0)
    assert (noise.compared, len(noise.kl)) == (1, 3)
    assert noise.difference.value == pytest.approx(-0.2) and noise.label == "cannot tell"


def test_a_file_of_pairs_gives_as_many_as_asked_where_it_has_twice_as_many():
    words = pattern("ioi")
    counts = Counter(pair.contrast for pair in words.user_pairs)
    assert circuit_prompts(words, 32) == min(32, min(counts.values()) // 2) == 32
    assert circuit_prompts(words, 10**6) == min(counts.values()) // 2


# Weight noise.


@pytest.mark.parametrize("kind", KINDS)
def test_noise_scales_with_each_matrix_of_the_layers_and_changes_nothing_else(kind):
    model = tiny(kind)
    noisy = noisy_model(model)
    before = {name: weight.clone() for name, weight in noisy.hf_model.named_parameters()}
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert noisy.add_noise(0.0, 0).logits(ids, mask).equal(model.logits(ids, mask))
    noisy.add_noise(0.5, 0)
    for name, weight in noisy.hf_model.named_parameters():
        if name in noisy.original_weights:
            original = before[name].detach()
            scale = float((weight.detach() - original).std() / original.std())
            assert scale == pytest.approx(0.5, rel=0.15)
        else:
            assert weight.equal(before[name])
    assert all("embed" not in name and "wte" not in name for name in noisy.original_weights)


def test_noise_is_matched_to_a_kl_and_measurements_are_reused(full, reference):
    noisy, runs = noisy_model(full), []

    def kl(model):
        runs.append(model)
        log_probs = readout_log_probs(model, reference.batch)
        return float(kl_divergence(reference.log_probs, log_probs).mean())

    matched = match_noise(noisy, 0.05, 0, kl)
    assert matched.value == pytest.approx(0.05, rel=0.03)
    assert kl(noisy.add_noise(matched.scale, 0)) == pytest.approx(matched.value, rel=1e-3)
    before = len(runs)
    assert match_noise(noisy, matched.value, 0, kl) == matched and len(runs) == before


def test_a_folder_of_unknown_origin_is_compared_with_noise_as_the_same_model_wrapped(tmp_path):
    plain = tiny_hf("llama", 0)
    plain.save_pretrained(tmp_path)
    assert one_point.is_compressed(wrap(plain, name="it"))
    assert one_point.is_compressed(probes.load(tmp_path))
    assert not one_point.is_compressed(probes.load("scratch"))
    (tmp_path / "README.md").write_text("---\nbase_model: me/fox\n---\n")
    assert not one_point.is_compressed(probes.load(tmp_path))


def test_a_kl_that_no_noise_reaches_is_not_matched():
    noisy = noisy_model(tiny("llama"))
    assert match_noise(noisy, 5.0, 0, lambda model: 1.0) is None
    assert match_noise(noisy, 0.0, 0, lambda model: 1.0) is None
    assert match_noise(noisy, 0.5, 0, lambda model: 1.0) is None


# The curve.


def test_every_relative_has_a_point_and_the_parent_loses_nothing(curve):
    assert [point.name for point in curve.points] == [
        "full rounded to 3 bits", "distilled", "full random-init 5",
    ]  # fmt: skip
    own = curve.parent
    assert own.behavior.readout_kl.value == 0 and own.mechanism.loss_order.difference.value == 0
    assert own.mechanism.circuit_kept.value > 0.7 and own.noise is None
    assert curve.random_init[1] < 0.2 < own.mechanism.interchange_accuracy.value


def test_a_relative_with_the_same_graph_is_measured_at_the_parents_sites(curve):
    near = curve["full rounded to 3 bits"]
    assert near.same_graph and near.mechanism.sites == curve.parent.mechanism.sites
    assert near.mechanism.parent_states and near.mechanism.circuit_kept.value > 0.5
    assert near.noise.kl[0] == pytest.approx(near.behavior.readout_kl.value, rel=0.03)


def test_a_relative_with_another_graph_is_measured_at_its_own_sites_without_noise(curve):
    far = curve["distilled"]
    assert not far.same_graph and far.mechanism.sites == far.mechanism.own_sites
    assert not far.mechanism.parent_states and math.isnan(far.mechanism.circuit_kept.value)
    assert far.mechanism.circuit_edges > 0 and far.noise is None


def test_a_relative_without_a_circuit_of_its_own_is_not_given_that_of_its_parent(monkeypatch):
    def none_found(*_):
        raise CircuitError("no circuit keeps 0.9")

    monkeypatch.setattr(one_point, "find_circuit", none_found)
    parent = object.__new__(one_point.ParentReference)
    object.__setattr__(parent, "discovery_task", object())
    object.__setattr__(parent, "circuit", object())
    assert one_point._own_circuit(tiny("llama"), parent) is None


def test_a_model_with_a_closed_gate_has_no_mechanism(curve):
    point = curve["full random-init 5"]
    assert point.mechanism is None and point.label == "behavior absent"
    assert point.kind == "random-init" and point.loss_order is None
    assert point.behavior.readout_kl.value > 1
    row = curve.table().set_index("name").loc["full random-init 5"]
    assert row["kl"] > 1 and math.isnan(row["mechanism"]) and row["gate"] == "closed"


def test_the_table_has_a_row_for_each_model_with_the_numbers_of_its_point(curve):
    table = curve.table().set_index("name")
    assert table.index[0] == "full" and len(table) == 4
    for point in curve.points:
        assert table.loc[point.name, "kl"] == point.behavior.readout_kl.value
        assert table.loc[point.name, "kB"] == point.rate.bits / 8000
    assert {"mechanism low", "x, all", "x, parent's states", "noise kl"} <= set(table.columns)


def test_the_summary_names_each_model_and_the_orders_of_losses(curve):
    text = "\n".join(curve.summary())
    assert "behavior absent" in text and "full rounded to 3 bits (" in text
    labels = {point.label for point in curve.points}
    assert ("mechanism breaks before" in text) == ("mechanism first" in labels)


def test_the_summary_says_why_an_interchange_accuracy_is_undefined(curve):
    assert not any("undefined" in line for line in curve.summary())
    point = next(each for each in curve.points if each.mechanism)
    unknown = replace(point.mechanism, interchange_accuracy=UNKNOWN, loss_order=None)
    few = replace(curve, pairs=16, points=(replace(point, mechanism=unknown),))
    (line,) = [line for line in few.summary() if "undefined" in line]
    assert "fewer than 20 pairs that the parent and the model both solve, of 16 here" in line
    assert f"here: {point.name}. Measure" in line


def test_a_curve_is_saved_as_numbers_table_page_and_picture(curve, tmp_path):
    for name in ("it.json", "it.csv", "it.html", "it.svg"):
        curve.save(tmp_path / name)
    plain = json.loads((tmp_path / "it.json").read_text())
    assert plain["points"][2]["mechanism"] is None and plain["summary"] == list(curve.summary())
    assert (tmp_path / "it.csv").read_text().count("\n") == 5
    with pytest.raises(FigureError, match="end the name"):
        curve.save(tmp_path / "it.txt")
    with pytest.raises(SiteError, match="not on the curve"):
        curve["nobody"]


def test_a_pattern_of_pairs_gives_a_curve_of_derived_models(full, tmp_path):
    pairs = pairs_file(tmp_path / "things.jsonl", 54)
    plain = tiny_hf("llama", 0, vocab_size=full.shape.d_vocab)
    provenance = Provenance("pruned", "full", dense_storage(plain, bits=4))
    relative = DerivedModel("random", plain, full.tokenizer, provenance)
    settings = RateDistortionSettings(bases=54, prompts=4, noise_copies=0, nulls=0)
    curve = rate_distortion(full, [relative, full], pairs, settings)
    assert [point.name for point in curve.points] == ["random", "full (2)"]
    assert curve["random"].kind == "pruned" and curve["random"].mechanism is None
    assert curve["full (2)"].behavior.readout_kl.value == 0


def test_models_with_another_vocabulary_are_refused(full):
    with pytest.raises(ModelError, match="has no tokenizer"):
        rate_distortion(full, [replace(full, tokenizer=None)])
    with pytest.raises(ModelError, match="different vocabularies"):
        rate_distortion(full, [wrap(tiny_hf("llama", 0), name="small", tokenizer=full.tokenizer)])
    with pytest.raises(ModelError, match="no relative"):
        rate_distortion(full, [])
