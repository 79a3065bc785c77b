"""Training: it goes on where it stopped, keeps zeros at zero, and teaches what it is told."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from probes.compression.distillation.targets import DistillationTargets
from probes.compression.distillation.trainer import (
    TrainingConfig,
    TrainingText,
    fit,
    last_checkpoint,
)
from probes.errors import ModelError
from probes.testing.tiny_models import tiny_hf

ROWS = [
    TrainingText(tuple((7 * k + 3 * j) % 50 + 3 for j in range(4 + k % 5)), k % 2)
    for k in range(64)
]


def taught(folder, *, steps=8, seed=0, start=0, **how):
    hf_model = tiny_hf("llama", seed=start)
    settings = TrainingConfig(steps=steps, seed=seed, batch=4, warmup=2, save_every=3)
    return fit(hf_model, ROWS, settings, folder=folder, pad_token=0, **how)


def weights(hf_model):
    return torch.cat([weight.detach().flatten() for weight in hf_model.parameters()])


class Stop(Exception):
    """A run is stopped from outside."""


def stop_at(number):
    def watch(step, hf_model):
        if step == number:
            raise Stop

    return watch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return weights(taught(tmp_path_factory.mktemp("whole")))


def test_one_seed_gives_the_same_weights_and_another_does_not(whole, tmp_path):
    assert torch.equal(weights(taught(tmp_path / "again")), whole)
    assert not torch.equal(weights(taught(tmp_path / "other", seed=1)), whole)


def test_a_stopped_run_goes_on_from_its_last_whole_checkpoint_to_the_same_end(whole, tmp_path):
    with pytest.raises(Stop):
        taught(tmp_path, callback=stop_at(5))
    assert last_checkpoint(tmp_path).endswith("checkpoint-3")
    seen = []
    again = taught(tmp_path, callback=lambda step, _: seen.append(step))
    assert min(seen) == 4
    assert torch.equal(weights(again), whole)


def test_labels_that_are_drawn_are_drawn_alike_after_a_stop(tmp_path):
    how = {"labels": DistillationTargets("sampled", k=2), "teacher": tiny_hf("llama", seed=5)}
    straight = weights(taught(tmp_path / "straight", **how))
    with pytest.raises(Stop):
        taught(tmp_path / "stopped", callback=stop_at(5), **how)
    assert torch.equal(weights(taught(tmp_path / "stopped", **how)), straight)


def test_a_finished_run_is_not_run_again(whole, tmp_path):
    taught(tmp_path)
    seen = []
    again = taught(tmp_path, callback=lambda step, _: seen.append(step))
    assert torch.equal(weights(again), whole)
    assert seen == []


def test_half_a_checkpoint_is_none(tmp_path):
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"global_st')
    assert last_checkpoint(tmp_path) is None


def test_a_disk_that_is_full_leaves_the_checkpoint_before_it_whole(tmp_path, monkeypatch):
    from transformers import Trainer

    real, calls = Trainer._save_checkpoint, []

    def full(self, *args):
        calls.append(self.state.global_step)
        if len(calls) == 2:
            (Path(self.args.output_dir) / "checkpoint-6").mkdir(parents=True)
            raise OSError(28, "No space left on device")
        return real(self, *args)

    monkeypatch.setattr(Trainer, "_save_checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        taught(tmp_path)
    assert last_checkpoint(tmp_path).endswith("checkpoint-3")
    assert not (tmp_path / "checkpoint-6").exists()


@pytest.mark.slow
def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(whole, tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, 'tests/compression')\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_trainer import taught\n"
        "def watch(step, _):\n"
        "    if step == 5:\n"
        "        print('here', flush=True); time.sleep(60)\n"
        f"taught(Path({str(tmp_path)!r}), callback=watch)\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE)
    while b"here" not in run.stdout.readline():
        assert run.poll() is None
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert last_checkpoint(tmp_path).endswith("checkpoint-3")
    assert torch.equal(weights(taught(tmp_path)), whole)


def test_what_is_masked_stays_exactly_zero(tmp_path):
    hf_model = tiny_hf("llama", seed=0)
    name = "model.layers.0.mlp.up_proj.weight"
    mask = torch.rand(hf_model.get_parameter(name).shape) > 0.5
    with torch.no_grad():
        hf_model.get_parameter(name).mul_(mask)
    before = hf_model.get_parameter(name).detach().clone()
    settings = TrainingConfig(steps=3, seed=0, batch=4, warmup=1)
    fit(hf_model, ROWS, settings, folder=tmp_path, pad_token=0, masks={name: mask})
    after = hf_model.get_parameter(name).detach()
    assert (after[~mask] == 0).all()
    assert not torch.equal(after[mask], before[mask])


def test_a_run_may_end_before_its_schedule_does_and_be_like_its_beginning(tmp_path):
    kept = {}

    def watch(step, hf_model):
        if step == 4:
            kept["weights"] = weights(hf_model).clone()

    taught(tmp_path / "whole", callback=watch)
    hf_model = tiny_hf("llama", seed=0)
    settings = TrainingConfig(steps=8, seed=0, batch=4, warmup=2, save_every=3, stop_after=4)
    fit(hf_model, ROWS, settings, folder=tmp_path / "part", pad_token=0)
    assert torch.equal(weights(hf_model), kept["weights"])


def test_a_student_of_soft_labels_comes_nearer_to_its_teacher(tmp_path):
    teacher = tiny_hf("llama", seed=5)
    ids = torch.tensor([ROWS[0].ids])

    def distance(hf_model):
        with torch.no_grad():
            said, heard = (m(ids).logits.log_softmax(-1) for m in (teacher, hf_model))
        return float((said.exp() * (said - heard)).sum(-1).mean())

    before = distance(tiny_hf("llama", seed=0).eval())
    after = distance(
        taught(tmp_path, steps=60, labels=DistillationTargets("soft"), teacher=teacher)
    )
    assert after < 0.7 * before


def test_the_random_state_of_the_process_is_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    taught(tmp_path, steps=2)
    assert torch.equal(torch.rand(1), expected)


def test_a_teacher_that_is_missing_or_speaks_otherwise_is_refused(tmp_path):
    with pytest.raises(ModelError, match="there is none"):
        taught(tmp_path, labels=DistillationTargets("soft"))
    other = tiny_hf("gpt2", seed=0)
    other.config.vocab_size += 1
    with pytest.raises(ModelError, match="one vocabulary"):
        taught(tmp_path, labels=DistillationTargets("soft"), teacher=other)
    assert not any(tmp_path.iterdir())
