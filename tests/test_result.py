"""Saved results: read again without torch, and refused in one line where they are broken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.cli.app import app
from probes.errors import ResultError
from probes.result import HOMES, SCHEMA, load_result

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
    assert len(HOMES) == 9


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
