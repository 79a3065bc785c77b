"""Sphinx configuration of the documentation site.

Build it from the repository root, where the links of all pages start:
sphinx-build -W --keep-going -n -c docs . site/html
"""

import dataclasses
import importlib.metadata
import inspect
import re

from sphinx.application import Sphinx
from sphinx.util.typing import restify

import probes
from probes import errors
from probes.result import Result

project = "probes"
author = copyright = "The probes maintainers"
release = importlib.metadata.version("circuit-relatives")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "notebooks/*.ipynb",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
]
# Folders that are not read are not walked either. docs/README.md is the index on GitHub.
exclude_patterns = [
    *(".*", "site", "runs", "data", "tests", "benchmarks", "probes", "shared"),
    *("docs/README.md", "notebooks/.*"),
]

nb_execution_mode = "off"  # Notebooks show what is committed; .ci/run executes them.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True  # `settings=TraceSettings()`, not each of its fields.
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_use_param = False  # One entry may describe several arguments.
napoleon_custom_sections = [("Attributes", "params_style")]
# Types of other libraries: their documentation is not asked, so that the build needs no network.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|numpy|pandas|pathlib|collections|typing|transformers|jaxtyping|networkx|np|pd"
        r"|random|Callable|Tensor|ndarray|Figure|Axes|Any|type|enum|abc|dict|probes\.result\.R)\b.*",
    ),
]

html_theme = "furo"
html_title = "probes"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_redirect"]
html_show_sphinx = False
html_copy_source = False

MODEL_SPEC = (
    "str | ~pathlib.Path | ~probes.models.model.Model | ~probes.models.files.loading.HasModel"
)


def prepare_docstring(app, what, name, obj, options, lines):
    """Link names in a docstring, and give each attribute of a result its type."""
    types = {}
    if is_result(obj):
        types = {field.name: restify(field.type, "smart") for field in dataclasses.fields(obj)}
    section = ""
    for number, line in enumerate(lines):
        if re.fullmatch(r"[A-Z]\w+:", line):
            section = line[:-1]
        elif section == "Raises":
            line = re.sub(r"^( +)(\w+)(?=: )", link_error, line)
        elif section == "Attributes" and (entry := re.match(r"^    ([\w, ]+)(: .*)", line)):
            found = types.get(entry[1].split(", ")[0])
            line = f"    {entry[1]} ({found}){entry[2]}" if found else line
        line = re.sub(r"\|(?=\w)|(?<=\w)\|", r"\|", line)  # |weight| is no substitution.
        lines[number] = re.sub(r"(?<![`:\w])`([^`]+)`(?!`)", link_code, line)


def link_error(match):
    """Full name of a kind of ProbeError; other text stays."""
    is_ours = hasattr(errors, match[2])
    return f"{match[1]}~probes.errors.{match[2]}" if is_ours else match[0]


def link_code(match):
    """Literal text, or a cross-reference to a public name."""
    is_public = match[1] in probes.__all__
    return f":py:obj:`~probes.{match[1]}`" if is_public else f"``{match[1]}``"


def prepare_signature(app, what, name, obj, options, signature, returned):
    """Drop the signature of results, which nobody makes by hand; name what `repr` writes out."""
    if is_result(obj):
        return "", None
    if not signature:
        return None
    signature = signature.replace(MODEL_SPEC, "~probes.models.model.ModelSpec")
    return re.sub(r"(\w+) = _DEFAULTS", r"\1 = \1()", signature), returned


def is_result(obj):
    """Whether it is a type of result."""
    return inspect.isclass(obj) and issubclass(obj, Result) and dataclasses.is_dataclass(obj)


def setup(app: Sphinx) -> None:
    """Register what is done to docstrings, before napoleon reads them, and to signatures."""
    app.connect("autodoc-process-docstring", prepare_docstring, priority=100)
    app.connect("autodoc-process-signature", prepare_signature)
