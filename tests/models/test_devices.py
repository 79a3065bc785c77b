"""Every measurement on another device: no tensor of the CPU mixes with those of the model.

On a machine without an accelerator the device is `second_device`, which refuses what CUDA refuses.
It does not show what kernels of an accelerator compute, how much memory they take, or what the
trainer of transformers does there. Tests marked `gpu` run all on a real one where there is one.
"""

import numpy as np
import pytest
import torch
import typer
from measurements import FOX, MEASUREMENTS, questions
from second_device import SecondTensor, second_device
from typer.testing import CliRunner

from probes import ComparisonSettings, compare
from probes.cli.app import app
from probes.comparison.representations.tokens import TokenSimilaritySettings, token_similarity
from probes.comparison.representations.weights import weight_similarity
from probes.interventions.subspaces.das import mean_difference, principal_directions
from probes.interventions.subspaces.geometry import intrinsic_dimension, off_manifold_distance
from probes.models.model import load
from probes.observe.activations import capture

QUICK = ("--steps", 2, "--batch", 2, "--texts", "texts.txt", "--name", "new")
COMMANDS = {
    "heatmap": ("full", FOX, "--out", "h.html"),
    "fit": ("distilled", "--out", "f.html"),
    "ask": ("distilled", FOX, "--answer-only", "--out", "a.html"),
    "explain": ("full", FOX, "--beside", "distilled", "--out", "e.html"),
    "trace": ("distilled", "--prompts", 8, "--no-store", "--out", "t.html"),
    "curve": ("full", "distilled", "--bases", 16, "--prompts", 4, "--noise", 0, "--no-store"),
    "compare": (
        "full",
        "distilled",
        "--prompts",
        4,
        "--null",
        "permuted",
        "--draws",
        1,
        "--no-store",
    ),
    "claims": ("distilled", "--bases", 80, "--nulls", 1, "--no-store"),
    "make distilled": ("scratch", *QUICK),
    "make grown": ("scratch", "--layers", 3, *QUICK),
    "make ticket": ("full", "--rounds", 1, *QUICK),
}
"""Arguments of each command that takes a device."""

TRAINED = [name for name in COMMANDS if name.startswith("make")]


@pytest.fixture(scope="module")
def on_cpu():
    return load("full")


@pytest.fixture(scope="module")
def on_second():
    with second_device() as device:
        yield load("full", device=device)


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_a_measurement_on_another_device_mixes_no_devices_and_is_the_same(
    measure, on_cpu, on_second
):
    expected = torch.as_tensor(measure(on_cpu))
    with second_device():
        found = measure(on_second)
        found = found.to("cpu") if isinstance(found, SecondTensor) else torch.as_tensor(found)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_weights_and_states_of_models_on_two_devices_are_compared(swapped, on_cpu, on_second):
    settings = TokenSimilaritySettings(blocks=2, permutations=1)
    texts = [f"Tom had {number} dogs and a cat." for number in ("two", "three", "nine", "four")]

    def measure(a, b):
        return (
            token_similarity(a, b, texts, settings=settings).matrix,
            weight_similarity(a, b, permutations=1).ov,
        )

    expected = measure(on_cpu, on_cpu)
    with second_device():
        found = measure(on_second, on_cpu) if swapped else measure(on_cpu, on_second)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_weights_and_subspaces_need_no_double_precision_of_their_device(on_cpu):
    def measure(model):
        states = capture(model, questions(model, 20), ("resid",))["resid"][2, :, 3]
        labels = torch.arange(len(states), device=states.device) % 2
        basis = mean_difference(states, labels)
        return (
            weight_similarity(model, model, permutations=1).ov,
            basis.cpu(),
            principal_directions(states, 3).cpu(),
            off_manifold_distance(states, states + basis).cpu(),
            intrinsic_dimension(states).participation_ratio,
        )

    expected = measure(on_cpu)
    with second_device(has_doubles=False) as device:
        found = measure(load("full", device=device))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_models_on_two_devices_are_compared(on_second, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: None)
    settings = ComparisonSettings(prompts=4, null="permuted", draws=1)
    with second_device():
        found = compare(on_second, "distilled", "take-away", settings)
    assert "gate open" in next(iter(found.summary()))


def test_the_second_device_refuses_what_an_accelerator_refuses():
    with second_device() as device:
        here, there = torch.ones(3, 2), torch.ones(3, 2, device=device)
        for mix in (lambda: here + there, lambda: there.__setitem__(here > 0, there[0] @ here.T)):
            with pytest.raises(RuntimeError, match="Tensors of two devices"):
                mix()
        with pytest.raises(RuntimeError, match="Tensors of two devices in index"):
            _ = here[there > 0]
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert there[torch.tensor([0, 2])].device.type == device.type
        assert (there * torch.tensor(2.0)).sum().item() == 12
        assert torch.equal(there.cpu(), here)


def leaves(group, before=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield before + name, command


def test_every_command_with_a_device_is_tested_on_one():
    found = {
        name
        for name, command in leaves(typer.main.get_command(app))
        if any("--device" in option.opts for option in command.params)
    }
    assert found == set(COMMANDS)


def run(name, device, folder):
    (folder / "texts.txt").write_text("I have two foxes.\nThe cat has a hat.\n", encoding="utf-8")
    words = [*name.split(), *map(str, COMMANDS[name]), "--device", str(device)]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, f"{found.output}\n{found.exception!r}"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("heatmap", "ask") else pytest.mark.slow)
        for name in COMMANDS
        if name not in TRAINED  # The trainer of transformers chooses among real devices.
    ],
)
def test_a_command_on_another_device_mixes_no_devices_and_needs_no_doubles(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: None)
    with second_device(has_doubles=False) as device:
        run(name, device, tmp_path)


# The others take the same way on a device with double precision: see `to_double`.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["curve", "compare", "claims"])
def test_a_command_on_a_device_with_doubles_mixes_no_devices(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: None)
    with second_device() as device:
        run(name, device, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_on_an_accelerator(name, tmp_path, monkeypatch):
    if not torch.accelerator.is_available():
        pytest.skip("this machine has no accelerator")
    monkeypatch.chdir(tmp_path)
    run(name, torch.accelerator.current_accelerator(), tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_a_measurement_on_an_accelerator_is_that_of_the_cpu(measure, on_cpu):
    if not torch.accelerator.is_available():
        pytest.skip("this machine has no accelerator")
    model = load("full", device=torch.accelerator.current_accelerator())
    found = torch.as_tensor(measure(model)).to("cpu")
    expected = torch.as_tensor(measure(on_cpu))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3, equal_nan=True)
