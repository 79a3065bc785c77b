import re
import sys
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.circuits.head_roles import HeadRole
from probes.circuits.selection import random_paths
from probes.errors import FigureError
from probes.viz.colors import apply_colormap, to_hex
from probes.viz.drawing import LIGHT_COLORS
from probes.viz.picture import html_fragment
from probes.viz.plots.circuit.diagram import MAX_EDGES, circuit_diagram, circuit_summary
from probes.viz.plots.circuit.layout import MLP_SIZE, layout_circuit

MINUS = "\N{MINUS SIGN}"
PLAIN = ComputationGraph(4, 4, 4)
PARALLEL = ComputationGraph(3, 4, 1, True)
NAMES = ("bos", "name", "x", "op", "answer")
ROLES = ComputationGraph(
    3, 4, 4, False, NAMES,
    tuple((a, b) for at, a in enumerate(NAMES) for b in NAMES[at:]), ("answer",),
)  # fmt: skip
NASTY = ("<script>alert(1)</script>", "\u202eabc", "a\x00b", "日本", "$x$")


def made(scores, wiring=PLAIN, model="full", error=0.05):
    edges = tuple(Edge.parse(name) for name in scores)
    return Circuit(model, wiring, edges, tuple(scores.values()), (error,) * len(edges))


def crowd(wiring, count, seed=0):
    """A made-up circuit with a few strong edges and many weak ones."""
    draw = np.random.default_rng(seed)
    scores = draw.standard_t(1.6, size=len(wiring)) * 0.1
    return Circuit.from_scores("full", wiring, scores, np.abs(scores) / 8).greedy(count)


CROWDS = {
    "few": crowd(PLAIN, 15),
    "many": crowd(PLAIN, 150),
    "roles": crowd(ROLES, 120),
    "shared": crowd(ComputationGraph(3, 4, 2), 60),
    "parallel": crowd(ComputationGraph(3, 4, 1, True), 60),
    "large": crowd(ComputationGraph(12, 12, 12), 100),
    "tiny": crowd(ComputationGraph(1, 1, 1), 8),
}


def drawing(circuit):
    """The drawing as a tree."""
    text = re.findall(r"<svg.*?</svg>", circuit_diagram(circuit).body, re.DOTALL)[0]
    return ElementTree.fromstring(text)


def wires(circuit):
    """For each line what it says on hover, its width, and whether it is dashed."""
    found = []
    for group in drawing(circuit).iter("g"):
        if "pv-wire" in group.get("class", "").split():
            line = group.findall("path")[-1]
            says = group.findtext("title")
            found.append(
                (
                    says,
                    float(line.get("stroke-width", "nan")),
                    line.get("stroke-dasharray") is not None,
                )
            )
    return found


def along(line):
    """Points all along a line."""
    steps = np.linspace(0, 1, 60)[:, None]
    parts = []
    for curve in line.curves():
        a, b, c, d = (np.array(point) for point in curve)
        parts.append(
            (1 - steps) ** 3 * a
            + 3 * steps * (1 - steps) ** 2 * b
            + 3 * steps**2 * (1 - steps) * c
            + steps**3 * d
        )
    return np.concatenate(parts)


# --- where things stand -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CROWDS)
def test_nodes_do_not_overlap_and_edges_run_upward_between_them(name):
    drawn = layout_circuit(CROWDS[name], MAX_EDGES)
    for at, node in enumerate(drawn.nodes):
        for other in drawn.nodes[at + 1 :]:
            apart = abs(node.x - other.x) >= (node.width + other.width) / 2
            assert apart or abs(node.y - other.y) >= (node.height + other.height) / 2
    for line in drawn.lines:
        points = along(line)
        assert (np.diff(points[:, 1]) >= -1e-6).all()
        for at, node in enumerate(drawn.nodes):
            if at in (line.source, line.target):
                continue
            beside = np.abs(points[:, 0] - node.x) > node.width / 2
            assert (beside | (np.abs(points[:, 1] - node.y) > node.height / 2)).all(), node.name


@pytest.mark.parametrize("name", CROWDS)
def test_everything_is_inside_the_drawing(name):
    drawn = layout_circuit(CROWDS[name], MAX_EDGES)
    points = np.concatenate([along(line) for line in drawn.lines])
    assert points.min() > 0 and points[:, 0].max() < drawn.width
    assert points[:, 1].max() < drawn.height
    for node in drawn.nodes:
        assert node.x - node.width / 2 > 0 and node.x + node.width / 2 < drawn.width


def test_layers_rise_from_the_embedding_to_the_logits():
    chain = ["embed", "L0.H1", "L0.MLP", "L1.H1", "L1.MLP", "L3.H1", "L3.MLP", "logits"]
    names = [f"{a}->{b}{'.v' if '.H' in b else ''}" for a, b in pairwise(chain)]
    nodes = layout_circuit(made(dict.fromkeys(names, 1.0)), MAX_EDGES).nodes
    heights = {node.name: node.y for node in nodes}
    assert [*heights] == chain
    assert [*heights.values()] == sorted({*heights.values()})


def test_a_parallel_mlp_is_in_the_row_of_its_heads():
    whole = Circuit.from_scores("p", PARALLEL, np.ones(len(PARALLEL)))
    nodes = {node.name: node for node in layout_circuit(whole, MAX_EDGES).nodes}
    assert nodes["L1.H0"].y == nodes["L1.MLP"].y < nodes["L2.H0"].y


DEEP = ComputationGraph(30, 9, 3)
SPARSE = {
    "embed->L4.KV1.v": 1.0,
    "L4.H3->L4.MLP": 1.0,
    "L4.MLP->L11.KV0.v": 2.0,
    "L11.H2->logits": 1.0,
}


def test_only_members_are_drawn():
    nodes = layout_circuit(made(SPARSE, DEEP), MAX_EDGES).nodes
    assert [node.name for node in nodes] == ["embed", "L4.H3", "L4.MLP", "L11.H2", "logits"]


def test_layers_without_a_member_are_one_thin_row_that_counts_them():
    drawn = layout_circuit(made(SPARSE, DEEP), MAX_EDGES)
    assert [text for text, _ in drawn.rows] == ["layer 4", "layer 11"]
    texts, heights = zip(*drawn.empty_rows, strict=True)
    assert texts == ("0–3: none", "5–10: none", "12–29: none")
    nodes = {node.name: node.y for node in drawn.nodes}
    order = [nodes["embed"], heights[0], nodes["L4.H3"], nodes["L4.MLP"], heights[1],
             nodes["L11.H2"], heights[2], nodes["logits"]]  # fmt: skip
    assert order == sorted(order)
    assert drawn.height < 320
    one = layout_circuit(made({"embed->L1.MLP": 1.0}, ComputationGraph(2, 1, 1)), MAX_EDGES)
    assert [text for text, _ in one.empty_rows] == ["0: none"]


def test_a_head_bears_the_roles_that_it_reads_from_and_writes_for():
    roles = (HeadRole("L4.H3", "answer", "name", 0.81, 0.4), HeadRole("L9.H0", "x", "y", 1.0, 1.0))
    circuit = replace(made(SPARSE, DEEP), head_roles=roles)
    labels = [text.text for text in drawing(circuit).iter("text")]
    assert "answer ← name" in labels and "x ← y" not in labels
    said = [group.findtext("title") for group in drawing(circuit).iter("g")]
    assert "L4.H3: answer ← name: 81% of the effect of the head, mean attention 0.40" in said
    assert "roles between which" not in circuit_diagram(made(SPARSE, DEEP)).body


def test_a_circuit_of_a_graph_of_70000_edges_is_drawn_small():
    assert len(DEEP) > 70_000
    draw = np.random.default_rng(0)
    scores = np.full(len(DEEP), np.nan)
    scores[random_paths(DEEP, 80, draw)] = draw.random(80)
    circuit = Circuit.from_scores("deep", DEEP, scores)
    drawn = layout_circuit(circuit, MAX_EDGES)
    assert {node.name for node in drawn.nodes} <= {*circuit.nodes, "logits"}
    assert len(circuit_diagram(circuit).body) < 300_000


def listed(picture):
    """Path, cells and edges of each row of the table of paths."""
    rows = re.findall(r'<tr data-edges="([\d ]*)">(.*?)</tr>', picture.body, re.DOTALL)
    return [
        (re.sub("<.*?>", "|", line).strip("|").split("|"), marks.split()) for marks, line in rows
    ]


def test_the_paths_stand_beside_the_diagram_with_their_weakest_edge():
    circuit = made({"embed->L0.H0.v": 3.0, "L0.H0->logits": -2.0, "embed->logits": 0.5})
    (first, edges), (second, others) = listed(circuit_diagram(circuit))
    assert first[0] == "embed → L0.H0.v → logits" and first[-1] == "2.00"
    assert second[0] == "embed → logits" and second[-1] == "0.50"
    names = [str(circuit.edges[int(at)]) for at in edges]
    assert names == ["embed->L0.H0.v", "L0.H0->logits"] and len(others) == 1
    drawn = circuit_diagram(circuit).body
    assert all(f"pv-e{at} " in drawn for at in (*edges, *others))


def test_with_roles_a_node_is_in_the_column_of_its_role():
    circuit = made(
        {
            "embed@x->L0.H1.v@answer": 1.0,
            "embed@x->L0.H2.v@answer": 1.0,
            "L0.H1@answer->logits@answer": 1.0,
        },
        ROLES,
    )
    drawn = layout_circuit(circuit, MAX_EDGES)
    column = {name: (left, right) for _, name, left, right in drawn.columns}
    assert list(column) == list(NAMES)
    nodes = {node.name: node for node in drawn.nodes}
    assert set(nodes) == {"embed@x", "L0.H1@answer", "L0.H2@answer", "logits@answer"}
    for name, node in nodes.items():
        left, right = column[name.split("@")[1]]
        assert left <= node.x - node.width / 2 and node.x + node.width / 2 <= right
    assert nodes["L0.H2@answer"].x - nodes["L0.H1@answer"].x > MLP_SIZE


def test_queries_keys_and_values_enter_a_head_side_by_side():
    circuit = made({f"embed->L0.H0.{port}": 1.0 for port in "qkv"})
    ends = {line.port: line.end[0] for line in layout_circuit(circuit, MAX_EDGES).lines}
    assert ends["q"] < ends["k"] < ends["v"]
    texts = [text.text for text in drawing(circuit).iter("text")]
    assert texts.count("q") == texts.count("k") == texts.count("v") == 1


def test_shared_keys_are_drawn_into_the_heads_that_write_into_the_circuit():
    wiring = ComputationGraph(1, 4, 2)
    circuit = made({"embed->L0.KV1.k": 1.0, "L0.H3->logits": 1.0}, wiring)
    drawn = layout_circuit(circuit, MAX_EDGES)
    assert {drawn.nodes[line.target].name for line in drawn.lines} == {"L0.H3", "logits"}
    assert "shared keys" not in circuit_diagram(circuit).body
    circuit = made({"embed->L0.KV1.k": 1.0}, wiring)
    drawn = layout_circuit(circuit, MAX_EDGES)
    assert {drawn.nodes[line.target].name for line in drawn.lines} == {"L0.H2", "L0.H3"}
    assert "An edge to shared keys or values" in circuit_diagram(circuit).body


# --- the page ---------------------------------------------------------------------------------


def test_thickness_follows_the_score_and_negative_edges_are_dashed():
    found = wires(made({"embed->L0.H0.q": 2.0, "embed->L0.H0.k": -1.0, "embed->logits": 0.5}))
    widths = {says.split(":")[0]: width for says, width, _ in found}
    assert widths["embed->L0.H0.q"] > widths["embed->L0.H0.k"] > widths["embed->logits"] > 0.5
    assert {says.split(":")[0]: dashed for says, _, dashed in found} == {
        "embed->L0.H0.q": False,
        "embed->L0.H0.k": True,
        "embed->logits": False,
    }


def test_every_edge_has_a_tooltip_with_its_score_and_error():
    found = wires(made({"embed->L0.H0.q": 2.0, "embed->L0.H0.k": -1.0}))
    assert [says for says, _, _ in found] == [
        f"embed->L0.H0.k: {MINUS}1.000 ± 0.050",
        "embed->L0.H0.q: +2.000 ± 0.050",
    ]
    found = wires(made({"embed->L0.H0.q": 2.0}, error=float("nan")))
    assert [says for says, _, _ in found] == ["embed->L0.H0.q: +2.000"]


def test_the_legend_has_only_what_occurs():
    up = circuit_diagram(made({"embed->logits": 2.0})).body
    assert "raises the logit difference" in up and "2 logits" in up
    assert "lowers it" not in up and "q, k, v" not in up
    both = circuit_diagram(made({"embed->L0.H0.q": 2.0, "embed->logits": -1.0})).body
    assert "lowers it" in both and "q, k, v" in both


def test_the_300_strongest_edges_are_drawn_and_the_others_counted():
    circuit = Circuit.from_scores("full", PLAIN, np.linspace(1, 2, len(PLAIN)))
    assert len(wires(circuit)) == MAX_EDGES == 300
    body = circuit_diagram(circuit).body
    assert f"the 300 strongest are drawn, {len(PLAIN) - 300} weaker are left out" in body
    assert str(circuit.edges[0]) + ":" not in body.replace("&gt;", ">")
    assert "left out" not in circuit_diagram(CROWDS["many"]).body


def test_scores_of_zero_are_drawn_thin():
    assert all(width < 1 for _, width, _ in wires(made({"embed->logits": 0.0})))


def test_the_drawing_has_a_description_for_screen_readers():
    tree = drawing(made({"embed->logits": 2.0}))
    assert tree.get("role") == "img" and tree.get("aria-label") == "Circuit of full"
    assert "1 of the model's 479 edges (0.2%)" in tree.findtext("desc", "")
    assert "upward" in tree.findtext("desc", "")


def test_signs_have_the_colors_of_the_signed_scale():
    html = html_fragment(circuit_diagram(CROWDS["few"]).body)
    signs = np.array([0.78, -0.78, 0.5, -0.5])
    light_and_dark = [to_hex(color) for color in apply_colormap(signs, "diverging")]
    pairs = re.findall(r"--(?:up|down):light-dark\((#\w+),(#\w+)\)", html)
    assert [color for scheme in zip(*pairs, strict=True) for color in scheme] == light_and_dark
    assert [LIGHT_COLORS[name] for name in ("up", "down")] == light_and_dark[:2]


@pytest.mark.parametrize("name", CROWDS)
def test_the_drawing_is_well_formed_and_has_all_edges(name):
    circuit = CROWDS[name]
    assert {says.split(": ")[0] for says, _, _ in wires(circuit)} == set(map(str, circuit.edges))


def test_hostile_names_are_only_text(tmp_path):
    wiring = ComputationGraph(
        1, 1, 1, False, NASTY, tuple((a, NASTY[4]) for a in NASTY), (NASTY[4],)
    )
    edges = (*(Edge("embed", "L0.H0.k", a, NASTY[4]) for a in NASTY),)
    circuit = Circuit(NASTY[0], wiring, edges, (1.0,) * 5, (0.0,) * 5, ((NASTY[0], NASTY[1]),))
    for picture in (circuit_diagram(circuit, title=NASTY[0]), circuit_summary(circuit)):
        text = picture.save(tmp_path / "p.html").read_text()
        assert text.count("<script") == 1 and "\u202e" not in text and "\x00" not in text
    pytest.importorskip("matplotlib")
    assert len(circuit.picture().save(tmp_path / "p.svg").read_bytes()) > 2000


def test_styles_stay_inside_the_picture():
    styles = re.findall(r"<style>(.*?)</style>", circuit_diagram(CROWDS["few"]).body, re.DOTALL)
    for style in styles:
        flat = re.sub(r"@media[^{]*\{", "", style)
        for rule in re.findall(r"([^{}]+)\{", flat):
            assert rule.strip().startswith(".pv.pv .pv-"), rule


def test_paths_that_catch_the_mouse_are_transparent():
    """A style for all paths of an edge would paint it over its neighbors."""
    body = circuit_diagram(CROWDS["few"]).body
    assert "stroke:" not in re.findall(r"<style>(.*?)</style>", body, re.DOTALL)[0]
    edges = [g for g in drawing(CROWDS["few"]).iter("g") if "pv-wire" in g.get("class", "")]
    assert edges and {g.findall("path")[0].get("stroke") for g in edges} == {"transparent"}


def test_a_circuit_without_edges_has_a_summary_and_no_drawing():
    with pytest.raises(FigureError, match="no edges to draw"):
        circuit_diagram(made({}))
    assert "0 of 479 edges" in circuit_summary(made({})).body


# --- the figure -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("name", ["few", "roles"])
@pytest.mark.filterwarnings("error")
def test_figures_are_saved_in_each_form(name, suffix, tmp_path):
    pytest.importorskip("matplotlib")
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    first, second = (
        CROWDS[name].picture(title="A long title " * 20).save(tmp_path / f"{at}{suffix}")
        for at in "ab"
    )
    assert first.read_bytes().startswith(starts[suffix])
    assert first.read_bytes() == second.read_bytes()


def test_a_page_needs_no_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert CROWDS["few"].picture().save(tmp_path / "p.html").exists()
    with pytest.raises(FigureError, match="matplotlib"):
        CROWDS["few"].picture().save(tmp_path / "p.png")
