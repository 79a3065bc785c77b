"""What a circuit keeps of the lead is the same, whoever computes it and from wherever it begins."""

from dataclasses import replace
from functools import cache

import jaxtyping
import pytest
import torch
from transformer_lens.tools.analysis.attribution_patching import (
    FaithfulnessConfig,
    Node,
    faithfulness,
)

from probes.circuits import edge_patching as splice
from probes.circuits.edge_patching import run_circuits
from probes.circuits.graph import Edge
from probes.circuits.reference_runs import run_references
from probes.circuits.selection import connected_edges
from probes.circuits.task import Task
from probes.errors import BatchError, CircuitError, ModelError
from probes.models.model import wrap
from probes.testing.tiny_models import KINDS, hook_count, tiny, tiny_hf, ungroup_heads

ABLATIONS = ("counterfactual", "mean", "zero")
SHARES = (0.0, 0.1, 0.3, 0.6, 0.9, 1.0)

# The other two run with the slow tests: TransformerLens is asked about them in any case.
QUICK = ("llama-gqa", "neox")
SLOW = {kind: () if kind in QUICK else (pytest.mark.slow,) for kind in KINDS}
EACH = pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW[kind]) for kind in KINDS])

model_of = cache(tiny)


@cache
def short(kind):
    """Two layers: the reference makes a pass for each circuit, and edits every edge in it."""
    return tiny(kind, num_hidden_layers=2)


def pairs(count=2, width=5, at=1, seed=0):
    """Pairs that differ at one position."""
    draw = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, 90, (count, width), generator=draw)
    other = clean.clone()
    other[:, at] = (clean[:, at] + torch.randint(1, 80, (count,), generator=draw) - 3) % 87 + 3
    answer, foil = torch.randint(3, 90, (2, count), generator=draw)
    return Task.from_tokens(clean, other, answer, foil[:, None])


def some(size, shares=SHARES, seed=0):
    """Draw circuits, each with a share of all edges."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(len(shares), size, generator=draw) < torch.tensor(shares)[:, None]


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


# TransformerLens cuts edges in its own way, position by position.


def places(edge, width, layers):
    """Say which of TransformerLens's edges ours is: one for each position, or for its roles'."""

    def node(name, position, port):
        if name in ("embed", "logits"):
            return Node(name, position, layer=layers - 1 if name == "logits" else None)
        layer, part, *_ = name[1:].split(".")
        if part == "MLP":
            return Node("mlp_in" if port else "mlp_out", position, layer=int(layer))
        kind = f"{name[-1]}_input" if port else "attn_head_out"
        return Node(kind, position, layer=int(layer), head=int(part[1:]))

    here = [int(edge.source_role[1:])] if edge.source_role else range(width)
    return [(node(edge.source, p, False), node(edge.target, p, True)) for p in here]


def theirs(model, task, kept, wiring, **how):
    """Return the leads that TransformerLens finds when the kept edges alone are clean."""
    width, layers = task.clean.shape[1], model.shape.layers
    edges = [wiring.edge(int(number)) for number in kept.nonzero()[:, 0]]
    circuit = dict.fromkeys(pair for edge in edges for pair in places(edge, width, layers))
    found = []
    for row in range(len(task)):
        one = task[row : row + 1]

        def lead(logits, one=one):
            return one.logit_diff(logits[:, -1])[0]

        result = faithfulness(
            model.bridge, one.clean, one.counterfactual, lead, list(circuit), **how
        )
        gap = result.full_metric - result.corrupt_metric
        found.append(result.corrupt_metric + result.recovered * gap)
    return torch.tensor(found)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_a_circuit_is_worth_what_transformer_lens_finds(kind, share):
    model, task = short(kind), pairs(1, 4, 1)
    here = run_references(model, task)
    kept = some(len(here.graph), (share,), seed=int(10 * share))
    close(run_circuits(here, kept)[0], theirs(model, task, kept[0], here.graph))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_with_means_for_what_is_cut_it_is_worth_what_transformer_lens_finds(kind):
    model, task, reference = short(kind), pairs(1, 4, 1), pairs(5, 4, 1, seed=9)
    here = run_references(model, task, ablation="mean", mean_task=reference)
    kept = some(len(here.graph), (0.5,), seed=3)
    how = {"config": FaithfulnessConfig("mean"), "mean_tokens": reference.counterfactual}
    expected = theirs(model, task, kept[0], here.graph, **how)
    close(run_circuits(here, kept)[0], expected)
    own = run_references(model, task, ablation="mean")
    assert (run_circuits(own, kept)[0] - expected).abs() > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_edges_by_role_are_cut_where_transformer_lens_cuts_positions(kind):
    """Each position is a role; keys and values are cut for all that read them, as there."""
    model, task = short(kind), pairs(1, 4, 1)
    here = run_references(model, task, roles=True)
    names = [replace(edge, target_role=edge.source_role) for edge in here.graph.edges()]
    chosen = dict(zip(dict.fromkeys(names), some(len(set(names)), (0.6,), seed=4)[0], strict=True))
    kept = torch.stack([chosen[name] for name in names])
    # TransformerLens reads logits at every position, and only the last of them is scored.
    expected = theirs(model, task, kept, here.graph)
    for begin in ("clean", "replaced"):
        close(run_circuits(here, kept[None], start_from=begin)[0], expected)
    assert ((expected - here.clean_logit_diffs).abs() > 1e-3).all()


# Twins.


def test_grouped_queries_are_cut_as_in_the_twin_that_has_all_its_keys_and_values():
    model, task = model_of("llama-gqa"), pairs()
    twin = ungroup_heads(model)
    for roles, ablation in ((False, "counterfactual"), (False, "mean"), (True, "counterfactual")):
        mine = run_references(model, task, roles=roles, ablation=ablation)
        other = run_references(twin, task, roles=roles, ablation=ablation)
        same = torch.from_numpy(mine.graph.indices_of(map(grouped, other.graph.edges())))
        kept = some(len(mine.graph))
        found = run_circuits(mine, kept)
        close(found, run_circuits(other, kept[:, same]))
        assert found.std(0).max() > 0.05


def grouped(edge):
    if edge.target[-2:] not in (".k", ".v"):
        return edge
    layer, head, port = edge.target.split(".")
    return replace(edge, target=f"{layer}.KV{int(head[1:]) // 2}.{port}")


@EACH
def test_a_circuit_that_keeps_all_roles_of_its_edges_is_the_unresolved_one(kind):
    model, task = model_of(kind), pairs()
    for ablation in ABLATIONS:
        plain = run_references(model, task, ablation=ablation)
        fine = run_references(model, task, ablation=ablation, roles=True)
        bare = [Edge(edge.source, edge.target) for edge in fine.graph.edges()]
        same = torch.from_numpy(plain.graph.indices_of(bare))
        kept = some(len(plain.graph), (0.3, 0.8))
        for begin in ("clean", "replaced"):
            if begin == "replaced" or ablation != "zero":
                close(
                    run_circuits(fine, kept[:, same], start_from=begin),
                    run_circuits(plain, kept, start_from=begin),
                )


# Where a run begins makes no difference.


CASES = [pytest.param(kind, how, marks=SLOW[kind]) for kind in KINDS for how in ABLATIONS]


@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize(("kind", "ablation"), CASES)
def test_a_run_may_begin_with_the_clean_run_or_with_the_replaced_one(kind, ablation, roles):
    here = run_references(model_of(kind), pairs(), roles=roles, ablation=ablation)
    kept = some(len(here.graph))
    clean, replaced, auto = (
        run_circuits(here, kept, start_from=b) for b in ("clean", "replaced", "auto")
    )
    close(auto, replaced)
    close(replaced[0], here.ablated_logit_diffs)
    close(replaced[-1], here.clean_logit_diffs)
    assert replaced.std(0).max() > 0.05
    # An RMS norm blows up what is left where zeros take all of a residual away: 1e-7 becomes
    # 1e-2. Left to itself, a run begins where that does not happen.
    if ablation != "zero" or "llama" not in kind:
        close(clean, replaced)


@EACH
def test_all_edges_give_the_models_own_lead_and_none_the_counterfactuals(kind):
    model, task = model_of(kind), pairs()
    for roles in (False, True):
        here = run_references(model, task, roles=roles)
        ends = run_circuits(here, some(len(here.graph), (0.0, 1.0)))
        close(ends[0], task.logit_diff(model.logits(task.counterfactual, task.mask)[:, -1]))
        close(ends[1], task.logit_diff(model.logits(task.clean, task.mask)[:, -1]))
        close(torch.stack([here.ablated_logit_diffs, here.clean_logit_diffs]), ends)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_circuits_of_models_in_half_precision_are_judged_as_well(dtype):
    model = wrap(tiny_hf("llama", 0).to(dtype), name="half")
    task = pairs()
    here, there = run_references(model, task), run_references(model_of("llama"), task)
    kept = some(len(here.graph))
    found = run_circuits(here, kept)
    assert (found.float() - run_circuits(there, kept)).abs().max() < 0.1


def test_circuits_are_worth_the_same_together_and_alone():
    here = run_references(model_of("neox"), pairs())
    kept = some(len(here.graph))
    alone = torch.cat([run_circuits(here, row[None]) for row in kept])
    close(run_circuits(here, kept), alone)


@pytest.mark.parametrize("roles", [False, True])
@EACH
def test_results_do_not_depend_on_how_prompts_and_circuits_are_split(kind, roles, monkeypatch):
    here = run_references(model_of(kind), pairs(), roles=roles)
    kept = some(len(here.graph))
    whole = run_circuits(here, kept)
    for budget, small in ((1, 1), (1, 1 << 18), (1 << 25, 2000)):
        monkeypatch.setattr(splice, "_MAX_FLOATS", budget)
        monkeypatch.setattr(splice, "_MAX_SHARED_FLOATS", small)
        close(run_circuits(here, kept), whole)


@pytest.mark.parametrize("roles", [False, True])
@EACH
def test_edges_on_no_path_from_the_embedding_to_the_logits_are_worth_nothing(kind, roles):
    here = run_references(model_of(kind), pairs(), roles=roles)
    kept = some(len(here.graph), (0.05, 0.2, 0.4))
    less = torch.zeros_like(kept)
    for row, own in enumerate(kept):
        less[row, connected_edges(here.graph, own.nonzero()[:, 0].numpy())] = True
    assert (less.sum(1) < kept.sum(1)).any()
    assert (less <= kept).all()
    close(run_circuits(here, less), run_circuits(here, kept))


# Padding and places.


def padded(task, by):
    """Put the task's prompts behind padding, beside a longer one that is read elsewhere."""
    longer = pairs(1, task.clean.shape[1] + by, seed=5)

    def beside(own, other, fill):
        return torch.cat([torch.nn.functional.pad(own, (by, 0), value=fill), other])

    roles = tuple(dict.fromkeys((*task.roles, *longer.roles)))
    return Task(
        clean=beside(task.clean, longer.clean, 0),
        counterfactual=beside(task.counterfactual, longer.counterfactual, 0),
        mask=beside(task.mask, longer.mask, False),
        readout=torch.cat([task.readout + by, longer.readout - 1]),
        answer=torch.cat([task.answer, longer.answer]),
        foils=torch.cat([task.foils, longer.foils]),
        roles=roles,
        role_of=beside(task.role_of, longer.role_of, -1),
    )


@pytest.mark.parametrize("ablation", ABLATIONS)
@EACH
def test_padding_changes_nothing(kind, ablation):
    model, task = model_of(kind), pairs()
    whole = padded(task, 3)
    for roles in (False, True):
        how = {"roles": roles, "ablation": ablation, "mean_task": task}
        if ablation == "mean":
            how["mean_task"] = whole
        here, there = run_references(model, task, **how), run_references(model, whole, **how)
        own = list(here.graph.edges())
        kept = some(len(there.graph), (0.3, 0.8))
        same = torch.from_numpy(there.graph.indices_of(own))
        assert len(same) < len(there.graph) or not roles
        for begin in ("clean", "replaced"):
            if begin == "replaced" or ablation != "zero":
                found = run_circuits(there, kept, start_from=begin)[:, :-1]
                close(run_circuits(here, kept[:, same], start_from=begin), found)


def test_tokens_behind_the_readout_change_nothing():
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
        here, there = (
            run_references(model, task, ablation=ablation),
            run_references(model, wide, ablation=ablation),
        )
        kept = some(len(here.graph))
        close(
            run_circuits(here, kept, start_from="replaced"),
            run_circuits(there, kept, start_from="replaced"),
        )


def test_means_are_taken_over_the_references_tokens_of_the_same_role():
    model, task, reference = model_of("llama"), pairs(), pairs(5, seed=8)
    here = run_references(model, task, ablation="mean", mean_task=reference)
    embed = model.bridge.embed.original_component.weight[reference.counterfactual].mean(0)
    close(here.ablated.embed, embed.expand(2, -1, -1))
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


# What is left behind, and what is refused.


@EACH
def test_nothing_of_the_model_is_changed(kind):
    model, task = tiny(kind), pairs()
    logits = model.logits(task.clean, task.mask)
    hooks = hook_count(model)
    weights = {name: value.clone() for name, value in model.bridge.named_parameters()}
    free = [name for name, value in model.bridge.named_parameters() if value.requires_grad]
    for ablation in ABLATIONS:
        here = run_references(model, task, ablation=ablation, roles=True)
        clean, replaced = (
            run_circuits(here, some(len(here.graph)), start_from=b) for b in ("clean", "replaced")
        )
        assert not clean.requires_grad and not replaced.requires_grad
        again = run_circuits(here, some(len(here.graph)), start_from="replaced")
        assert torch.equal(again, replaced)
    assert hook_count(model) == hooks
    for name, value in model.bridge.named_parameters():
        assert torch.equal(value, weights[name])
        assert value.requires_grad == (name in free)
        assert value.grad is None
    assert torch.equal(model.logits(task.clean, task.mask), logits)


@pytest.fixture
def unchecked():
    """Turn the checks of types off, as they are for users: their error would come first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def test_an_unknown_ablation_is_refused(unchecked):
    with pytest.raises(CircuitError, match="'noise' is unknown: use 'counterfactual', 'mean' or"):
        run_references(model_of("llama"), pairs(), ablation="noise")


def test_marks_for_another_wiring_are_refused():
    here = run_references(model_of("llama"), pairs())
    message = r"marked as \(6, 261\), and 6 circuits of 262 edges are wanted: mark edges by"
    with pytest.raises(CircuitError, match=message):
        run_circuits(here, some(261))


def test_a_model_in_training_mode_is_refused():
    model = tiny("gpt2")
    model.bridge.blocks[1].mlp.train()
    with pytest.raises(ModelError, match=r"in training mode.* call eval\(\) on it"):
        run_references(model, pairs())


def test_a_reference_without_a_role_of_the_task_is_refused():
    with pytest.raises(
        BatchError, match="The reference lacks the roles p3, p4, which the task has"
    ):
        run_references(model_of("llama"), pairs(), ablation="mean", mean_task=pairs(width=3))


def test_a_reference_that_lists_a_role_and_has_no_token_of_it_is_refused():
    task = pairs()
    pool = replace(task, role_of=torch.where(task.role_of == 2, -1, task.role_of))
    with pytest.raises(BatchError, match="The reference lacks the roles p2"):
        run_references(model_of("llama"), task, ablation="mean", mean_task=pool)


def test_no_circuits_give_no_leads():
    here = run_references(model_of("llama"), pairs())
    assert run_circuits(here, some(len(here.graph))[:0]).shape == (0, 2)
