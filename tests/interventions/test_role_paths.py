"""Paths between roles: exact identities, two plain runs as the oracle, planted and equal models."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from probes.errors import BatchError
from probes.interventions.activation_patching import restart_problem
from probes.interventions.role_paths.graph import (
    RoleGraph,
    RolePath,
    changed_roles,
    join_paths,
    path_roles,
    readout_role,
)
from probes.interventions.role_paths.patching import (
    candidate_paths,
    contrast_effects,
    patch_role_graphs,
)
from probes.models.model import load
from probes.prompts.catalog import pattern
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.testing.equivalent_layers import insert_silent_layer, rotate_residual
from probes.testing.planted_patterns import planted_fox
from probes.testing.tiny_models import tiny


def pairs_of(model, contrast, on="take-away", count=6):
    on = pattern(on) if isinstance(on, str) else on
    drawn = sample_pairs(on, contrast, count, tokenizers=[model.tokenizer], seed=3)
    return tokenize_pairs(model.tokenizer, drawn)


def every_edge(pairs):
    roles = path_roles(pairs.clean)
    return frozenset((a, b) for a in roles for b in roles if a != b)


@pytest.mark.parametrize("name", ["distilled", "random-init:scratch:1"])
@pytest.mark.parametrize("contrast", ["operation", "thing"])
def test_all_edges_give_the_counterfactual_run_and_none_the_clean_run(name, contrast):
    model = load(name)
    pairs = pairs_of(model, contrast)
    whole = RoleGraph(frozenset(changed_roles(pairs)), every_edge(pairs))
    none = RoleGraph(frozenset(changed_roles(pairs)), frozenset())
    found = patch_role_graphs(model, pairs, [whole, none])
    assert torch.allclose(found[0], contrast_effects(model, pairs), atol=1e-5)
    assert not found[1].any()


def _lines(*lines):
    return "\n".join(json.dumps(line) for line in lines)


def test_words_before_the_first_role_and_read_outs_of_other_roles_are_patched_as_well(tmp_path):
    """A tokenizer without BOS, a first word that differs, and a text that ends in another role."""
    model = load("distilled", add_bos=False)
    one = {
        "contrast": "x", "clean": "Tom has 5 cats. Tom has", "answer": "5",
        "counterfactual": "Ben has 7 cats. Ben has", "counterfactual_answer": "7",
        "roles": {"x": "5", "cats": "cats"}, "counterfactual_roles": {"x": "7", "cats": "cats"},
    }  # fmt: skip
    two = {
        "contrast": "x", "clean": "Tom has 5 cats. I have 2 dogs", "answer": "5",
        "counterfactual": "Ben has 7 cats. I have 2 dogs", "counterfactual_answer": "7",
        "roles": {"x": "5", "cats": "2 dogs"}, "counterfactual_roles": {"x": "7", "cats": "2 dogs"},
    }  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text(_lines(one, two))
    pairs = tokenize_pairs(model.tokenizer, pattern(str(path)).user_pairs)
    assert changed_roles(pairs) == ("x", "rest", "after cats")
    whole = RoleGraph(frozenset(changed_roles(pairs)), every_edge(pairs))
    found = patch_role_graphs(model, pairs, [whole])[0]
    assert torch.allclose(found, contrast_effects(model, pairs), atol=1e-5)
    assert candidate_paths(model, pairs, 0)


def test_pairs_without_any_role_have_one_path(tmp_path):
    model = load("distilled", add_bos=False)
    line = {
        "contrast": "x", "clean": "Tom has 5", "answer": "cats",
        "counterfactual": "Tom has 7", "counterfactual_answer": "dogs",
    }  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text(_lines(line))
    pairs = tokenize_pairs(model.tokenizer, pattern(str(path)).user_pairs)
    effects = candidate_paths(model, pairs, 0)
    assert [str(path) for path in effects] == ["rest → rest"]
    assert torch.allclose(
        effects[RolePath(("rest", "rest"))], contrast_effects(model, pairs)[:, 0], atol=1e-5
    )


def test_a_path_equals_two_runs_with_plain_hooks():
    """First y reads the counterfactual's op, then the answer reads that state of y."""
    model = load("distilled")
    pairs = pairs_of(model, "operation")
    masks = path_roles(pairs.clean)
    layers = range(model.shape.layers)
    names = [f"blocks.{n}.hook_resid_pre" for n in layers]

    def states(ids, edits):
        kept = {}
        read = {name: partial(kept.__setitem__, name) for name in names}
        with model.editing(edits), model.editing(read):
            logits = model.logits(ids, pairs.clean.mask)
        return logits, kept

    def fixed(inside, sources):
        """Replace all but one role's states: those of some roles by given ones."""

        def edit(name, value):
            given = sources[0][name].clone()
            for role, own in sources[1].items():
                given[masks[role]] = own[name][masks[role]]
            return torch.where(masks[inside][..., None], value, given)

        return {name: partial(edit, name) for name in names}

    clean_logits, clean = states(pairs.clean.ids, {})
    _, other = states(pairs.counterfactual.ids, {})
    # The op reads clean words only; its own token is the counterfactual's.
    _, op = states(pairs.counterfactual.ids, fixed("op", (clean, {})))
    assert torch.allclose(op[names[1]][masks["op"]], other[names[1]][masks["op"]], atol=1e-4)
    _, y = states(pairs.clean.ids, fixed("y", (clean, {"op": op})))
    logits, _ = states(pairs.clean.ids, fixed("answer", (clean, {"y": y})))
    at = pairs.clean.readouts[0]
    row = torch.arange(len(pairs))
    change = clean_logits[row, at.position] - logits[row, at.position]
    foil = pairs.counterfactual.readouts[0].answer
    expected = change[row, at.answer] - change[row, foil]
    found = patch_role_graphs(model, pairs, [RolePath(("op", "y", "answer")).graph])[0, :, 0]
    assert torch.allclose(found, expected, atol=1e-4)


def test_paths_of_one_graph_are_patched_together():
    model = load("distilled")
    pairs = pairs_of(model, "x")
    paths = [RolePath(("x", "answer")), RolePath(("x", "op", "answer"))]
    one, two, both = patch_role_graphs(
        model, pairs, [*(path.graph for path in paths), join_paths(paths)]
    )[..., 0].mean(1)
    total = contrast_effects(model, pairs)[:, 0].mean()
    assert both > max(one, two)
    assert both / total > 0.9


def test_many_graphs_give_what_each_gives_alone():
    model = load("distilled")
    pairs = pairs_of(model, "y", count=40)
    roles = [r for r in path_roles(pairs.clean) if r not in ("y", "answer")]
    graphs = [RolePath(("y", role, "answer")).graph for role in roles]
    together = patch_role_graphs(model, pairs, graphs)
    for number in (0, len(graphs) // 2, -1):
        alone = patch_role_graphs(model, pairs, [graphs[number]])[0]
        assert torch.allclose(together[number], alone, atol=1e-4)
    assert patch_role_graphs(model, pairs, []).shape == (0, 40, 2)


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama-gqa", "gemma3"])
def test_own_tokens_alone_give_what_whole_copies_give(kind, own):
    """Padded prompts, absolute and rotary positions, grouped heads, sliding windows."""
    model = replace(tiny(kind, vocab_size=len(own)), tokenizer=own)
    assert restart_problem(model) is None
    pairs = pairs_of(model, "x", count=5)
    roles = [r for r in path_roles(pairs.clean) if r not in ("x", "answer")]
    graphs = [RolePath(("x", role, "answer")).graph for role in roles]
    graphs.append(RoleGraph(frozenset({"x"}), every_edge(pairs)))
    own_tokens = patch_role_graphs(model, pairs, graphs)
    model.failed_checks["restarts"] = "a test"
    with pytest.warns(UserWarning, match="whole pass"):
        whole = patch_role_graphs(model, pairs, graphs)
    assert torch.allclose(own_tokens, whole, atol=1e-5 * float(whole.abs().max()) + 1e-6)
    assert float(own_tokens.abs().max()) > 0


def test_words_without_a_role_are_told_apart_by_the_role_before_them():
    pairs = pairs_of(load("distilled"), "operation", count=12)
    masks = path_roles(pairs.clean)
    assert "rest" not in masks
    assert "after y" in masks
    total = torch.stack([*masks.values()]).sum(0)
    assert torch.equal(total > 0, pairs.clean.mask)
    assert int(total.max()) == 1
    assert changed_roles(pairs) == ("op",)
    assert (readout_role(pairs, 0), readout_role(pairs, 1)) == ("answer", "reply_number")


def test_pairs_with_unequal_numbers_of_tokens_are_refused():
    model = load("distilled")
    drawn = pattern("take-away").sample_pairs("paraphrase", 4, seed=0)
    pairs = tokenize_pairs(model.tokenizer, drawn)
    with pytest.raises(BatchError, match="without a counterpart"):
        patch_role_graphs(model, pairs, [RolePath(("op", "answer")).graph])


def test_the_full_model_gathers_the_numbers_behind_the_question_and_distilled_does_not():
    full, distilled = load("full"), load("distilled")
    fractions = {}
    for model in (full, distilled):
        pairs = pairs_of(model, "x", count=16)
        total = contrast_effects(model, pairs)[:, 0].mean()
        effects = candidate_paths(model, pairs, 0)
        fractions[model.name] = {str(p): float(e.mean() / total) for p, e in effects.items()}
    behind = [f"x → after {role} → answer" for role in ("thing_asked", "name_asked")]
    assert sum(fractions["full"].get(path, 0) for path in behind) > 0.7
    assert sum(fractions["distilled"].get(path, 0) for path in behind) < 0.05
    assert fractions["distilled"]["x → answer"] > 0.5


@pytest.mark.parametrize("change", [rotate_residual, partial(insert_silent_layer, at=1)])
def test_models_with_the_same_computation_have_the_same_paths(change):
    planted = planted_fox("template", seed=0)
    other = change(planted.model, seed=0).model
    for contrast in ("operation", "x"):
        pairs = pairs_of(planted.model, contrast, on=planted.pattern, count=8)
        one, two = (candidate_paths(model, pairs, 0) for model in (planted.model, other))
        total = contrast_effects(planted.model, pairs)[:, 0].mean()
        assert total > 0
        for path in one.keys() & two.keys():
            assert torch.allclose(one[path], two[path], atol=1e-3 * float(total))
