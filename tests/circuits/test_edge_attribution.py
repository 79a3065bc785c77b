"""Edge attribution, compared with autograd, TransformerLens and exact edge patching."""

from dataclasses import replace
from functools import cache

import jaxtyping
import pytest
import torch
from token_pairs import pairs
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
    faithfulness,
)

from probes.circuits.edges.edge_attribution import EAP, EAPIG, edge_attribution
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.graph import Edge
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task
from probes.errors import CircuitError, ModelError
from probes.interventions.cached_run import MLP, Z
from probes.models.model import load, wrap
from probes.testing.equivalent_heads import ungroup_heads
from probes.testing.tiny_models import (
    KINDS,
    OTHER_KINDS,
    POST_NORM_KINDS,
    hook_count,
    tiny,
    tiny_hf,
)

METHODS = ("eap-ig", "eap", "exact")
PARTS = {"embed": "embed", "mlp_out": "MLP", "mlp_in": "MLP", "logits": "logits"}

# The others run with the slow tests; the comparisons with TransformerLens cover them anyway.
EVERY = (*KINDS, *POST_NORM_KINDS)
QUICK = ("llama-gqa", "olmo2")
SLOW = {kind: () if kind in QUICK else (pytest.mark.slow,) for kind in EVERY}
EACH = pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW[kind]) for kind in EVERY])

model_of = cache(tiny)


@cache
def short(kind):
    """Two layers: the reference makes a pass for each edge that it ablates."""
    return tiny(kind, num_hidden_layers=2)


def close(found, expected, atol=1e-6):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def summed(graph, scores):
    """Sum scores of edges that a coarser graph does not distinguish."""
    same = [grouped(Edge(edge.source, edge.target), graph) for edge in scores.graph.edges()]
    index = torch.from_numpy(graph.indices_of(same))
    return torch.zeros(scores.prompts, len(graph)).index_add(1, index, scores.per_prompt)


def grouped(edge, graph):
    if graph.kv_heads == graph.heads or edge.target[-2:] not in (".k", ".v") or "K" in edge.target:
        return edge
    layer, head, port = edge.target.split(".")
    each = graph.heads // graph.kv_heads
    return replace(edge, target=f"{layer}.KV{int(head[1:]) // each}.{port}")


def named(pair, *, roles=False):
    """The kit's name of an edge of TransformerLens."""
    found = []
    for node in pair:
        name = PARTS.get(node.kind, f"H{node.head}")
        name = name if name in ("embed", "logits") else f"L{node.layer}.{name}"
        found.append(f"{name}.{node.kind[0]}" if node.kind[1:] == "_input" else name)
    role = f"p{pair[0].position}" if roles else ""
    return Edge(*found, role, role)


def metric(task, row):
    return lambda logits: task[row : row + 1].logit_diff(logits[:, -1])[0]


@cache
def transformer_lens_scores(kind):
    """Edge scores of TransformerLens, prompt by prompt."""
    model, task, found = model_of(kind), pairs(), []
    before = [weight.requires_grad for weight in model.bridge.parameters()]
    model.bridge.requires_grad_(True)
    for row in range(len(task)):
        ids = (task.clean[row : row + 1], task.counterfactual[row : row + 1])
        how = EdgeAttributionConfig("edge")
        found.append(attribution_patch(model.bridge, *ids, metric(task, row), how).edge_scores)
    for weight, wanted in zip(model.bridge.parameters(), before, strict=True):
        weight.requires_grad_(wanted)
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_eap_equals_transformer_lens_summed_over_positions(kind):
    edge_scores = edge_attribution(model_of(kind), pairs(), method=EAP(gradient_at=0.0))
    expected = torch.zeros_like(edge_scores.per_prompt)
    for row, scores in enumerate(transformer_lens_scores(kind)):
        numbers = torch.from_numpy(edge_scores.graph.indices_of(map(named, scores)))
        values = torch.tensor([float(score) for score in scores.values()])
        expected[row].index_add_(0, numbers, values)
    close(edge_scores.per_prompt, expected)
    assert edge_scores.per_prompt.abs().max() > 0.05


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_eap_by_role_equals_transformer_lens_by_position(kind):
    edge_scores = edge_attribution(model_of(kind), pairs(), method=EAP(gradient_at=0.0), roles=True)
    ours = [replace(edge, target_role=edge.source_role) for edge in edge_scores.graph.edges()]
    known = {edge: number for number, edge in enumerate(dict.fromkeys(ours))}
    index = torch.tensor([known[edge] for edge in ours])
    found = torch.zeros(2, len(known)).index_add(1, index, edge_scores.per_prompt)
    for row, scores in enumerate(transformer_lens_scores(kind)):
        for pair, score in scores.items():
            edge = named(pair, roles=True)
            if edge in known:
                assert abs(float(score) - float(found[row, known[edge]])) < 1e-6
            else:
                # Logits are read at the last position alone.
                assert edge.target == "logits" and abs(float(score)) < 1e-6


def test_grouped_keys_and_values_score_the_sum_over_their_heads():
    model, task = model_of("llama-gqa"), pairs()
    ungrouped = ungroup_heads(model)
    for method in (EAP(gradient_at=0.0), "eap", EAPIG(steps=3)):
        grouped_scores, scores = (
            edge_attribution(each, task, method=method) for each in (model, ungrouped)
        )
        close(summed(grouped_scores.graph, scores), grouped_scores.per_prompt)
        assert grouped_scores.per_prompt.abs().max() > 0.05


@EACH
def test_scores_by_role_add_up_to_those_without(kind):
    model, task = model_of(kind), pairs()
    for method in ("eap", EAPIG(steps=2)):
        plain, fine = (
            edge_attribution(model, task, method=method, roles=roles) for roles in (False, True)
        )
        close(summed(plain.graph, fine), plain.per_prompt)


# Scores by autograd and by exact patching.


@torch.enable_grad()
def node_scores(model, task):
    """Score heads and MLPs by the change of their output times the gradient there."""
    layers = range(model.shape.layers)
    names = [f"blocks.{layer}.{point}" for layer in layers for point in (Z, MLP)]

    def outputs(ids):
        kept = {}
        edits = {name: lambda v, n=name: kept.setdefault(n, v.view_as(v)) for name in names}
        edits["hook_embed"] = lambda v: v.detach().requires_grad_()
        with model.editing(edits):
            logits = model.forward(ids, task.mask)
        at = torch.arange(len(task))
        return kept, task.logit_diff(logits[at, task.readout])

    (clean, logit_diff), (other, _) = outputs(task.clean), outputs(task.counterfactual)
    grads = torch.autograd.grad(logit_diff.sum(), [clean[name] for name in names])
    found = {}
    for name, grad in zip(names, grads, strict=True):
        layer = name.split(".")[1]
        score = ((clean[name] - other[name]) * grad).detach()
        if name.endswith(MLP):
            found[f"L{layer}.MLP"] = score.sum((1, 2))
        else:
            each = score.unflatten(-1, (model.shape.heads, -1)) if score.ndim == 3 else score
            found |= {f"L{layer}.H{head}": s for head, s in enumerate(each.sum((1, 3)).T)}
    return found


@pytest.mark.parametrize("roles", [False, True])
@EACH
def test_a_node_score_is_the_change_of_its_output_times_the_gradient(kind, roles):
    model, task = model_of(kind), pairs(4)
    nodes = edge_attribution(model, task, method="eap", roles=roles).node_scores()
    expected = node_scores(model, task)
    assert set(nodes) == {"embed", *expected}
    for name, scores in expected.items():
        mean, error = nodes[name]
        assert abs(mean - float(scores.mean())) < 1e-5
        assert abs(error - float(scores.std()) / 2) < 1e-5


@EACH
def test_with_many_steps_the_edges_of_the_embedding_sum_to_the_logit_difference(kind):
    model, task = model_of(kind), pairs()
    edge_scores = edge_attribution(model, task, method=EAPIG(steps=30))
    from_embed = torch.from_numpy(edge_scores.graph.edge_table[0] == 0)
    ends = [
        task.logit_diff(model.logits(ids, task.mask)[:, -1])
        for ids in (task.clean, task.counterfactual)
    ]
    close(edge_scores.per_prompt[:, from_embed].sum(1), ends[0] - ends[1], atol=1e-2)
    coarse = edge_attribution(model, task, method="eap").per_prompt[:, from_embed].sum(1)
    assert (coarse - ends[0] + ends[1]).abs().max() > 2e-2


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_exact_scores_equal_ablating_each_edge_in_transformer_lens(kind):
    model, task = short(kind), pairs(1, 4)
    edge_scores = edge_attribution(model, task, method="exact")
    scored = Kept(model, task, [])
    every = list(scored.edges)
    strongest = edge_scores.mean.abs().argsort(descending=True)[:4].tolist()
    for number in [*strongest, len(edge_scores) // 2]:
        edge = edge_scores.graph.edge(number)
        kept = [pair for pair in every if named(pair) != edge]
        expected = scored.full_metric - Kept(model, task, kept).value
        assert abs(edge_scores.mean[number].item() - expected) < 1e-5
    assert edge_scores.mean.abs().max() > 0.02


class Kept:
    """Logit difference in TransformerLens with some edges kept, and the list of all edges."""

    def __init__(self, model, task, kept):
        from transformer_lens.tools.analysis import attribution_patching as peer

        listed, original = [], peer.enumerate_edges

        def listing(*args):
            listed.extend(original(*args))
            return listed

        peer.enumerate_edges = listing
        try:
            found = faithfulness(
                model.bridge, task.clean, task.counterfactual, metric(task, 0), kept
            )
        finally:
            peer.enumerate_edges = original
        gap = found.full_metric - found.corrupt_metric
        self.edges, self.full_metric = listed, found.full_metric
        self.value = found.corrupt_metric + found.recovered * gap


@EACH
def test_an_exact_score_is_the_drop_when_all_other_edges_are_kept(kind):
    model, task = model_of(kind), pairs()
    for roles in (False, True) if kind == "llama-gqa" else (False,):
        edge_scores = edge_attribution(model, task, method="exact", roles=roles)
        runs = run_references(model, task, roles=roles)
        numbers = torch.arange(0, len(edge_scores), 31)
        kept = torch.ones(len(numbers), len(edge_scores), dtype=torch.bool)
        kept[torch.arange(len(numbers)), numbers] = False
        drop = runs.clean_logit_diffs - run_circuits(runs, kept, start_from="replaced")
        close(edge_scores.per_prompt[:, numbers].T, drop, atol=1e-5)


# Prompts, moments, padding.


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_and_its_error_are_over_prompts(method):
    model, task = model_of("llama"), pairs(4)
    edge_scores = edge_attribution(model, task, method=method)
    close(edge_scores.mean, edge_scores.per_prompt.mean(0))
    close(edge_scores.error, edge_scores.per_prompt.std(0) / 2)
    assert edge_scores.prompts == 4 and edge_scores.per_prompt.shape == (4, len(edge_scores))
    less = edge_attribution(model, task, method=method, per_prompt=False)
    assert less.per_prompt is None
    assert torch.equal(less.mean, edge_scores.mean)
    assert torch.equal(less.error, edge_scores.error)


def test_one_prompt_has_no_error():
    edge_scores = edge_attribution(model_of("llama"), pairs(1))
    assert edge_scores.error.isnan().all()
    assert not edge_scores.mean.isnan().any()


@pytest.mark.parametrize("roles", [False, True])
@EACH
def test_scores_do_not_depend_on_the_batch_size(kind, roles, monkeypatch):
    model, task = model_of(kind), pairs(3)
    whole = edge_attribution(model, task, method=EAPIG(steps=2), roles=roles)
    for name in ("edge_attribution._MAX_GRADIENT_FLOATS", "gradient_scores._MAX_BLOCK_FLOATS"):
        monkeypatch.setattr(f"probes.circuits.edges.{name}", 1)
        parts = edge_attribution(model, task, method=EAPIG(steps=2), roles=roles)
        close(parts.per_prompt, whole.per_prompt)
        close(parts.mean, whole.mean)
        close(parts.error, whole.error)


@pytest.mark.parametrize("roles", [False, True])
@EACH
def test_scores_of_several_steps_are_the_mean_of_those_at_each_midpoint(kind, roles):
    model, task = model_of(kind), pairs(3)
    whole = edge_attribution(model, task, method=EAPIG(steps=3), roles=roles)
    each = [
        edge_attribution(model, task, method=EAP(gradient_at=at), roles=roles).per_prompt
        for at in EAPIG(steps=3).points
    ]
    close(whole.per_prompt, torch.stack(each).mean(0))


def padded(task, by):
    """The task's prompts with left padding, and a longer prompt that is read earlier."""
    longer = pairs(1, task.clean.shape[1] + by, seed=5)

    def join(own, other, fill):
        return torch.cat([torch.nn.functional.pad(own, (by, 0), value=fill), other])

    return Task(
        clean=join(task.clean, longer.clean, 0),
        counterfactual=join(task.counterfactual, longer.counterfactual, 0),
        mask=join(task.mask, longer.mask, False),
        readout=torch.cat([task.readout + by, longer.readout - 1]),
        answer=torch.cat([task.answer, longer.answer]),
        foils=torch.cat([task.foils, longer.foils]),
        roles=longer.roles,
        role_of=join(task.role_of, longer.role_of, -1),
    )


@EACH
def test_padding_does_not_change_scores(kind):
    model, task = model_of(kind), pairs()
    whole = padded(task, 2)
    exact = [{"method": "exact"}] if kind == "neox" else []
    for how in ({"method": EAPIG(steps=2)}, {"method": "eap", "roles": True}, *exact):
        edge_scores = edge_attribution(model, whole, **how)
        for row in range(len(task)):
            alone = edge_attribution(model, task[row : row + 1], **how)
            same = edge_scores.graph.indices_of(alone.graph.edges())
            close(edge_scores.per_prompt[row, same], alone.per_prompt[0], atol=1e-5)


def test_scores_do_not_depend_on_earlier_calls():
    model, task = tiny("llama"), pairs()
    first = edge_attribution(model, task)
    edge_attribution(model, pairs(seed=3), roles=True)
    assert torch.equal(edge_attribution(model, task).per_prompt, first.per_prompt)


@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize("method", ["eap-ig", "eap"])
def test_identical_prompts_score_zero(method, roles):
    task = pairs()
    same = replace(task, counterfactual=task.clean)
    edge_scores = edge_attribution(model_of("gpt2"), same, method=method, roles=roles)
    assert (edge_scores.per_prompt == 0).all()


def test_identical_prompts_score_zero_exactly():
    task = pairs()
    same = replace(task, counterfactual=task.clean)
    assert (edge_attribution(model_of("gpt2"), same, method="exact").per_prompt == 0).all()


def test_the_protocol_names_the_method():
    model, task = model_of("llama"), pairs()
    found = dict(edge_attribution(model, task, method=EAPIG(steps=3), roles=True).protocol)
    assert found["method"] == "eap-ig, 3 midpoints"
    assert found["granularity"] == "edges by role"
    assert found["prompts"] == "2"
    found = dict(edge_attribution(model, task, method=EAP(gradient_at=0.5)).protocol)
    assert found["method"] == "eap, gradient at 0.5"
    assert found["granularity"] == "edges"
    assert (
        dict(edge_attribution(model, task, method="exact").protocol)["method"]
        == "exact, one by one"
    )


def test_one_step_of_integration_is_the_middle_of_the_path():
    model, task = model_of("neox"), pairs()
    one, middle = (
        edge_attribution(model, task, method=EAPIG(steps=1)),
        edge_attribution(model, task, method=EAP(gradient_at=0.5)),
    )
    assert torch.equal(one.per_prompt, middle.per_prompt)
    whole = edge_attribution(model, task, method=EAPIG(steps=4)).per_prompt
    parts = [
        edge_attribution(model, task, method=EAP(gradient_at=(k + 0.5) / 4)).per_prompt
        for k in range(4)
    ]
    close(whole, sum(parts) / 4)


# Dead heads.


@pytest.mark.parametrize(
    ("method", "roles"), [("eap-ig", False), ("eap", False), ("eap", True), ("exact", False)]
)
@EACH
def test_a_head_without_output_scores_zero(kind, method, roles):
    hf_model = tiny_hf(kind, 0)
    with torch.no_grad():
        for name, weight in hf_model.named_parameters():
            if ".1." in name and name.endswith(("o_proj.weight", "attention.dense.weight")):
                weight[:, 16:] = 0
            if ".1." in name and name.endswith("attn.c_proj.weight"):
                weight[16:] = 0
    method = EAPIG(steps=2) if method == "eap-ig" else method
    edge_scores = edge_attribution(
        wrap(hf_model, name="dead heads"), pairs(), method=method, roles=roles
    )
    source, target = edge_scores.graph.edge_table[:2]
    dead = {edge_scores.graph.writers.index(name) for name in ("L1.H2", "L1.H3")}
    outgoing = torch.tensor([writer in dead for writer in source.tolist()])
    owners = [edge_scores.graph.writers_fed_by(reader) for reader in target.tolist()]
    incoming = torch.tensor([bool(own) and dead >= set(own) for own in owners])
    assert outgoing.any() and incoming.any()
    assert (edge_scores.per_prompt[:, outgoing] == 0).all()
    # Exact patching recomputes readers, which costs the last digits.
    assert edge_scores.per_prompt[:, incoming].abs().max() <= (2e-6 if method == "exact" else 0)
    assert (edge_scores.per_prompt[:, ~outgoing & ~incoming] != 0).float().mean() > 0.25


# Errors and side effects.


class ScaledGradient(torch.autograd.Function):
    """The identity, with a wrong factor in the backward pass."""

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


def with_wrong_gradients(kind, layer, factor):
    model = tiny(kind)
    inner = model.bridge.blocks[layer].mlp.original_component
    forward = inner.forward
    inner.forward = lambda *args, **kwargs: ScaledGradient.apply(forward(*args, **kwargs), factor)
    return model


@EACH
def test_a_model_with_gradients_of_the_wrong_sign_is_refused(kind):
    with pytest.raises(ModelError, match=r"gradients of tiny .* are wrong: .* dequantize the"):
        edge_attribution(with_wrong_gradients(kind, 0, -1.0), pairs(), method="eap")


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0])
def test_a_model_with_wrong_gradients_anywhere_is_refused(factor):
    for kind in ("llama", "neox"):
        for layer in range(3):
            with pytest.raises(ModelError, match="gradients of tiny"):
                edge_attribution(with_wrong_gradients(kind, layer, factor), pairs(), method="eap")


def flat_task(model, tokens=(294, 222, 27, 41)):
    """Prompts of one token each, many times, on which the two best answers are equally likely."""
    clean = torch.tensor(tokens)[:, None].repeat(1, 9)
    other = clean.clone()
    other[:, 5] += 5
    logits = model.logits(clean, torch.ones_like(clean).bool())[:, -1]
    best = logits.topk(2).indices
    return Task.from_tokens(clean, other, best[:, 0], best[:, 1:])


def test_a_gradient_of_nearly_zero_is_not_refused_for_the_rounding_of_large_logits():
    """The logit difference is 0.001, its slope 0.03, and the logits are 47."""
    model = load("full")
    task = flat_task(model)
    for row in range(len(task)):
        model.passed_checks.discard("gradients")
        scores = edge_attribution(model, task[row : row + 1], method="eap")
        assert scores.mean.isfinite().all()
        assert "gradients" in model.passed_checks


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_wrong_gradients_of_nearly_zero_are_refused(factor):
    model = load("full")
    task = flat_task(model)
    inner = model.bridge.blocks[model.shape.layers - 1].mlp.original_component
    forward = inner.forward
    inner.forward = lambda *args, **kwargs: ScaledGradient.apply(forward(*args, **kwargs), factor)
    with pytest.raises(ModelError, match="gradients of full are wrong"):
        edge_attribution(model, task[:1], method="eap")


def test_a_prompt_without_a_slope_tells_nothing_about_the_gradients():
    """Answer and foil have one row of the unembedding: the check is made on later prompts."""
    hf_model, task = tiny_hf("llama", 0), pairs()
    with torch.no_grad():
        rows = hf_model.get_output_embeddings().weight
        rows[task.answer] = rows[task.foils[:, 0]]
    model = wrap(hf_model, name="flat")
    assert (edge_attribution(model, task, method="eap").per_prompt.abs() < 1e-6).all()
    assert "gradients" not in model.passed_checks


def test_a_check_of_gradients_that_tells_nothing_is_retried_with_at_most_two_batches(monkeypatch):
    from probes.circuits.edges import edge_attribution as scoring
    from probes.circuits.edges import gradient_check

    checked = []
    monkeypatch.setattr(scoring, "_MAX_GRADIENT_FLOATS", 1)  # One prompt a batch.
    monkeypatch.setattr(
        gradient_check, "check_gradients", lambda recorder: checked.append(recorder) or False
    )
    edge_attribution(tiny("llama"), pairs(5), method="eap")
    assert [len(one.task) for one in checked] == [1, 1, 1]


def test_a_refused_model_is_refused_again():
    model = with_wrong_gradients("llama", 1, -1.0)
    for _ in range(2):
        with pytest.raises(ModelError, match="gradients of tiny"):
            edge_attribution(model, pairs())


@pytest.mark.parametrize("method", ["eap", "exact"])
@EACH
def test_nonfinite_weights_are_refused(kind, method):
    model = wrap(tiny_hf(kind, 0), name="broken")
    with torch.no_grad():
        next(model.bridge.blocks[1].mlp.parameters())[3] = torch.nan
    before = side_effects(model)
    with pytest.raises(ModelError, match="broken gives NaN or infinite"):
        edge_attribution(model, pairs(), method=method)
    assert side_effects(model) == before


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_with_a_nan_logit_is_refused(method):
    hf_model, task = tiny_hf("llama", 0), pairs()
    with torch.no_grad():
        hf_model.get_output_embeddings().weight[task.answer[0]] = torch.nan
    with pytest.raises(ModelError):
        edge_attribution(wrap(hf_model, name="broken"), task, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_training_mode_is_refused(method):
    model = tiny("gpt2")
    model.bridge.blocks[2].attn.train()
    with pytest.raises(ModelError, match=r"in training mode.* call eval\(\) on it"):
        edge_attribution(model, pairs(), method=method)


@pytest.fixture
def unchecked():
    """Turn off run-time type checks, which users do not have and which would raise first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def test_an_unknown_method_is_refused(unchecked):
    with pytest.raises(CircuitError, match=r"'grad' is unknown: use 'eap-ig', 'eap' or 'exact'"):
        edge_attribution(model_of("llama"), pairs(), method="grad")


@pytest.mark.parametrize("steps", [0, -3])
def test_no_step_is_refused(steps):
    with pytest.raises(CircuitError, match=f"in {steps} steps: use at least 1"):
        EAPIG(steps=steps)


@pytest.mark.parametrize("point", [1.5, -0.1, float("nan")])
def test_a_gradient_outside_the_path_is_refused(point):
    with pytest.raises(CircuitError, match=f"at {point}: use a value from 0 to 1"):
        EAP(gradient_at=point)


def side_effects(model):
    weights = [(weight.requires_grad, weight.grad is None) for weight in model.bridge.parameters()]
    return hook_count(model), weights


@EACH
def test_the_model_is_unchanged_afterwards(kind):
    model, task = tiny(kind), pairs()
    logits = model.logits(task.clean, task.mask)
    weights = [weight.clone() for weight in model.bridge.parameters()]
    before = side_effects(model)
    for method in METHODS if kind == "llama" else METHODS[:2]:
        edge_scores = edge_attribution(model, task, method=method, roles=method != "exact")
        assert not edge_scores.per_prompt.requires_grad and not edge_scores.mean.requires_grad
    assert side_effects(model) == before
    assert all(map(torch.equal, model.bridge.parameters(), weights))
    assert torch.equal(model.logits(task.clean, task.mask), logits)


def test_the_model_is_unchanged_after_an_error():
    model = with_wrong_gradients("llama", 1, -1.0)
    model.logits(pairs().clean, pairs().mask)
    before = side_effects(model)
    with pytest.raises(ModelError):
        edge_attribution(model, pairs())
    with pytest.raises(ModelError, match="too long"):
        edge_attribution(model, pairs(width=50))
    assert side_effects(model) == before
    assert "gradients" not in model.passed_checks


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad])
def test_the_gradient_mode_of_the_caller_has_no_effect(around):
    task = pairs()
    expected = edge_attribution(tiny("llama"), task).per_prompt
    with around():
        found = edge_attribution(tiny("llama"), task)
    assert torch.equal(found.per_prompt, expected)


@pytest.mark.parametrize("kind", [*KINDS, *POST_NORM_KINDS, *OTHER_KINDS])
def test_passes_behind_the_common_beginning_give_the_scores_of_whole_passes(kind):
    model, task = tiny(kind, num_hidden_layers=2), pairs(width=7, at=4)
    model.passed_checks.add("gradients")  # Other tests check them, pass by pass.
    roles = kind in ("llama-gqa", "gemma3")
    found = edge_attribution(model, task, method=EAPIG(1), roles=roles).per_prompt
    model.failed_checks["restarts"] = "for comparison"
    expected = edge_attribution(model, task, method=EAPIG(1), roles=roles).per_prompt
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert expected.abs().max() > 0.05
