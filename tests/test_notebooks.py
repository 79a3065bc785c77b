"""Notebooks: what they hold as committed, and whether they print it again."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from notebooks.execute import (
    ABSOLUTE,
    WORDS_MAY_DIFFER,
    clean,
    differences,
    execute,
    text_differences,
    visible_text,
)

ROOT = Path(__file__).resolve().parents[1]
PATHS = {path.name: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
# The longest first, so that workers end together.
LONGEST = ("04_", "07_", "05_", "03_")
BY_TIME = sorted(PATHS, key=lambda name: (name[:3] not in LONGEST, name))


def read(name):
    return nbformat.read(PATHS[name], as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


@pytest.mark.notebook
@pytest.mark.parametrize("name", BY_TIME)
def test_a_notebook_prints_what_it_printed(name):
    committed = read(name)
    assert differences(committed, execute(committed)) == []


# --- as committed -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_a_notebook_is_small_and_executed_from_top_to_bottom(name):
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert PATHS[name].stat().st_size <= 1_000_000 and len(code) <= 15
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]


@pytest.mark.parametrize("name", PATHS)
def test_outputs_hold_nothing_of_the_machine_or_the_hour(name):
    notebook = read(name)
    assert clean(nbformat.from_dict(notebook)) == notebook
    for output in outputs(notebook):
        assert output.output_type != "error"
        text = f"{output.get('text', '')} {output.get('data', {}).get('text/plain', '')}"
        text += visible_text(output)
        assert not re.search(r"\b0x[0-9a-f]{6,}|/(home|root|tmp|Users)/|Warning:|\d+it/s", text)


@pytest.mark.parametrize("name", PATHS)
def test_every_interactive_picture_has_a_static_one(name):
    for output in outputs(read(name)):
        shown = output.get("data", {}).get("text/html", "")
        if "<script" in shown:
            # A table or a finding needs no image; what draws has one.
            assert '<img src="data:image/png;base64,' in shown or "<table>" in shown
            assert "data-live=" in shown and "<svg" not in shown


@pytest.mark.parametrize("name", PATHS)
def test_nothing_is_printed_raw(name):
    for output in outputs(read(name)):
        assert not re.match(r"\s*[(\[{]|<\w+[ .]|\w+\(\w+=", visible_text(output))


def test_the_readme_and_the_notebooks_name_notebooks_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"`(\d\d_\w+)`", readme) == [name.removesuffix(".ipynb") for name in PATHS]
    numbers = {name[:2] for name in PATHS}
    for name in PATHS:
        prose = " ".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
        assert set(re.findall(r"[Nn]otebook `?(\d\d)", prose)) <= numbers


# --- the comparison ---------------------------------------------------------------------------


def notebook(*printed, tags=(), source="print()"):
    made = [new_output("stream", text=text) for text in printed]
    return new_notebook(cells=[new_code_cell(source, outputs=made, metadata={"tags": [*tags]})])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.90 [0.85, 0.94] of L1.H3", "0.93 [0.80, 0.94] of L1.H3"),
        ("1,000 pairs, −0.02", "1,050 pairs, 0.02"),
        ("a   1\nb  10", "a 1\nb 11"),
        ("1e-06 logits", "3e-05 logits"),
    ],
)
def test_numbers_may_differ_as_much_as_other_processors_round(old, new):
    assert text_differences(old, new) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("0.90 right", "0.80 right", "a number is 0.80, and was 0.90"),
        ("1,000 pairs", "1,200 pairs", "a number is 1,200, and was 1,000"),
        ("0.04 more", "−0.04 more", "a number is −0.04, and was 0.04"),
        ("x kept in full", "x lost in full", "it says 'x lost in full', and said 'x kept in full'"),
        ("best: L1.H3", "best: L1.H2", "it says 'best: L1.H2', and said 'best: L1.H3'"),
        ("1 2", "1 2 3", "it says '# # #', and said '# #'"),
    ],
)
def test_other_numbers_and_words_are_found(old, new, says):
    assert text_differences(old, new) == [says]
    assert differences(notebook(old), notebook(new)) == [f"code cell 1: {says}"]


def test_a_tag_with_a_reason_frees_one_word_in_ten_of_a_cell():
    tags = [f"{WORDS_MAY_DIFFER}a verdict is near its threshold"]
    old, new = ("operation kept, x kept, y kept, object kept, " * 3 + f"0.9 {w}" for w in "ab")
    assert differences(notebook(old, tags=tags), notebook(new.replace("0.9", "0.1"))) == []
    says = ["code cell 1: only 60% of the words are as before"]
    assert differences(notebook("a b c d e", tags=tags), notebook("a b c x y")) == says
    assert differences(notebook(old, tags=tags), notebook()) == ["code cell 1: one output less"]
    assert differences(notebook(old, tags=["slow"]), notebook(new)) != []


def test_another_cell_or_another_number_of_outputs_is_found():
    assert "execute the notebook" in differences(notebook("a"), notebook("a", source="1"))[0]
    assert differences(notebook("a"), notebook("a", "b")) == ["code cell 1: one output more"]
    assert differences(notebook("a", "b"), notebook("a")) == ["code cell 1: one output less"]


def test_the_text_of_a_page_is_compared_without_its_packed_form():
    page = '<div data-live="eJx9"><h3>full &amp; int4</h3><p>0.5</p></div><script>7</script>'
    seen = visible_text(new_output("execute_result", data={"text/html": page}))
    assert seen.split() == ["full", "&", "int4", "0.5"]


def test_a_picture_of_another_size_is_the_same_output():
    old, new = (
        new_output("display_data", data={"image/png": "", "text/plain": f"<Figure size {n}x1>"})
        for n in (800, 900)
    )
    assert visible_text(old) == visible_text(new) == ""


def test_cleaning_removes_progress_bars_warnings_and_times():
    made = notebook("kept")
    cell = made.cells[0]
    cell.metadata["execution"] = {"iopub.execute_input": "2024-01-01T00:00:00Z"}
    made.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    cell.outputs += [
        new_output("stream", name="stderr", text="UserWarning: ..."),
        new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}}),
    ]
    clean(made)
    assert [output.text for output in cell.outputs] == ["kept"]
    assert cell.metadata == {} or "execution" not in cell.metadata
    assert made.metadata.language_info == {"name": "python"}


def test_a_change_below_the_tolerance_is_smaller_than_one_prompt_of_twenty():
    assert text_differences("0.50", f"{0.5 + ABSOLUTE:.2f}") == []
    assert text_differences("0.50", "0.57") != []
