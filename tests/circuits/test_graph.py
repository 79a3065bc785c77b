"""Computation graphs: edges by name and number, roles, and graphs of other prompts."""

from dataclasses import replace

import numpy as np
import pytest

from probes.circuits.graph import ComputationGraph, Edge
from probes.errors import CircuitError

ROLES = {
    "roles": ("bos", "x", "answer"),
    # No prompt has "x" before "answer" here, so that pair of roles is missing.
    "role_pairs": (
        ("bos", "bos"),
        ("bos", "x"),
        ("bos", "answer"),
        ("x", "x"),
        ("answer", "answer"),
    ),
    "readouts": ("answer",),
}
GRAPHS = {
    "plain": ComputationGraph(3, 4, 4),
    "grouped": ComputationGraph(2, 4, 2),
    "parallel": ComputationGraph(3, 2, 2, parallel=True),
    "by role": ComputationGraph(2, 2, 2, **ROLES),
    "grouped, parallel, by role": ComputationGraph(2, 4, 1, parallel=True, **ROLES),
}
EACH = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def edges_by_hand(graph):
    """Walk along the residual stream: every reader sees each earlier writer."""
    written, found = ["embed"], set()
    each = graph.heads // graph.kv_heads

    def read(*targets):
        found.update((source, target) for source in written for target in targets)

    for layer in range(graph.layers):
        heads = [f"L{layer}.H{head}" for head in range(graph.heads)]
        read(*(f"{head}.q" for head in heads))
        owners = heads if each == 1 else [f"L{layer}.KV{n}" for n in range(graph.kv_heads)]
        read(*(f"{owner}.{port}" for owner in owners for port in "kv"))
        if graph.parallel:
            read(f"L{layer}.MLP")
        written += heads
        if not graph.parallel:
            read(f"L{layer}.MLP")
        written.append(f"L{layer}.MLP")
    read("logits")
    return found


@EACH
def test_numbers_and_names_are_inverse(graph):
    edges = list(graph.edges())
    assert len(edges) == len(set(edges)) == len(graph)
    assert graph.indices_of(edges).tolist() == list(range(len(graph)))
    assert [graph.edge(number) for number in range(len(graph))] == edges


@EACH
def test_edges_run_from_every_writer_to_every_later_reader(graph):
    assert {(edge.source, edge.target) for edge in graph.edges()} == edges_by_hand(graph)


@EACH
def test_parsing_inverts_str(graph):
    edges = list(graph.edges())
    assert [Edge.parse(str(edge)) for edge in edges] == edges
    assert Edge.parse(str(edges[-1]).replace("->", "  → ")) == edges[-1]


@EACH
def test_the_table_agrees_with_the_names(graph):
    for edge, (source, target, here, there) in zip(
        graph.edges(), graph.edge_table.T.tolist(), strict=True
    ):
        assert (graph.writers[source], graph.readers[target]) == (edge.source, edge.target)
        assert source < graph.upstream_count(target)
        if graph.roles:
            assert (graph.roles[here], graph.roles[there]) == (edge.source_role, edge.target_role)
        else:
            assert (here, there, edge.source_role, edge.target_role) == (0, 0, "", "")


@EACH
def test_the_edges_of_a_reader_are_contiguous(graph):
    for reader in range(len(graph.readers)):
        block = graph.edge_table[1, graph.edge_offsets[reader] : graph.edge_offsets[reader + 1]]
        assert (block == reader).all()
        assert len(block) == graph.upstream_count(reader) * len(graph.role_index_pairs(reader))


@EACH
def test_a_reader_feeds_the_writers_that_its_name_tells(graph):
    each = graph.heads // graph.kv_heads
    for number, reader in enumerate(graph.readers):
        owners = [graph.writers[owner] for owner in graph.writers_fed_by(number)]
        if reader == "logits":
            expected = []
        elif "KV" in reader:
            layer, group = reader[:-2].split(".KV")
            group = range(int(group) * each, (int(group) + 1) * each)
            expected = [f"{layer}.H{head}" for head in group]
        else:
            expected = [reader.removesuffix(".q").removesuffix(".k").removesuffix(".v")]
        assert owners == expected
        ports = {"s": "logits", "P": "mlp", "q": "q", "k": "k", "v": "v"}
        assert graph.port(number) == ports[reader[-1]]


def test_gpt2_has_32491_edges():
    graph = ComputationGraph(12, 12, 12)
    assert len(graph) == graph.edge_table.shape[1] == 32_491
    assert len(graph.writers) == 157
    assert len(graph.readers) == 445


def test_parallel_blocks_have_no_edge_from_a_head_to_the_mlp_of_its_layer():
    names = {str(edge) for edge in ComputationGraph(2, 2, 2).edges()}
    same_layer = {f"L{layer}.H{head}->L{layer}.MLP" for layer in (0, 1) for head in (0, 1)}
    assert same_layer <= names
    assert {
        str(edge) for edge in ComputationGraph(2, 2, 2, parallel=True).edges()
    } == names - same_layer


def test_heads_of_a_group_share_edges_into_keys_and_values():
    graph = GRAPHS["grouped"]
    for port in "kv":
        number = graph.index_of(Edge("embed", f"L1.KV1.{port}"))
        owners = graph.writers_fed_by(int(graph.edge_table[1, number]))
        assert [graph.writers[owner] for owner in owners] == ["L1.H2", "L1.H3"]
    apart, shared = ComputationGraph(2, 4, 4), graph
    saved = sum(
        2 * 2 * shared.upstream_count(shared.readers.index(f"L{n}.KV0.k")) for n in range(2)
    )
    assert len(apart) - len(shared) == saved


def test_only_keys_and_values_connect_different_roles():
    graph = GRAPHS["by role"]
    for edge in graph.edges():
        roles = (edge.source_role, edge.target_role)
        if edge.target[-2:] in (".k", ".v"):
            assert roles in graph.role_pairs
        else:
            assert edge.source_role == edge.target_role
            assert edge.target != "logits" or edge.source_role == "answer"


@EACH
def test_edges_are_found_by_name_in_the_graph_of_other_prompts(graph):
    assert graph.indices_in(graph).tolist() == list(range(len(graph)))
    if not graph.roles:
        return
    other = replace(
        graph,
        roles=("answer", "y", "bos"),
        role_pairs=(("bos", "bos"), ("bos", "answer"), ("y", "answer"), ("answer", "bos")),
        readouts=("y",),
    )
    found = graph.indices_in(other).tolist()
    names = list(other.edges())
    for edge, number in zip(graph.edges(), found, strict=True):
        assert edge not in names if number < 0 else names[number] == edge
    assert 0 < sum(number >= 0 for number in found) < len(found)


def test_graphs_of_another_shape_are_refused():
    plain, by_role = GRAPHS["plain"], GRAPHS["by role"]
    with pytest.raises(
        CircuitError, match=r"differ in parallel \(False and True\): use models of one shape"
    ):
        plain.indices_in(replace(plain, parallel=True))
    with pytest.raises(CircuitError, match=r"differ in resolved by roles \(True and False\)"):
        by_role.indices_in(ComputationGraph(2, 2, 2))


def test_no_edges_have_no_numbers():
    found = GRAPHS["plain"].indices_of([])
    assert found.shape == (0,)
    assert found.dtype == np.int64


PLAIN = {
    "L1.H0->L0.H1.q": "runs? forward",
    "L1.H0->L1.H1.q": "runs? forward",
    "L1.MLP->L1.MLP": "runs? forward",
    "L1.MLP->L1.H0.k": "runs? forward",
    "L0.H4->L1.H0.q": "names head 4, and the model has 4: count from 0",
    "embed->L1.H4.q": "names head 4, and the model has 4: count from 0",
    "embed->L1.H9.v": "names head 9, and the model has 4: count from 0",
    "L3.H0->logits": "names layer 3, and the model has 3: count from 0",
    "embed->L3.MLP": "names layer 3, and the model has 3: count from 0",
    "L-1.H0->logits": "'L-1.H0' writes nothing: use 'embed'",
    "L0.H-1->logits": "'L0.H-1' writes nothing: use 'embed'",
    "embed->L0.H-1.q": "'L0.H-1.q' reads nothing in this model: use 'L0.H1.q'",
    f"L{'9' * 5000}.MLP->logits": "'L9999.* writes nothing: use 'embed'",
    f"embed->L0.H{'9' * 5000}.q": "'L0.H999.* reads nothing in this model: use",
    "logits->L0.MLP": "'logits' writes nothing",
    "embed->embed": "'embed' reads nothing in",
    "embed->L0.H1": "'L0.H1' reads nothing",
    "L0.H1.q->logits": "'L0.H1.q' writes nothing",
    "embed->L0.KV1.k": "'L0.KV1.k' reads nothing in .*'L0.H1.k'",
    "embed@x->L0.MLP@x": "has a role, and this graph is not resolved by roles",
    "embed@x->L0.MLP": "has a role, and this graph is not resolved by roles",
}


@pytest.mark.parametrize("name", PLAIN, ids=lambda name: name[:40])
def test_impossible_edges_are_refused(name):
    message = PLAIN[name].replace("runs? forward", "cannot exist: .* Let edges run forward")
    with pytest.raises(CircuitError, match=message):
        GRAPHS["plain"].index_of(Edge.parse(name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embed->L0.MLP", "lacks a role, and this graph is resolved by roles"),
        ("embed@x->L0.MLP", "lacks a role"),
        ("embed@verb->L0.MLP@verb", "Role 'verb' of .* is unknown: bos, x, answer"),
        ("embed@x->L0.H0.k@bos", "'x' for 'bos'. Only keys and values pass from one role"),
        ("embed@x->L0.H0.v@answer", "reads nothing at 'x' for 'answer'"),
        ("embed@bos->L0.H0.q@x", "reads nothing at 'bos' for 'x'.* only to a later one"),
        ("embed@bos->L0.MLP@x", "reads nothing at 'bos' for 'x'"),
        ("embed@x->logits@x", "logits reads nothing at 'x'"),
    ],
)
def test_impossible_roles_of_an_edge_are_refused(name, message):
    with pytest.raises(CircuitError, match=message):
        GRAPHS["by role"].index_of(Edge.parse(name))


@pytest.mark.parametrize("name", ["embed->L0.H1.k", "embed->L0.H3.v", "embed->L0.KV2.k"])
def test_keys_of_a_group_are_named_by_the_group(name):
    with pytest.raises(CircuitError, match=r"'L0.KV1.k'|names head 2, and the model has 2"):
        GRAPHS["grouped"].index_of(Edge.parse(name))


@pytest.mark.parametrize("text", ["", "embed", "embed->", "->logits", "a->b->c", "embed>logits"])
def test_text_that_is_no_edge_is_refused(text):
    with pytest.raises(CircuitError, match=r"is no edge: write it as in 'L0.H1->L2.H3.q'"):
        Edge.parse(text)
