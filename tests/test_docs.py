"""The documentation names only what exists: functions, commands, options and pages."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import typer

import probes
from probes.cli.app import app
from probes.models.model import load
from probes.prompts.english.match import match_text

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "probes" / "experiments").glob("*/README.md"))
PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def options(command, prefix="probes"):
    """The options of a command and of its subcommands, by name."""
    found = {prefix: {name for item in command.params for name in item.opts}}
    for name, sub in getattr(command, "commands", {}).items():
        found |= options(sub, f"{prefix} {name}")
    return found


COMMANDS = options(typer.main.get_command(app))


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_python_blocks_parse_and_name_public_functions(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        ast.parse(block)
    for attribute in re.findall(r"\bpb\.([a-zA-Z_]\w*)", text):
        assert attribute in probes.__all__ or hasattr(probes, attribute), attribute


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_commands_and_their_options_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\|", "|")
    lines = re.findall(r"`(probes [^`]+)`", text)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        lines += [line.removeprefix(".venv/bin/") for line in block.splitlines()]
    for line in lines:
        words = line.split()
        if words[1:2] == ["plan"] and f"probes {' '.join(words[2:3])}" in COMMANDS:
            del words[1]  # The options are those of the command that is planned.
        if words[:1] != ["probes"] or len(words) < 2 or not words[1][0].isalpha():
            continue
        has_own_commands = words[1] in ("make", "runs") and len(words) > 2
        for last in re.split(r"\||,", words[2] if has_own_commands else ""):
            command = " ".join(["probes", words[1], last]).strip()
            if command not in COMMANDS:
                command = f"probes {words[1]}"
            assert command in COMMANDS, line
            for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", line):
                assert flag in COMMANDS[command] | {"--help"}, line


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_links_lead_to_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in link and not link.startswith("mailto:"):
            assert ((ROOT / name).parent / link).exists(), link


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_full_names_in_text_can_be_imported(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for full in re.findall(r"(?:`|:: )(probes(?:\.\w+)+)", text):
        found, parts = probes, full.split(".")[1:]
        for count, part in enumerate(parts, 1):
            if not hasattr(found, part):
                import_module(".".join(["probes", *parts[:count]]))
            found = getattr(found, part)


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_calls_of_public_functions_name_only_parameters_that_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8").replace("…", "...")
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for snippet in [*snippets, *re.findall(r"(?<!`)`([^`\n]+\([^`]*\))`", text)]:
        try:
            tree = ast.parse(snippet)
        except SyntaxError:
            continue  # Code of another language; Python blocks are parsed above.
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            first, *rest = ast.unparse(call.func).removeprefix("pb.").split(".")
            function = getattr(probes, first, None) if first in probes.__all__ else None
            for part in rest:
                function = getattr(function, part, None)
            if function is None:  # A function of another package, or a method of a value.
                continue
            known = inspect.signature(function).parameters
            unknown = {item.arg for item in call.keywords} - {None, *known}
            assert not unknown, f"{ast.unparse(call.func)} has no {unknown}"


def test_each_public_name_is_once_on_a_reference_page():
    pages = (ROOT / "docs" / "reference").glob("*.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    described = re.findall(r"^\.\. auto\w+:: probes\.(\w+)$", text, re.MULTILINE)
    assert sorted(described) == sorted(set(probes.__all__) - {"__version__"})


@pytest.mark.parametrize("name", [n for n in probes.__all__ if n != "__version__"])
def test_a_public_function_says_what_its_arguments_and_its_errors_are(name):
    function = getattr(probes, name)
    if not inspect.isfunction(function):
        pytest.skip("a type: its attributes are on its page")
    text = inspect.getdoc(function)
    entries = re.findall(r"^    ([\w, ]+): ", text, re.MULTILINE)
    described = {argument for entry in entries for argument in entry.split(", ")}
    described |= set(re.findall(r"`(\w+)`", text))
    assert not set(inspect.signature(function).parameters) - described
    assert "Raises:" in text or "errors as in" in text or name == "list_models"


def test_the_map_in_contributing_names_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    packages = [path for path in (ROOT / "probes").iterdir() if (path / "__init__.py").exists()]
    missing = [
        str(path.relative_to(ROOT))
        for package in packages
        if package.name not in ("experiments", "cli")
        for path in sorted(package.rglob("*.py"))
        if path.stem != "__init__"
        and f"{path.stem}.py`" not in text
        and f"`{path.stem}`" not in text
    ]
    assert not missing


def test_the_readme_says_of_its_picture_what_the_picture_shows():
    alt = re.search(
        r'<img src="docs/mechanism.svg" alt="([^"]*)"',
        (ROOT / "README.md").read_text(encoding="utf-8"),
    )[1]
    for name in ("mechanism.svg", "mechanism-narrow.svg"):
        drawn = (ROOT / "docs" / name).read_text(encoding="utf-8").replace("\xa0", " ")
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
        for number in re.findall(r"\d+ % right", alt):
            assert number in texts
        for model, count in (("Full", "11 role paths"), ("In 4 bits", "has 10 of 10 paths")):
            assert model in alt and count in texts
        assert "5 of 11" in alt and sum("5 of 11 paths" in text for text in texts) == 2
        assert "above 0.2 %" in texts and "0.2 % of the effect" in alt


def test_the_question_that_the_commands_page_asks_is_answered_rightly():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    (text,) = re.findall(r'pb\.ask\(full, "([^"]+)"\)', page)
    question, model = match_text(text), load("full")
    written = model.generate(question.text, max_new_tokens=4)[len(question.text) :]
    assert written.split()[0] == question.answer("number").strip()
