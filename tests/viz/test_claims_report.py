"""Page of the claims: real hotspots of a planted model, all other numbers set by hand."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from probes.claims.base_model import reuse_claim
from probes.claims.dose_response import training_diversity_claim
from probes.claims.result import BaseModelComparison, ClaimsReport, ClaimsReports, JointSite
from probes.claims.run import ClaimSettings, evaluate_claims
from probes.claims.separate_path import separate_path_claim
from probes.claims.shared_state import (
    SharedStateEvidence,
    joint_state_claim,
    shared_direction_claim,
    shared_state_claim,
)
from probes.interventions.hotspots.measure import HotspotSettings, hotspots
from probes.interventions.result import (
    BindingSwap,
    ControlAccuracy,
    DASResult,
    DecodingResult,
    DirectionComparison,
    Dissociation,
    InterchangeEffect,
    IntrinsicDimension,
    Necessity,
    OutputHeads,
    StateProjection,
    UnseenVerbs,
)
from probes.interventions.subspaces.das import Subspace
from probes.interventions.subspaces.projection import project_states
from probes.models.site import Site
from probes.observe.result import Gate
from probes.result import load_result, page_of
from probes.stats.evidence import behavior_absent
from probes.stats.intervals import Estimate
from probes.testing.planted_patterns import planted_fox
from probes.viz.reports.claims import claims_page
from probes.viz.reports.tables.claims import claim_tests_table, dose_response_blocks, verdict_reason

NASTY = "<script>alert('1')</script>&\"\u202e"
PARTS = [
    "Verdicts",
    "Sites of the variables",
    "H1a: one state for all objects",
    "H1b: one state for operation and operands",
    "H2: a separate path for the object",
    "H3: one direction for all objects",
    "H4: reuse of the base model",
    "H5: training on many objects",
    "Method",
]
YES, NO = Estimate(0.97, 0.91, 0.99), Estimate(0.02, 0.01, 0.06)
NONE, WIDE = Estimate(0.0, -0.02, 0.03), Estimate(0.12, 0.04, 0.31)
DOSES = [
    {
        "nouns": 4.0,
        "number": 0.34,
        "unseen_interchange_accuracy": 0.21,
        "unseen_interchange_accuracy_low": 0.13,
        "unseen_interchange_accuracy_high": 0.3,
    },
    {
        "nouns": 64.0,
        "number": 0.98,
        "unseen_interchange_accuracy": 0.94,
        "unseen_interchange_accuracy_low": 0.87,
        "unseen_interchange_accuracy_high": 0.97,
    },
]


@pytest.fixture(scope="module")
def measured_hotspots():
    fox = planted_fox("template")
    return hotspots(fox.model, fox.pattern, HotspotSettings(bases=8, nulls=0))


@pytest.fixture(scope="module")
def report(measured_hotspots):
    return make_report(measured_hotspots)


def gate(answer):
    return Gate(
        model="m",
        pattern="take-away",
        answer=answer,
        n_questions=200,
        accuracy=YES,
        heuristic="copy x",
        heuristic_accuracy=0.125,
        margin=YES,
        logit_diff=YES,
        state="open",
    )


def make_search(**changes):
    found = DASResult(
        full_state=Estimate(0.96, 0.9, 0.98),
        dimensions_tried=(1, 2),
        accuracies=(Estimate(0.55, 0.4, 0.7), Estimate(0.95, 0.89, 0.98)),
        min_dimensions=2,
        mean_difference=Estimate(0.83, 0.7, 0.9),
        permuted_labels=Estimate(0.24, 0.1, 0.4),
        control_site=Estimate(0.03, 0.0, 0.1),
        random_init=Estimate(0.01, 0.0, 0.05),
        off_manifold_distance=1.75,
        state_dimension=IntrinsicDimension(3.25, 5.5, 24),
        subspace=Subspace(1, "op", "das", torch.eye(4)[:2]),
    )
    return replace(found, **changes)


def make_report(own, *, two=WIDE, comparison=None, has_binding=True, **changes):
    """Report with real hotspots and set numbers; one test of H2 is undecided."""
    decoding = DecodingResult(0.62, 0.2, 8)
    verbs = UnseenVerbs(YES, NO, Estimate(0.95, 0.9, 0.98), (("lose",),), {"lose / find": YES})
    evidence = SharedStateEvidence(
        own, decoding, verbs, make_search(), ControlAccuracy(YES, 60, 64), None
    )
    variables = {"operation": YES, "x": YES, "y": WIDE}
    joint = JointSite(Site(1, "resid", "y"), "operation + x + y", variables, WIDE, 40, NO)
    dissociation = Dissociation(
        InterchangeEffect("operation", YES, NO),
        InterchangeEffect("thing", NO, YES),
        Estimate(3.5, 3.1, 3.9),
        Estimate(2.5, 2.1, 2.9),
    )
    second = replace(dissociation, object=InterchangeEffect("thing", two, YES))
    cost = Estimate(5.5, 4.5, 6.5)
    ablation = Necessity(cost, NONE, cost, (0.1, 0.2))
    heads = OutputHeads(
        ("L1.H1",), ("L1.H2",), (NO, YES), (YES, NO), (WIDE, NO),
        {"L1.H1": (0.84, 0.0), "L1.H2": (-0.001, 0.93), "L0.H0": (0.001, 0.002)},
    )  # fmt: skip
    directions = DirectionComparison(
        YES, YES, YES, NONE, NONE, (7.0, 81.0), (("fox", "cup"), ("hat", "egg"))
    )
    found = ClaimsReport(
        model=own.model,
        pattern=own.pattern,
        gates=(gate("number"), gate("noun")),
        verdicts=(
            shared_state_claim(evidence),
            joint_state_claim(joint, own),
            separate_path_claim(dissociation, second, ablation, heads),
            shared_direction_claim(directions),
            reuse_claim(comparison, "none is known"),
            training_diversity_claim(DOSES),
        ),
        hotspots=own,
        joint_site=joint,
        variance_fractions={"operation": 0.75, "thing": -0.03, "name": float("nan")},
        object_decoding=decoding,
        unseen_verbs=verbs,
        subspace_search=make_search(),
        dissociation=dissociation,
        two_object_dissociation=second,
        necessity=ablation,
        output_heads=heads,
        binding=(BindingSwap(1, YES, NO, NO),) if has_binding else (),
        direction_comparison=directions,
        base_comparison=comparison,
        protocol=(("seed", "7"),),
    )
    return replace(found, **changes)


def rename(report, name):
    return replace(report, model=name, hotspots=replace(report.hotspots, model=name))


class Read(HTMLParser):
    """The tags, the notes with their tones, and each table as rows of cell texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.notes, self.site, self.note = [], [], [], None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        held = dict(attrs)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables:
            self.site = []
        elif "pv-note" in (held.get("class") or ""):
            self.note = []
            self.notes.append((held.get("data-tone"), self.note))

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.site is not None:
            self.tables[-1][-1].append("".join(self.site).replace("\xa0", " "))
            self.site = None
        elif tag == "div":
            self.note = None

    def handle_data(self, data):
        for held in (self.site, self.note):
            if held is not None:
                held.append(data)

    def table(self, *heads):
        """The one table that has these headings."""
        (found,) = [rows for rows in self.tables if rows and set(heads) <= set(rows[0])]
        return found

    def said(self):
        return [(tone, "".join(parts)) for tone, parts in self.notes]


def headings(body):
    return re.findall(r"<h2>\d+\. (.*?)</h2>", body)


def test_the_page_has_its_sections_in_order(report):
    assert headings(claims_page(ClaimsReports((report,))).body) == PARTS


def test_projections_add_a_section(report):
    crossed, basis = (
        report.hotspots.runs,
        torch.eye(report.hotspots.runs.clean.resid.shape[-1])[-1:],
    )
    cell = Site(1, "resid", "op")
    states = crossed.states(cell)
    basis = (states[0] - crossed.states(cell, "other")[0])[None]
    seen: StateProjection = project_states(
        crossed, cell, Subspace(1, "op", "means", basis / basis.norm())
    )
    added = headings(claims_page(ClaimsReports((replace(report, projection=seen),))).body)
    assert added == [*PARTS[:3], "States as points", *PARTS[3:]]


def test_the_notes_on_top_have_the_tones_of_the_verdicts(report):
    found = Read(claims_page(ClaimsReports((report,))).body).said()
    tones = {"holds": "good", "fails": "bad", "cannot tell": "muted"}
    assert [tone for tone, _ in found] == [tones[one.label] for one in report.verdicts]
    for verdict, (_, text) in zip(report.verdicts, found, strict=True):
        assert text.startswith(f"{verdict.claim}: {verdict.title}. {verdict.label.capitalize()}: ")


def cards(body):
    """The card of each claim as HTML, above the contents of the page."""
    lead = body[: body.index("<nav")]
    return re.findall(r'<section class="pv-card">.*?</section>', lead, re.DOTALL)


def drawn_tests(card):
    """Label, tone and number of each row of the plot of a card."""
    row = re.compile(
        r'<tr(?: data-tone="(\w+)")?><th scope="row" title="(.*?)">.*?<span.*?>([^<]*)</span></td>',
        re.DOTALL,
    )
    return [(html.unescape(name), tone, text) for tone, name, text in row.findall(card)]


def test_the_page_begins_with_one_picture_for_each_claim(report):
    body = claims_page(ClaimsReports((report,))).body
    found = cards(body)
    assert len(found) == len(report.verdicts) == 6
    tones = {True: "good", False: "bad", None: "muted"}
    for verdict, card in zip(report.verdicts, found, strict=True):
        assert f"{verdict.claim}: " in card
        tests = [t for t in verdict.tests if t.is_deciding and t.value and (t.above or t.below)]
        zero = [t for t in verdict.tests if t.is_deciding and t.value and t.above == 0]
        assert len(drawn_tests(card)) == len(tests) + len([t for t in zero if not t.below])
        names = {t.name: tones[t.passed] for t in tests}
        assert names.items() <= {name: tone for name, tone, _ in drawn_tests(card)}.items()
    assert body.index("pv-cards") < body.index("<nav")


def test_a_test_is_drawn_with_the_range_in_which_it_passes(report):
    (card,) = [card for card in cards(claims_page(ClaimsReports((report,))).body) if "H3" in card]
    bands = re.findall(r'class="pv-band" x="([\d.]+)%" y="4" width="([\d.]+)%"', card)
    low, high = -0.1, 1.0  # The axis: from the range within ±0.10 to 1.
    own, difference = (tuple(map(float, band)) for band in bands)
    at = lambda value: 100 * (value - low) / (high - low)  # noqa: E731
    assert own == pytest.approx((at(0.5), 100 - at(0.5)), abs=0.02)
    assert difference == pytest.approx((0, at(0.1)), abs=0.02)


def test_of_several_models_the_test_nearest_to_failure_is_drawn(report, measured_hotspots):
    other = rename(make_report(measured_hotspots, two=YES), "other")
    (card,) = [c for c in cards(claims_page(ClaimsReports((report, other))).body) if "H2:" in c]
    name = "two objects: the object's site leaves the number"
    assert drawn_tests(card) == [
        (f"{report.model}: {name}", "muted", "0.12 [0.04, 0.31]"),
        (f"other: {name}", "bad", "0.97 [0.91, 0.99]"),
    ]


def test_the_details_of_claims_are_folded_below(report):
    body = claims_page(ClaimsReports((report,))).body
    folded = re.findall(r"<details><summary><h2>\d+\. (.*?)</h2>", body)
    assert folded == [heading for heading in PARTS if heading != "Verdicts"]


def test_a_behavior_that_was_not_established_leads_the_page(report):
    gates = tuple(replace(g, criterion="none", state="not established") for g in report.gates)
    asked = replace(report, gates=gates)
    assert all(line.startswith("Behavior not established") for line in asked.summary()[:2])
    assert claims_page(ClaimsReports((asked,))).body.count("Behavior not established") == 2


def test_models_are_columns_of_one_table_of_verdicts(report, measured_hotspots):
    other = rename(make_report(measured_hotspots, two=YES), "other")
    page = Read(claims_page(ClaimsReports((report, other))).body)
    head, *rows = page.table("claim")
    assert head == ["claim", report.model, "other"]
    words = [[one.verdict(v.claim).label for one in (report, other)] for v in report.verdicts]
    assert [row[1:] for row in rows] == words
    assert words[2] == ["cannot tell", "fails"]
    assert [tone for tone, text in page.said() if text.startswith("other – ")] == ["bad"]


def test_the_reason_of_a_verdict_has_estimate_and_threshold(report, measured_hotspots):
    undecided, failed = (
        verdict_reason(report.verdict("H2")),
        verdict_reason(make_report(measured_hotspots, two=YES).verdict("H2")),
    )
    assert undecided == (
        "“two objects: the object's site leaves the number”: 0.12 [0.04, 0.31], required below 0.10"
    )
    assert failed.startswith(
        "“two objects: the object's site leaves the number”: 0.97 [0.91, 0.99], required"
    )
    assert failed.endswith("the object's site changes the number)")
    assert verdict_reason(report.verdict("H4")) == ("“base model”: not tested, none is known")
    assert verdict_reason(report.verdict("H3")) == "all 2 tests passed"


def test_each_statistical_test_is_a_row_with_its_result(report):
    verdict = report.verdict("H2")
    rows = Read(claim_tests_table(verdict).body).tables[0][1:]
    passed = {True: "yes", False: "no", None: "undecided"}
    assert [row[3] for row in rows] == [passed[test.passed] for test in verdict.tests]
    assert [row[1] for row in rows] == [str(test.value) for test in verdict.tests]
    assert [row[2] for row in rows] == [test.threshold for test in verdict.tests]


def test_tests_that_do_not_decide_are_in_brackets_and_untested_ones_are_marked(report):
    verdict = report.verdict("H1a")
    rows, notes = Read(claim_tests_table(verdict).body).tables[0], claim_tests_table(verdict).notes
    beside = [test for test in verdict.tests if not test.is_deciding]
    assert beside
    for test in beside:
        (row,) = [row for row in rows if row[0] == f"({test.name})"]
        assert test.value is not None or row[3] == "untested"
    assert any("brackets" in note for note in notes)
    assert not claim_tests_table(report.verdict("H3")).notes


def test_a_claim_without_tests_has_a_reason(report):
    verdict = behavior_absent("H3", "directions", "it answers at random")
    assert list(claim_tests_table(verdict).notes) == ["No tests: it answers at random."]
    kept = [verdict if one.claim == "H3" else one for one in report.verdicts]
    body = claims_page(ClaimsReports((replace(report, verdicts=tuple(kept)),))).body
    assert ("muted", "H3: directions. Behavior absent: it answers at random.") in Read(body).said()


def test_hotspots_are_listed_and_drawn_with_their_outcomes(report):
    body = claims_page(ClaimsReports((report,))).body
    rows = Read(body).table("variable", "hotspot")[1:]
    assert rows[0][:2] == ["operation", "L1.resid@op"]
    names = ["operation", "x", "y", "object"]
    places = [str(spot.site) for spot in report.hotspots.hotspots]
    assert [row[:2] for row in rows] == [[*both] for both in zip(names, places, strict=True)]
    assert "operation: L1.resid@op: operation 100.0 %" in body
    assert f"object: {places[-1]}: base 100.0 %" in body
    (bars,) = [rows for rows in Read(body).tables if rows[0][:2] == ["site", "base"]]
    assert 4 < len(bars) - 1 <= 8
    assert bars[-1][0] == "L2.resid@answer"


def test_the_example_shows_each_outcome_and_its_answer(report):
    pair = report.hotspots.runs.interchange_pairs.other[0]
    rows = {
        row[0]: row[1:]
        for row in Read(claims_page(ClaimsReports((report,))).body).table("base text")[1:]
    }
    assert rows["op"] == [pair.clean["op"], pair.counterfactual["op"]]
    assert rows["thing"] == [pair.clean["thing"], pair.counterfactual["thing"]]
    assert rows["reply_number"] == ["(answer: number)"] * 2
    body = claims_page(ClaimsReports((report,))).body
    assert f"base → {pair.clean.answer('number')}; operation → " in body


def test_roles_that_one_model_lacks_are_empty_there(report, measured_hotspots):
    kept = [at for at, role in enumerate(measured_hotspots.roles) if role != "ask"]
    less = replace(
        measured_hotspots,
        sites=tuple(site for site in measured_hotspots.sites if site.role != "ask"),
        maps={variable: rates[kept] for variable, rates in measured_hotspots.maps.items()},
    )
    pair = (rename(replace(report, hotspots=less), "less"), report)
    rows = Read(claims_page(ClaimsReports(pair)).body).table("variable", "role", "less")[1:]
    order = [row[1] for row in rows if row[0] == "operation"]
    assert order == list(measured_hotspots.roles)
    (row,) = [row for row in rows if row[:2] == ["operation", "ask"]]
    assert row[2] == "–"
    assert row[3] != "–"


def test_searches_are_plotted_and_missing_ones_left_out(report):
    found = claims_page(ClaimsReports((report,))).body
    for text in ("DAS, 2 dimensions", "DAS, control site", "0.24 [0.10, 0.40]"):
        assert text in found
    less = claims_page(
        ClaimsReports(
            (replace(report, subspace_search=make_search(control_site=None, min_dimensions=None)),)
        )
    ).body
    assert "DAS, control site" not in less
    assert ">none</span>" in less
    names = [[row[0] for row in rows if row] for rows in Read(found).tables]
    (factors,) = [rows for rows in names if rows[:2] == ["operation", "object"]]
    assert "name" not in factors
    assert "operation alone, by a subspace (DAS)" in found


def test_a_page_without_directions_of_objects_says_why(report):
    skipped = shared_direction_claim(None, "no two nouns are as long")
    verdicts = tuple(skipped if v.claim == "H3" else v for v in report.verdicts)
    bare = replace(report, verdicts=verdicts, direction_comparison=None)
    found = claims_page(ClaimsReports((bare,))).body
    assert "no two nouns are as long" in found
    assert "direction of another object, rotated" not in found


def test_output_heads_are_marked_and_heads_without_effect_left_out(report):
    body = claims_page(ClaimsReports((report,))).body
    rows = Read(body).table("head")[1:]
    assert rows == [["L1.H1", "0.84", "0.00"], ["L1.H2", "0.00", "0.93"]]
    marked = re.findall(r'data-tone="good">(0\.\d\d)<', body)
    assert marked == ["0.84", "0.93"]


def test_bindings_and_the_base_model_are_shown_if_measured(report, measured_hotspots):
    comparison = BaseModelComparison(
        "old", "new", YES, YES, NONE, YES, NO, ("L1.H0",), ("L3.H0", "L3.H1"), NO, (0.0, 0.25)
    )
    with_base = make_report(measured_hotspots, comparison=comparison)
    page = claims_page(ClaimsReports((with_base,))).body
    full = Read(page)
    assert full.table("before layer")[1][:2] == ["1", str(YES)]
    assert full.table("model", "heads")[1:] == [["old", "L1.H0"], ["new", "L3.H0, L3.H1"]]
    null = "with 2 random-init models: 0.12 on average, 0.25 at most"
    assert f"Jaccard overlap: {NO}; {null}." in page.replace("&nbsp;", " ")
    bare = Read(
        claims_page(ClaimsReports((make_report(measured_hotspots, has_binding=False),))).body
    )
    assert not [rows for rows in bare.tables if rows and "before layer" in rows[0]]
    assert not [rows for rows in bare.tables if rows and rows[0] == ["model", "heads"]]


def test_dose_responses_are_sorted_by_number_of_objects_and_mark_absent_behavior():
    (plot,) = dose_response_blocks(DOSES[::-1])
    rows = [[row[0], row[2]] for row in Read(plot.body).tables[0][:2]]
    assert rows == [
        ["4 objects (behavior absent)", "0.21 [0.13, 0.30]"],
        ["64 objects", "0.94 [0.87, 0.97]"],
    ]
    assert dose_response_blocks([]) == []


def test_untrusted_text_is_escaped(report):
    nasty = replace(rename(report, NASTY), pattern=NASTY, protocol=((NASTY, NASTY),))
    plain, hurt = (Read(claims_page(ClaimsReports((one,))).body) for one in (report, nasty))
    assert hurt.tags.count("script") == plain.tags.count("script") == 0
    assert "\u202e" not in claims_page(ClaimsReports((nasty,))).body


def test_the_page_is_one_file_that_stays_small(report, tmp_path):
    path = tmp_path / "claims.html"
    claims_page(ClaimsReports((report, rename(report, "other")))).save(path)
    text = path.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)


@pytest.mark.slow
def test_a_computed_report_has_its_page():
    fox = planted_fox("template")
    found = evaluate_claims(fox.model, fox.pattern, ClaimSettings(bases=24, nulls=1))
    shown = headings(found.picture().body)
    assert [part for part in shown if part != "States as points"] == PARTS
    assert len(shown) == len(PARTS) + 1


def test_saved_claims_are_loaded_again_and_draw_the_same_page(report, tmp_path):
    seen = replace(report, projection=None)
    saved = ClaimsReports((seen, replace(seen, model="other")))
    loaded = load_result(saved.save(tmp_path / "claims.json"))
    assert loaded.to_dict() == saved.to_dict()
    assert page_of(loaded).body == page_of(saved).body
    assert saved.table().loc["H1a"].tolist() == [seen.verdict("H1a").label] * 2
    assert loaded.reports[0].hotspots.runs is None
