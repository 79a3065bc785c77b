"""Every measurement on another device: no tensor of the CPU mixes with those of the model.

On a machine without an accelerator the device is `second_device`, which refuses what CUDA refuses.
It does not show what kernels of an accelerator compute, how much memory they take, or what the
trainer of transformers does there. Tests marked `gpu` run all on a real one where there is one.
"""

import pytest
import torch
import typer
from second_device import SecondTensor, second_device
from typer.testing import CliRunner

from probes.circuits.edges.edge_attribution import EAP, EAPIG, edge_attribution
from probes.circuits.edges.head_effects import head_effects
from probes.circuits.edges.path_patching import path_patching
from probes.circuits.task import Task
from probes.cli.app import app
from probes.comparison.representations.tokens import TokenSimilaritySettings, token_similarity
from probes.interventions.attribution_patching import attribution_patching
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.joint_patching import joint_effects
from probes.interventions.role_paths.patching import contrast_effects
from probes.interventions.screened_patching import screened_patching
from probes.interventions.subspaces.das import DASSettings, das
from probes.interventions.subspaces.das_search import interchange_objective
from probes.interventions.sweep import activation_patching
from probes.models.model import load, random_init
from probes.models.site import Site
from probes.observe.activations import capture
from probes.observe.behavior import evaluate_behavior
from probes.observe.divergence import answer_as_reference, answer_as_relative
from probes.observe.logit_lens import logit_lens
from probes.observe.role_states import capture_role_states
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import sample_pairs, sample_readable_questions, tokenize_pairs

PATTERN = pattern("take-away")
FOX = "If I have two foxes and I take away one, how many foxes do I have?"
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


def questions(model, count=6):
    sampled = sample_readable_questions(PATTERN, count, tokenizers=(model.tokenizer,), seed=1)
    return tokenize(model, sampled)


def pairs(model, contrast="operation"):
    sampled = sample_pairs(PATTERN, contrast, 6, tokenizers=[model.tokenizer], seed=3)
    return tokenize_pairs(model.tokenizer, sampled)


def task(model):
    return Task.from_pairs(pairs(model), skip_unequal=True)


def interchange_runs(model):
    sampled = sample_interchange_pairs(PATTERN, 16, tokenizers=(model.tokenizer,), seed=0)
    return run_interchange_pairs(model, sampled)


def exchanged(model):
    runs = interchange_runs(model)
    return interchange_intervention(runs, [Site(2, "resid", "op"), Site(1, 0, "x")]).logits[0]


def fitted_direction(model):
    site = Site(2, "resid", "op")
    objective = interchange_objective(interchange_runs(model), site, "operation")
    return das(objective, site, dims=1, settings=DASSettings(steps=3)).basis


def similarity(model):
    texts = [question.text for question in questions(model, 8).questions]
    settings = TokenSimilaritySettings(blocks=2, permutations=1)
    return token_similarity(model, model, texts, settings=settings).matrix


def logits(model):
    batch = questions(model)
    return model.logits(batch.ids.to(model.device), batch.mask.to(model.device))


def divergence(model):
    reference = answer_as_reference(model, PATTERN, count=5, seed=1)
    return answer_as_relative(reference, random_init(model, seed=1)).text_kl


MEASUREMENTS = {
    "logits": logits,
    "residual stream": lambda model: capture(model, questions(model), ("resid",))["resid"],
    "attention": lambda model: capture(model, questions(model), ("attention",))["attention"],
    "states at roles": lambda model: capture_role_states(model, questions(model).questions).states,
    "logit lens": lambda model: logit_lens(model, questions(model)).per_prompt,
    "answers": lambda model: evaluate_behavior(model, questions(model)).logit_diff,
    "divergence": divergence,
    "activation patching": lambda model: activation_patching(model, pairs(model)).per_prompt,
    "attribution patching": lambda model: attribution_patching(model, pairs(model)).per_prompt,
    "screened patching": lambda model: screened_patching(model, pairs(model)).per_prompt,
    "joint patching": lambda model: joint_effects(
        model, {"operation": pairs(model)}, [("L0.H0", "L1.H2")], ("op", "x")
    )["operation"],
    "role paths": lambda model: contrast_effects(model, pairs(model, "x")),
    "EAP": lambda model: edge_attribution(model, task(model), method=EAP()).per_prompt,
    "EAP-IG by roles": lambda model: (
        edge_attribution(model, task(model), method=EAPIG(2), roles=True).per_prompt
    ),
    "effects of heads": lambda model: head_effects(model, task(model))[0],
    "path patching": lambda model: path_patching(
        model, task(model), ("L0.H1", "L1.H2.v", "logits")
    ),
    "interchange": exchanged,
    "DAS": fitted_direction,
    "token similarity": similarity,
    "a sampled continuation": lambda model: model.tokenizer.encode(
        model.generate(FOX, max_new_tokens=5, temperature=1.0, seed=3)
    ),
}


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
def test_a_command_on_another_device_mixes_no_devices(name, tmp_path, monkeypatch):
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
