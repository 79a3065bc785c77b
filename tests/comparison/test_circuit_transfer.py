"""Circuit transfer: the partners of a circuit's heads, run alone in another model."""

import pytest

from probes.circuits.trace import TraceSettings, trace
from probes.comparison.circuits.transfer import HeadTransferSettings, transfer_circuit
from probes.errors import CircuitError, GateError
from probes.models.model import load, random_init
from probes.testing.equivalent_heads import permute_heads

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
