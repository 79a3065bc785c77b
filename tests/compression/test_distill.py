"""Students and tickets of any model: whom they start from, what they read, what is refused."""

import pytest
import torch

import probes as pb
from probes.compression.derived_model import DerivedModel, load_parent, zero_fraction
from probes.compression.distillation.distill import (
    build_student,
    continue_training,
    distill,
    evenly_spaced_layers,
)
from probes.compression.distillation.layers import layers_name, take_layers
from probes.compression.distillation.targets import DistillationTargets
from probes.compression.distillation.texts import generate_continuations, read_text_file
from probes.compression.distillation.trainer import TrainingConfig, TrainingText
from probes.compression.pruning.lottery_ticket import (
    Ticket,
    iterative_pruning,
    lottery_ticket,
    train_control,
)
from probes.compression.pruning.masks import density
from probes.errors import ModelError
from probes.experiments.family.train import family_corpus
from probes.models.provenance import Provenance, StorageCost
from probes.testing.tiny_models import KINDS, tiny_hf

ROWS = [TrainingText(tuple((7 * k + 3 * j) % 50 + 3 for j in range(4 + k % 5))) for k in range(64)]
DIALS = TrainingConfig(steps=3, seed=0, batch=4, warmup=1, save_every=2)


def relative(kind="llama", seed=0, name="tiny"):
    hf_model = tiny_hf(kind, seed=seed)
    return DerivedModel(
        name, hf_model.eval(), None, Provenance("trained", "", StorageCost(0.0, 0.0, 0.0))
    )


@pytest.fixture(scope="module")
def full():
    return load_parent("full")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_all_layers_in_order_is_the_model(kind):
    hf_model = tiny_hf(kind, seed=0).eval()
    ids = torch.arange(3, 9)[None]
    taken = take_layers(hf_model, range(hf_model.config.num_hidden_layers))
    assert torch.equal(taken(ids).logits, hf_model(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_has_the_layers_that_it_took(kind):
    hf_model = tiny_hf(kind, seed=0).eval()
    taken, stem = take_layers(hf_model, [1]), layers_name(hf_model)
    assert taken.config.num_hidden_layers == 1
    ours = dict(taken.named_parameters())
    for name, weight in hf_model.named_parameters():
        if name.startswith(f"{stem}.1."):
            assert torch.equal(ours[name.replace(f"{stem}.1.", f"{stem}.0.")], weight)


def test_layers_are_taken_from_the_first_on_and_evenly(full):
    assert evenly_spaced_layers(full, 2) == [0, 2]
    assert evenly_spaced_layers(full, 4) == [0, 1, 2, 3]
    assert evenly_spaced_layers(full, 3) == [0, 1, 3]
    with pytest.raises(ModelError, match="1 to 4"):
        evenly_spaced_layers(full, 5)


def test_a_fresh_student_keeps_the_size_of_heads_and_is_the_same_for_a_seed(full):
    narrow = build_student(full, "fresh", layers=1, width=64, seed=3)
    assert (narrow.config.num_attention_heads, narrow.config.hidden_size) == (2, 64)
    again = build_student(full, "fresh", layers=1, width=64, seed=3)
    assert all(map(torch.equal, narrow.parameters(), again.parameters()))
    with pytest.raises(ModelError, match="whole number of heads"):
        build_student(full, "fresh", layers=1, width=50)
    with pytest.raises(ModelError, match="start it fresh"):
        build_student(full, "layers", layers=2, width=64)


def test_distilling_leaves_the_teacher_as_it_was_and_says_what_it_did(tmp_path):
    teacher = relative()
    before = [weight.clone() for weight in teacher.hf_model.parameters()]
    made = distill(teacher, folder=tmp_path, layers=1, texts=ROWS, settings=DIALS)
    assert all(map(torch.equal, before, teacher.hf_model.parameters()))
    assert made.provenance.kind == "distilled"
    assert made.provenance.parent == "tiny"
    assert made.provenance.settings["labels"] == "soft"
    assert made.provenance.storage.total == 16 * sum(w.numel() for w in made.hf_model.parameters())


def test_two_runs_of_one_seed_give_the_same_files(tmp_path):
    files = []
    for number in (1, 2):
        work = tmp_path / f"work-{number}"
        made = distill(relative(), folder=work, layers=1, texts=ROWS, settings=DIALS)
        place = made.save(tmp_path / str(number) / "student")
        files.append({path.name: path.read_bytes() for path in place.iterdir()})
    assert files[0] == files[1]


def test_a_student_may_go_on_from_another_model_of_the_same_words(tmp_path, full):
    student = build_student(full, "full-b", layers=2)
    assert student.config.num_hidden_layers == 4
    relative(name="other").save(tmp_path / "other")
    with pytest.raises(ModelError, match="its teacher's vocabulary"):
        build_student(full, str(tmp_path / "other"), layers=2)


def test_texts_are_read_line_by_line(full, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("Tom has 3 foxes.\n\nHe gets 2 more.\n", encoding="utf-8")
    rows = read_text_file(full, path)
    assert len(rows) == 2
    assert full.tokenizer.decode(rows[0].ids, skip_special_tokens=True) == "Tom has 3 foxes."
    with pytest.raises(ModelError, match="no file"):
        read_text_file(full, tmp_path / "none.txt")
    path.write_text("\n \n")
    with pytest.raises(ModelError, match="no text"):
        read_text_file(full, path)
    with pytest.raises(ModelError, match="no tokenizer"):
        read_text_file(relative(), path)


def test_a_teacher_goes_on_with_what_it_is_given(full):
    rows = family_corpus(full, count=12, seed=0)
    told = generate_continuations(full, rows, seed=0)
    assert told == generate_continuations(full, rows, seed=0)
    assert told != generate_continuations(full, rows, seed=1)
    for row, text in zip(rows, told, strict=True):
        head = row.ids[: round(0.5 * len(row.ids))]
        assert text.ids[: len(head)] == head
        assert len(text.ids) > len(head)
        assert text.ids.count(full.tokenizer.eos_token_id) <= 1


def test_what_a_teacher_writes_does_not_depend_on_the_texts_beside_it(full):
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
    from probes.compression.distillation.trainer import fit

    def train(hf_model, masks, name):
        return fit(hf_model, ROWS, DIALS, folder=folder / name, pad_token=0, masks=masks)

    return train


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tickets")
    early = relative(name="early")
    trained = continue_training(early, DIALS, folder=folder / "full", texts=ROWS)
    train = tiny_trainer(folder)
    return early, trained, train, list(iterative_pruning(early, trained, train, rounds=2))


def test_each_round_keeps_half_of_what_was_left_and_nothing_outside(found):
    _, _, _, (first, second) = found
    assert density(first.masks) == pytest.approx(0.5, abs=1e-3)
    assert density(second.masks) == pytest.approx(0.25, abs=1e-3)
    for name, mask in second.masks.items():
        assert not (mask & ~first.masks[name]).any()
    for ticket in (first, second):
        for name, mask in ticket.masks.items():
            assert (ticket.model.hf_model.get_parameter(name)[~mask] == 0).all()
        assert zero_fraction(ticket.model.hf_model) >= 1 - density(ticket.masks) - 1e-6


def test_a_ticket_goes_back_to_early_weights_before_it_is_trained(found):
    early, trained, _, _ = found
    seen = {}

    def look(hf_model, masks, name):
        seen["start"] = {n: w.detach().clone() for n, w in hf_model.named_parameters()}
        return hf_model

    (ticket,) = iterative_pruning(early, trained, look, rounds=1)
    for name, weight in early.hf_model.named_parameters():
        mask = ticket.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(seen["start"][name], weight * mask)


def test_controls_keep_as_many_weights_in_every_matrix(found):
    early, trained, train, (first, _) = found
    random = train_control(first, early, trained, train, "random", seed=0)
    other = train_control(first, relative(seed=9), trained, train, "reinitialized", seed=0)
    for name, mask in first.masks.items():
        assert random.masks[name].sum() == mask.sum()
        assert torch.equal(other.masks[name], mask)
    assert any(not torch.equal(random.masks[n], m) for n, m in first.masks.items())


def test_a_ticket_counts_what_is_kept_and_where_it_stands(found):
    _, trained, _, (first, _) = found
    assert isinstance(first, Ticket)
    bits = first.model.provenance.storage
    every = sum(mask.numel() for mask in first.masks.values())
    assert bits.weights == pytest.approx(16 * every / 2, rel=1e-3)
    assert 0 < bits.mask_index <= every
    assert first.model.provenance.parent == trained.name


def test_a_ticket_needs_early_weights_of_the_same_model(found):
    _, trained, train, _ = found
    with pytest.raises(ModelError, match="nothing to go back to"):
        next(iterative_pruning(trained, trained, train))
    with pytest.raises(ModelError, match="no early weights of"):
        next(iterative_pruning(relative("gpt2"), trained, train))


def test_the_public_function_returns_the_ticket_of_the_last_round(found, tmp_path):
    early, trained, _, rounds = found
    made = lottery_ticket(
        early=early, model=trained, settings=DIALS, texts=ROWS, rounds=2, folder=tmp_path / "t"
    )
    assert made.name == rounds[-1].model.name
    assert all(map(torch.equal, made.hf_model.parameters(), rounds[-1].model.hf_model.parameters()))
    assert made.provenance.settings["rounds"] == 2


def test_a_relative_trained_on_is_another_and_says_how(found, tmp_path):
    early, _, _, _ = found
    before = [weight.clone() for weight in early.hf_model.parameters()]
    more = continue_training(early, DIALS, folder=tmp_path, texts=ROWS)
    assert all(map(torch.equal, before, early.hf_model.parameters()))
    assert not all(map(torch.equal, before, more.hf_model.parameters()))
    assert more.provenance.settings["steps"] == 3


def test_hard_labels_need_no_teacher_in_memory(tmp_path):
    made = distill(
        relative(),
        folder=tmp_path,
        layers=1,
        texts=ROWS,
        settings=DIALS,
        labels=DistillationTargets("hard"),
    )
    assert made.provenance.settings["labels"] == "hard"


def test_a_student_loads_by_name_from_where_it_was_made(full, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = TrainingConfig(steps=2, seed=0, batch=2, warmup=1)
    texts = family_corpus(full, count=4, seed=0)
    made = distill(full, texts=texts, folder=tmp_path / "work", settings=settings)
    made.save(tmp_path / "runs" / "relatives" / "mine")
    model = pb.load("mine")
    assert model.name == "mine"
    assert model.provenance == made.provenance
    assert pb.gate(model, pb.pattern("take-away"), prompts=8)
