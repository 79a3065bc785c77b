"""Trace the circuits a query pattern drives, and compare them across relatives of a model.

Importing this loads nothing: each name below is fetched from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.circuits.attribution import attribute
    from probes.circuits.circuit import Circuit
    from probes.circuits.edge_scores import Graph
    from probes.circuits.faithfulness import Faithfulness, faithfulness
    from probes.circuits.graph import Edge, Wiring
    from probes.circuits.path_patching import cut_edges, patch_path
    from probes.circuits.task import Task, task
    from probes.circuits.trace import Trace, trace
    from probes.claims.result import Proof
    from probes.claims.run import prove
    from probes.comparison.circuits.compare import compare_circuits
    from probes.comparison.circuits.lifted import lift
    from probes.comparison.circuits.result import CircuitComparison
    from probes.comparison.compare import compare, compare_family
    from probes.comparison.family_result import Relatives
    from probes.comparison.rate_distortion.measure import curve
    from probes.comparison.rate_distortion.result import Curve
    from probes.comparison.representations.compare import Similarity, compare_states
    from probes.comparison.result import Comparison
    from probes.comparison.variables.transfer import Transfer, transplant
    from probes.comparison.verdict import Fate
    from probes.comparison.weights import weight_similarity
    from probes.compression.derived_model import Relative
    from probes.compression.distillation.distill import distil, find_ticket
    from probes.compression.distillation.targets import Labels
    from probes.compression.distillation.trainer import Training
    from probes.compression.grow import grow
    from probes.compression.pruning.prune import prune
    from probes.compression.quantization.quantize import quantize
    from probes.errors import ProbeError
    from probes.experiments.adaptation.adapt import Adaptation, adapt
    from probes.experiments.cue_words.budget_forcing import forced
    from probes.experiments.cue_words.divergence import cue_sites, divergence
    from probes.experiments.distilled_circuits.score import alignment_score
    from probes.experiments.fewest.result import Fewest
    from probes.experiments.fewest.search import fewest_parameters
    from probes.experiments.new_layers import NewLayers, new_layers
    from probes.experiments.scorecard import Standing, standing, yardstick
    from probes.experiments.soft_labels.figure import names_picture
    from probes.experiments.soft_labels.run import name_study
    from probes.experiments.studies.registry import study
    from probes.experiments.studies.tables import read_study
    from probes.experiments.training_dynamics.trajectory import Trajectory, along
    from probes.files import family_members
    from probes.interventions.hotspots import Hotspots, hotspots
    from probes.interventions.interchange import Crossed, Interchange, cross, exchange
    from probes.interventions.subspace import Subspace, das
    from probes.interventions.sweep import Effects, sweep
    from probes.models.model import Model, load, untrained, wrap
    from probes.models.provenance import Made, Storage
    from probes.models.site import Cell
    from probes.observe.activations import Activations, capture
    from probes.observe.attention import RoleAttention, role_attention
    from probes.observe.behaviour import Behaviour, behaviour
    from probes.observe.gate import Gate, gate
    from probes.observe.logit_lens import Lens, logit_lens
    from probes.prompts.batch import Batch, encode
    from probes.prompts.catalog import all_patterns, pattern
    from probes.prompts.interchange_pairs import Crossings, crossings
    from probes.prompts.pair_batch import PairBatch, draw_pairs, encode_pairs
    from probes.prompts.pattern import Pattern
    from probes.prompts.question import Pair, Question
    from probes.stats.auroc import auroc
    from probes.stats.evidence import Verdict
    from probes.stats.paired import minimum_effect, paired
    from probes.viz.picture import Picture
    from probes.viz.plots.attention.heatmap import heatmap
    from probes.viz.plots.hotspot_map import hotspot_map

_HOMES = {
    "Activations": "observe.activations",
    "capture": "observe.activations",
    "Pattern": "prompts.pattern",
    "RoleAttention": "observe.attention",
    "role_attention": "observe.attention",
    "attribute": "circuits.attribution",
    "Batch": "prompts.batch",
    "encode": "prompts.batch",
    "Circuit": "circuits.circuit",
    "CircuitComparison": "comparison.circuits.result",
    "compare_circuits": "comparison.circuits.compare",
    "Curve": "comparison.rate_distortion.result",
    "curve": "comparison.rate_distortion.measure",
    "fewest_parameters": "experiments.fewest.search",
    "Fewest": "experiments.fewest.result",
    "Gate": "observe.gate",
    "gate": "observe.gate",
    "lift": "comparison.circuits.lifted",
    "NewLayers": "experiments.new_layers",
    "new_layers": "experiments.new_layers",
    "alignment_score": "experiments.distilled_circuits.score",
    "compare": "comparison.compare",
    "compare_family": "comparison.compare",
    "minimum_effect": "stats.paired",
    "paired": "stats.paired",
    "Comparison": "comparison.result",
    "auroc": "stats.auroc",
    "Similarity": "comparison.representations.compare",
    "compare_states": "comparison.representations.compare",
    "Standing": "experiments.scorecard",
    "standing": "experiments.scorecard",
    "yardstick": "experiments.scorecard",
    "Relatives": "comparison.family_result",
    "Trajectory": "experiments.training_dynamics.trajectory",
    "along": "experiments.training_dynamics.trajectory",
    "Transfer": "comparison.variables.transfer",
    "transplant": "comparison.variables.transfer",
    "Fate": "comparison.verdict",
    "weight_similarity": "comparison.weights",
    "Adaptation": "experiments.adaptation.adapt",
    "adapt": "experiments.adaptation.adapt",
    "distil": "compression.distillation.distill",
    "find_ticket": "compression.distillation.distill",
    "grow": "compression.grow",
    "Labels": "compression.distillation.targets",
    "name_study": "experiments.soft_labels.run",
    "prune": "compression.pruning.prune",
    "quantize": "compression.quantization.quantize",
    "Relative": "compression.derived_model",
    "Training": "compression.distillation.trainer",
    "PairBatch": "prompts.pair_batch",
    "draw_pairs": "prompts.pair_batch",
    "encode_pairs": "prompts.pair_batch",
    "forced": "experiments.cue_words.budget_forcing",
    "cue_sites": "experiments.cue_words.divergence",
    "divergence": "experiments.cue_words.divergence",
    "ProbeError": "errors",
    "Faithfulness": "circuits.faithfulness",
    "faithfulness": "circuits.faithfulness",
    "Verdict": "stats.evidence",
    "Crossings": "prompts.interchange_pairs",
    "crossings": "prompts.interchange_pairs",
    "Graph": "circuits.edge_scores",
    "Hotspots": "interventions.hotspots",
    "hotspots": "interventions.hotspots",
    "Crossed": "interventions.interchange",
    "Interchange": "interventions.interchange",
    "cross": "interventions.interchange",
    "exchange": "interventions.interchange",
    "Lens": "observe.logit_lens",
    "logit_lens": "observe.logit_lens",
    "Made": "models.provenance",
    "Storage": "models.provenance",
    "Behaviour": "observe.behaviour",
    "behaviour": "observe.behaviour",
    "Model": "models.model",
    "load": "models.model",
    "untrained": "models.model",
    "wrap": "models.model",
    "Effects": "interventions.sweep",
    "cut_edges": "circuits.path_patching",
    "patch_path": "circuits.path_patching",
    "sweep": "interventions.sweep",
    "all_patterns": "prompts.catalog",
    "pattern": "prompts.catalog",
    "Proof": "claims.result",
    "prove": "claims.run",
    "Pair": "prompts.question",
    "Question": "prompts.question",
    "family_members": "files",
    "Cell": "models.site",
    "study": "experiments.studies.registry",
    "read_study": "experiments.studies.tables",
    "Subspace": "interventions.subspace",
    "das": "interventions.subspace",
    "Task": "circuits.task",
    "task": "circuits.task",
    "Trace": "circuits.trace",
    "trace": "circuits.trace",
    "heatmap": "viz.plots.attention.heatmap",
    "names_picture": "experiments.soft_labels.figure",
    "Picture": "viz.picture",
    "hotspot_map": "viz.plots.hotspot_map",
    "Edge": "circuits.graph",
    "Wiring": "circuits.graph",
}

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(f"probes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
