"""Planted circuits have the stated edges, checked with the split inputs of TransformerLens."""

from contextlib import contextmanager
from functools import cache

import pytest
import torch

from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.graph import EMBED, LOGITS, Edge
from probes.circuits.task import Task
from probes.testing.llama_builder import BOS
from probes.testing.planted_circuits import (
    MIN_EFFECT_FRACTION,
    NO,
    OFF,
    ON,
    YES,
    and_gate,
    decoy,
    induction,
    noisy_induction,
    or_gate,
)
from probes.testing.tiny_models import KINDS, hook_count, tiny
from probes.testing.tracr import FRACTION, LENGTH, WORDS, X, frac_prevs

# The oracle: split inputs of TransformerLens, one pass per edge, without the kit's edge patching.


def exact_by_split_inputs(model, task):
    """Fall of the logit difference if only one edge carries the counterfactual, for every edge."""
    with split(model):
        source, clean = counterfactual(model, task), run(model, task, task.clean)
        edges = task.computation_graph(model).edges()
        return torch.stack([(clean - patched(model, task, source, [e])).mean() for e in edges])


def patched_logit_diff(model, task, edges):
    """Logit difference of each prompt while the edges carry the counterfactual."""
    with split(model):
        return patched(model, task, counterfactual(model, task), edges)


def total(model, task):
    return (run(model, task, task.clean) - run(model, task, task.counterfactual)).mean()


def run(model, task, ids, edits=None):
    with model.editing(edits or {}):
        return task.logit_diff(model.logits(ids, task.mask)[:, -1])


def counterfactual(model, task):
    outputs = {}
    run(model, task, task.counterfactual, record(model, outputs))
    return outputs


def patched(model, task, counterfactual, edges):
    clean, sources = {}, {}
    for edge in edges:
        sources.setdefault(edge.target, []).append(edge.source)

    def read(names, value):
        """Patch the inputs of these readers; heads are a separate axis."""
        new = value.clone()
        for index, name in enumerate(names):
            part = new if value.ndim == 3 else new[:, :, index]
            for source in sources.get(name, ()):
                part += counterfactual[source] - clean[source]
        return new

    edits = record(model, clean)
    for point, names in points(task.computation_graph(model)).items():
        if not sources.keys().isdisjoint(names):
            edits[point] = lambda value, names=names: read(names, value)
    return run(model, task, task.clean, edits)


def record(model, outputs):
    """Edits that change nothing and store the output of each writer."""

    def heads(layer, result):
        outputs.update({f"L{layer}.H{h}": result[:, :, h] for h in range(result.shape[2])})

    edits = {"blocks.0.hook_resid_pre": lambda value: outputs.update({EMBED: value})}
    for n in range(model.shape.layers):
        edits[f"blocks.{n}.attn.hook_result"] = lambda value, n=n: heads(n, value)
        edits[f"blocks.{n}.hook_mlp_out"] = lambda value, n=n: outputs.update({f"L{n}.MLP": value})
    return edits


def points(graph):
    """For each split input the readers that it feeds, in the order of the heads."""
    readers = {f"blocks.{graph.layers - 1}.hook_resid_post": [LOGITS]}
    for number, name in enumerate(graph.readers[:-1]):
        port = graph.port(number)
        point = "hook_mlp_in" if port == "mlp" else f"attn.hook_{port}_input"
        readers.setdefault(f"blocks.{number // graph.readers_per_layer}.{point}", []).append(name)
    return readers


FLAGS = ("use_split_qkv_input", "use_hook_mlp_in", "use_attn_result")


@contextmanager
def split(model):
    """Give every reader its own copy of the residual stream, and every head its own output."""
    for flag in FLAGS:
        getattr(model.bridge, f"set_{flag}")(True)
    try:
        yield
    finally:
        for flag in FLAGS:
            getattr(model.bridge, f"set_{flag}")(False)


# The planted models.

BUILDS = {
    "induction": lambda: induction(0, distractors=2),
    "or": or_gate,
    "and": lambda: and_gate(1),
    "decoy": decoy,
    "noisy": lambda: noisy_induction(2, 3.0, distractors=1),
    "compiled": frac_prevs,
}


@cache
def build(name):
    return BUILDS[name]()


@cache
def effects(name):
    return exact_by_split_inputs(build(name).model, build(name).task)


@pytest.fixture(params=["induction", "or", "and", "decoy", "compiled"])
def planted(request):
    """A planted model without noise."""
    return build(request.param)


def answers(model, ids):
    return model.logits(ids, torch.ones_like(ids, dtype=torch.bool))[:, -1].argmax(-1)


def logit_diff(planted, *edges):
    return patched_logit_diff(planted.model, planted.task, edges)


def edges_of(planted, keep):
    return [edge for edge in planted.graph.edges() if keep(edge)]


def writer_of(reader):
    return reader.rpartition(".")[0] if reader[-1] in "qkv" else reader


def writer_outputs(model, ids):
    """Mixed values (z) of each head, and output of each MLP."""
    kept = {}
    points = [f"blocks.{n}.{p}" for n in range(2) for p in ("attn.hook_z", "hook_mlp_out")]
    with model.editing({p: lambda v, p=p: kept.update({p: v}) for p in points}):
        model.logits(ids, torch.ones_like(ids, dtype=torch.bool))
    outputs = {f"L{n}.MLP": kept[f"blocks.{n}.hook_mlp_out"] for n in range(2)}
    for layer in range(2):
        z = kept[f"blocks.{layer}.attn.hook_z"]
        outputs |= {f"L{layer}.H{head}": z[:, :, head] for head in range(z.shape[2])}
    return outputs


@pytest.mark.parametrize("name", ["induction", "or", "and", "decoy", "noisy"])
def test_the_model_answers_all_prompts_correctly(name):
    model, task = build(name).model, build(name).task
    assert torch.equal(answers(model, task.clean), task.answer)
    assert torch.equal(answers(model, task.counterfactual), task.foils[:, 0])


@pytest.mark.parametrize("name", ["induction", "and", "decoy", "compiled"])
def test_exactly_the_edges_of_the_planted_circuit_have_an_effect(name):
    planted, effect = build(name), effects(name).abs()
    true = torch.zeros(len(planted.graph), dtype=torch.bool)
    true[planted.graph.indices_of(planted.truth)] = True
    assert int(true.sum()) == (3 if name in ("decoy", "compiled") else 5)
    assert effect[true].min() > max(0.1, 0.1 * float(effect.max()))
    # The attention scores of the compiled model are in the hundreds, so rounding is larger.
    assert effect[~true].max() < (1e-4 if name == "compiled" else 1e-5) * effect.max()


def test_the_circuit_explains_the_whole_logit_difference(planted):
    """Patching the circuit gives the counterfactual; patching all other edges changes nothing."""
    before, fall = logit_diff(planted), total(planted.model, planted.task)
    patched = logit_diff(planted, *planted.truth)
    torch.testing.assert_close((before - patched).mean(), fall, atol=1e-3, rtol=0)
    others = edges_of(planted, lambda edge: edge not in planted.truth)
    torch.testing.assert_close(logit_diff(planted, *others), before, atol=1e-3, rtol=0)
    assert fall > (0.2 if planted is build("compiled") else 5)  # Of 1, and of 16.


def test_distractors_differ_between_the_runs_and_do_not_affect_the_answer(planted):
    clean, other = (
        writer_outputs(planted.model, i) for i in (planted.task.clean, planted.task.counterfactual)
    )
    for name in planted.distractors:
        assert (clean[name] - other[name]).abs().max() > 0.1, name
    from_them = edges_of(planted, lambda edge: edge.source in planted.distractors)
    into_them = edges_of(planted, lambda edge: writer_of(edge.target) in planted.distractors)
    for edges in (from_them, into_them):
        torch.testing.assert_close(
            logit_diff(planted, *edges), logit_diff(planted), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("name", ["induction", "or", "and", "compiled"])
def test_dead_writers_write_0_and_their_edges_score_exactly_0(name):
    planted = build(name)
    for ids in (planted.task.clean, planted.task.counterfactual):
        assert all(not writer_outputs(planted.model, ids)[writer].any() for writer in planted.dead)
    dead_edges = edges_of(planted, lambda e: {e.source, writer_of(e.target)} & planted.dead)
    assert len(dead_edges) > 20
    assert (effects(name)[planted.graph.indices_of(dead_edges)] == 0).all()


def test_every_writer_is_in_the_circuit_dead_or_a_distractor(planted):
    circuit = {edge.source for edge in planted.truth}
    assert set(planted.graph.writers) == circuit | planted.dead | planted.distractors
    assert not circuit & planted.dead
    assert not (circuit | planted.dead) & planted.distractors


def test_one_head_of_the_or_gate_keeps_the_answer():
    planted = build("or")
    inputs = [edge for edge in planted.truth if edge.source == "embed"]
    outputs = [edge for edge in planted.truth if edge.target == "L1.MLP"]
    assert len(inputs) == len(outputs) == 2
    for pair in (inputs, outputs):
        for edge in pair:
            torch.testing.assert_close(
                logit_diff(planted, edge), logit_diff(planted), atol=1e-3, rtol=0
            )
        assert (logit_diff(planted, *pair) < -5).all()
    on, off = ON[0], OFF[0]
    prompts = torch.tensor([[0, a, b, 1] for a in (on, off) for b in (on, off)])
    assert answers(planted.model, prompts).tolist() == [YES, YES, YES, NO]


def test_the_and_gate_needs_both_heads_and_is_flat_in_both_runs():
    planted = build("and")
    for edge in planted.truth:
        assert (logit_diff(planted, edge) < -5).all()
    on, off = ON[0], OFF[0]
    prompts = torch.tensor([[0, a, b, 1] for a in (on, off) for b in (on, off)])
    assert answers(planted.model, prompts).tolist() == [YES, NO, NO, NO]
    assert slope(planted, planted.task.clean) < 1e-3
    assert slope(planted, planted.task.counterfactual) < 1e-3
    assert slope(and_gate(1, steepness=0.5), planted.task.clean) > 1


def test_the_decoy_has_a_slope_in_both_runs():
    planted = build("decoy")
    assert slope(planted, planted.task.clean) > 10
    assert slope(planted, planted.task.counterfactual) > 10


def slope(planted, ids):
    """Largest gradient of the logit difference at the input of the gate."""
    kept = []
    mlp = planted.model.bridge.blocks[1].mlp
    edit = {"blocks.1.hook_resid_pre": lambda value: kept.append(value.requires_grad_())}
    with torch.enable_grad(), planted.model.editing(edit):
        logits = planted.model.bridge(ids, use_cache=False)
    (gradient,) = torch.autograd.grad(planted.task.logit_diff(logits[:, -1]).sum(), kept)
    constant = planted.model.bridge.embed.weight[0].argmax()
    read = mlp.gate.weight.any(0) & (torch.arange(gradient.shape[-1]) != constant)
    return gradient[:, -1, read].abs().max()


def test_the_compiled_model_computes_the_program_at_every_word():
    """On all possible prompts: the fraction of x among the words so far."""
    words = torch.cartesian_prod(*[torch.tensor(WORDS)] * LENGTH)
    prompts = torch.nn.functional.pad(words, (1, 0), value=BOS)
    logits = build("compiled").model.logits(prompts, torch.ones_like(prompts, dtype=torch.bool))
    fraction = (words == X).cumsum(1) / torch.arange(1, LENGTH + 1)
    torch.testing.assert_close(logits[:, 1:, FRACTION], fraction, atol=1e-4, rtol=0)
    logits[..., FRACTION] = 0
    assert not logits.any()


def test_effects_of_the_compiled_model_have_one_sign():
    task = build("compiled").task
    more, fewer = ((ids == X).sum(1) for ids in (task.clean, task.counterfactual))
    assert (more > fewer).all()
    assert (more - fewer).unique().numel() > 1
    assert torch.equal(frac_prevs(3).task.clean, frac_prevs(3).task.clean)
    assert not torch.equal(frac_prevs(3).task.clean, frac_prevs(4).task.clean)


def test_exact_attribution_of_the_compiled_model_has_no_rounding_error():
    """With adjacent constants, rounding made attribution refuse this seed."""
    planted = frac_prevs(2)
    effect = exact_by_split_inputs(planted.model, planted.task)
    engine = edge_attribution(planted.model, planted.task, method="exact").mean
    torch.testing.assert_close(engine, effect, atol=1e-5, rtol=0)


def test_noise_keeps_the_circuit_and_leaves_no_writer_silent():
    planted, plain = build("noisy"), induction(2, distractors=1)
    assert plain.truth <= planted.truth
    assert not planted.dead
    assert all(value.any() for value in writer_outputs(planted.model, planted.task.clean).values())
    near = total(planted.model, planted.task), total(plain.model, plain.task)
    assert near[0] != near[1]
    torch.testing.assert_close(*near, rtol=0.2, atol=0)


def test_the_true_edges_of_a_noisy_model_equal_those_of_the_oracle():
    planted, effect = build("noisy"), effects("noisy").abs()
    true = effect >= MIN_EFFECT_FRACTION * total(planted.model, planted.task).abs()
    assert set(planted.graph.indices_of(planted.truth).tolist()) == set(
        true.nonzero()[:, 0].tolist()
    )
    engine = edge_attribution(planted.model, planted.task, method="exact").mean.abs()
    torch.testing.assert_close(engine, effect, atol=1e-5, rtol=0)


def test_a_seed_fixes_the_model_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    one, same, other = induction(3), induction(3), induction(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.truth == same.truth != other.truth
    assert torch.equal(one.task.clean, same.task.clean)
    assert not torch.equal(one.task.clean, other.task.clean)
    weights = [list(p.model.bridge.parameters()) for p in (one, same)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


# The oracle itself.


@pytest.mark.parametrize("kind", KINDS)
def test_patching_all_edges_gives_the_counterfactual_run(kind):
    model, task = random_task(kind)
    every = patched_logit_diff(model, task, task.computation_graph(model).edges())
    counterfactual = model.logits(task.counterfactual, task.mask)[:, -1]
    torch.testing.assert_close(every, task.logit_diff(counterfactual), atol=1e-5, rtol=0)
    clean = task.logit_diff(model.logits(task.clean, task.mask)[:, -1])
    torch.testing.assert_close(patched_logit_diff(model, task, ()), clean, atol=1e-5, rtol=0)
    assert (every - clean).abs().min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_an_edge_into_the_logits_adds_to_the_input_of_the_last_norm(kind):
    model, task = random_task(kind)
    heads, resid = [], []
    edits = {
        "blocks.0.attn.hook_z": heads.append,
        "blocks.2.hook_resid_post": resid.append,
    }
    with model.editing(edits):
        for ids in (task.clean, task.counterfactual):
            model.logits(ids, task.mask)
    only = torch.zeros_like(heads[0])
    only[:, :, 1] = (heads[1] - heads[0])[:, :, 1]
    project, bridge = model.bridge.blocks[0].attn.o, model.bridge
    write = project(only.flatten(2)) - project(torch.zeros_like(only).flatten(2))
    expected = task.logit_diff(bridge.unembed(bridge.ln_final(resid[0] + write))[:, -1])
    found = patched_logit_diff(model, task, [Edge("L0.H1", "logits")])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_oracle_does_not_change_the_model():
    model, task = random_task("llama")
    before = model.logits(task.clean, task.mask)
    hooks = hook_count(model)
    patched_logit_diff(model, task, [Edge("L0.H1", "L1.H0.q")])
    with pytest.raises(KeyError):
        patched_logit_diff(model, task, [Edge("L0.H9", "L1.H0.q")])
    assert hook_count(model) == hooks
    assert torch.equal(model.logits(task.clean, task.mask), before)
    assert not any(getattr(model.bridge.cfg, flag) for flag in FLAGS)


def random_task(kind):
    draw = torch.Generator().manual_seed(0)
    clean, other = (torch.randint(3, 97, (4, 7), generator=draw) for _ in range(2))
    answer, foil = (torch.randint(3, 97, (4,), generator=draw) for _ in range(2))
    return tiny(kind), Task.from_tokens(clean, other, answer, foil[:, None])
