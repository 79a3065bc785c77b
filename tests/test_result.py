"""Saved results: read again without torch, and refused in one line where they are broken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.cli.app import app
from probes.errors import FigureError, ResultError
from probes.result import HOMES, SCHEMA, load_result
from probes.testing.contract.check_result import CheckOutcome, ModelCheck, ModelChecks

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def circuit(tmp_path):
    graph = ComputationGraph(1, 2, 2)
    found = Circuit("m", graph, (Edge.parse("embed->L0.H1.q"),), (0.5,), (0.125,))
    return found, found.save(tmp_path / "circuit.json")


def test_load_result_says_by_itself_which_type_a_file_holds(circuit):
    saved, path = circuit
    assert load_result(path) == saved
    assert Circuit.load(path) == saved


def test_every_type_of_result_is_found_and_imports_without_torch():
    code = (
        "import sys; from importlib import import_module; from probes.result import HOMES\n"
        "for name, home in HOMES.items(): getattr(import_module(f'probes.{home}'), name)\n"
        "print(*{n.split('.')[0] for n in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "transformers", "transformer_lens", "scipy"} & set(done.stdout.split())
    assert len(HOMES) == 14


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[1]", "no saved result"),
        ('{"result": "os.system"}', "no saved result"),
        ('{"result": ["Trace"]}', "no saved result"),
        ('{"result": "Trace", "schema": 1}', "schema 1"),
        ('{"result": "ClaimsReports", "schema": 2, "reports": []}', "schema 2, and this version"),
        (json.dumps({"result": "Trace", "schema": SCHEMA}), "broken"),
        (json.dumps({"result": "Trace", "schema": SCHEMA, "circuit": 3}), "broken|no circuit"),
        (json.dumps({"result": "FamilyComparison", "schema": SCHEMA, "comparisons": 3}), "broken"),
        (json.dumps({"result": "ClaimsReports", "schema": SCHEMA, "reports": ["x"]}), "broken"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_names_it(text, says, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=says) as caught:
        load_result(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    done = CliRunner().invoke(app, ["show", str(path)])
    assert done.exit_code == 1
    assert done.stderr.startswith("ResultError: ")
    assert not path.with_suffix(".html").exists()


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(ResultError, match="No such file"):
        load_result(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["a\0.json", "x" * 500 + ".json"])
def test_a_result_is_not_saved_under_a_name_that_no_file_can_have(name, circuit):
    with pytest.raises(FigureError, match=r"cannot write .*: choose another place"):
        circuit[0].save(name)


def test_another_type_is_refused_by_name(circuit):
    from probes.circuits.result import Trace

    with pytest.raises(ResultError, match="Expected a saved Trace, found a Circuit"):
        Trace.load(circuit[1])


def test_show_prints_a_circuit_and_writes_its_page(circuit, tmp_path):
    saved, path = circuit
    done = CliRunner().invoke(app, ["show", str(path), "--out", str(tmp_path / "c.html")])
    assert done.exit_code == 0, done.output
    assert saved.summary()[0] in done.stdout
    assert (tmp_path / "c.html").is_file()


# Properties of generated results.

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCORES = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def circuits(draw):
    """A circuit of a small graph, with scores of any size and errors that may be unknown."""
    heads = draw(st.integers(1, 3))
    graph = ComputationGraph(draw(st.integers(1, 3)), heads, heads)
    numbers = draw(st.sets(st.integers(0, len(graph) - 1), max_size=6))
    edges = tuple(graph.edge(number) for number in numbers)
    scores, errors = (
        tuple(draw(st.lists(values, min_size=len(edges), max_size=len(edges))))
        for values in (SCORES, st.floats(0, allow_infinity=False) | st.just(float("nan")))
    )
    protocol = tuple(draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=3)))
    return Circuit(draw(TEXTS), graph, edges, scores, errors, protocol)


@st.composite
def checks(draw):
    """The contract suite on some models."""
    states = st.sampled_from(("pass", "refused", "fail"))
    outcomes = st.lists(st.builds(CheckOutcome, TEXTS, states, TEXTS), max_size=3).map(tuple)
    models = st.lists(st.builds(ModelCheck, TEXTS, TEXTS, outcomes), min_size=1, max_size=3)
    return ModelChecks(tuple(draw(models)))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(result=circuits() | checks())
def test_a_result_that_is_saved_and_loaded_is_the_same(tmp_path, result):
    path = result.save(tmp_path / "result.json")
    loaded = load_result(path)
    assert loaded == result
    assert loaded.to_dict() == result.to_dict()
    assert loaded.save(tmp_path / "again.json").read_bytes() == path.read_bytes()
