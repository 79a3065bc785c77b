"""Training: resuming, checkpoints, masks, targets and refusals."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from probes.compression.distillation.plan import (
    TrainingConfig,
    TrainingPlan,
    TrainingText,
    last_checkpoint,
)
from probes.compression.distillation.targets import DistillationTargets
from probes.compression.distillation.trainer import fit
from probes.errors import ModelError, StoreError
from probes.testing.tiny_models import tiny_hf

TEXTS = [
    TrainingText(tuple((7 * k + 3 * j) % 50 + 3 for j in range(4 + k % 5)), k % 2)
    for k in range(64)
]
SETTINGS = TrainingConfig(steps=8, seed=0, batch=4, warmup=2, save_every=3)


def train(folder, *, settings=SETTINGS, student=0, callback=None, texts=TEXTS, **plan):
    hf_model = tiny_hf("llama", seed=student)
    return fit(hf_model, TrainingPlan(texts, settings, **plan), folder=folder, callback=callback)


def weights(hf_model):
    return torch.cat([weight.detach().flatten() for weight in hf_model.parameters()])


class Stop(Exception):
    """Interrupts a run."""


def stop_at(number):
    def callback(step, hf_model):
        if step == number:
            raise Stop

    return callback


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return weights(train(tmp_path_factory.mktemp("whole")))


def test_one_seed_gives_the_same_weights_and_another_does_not(whole, tmp_path):
    assert torch.equal(weights(train(tmp_path / "again")), whole)
    other = train(tmp_path / "other", settings=replace(SETTINGS, seed=1))
    assert not torch.equal(weights(other), whole)


def test_an_interrupted_run_continues_from_its_last_checkpoint_to_the_same_weights(whole, tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, callback=stop_at(5))
    assert last_checkpoint(tmp_path).endswith("checkpoint-3")
    steps = []
    again = train(tmp_path, callback=lambda step, _: steps.append(step))
    assert min(steps) == 4
    assert torch.equal(weights(again), whole)


def test_sampled_labels_are_the_same_after_an_interruption(tmp_path):
    plan = {"labels": DistillationTargets("sampled", k=2), "teacher": tiny_hf("llama", seed=5)}
    straight = weights(train(tmp_path / "straight", **plan))
    with pytest.raises(Stop):
        train(tmp_path / "stopped", callback=stop_at(5), **plan)
    assert torch.equal(weights(train(tmp_path / "stopped", **plan)), straight)


def test_every_step_is_reported_with_its_loss_also_after_an_interruption(whole, tmp_path):
    seen = {}
    settings, plan = SETTINGS, TrainingPlan(TEXTS, SETTINGS)
    done = fit(tiny_hf("llama", seed=0), plan, folder=tmp_path / "whole", progress=seen.__setitem__)
    assert torch.equal(weights(done), whole)
    assert list(seen) == list(range(1, 9))
    with pytest.raises(Stop):
        train(tmp_path / "part", settings=settings, callback=stop_at(5))
    again = {}
    fit(tiny_hf("llama", seed=0), plan, folder=tmp_path / "part", progress=again.__setitem__)
    assert again == {step: seen[step] for step in range(4, 9)}


def test_a_finished_run_is_not_run_again(whole, tmp_path):
    train(tmp_path)
    steps = []
    again = train(tmp_path, callback=lambda step, _: steps.append(step))
    assert torch.equal(weights(again), whole)
    assert steps == []


def test_an_incomplete_checkpoint_is_ignored(tmp_path):
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"global_st')
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3072 vs 2964"),
    ],
    ids=["python", "safetensors", "torch"],
)
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch, error):
    from transformers import Trainer

    real, calls = Trainer._save_checkpoint, []

    def full(self, *args):
        calls.append(self.state.global_step)
        if len(calls) == 2:
            (Path(self.args.output_dir) / "checkpoint-6").mkdir(parents=True)
            raise error
        return real(self, *args)

    monkeypatch.setattr(Trainer, "_save_checkpoint", full)
    with pytest.raises(StoreError, match=r"No space|unexpected pos") as told:
        train(tmp_path)
    assert str(told.value).startswith("The checkpoint-6 cannot be written in ")
    assert told.value.__cause__ is error
    assert last_checkpoint(tmp_path).endswith("checkpoint-3")
    assert not (tmp_path / "checkpoint-6").exists()
    assert not (tmp_path / ".draft").exists()


@pytest.mark.slow
def test_a_killed_process_leaves_a_checkpoint_to_continue_from(whole, tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, 'tests/compression')\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_trainer import train\n"
        "def callback(step, _):\n"
        "    if step == 5:\n"
        "        print('here', flush=True); time.sleep(60)\n"
        f"train(Path({str(tmp_path)!r}), callback=callback)\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE)
    while b"here" not in run.stdout.readline():
        assert run.poll() is None
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert last_checkpoint(tmp_path).endswith("checkpoint-3")
    assert torch.equal(weights(train(tmp_path)), whole)


def test_masked_weights_stay_exactly_zero(tmp_path):
    hf_model = tiny_hf("llama", seed=0)
    name = "model.layers.0.mlp.up_proj.weight"
    mask = torch.rand(hf_model.get_parameter(name).shape) > 0.5
    with torch.no_grad():
        hf_model.get_parameter(name).mul_(mask)
    before = hf_model.get_parameter(name).detach().clone()
    settings = TrainingConfig(steps=3, seed=0, batch=4, warmup=1)
    fit(hf_model, TrainingPlan(TEXTS, settings, masks={name: mask}), folder=tmp_path)
    after = hf_model.get_parameter(name).detach()
    assert (after[~mask] == 0).all()
    assert not torch.equal(after[mask], before[mask])


def test_a_run_stopped_early_equals_the_beginning_of_the_whole_run(tmp_path, whole):
    kept = {}

    def callback(step, hf_model):
        if step == 4:
            kept["weights"] = weights(hf_model).clone()

    train(tmp_path / "whole", callback=callback)
    part = train(tmp_path / "part", settings=replace(SETTINGS, stop_after=4))
    assert torch.equal(weights(part), kept["weights"])
    # Where to stop does not shape the weights: the same folder serves the rest of the run.
    assert torch.equal(weights(train(tmp_path / "part")), whole)


def test_soft_labels_bring_a_student_closer_to_its_teacher(tmp_path):
    teacher = tiny_hf("llama", seed=5)
    ids = torch.tensor([TEXTS[0].ids])

    def distance(hf_model):
        with torch.no_grad():
            target, student = (m(ids).logits.log_softmax(-1) for m in (teacher, hf_model))
        return float((target.exp() * (target - student)).sum(-1).mean())

    before = distance(tiny_hf("llama", seed=0).eval())
    settings, labels = replace(SETTINGS, steps=60), DistillationTargets("soft")
    after = distance(train(tmp_path, settings=settings, labels=labels, teacher=teacher))
    assert after < 0.7 * before


def test_the_random_state_of_the_process_is_restored(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(tmp_path, settings=replace(SETTINGS, steps=2))
    assert torch.equal(torch.rand(1), expected)


def test_a_missing_teacher_or_one_with_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(ModelError, match="there is none"):
        train(tmp_path, labels=DistillationTargets("soft"))
    other = tiny_hf("gpt2", seed=0)
    other.config.vocab_size += 1
    with pytest.raises(ModelError, match="one vocabulary"):
        train(tmp_path, labels=DistillationTargets("soft"), teacher=other)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "0 steps of 4 texts"),
        ({"batch": 0}, "8 steps of 0 texts"),
        ({"save_every": 0}, "every 0 steps"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"learning_rate": -1.0}, "learning rate -1"),
        ({"weight_decay": float("inf")}, "weight decay inf"),
        ({"warmup": -1}, "warmup -1"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, r"seed 4294967296 is impossible: .* a seed below 2\*\*32"),
        ({"stop_after": 9}, r"cannot stop after 9: give 0 \(all\) to 8"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ModelError, match=message):
        replace(SETTINGS, **settings)


def test_the_same_run_in_the_same_folder_after_other_checkpoint_settings_continues(whole, tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, callback=stop_at(5))
    again = train(tmp_path, settings=replace(SETTINGS, save_every=2))
    assert torch.equal(weights(again), whole)


def test_a_second_run_with_other_settings_does_not_return_the_first_one(tmp_path):
    first = weights(train(tmp_path))
    with pytest.raises(ModelError, match=r"learning_rate is 0\.001 there and 0\.01 here"):
        train(tmp_path, settings=replace(SETTINGS, learning_rate=0.01))
    assert torch.equal(weights(train(tmp_path)), first)


def test_a_run_that_stops_before_its_last_checkpoint_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(ModelError, match="at step 8, after the last step 4"):
        train(tmp_path, settings=replace(SETTINGS, stop_after=4))
