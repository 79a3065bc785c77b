"""Roles of heads: effects between roles on planted models, and their saved form; paths."""

import json
import math
from dataclasses import replace

import pytest
import torch

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_attribution import EAP, edge_attribution
from probes.circuits.edges.head_effects import head_effects, label_heads
from probes.circuits.graph import ComputationGraph, Edge
from probes.circuits.head_roles import HeadRole
from probes.circuits.paths import circuit_paths
from probes.circuits.task import Task
from probes.errors import CircuitError
from probes.testing.planted_circuits import induction
from probes.testing.tiny_models import tiny

GRAPH = ComputationGraph(2, 4, 2)
ROLES = (HeadRole("L0.H1", "answer", "name", 0.75, 0.5), HeadRole("L1.H3", "x", "y", 1.0, 0.25))


def in_roles(task):
    """The task of induction with a role for keys, one for values, and one for the queried key."""
    width = task.clean.shape[1]
    role_of = torch.tensor([0, *([1, 2] * ((width - 2) // 2)), 3]).repeat(len(task), 1)
    return replace(task, roles=("bos", "key", "value", "query"), role_of=role_of)


def test_planted_heads_bear_the_roles_between_which_they_move_tokens():
    """One copies each key to the value behind it; the other reads the value of the asked key."""
    planted = induction(0, distractors=2)
    (second,) = (edge.source for edge in planted.truth if edge.target == "logits")
    (first,) = (e.source for e in planted.truth if e.target == f"{second}.k")
    found = label_heads(planted.model, in_roles(planted.task), [first, second])
    assert [str(role) for role in found] == [f"{first}: value ← key", f"{second}: query ← value"]
    assert all(role.fraction > 0.9 and 0 < role.attention <= 1 for role in found)


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "neox"])
def test_effects_between_roles_sum_to_the_attribution_of_the_head(kind):
    model = tiny(kind)
    draw = torch.Generator().manual_seed(0)
    clean, other = torch.randint(5, 40, (2, 6, 7), generator=draw)
    other[:, 0] = clean[:, 0]
    answer, foil = torch.randint(5, 40, (2, 6), generator=draw)
    task = Task.from_tokens(clean, other, answer, foil[:, None])
    effects, attention = head_effects(model, task)
    scores = edge_attribution(model, task, method=EAP(gradient_at=0.5)).node_scores()
    largest = max(abs(score) for score, _ in scores.values())
    for layer in range(model.shape.layers):
        for head in range(model.shape.heads):
            total = float(effects[layer, head].sum())
            assert total == pytest.approx(scores[f"L{layer}.H{head}"][0], abs=1e-4 * largest)
    assert torch.allclose(attention.sum(-1), torch.ones(attention.shape[:-1]), atol=1e-5)


def made(**changes):
    scores = {"embed->L0.H1.q": 3.0, "L0.H1->L1.KV1.v": -2.0, "L1.H3->logits": 4.0}
    edges = tuple(map(Edge.parse, scores))
    found = Circuit("m", GRAPH, edges, tuple(scores.values()), (math.nan,) * 3, head_roles=ROLES)
    return replace(found, **changes)


def test_a_circuit_keeps_the_roles_of_the_heads_that_it_has():
    circuit = made()
    assert circuit.head_roles == ROLES
    assert circuit.top(1).head_roles == ROLES[1:]
    other = made(head_roles=(replace(ROLES[0], key="z"),))
    assert (circuit | other).head_roles == ROLES  # Those of the left where both have the head.
    assert (other | circuit).head_roles[0].key == "z"
    assert (circuit - other).head_roles == ()


def test_roles_of_heads_are_saved_and_circuits_without_them_are_read():
    circuit = made()
    assert Circuit.from_json(circuit.to_json()) == circuit
    plain = json.loads(circuit.to_json())
    assert plain["head_roles"][0] == ["L0.H1", "answer", "name", 0.75, 0.5]
    del plain["head_roles"]  # As files were before heads had roles.
    assert Circuit.from_json(json.dumps(plain)) == made(head_roles=())
    assert "head_roles" not in json.loads(made(head_roles=()).to_json())


@pytest.mark.parametrize("broken", [3, [3], [["L0.H1", "a", "b", 1.0]], [["L0.H1", "a", 2, 1, 1]]])
def test_broken_roles_of_heads_are_refused(broken):
    plain = {**json.loads(made().to_json()), "head_roles": broken}
    with pytest.raises(CircuitError, match="head_roles"):
        Circuit.from_json(json.dumps(plain))


# --- paths ------------------------------------------------------------------------------------


def paths(scores, graph=GRAPH):
    edges = tuple(map(Edge.parse, scores))
    circuit = Circuit("m", graph, edges, tuple(scores.values()), (math.nan,) * len(edges))
    return [(str(path), path.strength) for path in circuit_paths(circuit)]


def test_each_edge_is_on_a_path_that_goes_on_by_the_strongest_edges():
    found = paths(
        {
            "embed->L0.H1.q": 5.0,
            "embed->L0.MLP": 1.0,
            "L0.H1->L0.MLP": 3.0,
            "L0.MLP->logits": -4.0,
            "L0.H1->logits": 2.0,
        }
    )
    assert found == [
        ("embed → L0.H1.q → L0.MLP → logits", 3.0),
        ("embed → L0.H1.q → logits", 2.0),
        ("embed → L0.MLP → logits", 1.0),
    ]


def test_a_path_goes_through_the_head_of_a_group_that_writes_on():
    assert [
        name for name, _ in paths(dict(zip(map(str, made().edges), made().scores, strict=True)))
    ] == ["embed → L0.H1.q → L1.H3.v → logits"]


def test_paths_of_a_circuit_that_is_not_connected_end_early():
    assert paths({"L0.H1->L1.MLP": 1.0, "embed->L0.MLP": 2.0}) == [
        ("embed → L0.MLP", 2.0),
        ("L0.H1 → L1.MLP", 1.0),
    ]


def test_paths_by_roles_name_the_roles():
    graph = ComputationGraph(
        1, 1, 1, False, ("x", "y"), (("x", "x"), ("x", "y"), ("y", "y")), ("y",)
    )
    found = paths({"embed@x->L0.H0.v@y": 1.0, "L0.H0@y->logits@y": 2.0}, graph)
    assert found == [("embed@x → L0.H0.v@y → logits@y", 1.0)]
