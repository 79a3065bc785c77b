"""Circuit transfer: the partners of a circuit's heads, run alone in another model."""

import pytest
import torch

from probes.circuits.faithfulness import faithfulness_values
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task
from probes.circuits.trace import TraceSettings, trace
from probes.comparison.circuits.transfer import (
    HeadTransferSettings,
    _edges_at_heads,
    _masks_of_heads,
    evaluate_transfer,
    transfer_circuit,
)
from probes.errors import CircuitError, GateError
from probes.models.model import load, random_init, wrap
from probes.testing.equivalent_heads import permute_heads
from probes.testing.tiny_models import tiny_hf

FEW = HeadTransferSettings(prompts=4, random_sets=20)


@pytest.fixture(scope="module")
def distilled():
    return load("distilled")


@pytest.fixture(scope="module")
def circuit(distilled):
    return trace(distilled, settings=TraceSettings(prompts=4, other_pattern="")).circuit


def same(circuit):
    """Pair every head of a circuit with itself."""
    return {node: node for node in circuit.nodes if ".H" in node}


def test_partners_of_heads_outside_the_circuit_have_no_effect(distilled, circuit):
    every = {f"L{layer}.H{head}": f"L{layer}.H{head}" for layer in (0, 1) for head in range(4)}
    found = transfer_circuit(circuit, same(circuit) | every, distilled, settings=FEW)
    fewer = transfer_circuit(circuit, same(circuit), distilled, settings=FEW)
    assert set(found.partners) == {node for node in circuit.nodes if ".H" in node}
    assert found == fewer


def test_a_circuit_keeps_as_much_in_an_equivalent_model(distilled, circuit):
    permuted = permute_heads(distilled, seed=3)
    there = {head: mine[0] for head, mine in permuted.head_map.items()}
    home = transfer_circuit(circuit, same(circuit), distilled, settings=FEW)
    away = transfer_circuit(circuit, there, permuted.model, settings=FEW)
    assert away.kept_fraction.value == pytest.approx(home.kept_fraction.value, abs=1e-4)
    assert away.fraction_without.value == pytest.approx(home.fraction_without.value, abs=1e-4)
    assert set(away.partners) != set(home.partners)


def test_the_wrong_heads_keep_less(distilled, circuit):
    mine = same(circuit)
    others = [f"L{n // 4}.H{n % 4}" for n in range(8) if f"L{n // 4}.H{n % 4}" not in mine]
    wrong = transfer_circuit(
        circuit, dict(zip(mine, others, strict=False)), distilled, settings=FEW
    )
    assert (
        wrong.kept_fraction.value
        < transfer_circuit(circuit, mine, distilled, settings=FEW).kept_fraction.value
    )


def test_two_heads_with_one_partner_count_once(distilled, circuit):
    heads = list(same(circuit))
    found = transfer_circuit(circuit, dict.fromkeys(heads, heads[0]), distilled, settings=FEW)
    assert found.partners == (heads[0],)
    assert found.random_sets <= 8


def test_a_circuit_without_partners_is_refused(distilled, circuit):
    with pytest.raises(CircuitError, match="has a partner"):
        transfer_circuit(circuit, {}, distilled, settings=FEW)
    with pytest.raises(CircuitError, match=r"no heads L7\.H0"):
        transfer_circuit(circuit, dict.fromkeys(same(circuit), "L7.H0"), distilled, settings=FEW)


def test_a_model_without_the_behavior_is_refused(distilled, circuit):
    with pytest.raises(GateError):
        transfer_circuit(circuit, same(circuit), random_init(distilled, seed=0), settings=FEW)


def random_task():
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(3, 97, (12, 6), generator=draw)
    other = clean.clone()
    other[:, 1:4] = torch.randint(3, 97, (12, 3), generator=draw)
    answers = [torch.randint(3, 97, size, generator=draw) for size in ((12,), (12, 1))]
    return Task.from_tokens(clean, other, *answers)


def test_heads_that_share_keys_and_values_keep_them_when_others_of_their_group_do_not():
    """The same function with keys and values of each head written out keeps as much."""
    grouped, apart = tiny_hf("llama-gqa", 0), tiny_hf("llama", 0)
    heads, groups = grouped.config.num_attention_heads, grouped.config.num_key_value_heads
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            repeated = weight.unflatten(0, (groups, -1)).repeat_interleave(heads // groups, 0)
            weights[name] = repeated.flatten(0, 1)
    apart.load_state_dict(weights)
    values = []
    for model in (wrap(grouped, name="grouped"), wrap(apart, name="apart")):
        runs = run_references(model, random_task())
        kept = ["L0.H0", "L1.H2", "L2.H1"]
        masks = [_masks_of_heads(runs.graph, [kept]), ~_edges_at_heads(runs.graph, kept)]
        values.append(faithfulness_values(runs, torch.cat(masks)))
    torch.testing.assert_close(values[0], values[1], atol=1e-4, rtol=1e-4)
    assert values[0].abs().min() > 0.1


def test_a_circuit_whose_faithfulness_is_undefined_is_none():
    runs = run_references(wrap(tiny_hf("llama", 0), name="tiny"), random_task())
    every = torch.ones(len(runs.graph), dtype=torch.bool)
    found = evaluate_transfer(runs, every, every, random_circuits=2)
    assert str(found.own) == "undefined"
    assert found.label == "no circuit"
