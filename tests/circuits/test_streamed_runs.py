"""Runs of many pairs are made anew in parts: the same numbers, in the memory of one part."""

import weakref

import pytest
import torch
from token_pairs import pairs

from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.edges.path_patching import edge_patching, run_circuits
from probes.circuits.faithfulness import evaluate_masks
from probes.circuits.pruning import PruningRule, minimality, prune_circuit
from probes.circuits.runs import reference as module
from probes.circuits.runs.held import HeldRuns
from probes.circuits.runs.reference import StreamedRuns, run_references
from probes.models.layers.decoder import DecoderActivations
from probes.testing.planted_circuits import noisy_induction
from probes.testing.tiny_models import tiny


def random_masks(size, fractions=(0.0, 0.1, 0.4, 0.6, 0.9, 1.0)):
    draw = torch.Generator().manual_seed(0)
    return torch.rand(len(fractions), size, generator=draw) < torch.tensor(fractions)[:, None]


def parts_of(monkeypatch, count):
    """Let the runs of so many pairs fit into memory."""
    batches = module._batches

    def smaller(*given):
        return module.MicroBatches("recording runs", count, batches(*given).width)

    monkeypatch.setattr(module, "_batches", smaller)


@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize("ablation", ["counterfactual", "mean", "zero"])
@pytest.mark.parametrize("kind", ["llama-gqa", "olmo2"])
def test_circuits_have_the_same_logit_differences_on_streamed_runs(
    kind, ablation, roles, monkeypatch
):
    model, task = tiny(kind), pairs(7, width=6, at=2)
    held = run_references(model, task, roles=roles, ablation=ablation)
    parts_of(monkeypatch, 3)
    streamed = run_references(model, task, roles=roles, ablation=ablation)
    assert isinstance(held, HeldRuns)
    assert isinstance(streamed, StreamedRuns)
    assert streamed.is_consistent == held.ablated.is_consistent
    for name in ("clean_logit_diffs", "ablated_logit_diffs"):
        torch.testing.assert_close(getattr(streamed, name), getattr(held, name))
    masks = random_masks(len(held.graph))
    one, other = (run_circuits(runs, masks) for runs in (held, streamed))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_edge_patching_is_the_same_in_parts(monkeypatch):
    model, task = tiny("llama-gqa"), pairs(7, width=6, at=2)
    expected = edge_patching(model, task, roles=True)
    parts_of(monkeypatch, 3)
    torch.testing.assert_close(edge_patching(model, task, roles=True), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_runs", [None, 0, 5, 12])
def test_pruning_finds_the_same_circuit_on_streamed_runs(max_runs, monkeypatch):
    found = noisy_induction(2, 3.0, distractors=1)
    scores = edge_attribution(found.model, found.task)
    rule = PruningRule(supporting_first=True, standard_errors=1.64, max_runs=max_runs)
    held = run_references(found.model, found.task)
    expected = prune_circuit(held, scores, 0.9, rule)
    parts_of(monkeypatch, 5)
    streamed = run_references(found.model, found.task)
    circuit = prune_circuit(streamed, scores, 0.9, rule)
    assert isinstance(streamed, StreamedRuns)
    assert circuit.edges == expected.edges
    assert circuit.protocol == expected.protocol
    one, other = (minimality(runs, circuit, added=5) for runs in (held, streamed))
    assert [each.edge for each in one] == [each.edge for each in other]
    for a, b in zip(one, other, strict=True):
        assert a.faithfulness_drop == pytest.approx(b.faithfulness_drop, abs=1e-4)


def test_the_activations_in_memory_do_not_grow_with_the_number_of_pairs(monkeypatch):
    model, live, most = tiny("llama-gqa"), weakref.WeakSet(), []
    begin = DecoderActivations.__init__

    def count(self, *given, **named):
        begin(self, *given, **named)
        live.add(self)
        most.append(sum(len(each.embed) for each in live))

    monkeypatch.setattr(DecoderActivations, "__init__", count)
    parts_of(monkeypatch, 4)
    peaks = []
    for prompts in (8, 32):
        most.clear()
        runs = run_references(model, pairs(prompts))
        evaluate_masks(runs, random_masks(len(runs.graph)))
        del runs
        peaks.append(max(most))
    assert peaks[0] == peaks[1] <= 4 * 4
