"""Trace the circuits that a query pattern drives, and compare them across relatives of a model.

Importing this package loads nothing: each name below is fetched from its module at first use.

Axes of public tensors, the same words everywhere:

    prompt      one text of a batch              layer       block of the decoder, from 0
    position    token of a padded batch          head        attention head of a layer
    query, key  positions of an attention map    component   head, MLP or residual stream
    role        named part of a prompt           site        layer, component and role
    answer      answer of the pattern            edge        sender and receiver in the graph
    draw        bootstrap sample                 d_model     width of the residual stream
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.circuits.circuit import Circuit
    from probes.circuits.edges.edge_attribution import edge_attribution
    from probes.circuits.edges.path_patching import edge_patching, path_patching
    from probes.circuits.faithfulness import faithfulness
    from probes.circuits.question.ask import ask
    from probes.circuits.task import Task
    from probes.circuits.trace import TraceSettings, trace
    from probes.claims.run import evaluate_claims
    from probes.comparison.circuits.compare import compare_circuits
    from probes.comparison.circuits.traces import compare_traces
    from probes.comparison.circuits.transfer import transfer_circuit
    from probes.comparison.compare import compare, compare_family
    from probes.comparison.family_result import FamilyComparison
    from probes.comparison.rate_distortion.measure import rate_distortion
    from probes.comparison.representations.compare import representation_similarity
    from probes.comparison.representations.tokens import TokenSimilaritySettings, token_similarity
    from probes.comparison.representations.weights import weight_similarity
    from probes.comparison.result import Comparison
    from probes.comparison.setup.references import ComparisonSettings
    from probes.comparison.variables.transfer import cross_model_interchange
    from probes.comparison.walkthrough.explain import explain
    from probes.compression.distillation.distill import distill
    from probes.compression.grow import grow
    from probes.compression.pruning.lottery_ticket import lottery_ticket
    from probes.compression.pruning.prune import prune
    from probes.compression.quantization.quantize import quantize
    from probes.errors import ProbeError
    from probes.files import list_models
    from probes.interventions.attribution_patching import attribution_patching
    from probes.interventions.hotspots.measure import hotspots
    from probes.interventions.interchange import interchange_intervention
    from probes.interventions.subspaces.das import das
    from probes.interventions.sweep import activation_patching
    from probes.models.model import Model, load, random_init, wrap
    from probes.models.site import Site
    from probes.observe.activations import capture
    from probes.observe.attention import role_attention
    from probes.observe.behavior import evaluate_behavior
    from probes.observe.format.fit import fit_format
    from probes.observe.gate import gate
    from probes.observe.logit_lens import logit_lens
    from probes.prompts.catalog import list_patterns, pattern
    from probes.prompts.interchange_pairs import sample_interchange_pairs
    from probes.prompts.pattern import Pattern
    from probes.prompts.question import Pair, Question
    from probes.prompts.tokens.batch import tokenize
    from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
    from probes.result import load_result
    from probes.viz.picture import Picture
    from probes.viz.plots.attention.heatmap import heatmap
    from probes.viz.plots.hotspot_map import hotspot_map

# Where each public name lives; a subpackage holds the rest.
_HOMES = {
    "load": "models.model",
    "wrap": "models.model",
    "random_init": "models.model",
    "Model": "models.model",
    "Pattern": "prompts.pattern",
    "pattern": "prompts.catalog",
    "list_patterns": "prompts.catalog",
    "list_models": "files",
    "Question": "prompts.question",
    "Pair": "prompts.question",
    "sample_pairs": "prompts.tokens.pair_batch",
    "tokenize_pairs": "prompts.tokens.pair_batch",
    "tokenize": "prompts.tokens.batch",
    "capture": "observe.activations",
    "role_attention": "observe.attention",
    "logit_lens": "observe.logit_lens",
    "evaluate_behavior": "observe.behavior",
    "gate": "observe.gate",
    "fit_format": "observe.format.fit",
    "activation_patching": "interventions.sweep",
    "attribution_patching": "interventions.attribution_patching",
    "Site": "models.site",
    "edge_patching": "circuits.edges.path_patching",
    "path_patching": "circuits.edges.path_patching",
    "sample_interchange_pairs": "prompts.interchange_pairs",
    "interchange_intervention": "interventions.interchange",
    "hotspots": "interventions.hotspots.measure",
    "das": "interventions.subspaces.das",
    "edge_attribution": "circuits.edges.edge_attribution",
    "Circuit": "circuits.circuit",
    "Task": "circuits.task",
    "faithfulness": "circuits.faithfulness",
    "trace": "circuits.trace",
    "TraceSettings": "circuits.trace",
    "ask": "circuits.question.ask",
    "evaluate_claims": "claims.run",
    "compare": "comparison.compare",
    "compare_family": "comparison.compare",
    "ComparisonSettings": "comparison.setup.references",
    "Comparison": "comparison.result",
    "FamilyComparison": "comparison.family_result",
    "explain": "comparison.walkthrough.explain",
    "cross_model_interchange": "comparison.variables.transfer",
    "transfer_circuit": "comparison.circuits.transfer",
    "compare_circuits": "comparison.circuits.compare",
    "compare_traces": "comparison.circuits.traces",
    "representation_similarity": "comparison.representations.compare",
    "token_similarity": "comparison.representations.tokens",
    "TokenSimilaritySettings": "comparison.representations.tokens",
    "weight_similarity": "comparison.representations.weights",
    "rate_distortion": "comparison.rate_distortion.measure",
    "quantize": "compression.quantization.quantize",
    "prune": "compression.pruning.prune",
    "grow": "compression.grow",
    "distill": "compression.distillation.distill",
    "lottery_ticket": "compression.pruning.lottery_ticket",
    "heatmap": "viz.plots.attention.heatmap",
    "hotspot_map": "viz.plots.hotspot_map",
    "Picture": "viz.picture",
    "load_result": "result",
    "ProbeError": "errors",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from probes.scale.versions import package_version

        return package_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(f"probes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
