"""Trace the circuits a query pattern drives, and compare them across relatives of a model.

Importing this loads nothing: each name below is fetched from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.activations import Activations, capture
    from probes.asking import Pattern
    from probes.attention import RoleAttention, role_attention
    from probes.attribution import attribute
    from probes.batch import Batch, encode
    from probes.circuit import Circuit
    from probes.comparison.circuit_result import CircuitComparison
    from probes.comparison.circuits import compare_circuits
    from probes.comparison.curve_result import Curve
    from probes.comparison.curved import curve
    from probes.comparison.fewest import fewest_parameters
    from probes.comparison.fewest_result import Fewest
    from probes.comparison.gating import Gate, gate
    from probes.comparison.lifted import lift
    from probes.comparison.newcomers import NewLayers, new_layers
    from probes.comparison.published import alignment_score
    from probes.comparison.relatives import compare, compare_family
    from probes.comparison.resampling import minimum_effect, paired
    from probes.comparison.result import Comparison
    from probes.comparison.separation import auroc
    from probes.comparison.similarity import Similarity, compare_states
    from probes.comparison.together import Relatives
    from probes.comparison.trajectory import Trajectory, along
    from probes.comparison.transfer import Transfer, transplant
    from probes.comparison.verdict import Fate
    from probes.comparison.weights import weight_similarity
    from probes.comparison.yardsticks import Standing, standing, yardstick
    from probes.compress.adapting import Adaptation, adapt
    from probes.compress.distilling import distil, find_ticket
    from probes.compress.growing import grow
    from probes.compress.labels import Labels
    from probes.compress.naming import name_study
    from probes.compress.pruning import prune
    from probes.compress.quantizing import quantize
    from probes.compress.relative import Relative
    from probes.compress.training import Training
    from probes.counterfactuals import PairBatch, draw_pairs, encode_pairs
    from probes.cue_forcing import forced
    from probes.cues import cue_sites, divergence
    from probes.errors import ProbeError
    from probes.evaluation import Faithfulness, faithfulness
    from probes.evidence import Verdict
    from probes.factorial import Crossings, crossings
    from probes.graph import Graph
    from probes.hotspot import Hotspots, hotspots
    from probes.interchange import Crossed, Interchange, cross, exchange
    from probes.lens import Lens, logit_lens
    from probes.made import Made, Storage
    from probes.metrics import Behaviour, behaviour
    from probes.model import Model, load, untrained, wrap
    from probes.patching import Effects, cut_edges, patch_path, sweep
    from probes.patterns import all_patterns, pattern
    from probes.proof import Proof
    from probes.proving import prove
    from probes.questions import Pair, Question
    from probes.resources import family_members
    from probes.restart import Cell
    from probes.studies.running import study
    from probes.studies.tables import read_study
    from probes.subspace import Subspace, das
    from probes.tasks import Task, task
    from probes.tracing import Trace, trace
    from probes.view.looking import heatmap
    from probes.view.named import names_picture
    from probes.view.picture import Picture
    from probes.view.spotted import hotspot_map
    from probes.wiring import Edge, Wiring

_HOMES = {
    "Activations": "activations",
    "capture": "activations",
    "Pattern": "asking",
    "RoleAttention": "attention",
    "role_attention": "attention",
    "attribute": "attribution",
    "Batch": "batch",
    "encode": "batch",
    "Circuit": "circuit",
    "CircuitComparison": "comparison.circuit_result",
    "compare_circuits": "comparison.circuits",
    "Curve": "comparison.curve_result",
    "curve": "comparison.curved",
    "fewest_parameters": "comparison.fewest",
    "Fewest": "comparison.fewest_result",
    "Gate": "comparison.gating",
    "gate": "comparison.gating",
    "lift": "comparison.lifted",
    "NewLayers": "comparison.newcomers",
    "new_layers": "comparison.newcomers",
    "alignment_score": "comparison.published",
    "compare": "comparison.relatives",
    "compare_family": "comparison.relatives",
    "minimum_effect": "comparison.resampling",
    "paired": "comparison.resampling",
    "Comparison": "comparison.result",
    "auroc": "comparison.separation",
    "Similarity": "comparison.similarity",
    "compare_states": "comparison.similarity",
    "Standing": "comparison.yardsticks",
    "standing": "comparison.yardsticks",
    "yardstick": "comparison.yardsticks",
    "Relatives": "comparison.together",
    "Trajectory": "comparison.trajectory",
    "along": "comparison.trajectory",
    "Transfer": "comparison.transfer",
    "transplant": "comparison.transfer",
    "Fate": "comparison.verdict",
    "weight_similarity": "comparison.weights",
    "Adaptation": "compress.adapting",
    "adapt": "compress.adapting",
    "distil": "compress.distilling",
    "find_ticket": "compress.distilling",
    "grow": "compress.growing",
    "Labels": "compress.labels",
    "name_study": "compress.naming",
    "prune": "compress.pruning",
    "quantize": "compress.quantizing",
    "Relative": "compress.relative",
    "Training": "compress.training",
    "PairBatch": "counterfactuals",
    "draw_pairs": "counterfactuals",
    "encode_pairs": "counterfactuals",
    "forced": "cue_forcing",
    "cue_sites": "cues",
    "divergence": "cues",
    "ProbeError": "errors",
    "Faithfulness": "evaluation",
    "faithfulness": "evaluation",
    "Verdict": "evidence",
    "Crossings": "factorial",
    "crossings": "factorial",
    "Graph": "graph",
    "Hotspots": "hotspot",
    "hotspots": "hotspot",
    "Crossed": "interchange",
    "Interchange": "interchange",
    "cross": "interchange",
    "exchange": "interchange",
    "Lens": "lens",
    "logit_lens": "lens",
    "Made": "made",
    "Storage": "made",
    "Behaviour": "metrics",
    "behaviour": "metrics",
    "Model": "model",
    "load": "model",
    "untrained": "model",
    "wrap": "model",
    "Effects": "patching",
    "cut_edges": "patching",
    "patch_path": "patching",
    "sweep": "patching",
    "all_patterns": "patterns",
    "pattern": "patterns",
    "Proof": "proof",
    "prove": "proving",
    "Pair": "questions",
    "Question": "questions",
    "family_members": "resources",
    "Cell": "restart",
    "study": "studies.running",
    "read_study": "studies.tables",
    "Subspace": "subspace",
    "das": "subspace",
    "Task": "tasks",
    "task": "tasks",
    "Trace": "tracing",
    "trace": "tracing",
    "heatmap": "view.looking",
    "names_picture": "view.named",
    "Picture": "view.picture",
    "hotspot_map": "view.spotted",
    "Edge": "wiring",
    "Wiring": "wiring",
}

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(f"probes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
