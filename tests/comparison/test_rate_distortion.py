"""The curve counts what is stored, judges on what both solve, and noise is as far as asked."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import probes
from probes.comparison.rate_distortion.measure import curve
from probes.comparison.rate_distortion.mechanism import (
    Turned,
    best_sites,
    crossed_trial,
    draw_exam,
    halved,
    run_trial,
    turned,
)
from probes.comparison.rate_distortion.order import Copy, beside_noise, kept, order_of
from probes.comparison.rate_distortion.weight_noise import match, shaken
from probes.compression.derived_model import Relative, dense
from probes.compression.storage import rate_of
from probes.errors import FigureError, ModelError, PatternError, SiteError
from probes.interventions.hotspots import alone
from probes.interventions.interchange import cross, exchange
from probes.models.model import untrained, wrap
from probes.models.provenance import Made, Storage
from probes.models.site import Cell, join, site_name
from probes.observe.divergence import behaved, guessed, kl, put, readouts, sit
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import crossings
from probes.prompts.pair_batch import encode_pairs
from probes.prompts.pattern import Pattern
from probes.testing.equivalent_models import rounded
from probes.testing.tiny_models import KINDS, tiny, tiny_hf

BASES = 32


@pytest.fixture(scope="module")
def full():
    return probes.load("full")


@pytest.fixture(scope="module")
def sitting(full):
    return sit(full, pattern("take-away"), count=BASES, seed=0)


@pytest.fixture(scope="module")
def exam(full):
    return draw_exam(full, pattern("take-away"), bases=BASES, seed=0)


@pytest.fixture(scope="module")
def sites(full, exam):
    return exam.find(full)


@pytest.fixture(scope="module")
def found(full):
    relatives = [rounded(full, 3), "distilled", "untrained:full:5"]
    return curve(full, relatives, bases=BASES, prompts=4, noise=1, nulls=1)


def made_up(hits, right=None, solved=None):
    hits = np.array(hits, dtype=float)
    every = np.ones(len(hits), dtype=bool)
    right = every if right is None else np.array(right, dtype=bool)
    return Turned(right, right if solved is None else np.array(solved, dtype=bool), {"x": hits})


# What is stored.


def test_what_a_slip_says_is_what_is_counted():
    kept_at = Storage(weights=80.0, embeddings=10.0, other=5.0, scales=3.0, zeros=1.0, index=1.0)
    model = replace(tiny("llama"), made=Made("quantized", "full", kept_at))
    assert rate_of(model).bits == 100 and rate_of(model).stated


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_slip_each_weight_counts_once_at_16_bits(kind):
    plain = tiny_hf(kind, 0)
    rate = rate_of(wrap(plain, name="it"))
    assert rate.parameters == sum(weight.numel() for weight in plain.parameters())
    assert rate.storage == dense(plain, bits=16) and rate.bits == 16 * rate.parameters
    assert not rate.stated


def test_density_is_the_share_of_weights_that_are_not_zero():
    plain = tiny_hf("llama", 0)
    before = rate_of(wrap(plain, name="it")).density
    with torch.no_grad():
        for layer in plain.model.layers:
            layer.mlp.up_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    layer = sum(w.numel() for w in plain.model.layers[0].parameters() if w.ndim == 2)
    lost = 2 * plain.model.layers[0].mlp.up_proj.weight.numel() / layer
    assert before == 1.0 and rate_of(wrap(plain, name="it")).density == pytest.approx(1 - lost)


# Behaviour.


def test_kl_is_worked_out_in_bits():
    first, second = torch.tensor([0.5, 0.5]).log2(), torch.tensor([0.25, 0.75]).log2()
    by_hand = 0.5 * math.log2(0.5 / 0.25) + 0.5 * math.log2(0.5 / 0.75)
    assert kl(first, second).item() == pytest.approx(by_hand)
    assert kl(first, first).item() == 0


def test_a_model_is_no_distance_from_itself(sitting, full):
    same = behaved(sitting, put(sitting, full), seed=0)
    assert same.kl.value == same.text_kl.value == 0
    assert same.agreement.value == 1 and not same.absent


def test_distance_over_texts_counts_each_token_that_another_follows(sitting, full):
    other = untrained(full, seed=1)
    answered, batch = put(sitting, other), sitting.batch
    for row in (0, 7):
        ids = batch.ids[row][batch.mask[row]][None]
        mask = torch.ones_like(ids, dtype=torch.bool)
        p, q = (m.logits(ids, mask).log_softmax(-1)[0, :-1] for m in (full, other))
        alone_in_batch = (p.exp() * (p - q)).sum(-1).mean().item() / math.log(2)
        assert answered.texts[row] == pytest.approx(alone_in_batch, rel=1e-4)


def test_an_untrained_net_lacks_the_behaviour(sitting, full):
    found = behaved(sitting, put(sitting, untrained(full, seed=1)), seed=0)
    assert found.absent and found.kl.value > 1 and found.right.value == 0
    assert 0 < guessed(sitting) < 0.5


# Mechanism.


def test_variables_turn_answers_as_interchange_says_they_do(full):
    drawn = crossings(pattern("take-away"), BASES, tokenizers=(full.tokenizer,), seed=0)
    sites = {
        "operation": Cell(1, "resid", "op"),
        "x": Cell(2, "resid", "x+rest"),
        "y": Cell(3, "resid", "y"),
        "thing": Cell(1, "resid", "thing_asked"),
    }

    trial = crossed_trial(drawn, encode_pairs(full.tokenizer, drawn.other))
    mine = turned(run_trial(full, trial), sites)
    crossed = cross(full, drawn, roles=join(*sites.values()))
    theirs, plain = exchange(crossed, [*sites.values()]), exchange(crossed, [])
    for name, cell in sites.items():
        wanted = alone(theirs, name)[theirs.row(site_name(cell))]
        assert (mine.hits[name] == wanted).all()
    assert (mine.right == (plain.says("base") & plain.says("base", 1))[0]).all()


def test_an_item_is_solved_where_base_and_source_are_both_right(full, exam, sites):
    runs = run_trial(full, exam.judging)
    found = turned(runs, sites)
    assert found.solved.all() and found.right.all()
    runs.source.logits[3] = -runs.source.logits[3]
    spoilt = turned(runs, {name: Cell(1, "resid", "op") for name in found.hits})
    assert not spoilt.solved[3] and spoilt.right[3] and spoilt.solved.sum() == BASES - 1


def test_states_of_the_model_itself_turn_what_its_own_do(full, exam, sites):
    runs = run_trial(full, exam.judging)
    twin = run_trial(rounded(full, 16), exam.judging)
    own, given = turned(runs, sites), turned(runs, sites, source=twin.source)
    assert all((own.hits[name] == given.hits[name]).all() for name in own.hits)
    other = turned(runs, sites, source=run_trial(untrained(full, seed=0), exam.judging).source)
    assert other.each.mean() < 0.1 < own.each.mean()


def pairs_file(path, count=24):
    things = ["foxes", "cats", "dogs", "birds", "apples", "pens"]
    lines = []
    for n in range(count):
        thing, rival, x = things[n % 6], things[(n + 1) % 6], 5 + n % 9
        side = [
            f"Tom has {x} {one} . He gives away 2 {one} . How many {one} has he got ? Answer:"
            for one in (thing, rival)
        ]
        roles = [{"thing": one} for one in (thing, rival)]
        lines.append(
            {"clean": side[0], "counterfactual": side[1], "contrast": "thing", "roles": roles[0],
             "answer": thing, "counterfactual_answer": rival, "counterfactual_roles": roles[1]}
        )  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return Pattern.from_pairs(path)


def test_pairs_are_parted_so_that_no_text_is_on_both_sides(tmp_path):
    given = pairs_file(tmp_path / "things.jsonl", 54).given
    here, there = halved(given)
    texts = [
        {t for p in side for t in (p.clean.text, p.counterfactual.text)} for side in (here, there)
    ]
    assert here and there and len(here) + len(there) == 54
    assert not texts[0] & texts[1]


def test_pairs_foretell_the_answer_of_their_counterfactual(full, tmp_path):
    exam = draw_exam(full, pairs_file(tmp_path / "things.jsonl", 54), bases=54, seed=0)
    trial = exam.judging
    assert trial.variables == ("thing",) and (trial.foretold["thing"] == trial.theirs).all()
    runs = run_trial(full, trial)
    all_of_it = {"thing": Cell(0, "resid", "thing")}
    through = turned(runs, all_of_it)
    said = runs.source.logits.argmax(-1)
    assert (through.hits["thing"] == (said == trial.theirs).all(-1).numpy()).all()
    assert best_sites(runs)["thing"].layer in (1, 2, 3)


def test_pairs_of_one_text_cannot_be_parted(full, tmp_path):
    with pytest.raises(PatternError, match="parted in two"):
        draw_exam(full, pairs_file(tmp_path / "few.jsonl", 1), bases=8, seed=0)


# What breaks first.


def test_only_what_both_solve_is_judged():
    half = [True] * 100 + [False] * 100
    parent, relative = made_up([1] * 200), made_up([1] * 100 + [0] * 100, right=half)
    order = order_of(parent, relative, seed=0)
    assert order.items == 100 and order.mechanism.value == 0
    assert order.accuracy.value == 0.5 and order.lead.value == -0.5
    assert order.word == "accuracy first"
    assert kept(parent, relative, seed=0).value == 1


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
    assert order_of(parent, made_up(hits, right=right), seed=0).word == word


def test_few_items_without_a_change_do_not_show_that_nothing_is_lost():
    assert order_of(made_up([1] * 72), made_up([1] * 72), seed=0).word == "cannot tell"
    assert order_of(made_up([1] * 80), made_up([1] * 80), seed=0).word == "neither"


def test_nothing_is_said_of_a_handful_of_items():
    few = made_up([1] * 30, right=[True] * 19 + [False] * 11)
    assert order_of(made_up([1] * 30), few, seed=0) is None
    assert math.isnan(kept(made_up([1] * 30), few, seed=0).value)


def test_noise_is_met_on_items_that_all_three_solve():
    parent = made_up([1] * 200)
    solved = [True] * 120 + [False] * 80
    relative = made_up([0] * 40 + [1] * 160)
    copies = [Copy(0.1, 0.5, made_up([1] * 200, right=solved)) for _ in range(3)]
    found = beside_noise(parent, relative, copies, seed=0)
    assert found.difference.value == pytest.approx(-40 / 120) and found.word == "worse than noise"
    assert found.accuracy.value == pytest.approx(0.4) and found.right == (0.6, 0.6, 0.6)
    same = [Copy(0.1, 0.5, relative)] * 3
    assert beside_noise(parent, relative, same, seed=0).word == "like noise"
    assert beside_noise(parent, relative, [], seed=0) is None


# Noise.


@pytest.mark.parametrize("kind", KINDS)
def test_shaking_moves_the_layers_matrices_by_their_own_spread_and_nothing_else(kind):
    model = tiny(kind)
    noisy = shaken(model)
    still = {name: weight.clone() for name, weight in noisy.plain.named_parameters()}
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert noisy.shake(0.0, 0).logits(ids, mask).equal(model.logits(ids, mask))
    noisy.shake(0.5, 0)
    for name, weight in noisy.plain.named_parameters():
        if name in noisy.still:
            moved = float(
                (weight.detach() - still[name].detach()).std() / still[name].detach().std()
            )
            assert moved == pytest.approx(0.5, rel=0.15)
        else:
            assert weight.equal(still[name])
    assert all("embed" not in name and "wte" not in name for name in noisy.still)


def test_noise_is_matched_to_a_distance_and_what_was_tried_is_kept(full, sitting):
    noisy, runs = shaken(full), []

    def far(model):
        runs.append(model)
        return float(kl(sitting.logs, readouts(model, sitting.batch)).mean())

    done = match(noisy, 0.05, 0, far)
    assert done.value == pytest.approx(0.05, rel=0.03)
    assert far(noisy.shake(done.scale, 0)) == pytest.approx(done.value, rel=1e-3)
    before = len(runs)
    assert match(noisy, done.value, 0, far) == done and len(runs) == before


def test_a_distance_that_no_noise_reaches_is_not_matched():
    noisy = shaken(tiny("llama"))
    assert match(noisy, 5.0, 0, lambda model: 1.0) is None
    assert match(noisy, 0.0, 0, lambda model: 1.0) is None
    assert match(noisy, 0.5, 0, lambda model: 1.0) is None


# All of it.


def test_every_relative_has_a_point_and_the_parent_loses_nothing(found):
    assert [point.name for point in found.points] == [
        "full rounded to 3 bits", "distilled", "full untrained 5",
    ]  # fmt: skip
    own = found.parent
    assert own.behaved.kl.value == 0 and own.mechanism.order.lead.value == 0
    assert own.mechanism.circuit.value > 0.7 and own.noise is None
    assert found.untrained[1] < 0.2 < own.mechanism.kept.value


def test_a_relative_of_the_same_graph_is_tried_at_the_parents_sites(found):
    near = found["full rounded to 3 bits"]
    assert near.same_graph and near.mechanism.sites == found.parent.mechanism.sites
    assert near.mechanism.carried and near.mechanism.circuit.value > 0.5
    assert near.noise.kl[0] == pytest.approx(near.behaved.kl.value, rel=0.03)


def test_a_relative_of_another_graph_is_tried_at_its_own_and_beside_no_noise(found):
    far = found["distilled"]
    assert not far.same_graph and far.mechanism.sites == far.mechanism.own_sites
    assert not far.mechanism.carried and math.isnan(far.mechanism.circuit.value)
    assert far.mechanism.circuit_edges > 0 and far.noise is None


def test_a_closed_gate_keeps_behaviour_and_says_nothing_of_the_mechanism(found):
    net = found["full untrained 5"]
    assert net.mechanism is None and net.word == "behaviour absent" and net.kind == "untrained"
    assert net.behaved.kl.value > 1
    row = found.table().set_index("name").loc["full untrained 5"]
    assert row["kl"] > 1 and math.isnan(row["mechanism"]) and row["gate"] == "closed"


def test_the_table_has_a_row_for_each_and_says_what_the_points_do(found):
    table = found.table().set_index("name")
    assert table.index[0] == "full" and len(table) == 4
    for point in found.points:
        assert table.loc[point.name, "kl"] == point.behaved.kl.value
        assert table.loc[point.name, "kB"] == point.rate.bits / 8000
    assert {"mechanism low", "x, all", "x, parent's states", "noise kl"} <= set(table.columns)


def test_sentences_are_worked_out_from_the_numbers(found):
    said = "\n".join(found.summary())
    assert "behaviour absent" in said and "full rounded to 3 bits (" in said
    kinds = {point.word for point in found.points}
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
    made = Made("pruned", "full", dense(plain, bits=4))
    relative = Relative("random", plain, full.tokenizer, made)
    found = curve(full, [relative, full], given, bases=54, prompts=4, noise=0, nulls=0)
    assert [point.name for point in found.points] == ["random", "full (2)"]
    assert found["random"].kind == "pruned" and found["random"].mechanism is None
    assert found["full (2)"].behaved.kl.value == 0


def test_models_of_other_words_are_refused(full):
    stranger = replace(full, tokenizer=None)
    with pytest.raises(ModelError, match="without a tokenizer"):
        curve(full, [stranger])
    with pytest.raises(ModelError, match="different vocabularies"):
        curve(full, [wrap(tiny_hf("llama", 0), name="small", tokenizer=full.tokenizer)])
    with pytest.raises(ModelError, match="no relative"):
        curve(full, [])
