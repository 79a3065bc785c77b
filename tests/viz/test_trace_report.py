"""A trace as sentences, as numbers and as a page, drawn from plain values alone."""

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.circuits.result import (
    EdgeNecessity,
    Faithfulness,
    FaithfulnessCurve,
    PublishedOverlap,
    RandomBaseline,
    Trace,
)
from probes.circuits.specificity import Specificity
from probes.errors import FigureError, ResultError
from probes.observe.result import Gate
from probes.result import SCHEMA, Result, load_result, page_of
from probes.stats.intervals import Estimate
from probes.viz.reports.trace import trace_page

NASTY = "<script>alert('1')</script>&\"\u202e"
EDGES = ("embed->L0.H1.v", "L0.H1->L1.H0.k", "embed->L1.H0.v", "L1.H0->logits")
PARTS = (
    "Circuit",
    "Faithfulness",
    "Random baselines",
    "Specificity",
    "Method",
)


def held(value, edges=4):
    return Faithfulness(
        edges=edges,
        fraction=edges / len(ComputationGraph(2, 2, 2)),
        value=Estimate(value, value - 0.04, value + 0.03),
        per_prompt=(value, math.nan, 1.0),
        positive_fraction=Estimate(0.75, 0.6, 0.85),
        complement=Estimate(0.11, 0.07, 0.16),
    )


def damages(own="take-away", other="taken", stranger=0.31, lot=0.47, spread=0.1, edges=4):
    """Of both circuits in both tasks; `lot` is what random paths leave of the other task."""
    left = {(own, own): 0.02, (other, own): 0.64, (own, other): stranger, (other, other): 0.05}
    found = []
    for (cut, task), value in left.items():
        mean = 0.53 if task == own else lot
        extra = Estimate(mean - value, mean - value - spread, mean - value + spread)
        interval, random = (value - 0.03, value + 0.02), (mean - 0.25, mean + 0.25)
        n = edges if (cut, task) == (own, other) else 4
        found.append(Specificity(cut, task, n, value, interval, random, extra))
    return tuple(found)


def damages_of_an_earlier_version():
    """One row of random paths a task, and no intervals."""
    left = {
        ("take-away", "take-away"): 0.02, ("taken", "take-away"): 0.64,
        ("random paths", "take-away"): 0.53, ("take-away", "taken"): 0.31,
        ("taken", "taken"): 0.05, ("random paths", "taken"): 0.47,
    }  # fmt: skip
    return [
        {"cut_circuit": cut, "task": task, "edges": 4, "remaining": value}
        for (cut, task), value in left.items()
    ]


def made(name="full", task="take-away: x + y, number", **changes):
    """A small trace with a different number in every field."""
    circuit = Circuit(
        model=name,
        graph=ComputationGraph(2, 2, 2),
        edges=tuple(map(Edge.parse, EDGES)),
        scores=(1.25, -0.52, 2.75, 4.5),
        errors=(0.13, 0.06, math.nan, 0.45),
        protocol=(("method", "eap-ig, 5 midpoints"), ("task", task), ("prompts", "96")),
    )
    found = Trace(
        circuit=circuit,
        gate=Gate(
            model=name,
            pattern="take-away",
            answer="number",
            n_questions=200,
            accuracy=Estimate(0.97, 0.94, 0.99),
            heuristic="copy x",
            heuristic_accuracy=0.12,
            margin=Estimate(0.85, 0.8, 0.9),
            logit_diff=Estimate(9.0, 8.5, 9.5),
            state="open",
        ),
        keep=0.9,
        discovery=held(0.93),
        held_out=held(0.88),
        curve=FaithfulnessCurve(
            fractions=(0.1, 1.0),
            edges=(3, 34),
            values=(Estimate(0.4, 0.35, 0.45), Estimate(1.0, 1.0, 1.0)),
            cpr=0.631,
            cmd=0.272,
            log_cpr=0.703,
            log_cmd=0.304,
        ),
        random_baselines=(
            RandomBaseline("paths", (0.01, 0.22, 0.59), 0.66),
            RandomBaseline("edges", (0.0, 0.03, 0.07), 1.0),
        ),
        stability=0.86,
        edge_necessities=tuple(
            EdgeNecessity(edge, fall, p)
            for edge, fall, p in zip(
                EDGES, (0.41, 0.008, 0.37, 0.99), (0.0004, 0.26, 0.049, 2e-9), strict=True
            )
        ),
        specificities=damages(),
    )
    return replace(found, **changes)


class Tags(HTMLParser):
    """All tags with their attributes, and all text but styles and scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.said, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("style", "script") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is None:
            self.said.append(data)

    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.said))


def rows(body):
    """The cells of each row of each table, as text."""
    text = re.sub(r"<(style|svg)\b.*?</\1>", "", body, flags=re.DOTALL)
    found = []
    for table in re.findall(r"<table\b.*?</table>", text, re.DOTALL):
        lines = re.findall(r"<tr\b.*?</tr>", table, re.DOTALL)
        cells = [re.findall(r"<t[dh]\b.*?</t[dh]>", line, re.DOTALL) for line in lines]
        found.append([[Tags(cell).words().strip() for cell in line] for line in cells])
    return found


# Sentences.


def test_the_summary_has_the_numbers_of_the_fields():
    gate, size, rest, paths, edges, stable, need, alone = made().summary()
    assert gate == "full on take-away: x + y, number: accuracy 97%; the gate is open."
    assert size.startswith(
        f"4 of {len(ComputationGraph(2, 2, 2))} edges ({4 / len(ComputationGraph(2, 2, 2)):.2%})"
    )
    assert "keep 0.88 [0.84, 0.91] of the logit difference on held-out prompts" in size
    assert "(0.93 [0.89, 0.96] on the discovery prompts; requested 0.9)" in size
    assert size.endswith("It stays positive in 75% of the prompts.")
    assert rest == "All other edges keep 0.11 [0.07, 0.16]."
    said = "3 circuits of as many random {}: median {}, highest {}; the circuit exceeds {} of them."
    assert paths == said.format("paths", "0.22", "0.59", "66%")
    assert edges == said.format("edges", "0.03", "0.07", "100%")
    assert "a mean Jaccard index of 0.86 (threshold 0.8): stable." in stable
    assert need.startswith("3 of 4 edges are necessary")
    assert alone.startswith("Ablating the circuit leaves 0.02 of 'take-away' and 0.31 of 'taken';")
    assert (
        "as many edges of random paths leaves 0.47 of 'taken' (mean of 2; 0.22 to 0.72)." in alone
    )
    assert (
        "The circuit does more damage to 'taken' than random paths do (0.16 [0.06, 0.26] more, "
        "threshold 0.01)." in alone
    )
    assert alone.endswith("Ablating as many edges of 'taken' leaves 0.64 of 'take-away'.")


@pytest.mark.parametrize(
    ("stability", "word"), [(0.8, "stable"), (0.79, "not stable"), (math.nan, "not stable")]
)
def test_a_circuit_is_stable_from_the_threshold_on(stability, word):
    assert made(stability=stability).summary()[5].endswith(f": {word}.")


@pytest.mark.parametrize(
    ("stranger", "lot", "spread", "says"),
    [
        (0.1, 0.5, 0.1, "The circuit does more damage"),
        (0.5, 0.1, 0.1, "The circuit does no more damage"),
        (0.3, 0.3, 0.0, "The circuit does no more damage"),
        (0.0078, 0.0089, 0.0005, "The circuit does no more damage"),
        (0.0078, 0.0089, 0.1, "This cannot tell whether the circuit does more damage"),
        (0.1, 0.5, 0.45, "This cannot tell whether the circuit does more damage"),
        (math.nan, 0.5, 0.1, "This cannot tell whether the circuit does more damage"),
    ],
)
def test_damage_to_the_other_task_is_more_no_more_or_cannot_be_told(stranger, lot, spread, says):
    found = made(specificities=damages(stranger=stranger, lot=lot, spread=spread))
    assert f"{says} to 'taken' than random paths do (" in found.summary()[-1]
    words = says.split()
    label = next(w for w in ("no more", "cannot tell", "more") if w in " ".join(words))
    assert rows(trace_page(found).body)[5][3][-1] == label


def test_edges_that_the_other_task_lacks_are_said_and_nothing_is_told_where_it_lacks_all():
    last = made(specificities=damages(edges=3)).summary()[-1]
    assert "0.31 of 'taken' (3 of its 4 edges exist there);" in last
    last = made(specificities=damages(edges=0)).summary()[-1]
    assert "(0 of its 4 edges exist there)" in last
    assert "This cannot tell whether" in last


def test_a_trace_of_an_earlier_version_loads_and_says_that_it_has_no_interval(tmp_path):
    plain = made().to_dict()
    plain["specificities"] = damages_of_an_earlier_version()
    del plain["specificity_skipped"]
    found = Trace.from_dict(plain)
    last = found.summary()[-1]
    assert "as many edges of random paths leaves 0.47 of 'taken'. The file has no interval" in last
    assert Trace.load(found.save(tmp_path / "t.json")).specificities == found.specificities
    table = rows(trace_page(found).body)[5]
    assert ["random paths", "4", "taken", "0.47", "–", "–", "–"] in table
    plain["specificities"] = []
    assert Trace.from_dict(plain).summary()[-1] == "Specificity was not tested."


def test_a_saved_trace_whose_parts_do_not_fit_together_is_refused_in_one_line():
    plain = made().to_dict()
    plain["specificities"][0]["cut_circuit"] = "another"
    with pytest.raises(ResultError, match=r"parts of this Trace do not fit .* found\): save it"):
        Result.from_dict(plain)


def test_specificity_that_was_not_tested_is_said_with_its_reason_in_the_summary_and_on_the_page():
    found = made(specificities=(), specificity_skipped="full does not have the behavior.")
    lines = found.summary()
    assert len(lines) == 8
    assert lines[-1] == "Specificity was not tested: full does not have the behavior."
    assert "Ablating" not in " ".join(lines)
    section = trace_page(found).body.split("4. Specificity")[1].split("5. Method")[0]
    assert lines[-1] in Tags(section).words()


def test_a_behavior_that_was_not_established_is_said_in_the_summary_and_on_the_page():
    asked = replace(made().gate, criterion="none", state="not established")
    found = made(gate=asked)
    notice, line, *_ = found.summary()
    assert notice.startswith("Behavior not established: full was not asked whether it has number")
    assert line.endswith("accuracy 97%; the gate is not established.")
    assert notice in "".join(Tags(trace_page(found).body).said)


def test_a_gate_of_choices_says_what_it_asked():
    asked = replace(made().gate, criterion="choice", choice=Estimate(1.0, 0.97, 1.0), chance=0.5)
    assert "answer above its foils 100%; the gate is open." in made(gate=asked).summary()[0]


def test_a_circuit_is_held_against_the_heads_that_were_published():
    known = {
        "source": "Someone 2022",
        "layers": 2,
        "heads_per_layer": 2,
        "heads": {"reader": ["L0.H1", "L1.H1"], "writer": ["L1.H0"]},
    }
    overlap = PublishedOverlap.of(made().circuit, known)
    assert overlap.found == {"reader": ("L0.H1",), "writer": ("L1.H0",)}
    # Both of its heads are among 3 of 4: 1.5 are expected, and both with a chance of 3/6.
    assert (overlap.hits, overlap.heads, overlap.expected) == (2, 3, 1.5)
    assert overlap.p_value == pytest.approx(0.5)
    line = made(published=overlap).summary()[-1]
    assert line == (
        "It has 2 of the 3 heads of the published circuit (Someone 2022); as many random heads "
        "have 1.5 (p = 0.5)."
    )


def test_small_negative_numbers_round_to_0():
    nothing = made(
        specificities=damages(stranger=-0.004, lot=-0.001),
        random_baselines=(
            RandomBaseline("paths", (-0.001,), 1.0),
            RandomBaseline("edges", (-0.002, -0.001), 1.0),
        ),
        held_out=replace(held(0.88), complement=Estimate(-0.001, -0.004, 0.001)),
    )
    assert "-0.00" not in " ".join(nothing.summary())
    assert "0.00 of 'taken'" in nothing.summary()[-1]


# Numbers.


def strict(text):
    """Read JSON that holds neither NaN nor Infinity."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_a_trace_is_saved_as_json_with_all_fields(tmp_path):
    found = made()
    plain = found.to_dict()
    assert strict(json.dumps(plain)) == plain
    found.save(tmp_path / "t.json")
    assert strict((tmp_path / "t.json").read_text(encoding="utf-8")) == plain
    assert plain["schema"] == SCHEMA
    assert plain["summary"] == list(found.summary())
    assert plain["held_out"]["value"] == {"value": 0.88, "low": 0.84, "high": 0.91}
    assert plain["held_out"]["per_prompt"] == [0.88, None, 1.0]
    assert plain["curve"]["edges"] == [3, 34]
    assert plain["random_baselines"][1]["values"] == [0.0, 0.03, 0.07]
    assert plain["edge_necessities"][3] == {
        "edge": "L1.H0->logits",
        "faithfulness_drop": 0.99,
        "p_value": 2e-9,
    }
    assert (
        plain["specificities"][0]["cut_circuit"] == plain["specificities"][0]["task"] == "take-away"
    )
    assert (plain["gate"]["state"], plain["keep"], plain["stability"]) == ("open", 0.9, 0.86)


def test_the_circuit_of_a_saved_trace_loads_alone():
    found = made()
    assert Circuit.from_json(json.dumps(found.to_dict()["circuit"])) == found.circuit


def test_an_unknown_stability_is_null():
    assert made(stability=math.nan).to_dict()["stability"] is None


def test_a_prompt_without_any_gap_does_not_break_the_json():
    """Its own f is NaN, and in files of earlier versions infinite."""
    found = made(discovery=replace(held(0.93), per_prompt=(math.nan, -math.inf)))
    assert strict(json.dumps(found.to_dict()))["discovery"]["per_prompt"] == [None, None]


def test_the_repr_is_one_line():
    assert repr(made()) == "<Trace of full: 4 edges keep 0.88 [0.84, 0.91]>"


# The page.


def test_a_loaded_trace_is_drawn_without_running_a_model(monkeypatch):
    """There is no model: all that could be run is taken away."""
    from probes.circuits import faithfulness as evaluation
    from probes.circuits import trace as tracing
    from probes.circuits.edges import path_patching as splice

    for module, name in (
        (splice, "run_circuits"),
        (evaluation, "run_circuits"),
        (tracing, "run_references"),
    ):
        monkeypatch.setattr(module, name, None)
    found = made()
    again = replace(found, circuit=Circuit.from_json(found.circuit.to_json()))
    assert trace_page(again).body == found.picture().body
    assert found._repr_html_() == found.picture()._repr_html_()


@pytest.mark.parametrize("tested", [True, False])
def test_the_page_has_its_sections_in_order(tested):
    body = trace_page(made() if tested else made(specificities=())).body
    heads = [head.replace("&#x27;", "'") for head in re.findall(r"<h2>(.*?)</h2>", body)]
    assert heads == [f"{at}. {part}" for at, part in enumerate(PARTS, start=1)]
    links = re.findall(r'<a href="#(.*?)">', body)
    assert links == re.findall(r'<section class="pv-part" id="(.*?)">', body)
    assert len(links) == len(PARTS)


def test_the_page_leads_with_the_summary_and_its_tones():
    body = trace_page(made()).body
    words = Tags(body).words()
    for line in made().summary():
        assert line in words
    assert body.index("pv-verdicts") < body.index("<section")
    tones = [re.search(r'data-tone="(\w+)"', note) for note in notes(body)]
    assert [tone and tone[1] for tone in tones] == ["good", *[None] * 4, "good", None, None]
    weak = made(stability=0.5, gate=replace(made().gate, state="partial"))
    tones = [re.search(r'data-tone="(\w+)"', note) for note in notes(trace_page(weak).body)]
    assert [tone and tone[1] for tone in tones] == ["bad", *[None] * 4, "bad", None, None]


def notes(body):
    return re.findall(r'<div class="pv-note".*?</div>', body)


def test_every_edge_is_a_row_with_score_error_necessity_and_p():
    table = rows(trace_page(made()).body)[1]
    assert [row[0] for row in table[1:]] == [str(edge) for edge in made().circuit.edges]
    found = {row[0]: row[1:] for row in table[1:]}
    assert found["embed->L0.H1.v"] == ["1.25", "0.13", "0.410", "4.0e-04"]
    assert found["embed->L1.H0.v"] == ["2.75", "–", "0.370", "0.049"]
    assert found["L0.H1->L1.H0.k"][2:] == ["0.008", "0.260"]
    assert found["L1.H0->logits"] == ["4.50", "0.45", "0.990", "2.0e-09"]


def test_an_edge_without_a_necessity_has_dashes():
    table = rows(trace_page(made(edge_necessities=made().edge_necessities[1:])).body)[1]
    assert table[1] == ["embed->L0.H1.v", "1.25", "0.13", "–", "–"]


def test_the_sections_have_the_numbers_of_the_fields():
    body = trace_page(made()).body
    words = Tags(re.sub(r"<svg.*?</svg>", "", body, flags=re.DOTALL)).words()
    for text in (
        "0.88 [0.84, 0.91]", "0.93 [0.89, 0.96]", "0.11 [0.07, 0.16]",
        "10.0%: 3 edges", "100.0%: 34 edges", "0.40 [0.35, 0.45]",
        "CPR 0.631, CMD 0.272", "0.703 and 0.304", "Stability 0.86",
    ):  # fmt: skip
        assert text in words, text
    tables = rows(body)
    assert ["random paths", "3", "0.220", "0.590", "66%"] in tables[4]
    assert ["random edges", "3", "0.030", "0.070", "100%"] in tables[4]
    assert [
        "take-away", "4", "taken", "0.31 [0.28, 0.33]", "0.47 (0.22 to 0.72)",
        "0.16 [0.06, 0.26]", "more",
    ] in tables[5]  # fmt: skip
    how = dict(map(tuple, tables[6][1:]))
    assert how["method"] == "eap-ig, 5 midpoints"
    assert how["gate"] == "open: accuracy 0.97 [0.94, 0.99] on 200 questions"
    assert how["best heuristic"] == "copy x: 0.12"
    assert how["edges of the model"] == str(len(ComputationGraph(2, 2, 2)))


def test_tables_round_like_the_summary():
    thin = replace(made().curve, fractions=(0.01, 1.0), edges=(1, 34))
    body = trace_page(made(specificities=damages(stranger=-0.001), curve=thin)).body
    words = Tags(body).words()
    assert "-0.00" not in words
    assert "1 edges" not in words


def test_the_page_runs_no_script_but_its_own_and_fetches_nothing(tmp_path):
    place = tmp_path / "t.html"
    made().save(place)
    text = place.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in text
    assert "default-src 'none'" in text
    for tag, attributes in Tags(text).tags:
        assert tag not in ("iframe", "object", "embed", "link", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("#", "data:"))


def test_untrusted_names_are_only_text(tmp_path):
    gate = replace(made().gate, answer=NASTY, heuristic=NASTY)
    found = made(NASTY, NASTY, gate=gate, specificities=damages(NASTY, f"{NASTY}2"))
    place = tmp_path / "t.html"
    found.save(place)
    page = Tags(place.read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<script>alert('1')</script>&\"<U+202E>" in page.words()
    assert "\u202e" not in place.read_text(encoding="utf-8")
    assert strict(json.dumps(found.to_dict()))["circuit"]["model"] == NASTY


@pytest.mark.parametrize("name", ["t.html", "t.json"])
def test_a_file_is_written_completely_or_not_at_all(name, tmp_path, monkeypatch):
    place = tmp_path / name
    made().save(place)
    before = place.read_bytes()
    assert len(before) > 1000
    assert [path.name for path in tmp_path.iterdir()] == [name]

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(FigureError, match="No space left"):
        made("other").save(place)
    monkeypatch.undo()
    assert place.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "says"), [("no/t.html", "no"), ("no/t.json", "no"), ("t.png", "html"), ("t", "html")]
)
def test_an_invalid_path_is_refused(name, says, tmp_path):
    with pytest.raises(FigureError, match=says):
        made().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_same_trace_is_the_same_page():
    assert trace_page(made()).body == trace_page(made()).body


def test_a_saved_trace_is_loaded_again_and_draws_the_same_page(tmp_path):
    saved = made()
    loaded = load_result(saved.save(tmp_path / "t.json"))
    assert isinstance(loaded, Trace)
    assert loaded.to_dict() == saved.to_dict()
    assert loaded.circuit == saved.circuit
    assert page_of(loaded).body == page_of(saved).body
