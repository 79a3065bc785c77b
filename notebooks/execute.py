"""Execute the notebooks and write their outputs into them, or compare outputs.

python notebooks/execute.py [NOTEBOOK…]

Outputs hold only what another run on the same machine gives again: no progress bars, warnings or
times. `tests/test_notebooks.py` executes the notebooks anew and compares what they print.
"""

import base64
import html
import os
import re
import sys
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from probes.viz.static import small_png

FOLDER = Path(__file__).parent
ABSOLUTE, RELATIVE = 0.05, 0.1
"""Numbers are equal if they differ by less than one of these. Other processors round sums in
another order: an answer that was nearly a tie turns, and moves a fraction of 20 prompts by 0.05."""
WORDS_MAY_DIFFER = "words may differ: "
"""Beginning of a cell tag that ends with the reason, such as verdicts near a threshold. One word in
ten of such a cell may differ, and its numbers are not compared."""
SAME_WORDS = 0.9

_NUMBER = re.compile(r"(?<![\w.])[-−+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")
_INVISIBLE = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL)


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Copy of a notebook with the outputs of a new run."""
    copy = nbformat.from_dict(notebook)
    # What is committed comes from the models of the kit, also where there are others.
    environment = os.environ | {"TQDM_DISABLE": "1", "PROBES_REAL_MODELS": ""}
    client = NotebookClient(
        copy,
        timeout=None,  # A busy machine may take ten times as long.
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute(env=environment)
    return clean(copy)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Notebook without what differs from run to run, and with small images; changed in place."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    png = small_png(base64.b64decode(output.data["image/png"]))
                    output.data["image/png"] = base64.b64encode(png).decode() + "\n"
    return notebook


def _is_noise(output: nbformat.NotebookNode) -> bool:
    """Progress bars, and warnings of libraries."""
    is_bar = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return is_bar or output.get("name") == "stderr"


def differences(old: nbformat.NotebookNode, new: nbformat.NotebookNode) -> list[str]:
    """What the code cells of a new run print otherwise: other words, or other numbers."""
    found = []
    cells = [cell for cell in old.cells if cell.cell_type == "code"]
    others = [cell for cell in new.cells if cell.cell_type == "code"]
    for at, (cell, other) in enumerate(zip_longest(cells, others), start=1):
        if cell is None or other is None or cell.source != other.source:
            return [*found, f"code cell {at}: it is another cell, so execute the notebook again"]
        tags = cell.metadata.get("tags", ())
        is_free = any(tag.startswith(WORDS_MAY_DIFFER) for tag in tags)
        pairs = zip_longest(cell.outputs, other.outputs)
        found += [
            f"code cell {at}: {line}"
            for one, two in pairs
            for line in _output_differences(one, two, is_free=is_free)
        ]
    return found


def _output_differences(one, two, *, is_free: bool) -> list[str]:
    if one is None or two is None:
        return ["one output less" if two is None else "one output more"]
    if {*one.get("data", {})} != {*two.get("data", {})}:
        return [f"an output is {[*two.get('data', {})]}, and was {[*one.get('data', {})]}"]
    old, new = visible_text(one), visible_text(two)
    if not is_free:
        return text_differences(old, new)
    words, others = (_NUMBER.sub("#", text).split() for text in (old, new))
    same = SequenceMatcher(None, words, others, autojunk=False).ratio()
    return [] if same >= SAME_WORDS else [f"only {same:.0%} of the words are as before"]


def visible_text(output: nbformat.NotebookNode) -> str:
    """Text that a reader sees, without what is in pictures."""
    data = output.get("data", {})
    if "text/html" in data:
        return html.unescape(_INVISIBLE.sub(" ", data["text/html"]))
    if "image/png" in data:  # What stands beside it names its size in pixels.
        return ""
    return output.get("text") or data.get("text/plain", "")


def text_differences(old: str, new: str) -> list[str]:
    """Words and numbers of a text that differ from those of another."""
    words, others = (_NUMBER.sub("#", text).split() for text in (old, new))
    if words != others:
        at = next(i for i, (a, b) in enumerate(zip_longest(words, others)) if a != b)
        was, now = (" ".join(side[max(0, at - 4) : at + 4]) for side in (words, others))
        return [f"it says {now!r}, and said {was!r}"]
    found = []
    for a, b in zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True):
        was, now = (float(text.replace(",", "").replace("−", "-")) for text in (a, b))
        if abs(now - was) > max(ABSOLUTE, RELATIVE * max(abs(was), abs(now))):
            found.append(f"a number is {b}, and was {a}")
    return found


def main(paths: list[Path]) -> None:
    """Execute notebooks in place."""
    for path in paths or sorted(FOLDER.glob("*.ipynb")):
        print(path.name, flush=True)
        old = nbformat.read(path, as_version=4)
        new = execute(old)
        for line in differences(old, new):
            print("  ", line)
        nbformat.write(new, path)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
