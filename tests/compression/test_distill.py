"""Distillation and lottery tickets of any model."""

from dataclasses import replace

import pytest
import torch

import probes as pb
from probes.compression.derived_model import DerivedModel, load_parent, zero_fraction
from probes.compression.distillation import trainer
from probes.compression.distillation.distill import (
    DistillationSettings,
    build_student,
    continue_training,
    distill,
    evenly_spaced_layers,
    layers_path,
    take_layers,
)
from probes.compression.distillation.plan import TrainingConfig, TrainingPlan, TrainingText
from probes.compression.distillation.targets import DistillationTargets
from probes.compression.distillation.texts import generate_continuations, read_text_file
from probes.compression.distillation.trainer import fit
from probes.compression.pruning.lottery_ticket import (
    Ticket,
    TicketSettings,
    iterative_pruning,
    lottery_ticket,
)
from probes.compression.pruning.masks import density
from probes.errors import ModelError
from probes.experiments.family.train import family_corpus
from probes.models.files.provenance import Provenance, StorageCost
from probes.testing.tiny_models import KINDS, tiny_hf

TEXTS = [TrainingText(tuple((7 * k + 3 * j) % 50 + 3 for j in range(4 + k % 5))) for k in range(64)]
TRAINING = TrainingConfig(steps=3, seed=0, batch=4, warmup=1, save_every=2)
SETTINGS = DistillationSettings(layers=1, training=TRAINING)


def derived(kind="llama", seed=0, name="tiny", **config):
    hf_model = tiny_hf(kind, seed=seed, **config)
    return DerivedModel(
        name, hf_model.eval(), None, Provenance("trained", "", StorageCost(0.0, 0.0, 0.0))
    )


@pytest.fixture(scope="module")
def full():
    return load_parent("full")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_all_layers_in_order_has_the_same_logits(kind):
    hf_model = tiny_hf(kind, seed=0).eval()
    ids = torch.arange(3, 9)[None]
    taken = take_layers(hf_model, range(hf_model.config.num_hidden_layers))
    assert torch.equal(taken(ids).logits, hf_model(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_has_the_layers_of_its_teacher(kind):
    hf_model = tiny_hf(kind, seed=0).eval()
    taken, stem = take_layers(hf_model, [1]), layers_path(hf_model)
    assert taken.config.num_hidden_layers == 1
    ours = dict(taken.named_parameters())
    for name, weight in hf_model.named_parameters():
        if name.startswith(f"{stem}.1."):
            assert torch.equal(ours[name.replace(f"{stem}.1.", f"{stem}.0.")], weight)


def test_layers_are_evenly_spaced_from_the_first(full):
    assert evenly_spaced_layers(full, 2) == [0, 2]
    assert evenly_spaced_layers(full, 4) == [0, 1, 2, 3]
    assert evenly_spaced_layers(full, 3) == [0, 1, 3]
    with pytest.raises(ModelError, match="1 to 4"):
        evenly_spaced_layers(full, 5)


def test_a_fresh_student_keeps_the_head_size_and_depends_on_its_seed(full):
    settings = DistillationSettings("fresh", 1, 64, training=replace(TRAINING, seed=3))
    narrow = build_student(full, settings)
    assert (narrow.config.num_attention_heads, narrow.config.hidden_size) == (2, 64)
    again = build_student(full, settings)
    assert all(map(torch.equal, narrow.parameters(), again.parameters()))
    with pytest.raises(ModelError, match="whole number of heads"):
        build_student(full, DistillationSettings("fresh", 1, 50))
    with pytest.raises(ModelError, match="use start='fresh'"):
        build_student(full, DistillationSettings("layers", 2, 64))


def test_a_fresh_student_has_whole_groups_of_heads_that_share_keys_and_values():
    teacher = derived("llama-gqa", hidden_size=64, num_attention_heads=8, num_key_value_heads=4)
    shapes = {}
    for width in (8, 16, 24, 32, 48):  # One, two, three heads, and whole groups of two.
        config = build_student(teacher, DistillationSettings("fresh", 1, width)).config
        shapes[width] = (config.num_attention_heads, config.num_key_value_heads)
    assert shapes == {8: (1, 1), 16: (2, 1), 24: (3, 1), 32: (4, 2), 48: (6, 3)}
    with pytest.raises(ModelError, match=r"5 heads, and 2 of tiny .*: give a multiple of 16$"):
        build_student(teacher, DistillationSettings("fresh", 1, 40))


@pytest.mark.parametrize(("inner", "expected"), [(96, 48), (None, 4 * 16)])
def test_the_mlps_of_a_fresh_student_scale_with_its_width(inner, expected):
    student = build_student(derived("gpt2", n_inner=inner), DistillationSettings("fresh", 1, 16))
    assert student.transformer.h[0].mlp.c_fc.weight.shape == (16, expected)
    assert student(torch.arange(3, 9)[None]).logits.isfinite().all()


def test_distillation_does_not_change_the_teacher_and_records_its_settings(tmp_path):
    teacher = derived()
    before = [weight.clone() for weight in teacher.hf_model.parameters()]
    made = distill(teacher, TEXTS, SETTINGS, folder=tmp_path)
    assert all(map(torch.equal, before, teacher.hf_model.parameters()))
    assert made.provenance.kind == "distilled"
    assert made.provenance.parent == "tiny"
    assert made.provenance.settings["labels"] == "soft"
    assert made.provenance.storage.total == 16 * sum(w.numel() for w in made.hf_model.parameters())


def test_a_student_trained_in_half_precision_answers_in_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "supports_bf16", lambda device: True)
    seen = []
    made = fit(
        derived().hf_model,
        TrainingPlan(TEXTS, TRAINING),
        folder=tmp_path,
        callback=lambda step, model: seen.append(logits(model)),
    )
    rebuilt = derived().hf_model
    rebuilt.load_state_dict(made.state_dict())
    torch.testing.assert_close(logits(made), logits(rebuilt), rtol=0, atol=0)
    torch.testing.assert_close(seen[-1], logits(rebuilt), rtol=0, atol=0)


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(8)[None]).logits


def test_two_runs_of_one_seed_give_the_same_files(tmp_path):
    files = []
    for number in (1, 2):
        work = tmp_path / f"work-{number}"
        made = distill(derived(), TEXTS, SETTINGS, folder=work)
        place = made.save(tmp_path / str(number) / "student")
        files.append({path.name: path.read_bytes() for path in place.iterdir()})
    assert files[0] == files[1]


def test_a_student_may_continue_another_model_of_the_same_vocabulary(tmp_path, full):
    student = build_student(full, DistillationSettings("full-b"))
    assert student.config.num_hidden_layers == 4
    derived(name="other").save(tmp_path / "other")
    with pytest.raises(ModelError, match="its teacher's vocabulary"):
        build_student(full, DistillationSettings(str(tmp_path / "other")))


def test_a_student_that_continues_a_model_of_another_width_learns_from_the_teacher(tmp_path, full):
    narrow = load_parent("distilled-narrow")
    settings = replace(SETTINGS, start="distilled-narrow", layers=0)
    made = distill(full, family_corpus(full, count=12, seed=0), settings, folder=tmp_path)
    assert made.hf_model.config.hidden_size == narrow.hf_model.config.hidden_size
    assert made.hf_model.config.hidden_size != full.hf_model.config.hidden_size
    assert not all(map(torch.equal, narrow.hf_model.parameters(), made.hf_model.parameters()))


def test_texts_are_read_line_by_line(full, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("Tom has 3 foxes.\n\nHe gets 2 more.\n", encoding="utf-8")
    rows = read_text_file(full, path)
    assert len(rows) == 2
    assert full.tokenizer.decode(rows[0].ids, skip_special_tokens=True) == "Tom has 3 foxes."
    with pytest.raises(ModelError, match="no file"):
        read_text_file(full, tmp_path / "none.txt")
    path.write_text("\n \n")
    with pytest.raises(ModelError, match="has no text"):
        read_text_file(full, path)
    with pytest.raises(ModelError, match="no tokenizer"):
        read_text_file(derived(), path)


def test_a_teacher_continues_the_beginning_of_each_text(full):
    rows = family_corpus(full, count=12, seed=0)
    told = generate_continuations(full, rows, seed=0)
    assert told == generate_continuations(full, rows, seed=0)
    assert told != generate_continuations(full, rows, seed=1)
    for row, text in zip(rows, told, strict=True):
        head = row.ids[: round(0.5 * len(row.ids))]
        assert text.ids[: len(head)] == head
        assert len(text.ids) > len(head)
        assert text.ids.count(full.tokenizer.eos_token_id) <= 1


def test_continuations_do_not_depend_on_padding(full):
    """Padding is not read: a text's first own token has the odds it has alone."""
    rows = family_corpus(full, count=6, seed=0)
    short = min(rows, key=lambda row: len(row.ids))
    head = short.ids[: max(1, round(0.999 * len(short.ids)))]
    with torch.no_grad():
        alone = full.hf_model(torch.tensor([head])).logits[0, -1].argmax()
    sure = [
        generate_continuations(full, [*rows], seed=seed, prefix_fraction=0.999) for seed in range(3)
    ]
    place = rows.index(short)
    assert {row[place].ids[len(head)] for row in sure if len(row[place].ids) > len(head)} <= {
        int(alone)
    } or len(head) == len(short.ids)


def tiny_trainer(folder):
    def train(hf_model, masks, name):
        plan = TrainingPlan(TEXTS, TRAINING, masks=masks)
        return fit(hf_model, plan, folder=folder / name)

    return train


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tickets")
    early = derived(name="early")
    trained = continue_training(early, TEXTS, TRAINING, folder=folder / "full")
    train = tiny_trainer(folder)
    return early, trained, train, list(iterative_pruning(early, trained, train, rounds=2))


def test_each_round_keeps_half_of_the_remaining_weights(found):
    _, _, _, (first, second) = found
    assert density(first.masks) == pytest.approx(0.5, abs=1e-3)
    assert density(second.masks) == pytest.approx(0.25, abs=1e-3)
    for name, mask in second.masks.items():
        assert not (mask & ~first.masks[name]).any()
    for ticket in (first, second):
        for name, mask in ticket.masks.items():
            assert (ticket.model.hf_model.get_parameter(name)[~mask] == 0).all()
        assert zero_fraction(ticket.model.hf_model) >= 1 - density(ticket.masks) - 1e-6


def test_a_ticket_is_rewound_to_early_weights_before_training(found):
    early, trained, _, _ = found
    seen = {}

    def look(hf_model, masks, name):
        seen["start"] = {n: w.detach().clone() for n, w in hf_model.named_parameters()}
        return hf_model

    (ticket,) = iterative_pruning(early, trained, look, rounds=1)
    for name, weight in early.hf_model.named_parameters():
        mask = ticket.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(seen["start"][name], weight * mask)


def test_the_storage_of_a_ticket_is_its_kept_weights_and_their_index(found):
    _, trained, _, (first, _) = found
    assert isinstance(first, Ticket)
    bits = first.model.provenance.storage
    every = sum(mask.numel() for mask in first.masks.values())
    assert bits.weights == pytest.approx(16 * every / 2, rel=1e-3)
    assert 0 < bits.mask_index <= every
    assert first.model.provenance.parent == trained.name


def test_a_ticket_needs_early_weights_of_the_same_model(found):
    _, trained, train, _ = found
    with pytest.raises(ModelError, match="nothing to rewind to"):
        next(iterative_pruning(trained, trained, train))
    with pytest.raises(ModelError, match="has no early weights of"):
        next(iterative_pruning(derived("gpt2"), trained, train))


def test_a_lottery_ticket_is_the_ticket_of_the_last_round(found, tmp_path):
    early, trained, _, rounds = found
    settings = TicketSettings(rounds=2, training=TRAINING)
    made = lottery_ticket(trained, early, TEXTS, settings, folder=tmp_path)
    last = rounds[-1].model
    assert made.name == last.name
    assert all(map(torch.equal, made.hf_model.parameters(), last.hf_model.parameters()))
    assert made.provenance.settings["rounds"] == 2
    with pytest.raises(ModelError, match=r"belong to another run: .*batch is 4 there and 5 here"):
        other = replace(settings, training=replace(TRAINING, batch=5))
        lottery_ticket(trained, early, TEXTS, other, folder=tmp_path)


def test_continued_training_returns_another_model_and_records_its_settings(found, tmp_path):
    early, _, _, _ = found
    before = [weight.clone() for weight in early.hf_model.parameters()]
    more = continue_training(early, TEXTS, TRAINING, folder=tmp_path)
    assert all(map(torch.equal, before, early.hf_model.parameters()))
    assert not all(map(torch.equal, before, more.hf_model.parameters()))
    assert more.provenance.settings["steps"] == 3


def test_hard_labels_need_no_teacher(tmp_path):
    settings = replace(SETTINGS, labels=DistillationTargets("hard"))
    made = distill(derived(), TEXTS, settings, folder=tmp_path)
    assert made.provenance.settings["labels"] == "hard"


def test_a_saved_student_loads_by_name(full, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = DistillationSettings(training=TrainingConfig(steps=2, seed=0, batch=2, warmup=1))
    texts = family_corpus(full, count=4, seed=0)
    made = distill(full, texts, settings, folder=tmp_path / "work")
    made.save(tmp_path / "runs" / "relatives" / "mine")
    model = pb.load("mine")
    assert model.name == "mine"
    assert model.provenance == made.provenance
    assert pb.gate(model, pb.pattern("take-away"), prompts=8)


def test_a_run_under_the_same_name_with_other_settings_is_refused(tmp_path):
    distill(derived(), TEXTS, SETTINGS, folder=tmp_path)
    other = replace(SETTINGS, labels=DistillationTargets("hard"))
    other = replace(other, training=replace(TRAINING, learning_rate=0.01))
    with pytest.raises(ModelError, match=r"labels\.kind is 'soft' there and 'hard' here.*rate is"):
        distill(derived(), TEXTS, other, folder=tmp_path)
    with pytest.raises(ModelError, match="the student differs, the teacher differs"):
        distill(derived(seed=3), TEXTS, SETTINGS, folder=tmp_path)
    with pytest.raises(ModelError, match="texts differ"):
        distill(derived(), TEXTS[1:], SETTINGS, folder=tmp_path)
