"""Circuits where a norm stands behind attention, held against plain Hugging Face modules."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from token_pairs import pairs

from probes.circuits.edges.edge_attribution import EAP, edge_attribution
from probes.circuits.edges.path_patching import edge_patching, run_circuits
from probes.circuits.graph import Edge
from probes.circuits.runs.reference import run_references
from probes.comparison.representations.weights import weight_similarity
from probes.errors import ModelError
from probes.models.model import wrap
from probes.testing.tiny_models import KINDS, POST_NORM_KINDS, tiny, tiny_hf

EACH = pytest.mark.parametrize("kind", POST_NORM_KINDS)
HEADS, GROUP, D_HEAD = 4, 2, 8

model_of = cache(tiny)


# One edge by hand: only Hugging Face modules and hooks of torch.


@contextmanager
def hooked(*hooks):
    """Hooks of torch on modules: functions of the output, or of the input where `before`."""
    with ExitStack() as stack:
        for module, function, before in hooks:
            if before:
                handle = module.register_forward_pre_hook(lambda _, args, f=function: f(args[0]))
            else:
                handle = module.register_forward_hook(lambda _m, _a, out, f=function: f(out))
            stack.callback(handle.remove)
        yield


def logit_diffs(hf_model, task, ids, *hooks):
    with torch.no_grad(), hooked(*hooks):
        return task.logit_diff(hf_model(input_ids=ids, use_cache=False).logits[:, -1])


def kept_input(hf_model, task, ids, module):
    """Input of a module in a run."""
    kept = []
    logit_diffs(hf_model, task, ids, (module, kept.append, True))
    return kept[0]


@pytest.mark.parametrize(
    "target", ["L1.H2.q", "L1.KV1.k", "L1.KV0.v", "L1.MLP", "L2.H0.q", "logits"]
)
@EACH
def test_an_edge_of_a_head_equals_hooks_on_the_hugging_face_model(kind, target):
    """The reader reads the residual with one head replaced before the norm of their sum."""
    hf_model, task = tiny_hf(kind, 0), pairs(width=6, at=3)
    blocks = hf_model.model.layers
    source, head = blocks[0], 1
    clean_z, other_z = (
        kept_input(hf_model, task, ids, source.self_attn.o_proj)
        for ids in (task.clean, task.counterfactual)
    )
    mixed_z, own = clean_z.clone(), slice(head * D_HEAD, (head + 1) * D_HEAD)
    mixed_z[..., own] = other_z[..., own]
    with torch.no_grad():
        after, before = (
            source.post_attention_layernorm(source.self_attn.o_proj(z)) for z in (mixed_z, clean_z)
        )
    change = after - before
    if target == "logits":
        hook = (hf_model.model.norm, lambda x: x + change, True)
    elif target.endswith("MLP"):
        pre_norm = getattr(blocks[1], "pre_feedforward_layernorm", blocks[1].mlp)
        hook = (pre_norm, lambda x: x + change, True)
    else:
        layer, number, port = int(target[1]), int(target.split(".")[1][-1]), target[-1]
        attn = blocks[layer].self_attn
        norm = getattr(blocks[layer], "input_layernorm", lambda x: x)
        # The projection, or in OLMo-2 the norm of all queries or all keys.
        pipeline = [getattr(attn, f"{port}_proj")]
        if kind == "olmo2" and port != "v":
            pipeline.append(getattr(attn, f"{port}_norm"))
        resid = kept_input(hf_model, task, task.clean, blocks[layer])
        with torch.no_grad():
            new = norm(resid + change)
            for module in pipeline:
                new = module(new)
        columns = slice(number * D_HEAD, (number + 1) * D_HEAD)

        def put(out):
            out = out.clone()
            out[..., columns] = new[..., columns]
            return out

        hook = (pipeline[-1], put, False)
    lead = logit_diffs(hf_model, task, task.clean)
    expected = lead - logit_diffs(hf_model, task, task.clean, hook)
    found = edge_patching(model_of(kind), task, edges=[Edge(f"L0.H{head}", target)])[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert expected.abs().max() > 1e-3


# Whole circuits by hand.


def circuit_by_hand(hf_model, task, kept):
    """Logit differences of a circuit, reader by reader, from Hugging Face modules and hooks.

    `kept` holds pairs of a writer and a reader. Each reader runs the model's own module on the
    residual that its edges make.
    """
    blocks = hf_model.model.layers
    other = {}
    for layer, block in enumerate(blocks):
        other[layer] = kept_input(hf_model, task, task.counterfactual, block.self_attn.o_proj)
        post = block.post_feedforward_layernorm
        out = []
        logit_diffs(hf_model, task, task.counterfactual, (post, out.append, False))
        other[f"L{layer}.MLP"] = out[0]
    embed, other["embed"] = (
        kept_input(hf_model, task, ids, blocks[0]) for ids in (task.clean, task.counterfactual)
    )
    own = {"embed": embed}

    def resid(reader, layers, within=False):
        """Residual that a reader sees after some layers, and after the next attention."""
        total = (own if ("embed", reader) in kept else other)["embed"]
        for layer in range(layers + within):
            parts = [
                own[f"L{layer}.H{head}"]
                if (f"L{layer}.H{head}", reader) in kept
                else other[layer][..., head * D_HEAD : (head + 1) * D_HEAD]
                for head in range(HEADS)
            ]
            z = torch.cat(parts, -1)
            total = total + blocks[layer].post_attention_layernorm(
                blocks[layer].self_attn.o_proj(z)
            )
            if layer < layers:
                name = f"L{layer}.MLP"
                total = total + (own if (name, reader) in kept else other)[name]
        return total

    def hooks_of(layer, readers):
        """Queries, keys and values of one layer, each from its reader's residual."""
        block, found = blocks[layer], []
        for port, reader in readers.items():
            module = getattr(block.self_attn, f"{port}_proj")
            norm = getattr(block, "input_layernorm", lambda x: x)
            with torch.no_grad():
                new = module(norm(resid(reader, layer)))
            found.append((module, lambda _, new=new: new, False))
        return found

    for layer in range(len(blocks)):
        for head in range(HEADS):
            group = f"L{layer}.KV{head // GROUP}"
            readers = {"q": f"L{layer}.H{head}.q", "k": f"{group}.k", "v": f"{group}.v"}
            z = []
            output = (blocks[layer].self_attn.o_proj, z.append, True)
            logit_diffs(hf_model, task, task.clean, *hooks_of(layer, readers), output)
            own[f"L{layer}.H{head}"] = z[0][..., head * D_HEAD : (head + 1) * D_HEAD]
        block, x = blocks[layer], resid(f"L{layer}.MLP", layer, within=True)
        pre_norm = getattr(block, "pre_feedforward_layernorm", lambda x: x)
        own[f"L{layer}.MLP"] = block.post_feedforward_layernorm(block.mlp(pre_norm(x)))
    final = resid("logits", len(blocks))
    return logit_diffs(hf_model, task, task.clean, (hf_model.model.norm, lambda _: final, True))


@EACH
def test_a_circuit_equals_its_readers_run_one_by_one_in_hugging_face_modules(kind):
    hf_model, task = tiny_hf(kind, 0), pairs(width=6, at=3)
    runs = run_references(model_of(kind), task)
    draw = torch.Generator().manual_seed(1)
    masks = (
        torch.rand(4, len(runs.graph), generator=draw) < torch.tensor([0.2, 0.5, 0.8, 1])[:, None]
    )
    found = {start: run_circuits(runs, masks, start_from=start) for start in ("clean", "replaced")}
    for row, mask in enumerate(masks):
        kept = {
            (edge.source, edge.target)
            for edge in (runs.graph.edge(int(index)) for index in mask.nonzero()[:, 0])
        }
        with torch.no_grad():
            expected = circuit_by_hand(hf_model, task, kept)
        for values in found.values():
            torch.testing.assert_close(values[row], expected, atol=2e-5, rtol=0)
    assert found["clean"].std(0).min() > 0.05


# Attribution is the slope of exact patching.


@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        *((kind, roles) for kind in (*KINDS, *POST_NORM_KINDS) for roles in (False, True)),
        *(("qwen3", False), ("mistral", True)),
    ],
)
def test_an_eap_score_is_the_slope_of_the_edge_patched_exactly(kind, roles):
    model, task = model_of(kind), pairs(width=6, at=3)
    runs = run_references(model, task, roles=roles)
    scores = edge_attribution(model, task, method=EAP(), roles=roles)
    edges = torch.arange(0, len(runs.graph), 7 if roles else 3)
    cut = torch.zeros(len(edges), len(runs.graph), dtype=torch.bool)
    cut[torch.arange(len(edges)), edges] = True

    def drop(step):
        """Logit difference when each edge carries a part of the counterfactual's change."""
        clean, other = runs.clean, runs.ablated
        part = replace(
            other,
            embed=clean.embed.lerp(other.embed, step),
            z=tuple(a.lerp(b, step) for a, b in zip(clean.z, other.z, strict=True)),
            mlp_out=tuple(
                a.lerp(b, step) for a, b in zip(clean.mlp_out, other.mlp_out, strict=True)
            ),
        )
        return run_circuits(replace(runs, ablated=part), ~cut, start_from="clean")

    wide, narrow = ((drop(-step) - drop(step)) / (2 * step) for step in (0.02, 0.01))
    slope = (4 * narrow - wide) / 3  # Richardson: free of the third derivative.
    found = scores.per_prompt[:, edges].T
    torch.testing.assert_close(slope, found, atol=2e-3 * float(found.abs().max()), rtol=0.02)
    assert found.abs().max() > 0.05


@EACH
def test_a_louder_sum_of_heads_has_the_same_scores_behind_its_norm(kind):
    task, model = pairs(width=6, at=3), model_of(kind)
    scores = edge_attribution(model, task, method="eap").node_scores()
    hf_model = tiny_hf(kind, 0)
    with torch.no_grad():
        for block in hf_model.model.layers:
            block.self_attn.o_proj.weight.mul_(10)
    louder = edge_attribution(wrap(hf_model, name="louder"), task, method="eap").node_scores()
    for name, (mean, _) in scores.items():
        assert abs(louder[name][0] - mean) < 1e-2 * max(1, abs(mean))


@EACH
def test_weights_are_not_compared_as_if_heads_wrote_without_the_norm(kind):
    with pytest.raises(ModelError, match="not a linear map"):
        weight_similarity(tiny(kind, 0), tiny(kind, 1))
