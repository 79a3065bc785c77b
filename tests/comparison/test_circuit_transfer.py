"""Circuit transfer: the counterparts of a circuit's heads, run alone."""

import pytest

from probes.circuits.trace import trace
from probes.comparison.circuits.lifted import lift
from probes.errors import CircuitError, GateError
from probes.models.model import load, untrained
from probes.testing.equivalent_models import permuted_heads

FEW = {"prompts": 4, "draws": 20}


@pytest.fixture(scope="module")
def distilled():
    return load("distilled")


@pytest.fixture(scope="module")
def circuit(distilled):
    return trace(distilled, prompts=4, against="").circuit


def same(circuit):
    """Pair every head of a circuit with itself."""
    return {node: node for node in circuit.nodes if ".H" in node}


def test_partners_of_heads_outside_the_circuit_do_not_matter(distilled, circuit):
    every = {f"L{layer}.H{head}": f"L{layer}.H{head}" for layer in (0, 1) for head in range(4)}
    found = lift(circuit, same(circuit) | every, distilled, **FEW)
    ours = lift(circuit, same(circuit), distilled, **FEW)
    assert set(found.partners) == {node for node in circuit.nodes if ".H" in node}
    assert found == ours  # Partners of heads that are not in the circuit are of no matter.


def test_a_circuit_keeps_in_a_twin_what_it_keeps_at_home(distilled, circuit):
    twin = permuted_heads(distilled, seed=3)
    there = {head: mine[0] for head, mine in twin.heads.items()}
    home = lift(circuit, same(circuit), distilled, **FEW)
    away = lift(circuit, there, twin.model, **FEW)
    assert away.kept.value == pytest.approx(home.kept.value, abs=1e-4)
    assert away.without.value == pytest.approx(home.without.value, abs=1e-4)
    assert set(away.partners) != set(home.partners)


def test_the_wrong_heads_keep_less(distilled, circuit):
    mine = same(circuit)
    others = [f"L{n // 4}.H{n % 4}" for n in range(8) if f"L{n // 4}.H{n % 4}" not in mine]
    wrong = lift(circuit, dict(zip(mine, others, strict=False)), distilled, **FEW)
    assert wrong.kept.value < lift(circuit, mine, distilled, **FEW).kept.value


def test_two_heads_with_one_partner_are_one_head_there(distilled, circuit):
    heads = list(same(circuit))
    found = lift(circuit, dict.fromkeys(heads, heads[0]), distilled, **FEW)
    assert found.partners == (heads[0],)
    assert found.draws <= 8


def test_a_circuit_without_partners_is_refused(distilled, circuit):
    with pytest.raises(CircuitError, match="has a partner"):
        lift(circuit, {}, distilled, **FEW)
    with pytest.raises(CircuitError, match=r"no heads L7\.H0"):
        lift(circuit, dict.fromkeys(same(circuit), "L7.H0"), distilled, **FEW)


def test_a_model_without_the_behaviour_is_refused(distilled, circuit):
    with pytest.raises(GateError):
        lift(circuit, same(circuit), untrained(distilled, seed=0), **FEW)
