"""The house rules that no linter knows: what may import what, and what no file may hold."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import probes

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "probes"

# Each module may import only those before it. The package itself is free: it imports nothing.
LISTED = """
errors axes files resources questions templates pairs_file asking patterns
rows batch counterfactuals notices made sources model twin_weights twin_layers twins testing
activations restart metrics
attention lens
wiring selection circuit_file circuit tasks anatomy staging splice patching graph attribution
subspace dimension
comparison comparison.estimates comparison.resampling comparison.gating
evaluation halves tracing
cue_texts cue_results cues cue_forcing
compress compress.relative compress.labels compress.layers compress.training compress.cohort
compress.rounding compress.quant_schemes compress.quant_layers compress.backends
compress.quantizing compress.masks compress.blocks compress.scoring compress.pruning
compress.growing compress.tickets
family family.split family.corpus family.tokenizer family.recipes family.training family.measure
family.card family.make compress.reading compress.distilling
planted planted_gates planted_foxes compiled
evidence factorial interchange variance hotspot alignment space neighbours counterevidence
dissociation searching lineage claims series proof proving
compress.lessons compress.adapting
compress.naming_texts compress.naming_plan compress.naming compress.naming_curves
comparison.readings comparison.rowcheck comparison.streaming comparison.likeness comparison.anchors
comparison.rolestates comparison.kernels comparison.pooled comparison.similarity comparison.weights
comparison.profiles comparison.matching comparison.joint comparison.headsets comparison.rolesums
comparison.verdict comparison.headlook comparison.headfates
comparison.parts comparison.published comparison.separation
comparison.overlap comparison.edge_tests comparison.guests comparison.circuit_result
comparison.circuits
comparison.maps comparison.trials comparison.grafting comparison.transfer
comparison.yardsticks comparison.variablefates comparison.views comparison.reasons
comparison.result comparison.together
comparison.measuring comparison.items comparison.pairing comparison.relatives comparison.lifted
comparison.newcomers
comparison.rates comparison.noise comparison.mechanism comparison.breaking
comparison.curve_result comparison.curve_points comparison.curved
comparison.onsets comparison.checkpoints comparison.courses comparison.trajectory
comparison.fewest_result comparison.fewest
studies studies.tables studies.lots studies.training_runs studies.single studies.running
view.text view.colours view.packing view.cells view.thumbs view.maps view.picture view.blocks
view.static view.wires view.circuits view.intervals view.heads view.sheet view.outcomes
view.hotmap view.scatter view.spaced view.page view view.carried view.fated view.report
view.related view.traced view.cued view.spotted view.claimed view.proved view.looking
view.tags view.rate_plot view.rated view.named view.alongside
cli_common cli_make cli_study cli
"""
ORDER = LISTED.split()

# A result shows and saves itself by the view, which it must not need otherwise.
MAY_LOOK_AHEAD_IN_FUNCTIONS = {
    "circuit",
    "tracing",
    "proof",
    "comparison.result",
    "comparison.together",
    "comparison.curve_result",
    "comparison.trajectory",
}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def targets(node, name):
    """The full names that an import statement of a module asks for, the most exact first."""
    if isinstance(node, ast.Import):
        return [[alias.name] for alias in node.names]
    base = node.module or ""
    if node.level:
        here = ["probes", *name.split(".")]
        is_package = MODULES[name].stem == "__init__"
        above = here[: len(here) - node.level + is_package]
        base = ".".join([*above, *([node.module] if node.module else [])])
    return [[f"{base}.{alias.name}", base] for alias in node.names]


def is_for_types(block):
    return ast.unparse(block.test) == "TYPE_CHECKING"


def imports(name, *, functions):
    """Yield the modules of the package that a module imports, with the line of each."""
    later = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    inside = {
        id(node)
        for block in ast.walk(TREES[name])
        # What only type checkers see is as good as inside a function.
        if isinstance(block, later) or (isinstance(block, ast.If) and is_for_types(block))
        for node in ast.walk(block)
    }
    for node in ast.walk(TREES[name]):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if id(node) in inside and not functions:
            continue
        for choices in targets(node, name):
            own = [
                c.removeprefix("probes").removeprefix(".")
                for c in choices
                if c == "probes" or c.startswith("probes.")
            ]
            known = [c for c in own if c in MODULES]
            if own:
                yield (known or own)[0], node.lineno


def test_every_module_has_its_place_in_the_order():
    assert len(ORDER) == len(set(ORDER))
    assert set(ORDER) == set(MODULES) - {""}


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_what_stands_before_it(name):
    if name not in MODULES:
        pytest.fail(f"probes.{name} is in the order, but not in the package")
    before = set(ORDER[: ORDER.index(name)])
    ahead = [
        f"{MODULES[name].name}:{line} imports probes.{found}"
        for found, line in imports(name, functions=name not in MAY_LOOK_AHEAD_IN_FUNCTIONS)
        if found not in before
    ]
    assert not ahead


def test_imports_are_found_wherever_they_stand():
    """The check above sees imports inside functions, relative ones, and those of a package."""
    assert "view.report" in {found for found, _ in imports("comparison.result", functions=True)}
    assert "view.report" not in {f for f, _ in imports("comparison.result", functions=False)}
    assert "patterns" in {found for found, _ in imports("cli", functions=True)}
    statements = ast.parse("from . import picture\nfrom ..model import load\nimport probes.batch")
    assert [targets(node, "view.page") for node in statements.body] == [
        [["probes.view.picture", "probes.view"]],
        [["probes.model.load", "probes.model"]],
        [["probes.batch"]],
    ]
    assert targets(statements.body[0], "view") == [["probes.view.picture", "probes.view"]]


def test_only_one_file_imports_transformer_lens():
    found = set()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for choices in targets(node, name):
                    if choices[-1].split(".")[0] == "transformer_lens":
                        found.add(name)
    assert found == {"model"}


def test_no_module_bears_the_name_of_a_public_name():
    """Importing such a module would put it where the function was."""
    stems = {part for name in MODULES for part in name.split(".")}
    assert not stems & set(probes.__all__)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, probes; print('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "probes" in loaded
    heavy = {"torch", "jaxtyping", "transformers", "transformer_lens", "numpy", "pandas", "scipy"}
    assert not heavy & set(loaded)
    assert [name for name in loaded if name.startswith("probes.")] == []


def test_every_public_name_is_fetched_from_where_it_lives():
    for name in probes.__all__:
        found = getattr(probes, name)
        assert not isinstance(found, ModuleType)
        assert found.__name__ == name
        home = import_module(found.__module__)
        assert getattr(home, name) is found
    assert set(probes.__all__) <= set(dir(probes))


def test_what_type_checkers_are_shown_is_what_is_public():
    shown = {
        alias.asname or alias.name
        for node in TREES[""].body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for alias in statement.names
    }
    assert shown == set(probes.__all__)


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="module 'probes' has no attribute 'nothing'"):
        _ = probes.nothing


def calls(tree, name):
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def test_only_the_command_line_prints():
    assert calls(ast.parse("print(1)"), "print") == [1]
    assert {
        n: calls(t, "print") for n, t in TREES.items() if n != "cli" and calls(t, "print")
    } == {}


def test_no_device_is_named_outside_of_training():
    found = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "cuda" in node.value
    }
    assert found <= {"compress.training"}


def test_annotations_are_never_put_off():
    """It would silence jaxtyping's checks of the fields of dataclasses."""
    late = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    assert late == []
