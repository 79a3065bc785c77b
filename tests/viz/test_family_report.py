"""Pages of comparisons, and the command that writes them."""

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from probes.cli.app import app
from probes.comparison.compare import compare
from probes.comparison.explanation import FailingPrompt
from probes.comparison.family_result import FamilyComparison
from probes.comparison.paths.result import PathCircuit, PathEffect
from probes.comparison.paths.verdicts import path_verdicts
from probes.comparison.setup.method import ComparisonMethod
from probes.comparison.setup.references import ComparisonSettings
from probes.comparison.variables.result import EMBEDDING_CONTROL, CrossModelTransfer
from probes.comparison.verdict import SIMILARITY_EQUIVALENCE, STRENGTH_EQUIVALENCE, Verdict
from probes.errors import EquivalenceError
from probes.models.model import wrap
from probes.stats.evidence import check_above, check_within
from probes.stats.intervals import Estimate
from probes.testing.tiny_models import tiny_hf
from probes.viz.html_text import typographic_minus
from probes.viz.reports.comparison import comparison_page
from probes.viz.reports.family_comparison import family_comparison_page
from probes.viz.reports.path_panels import path_picture, short_answer
from probes.viz.reports.tables.capability import gate_blocks, gate_intro
from probes.viz.reports.tables.transfers import donor_plot, interchange_plot, transfer_tables
from probes.viz.reports.tables.verdicts import (
    TONES,
    glossary,
    head_blocks,
    variable_blocks,
    verdict_cell,
)

NASTY = "<script>alert('1')</script>&\"\u202e"
HIGH, LOW = Estimate(0.97, 0.91, 0.99), Estimate(0.13, 0.08, 0.18)
SHORT, FAR = Estimate(-0.01, -0.03, 0.02), Estimate(0.61, 0.49, 0.70)
NAN = float("nan")


def transfer(variable, donor, recipient, **changes):
    found = CrossModelTransfer(
        variable=variable,
        donor=donor,
        recipient=recipient,
        pairs=124,
        site="L1.resid@op",
        donor_sites=("L2.resid@op",),
        own_accuracy=Estimate(0.99, 0.95, 1.0),
        own_ridge_accuracy=Estimate(0.98, 0.94, 1.0),
        maps={"orthogonal": Estimate(0.41, 0.3, 0.5), "ridge": HIGH},
        controls={
            EMBEDDING_CONTROL: Estimate(0.65, 0.55, 0.73),
            "label": Estimate(0.22, 0.15, 0.3),
            "shuffled": Estimate(0.03, 0.01, 0.08),
            "random-init": Estimate(0.33, 0.25, 0.4),
        },
        nulls=(0.33, 0.02),
        negative_controls={"copying": 0.45, "permuted": 0.56},
        excesses=dict.fromkeys(
            ("token embedding", "label", "shuffled", "random-init"), Estimate(0.32, 0.24, 0.4)
        ),
        shortfall=SHORT,
        missed_pairs=(3,),
    )
    return replace(found, **changes)


OPERATION = Verdict(
    "operation",
    "variable",
    "kept",
    "L1.resid@op",
    "the same role: best stand-in -0.02",
    (
        check_above("held there", "no place holds it", HIGH, 0.5, id="a"),
        check_above("b", "c", LOW, 0.1, id="b").non_deciding(),
    ),
)
X = Verdict("x", "variable", "split", "L1.resid@x+y", "held at x, it now takes x and y together")
SAME = (
    check_above("as similar", "", SHORT, -0.1, id=SIMILARITY_EQUIVALENCE),
    check_within("as strong", "", SHORT, 0.2, id=STRENGTH_EQUIVALENCE),
)
HEADS = (
    Verdict("L0.H0", "head", "kept", "L0.H1", "looks and acts like L0.H1", SAME),
    Verdict("L0.H1", "head", "no reliable effect", "", "its effects do not repeat"),
    Verdict("L1.H0", "head", "lost", "", "no head is alike"),
    Verdict("", "head", "new", "L0.H0", "no head of the full model is alike"),
)


def hats(clean, other):
    def say(number):
        return f"I have {number} hats. Now I have"

    return json.dumps(
        {
            "contrast": "x",
            "clean": say(clean),
            "counterfactual": say(other),
            "answer": str(clean),
            "counterfactual_answer": str(other),
            "roles": {"x": str(clean)},
            "counterfactual_roles": {"x": str(other)},
        }
    )


@pytest.fixture(scope="module")
def absent(own, tmp_path_factory):
    """Real comparison of two models without the behavior, on a few texts."""
    models = [
        wrap(
            tiny_hf("llama", seed, vocab_size=len(own), num_hidden_layers=2 - seed),
            name=name,
            tokenizer=own,
        )
        for seed, name in enumerate(("big", "small"))
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(hats(k, 7 - k) for k in range(4)), encoding="utf-8")
    return replace(
        compare(*models, str(path), settings=ComparisonSettings(prompts=4, nulls=2)),
        transfer_skip_reason="",
        verdicts=(),
    )


@pytest.fixture(scope="module")
def found(absent):
    """The same with open gates, and with known verdicts and transfers."""
    transfers_to_other = (
        transfer("operation", "big", "small"),
        transfer("x", "big", "small", maps={"ridge": LOW}, shortfall=FAR),
    )
    back = tuple(replace(one, donor="small", recipient="big") for one in transfers_to_other)
    return replace(
        absent,
        gates=tuple(replace(gate, state="open") for gate in absent.gates),
        verdicts=(OPERATION, X, *HEADS),
        transfers_to_other=transfers_to_other,
        transfers_to_full=back,
        failing_prompts={"x": (FailingPrompt("I have two cats.", "I had six dogs.", "", ""),)},
    )


@pytest.fixture(scope="module")
def family(found, absent):
    gone = replace(
        absent,
        other=replace(absent.other, name="gone", lineage="distilled from big: logits matched"),
        verdicts=tuple(
            Verdict(
                verdict.subject, verdict.kind, "behavior absent", "", "there is nothing to keep"
            )
            for verdict in found.verdicts
            if verdict.subject
        ),
        transfers_to_full=tuple(
            replace(one, donor="gone", maps={"ridge": Estimate(0.01, 0.0, 0.04)})
            for one in found.transfers_to_full
        ),
    )
    return FamilyComparison((found, gone))


class Read(HTMLParser):
    """The tags, the notes with their tones, and each table as rows of (text, tone, hover)."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.notes, self.cell = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        held = dict(attrs)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables:
            self.cell = ["", None, ""]
            self.tables[-1][-1].append(self.cell)
        elif "pv-tone" in (held.get("class") or "") and self.cell:
            self.cell[1:] = [held.get("data-tone"), held.get("title", "")]
        elif "pv-note" in (held.get("class") or ""):
            self.cell = ["", held.get("data-tone"), ""]
            self.notes.append(self.cell)

    def handle_data(self, data):
        if self.cell:
            self.cell[0] += data.replace("\xa0", " ")

    def handle_endtag(self, tag):
        if tag in ("td", "th", "div"):
            self.cell = None

    def table(self, *heads):
        """The rows below the one table that has these headings."""
        (rows,) = [t for t in self.tables if t and set(heads) <= {cell[0] for cell in t[0]}]
        return rows[1:]

    def text(self, *heads):
        return [[cell[0] for cell in row] for row in self.table(*heads)]


def headings(picture):
    return [unescape(h) for h in re.findall(r"<h2>\d+\. (.*?)</h2>", picture.body)]


def read(blocks):
    return Read("".join(block.body for block in blocks))


# --- blocks -----------------------------------------------------------------------------------


def test_a_verdict_cell_has_a_tone_a_counterpart_and_a_reason():
    cell = verdict_cell(OPERATION, with_counterpart=True)
    assert cell.text.replace("\xa0", " ") == "kept (L1.resid@op)"
    assert cell.tone == "good"
    assert cell.hover == "the same role: best stand-in -0.02"


def test_only_negative_numbers_get_a_minus_sign():
    assert typographic_minus("one-to-one, a stand-in: 0.1 [-0.02, 0.3], 1-2") == (
        "one-to-one, a stand-in: 0.1 [−0.02, 0.3], 1-2"
    )


def test_the_glossary_explains_every_verdict():
    rows = Read(glossary("path", "variable", "head").body).text("verdict")
    assert [row[0] for row in rows] == list(TONES)
    never = [[row[0] for row in rows if row[k] == "(does not occur)"] for k in (1, 2, 3)]
    assert never[0] == ["merged", "split", "moved", "no reliable effect"]
    assert never[1] == [
        *("weaker", "stronger", "lost", "not shared between seeds", "new", "no reliable effect"),
    ]
    assert never[2] == ["weaker", "stronger"]
    assert "never lost" not in glossary("head").body


def test_variables_are_listed_with_verdicts_tests_and_failing_prompts(found):
    seen = read(variable_blocks(found))
    rows = seen.table("variable", "verdict", "site in small")
    assert [row[0][0] for row in rows] == ["operation", "x"]
    assert rows[0][1][:2] == ["kept", "good"]
    assert "“held there”: 0.97 [0.91, 0.99], required above 0.50 (yes)" in rows[0][1][2]
    assert rows[1][1][:2] == ["split", None]
    tests = seen.text("variable", "test", "passed?")
    assert [row[1] for row in tests] == ["held there", "(b)"]
    (prompt,) = seen.text("base question")
    assert prompt == ["x", "I have two cats.", "I had six dogs."]
    assert len(read(variable_blocks(found, tests=False)).tables) == len(seen.tables) - 2


def test_only_kept_variables_are_green(found):
    block = interchange_plot(found.transfers_to_other, "turned", ["operation"])
    assert [row.tone for row in block.rows] == ["good", None]
    assert [row.chance for row in block.rows] == [(0.0, 0.33)] * 2
    assert block.rows[0].upper_reference == 0.98


def test_an_accuracy_without_pairs_is_left_out_of_the_plot(found):
    none = replace(found.transfers_to_other[0], maps={"ridge": Estimate(NAN, 0.0, 1.0)})
    assert len(interchange_plot([none, found.transfers_to_other[1]], "turned").rows) == 1
    assert "no interchange pairs" in interchange_plot([none], "turned").body


def test_donors_are_green_only_above_negative_controls_too(found):
    one = found.transfers_to_full[0]
    near = replace(one, donor="near", negative_controls={"copying": 0.95, "permuted": 0.1})
    assert [row.tone for row in donor_plot([one], "c").rows] == ["good", "muted", "muted"]
    block = donor_plot([near], "c")
    assert [row.tone for row in block.rows] == [None, "muted", "muted"]
    assert [row.label for row in block.rows][1:] == [
        "copying (negative control)", "permuted (negative control)"
    ]  # fmt: skip


def test_transfers_are_listed_with_their_controls(found):
    seen = read(transfer_tables(found.transfers_to_other))
    maps, controls = seen.table("identity"), seen.table("token embedding")
    assert [cell[0] for cell in maps[0]] == [
        "big → small", "operation", "L1.resid@op", "124", "0.99", "0.98", "–", "0.41",
        "0.97 [0.91, 0.99]", "−0.01 [−0.03, 0.02]",
    ]  # fmt: skip
    assert maps[0][2][2] == "donor read at L2.resid@op"
    assert [cell[0] for cell in controls[0]] == [
        "big → small",
        "operation",
        "0.97",
        "0.65",
        "0.22",
        "0.03",
        "0.33",
        "0.56",
        "token embedding",
        "0.32 [0.24, 0.40]",
    ]
    assert controls[0][7][2] == "copying 0.45, permuted 0.56"


def test_without_negative_controls_their_column_is_a_dash(found):
    bare = [replace(one, negative_controls={}) for one in found.transfers_to_other]
    assert {row[7] for row in read(transfer_tables(bare)).text("token embedding")} == {"–"}


def test_heads_are_listed_with_counterpart_and_equivalence(found):
    (rows,) = [read(head_blocks(found)).table("head", "equivalent within margins")]
    assert [row[0][0] for row in rows] == ["L0.H0", "L0.H1", "L1.H0", "(relative only)"]
    assert [row[1][:2] for row in rows] == [
        ["kept", "good"], ["no reliable effect", "muted"], ["lost", "bad"], ["new", None]
    ]  # fmt: skip
    assert [row[3][0] for row in rows] == ["yes", "–", "–", "–"]
    assert "as similar" in rows[0][1][2]


def test_a_skipped_interchange_has_a_reason(found, absent):
    why = "The pattern has no opposite"
    (note,) = variable_blocks(replace(found, transfer_skip_reason=why))
    assert why in note.text
    body = "".join(block.body for block in variable_blocks(absent))
    assert "big does not do the whole task" in body
    assert "No interchange into small" in body
    assert "no verdict on any head" in head_blocks(replace(absent, verdicts=()))[0].body


# --- pages ------------------------------------------------------------------------------------


def test_the_page_has_a_section_on_variables_and_one_on_heads(found, absent):
    parts = headings(comparison_page(found))
    at = parts.index("Head pairing")
    assert parts[at + 1 : at + 3] == ["Verdicts on variables", "Verdicts on heads"]
    assert headings(comparison_page(absent)) == parts


def test_a_head_that_no_random_init_model_pairs_is_plotted_without_chance(found):
    matches = tuple(replace(match, chance=NAN) for match in found.matches)
    unpaired = replace(found, matches=matches)
    assert "<section" in comparison_page(unpaired).body


def test_the_family_page_has_one_table_of_all_verdicts(family):
    seen = Read(family_comparison_page(family).body)
    rows = seen.table("path, variable or head", "small", "gone")
    assert [row[0][0] for row in rows] == [
        "operation", "x", "L0.H0", "L1.H0", "new paths and heads"
    ]  # fmt: skip
    assert rows[0][1] == ["kept (L1.resid@op)", "good", "the same role: best stand-in −0.02"]
    assert rows[0][2][:2] == ["behavior absent", "muted"]
    assert [cell[0] for cell in rows[-1]] == ["new paths and heads", "L0.H0", "–"]
    assert "are left out: L0.H1." in family_comparison_page(family).body


def test_the_family_page_leads_with_the_summary_and_marks_absent_behavior(family):
    answers, notes = (
        Read(family_comparison_page(family).body).notes[a:b] for a, b in ((0, 2), (2, 6))
    )
    assert answers[0][0].startswith("big has the answer above its foils in 50 %, small in 38")
    assert answers[1][0].endswith("nothing can be said about its mechanism.")
    assert [note[0] for note in notes] == list(family.summary())
    assert notes[2][0] == "gone is distilled from big: logits matched."
    assert [note[1] for note in (*answers, *notes)] == [None, "bad", None, "bad", None, None]


def test_the_family_page_has_the_metrics_and_a_section_for_each_relative(family):
    page = family_comparison_page(family)
    assert headings(page) == [
        "Verdicts on role paths, variables and heads",
        "Similarity",
        "Cross-model interchange",
        "small: verdicts on variables",
        "gone: verdicts on variables",
        "Method",
    ]
    rows = {row[0]: row[1:] for row in Read(page.body).text("metric", "permuted")}
    # small, gone, random-init models, copying, permuted
    assert rows["mean interchange accuracy"] == ["0.55", "0.01", "0.33", "0.45", "0.56"]
    assert rows["answer above its foils"][2:] == ["–", "–", "–"]


def test_interchange_accuracy_below_a_control_is_muted(family):
    lines = re.findall(r'<tr( data-tone="muted")?><th scope="row" title="([^"]*)"',
                       family_comparison_page(family).body)  # fmt: skip
    # The mean of small is 0.55, and that of a negative control 0.56.
    assert lines[:4] == [
        (' data-tone="muted"', name)
        for name in ("small", "gone", "copying (negative control)", "permuted (negative control)")
    ]
    near = replace(
        family.comparisons[0], transfers_to_full=family.comparisons[0].transfers_to_full[:1]
    )
    assert (
        '<tr><th scope="row" title="small"'
        in family_comparison_page(FamilyComparison((near,))).body
    )


def test_a_family_without_interchange_has_a_page(absent):
    page = family_comparison_page(FamilyComparison((absent,)))
    assert "No cross-model interchange was run" in page.body
    assert Read(page.body).text("path, variable or head", "small") == [["new paths and heads", "–"]]


def test_untrusted_text_is_escaped_and_nothing_is_fetched(family, tmp_path):
    one = family.comparisons[0]
    nasty = replace(
        one,
        other=replace(one.other, name=NASTY),
        title=NASTY,
        verdicts=(replace(OPERATION, reason=NASTY, counterpart=NASTY), *one.verdicts[1:]),
        failing_prompts={"x": (FailingPrompt(NASTY, NASTY, NASTY, NASTY),)},
    )
    assert Read(family_comparison_page(FamilyComparison((nasty,))).body).tags.count("script") == 0
    path = tmp_path / "page.html"
    FamilyComparison((nasty,)).save(path)
    text = path.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert "\u202e" not in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)


# --- the command ------------------------------------------------------------------------------

RUNNER = CliRunner()


@pytest.fixture
def calls(monkeypatch, family):
    """Record the calls of `compare_family` in place of measuring."""
    calls = []

    def record(full, others, pattern, settings):
        calls.append((full, list(others), pattern, settings))
        return FamilyComparison(family.comparisons[: len(others)])

    monkeypatch.setattr("probes.comparison.compare.compare_family", record)
    return calls


def run(*words):
    return RUNNER.invoke(app, ["compare", *(str(word) for word in words)])


def test_one_relative_is_written_as_a_page_with_matches_and_verdicts(calls, tmp_path):
    page, numbers = tmp_path / "r.html", tmp_path / "r.json"
    result = run("big", "small", "--seed", 3, "--workers", 1, "--out", page, "--json", numbers)
    assert result.exit_code == 0, result.output
    ((full, others, pattern, settings),) = calls
    assert (full, others, pattern) == ("big", ["small"], "take-away")
    chosen = (settings.prompts, settings.draws, settings.seed, settings.nulls, settings.workers)
    assert chosen == (32, 5, 3, 20, 1)
    assert settings.progress  # Without a terminal it is a line a minute.
    assert "Head pairing" in page.read_text(encoding="utf-8")
    assert "matches" in json.loads(numbers.read_text(encoding="utf-8"))
    for word in ("partner", "operation", "split", "(relative only)", "lost"):
        assert word in result.stdout
    verdicts = result.stdout[result.stdout.index("variable or head") :]
    assert "L0.H0" in verdicts
    assert "do not repeat" not in verdicts  # The reason of an unreliable head.


def test_several_relatives_are_written_as_one_page_with_a_table_of_verdicts(
    calls, tmp_path, family
):
    page, numbers = tmp_path / "r.html", tmp_path / "r.json"
    result = run("big", "small", "gone", "--out", page, "--json", numbers)
    assert result.exit_code == 0, result.output
    assert calls[0][1] == ["small", "gone"]
    assert "Cross-model interchange" in page.read_text(encoding="utf-8")
    saved = json.loads(numbers.read_text(encoding="utf-8"))
    assert [one["other"]["name"] for one in saved["comparisons"]] == ["small", "gone"]
    assert [f"- {line}" for line in family.summary()] == result.stdout.splitlines()[:4]
    assert re.search(r"(?m)^│ new +│", result.stdout)
    assert re.findall(r"(?m)^│ (L\d\.H\d)", result.stdout) == ["L0.H0", "L1.H0"]
    assert "partner" not in result.stdout


def test_names_are_not_cut_off_in_a_narrow_terminal(calls, tmp_path, found, monkeypatch):
    long = "L1.resid@a_role_with_a_name_that_no_column_of_eighty_letters_could_hold"
    one = replace(found, verdicts=(replace(OPERATION, counterpart=long), *HEADS))
    monkeypatch.setattr(
        "probes.comparison.compare.compare_family", lambda *_, **__: FamilyComparison((one, one))
    )
    result = run("big", "small", "small", "--out", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout


def test_names_in_brackets_are_printed_as_they_are(calls, tmp_path, family, monkeypatch):
    one = family.comparisons[0]
    odd = replace(one, other=replace(one.other, name="[red]s"))
    monkeypatch.setattr(
        "probes.comparison.compare.compare_family",
        lambda *_, **__: FamilyComparison((odd, family.comparisons[1])),
    )
    assert (
        "[red]s" in run("big", "s", "gone", "--out", tmp_path / "r.html").stdout.split("\n", 3)[3]
    )


@pytest.mark.parametrize("others", [("small",), ("small", "gone")])
def test_a_relative_that_is_not_equivalent_ends_with_code_three_after_writing(
    others, calls, tmp_path
):
    page = tmp_path / "r.html"
    result = run("big", *others, "--out", page, "--assert-equivalent", 0.1)
    assert result.exit_code == 3
    assert page.exists()
    assert "small is not shown to be equivalent to big within 0.1: " in result.stderr
    assert "x: split" in result.stderr
    assert ("gone is not shown to be equivalent" in result.stderr) == ("gone" in others)
    assert "not shown to be equivalent" in result.stdout  # What was tested is always printed.
    assert f"Page: {page}" in result.stdout


def test_an_equivalent_relative_ends_with_code_zero(calls, tmp_path, monkeypatch, found):
    equal = replace(
        found,
        verdicts=(OPERATION, *HEADS),
        transfers_to_other=found.transfers_to_other[:1],
        accuracy_changes=(SHORT,),
    )
    monkeypatch.setattr(
        "probes.comparison.compare.compare_family", lambda *_, **__: FamilyComparison((equal,))
    )
    words = ("big", "small", "--out", tmp_path / "r.html", "--assert-equivalent")
    assert run(*words, 0.1).exit_code == 0
    with pytest.raises(EquivalenceError):
        equal.assert_equivalent(0.01)
    assert run(*words, 0.01).exit_code == 3


@pytest.mark.parametrize("margin", [-0.1, 1.5, "much"])
def test_a_margin_outside_0_to_1_is_refused_before_any_work(margin, calls, tmp_path):
    result = run("big", "small", "--out", tmp_path / "r.html", "--assert-equivalent", margin)
    assert result.exit_code == 2
    assert calls == []


def test_a_comparison_without_relatives_is_refused(calls):
    assert run("big").exit_code == 2
    assert calls == []


def test_help_documents_the_exit_code():
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", run("--help").output).split())
    assert "--assert-equivalent" in text
    assert "Exit with code 3" in text


MUCH = Estimate(0.8, 0.75, 0.85)


def op_path(**changes):
    effect = PathEffect(
        contrast="operation",
        answer="number",
        roles=("op", "answer"),
        full=MUCH,
        other=MUCH,
        other_seed=None,
        shortfall=Estimate(0.0, -0.05, 0.05),
        logits=Estimate(3.0, 2.0, 4.0),
        random_init=0.1,
        pairs=64,
    )
    return replace(effect, **changes)


def test_the_page_shows_the_role_paths_with_their_fractions_and_the_circuits(found):
    much, none = MUCH, Estimate(0.0, -0.01, 0.01)
    effect = op_path(other=none, other_seed=none, shortfall=much)
    circuit = PathCircuit(
        "operation", "number", ("op → answer",), much, none, None, 0.02, none, much
    )
    verdicts = path_verdicts([effect], [found.gates[-1]])
    one = replace(
        found,
        paths=(effect,),
        path_circuits=(circuit,),
        verdicts=(*verdicts, *found.verdicts),
    )
    seen = Read(comparison_page(one).body)
    (row,) = seen.text("path", "null")
    assert row[:3] == ["operation", "op → answer", "not shared between seeds"]
    assert row[3] == "0.80 [0.75, 0.85]"
    (whole,) = seen.text("paths", "random")
    assert whole[:3] == ["operation", "1", "0.80 [0.75, 0.85]"]
    assert "No role path was tested" in comparison_page(found).body
    assert [*one.path_table()][-2:] == ["null", "verdict"]
    assert one.path_table()["verdict"].tolist() == ["not shared between seeds"]
    assert one.verdict("operation: op → answer").label == "not shared between seeds"
    assert len(one.explain("operation: op → answer").interventions) == 1
    (line,) = [line for line in one.summary() if line.startswith("Role paths of")]
    assert "in big carry together, of the effect in small: operation 0.00" in line


# --- what is undecided, and what was asked ----------------------------------------------------


def with_paths(found, *effects, **changes):
    verdicts = path_verdicts(effects, [found.gates[-1]])
    return replace(found, paths=effects, verdicts=(*verdicts, *found.verdicts), **changes)


def test_the_full_model_has_its_paths_whatever_the_verdict_on_the_relative_is(found):
    undecided = with_paths(found, op_path(other=Estimate(0.5, 0.0, 0.9)))
    assert undecided.verdicts[0].label == "cannot tell"
    (picture,) = path_picture([undecided])
    full, relative, _ = picture.panels
    assert full.lines == ("1 role path",) and [path.mark for path in full.paths] == ["own"]
    assert relative.lines == ("has 0 of 1 path, 1 open",)
    assert "of 1 role path small keeps 0, cannot be told about 1." in short_answer(undecided)


def test_a_path_that_the_full_model_may_lack_is_none_of_its_paths(found):
    maybe = op_path(roles=("op", "y", "answer"), full=Estimate(0.06, 0.01, 0.2))
    one = with_paths(found, op_path(), maybe)
    (picture,) = path_picture([one])
    full, relative, _ = picture.panels
    assert full.lines == ("1 role path",) and relative.lines == ("has 1 of 1 path, 1 open",)
    assert short_answer(one).endswith("small keeps 1; it is open whether big has 1 more.")


def test_a_full_model_without_the_behavior_has_no_paths(absent):
    gates = tuple(replace(gate, state="closed") for gate in absent.gates)
    effect = op_path()
    one = replace(
        absent, gates=gates, paths=(effect,), verdicts=path_verdicts([effect], absent.gates)
    )
    (picture,) = path_picture([one])
    assert [panel.lines for panel in picture.panels[:2]] == [("behavior absent",)] * 2


@pytest.mark.parametrize(
    ("threshold", "note"),
    [
        (0.3, "no path\nabove 8.0\xa0%\nof the effect"),
        (3.75, "with 2 pairs\nthe null\nreaches the\nwhole effect:\nno path can\nexceed it"),
    ],
)
def test_the_null_says_how_much_a_path_must_carry(threshold, note, found):
    one = with_paths(found, op_path(random_init=threshold, pairs=2))
    (picture,) = path_picture([one])
    assert picture.panels[-1].note == note


def test_the_null_is_scored_as_the_models_beside_it(found):
    counted = found.gates[0].choice.value
    for criterion, word in (("choice", "above foils"), ("accuracy", "right")):
        gates = tuple(replace(gate, criterion=criterion) for gate in found.gates)
        one = with_paths(found, op_path(), gates=gates, random_init_accuracy=(0.25,))
        (picture,) = path_picture([one])
        assert picture.panels[-1].score == f"25\xa0% {word}"
        shown = counted if criterion == "choice" else found.gates[0].accuracy.value
        assert picture.panels[0].score == f"{shown:.0%} {word}".replace("%", "\xa0%")


def test_no_text_names_random_init_models_where_the_null_is_permuted(found):
    method = ComparisonMethod("permuted", null_choice="permuted")
    changes = {
        way: tuple(replace(one, nulls=()) for one in getattr(found, way))
        for way in ("transfers_to_other", "transfers_to_full")
    }
    one = with_paths(found, op_path(), method=method, random_init_accuracy=(), **changes)
    text = visible(comparison_page(one).body)
    named = re.findall(r"[^.]*[Rr]andom-init models[^.]*", text)
    # A general remark on attention, where no model is said to have run.
    assert [sentence.strip() for sentence in named] == [
        "Attention alone is weak evidence: random-init models look alike too"
    ]
    assert "Null mean: mean score of this head in permuted profiles." in text
    assert "with clean and counterfactual prompts exchanged at random" in text
    family_text = visible(family_comparison_page(FamilyComparison((one,))).body)
    assert "andom-init models" not in family_text and "permuted (threshold)" in family_text


def test_a_family_with_a_permuted_null_has_no_column_of_random_init_models(found):
    none = tuple(replace(one, nulls=()) for one in found.transfers_to_full)
    one = replace(found, method=ComparisonMethod("permuted"), transfers_to_full=none)
    assert "best random-init" in FamilyComparison((found,)).metrics()
    metrics = FamilyComparison((one,)).metrics()
    assert "best random-init" not in metrics and "copying" in metrics


@pytest.mark.parametrize(
    ("criterion", "intro", "caption", "axis"),
    [
        ("accuracy", "open if accuracy is above 80 %", "Accuracy of whole answers", "accuracy"),
        (
            *("choice", "how often the answer is above each of its foils"),
            *("Questions whose answer is above each of its foils", "answer above its foils"),
        ),
        (
            *("logit-diff", "asks for a positive logit difference"),
            *("Logit difference, which the gate asks to be above 0", "logit difference"),
        ),
        ("none", "The gate asks nothing", "Accuracy of whole answers", "accuracy"),
    ],
)
def test_the_page_describes_the_gate_that_was_asked(criterion, intro, caption, axis, found):
    gates = tuple(replace(gate, criterion=criterion) for gate in found.gates)
    one = replace(found, gates=gates, random_init_accuracy=(0.25,))
    plot = gate_blocks(one)[0]
    assert (plot.caption, plot.axis) == (caption, axis)
    assert intro in gate_intro(one) and intro in visible(comparison_page(one).body)
    shown = gates[0].logit_diff if criterion == "logit-diff" else gates[0].score
    assert plot.rows[0].estimate == shown.value
    # A chart of logits has no place for a fraction.
    drawn = [row.estimate for row in plot.rows if row.label.startswith("random-init")]
    assert drawn == ([] if criterion == "logit-diff" else [0.25])
    assert "0.25" in "".join(block.body for block in gate_blocks(one))


def visible(body):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).replace("\xa0", " ").split())


def test_heads_without_effect_are_counted_and_not_listed_in_the_terminal(calls, family, tmp_path):
    result = run("big", "small", "--out", tmp_path / "r.html")
    matches = result.stdout[: result.stdout.index("variable or head")]
    heads = [match.head for match in family.comparisons[0].matches]
    listed = re.findall(r"(?m)^│ (L\d\.H\d)", matches)
    assert "L0.H1" in heads and listed == [head for head in heads if head != "L0.H1"]
    assert "1 head without reliable effect is left out." in result.stdout
