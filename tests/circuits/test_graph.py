"""An edge's number and its name are one thing, and an edge that cannot be has neither."""

from dataclasses import replace

import numpy as np
import pytest

from probes.circuits.graph import ComputationGraph, Edge
from probes.errors import CircuitError

ROLES = {
    "roles": ("bos", "x", "answer"),
    # No prompt has an "x" before its "answer" here, so that pair of roles is no passage.
    "role_pairs": (
        ("bos", "bos"),
        ("bos", "x"),
        ("bos", "answer"),
        ("x", "x"),
        ("answer", "answer"),
    ),
    "readouts": ("answer",),
}
WIRINGS = {
    "plain": ComputationGraph(3, 4, 4),
    "grouped": ComputationGraph(2, 4, 2),
    "parallel": ComputationGraph(3, 2, 2, parallel=True),
    "by role": ComputationGraph(2, 2, 2, **ROLES),
    "grouped, parallel, by role": ComputationGraph(2, 4, 1, parallel=True, **ROLES),
}
EACH = pytest.mark.parametrize("wiring", WIRINGS.values(), ids=WIRINGS)


def by_hand(wiring):
    """Walk the residual stream: every reader sees each writer that came before it."""
    written, found = ["embed"], set()
    each = wiring.heads // wiring.kv_heads

    def read(*targets):
        found.update((source, target) for source in written for target in targets)

    for layer in range(wiring.layers):
        heads = [f"L{layer}.H{head}" for head in range(wiring.heads)]
        read(*(f"{head}.q" for head in heads))
        owners = heads if each == 1 else [f"L{layer}.KV{n}" for n in range(wiring.kv_heads)]
        read(*(f"{owner}.{port}" for owner in owners for port in "kv"))
        if wiring.parallel:
            read(f"L{layer}.MLP")
        written += heads
        if not wiring.parallel:
            read(f"L{layer}.MLP")
        written.append(f"L{layer}.MLP")
    read("logits")
    return found


@EACH
def test_numbers_and_names_are_inverse(wiring):
    edges = list(wiring.edges())
    assert len(edges) == len(set(edges)) == len(wiring)
    assert wiring.indices_of(edges).tolist() == list(range(len(wiring)))
    assert [wiring.edge(number) for number in range(len(wiring))] == edges


@EACH
def test_edges_run_from_every_writer_to_every_reader_behind_it(wiring):
    assert {(edge.source, edge.target) for edge in wiring.edges()} == by_hand(wiring)


@EACH
def test_an_edge_reads_as_it_is_written(wiring):
    edges = list(wiring.edges())
    assert [Edge.parse(str(edge)) for edge in edges] == edges
    assert Edge.parse(str(edges[-1]).replace("->", "  → ")) == edges[-1]


@EACH
def test_the_table_says_in_numbers_what_the_names_say(wiring):
    for edge, (source, target, here, there) in zip(
        wiring.edges(), wiring.edge_table.T.tolist(), strict=True
    ):
        assert (wiring.writers[source], wiring.readers[target]) == (edge.source, edge.target)
        assert source < wiring.upstream_count(target)
        if wiring.roles:
            assert (wiring.roles[here], wiring.roles[there]) == (edge.source_role, edge.target_role)
        else:
            assert (here, there, edge.source_role, edge.target_role) == (0, 0, "", "")


@EACH
def test_the_edges_of_a_reader_stand_together(wiring):
    for reader in range(len(wiring.readers)):
        block = wiring.edge_table[1, wiring.edge_offsets[reader] : wiring.edge_offsets[reader + 1]]
        assert (block == reader).all()
        assert len(block) == wiring.upstream_count(reader) * len(wiring.role_index_pairs(reader))


@EACH
def test_a_reader_feeds_the_writers_that_its_name_says(wiring):
    each = wiring.heads // wiring.kv_heads
    for number, reader in enumerate(wiring.readers):
        owners = [wiring.writers[owner] for owner in wiring.writers_fed_by(number)]
        if reader == "logits":
            expected = []
        elif "KV" in reader:
            layer, group = reader[:-2].split(".KV")
            mine = range(int(group) * each, (int(group) + 1) * each)
            expected = [f"{layer}.H{head}" for head in mine]
        else:
            expected = [reader.removesuffix(".q").removesuffix(".k").removesuffix(".v")]
        assert owners == expected
        ports = {"s": "logits", "P": "mlp", "q": "q", "k": "k", "v": "v"}
        assert wiring.port(number) == ports[reader[-1]]


def test_gpt2_has_32491_edges():
    wiring = ComputationGraph(12, 12, 12)
    assert len(wiring) == wiring.edge_table.shape[1] == 32_491
    assert len(wiring.writers) == 157
    assert len(wiring.readers) == 445


def test_parallel_blocks_have_no_edge_from_a_head_to_the_mlp_beside_it():
    names = {str(edge) for edge in ComputationGraph(2, 2, 2).edges()}
    beside = {f"L{layer}.H{head}->L{layer}.MLP" for layer in (0, 1) for head in (0, 1)}
    assert beside <= names
    assert {
        str(edge) for edge in ComputationGraph(2, 2, 2, parallel=True).edges()
    } == names - beside


def test_heads_of_a_group_share_edges_into_keys_and_values():
    wiring = WIRINGS["grouped"]
    for port in "kv":
        number = wiring.index_of(Edge("embed", f"L1.KV1.{port}"))
        owners = wiring.writers_fed_by(int(wiring.edge_table[1, number]))
        assert [wiring.writers[owner] for owner in owners] == ["L1.H2", "L1.H3"]
    apart, shared = ComputationGraph(2, 4, 4), wiring
    saved = sum(
        2 * 2 * shared.upstream_count(shared.readers.index(f"L{n}.KV0.k")) for n in range(2)
    )
    assert len(apart) - len(shared) == saved


def test_keys_and_values_pass_between_roles_and_all_else_stays():
    wiring = WIRINGS["by role"]
    for edge in wiring.edges():
        passage = (edge.source_role, edge.target_role)
        if edge.target[-2:] in (".k", ".v"):
            assert passage in wiring.role_pairs
        else:
            assert edge.source_role == edge.target_role
            assert edge.target != "logits" or edge.source_role == "answer"


@EACH
def test_within_finds_an_edge_by_its_name_in_the_wiring_of_other_prompts(wiring):
    assert wiring.indices_in(wiring).tolist() == list(range(len(wiring)))
    if not wiring.roles:
        return
    other = replace(
        wiring,
        roles=("answer", "y", "bos"),
        role_pairs=(("bos", "bos"), ("bos", "answer"), ("y", "answer"), ("answer", "bos")),
        readouts=("y",),
    )
    found = wiring.indices_in(other).tolist()
    names = list(other.edges())
    for edge, number in zip(wiring.edges(), found, strict=True):
        assert edge not in names if number < 0 else names[number] == edge
    assert 0 < sum(number >= 0 for number in found) < len(found)


def test_edges_are_not_looked_for_in_a_wiring_of_another_shape():
    plain, by_role = WIRINGS["plain"], WIRINGS["by role"]
    with pytest.raises(CircuitError, match="differs in parallel: use models of one shape"):
        plain.indices_in(replace(plain, parallel=True))
    with pytest.raises(CircuitError, match="differs in whether roles are resolved"):
        by_role.indices_in(ComputationGraph(2, 2, 2))


def test_no_edges_have_no_numbers():
    found = WIRINGS["plain"].indices_of([])
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
    "L-1.H0->logits": "'L-1.H0' writes nothing: sources are 'embed'",
    "L0.H-1->logits": "'L0.H-1' writes nothing: sources are 'embed'",
    "embed->L0.H-1.q": "'L0.H-1.q' reads nothing: targets of this model are 'L0.H1.q'",
    "logits->L0.MLP": "'logits' writes nothing",
    "embed->embed": "'embed' reads nothing",
    "embed->L0.H1": "'L0.H1' reads nothing",
    "L0.H1.q->logits": "'L0.H1.q' writes nothing",
    "embed->L0.KV1.k": "'L0.KV1.k' reads nothing: .*'L0.H1.k'",
    "embed@x->L0.MLP@x": "has a role, and this wiring is not resolved by roles",
    "embed@x->L0.MLP": "has a role, and this wiring is not resolved by roles",
}


@pytest.mark.parametrize("name", PLAIN)
def test_edges_that_cannot_be_are_refused(name):
    message = PLAIN[name].replace("runs? forward", "cannot exist: .* Let edges run forward")
    with pytest.raises(CircuitError, match=message):
        WIRINGS["plain"].index_of(Edge.parse(name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embed->L0.MLP", "lacks a role, and this wiring is resolved by roles"),
        ("embed@x->L0.MLP", "lacks a role"),
        ("embed@verb->L0.MLP@verb", "Role 'verb' of .* is unknown: bos, x, answer"),
        ("embed@x->L0.H0.k@bos", "'x' for 'bos'. Only keys and values pass from one role"),
        ("embed@x->L0.H0.v@answer", "reads nothing at 'x' for 'answer'"),
        ("embed@bos->L0.H0.q@x", "reads nothing at 'bos' for 'x'.* only to a later one"),
        ("embed@bos->L0.MLP@x", "reads nothing at 'bos' for 'x'"),
        ("embed@x->logits@x", "logits reads nothing at 'x'"),
    ],
)
def test_roles_that_an_edge_cannot_have_are_refused(name, message):
    with pytest.raises(CircuitError, match=message):
        WIRINGS["by role"].index_of(Edge.parse(name))


@pytest.mark.parametrize("name", ["embed->L0.H1.k", "embed->L0.H3.v", "embed->L0.KV2.k"])
def test_keys_of_a_group_are_named_by_the_group(name):
    with pytest.raises(CircuitError, match=r"'L0.KV1.k'|names head 2, and the model has 2"):
        WIRINGS["grouped"].index_of(Edge.parse(name))


@pytest.mark.parametrize("text", ["", "embed", "embed->", "->logits", "a->b->c", "embed>logits"])
def test_text_that_is_no_edge_is_refused(text):
    with pytest.raises(CircuitError, match=r"is no edge: write it as in 'L0.H1->L2.H3.q'"):
        Edge.parse(text)
