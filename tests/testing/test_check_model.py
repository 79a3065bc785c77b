"""The contract suite: right models pass, planted faults are found, and refusals have a reason."""

import pytest
import torch
from typer.testing import CliRunner

from probes.cli.app import app
from probes.errors import SiteError
from probes.models.model import wrap
from probes.result import Result, load_result
from probes.testing.contract.check_model import check_hf_model, check_model, check_named_model
from probes.testing.contract.tiny_architectures import causal_architectures, tiny_architecture
from probes.testing.tiny_models import KINDS, tiny, tiny_hf

TRACED = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "phi3", "opt")
# Norms behind attention and MLP.
POST_NORMS = ("gemma2", "gemma3_text", "olmo2")


@pytest.mark.parametrize("kind", KINDS)
def test_right_models_pass_every_check_and_without_a_tokenizer_roles_are_refused(kind):
    result = check_hf_model(tiny_hf(kind, 0), name=kind)
    states = {one.check: one.state for one in result.outcomes}
    assert states.pop("roles") == "refused"
    assert set(states.values()) == {"pass"}, result.summary()


def test_a_shipped_model_passes_every_check():
    result = check_named_model("distilled")
    assert {one.state for one in result.outcomes} == {"pass"}, result.summary()
    assert "14 of 14 checks pass" in result.summary()[0]
    assert isinstance(result, Result)
    assert result.table().state.eq("pass").all()


def test_other_weights_than_the_references_fail():
    result = check_model(tiny("llama", 0), tiny_hf("llama", 1))
    assert [one.check for one in result.failed] == ["logits"]


def test_noise_in_a_forward_pass_fails():
    model = tiny("llama", 0)
    handle = model.bridge.blocks[1].register_forward_hook(
        lambda _module, _inputs, out: (
            (out[0] if isinstance(out, tuple) else out) + torch.randn(()) * 0.1
        )
    )
    try:
        states = {one.check: one.state for one in check_model(model).outcomes}
    finally:
        handle.remove()
    assert {states[name] for name in ("deterministic", "identity edit")} == {"fail"}


def test_a_crash_inside_a_check_is_a_failed_check(monkeypatch):
    model = tiny("gpt2", 0)
    monkeypatch.setattr("probes.testing.contract.model_checks.check_attention", lambda _: 1 / 0)
    result = check_model(model)
    assert [one.check for one in result.failed] == ["attention"]
    assert "ZeroDivisionError" in result.failed[0].detail
    with pytest.raises(SiteError, match="no check 'cat'"):
        result.state("cat")


def test_the_model_is_as_it_was_after_its_checks():
    hf_model = tiny_hf("neox", 0)
    model = wrap(hf_model, name="neox")
    before = [weight.clone() for weight in model.bridge.parameters()]
    dice = torch.get_rng_state()
    check_model(model)
    assert all(map(torch.equal, before, model.bridge.parameters()))
    assert torch.equal(torch.get_rng_state(), dice)


def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert done.exit_code == 4
    assert "refused" in done.stdout


def test_the_command_ends_with_code_five_where_a_check_fails(monkeypatch):
    monkeypatch.setattr(
        "probes.testing.contract.check_model.check_named_model",
        lambda *_, **__: check_model(tiny("llama", 0), tiny_hf("llama", 1)),
    )
    done = CliRunner().invoke(app, ["check", "llama"])
    assert done.exit_code == 5
    assert "1 fail" in done.stdout


@pytest.mark.parametrize("count", [1, 2])
def test_the_results_of_all_models_are_saved_and_shown_again(count, tmp_path):
    numbers, page = tmp_path / "check.json", tmp_path / "check.html"
    for n in range(count):
        (tmp_path / f"model-{n}").mkdir()
        (tmp_path / f"model-{n}" / "config.json").write_text("{}")
    folders = [str(tmp_path / f"model-{n}") for n in range(count)]
    done = CliRunner().invoke(app, ["check", *folders, "--json", str(numbers)])
    assert done.exit_code == 4
    result = load_result(numbers)
    models = [one.model for one in getattr(result, "checks", (result,))]
    assert models == folders
    assert len(result.table()) == count
    shown = CliRunner().invoke(app, ["show", str(numbers)])
    assert shown.exit_code == 0, shown.output
    assert all(f"{name} (unknown): 0 of 1 checks pass" in shown.stdout for name in folders)
    assert all(name in page.read_text(encoding="utf-8") for name in folders)


@pytest.mark.slow
@pytest.mark.parametrize("kind", (*TRACED, *POST_NORMS))
def test_the_architectures_that_people_have_pass_every_check(kind):
    result = check_hf_model(tiny_architecture(kind), name=kind)
    states = {one.check: one.state for one in result.outcomes}
    assert states.pop("roles") == "refused"  # Random models have no tokenizer.
    assert set(states.values()) == {"pass"}, result.summary()


@pytest.mark.slow
def test_every_causal_architecture_is_right_or_refused_with_a_reason():
    failed = {}
    for kind in causal_architectures():
        try:
            hf_model = tiny_architecture(kind)
        except Exception:
            continue
        result = check_hf_model(hf_model, name=kind)
        if result.failed:
            failed[kind] = result.summary()
    assert not failed
