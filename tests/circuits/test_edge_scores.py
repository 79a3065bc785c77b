"""Edge scores: selecting circuits, summing to nodes, and stability over prompts."""

import numpy as np
import pytest
import torch

from probes.circuits.edges.edge_scores import EdgeScores
from probes.circuits.graph import ComputationGraph
from probes.errors import CircuitError

PLAIN = ComputationGraph(2, 2, 2)


def random_scores(prompts=6, seed=0, graph=PLAIN, *, per_prompt=True, same=False):
    """Random scores of the edges of a graph."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(1 if same else prompts, len(graph), generator=draw).expand(prompts, -1)
    protocol = (("method", "random"), ("task", "none"))
    unknown = torch.full((len(graph),), torch.nan)
    error = rows.std(0) / prompts**0.5 if prompts > 1 else unknown
    kept = rows.clone() if per_prompt else None
    return EdgeScores("random", graph, prompts, rows.mean(0), error, kept, protocol)


def scores_of(circuit):
    return torch.tensor(circuit.scores)


def test_the_top_edges_are_those_of_greatest_absolute_score():
    found = random_scores()
    circuit = found.top(7)
    wanted = found.mean.abs().topk(7).indices.sort().values
    assert circuit.edge_indices.tolist() == wanted.tolist()
    assert circuit.edges == tuple(PLAIN.edge(int(number)) for number in wanted)
    torch.testing.assert_close(scores_of(circuit), found.mean[wanted])
    torch.testing.assert_close(torch.tensor(circuit.errors), found.error[wanted])
    assert circuit.model == "random" and circuit.graph == PLAIN
    assert circuit.protocol == (*found.protocol, ("selection", "top"))
    assert (scores_of(circuit) < 0).any() and (scores_of(circuit) > 0).any()


def test_edges_above_a_threshold_include_the_threshold_itself():
    found = random_scores()
    threshold = float(found.mean.abs().median())
    circuit = found.above_threshold(threshold)
    assert len(circuit) == int((found.mean.abs() >= threshold).sum())
    assert (scores_of(circuit).abs() >= threshold).all()
    assert dict(circuit.protocol)["selection"] == "threshold"
    assert len(found.above_threshold(0.0)) == len(found)
    with pytest.raises(CircuitError, match=r"The threshold is -1\.0"):
        found.above_threshold(-1.0)


def test_a_greedy_circuit_is_connected_and_starts_with_the_strongest_edge_into_the_logits():
    found = random_scores()
    into = [n for n in range(len(found)) if PLAIN.edge(n).target == "logits"]
    strongest = max(into, key=lambda n: abs(float(found.mean[n])))
    assert found.greedy(1).edge_indices.tolist() == [strongest]
    circuit = found.greedy(9)
    assert len(circuit) == 9
    assert dict(circuit.protocol)["selection"] == "greedy"
    sources = {edge.source for edge in circuit.edges}
    for edge in circuit.edges:
        owner = edge.target.removesuffix(".q").removesuffix(".k").removesuffix(".v")
        assert owner == "logits" or owner in sources
    torch.testing.assert_close(scores_of(circuit), found.mean[circuit.edge_indices.copy()])


def test_all_edges_form_a_circuit():
    found = random_scores()
    circuit = found.all_edges()
    assert len(circuit) == len(found) == len(PLAIN)
    torch.testing.assert_close(scores_of(circuit), found.mean)


def test_edges_are_selected_by_number_in_any_order():
    found = random_scores()
    circuit = found.to_circuit(np.array([5, 2, 9]))
    assert circuit.edge_indices.tolist() == [2, 5, 9]
    assert dict(circuit.protocol)["selection"] == "by hand"


def test_a_count_above_the_number_of_edges_selects_all():
    found = random_scores()
    assert len(found.top(10**6)) == len(found)
    assert len(found.top(0)) == 0
    with pytest.raises(CircuitError, match="give 0 or more"):
        found.top(-1)


def test_a_node_score_is_the_sum_of_its_outgoing_edges():
    for graph in (
        PLAIN,
        ComputationGraph(2, 4, 2, True, ("a", "b"), (("a", "a"), ("a", "b"), ("b", "b")), ("b",)),
    ):
        found = random_scores(graph=graph)
        nodes = found.node_scores()
        assert tuple(nodes) == graph.writers
        for name, (mean, error) in nodes.items():
            outgoing = [n for n, edge in enumerate(graph.edges()) if edge.source == name]
            rows = found.per_prompt[:, outgoing].sum(1)
            assert abs(mean - float(rows.mean())) < 1e-5
            assert abs(error - float(rows.std()) / 6**0.5) < 1e-5


def test_a_node_error_is_nan_without_per_prompt_scores_or_with_one_prompt():
    for found in (random_scores(per_prompt=False), random_scores(1)):
        for _, error in found.node_scores().values():
            assert np.isnan(error)


# Stability.


def test_identical_prompts_give_the_same_circuit_in_every_draw():
    for count in (1, 10, len(PLAIN), 10**6):
        assert random_scores(same=True).stability(count, draws=50) == 1.0
    few = random_scores(same=True)
    few.per_prompt[:, 10:] = 0
    # Edges with a score of 0 follow in order.
    assert few.stability(20, draws=50) == 1.0


def test_different_prompts_give_different_circuits():
    noise = random_scores(8, graph=ComputationGraph(3, 4, 4))
    unstable = noise.stability(20, draws=200)
    assert 0.05 < unstable < 0.9
    signal = random_scores(8, graph=ComputationGraph(3, 4, 4))
    signal.per_prompt[:, :20] += 100
    assert signal.stability(20, draws=200) == 1.0
    assert signal.stability(len(signal), draws=20) == 1.0


def test_stability_is_the_mean_jaccard_index_of_pairs_of_circuits():
    found = random_scores(5)
    rng = np.random.default_rng(7)
    counts = rng.multinomial(5, np.full(5, 1 / 5), size=12)
    each = found.per_prompt.double().numpy()
    tops = [set(np.argsort(-np.abs(weights @ each))[:6].tolist()) for weights in counts]
    pairs = [(a, b) for i, a in enumerate(tops) for b in tops[:i]]
    expected = np.mean([len(a & b) / len(a | b) for a, b in pairs])
    assert abs(found.stability(6, draws=12, seed=7) - expected) < 1e-6


def test_stability_depends_on_its_seed_alone():
    found = random_scores()
    torch.manual_seed(1)
    first = found.stability(8, draws=30, seed=3)
    torch.manual_seed(2)
    assert found.stability(8, draws=30, seed=3) == first
    assert found.stability(8, draws=30, seed=4) != first


def test_stability_needs_per_prompt_scores():
    with pytest.raises(CircuitError, match="call edge_attribution with per_prompt=True"):
        random_scores(per_prompt=False).stability(5)


def test_a_thousand_draws_of_all_edges_of_a_gpt2_fit_in_memory():
    found = random_scores(8, graph=ComputationGraph(12, 12, 12))
    assert 0 < found.stability(len(found) // 20) < 1


@pytest.mark.parametrize("how", [{"count": 0}, {"count": 5, "draws": 1}])
def test_stability_of_no_edge_or_one_draw_is_refused(how):
    with pytest.raises(CircuitError):
        random_scores().stability(**how)
