"""The "My name is" study: true distribution, bits of the labels, runs and learning curves."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import probes.compression.distillation.trainer as training
from probes.compression.derived_model import load_parent
from probes.errors import FigureError, ModelError
from probes.experiments.family.corpus import CorpusText
from probes.experiments.soft_labels.curves import (
    arm_curve,
    examples_needed,
    first_crossing,
    over_seeds,
)
from probes.experiments.soft_labels.figure import (
    examples_needed_table,
    names_picture,
    separate_labels,
)
from probes.experiments.soft_labels.plan import (
    ARMS,
    COUNTING,
    TEACHER,
    NameRow,
    NameStudySettings,
    chosen_rates,
    read_name_study,
    untried,
)
from probes.experiments.soft_labels.run import counting_kl, name_study
from probes.experiments.soft_labels.texts import (
    TOKEN_CLASSES,
    TeacherTargets,
    evaluate_student,
    kl_bits,
    label_information,
    sample_name_texts,
    teacher_targets,
    token_classes,
    tokenize_name_texts,
    true_name_distribution,
)
from probes.files import write_rows
from probes.prompts.catalog import pattern

PLAN = NameStudySettings(
    updates=3, batch=2, layers=1, width=16, heads=2, warmup=1, seeds=(1, 2), tuning_seed=9,
    rates=(0.01,), test=4, first_look=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher():
    return load_parent("full")


@pytest.fixture(scope="module")
def study(teacher):
    return [
        row for rows in name_study(("soft", "hard"), plan=PLAN, teacher=teacher) for row in rows
    ]


def row(arm="soft", seed=1, examples=32, kl=1.0, **given):
    given = {"stage": "run", "rate": 0.01, **given}
    return NameRow(
        arm=arm, seed=seed, examples=examples, name_kl=kl, ambiguous_kl=kl, all_kl=kl,
        certain=0.5, noun=0.5, number=0.5, **given,
    )  # fmt: skip


def logs(*probs):
    return torch.tensor(probs).log()


# Distribution, texts and bits.


def test_the_true_distribution_is_uniform_over_the_first_tokens_of_the_names(teacher):
    truth = true_name_distribution(teacher.tokenizer)
    assert float(truth.sum()) == pytest.approx(1)
    assert truth[truth > 0].tolist() == pytest.approx([1 / 24] * 24)
    pieces = teacher.tokenizer.convert_ids_to_tokens(truth.nonzero()[:, 0].tolist())
    assert {"ĠTom", "ĠChris"} <= set(pieces) and "topher" not in pieces


def test_names_with_the_same_first_token_add_up(teacher):
    lexicon = replace(
        pattern("take-away").lexicon, choices=(("name", ("Tom", "Ann", "Tom", "Tom")),)
    )
    truth = true_name_distribution(teacher.tokenizer, lexicon)
    assert sorted(truth[truth > 0].tolist()) == [pytest.approx(0.25), pytest.approx(0.75)]


def test_kl_is_zero_to_itself_and_equals_a_sum_by_hand():
    truth = torch.tensor([0.5, 0.5, 0.0])
    assert kl_bits(truth, truth.clamp_min(1e-30).log()) == pytest.approx(0)
    # Half of log2(2) and half of log2(2/3).
    assert kl_bits(truth, logs(0.25, 0.75, 1e-9)) == pytest.approx(0.5 + 0.5 * math.log2(2 / 3))


def test_all_texts_have_one_opening_and_their_first_token_is_not_trained_on(teacher):
    texts = sample_name_texts(20, seed=4)
    assert all(item.text.startswith("My name is ") for item in texts)
    assert sum("Answer:" in item.text for item in texts) == 14
    assert texts == sample_name_texts(20, seed=4) != sample_name_texts(20, seed=5)
    for one, item in zip(tokenize_name_texts(teacher.tokenizer, texts), texts, strict=True):
        assert teacher.tokenizer.decode(one.ids[: one.ignored_prefix]) == "<bos>My"
        assert teacher.tokenizer.decode(one.ids[1:-1]) == item.text


def test_each_token_has_the_class_that_a_reader_gives_it(teacher):
    item = CorpusText(
        "My name is Alexandra. Tom has 3 raincoats. Tom takes away 2. Now Tom has",
        " 1 raincoats. So, 3 less 2 is 1.",
    )
    words = teacher.tokenizer.tokenize(item.text)
    classes = token_classes(teacher.tokenizer, item)
    assert len(classes) == len(words) + 1  # and <eos>
    classified = [(w, c) for w, c in zip(words, classes, strict=False) if c != "rest"]
    assert classified == [
        ("ĠAlex", "my name"), ("ĠTom", "name"), ("Ġ3", "number"), ("Ġrain", "noun"),
        ("ĠTom", "again"), ("Ġtakes", "verb"), ("Ġ2", "number"), ("ĠTom", "again"),
        ("Ġ1", "answer number"), ("Ġrain", "answer noun"),
    ]  # fmt: skip


def test_bits_of_labels_equal_sums_by_hand():
    log_probs = logs(
        (0.25, 0.25, 0.25, 0.25), (1 - 3e-12, 1e-12, 1e-12, 1e-12), (0.5, 0.25, 0.25, 1e-12)
    )
    names = ("my name", "rest", "noun")
    targets = TeacherTargets(
        ids=torch.zeros(2, 3, dtype=torch.long),
        mask=torch.ones(2, 3, dtype=torch.long),
        scored=torch.ones(2, 2, dtype=torch.bool),
        token_ids=torch.tensor([3, 0, 1]),
        classes=torch.tensor([TOKEN_CLASSES.index(name) for name in names]),
        log_probs=log_probs,
        entropy=torch.tensor([2.0, 0.0, 1.5]),
    )
    bits = {one.name: one for one in label_information(targets)}
    assert (bits["my name"].tokens, bits["my name"].entropy) == (0.5, 1.0)
    assert bits["my name"].surprise == pytest.approx(1)
    assert bits["noun"].surprise == pytest.approx(1)  # Two bits in one of two texts.
    assert bits["rest"].surprise == pytest.approx(0, abs=1e-6)
    assert bits["all"].entropy == pytest.approx(1.75)
    assert bits["verb"].tokens == 0


def test_the_teacher_as_its_own_student_has_zero_kl(teacher):
    targets = teacher_targets(teacher.hf_model, teacher.tokenizer, sample_name_texts(6, seed=1))
    truth = true_name_distribution(teacher.tokenizer)
    scores = evaluate_student(teacher.hf_model, targets, truth)
    assert scores.all_kl == pytest.approx(0, abs=1e-5)
    assert scores.ambiguous_kl == pytest.approx(0, abs=1e-5)
    assert 0 < scores.name_kl < 0.1, "the teacher knows the set of names"
    assert scores.certain > 0.95
    # Its entropy after the opening is near that of 24 names.
    assert float(targets.entropy[targets.in_class("my name")][0]) == pytest.approx(
        math.log2(24), abs=0.3
    )


def test_counting_starts_each_name_at_one_half():
    truth = torch.tensor([0.5, 0.0, 0.5])
    once = 0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25)
    first, last = counting_kl(truth, [1, 4000], seed=3)
    assert first == pytest.approx(once)
    assert 0 <= last < 0.01


# Runs.


def test_a_study_tunes_and_runs_every_arm_and_seed(study):
    runs = {(r.stage, r.arm, r.seed) for r in study}
    assert runs == {
        ("beside", TEACHER, 0), ("beside", COUNTING, 1), ("beside", COUNTING, 2),
        *(("tuning", arm, 9) for arm in ("soft", "hard")),
        *(("run", arm, seed) for arm in ("soft", "hard") for seed in (1, 2)),
    }  # fmt: skip
    seen = [r.examples for r in study if (r.stage, r.arm, r.seed) == ("run", "soft", 1)]
    assert seen == [2, 4, 6]


def test_a_study_resumes_with_the_same_results(study, teacher):
    def again(done):
        more = name_study(("soft", "hard"), plan=PLAN, done=done, teacher=teacher)
        return [row for rows in more for row in rows]

    assert again(study) == []
    last = study[-1]
    kept = [r for r in study if (r.stage, r.arm, r.seed) != (last.stage, last.arm, last.seed)]
    assert again(kept) == study[len(kept) :]


def test_all_arms_of_a_seed_see_the_same_texts_in_the_same_order(study, teacher, monkeypatch):
    seen, plain = [], training.collate

    def spy(features, pad):
        seen[-1].append([tuple(one["input_ids"]) for one in features])
        return plain(features, pad)

    monkeypatch.setattr(training, "collate", spy)
    few = replace(PLAN, seeds=(1,))
    for arm in ("soft", "hard", "1 drawn", "permuted"):
        seen.append([])
        done = [replace(r, arm=arm) for r in study if r.stage == "tuning" and r.arm == "soft"]
        done += [r for r in study if r.stage == "beside"]
        list(name_study((arm,), plan=few, done=done, teacher=teacher))
    assert len(seen[0]) >= 3
    assert all(one == seen[0] for one in seen)


def test_impossible_settings_are_refused(teacher):
    with pytest.raises(ModelError, match="no arm 'softly'"):
        next(name_study(("softly",), plan=PLAN, teacher=teacher))
    with pytest.raises(ModelError, match="not among the seeds"):
        NameStudySettings(seeds=(1, 2), tuning_seed=2)
    with pytest.raises(ModelError, match="yields nothing"):
        NameStudySettings(updates=3, first_look=4)
    with pytest.raises(ModelError, match="no measure 'beauty'"):
        arm_curve([row()], "soft", "beauty")


def test_evaluations_are_evenly_spaced_on_log_examples_and_include_the_end():
    assert NameStudySettings(updates=32, first_look=4, looks_per_doubling=1).look_steps == (
        4,
        8,
        16,
        32,
    )
    assert NameStudySettings(updates=33, first_look=4, looks_per_doubling=1).look_steps == (
        4,
        8,
        16,
        32,
        33,
    )
    assert NameStudySettings(updates=5, first_look=5).look_steps == (5,)


def test_learning_rates_are_tried_from_the_middle_until_the_best_is_not_at_an_end():
    plan = NameStudySettings(rates=(1.0, 2.0, 3.0, 4.0, 5.0))
    cost = {2.0: 4.0, 3.0: 2.0, 4.0: 1.0, 5.0: 3.0}
    rows, tried = [], []
    while (rate := untried("soft", plan, rows)) is not None:
        tried.append(rate)
        rows.append(
            row(stage="tuning", rate=rate, kl=cost[rate], examples=plan.updates * plan.batch)
        )
    assert tried == [2.0, 3.0, 4.0, 5.0]
    assert (chosen_rates(rows, plan)["soft"].rate, chosen_rates(rows, plan)["soft"].at_edge) == (
        4.0,
        False,
    )
    decreasing = [replace(r, all_kl=1 / r.rate) for r in rows]
    assert chosen_rates(decreasing, plan)["soft"].at_edge
    diverged = [replace(r, all_kl=float("nan")) if r.rate == 4.0 else r for r in rows]
    assert chosen_rates(diverged, plan)["soft"].rate == 3.0


# Curves.


def test_an_interval_over_seeds_is_a_t_interval():
    found = over_seeds(np.array([1.0, 2.0, 3.0]), logs=False)
    assert found.value == 2 and found.high - 2 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    geometric = over_seeds(np.array([1.0, 4.0]), logs=True)
    assert geometric.value == pytest.approx(2)
    assert geometric.low * geometric.high == pytest.approx(4)
    assert over_seeds(np.array([0.5]), logs=True).low == 0.5


def test_a_target_is_interpolated_between_evaluations_on_log_axes():
    looks = [(100, 4.0), (400, 1.0), (800, 3.0), (1600, 0.5)]
    assert first_crossing(looks, 2.0) == pytest.approx(200)
    assert first_crossing(looks, 5.0) == 100
    assert first_crossing(looks, 0.4) is None
    assert first_crossing([(100, float("nan")), (200, 1.0)], 2.0) == 200


def test_examples_needed_are_relative_to_soft_on_the_same_seed():
    rows = [row("soft", s, n, kl) for s in (1, 2) for n, kl in ((100, 4.0), (400, 1.0))]
    rows += [row("hard", s, n, kl) for s in (1, 2) for n, kl in ((200, 4.0), (800, 1.0))]
    found = examples_needed(rows, "hard", 2.0)
    assert found.reached == found.seeds == 2
    assert found.examples is not None and found.examples.value == pytest.approx(400)
    assert found.ratio is not None and found.ratio.value == pytest.approx(2)
    assert math.isnan(found.at_least)
    assert str(found) == "400 examples, 2.00 [2.00, 2.00] x soft"


def test_a_target_that_is_not_reached_gives_a_lower_bound():
    rows = [row("soft", s, n, kl) for s in (1, 2) for n, kl in ((100, 4.0), (400, 1.0))]
    rows += [row("hard", 1, n, kl) for n, kl in ((100, 4.0), (400, 1.0))]
    rows += [row("hard", 2, n, kl) for n, kl in ((100, 4.0), (400, 3.0))]
    found = examples_needed(rows, "hard", 2.0)
    assert (found.reached, found.seeds, found.examples, found.ratio) == (1, 2, None, None)
    # Equal to soft on one seed, and more than twice on the other.
    assert found.at_least == pytest.approx(math.sqrt(1 * 2))
    assert str(found) == "not reached (1 of 2 seeds, more than 1.4 x soft)"
    never = examples_needed(rows, "soft", 0.5)
    assert never.examples is None and math.isnan(never.at_least)
    assert "not reached by 1 of 2" in examples_needed_table(rows).body


def test_a_table_reads_back_as_it_was_written(tmp_path):
    rows = [row(), row(stage="beside", arm=COUNTING, kl=0.123456)]
    write_rows([asdict(one) for one in rows], tmp_path / "names.csv")
    assert read_name_study(tmp_path / "names.csv") == [
        rows[0], replace(rows[1], name_kl=0.1235, ambiguous_kl=0.1235, all_kl=0.1235)
    ]  # fmt: skip
    assert read_name_study(tmp_path / "none.csv") == []


def test_the_shipped_table_has_five_seeds_of_every_arm_at_its_chosen_learning_rate():
    rows, plan = read_name_study(), NameStudySettings()
    for name, arm in ARMS.items():
        here = [r for r in rows if r.stage == "run" and r.arm == name]
        assert {r.seed for r in here} >= set(plan.seeds)
        assert {r.rate for r in here} == {chosen_rates(rows, plan)[arm.rate_from or name].rate}
    assert len({(r.stage, r.arm, r.seed, r.rate, r.examples) for r in rows}) == len(rows)


# Figure.


def test_labels_keep_their_order_and_a_distance():
    wanted = [50.0, 51.0, 52.0, 10.0, 99.0, 100.0]
    found = separate_labels(wanted, 12, 0, 100)
    assert np.argsort(found).tolist() == np.argsort(wanted).tolist()
    assert np.diff(sorted(found)).min() >= 12 - 1e-9
    assert min(found) >= 0 and max(found) <= 100
    assert found[3] == 10, "a label without a neighbor stays"
    assert separate_labels([5.0] * 11, 40, 0, 100) == pytest.approx(list(range(0, 101, 10)))


def test_the_figure_names_every_arm_and_needs_a_run(tmp_path):
    rows = [
        row(arm, seed, n, kl * (1 + seed / 10))
        for arm in ARMS for seed in (1, 2) for n, kl in ((32, 4.0), (64, 1.0))
    ]  # fmt: skip
    rows += [row(COUNTING, 1, n, 0.5, stage="beside") for n in (32, 64)]
    rows.append(row(TEACHER, 0, 0, 0.02, stage="beside"))
    picture = names_picture(rows)
    drawn = picture.body.partition("<details")[0]
    for arm in (*(name for name, one in ARMS.items() if not one.decay), COUNTING, TEACHER):
        assert f">{arm}</text>" in drawn
    picture.save(tmp_path / "names.svg")
    with pytest.raises(FigureError, match="no row of stage 'run'"):
        names_picture([row(stage="tuning")])
