"""Sweeps give the effects that patching by hand, one cell at a time, gives."""

import inspect
import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.edges.path_patching import edge_patching, path_patching, run_circuits
from probes.circuits.graph import Edge
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task
from probes.errors import BatchError, CircuitError, SiteError, TokenizerError
from probes.interventions.attribution_patching import attribution_patching
from probes.interventions.sweep import PatchingEffects, activation_patching
from probes.models.layers.decoder import decompose
from probes.models.model import load
from probes.models.site import component_sites
from probes.observe.activations import capture
from probes.observe.attention import role_attention
from probes.observe.behavior import evaluate_behavior
from probes.observe.logit_lens import logit_lens
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.question import Pair
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.testing.tiny_models import hook_count, tiny

HOOKS = {"H": "attn.hook_z", "MLP": "hook_mlp_out", "resid": "hook_resid_pre"}
NAMES = {"H": "z", "MLP": "mlp_out", "resid": "resid"}
KINDS = ("heads", "mlps", "resid")


def pairs_of(own, contrast, count=5):
    take = pattern("take-away")
    return tokenize_pairs(own, sample_pairs(take, contrast, count, tokenizers=(own,), seed=1))


@pytest.fixture(scope="module")
def model(own):
    return tiny("llama-gqa", vocab_size=len(own))


def leads_by_hand(logits, pairs):
    """Each prompt's lead over the counterfactual's answer, or else over all other outcomes."""
    found = []
    for row in range(len(pairs)):
        each = []
        for mine, theirs in zip(pairs.clean.readouts, pairs.counterfactual.readouts, strict=True):
            here = logits[row, mine.position[row]]
            if mine.answer[row] != theirs.answer[row]:
                foil = here[theirs.answer[row]]
            else:
                foil = here[list(mine.outcomes[row][1:])].mean()
            each.append(here[mine.answer[row]] - foil)
        found.append(torch.stack(each))
    return torch.stack(found)


def effect_by_hand(model, pairs, component, role):
    """Patch one component at one role by a whole pass through all layers."""
    layer, kind = component[1:].split(".")
    head = int(kind[1:]) if kind.startswith("H") else None
    kind = "H" if head is not None else kind
    clean, other = pairs.clean, pairs.counterfactual
    theirs = capture(model, other, (NAMES[kind],))[NAMES[kind]][int(layer)]

    def put(value):
        new = value.clone()
        for row, here in (clean.role_mask(role) & pairs.has_counterpart).nonzero().tolist():
            there = pairs.source_positions[row, here]
            part = (row, here) if head is None else (row, here, head)
            new[part] = theirs[row, there] if head is None else theirs[row, there, head]
        return new

    before = model.logits(clean.ids, clean.mask)
    with model.editing({f"blocks.{layer}.{HOOKS[kind]}": put}):
        after = model.logits(clean.ids, clean.mask)
    return leads_by_hand(before, pairs) - leads_by_hand(after, pairs)


def test_blocks_that_pass_their_store_by_are_patched_by_whole_passes(model, own, monkeypatch):
    """As where a release of transformers gives the argument another name."""
    pairs = pairs_of(own, "operation")
    expected = activation_patching(model, pairs, kinds=KINDS).per_prompt
    monkeypatch.setattr(
        "probes.models.layers.kv_cache.cache_argument", lambda _: "under_another_name"
    )
    fresh = replace(model, passed_checks=model.passed_checks - {"restarts"}, failed_checks={})
    with pytest.warns(UserWarning, match="each patch is a whole pass"):
        found = activation_patching(fresh, pairs, kinds=KINDS).per_prompt
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("contrast", ["operation", "thing", "paraphrase", "order"])
def test_an_effect_is_what_a_whole_pass_with_the_component_replaced_gives(model, own, contrast):
    pairs = pairs_of(own, contrast)
    assert not pairs.clean.mask.all() or contrast == "order"
    found = activation_patching(model, pairs, kinds=KINDS)
    assert found.aligned_fraction == float(contrast in ("operation", "thing"))
    largest = 0.0
    for component in ("L0.resid", "L0.H1", "L0.MLP", "L1.H3", "L2.H0", "L1.MLP", "L2.resid"):
        for role in ("op", "thing", "thing_asked", "answer"):
            mine = found.per_prompt[:, found.components.index(component), found.roles.index(role)]
            expected = effect_by_hand(model, pairs, component, role)
            torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)
            largest = max(largest, float(expected.abs().max()))
    assert largest > 1e-2


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_other_blocks_are_patched_as_exactly(own, kind):
    model, pairs = tiny(kind, vocab_size=len(own)), pairs_of(own, "operation", 3)
    found = activation_patching(model, pairs, kinds=KINDS)
    for component in ("L0.H1", "L1.MLP", "L1.resid", "L2.H0"):
        mine = found.per_prompt[:, found.components.index(component), found.roles.index("op")]
        expected = effect_by_hand(model, pairs, component, "op")
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)


def test_a_question_put_into_itself_changes_nothing_at_all(model, own):
    questions = pattern("take-away").sample_questions(4, seed=3)
    pairs = tokenize_pairs(own, [Pair("none", question, question) for question in questions])
    found = activation_patching(model, pairs, kinds=KINDS)
    assert (found.per_prompt.nan_to_num() == 0).all()
    assert (found.total == 0).all()


def test_the_first_residual_at_the_changed_role_carries_the_whole_change(model, own):
    """The pairs differ in these tokens alone, and so do the runs behind them."""
    found = activation_patching(model, pairs_of(own, "operation"), kinds=("resid",))
    whole = found.per_prompt[:, found.components.index("L0.resid"), found.roles.index("op")]
    torch.testing.assert_close(whole, found.total, atol=1e-5, rtol=0)
    assert (found.total.abs() > 1e-3).all()


def test_the_total_is_the_fall_of_the_lead_in_the_counterfactual_run(model, own):
    pairs = pairs_of(own, "operation")
    found = activation_patching(model, pairs, kinds=("mlps",), roles=("op",))
    before = leads_by_hand(model.logits(pairs.clean.ids, pairs.clean.mask), pairs)
    other = pairs.counterfactual
    assert torch.equal(pairs.clean.positions, other.positions)
    after = leads_by_hand(model.logits(other.ids, other.mask), pairs)
    torch.testing.assert_close(found.total, before - after, atol=1e-5, rtol=0)


def test_roles_behind_a_readout_have_no_effect_on_it(model, own):
    pairs = pairs_of(own, "operation")
    found = activation_patching(
        model, pairs, kinds=KINDS, roles=("op", "answer", "reply_number", "reply_noun")
    )
    effect = found.per_prompt.abs().amax((0, 1))  # role answer
    number, noun = (found.answers.index(name) for name in ("number", "noun"))
    assert effect[2, number] == 0
    assert effect[3, number] == effect[3, noun] == 0
    assert (effect[:2] > 1e-4).all()
    assert effect[2, noun] > 1e-4


def test_roles_before_the_change_have_no_effect(model, own):
    found = activation_patching(
        model, pairs_of(own, "y"), kinds=KINDS, roles=("bos", "have", "x", "thing", "y")
    )
    first = found.roles.index("y")
    assert (found.per_prompt[:, :, :first].nan_to_num() == 0).all()
    assert (found.per_prompt[:, :, first].abs() > 1e-4).any()


def test_a_role_that_a_prompt_lacks_has_no_effect_to_speak_of(model, own):
    pairs = pairs_of(own, "x", 8)
    lacks = ~pairs.clean.role_mask("name").any(1)
    assert 0 < int(lacks.sum()) < len(pairs)
    found = activation_patching(model, pairs, roles=("x", "name"))
    assert torch.equal(found.per_prompt[:, 0, 1, 0].isnan(), lacks)
    assert not found.per_prompt[:, :, 0].isnan().any()
    here = found.per_prompt[~lacks]
    torch.testing.assert_close(found.mean[:, 1], here[:, :, 1].mean(0))
    expected = here[:, :, 1].std(0) / math.sqrt(len(here))
    torch.testing.assert_close(found.standard_error[:, 1], expected, atol=1e-6, rtol=0)


def test_a_role_without_a_counterpart_is_not_measured(model, own):
    pairs = pairs_of(own, "paraphrase", 16)
    unpaired = pairs.clean.role_mask("rest").any(1) & ~pairs.role_mask("rest").any(1)
    assert unpaired.any()
    found = activation_patching(model, pairs, kinds=KINDS)
    at = found.roles.index("rest")
    assert found.per_prompt[unpaired][:, :, at].isnan().all()
    paired = pairs.role_mask("x").any(1)
    assert not found.per_prompt[paired][:, :, found.roles.index("x")].isnan().any()


def test_an_error_is_the_standard_error_of_the_mean():
    each = torch.tensor([0.2, 0.6, 0.7, torch.nan])[:, None, None, None]
    found = PatchingEffects(
        "hand", "x", ("L0.H0",), ("x",), ("number",), each, torch.zeros(4, 1), 1.0
    )
    assert math.isclose(found.mean.item(), 0.5, abs_tol=1e-6)
    assert math.isclose(found.standard_error.item(), math.sqrt(0.14 / 2 / 3), abs_tol=1e-6)


def test_components_are_named_by_layer_and_kind(model, own):
    found = activation_patching(model, pairs_of(own, "x", 2), kinds=KINDS, roles=("x",))
    one = ("resid", "H0", "H1", "H2", "H3", "MLP")
    assert found.components == tuple(f"L{layer}.{name}" for layer in range(3) for name in one)
    assert found.per_prompt.shape == (2, 18, 1, 2)


def test_no_hook_is_left_behind_by_a_sweep(model, own):
    pairs = pairs_of(own, "x", 2)
    model.logits(pairs.clean.ids, pairs.clean.mask)
    before = hook_count(model)
    activation_patching(model, pairs, kinds=KINDS, roles=("x",))
    assert hook_count(model) == before


def test_unknown_components_and_roles_are_refused(model, own):
    with pytest.raises(SiteError, match=r"\['neurons'\] are unknown: choose from heads, mlps, re"):
        component_sites(2, 4, ("neurons",), "op")
    with pytest.raises(SiteError, match="'verb' is not in this batch: it has bos, rest"):
        activation_patching(model, pairs_of(own, "x", 2), roles=("verb",))
    for nothing in ({"roles": ()}, {"kinds": ()}):
        with pytest.raises(SiteError, match="leave nothing to patch: choose from bos, rest"):
            activation_patching(model, pairs_of(own, "x", 2), **nothing)


# The logit lens reads the same streams.


def test_the_last_layer_of_the_lens_reads_what_the_model_answers(model, own):
    batch = pairs_of(own, "x").clean
    found = logit_lens(model, batch)
    assert found.layers == ("embed", "L0", "L1", "L2")
    # The number is read at the last token of "Answer:", the noun at that of the number.
    ends = [found.roles.index(role) for role in ("answer", "reply_number")]
    said = torch.stack([found.per_prompt[:, -1, role, k] for k, role in enumerate(ends)], 1)
    torch.testing.assert_close(said, evaluate_behavior(model, batch).logit_diff, atol=1e-5, rtol=0)


def test_the_lens_reads_questions_as_their_batch_and_refuses_texts_without_answers(model, own):
    batch = pairs_of(own, "x").clean
    object.__setattr__(model, "tokenizer", own)
    found = logit_lens(model, batch.questions)
    assert torch.equal(found.mean.nan_to_num(), logit_lens(model, batch).mean.nan_to_num())
    assert "tensor" not in repr(found)
    with pytest.raises(BatchError, match="0 answers found"):
        logit_lens(model, tokenize(own, "two foxes"))


def test_the_lens_is_blank_where_a_prompt_lacks_the_role(model, own):
    batch = pairs_of(own, "x", 8).clean
    found = logit_lens(model, batch)
    lacks = torch.stack([~batch.role_mask(role).any(1) for role in batch.roles], 1)
    assert lacks.any()
    assert torch.equal(
        found.per_prompt.isnan(), lacks[:, None, :, None].expand_as(found.per_prompt)
    )
    assert not found.mean.isnan().any()


# Single edges and paths.


@cache
def small(kind):
    return tiny(kind)


def by_position(count=2, width=5, at=1):
    """Pairs that differ at one position, each position a role."""
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(3, 90, (count, width), generator=draw)
    other = clean.clone()
    other[:, at] = (clean[:, at] + 20) % 87 + 3
    answer, foil = torch.randint(3, 90, (2, count), generator=draw)
    return Task.from_tokens(clean, other, answer, foil[:, None])


def kept_values(model, task, ids, *points):
    kept = {}
    with model.editing({name: lambda v, n=name: kept.update({n: v.clone()}) for name in points}):
        logits = model.logits(ids, task.mask)
    return kept, task.logit_diff(logits[:, -1])


ALL_KINDS = ("gpt2", "llama", "llama-gqa", "neox")


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_cutting_an_edge_is_splicing_a_circuit_of_all_others(kind):
    model, task = small(kind), by_position()
    for roles in (False, True):
        here = run_references(model, task, roles=roles)
        numbers = list(range(0, len(here.graph), 41))
        edges = [here.graph.edge(number) for number in numbers]
        kept = torch.ones(len(numbers), len(here.graph), dtype=torch.bool)
        kept[torch.arange(len(numbers)), numbers] = False
        expected = here.clean_logit_diffs - run_circuits(here, kept, start_from="replaced")
        found = edge_patching(model, task, roles=roles, edges=edges)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert found.abs().max() > 1e-3


def test_the_order_and_the_number_of_edges_make_no_difference(monkeypatch):
    model, task = small("llama-gqa"), by_position()
    whole = edge_patching(model, task)
    edges = list(run_references(model, task).graph.edges())
    assert whole.shape == (len(edges), 2)
    some = [edges[n] for n in (100, 3, 47, 3)]
    monkeypatch.setattr("probes.circuits.edges.path_patching._EDGES_PER_PASS", 2)
    found = edge_patching(model, task, edges=some)
    torch.testing.assert_close(found, whole[[100, 3, 47, 3]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_edges_from_where_nothing_differs_carry_exactly_nothing(kind):
    """By causality: no writer differs before the changed position, nor the embedding behind it."""
    model, task = small(kind), by_position(at=2)
    edges = list(task.computation_graph(model, roles=True).edges())
    found = edge_patching(model, task, roles=True)
    still = [edge.source_role in ("p0", "p1") for edge in edges]
    still = [
        s or (e.source == "embed" and e.source_role != "p2")
        for s, e in zip(still, edges, strict=True)
    ]
    assert (found[torch.tensor(still)] == 0).all()
    moved = torch.tensor(
        [edge.source == "embed" and not s for s, edge in zip(still, edges, strict=True)]
    )
    assert (found[moved] != 0).float().mean() > 0.4


def test_an_edge_that_does_not_exist_is_refused():
    with pytest.raises(CircuitError, match="Let edges run forward"):
        edge_patching(small("llama"), by_position(), edges=[Edge("L1.H0", "L0.MLP")])


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_an_edge_into_values_at_one_role_is_cut_for_the_role_that_reads_it(kind):
    """Where it is read, z changes by the clean attention times the change of the values."""
    model, task = small(kind), by_position()
    layer, head, a, b = 1, 3, 1, 4
    group = head // (model.shape.heads // model.shape.kv_heads)
    shared = "H" if model.shape.heads == model.shape.kv_heads else "KV"
    edge = Edge("embed", f"L{layer}.{shared}{group}.v", f"p{a}", f"p{b}")
    points = ("hook_embed", f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.attn.hook_pattern")
    clean, lead = kept_values(model, task, task.clean, *points)
    other, _ = kept_values(model, task, task.counterfactual, "hook_embed")
    parts = decompose(model).layers[layer]
    pre = clean[points[1]][:, a]
    swapped = pre - clean["hook_embed"][:, a] + other["hook_embed"][:, a]
    moved = (parts.attn_norm(swapped) - parts.attn_norm(pre)) @ parts.v[group]
    each = len(parts.q) // len(parts.v)
    owners = range(group * each, (group + 1) * each)

    def put(z):
        new = z.clone()
        view = new.view(*new.shape[:2], model.shape.heads, -1)
        for owner in owners:
            view[:, b, owner] += clean[points[2]][:, owner, b, a, None] * moved
        return new

    with model.editing({f"blocks.{layer}.attn.hook_z": put}):
        after = task.logit_diff(model.logits(task.clean, task.mask)[:, -1])
    found = edge_patching(model, task, roles=True, edges=[edge])
    torch.testing.assert_close(found[0], lead - after, atol=1e-5, rtol=0)
    assert (lead - after).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_path_of_one_step_is_its_edge(kind):
    model, task = small(kind), by_position()
    shared = "KV" if kind == "llama-gqa" else "H"
    for source, target in (
        ("embed", "L0.H1.q"),
        ("embed", f"L1.{shared}1.k"),
        ("L0.H2", f"L2.{shared}0.v"),
        ("L0.MLP", "L1.MLP"),
        ("L1.H3", "logits"),
    ):
        edge = edge_patching(model, task, edges=[Edge(source, target)])[0]
        path = path_patching(model, task, (source, target))
        torch.testing.assert_close(path, edge, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_path_through_a_heads_values_is_what_its_parts_make_of_it_by_hand(kind):
    model, task = small(kind), by_position()
    head, layer = 2, 1
    group = head // (model.shape.heads // model.shape.kv_heads)
    reader = f"L{layer}.KV{group}.v" if kind == "llama-gqa" else f"L{layer}.H{head}.v"
    last = "blocks.2.hook_resid_post"
    points = ("hook_embed", f"blocks.{layer}.hook_resid_pre", last)
    points += (f"blocks.{layer}.attn.hook_pattern",)
    clean, lead = kept_values(model, task, task.clean, *points)
    other, _ = kept_values(model, task, task.counterfactual, "hook_embed")
    anatomy = decompose(model)
    parts, pre = anatomy.layers[layer], clean[points[1]]
    swapped = pre - clean["hook_embed"] + other["hook_embed"]
    moved = (parts.attn_norm(swapped) - parts.attn_norm(pre)) @ parts.v[group]
    each = len(parts.q) // len(parts.v)
    # The readout is the last position; the head's new z goes from there to the logits alone.
    resid = clean[last][:, -1].clone()
    for owner in range(group * each, (group + 1) * each):
        pattern = clean[points[3]][:, owner, -1]
        resid += torch.einsum("bk,bke->be", pattern, moved) @ parts.o[owner]
    after = task.logit_diff(anatomy.unembed(anatomy.final_norm(resid)))
    found = path_patching(model, task, ("embed", reader, "logits"))
    torch.testing.assert_close(found, lead - after, atol=1e-5, rtol=0)
    assert found.abs().max() > 1e-4
    # All that follows the head is more than what it sends to the logits.
    assert (path_patching(model, task, ("embed", reader)) - found).abs().max() > 1e-4


def test_a_path_changes_no_part_but_those_on_it():
    """From MLP to MLP to logits: two calls of the MLPs, and sums."""
    model, task = small("llama"), by_position()
    points = ("blocks.0.hook_mlp_out", "blocks.2.hook_resid_mid", "blocks.2.hook_mlp_out")
    last = "blocks.2.hook_resid_post"
    clean, lead = kept_values(model, task, task.clean, *points, last)
    other, _ = kept_values(model, task, task.counterfactual, points[0])
    anatomy = decompose(model)
    parts = anatomy.layers[2]
    swapped = clean[points[1]] - clean[points[0]] + other[points[0]]
    moved = parts.mlp(parts.mlp_norm(swapped)) - clean[points[2]]
    after = task.logit_diff(anatomy.unembed(anatomy.final_norm((clean[last] + moved)[:, -1])))
    found = path_patching(model, task, ("L0.MLP", "L2.MLP", "logits"))
    torch.testing.assert_close(found, lead - after, atol=1e-5, rtol=0)
    # The last step is the only way on, so that the path may end before it.
    whole = path_patching(model, task, ("L0.MLP", "L2.MLP"))
    torch.testing.assert_close(whole, found, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("L1.H0", "L0.MLP"), "Let edges run forward"),
        (("embed", "L1.MLP", "L0.H0.q"), "Let edges run forward"),
        (("embed", "L1.H9.q", "logits"), "names head 9"),
        (("embed", "L1.H0"), "reads nothing"),
        (("embed",), "does not run from a writer to readers"),
    ],
)
def test_a_path_whose_parts_are_not_joined_is_refused(path, message):
    with pytest.raises(CircuitError, match=message):
        path_patching(small("llama"), by_position(), path)


@pytest.mark.parametrize("path", [("embed", "logits", "L0.MLP"), ("embed", "logits", "L1"), ()])
def test_a_path_that_goes_on_behind_the_logits_or_is_empty_is_refused(path):
    with pytest.raises(CircuitError):
        path_patching(small("llama"), by_position(), path)


def test_cutting_only_edges_that_carry_nothing_gives_nothing():
    model, task = small("llama"), by_position()
    still = Edge("embed", "L0.H0.q", "p0", "p0")
    assert (edge_patching(model, task, roles=True, edges=[still]) == 0).all()
    assert edge_patching(model, task, edges=[]).shape == (0, 2)


def test_no_hook_is_left_behind_by_cutting():
    model, task = tiny("llama"), by_position()
    model.logits(task.clean, task.mask)
    before = hook_count(model)
    edge_patching(model, task, edges=[Edge("embed", "L0.MLP")])
    path_patching(model, task, ("embed", "L1.H2.v", "logits"))
    assert hook_count(model) == before


# Models and patterns by their names, and pairs that are not tokenized.


@pytest.mark.parametrize("patching", [activation_patching, attribution_patching])
def test_pairs_are_patched_as_their_batch(model, own, patching):
    object.__setattr__(model, "tokenizer", own)
    pairs = sample_pairs("take-away", "x", 3, tokenizers=(own,), seed=1)
    expected = patching(model, tokenize_pairs(own, pairs, max_length=model.shape.context))
    found = patching(model, pairs)
    assert torch.equal(found.per_prompt.nan_to_num(), expected.per_prompt.nan_to_num())
    with pytest.raises(BatchError, match="'Pattern' found: give pairs"):
        inspect.unwrap(tokenize_pairs)(own, pattern("take-away"))


def test_a_prompt_that_is_longer_than_the_context_is_refused_in_pairs(model, own):
    object.__setattr__(model, "tokenizer", own)
    (pair,) = sample_pairs("take-away", "x", 1, tokenizers=(own,), seed=1)
    short = replace(model, shape=replace(model.shape, context=5))
    with pytest.raises(BatchError, match="and the model takes 5"):
        activation_patching(short, [pair])


def test_a_name_reads_and_patches_as_the_loaded_model():
    full = load("full")
    pairs = sample_pairs("take-away", "x", 2, tokenizers=(full.tokenizer,), seed=1)
    batch = tokenize_pairs(full, pairs)
    task = Task.from_pairs(batch, skip_unequal=True)
    for measure in (
        lambda one: capture(one, batch.clean, ("resid",))["resid"],
        lambda one: role_attention(one, batch.clean).mean,
        lambda one: logit_lens(one, batch.clean).mean,
        lambda one: evaluate_behavior(one, batch.clean).logit_diff,
        lambda one: activation_patching(one, batch).mean,
        lambda one: attribution_patching(one, batch).mean,
        lambda one: path_patching(one, task, ("embed", "logits")),
        lambda one: edge_patching(one, task, edges=[Edge("embed", "logits")]),
        lambda one: edge_attribution(one, task, method="eap").mean,
    ):
        by_name, given = measure("full"), measure(full)
        assert torch.equal(by_name.nan_to_num(), given.nan_to_num())


def test_interchange_pairs_are_sampled_from_a_pattern_by_its_name(own):
    by_name, given = (
        sample_interchange_pairs(each, 2, tokenizers=(own,), seed=0)
        for each in ("take-away", pattern("take-away"))
    )
    assert by_name == given


def test_pairs_in_place_of_a_task_are_refused_with_what_to_give(model, own):
    batch = pairs_of(own, "x")
    for function in (edge_attribution, run_references):  # All others call the latter.
        with pytest.raises(CircuitError, match=r"'PairBatch' found .* give `Task\.from_pairs"):
            unchecked(function)(model, batch)
    with pytest.raises(BatchError, match=r"'tuple' found: give tokenized pairs"):
        unchecked(Task.from_pairs.__func__)(Task, batch.pairs)


@pytest.mark.parametrize("tokenized", [tokenize, tokenize_pairs])
def test_a_name_in_place_of_a_tokenizer_is_refused_with_what_to_give(tokenized):
    with pytest.raises(TokenizerError, match=r"'full' of type str has no tokenizer: give a model"):
        unchecked(tokenized)("full", [])


def unchecked(function):
    """The function without the check of types, which tests turn on and which refuses first."""
    return inspect.unwrap(function)
