"""House rules that no linter knows: the order of packages, and what no file may hold."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import networkx as nx
import pytest

import probes

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "probes"

# Each package may import only from those before it, and from itself.
ORDER = [
    *("errors", "files", "plan", "progress", "result", "stats", "prompts", "models"),
    "scale",
    "observe",
    *(
        "compression",
        "interventions",
        "circuits",
        "comparison",
        "claims",
        "viz",
        "testing",
        "experiments",
        "cli",
    ),
]


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name):
    """Yield the modules of the package that a module imports, wherever the statement stands."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            asked = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno}: write the import in full"
            asked = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in asked:
            parts = full.split(".")[1:] if full.split(".")[0] == "probes" else None
            while parts and ".".join(parts) not in MODULES:
                parts = parts[:-1]
            if parts:
                yield ".".join(parts), node.lineno


def test_every_package_has_its_place_in_the_order():
    assert {name.split(".")[0] for name in MODULES} - {"", "__main__"} <= set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_those_before_it(package):
    allowed = {"", *ORDER[: ORDER.index(package) + 1]}
    ahead = [
        f"{MODULES[name]}:{line} imports probes.{target}"
        for name in MODULES
        if name.split(".")[0] == package
        for target, line in imports(name)
        if target.split(".")[0] not in allowed
    ]
    assert not ahead


def test_no_module_imports_itself_by_a_detour():
    graph = nx.DiGraph((name, target) for name in MODULES for target, _ in imports(name))
    circles = [group for group in nx.strongly_connected_components(graph) if len(group) > 1]
    assert not circles


def test_only_the_command_line_imports_experiments():
    outside = {name for name in MODULES if name.split(".")[0] not in ("experiments", "cli", "")}
    assert not {
        (name, target)
        for name in outside
        for target, _ in imports(name)
        if target.startswith("experiments")
    }


def test_only_one_file_imports_transformer_lens():
    found = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for full in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if full.split(".")[0] == "transformer_lens"
    }
    assert found == {"models.model"}


def test_no_module_at_the_top_bears_the_name_of_a_public_name():
    """Importing such a module would replace the function of that name."""
    assert not {name.split(".")[0] for name in MODULES} & set(probes.__all__)


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
        value = getattr(probes, name)
        assert not isinstance(value, ModuleType)
        if name == "__version__":
            continue
        assert value.__name__ == name
        assert getattr(import_module(value.__module__), name) is value
    assert set(probes.__all__) <= set(dir(probes))


def test_type_checkers_see_the_public_names():
    shown = {
        alias.asname or alias.name
        for node in TREES[""].body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for alias in statement.names
    }
    assert shown == set(probes.__all__) - {"__version__"}


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
    assert {n for n, t in TREES.items() if not n.startswith("cli") and calls(t, "print")} == set()


def test_no_device_is_named_outside_of_training_and_the_error_of_loading():
    found = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "cuda" in node.value
    }
    assert found <= {"compression.distillation.plan", "models.files.loading"}


def test_annotations_are_never_put_off():
    """It would silence jaxtyping's checks of the fields of dataclasses."""
    late = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    assert late == []
