"""Where memory runs out, prompts run again in smaller batches, with the same result."""

import warnings
from contextlib import contextmanager

import pytest
import torch

from probes.circuits.edges.edge_attribution import EAP, edge_attribution
from probes.circuits.edges.head_effects import head_effects
from probes.circuits.edges.path_patching import edge_patching, run_circuits
from probes.circuits.runs.patched_pass import PatchedPass
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task
from probes.errors import BatchError, ModelError, OutOfMemoryError
from probes.interventions.activation_patching import restart_problem
from probes.interventions.attribution_patching import attribution_patching
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.joint_patching import joint_effects
from probes.interventions.role_paths.graph import RolePath, path_roles
from probes.interventions.role_paths.patching import contrast_effects, patch_role_graphs
from probes.interventions.role_paths.runs import _Copies
from probes.interventions.subspaces.das import DASSettings, das, random_subspace
from probes.interventions.subspaces.das_search import interchange_objective
from probes.interventions.sweep import activation_patching
from probes.models.files.memory import free_memory, is_out_of_memory
from probes.models.micro_batches import (
    MicroBatches,
    SmallerBatchesWarning,
    fitting_prompts,
    run_micro_batches,
)
from probes.models.model import load
from probes.models.site import Site
from probes.observe.activations import record
from probes.observe.behavior import evaluate_behavior
from probes.observe.divergence import answer_as_reference, answer_as_relative
from probes.observe.logit_lens import logit_lens
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import sample_pairs, sample_readable_questions, tokenize_pairs
from probes.testing.tiny_models import hook_count, tiny

WIDTH = 30  # Tokens of the longest prompts, about.
ERRORS = {
    "accelerator": torch.OutOfMemoryError("out of memory. Tried to allocate 9.00 GiB"),
    "CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
    "host": MemoryError(),
}


def run_out(error=ERRORS["accelerator"]):
    raise type(error)(*error.args)  # A new one: an error that is kept holds its traceback.


@contextmanager
def memory_for(model, tokens, error=ERRORS["accelerator"]):
    """Let passes of more tokens run out of memory; yields the prompts of all passes."""
    sizes = []

    def fail(value):
        sizes.append(len(value))
        if len(value) * value.shape[1] > tokens:
            run_out(error)

    with model.hooked({"blocks.1.hook_resid_pre": fail}):
        yield sizes


@pytest.fixture
def fresh(own):
    model = tiny("llama-gqa", vocab_size=len(own), max_position_embeddings=96)
    object.__setattr__(model, "tokenizer", own)
    restart_problem(model)
    return model


@pytest.fixture(scope="session")
def some_pairs(own):
    chosen = pattern("take-away")
    return tokenize_pairs(own, sample_pairs(chosen, "operation", 8, tokenizers=[own], seed=3))


@pytest.fixture(scope="session")
def questions(own):
    return tokenize(
        own, sample_readable_questions(pattern("take-away"), 9, tokenizers=(own,), seed=1)
    )


def circuit_masks(model, pairs):
    draw = torch.Generator().manual_seed(0)
    return torch.rand(3, len(task(pairs).computation_graph(model)), generator=draw) < 0.5


def kl_to_another(model, _batch, _pairs):
    other = tiny("llama", 5, vocab_size=model.shape.d_vocab, max_position_embeddings=96)
    object.__setattr__(other, "tokenizer", model.tokenizer)
    reference = answer_as_reference(other, pattern("take-away"), count=9, seed=1)
    return torch.from_numpy(answer_as_relative(reference, model).text_kl)


def task(pairs):
    return Task.from_pairs(pairs, skip_unequal=True)


def interchange_runs(model):
    sampled = sample_interchange_pairs(
        pattern("take-away"), 8, tokenizers=(model.tokenizer,), seed=0
    )
    return run_interchange_pairs(model, sampled)


def patched_interchange(model, *_):
    runs = interchange_runs(model)
    return interchange_intervention(runs, [Site(1, "resid", "op"), Site(0, 0, "x")]).logits[0]


def patched_role_paths(model, _, pairs):
    graphs = [RolePath(("op", role)).graph for role in path_roles(pairs.clean) if role != "op"]
    return patch_role_graphs(model, pairs, graphs)


MEASUREMENTS = {
    "effects of heads": lambda model, _, pairs: head_effects(model, task(pairs))[0],
    "circuits": lambda model, _, pairs: run_circuits(
        run_references(model, task(pairs)), circuit_masks(model, pairs)
    ),
    "means of roles": lambda model, _, pairs: run_circuits(
        run_references(model, task(pairs), ablation="mean"), circuit_masks(model, pairs)
    ),
    "edge patching": lambda model, _, pairs: edge_patching(model, task(pairs)),
    "interchange": patched_interchange,
    "role paths": patched_role_paths,
    "effects of contrasts": lambda model, _, pairs: contrast_effects(model, pairs),
    "logit lens": lambda model, batch, _: logit_lens(model, batch).per_prompt,
    "capturing": lambda model, batch, _: record(model, batch, ("resid",))["resid"][:, batch.mask],
    "reading answers": lambda model, batch, _: evaluate_behavior(model, batch).logit_diff,
    "reading texts": kl_to_another,
    "recording pairs": lambda model, _, pairs: activation_patching(model, pairs).per_prompt,
    "joint patching": lambda model, _, pairs: torch.from_numpy(
        joint_effects(model, {"operation": pairs}, [("L0.H0", "L1.H2")], ("op", "x"))["operation"]
    ),
    "attribution patching": lambda model, _, pairs: attribution_patching(model, pairs).per_prompt,
    "edge attribution": lambda model, _, pairs: (
        edge_attribution(model, Task.from_pairs(pairs, skip_unequal=True), method=EAP()).per_prompt
    ),
}


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_a_measurement_whose_memory_runs_out_gives_the_same_in_smaller_batches(
    measure, fresh, questions, some_pairs
):
    expected = measure(fresh, questions, some_pairs)
    hooks = hook_count(fresh)
    with memory_for(fresh, 2 * WIDTH) as sizes, pytest.warns(SmallerBatchesWarning) as told:
        found = measure(fresh, questions, some_pairs)
    assert max(sizes) > 2
    assert hook_count(fresh) == hooks
    assert fresh.batch_tokens
    assert "Memory ran out in" in str(told[0].message)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_batch_that_runs_out_of_memory_is_halved_and_run_again(error, fresh, questions):
    with (
        memory_for(fresh, 3 * questions.ids.shape[1], error) as sizes,
        pytest.warns(SmallerBatchesWarning) as told,
    ):
        evaluate_behavior(fresh, questions)
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    assert [str(one.message) for one in told] == [
        "Memory ran out in reading answers of tiny llama-gqa on cpu with 9 prompts in a pass: 2 "
        "run in a pass from here on, which takes longer and changes results by no more than "
        "rounding"
    ]


def test_a_later_measurement_starts_with_the_size_that_fitted(fresh, questions):
    with memory_for(fresh, 3 * questions.ids.shape[1]) as sizes:
        with pytest.warns(SmallerBatchesWarning):
            evaluate_behavior(fresh, questions)
        sizes.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error", SmallerBatchesWarning)
            evaluate_behavior(fresh, questions)
    assert sizes == [2, 2, 2, 2, 1]
    assert fresh.batch_tokens == {"reading answers": 2 * questions.ids.shape[1]}


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_a_single_prompt_that_does_not_fit_is_one_line_of_what_to_do(
    measure, fresh, questions, some_pairs
):
    wanted = r"Memory ran out in .* of tiny llama.* on cpu with a single prompt of \d+ tokens \(out"
    with memory_for(fresh, 0), pytest.raises(OutOfMemoryError, match=wanted) as found:
        measure(fresh, questions, some_pairs)
    assert isinstance(found.value, BatchError)
    assert "give fewer prompts or shorter ones" in str(found.value)
    assert 'load the model with dtype="bfloat16", or use another device' in str(found.value)
    assert "\n" not in str(found.value)
    assert found.value.__context__ is None  # Its traceback would hold the tensors of the pass.


def test_pairs_run_apart_where_one_patched_run_does_not_fit_beside_all_cached_runs(
    fresh, some_pairs, monkeypatch
):
    expected = activation_patching(fresh, some_pairs).per_prompt
    module = "probes.interventions.activation_patching"
    from probes.interventions import activation_patching as patching

    restarted, kept = patching._run_restarted, []

    def crowded(clean, source, batch):
        kept.append(len(clean.ids))
        if len(clean.ids) > 4:
            run_out()
        return restarted(clean, source, batch)

    monkeypatch.setattr(f"{module}._run_restarted", crowded)
    with pytest.warns(SmallerBatchesWarning):
        found = activation_patching(fresh, some_pairs).per_prompt
    assert set(kept) == {8, 4}
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("masks", [1, 3])
def test_circuits_whose_passes_run_out_of_memory_run_on_fewer_pairs(
    masks, fresh, some_pairs, monkeypatch
):
    runs, chosen = run_references(fresh, task(some_pairs)), circuit_masks(fresh, some_pairs)[:masks]
    expected, sizes = run_circuits(runs, chosen), []
    whole = PatchedPass.logit_diffs

    def crowded(self):
        found = whole(self)
        sizes.append(found.shape[1])
        if found.numel() > 2 * len(chosen):
            run_out()
        return found

    monkeypatch.setattr(PatchedPass, "logit_diffs", crowded)
    with pytest.warns(SmallerBatchesWarning, match="Memory ran out in edge patching"):
        found = run_circuits(runs, chosen)
    assert max(sizes) > 2
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_das_whose_memory_runs_out_finds_the_same_subspace():
    model = load("full")
    runs = interchange_runs(model)
    # Short steps: Adam takes whole ones also where a gradient is but rounding.
    how = DASSettings(steps=3, batch_size=8, learning_rate=0.003)
    site = Site(1, "resid", "op")
    objective = interchange_objective(runs, site, "operation")
    expected = das(objective, site, dims=2, settings=how).basis
    with (
        memory_for(model, 2 * WIDTH) as sizes,
        pytest.warns(SmallerBatchesWarning, match="Memory ran out in DAS"),
    ):
        found = das(objective, site, dims=2, settings=how).basis
    assert max(sizes) > 2
    cosines = torch.linalg.svdvals(found @ expected.T)
    moved = torch.linalg.svdvals(random_subspace(2, model.shape.d_model, seed=0) @ expected.T)
    assert float(cosines.min()) > 1 - 1e-5
    assert float(moved.min()) < 0.99


def test_role_paths_whose_memory_runs_out_share_a_pass_with_fewer(fresh, some_pairs, monkeypatch):
    expected, planned = patched_role_paths(fresh, None, some_pairs), []
    whole = _Copies.logits

    def crowded(self):
        planned.append(len(self.planned))
        if len(self.planned) > 1:
            run_out()
        yield from whole(self)

    monkeypatch.setattr(_Copies, "logits", crowded)
    with pytest.warns(SmallerBatchesWarning, match="Memory ran out in patching role paths"):
        found = patched_role_paths(fresh, None, some_pairs)
    assert max(planned) > 1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_other_errors_are_not_retried(fresh):
    calls = []

    def run(rows):
        calls.append(len(rows))
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        [*run_micro_batches(fresh, torch.arange(8), run, MicroBatches("a test", 8, 1))]
    assert calls == [8]
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ModelError("out of memory"))


def test_what_a_failed_pass_held_is_freed_before_the_next(fresh):
    held, seen = [], []

    class Held:
        def __del__(self):
            held.remove(id(self))

    def run(rows):
        seen.append(len(held))
        here = Held()
        held.append(id(here))
        if len(rows) > 2:
            run_out()
        return len(rows)

    with pytest.warns(SmallerBatchesWarning):
        sizes = [*run_micro_batches(fresh, torch.arange(7), run, MicroBatches("a test", 8, 1))]
    assert sum(sizes) == 7
    assert set(seen) == {0}


def test_memory_that_runs_out_in_the_check_of_restarts_is_no_verdict_on_the_blocks(own):
    model = tiny("llama", vocab_size=len(own), max_position_embeddings=96)
    with memory_for(model, 0), pytest.raises(torch.OutOfMemoryError):
        restart_problem(model)
    assert restart_problem(model) is None


def test_a_batch_is_planned_to_take_at_most_half_of_the_free_memory(fresh, monkeypatch):
    device = torch.device("cpu")
    assert free_memory(device) > 1e6
    each = 4 * (10 * (20 * 32 + 3 * 4 * 10) + 3 * 2 * fresh.shape.d_vocab)
    for free, fit in ((8.5 * each, 4), (1e12, 100), (0, 1), (None, 100)):
        given = free if free is None else int(free)
        monkeypatch.setattr("probes.models.micro_batches.free_memory", lambda _, n=given: n)
        assert fitting_prompts(fresh, 100, width=10, read=2) == fit
