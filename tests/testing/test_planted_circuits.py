"""The planted circuits are the circuits: shown by TransformerLens's split inputs, edge by edge."""

from contextlib import contextmanager
from functools import cache

import pytest
import torch

from probes.circuits.attribution import edge_attribution
from probes.circuits.graph import EMBED, LOGITS, Edge
from probes.circuits.task import Task
from probes.testing.planted_circuits import MIN_EFFECT_FRACTION, induction, noisy_induction
from probes.testing.planted_gates import NO, OFF, ON, YES, and_gate, decoy, or_gate
from probes.testing.tiny_models import KINDS, hook_count, tiny
from probes.testing.tracr import BOS, LENGTH, WORDS, X, frac_prevs
from probes.testing.tracr import FRACTION as SAYS

# The oracle: TransformerLens's own split inputs, one pass for one edge, no code of the engine.


def exact_by_split_inputs(model, task):
    """How far the lead falls if one edge alone carries the counterfactual, for every edge."""
    with split(model):
        there, before = counterfactual(model, task), run(model, task, task.clean)
        edges = task.computation_graph(model).edges()
        return torch.stack([(before - patched(model, task, there, [e])).mean() for e in edges])


def lead_with(model, task, edges):
    """Each prompt's lead while the given edges carry what they carry in the other run."""
    with split(model):
        return patched(model, task, counterfactual(model, task), edges)


def total(model, task):
    return (run(model, task, task.clean) - run(model, task, task.counterfactual)).mean()


def run(model, task, ids, edits=None):
    with model.editing(edits or {}):
        return task.logit_diff(model.logits(ids, task.mask)[:, -1])


def counterfactual(model, task):
    there = {}
    run(model, task, task.counterfactual, keep(model, there))
    return there


def patched(model, task, there, edges):
    here, wanted = {}, {}
    for edge in edges:
        wanted.setdefault(edge.target, []).append(edge.source)

    def read(names, value):
        """Exchange what the edges into these readers carry; heads are an axis of their own."""
        new = value.clone()
        for place, name in enumerate(names):
            part = new if value.ndim == 3 else new[:, :, place]
            for source in wanted.get(name, ()):
                part += there[source] - here[source]
        return new

    edits = keep(model, here)
    for point, names in points(task.computation_graph(model)).items():
        if not wanted.keys().isdisjoint(names):
            edits[point] = lambda value, names=names: read(names, value)
    return run(model, task, task.clean, edits)


def keep(model, into):
    """Edits that change nothing, but note what each writer writes."""

    def heads(layer, result):
        into.update({f"L{layer}.H{h}": result[:, :, h] for h in range(result.shape[2])})

    edits = {"blocks.0.hook_resid_pre": lambda value: into.update({EMBED: value})}
    for n in range(model.shape.layers):
        edits[f"blocks.{n}.attn.hook_result"] = lambda value, n=n: heads(n, value)
        edits[f"blocks.{n}.hook_mlp_out"] = lambda value, n=n: into.update({f"L{n}.MLP": value})
    return edits


def points(wiring):
    """Which readers each split input feeds, in the order of its heads."""
    found = {f"blocks.{wiring.layers - 1}.hook_resid_post": [LOGITS]}
    for number, name in enumerate(wiring.readers[:-1]):
        port = wiring.port(number)
        point = "hook_mlp_in" if port == "mlp" else f"attn.hook_{port}_input"
        found.setdefault(f"blocks.{number // wiring.readers_per_layer}.{point}", []).append(name)
    return found


FLAGS = ("use_split_qkv_input", "use_hook_mlp_in", "use_attn_result")


@contextmanager
def split(model):
    """Let the bridge hold a copy of the residual for every reader, and a result for every head."""
    for flag in FLAGS:
        getattr(model.bridge, f"set_{flag}")(True)
    try:
        yield
    finally:
        for flag in FLAGS:
            getattr(model.bridge, f"set_{flag}")(False)


# What is planted.

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
def clear(request):
    """A planted model without noise."""
    return build(request.param)


def answers(model, ids):
    return model.logits(ids, torch.ones_like(ids, dtype=torch.bool))[:, -1].argmax(-1)


def lead(planted, *edges):
    return lead_with(planted.model, planted.task, edges)


def edges_of(planted, keep):
    return [edge for edge in planted.graph.edges() if keep(edge)]


def writer_of(reader):
    return reader.rpartition(".")[0] if reader[-1] in "qkv" else reader


def written(model, ids):
    """What each head adds to the values it moves (its z), and what each MLP writes."""
    kept = {}
    points = [f"blocks.{n}.{p}" for n in range(2) for p in ("attn.hook_z", "hook_mlp_out")]
    with model.editing({p: lambda v, p=p: kept.update({p: v}) for p in points}):
        model.logits(ids, torch.ones_like(ids, dtype=torch.bool))
    found = {f"L{n}.MLP": kept[f"blocks.{n}.hook_mlp_out"] for n in range(2)}
    for layer in range(2):
        z = kept[f"blocks.{layer}.attn.hook_z"]
        found |= {f"L{layer}.H{head}": z[:, :, head] for head in range(z.shape[2])}
    return found


@pytest.mark.parametrize("name", ["induction", "or", "and", "decoy", "noisy"])
def test_the_model_answers_right_on_all_prompts(name):
    model, task = build(name).model, build(name).task
    assert torch.equal(answers(model, task.clean), task.answer)
    assert torch.equal(answers(model, task.counterfactual), task.foils[:, 0])


@pytest.mark.parametrize("name", ["induction", "and", "decoy", "compiled"])
def test_every_edge_on_the_planted_path_carries_the_answer_and_no_other_does(name):
    found, effect = build(name), effects(name).abs()
    true = torch.zeros(len(found.graph), dtype=torch.bool)
    true[found.graph.indices_of(found.truth)] = True
    assert int(true.sum()) == (3 if name in ("decoy", "compiled") else 5)
    assert effect[true].min() > max(0.1, 0.1 * float(effect.max()))
    # The compiled scores of attention are hundreds, so that their rounding shows.
    assert effect[~true].max() < (1e-4 if name == "compiled" else 1e-5) * effect.max()


def test_the_path_is_all_there_is(clear):
    """Patched together, the path alone gives the other run's lead; all else together, nothing."""
    found = clear
    before, fall = lead(found), total(found.model, found.task)
    torch.testing.assert_close((before - lead(found, *found.truth)).mean(), fall, atol=1e-3, rtol=0)
    others = edges_of(found, lambda edge: edge not in found.truth)
    torch.testing.assert_close(lead(found, *others), before, atol=1e-3, rtol=0)
    assert fall > (0.2 if found is build("compiled") else 5)  # Of 1, and of 16.


def test_distractors_tell_the_runs_apart_and_nothing_that_matters_reads_them(clear):
    found = clear
    clean, other = (written(found.model, i) for i in (found.task.clean, found.task.counterfactual))
    for name in found.distractors:
        assert (clean[name] - other[name]).abs().max() > 0.1, name
    from_them = edges_of(found, lambda edge: edge.source in found.distractors)
    into_them = edges_of(found, lambda edge: writer_of(edge.target) in found.distractors)
    for edges in (from_them, into_them):
        torch.testing.assert_close(lead(found, *edges), lead(found), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["induction", "or", "and", "compiled"])
def test_dead_writers_write_nothing_and_their_edges_have_no_effect_at_all(name):
    found = build(name)
    for ids in (found.task.clean, found.task.counterfactual):
        assert all(not written(found.model, ids)[writer].any() for writer in found.dead)
    theirs = edges_of(found, lambda e: {e.source, writer_of(e.target)} & found.dead)
    assert len(theirs) > 20
    assert (effects(name)[found.graph.indices_of(theirs)] == 0).all()


def test_every_head_and_mlp_is_on_the_path_or_named_otherwise(clear):
    found = clear
    path = {edge.source for edge in found.truth}
    assert set(found.graph.writers) == path | found.dead | found.distractors
    assert not path & found.dead
    assert not (path | found.dead) & found.distractors


def test_either_head_of_the_or_gate_alone_keeps_the_answer():
    found = build("or")
    inputs = [edge for edge in found.truth if edge.source == "embed"]
    outputs = [edge for edge in found.truth if edge.target == "L1.MLP"]
    assert len(inputs) == len(outputs) == 2
    for pair in (inputs, outputs):
        for edge in pair:
            torch.testing.assert_close(lead(found, edge), lead(found), atol=1e-3, rtol=0)
        assert (lead(found, *pair) < -5).all()
    on, off = ON[0], OFF[0]
    prompts = torch.tensor([[0, a, b, 1] for a in (on, off) for b in (on, off)])
    assert answers(found.model, prompts).tolist() == [YES, YES, YES, NO]


def test_the_and_gate_needs_both_heads_and_is_flat_at_either_run():
    found = build("and")
    for edge in found.truth:
        assert (lead(found, edge) < -5).all()
    on, off = ON[0], OFF[0]
    prompts = torch.tensor([[0, a, b, 1] for a in (on, off) for b in (on, off)])
    assert answers(found.model, prompts).tolist() == [YES, NO, NO, NO]
    assert slope(found, found.task.clean) < 1e-3
    assert slope(found, found.task.counterfactual) < 1e-3
    assert slope(and_gate(1, steepness=0.5), found.task.clean) > 1


def test_the_slope_of_the_decoy_points_either_way_and_it_makes_no_difference():
    """The other tests of this model say that it makes none."""
    found = build("decoy")
    assert slope(found, found.task.clean) > 10
    assert slope(found, found.task.counterfactual) > 10


def slope(planted, ids):
    """How steeply the lead follows what the gate's MLP reads."""
    kept = []
    mlp = planted.model.bridge.blocks[1].mlp
    edit = {"blocks.1.hook_resid_pre": lambda value: kept.append(value.requires_grad_())}
    with torch.enable_grad(), planted.model.editing(edit):
        logits = planted.model.bridge(ids, use_cache=False)
    (found,) = torch.autograd.grad(planted.task.logit_diff(logits[:, -1]).sum(), kept)
    constant = planted.model.bridge.embed.weight[0].argmax()
    read = mlp.gate.weight.any(0) & (torch.arange(found.shape[-1]) != constant)
    return found[:, -1, read].abs().max()


def test_the_compiled_model_says_what_the_program_says_at_every_word():
    """On all prompts there are: the share of x among the words so far."""
    words = torch.cartesian_prod(*[torch.tensor(WORDS)] * LENGTH)
    prompts = torch.nn.functional.pad(words, (1, 0), value=BOS)
    said = build("compiled").model.logits(prompts, torch.ones_like(prompts, dtype=torch.bool))
    share = (words == X).cumsum(1) / torch.arange(1, LENGTH + 1)
    torch.testing.assert_close(said[:, 1:, SAYS], share, atol=1e-4, rtol=0)
    said[..., SAYS] = 0
    assert not said.any()


def test_no_pair_of_the_compiled_model_takes_back_what_another_gives():
    task = build("compiled").task
    more, fewer = ((ids == X).sum(1) for ids in (task.clean, task.counterfactual))
    assert (more > fewer).all()
    assert (more - fewer).unique().numel() > 1
    assert torch.equal(frac_prevs(3).task.clean, frac_prevs(3).task.clean)
    assert not torch.equal(frac_prevs(3).task.clean, frac_prevs(4).task.clean)


def test_the_constant_of_the_compiled_model_leaves_no_rounding_in_what_the_engine_finds():
    """With the two constants side by side, so much was left that the engine refused this seed."""
    found = frac_prevs(2)
    effect = exact_by_split_inputs(found.model, found.task)
    engine = edge_attribution(found.model, found.task, method="exact").mean
    torch.testing.assert_close(engine, effect, atol=1e-5, rtol=0)


def test_noise_leaves_the_path_standing_and_nothing_silent():
    found, plain = build("noisy"), induction(2, distractors=1)
    assert plain.truth <= found.truth
    assert not found.dead
    assert all(value.any() for value in written(found.model, found.task.clean).values())
    near = total(found.model, found.task), total(plain.model, plain.task)
    assert near[0] != near[1]
    torch.testing.assert_close(*near, rtol=0.2, atol=0)


def test_the_true_edges_of_a_noisy_model_are_those_that_the_oracle_finds():
    found, effect = build("noisy"), effects("noisy").abs()
    true = effect >= MIN_EFFECT_FRACTION * total(found.model, found.task).abs()
    assert set(found.graph.indices_of(found.truth).tolist()) == set(true.nonzero()[:, 0].tolist())
    engine = edge_attribution(found.model, found.task, method="exact").mean.abs()
    torch.testing.assert_close(engine, effect, atol=1e-5, rtol=0)


def test_a_seed_fixes_the_model_and_leaves_the_rest_of_the_program_alone():
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
def test_all_edges_patched_together_give_the_other_run(kind):
    model, task = random_task(kind)
    every = lead_with(model, task, task.computation_graph(model).edges())
    theirs = model.logits(task.counterfactual, task.mask)[:, -1]
    torch.testing.assert_close(every, task.logit_diff(theirs), atol=1e-5, rtol=0)
    mine = task.logit_diff(model.logits(task.clean, task.mask)[:, -1])
    torch.testing.assert_close(lead_with(model, task, ()), mine, atol=1e-5, rtol=0)
    assert (every - mine).abs().min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_an_edge_into_the_logits_adds_to_what_the_last_norm_reads(kind):
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
    found = lead_with(model, task, [Edge("L0.H1", "logits")])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_oracle_leaves_the_model_as_it_was():
    model, task = random_task("llama")
    before = model.logits(task.clean, task.mask)
    hooks = hook_count(model)
    lead_with(model, task, [Edge("L0.H1", "L1.H0.q")])
    with pytest.raises(KeyError):
        lead_with(model, task, [Edge("L0.H9", "L1.H0.q")])
    assert hook_count(model) == hooks
    assert torch.equal(model.logits(task.clean, task.mask), before)
    assert not any(getattr(model.bridge.cfg, flag) for flag in FLAGS)


def random_task(kind):
    draw = torch.Generator().manual_seed(0)
    clean, other = (torch.randint(3, 97, (4, 7), generator=draw) for _ in range(2))
    answer, foil = (torch.randint(3, 97, (4,), generator=draw) for _ in range(2))
    return tiny(kind), Task.from_tokens(clean, other, answer, foil[:, None])
