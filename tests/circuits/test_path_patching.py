"""Edge patching agrees with TransformerLens, and its starting run and batching have no effect."""

from dataclasses import replace
from functools import cache

import jaxtyping
import pytest
import torch
from token_pairs import pairs
from transformer_lens.tools.analysis.attribution_patching import (
    FaithfulnessConfig,
    Node,
    faithfulness,
)

from probes.circuits.edges import path_patching as module
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.graph import Edge
from probes.circuits.runs.reference import run_references
from probes.circuits.selection import connected_edges
from probes.circuits.task import Task
from probes.errors import BatchError, CircuitError, ModelError
from probes.models.model import wrap
from probes.testing.equivalent_heads import ungroup_heads
from probes.testing.tiny_models import KINDS, POST_NORM_KINDS, hook_count, tiny, tiny_hf

ABLATIONS = ("counterfactual", "mean", "zero")
FRACTIONS = (0.0, 0.1, 0.3, 0.6, 0.9, 1.0)

# The other two run with the slow tests; the comparisons with TransformerLens cover them anyway.
EVERY = (*KINDS, *POST_NORM_KINDS)
QUICK = ("llama-gqa", "neox", "olmo2")
SLOW = {kind: () if kind in QUICK else (pytest.mark.slow,) for kind in EVERY}
EACH = pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW[kind]) for kind in EVERY])

model_of = cache(tiny)


@cache
def short(kind):
    """Two layers: the reference makes a pass for each circuit and edits every edge in it."""
    return tiny(kind, num_hidden_layers=2)


def random_masks(size, fractions=FRACTIONS, seed=0):
    """Random circuits, each with a fraction of all edges."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(len(fractions), size, generator=draw) < torch.tensor(fractions)[:, None]


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


# TransformerLens, which cuts edges position by position.


def peer_edges(edge, width, layers):
    """The edges of TransformerLens that equal one of the kit: at each position, or at its role."""

    def node(name, position, port):
        if name in ("embed", "logits"):
            return Node(name, position, layer=layers - 1 if name == "logits" else None)
        layer, part, *_ = name[1:].split(".")
        if part == "MLP":
            return Node("mlp_in" if port else "mlp_out", position, layer=int(layer))
        kind = f"{name[-1]}_input" if port else "attn_head_out"
        return Node(kind, position, layer=int(layer), head=int(part[1:]))

    positions = [int(edge.source_role[1:])] if edge.source_role else range(width)
    return [(node(edge.source, p, False), node(edge.target, p, True)) for p in positions]


def peer_logit_diffs(model, task, mask, graph, **how):
    """Logit differences of TransformerLens when only the masked edges are clean."""
    width, layers = task.clean.shape[1], model.shape.layers
    edges = [graph.edge(int(index)) for index in mask.nonzero()[:, 0]]
    circuit = dict.fromkeys(pair for edge in edges for pair in peer_edges(edge, width, layers))
    found = []
    for row in range(len(task)):
        one = task[row : row + 1]

        def metric(logits, one=one):
            return one.logit_diff(logits[:, -1])[0]

        result = faithfulness(
            model.bridge, one.clean, one.counterfactual, metric, list(circuit), **how
        )
        gap = result.full_metric - result.corrupt_metric
        found.append(result.corrupt_metric + result.recovered * gap)
    return torch.tensor(found)


@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_logit_differences_equal_those_of_transformer_lens(kind, fraction):
    model, task = short(kind), pairs(1, 4, 1)
    runs = run_references(model, task)
    kept = random_masks(len(runs.graph), (fraction,), seed=int(10 * fraction))
    close(run_circuits(runs, kept)[0], peer_logit_diffs(model, task, kept[0], runs.graph))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_mean_ablation_equals_that_of_transformer_lens(kind):
    model, task, reference = short(kind), pairs(1, 4, 1), pairs(5, 4, 1, seed=9)
    runs = run_references(model, task, ablation="mean", mean_task=reference)
    kept = random_masks(len(runs.graph), (0.5,), seed=3)
    how = {"config": FaithfulnessConfig("mean"), "mean_tokens": reference.counterfactual}
    expected = peer_logit_diffs(model, task, kept[0], runs.graph, **how)
    close(run_circuits(runs, kept)[0], expected)
    own = run_references(model, task, ablation="mean")
    assert (run_circuits(own, kept)[0] - expected).abs() > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_edges_by_role_equal_positions_of_transformer_lens(kind):
    """Each position is a role, and keys and values are cut for all queries, as there."""
    model, task = short(kind), pairs(1, 4, 1)
    runs = run_references(model, task, roles=True)
    names = [replace(edge, target_role=edge.source_role) for edge in runs.graph.edges()]
    chosen = dict(
        zip(dict.fromkeys(names), random_masks(len(set(names)), (0.6,), seed=4)[0], strict=True)
    )
    kept = torch.stack([chosen[name] for name in names])
    # TransformerLens reads logits at every position; only the last is scored.
    expected = peer_logit_diffs(model, task, kept, runs.graph)
    for begin in ("clean", "replaced"):
        close(run_circuits(runs, kept[None], start_from=begin)[0], expected)
    assert ((expected - runs.clean_logit_diffs).abs() > 1e-3).all()


# Equivalent models and graphs.


def test_grouped_query_attention_equals_the_ungrouped_model():
    model, task = model_of("llama-gqa"), pairs()
    ungrouped = ungroup_heads(model)
    for roles, ablation in ((False, "counterfactual"), (False, "mean"), (True, "counterfactual")):
        own = run_references(model, task, roles=roles, ablation=ablation)
        other = run_references(ungrouped, task, roles=roles, ablation=ablation)
        same = torch.from_numpy(own.graph.indices_of(map(grouped, other.graph.edges())))
        kept = random_masks(len(own.graph))
        found = run_circuits(own, kept)
        close(found, run_circuits(other, kept[:, same]))
        assert found.std(0).max() > 0.05


def grouped(edge):
    if edge.target[-2:] not in (".k", ".v"):
        return edge
    layer, head, port = edge.target.split(".")
    return replace(edge, target=f"{layer}.KV{int(head[1:]) // 2}.{port}")


@EACH
def test_a_circuit_with_all_roles_of_its_edges_equals_the_unresolved_one(kind):
    model, task = model_of(kind), pairs()
    for ablation in ABLATIONS:
        plain = run_references(model, task, ablation=ablation)
        fine = run_references(model, task, ablation=ablation, roles=True)
        bare = [Edge(edge.source, edge.target) for edge in fine.graph.edges()]
        same = torch.from_numpy(plain.graph.indices_of(bare))
        kept = random_masks(len(plain.graph), (0.3, 0.8))
        for begin in ("clean", "replaced"):
            if begin == "replaced" or ablation != "zero":
                close(
                    run_circuits(fine, kept[:, same], start_from=begin),
                    run_circuits(plain, kept, start_from=begin),
                )


# The starting run and the batching have no effect.


CASES = [pytest.param(kind, how, marks=SLOW[kind]) for kind in EVERY for how in ABLATIONS]


@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize(("kind", "ablation"), CASES)
def test_passes_from_the_clean_and_from_the_ablated_run_agree(kind, ablation, roles):
    runs = run_references(model_of(kind), pairs(), roles=roles, ablation=ablation)
    kept = random_masks(len(runs.graph))
    clean, replaced, auto = (
        run_circuits(runs, kept, start_from=b) for b in ("clean", "replaced", "auto")
    )
    close(auto, replaced)
    close(replaced[0], runs.ablated_logit_diffs)
    close(replaced[-1], runs.clean_logit_diffs)
    assert replaced.std(0).max() > 0.05
    # Where zeros leave almost nothing of a residual, an RMS norm turns errors of 1e-7 into 1e-2.
    # "auto" avoids that.
    if ablation != "zero" or kind in ("gpt2", "neox"):
        close(clean, replaced)


@EACH
def test_all_edges_give_the_clean_logit_difference_and_none_the_counterfactual_one(kind):
    model, task = model_of(kind), pairs()
    for roles in (False, True):
        runs = run_references(model, task, roles=roles)
        ends = run_circuits(runs, random_masks(len(runs.graph), (0.0, 1.0)))
        close(ends[0], task.logit_diff(model.logits(task.counterfactual, task.mask)[:, -1]))
        close(ends[1], task.logit_diff(model.logits(task.clean, task.mask)[:, -1]))
        close(torch.stack([runs.ablated_logit_diffs, runs.clean_logit_diffs]), ends)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_with_single_precision(dtype):
    model = wrap(tiny_hf("llama", 0).to(dtype), name="half")
    task = pairs()
    runs, there = run_references(model, task), run_references(model_of("llama"), task)
    kept = random_masks(len(runs.graph))
    found = run_circuits(runs, kept)
    assert (found.float() - run_circuits(there, kept)).abs().max() < 0.1


def test_circuits_give_the_same_together_and_alone():
    runs = run_references(model_of("neox"), pairs())
    kept = random_masks(len(runs.graph))
    alone = torch.cat([run_circuits(runs, row[None]) for row in kept])
    close(run_circuits(runs, kept), alone)


@pytest.mark.parametrize("roles", [False, True])
@EACH
def test_results_do_not_depend_on_how_prompts_and_circuits_are_split(kind, roles, monkeypatch):
    runs = run_references(model_of(kind), pairs(), roles=roles)
    kept = random_masks(len(runs.graph))
    whole = run_circuits(runs, kept)
    for budget, small in ((1, 1), (1, 1 << 18), (1 << 25, 2000)):
        monkeypatch.setattr(module, "_MAX_FLOATS", budget)
        monkeypatch.setattr(module, "_MAX_SHARED_FLOATS", small)
        close(run_circuits(runs, kept), whole)


@pytest.mark.parametrize("roles", [False, True])
@EACH
def test_edges_on_no_path_from_the_embedding_to_the_logits_have_no_effect(kind, roles):
    runs = run_references(model_of(kind), pairs(), roles=roles)
    kept = random_masks(len(runs.graph), (0.05, 0.2, 0.4))
    less = torch.zeros_like(kept)
    for row, own in enumerate(kept):
        less[row, connected_edges(runs.graph, own.nonzero()[:, 0].numpy())] = True
    assert (less.sum(1) < kept.sum(1)).any()
    assert (less <= kept).all()
    close(run_circuits(runs, less), run_circuits(runs, kept))


# Padding and roles.


def padded(task, by):
    """The task's prompts with left padding, and a longer prompt that is read elsewhere."""
    longer = pairs(1, task.clean.shape[1] + by, seed=5)

    def join(own, other, fill):
        return torch.cat([torch.nn.functional.pad(own, (by, 0), value=fill), other])

    roles = tuple(dict.fromkeys((*task.roles, *longer.roles)))
    return Task(
        clean=join(task.clean, longer.clean, 0),
        counterfactual=join(task.counterfactual, longer.counterfactual, 0),
        mask=join(task.mask, longer.mask, False),
        readout=torch.cat([task.readout + by, longer.readout - 1]),
        answer=torch.cat([task.answer, longer.answer]),
        foils=torch.cat([task.foils, longer.foils]),
        roles=roles,
        role_of=join(task.role_of, longer.role_of, -1),
    )


@pytest.mark.parametrize("ablation", ABLATIONS)
@EACH
def test_padding_has_no_effect(kind, ablation):
    model, task = model_of(kind), pairs()
    whole = padded(task, 3)
    for roles in (False, True):
        how = {"roles": roles, "ablation": ablation, "mean_task": task}
        if ablation == "mean":
            how["mean_task"] = whole
        runs, there = run_references(model, task, **how), run_references(model, whole, **how)
        own = list(runs.graph.edges())
        kept = random_masks(len(there.graph), (0.3, 0.8))
        same = torch.from_numpy(there.graph.indices_of(own))
        assert len(same) < len(there.graph) or not roles
        for begin in ("clean", "replaced"):
            if begin == "replaced" or ablation != "zero":
                found = run_circuits(there, kept, start_from=begin)[:, :-1]
                close(run_circuits(runs, kept[:, same], start_from=begin), found)


def test_tokens_after_the_readout_have_no_effect():
    model, task = model_of("llama"), pairs()
    more = [
        torch.randint(3, 90, (2, 2), generator=torch.Generator().manual_seed(n)) for n in (1, 2)
    ]
    wide = Task.from_tokens(
        torch.cat([task.clean, more[0]], 1),
        torch.cat([task.counterfactual, more[1]], 1),
        task.answer,
        task.foils,
    )
    wide = replace(wide, readout=task.readout)
    for ablation in ("counterfactual", "zero"):
        runs, there = (
            run_references(model, task, ablation=ablation),
            run_references(model, wide, ablation=ablation),
        )
        kept = random_masks(len(runs.graph))
        close(
            run_circuits(runs, kept, start_from="replaced"),
            run_circuits(there, kept, start_from="replaced"),
        )


def test_means_are_over_the_reference_tokens_of_the_same_role():
    model, task, reference = model_of("llama"), pairs(), pairs(5, seed=8)
    runs = run_references(model, task, ablation="mean", mean_task=reference)
    embed = model.bridge.embed.original_component.weight[reference.counterfactual].mean(0)
    close(runs.ablated.embed, embed.expand(2, -1, -1))
    one = Task.from_tokens(
        task.clean, task.counterfactual, task.answer, task.foils, roles=task.roles[::-1]
    )
    back = run_references(model, one, ablation="mean", mean_task=reference)
    close(back.ablated.embed, embed.flip(0).expand(2, -1, -1))
    # All tokens of one role share one mean.
    same = torch.zeros_like(reference.role_of)
    pool = replace(reference, roles=("any",), role_of=same)
    flat = run_references(
        model, replace(task, roles=("any",), role_of=same[:2]), ablation="mean", mean_task=pool
    )
    close(flat.ablated.embed, embed.mean(0).expand(2, 5, -1))


# Side effects and errors.


@EACH
def test_the_model_is_unchanged_afterwards(kind):
    model, task = tiny(kind), pairs()
    logits = model.logits(task.clean, task.mask)
    hooks = hook_count(model)
    weights = {name: value.clone() for name, value in model.bridge.named_parameters()}
    free = [name for name, value in model.bridge.named_parameters() if value.requires_grad]
    for ablation in ABLATIONS:
        runs = run_references(model, task, ablation=ablation, roles=True)
        clean, replaced = (
            run_circuits(runs, random_masks(len(runs.graph)), start_from=b)
            for b in ("clean", "replaced")
        )
        assert not clean.requires_grad and not replaced.requires_grad
        again = run_circuits(runs, random_masks(len(runs.graph)), start_from="replaced")
        assert torch.equal(again, replaced)
    assert hook_count(model) == hooks
    for name, value in model.bridge.named_parameters():
        assert torch.equal(value, weights[name])
        assert value.requires_grad == (name in free)
        assert value.grad is None
    assert torch.equal(model.logits(task.clean, task.mask), logits)


@pytest.fixture
def unchecked():
    """Turn off run-time type checks, which users do not have and which would raise first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def test_an_unknown_ablation_is_refused(unchecked):
    with pytest.raises(CircuitError, match="'noise' is unknown: use 'counterfactual', 'mean' or"):
        run_references(model_of("llama"), pairs(), ablation="noise")


def test_masks_of_another_graph_are_refused():
    runs = run_references(model_of("llama"), pairs())
    message = (
        r"masks are \(6, 261\), and 6 circuits of 262 edges were expected: use masks of this graph"
    )
    with pytest.raises(CircuitError, match=message):
        run_circuits(runs, random_masks(261))


def test_a_model_in_training_mode_is_refused():
    model = tiny("gpt2")
    model.bridge.blocks[1].mlp.train()
    with pytest.raises(ModelError, match=r"in training mode.* call eval\(\) on it"):
        run_references(model, pairs())


def test_a_reference_without_a_role_of_the_task_is_refused():
    with pytest.raises(
        BatchError, match="The prompts of means lack the roles p3, p4, which the task has"
    ):
        run_references(model_of("llama"), pairs(), ablation="mean", mean_task=pairs(width=3))


def test_a_reference_without_a_token_of_a_role_is_refused():
    task = pairs()
    pool = replace(task, role_of=torch.where(task.role_of == 2, -1, task.role_of))
    with pytest.raises(BatchError, match="The prompts of means lack the roles p2"):
        run_references(model_of("llama"), task, ablation="mean", mean_task=pool)


def test_no_circuits_give_no_logit_differences():
    runs = run_references(model_of("llama"), pairs())
    assert run_circuits(runs, random_masks(len(runs.graph))[:0]).shape == (0, 2)


@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize(
    ("kind", "ablation"), [("llama-gqa", "counterfactual"), ("neox", "zero"), ("gemma2", "mean")]
)
def test_circuits_one_after_another_share_changes_and_keep_their_numbers(kind, ablation, roles):
    """Each differs in one edge from the one before; alone it starts without known changes."""
    runs = run_references(model_of(kind), pairs(width=6, at=3), roles=roles, ablation=ablation)
    mask = random_masks(len(runs.graph), (0.4,))[0]
    for edge in mask.nonzero()[:, 0].tolist()[:: int(mask.sum()) // 6]:
        mask[edge] = False
        shared = run_circuits(runs, mask[None], start_from="replaced")
        close(shared, run_circuits(replace(runs), mask[None], start_from="replaced"))


def test_a_circuit_without_one_edge_into_the_logits_computes_no_component_anew(monkeypatch):
    runs = run_references(tiny("llama"), pairs(width=6, at=3))
    mask = random_masks(len(runs.graph), (0.4,))
    into_logits = [n for n in mask[0].nonzero()[:, 0] if runs.graph.edge(int(n)).target == "logits"]
    before = run_circuits(runs, mask)
    monkeypatch.setattr(module.PatchedPass, "_run_heads", None)
    monkeypatch.setattr(module.PatchedPass, "_reader_inputs", only_logits(runs))
    mask[0, into_logits[0]] = False
    assert not torch.equal(run_circuits(runs, mask), before)


def only_logits(runs):
    """Inputs of the logits; those of other readers are an error."""
    build = module.PatchedPass._reader_inputs

    def inputs(self, block, base, edges, *at):
        assert block == 2 * runs.model.shape.layers
        return build(self, block, base, edges, *at)

    return inputs
