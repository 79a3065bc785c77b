"""Measurements of a model by name, each a tensor or an array, for tests that compare two models."""

from probes.circuits.edges.edge_attribution import EAP, EAPIG, edge_attribution
from probes.circuits.edges.head_effects import head_effects
from probes.circuits.edges.path_patching import path_patching
from probes.circuits.task import Task
from probes.comparison.representations.tokens import TokenSimilaritySettings, token_similarity
from probes.interventions.attribution_patching import attribution_patching
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.joint_patching import joint_effects
from probes.interventions.role_paths.patching import contrast_effects
from probes.interventions.screening.patching import screened_patching
from probes.interventions.subspaces.das import DASSettings, das
from probes.interventions.subspaces.das_search import interchange_objective
from probes.interventions.sweep import activation_patching
from probes.models.model import random_init
from probes.models.site import Site
from probes.observe.activations import capture
from probes.observe.behavior import evaluate_behavior
from probes.observe.divergence import answer_as_reference, answer_as_relative
from probes.observe.logit_lens import logit_lens
from probes.observe.role_states import capture_role_states
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import sample_pairs, sample_readable_questions, tokenize_pairs

PATTERN = pattern("take-away")
FOX = "If I have two foxes and I take away one, how many foxes do I have?"


def questions(model, count=6):
    sampled = sample_readable_questions(PATTERN, count, tokenizers=(model.tokenizer,), seed=1)
    return tokenize(model, sampled)


def pairs(model, contrast="operation"):
    sampled = sample_pairs(PATTERN, contrast, 6, tokenizers=[model.tokenizer], seed=3)
    return tokenize_pairs(model.tokenizer, sampled)


def task(model):
    return Task.from_pairs(pairs(model), skip_unequal=True)


def interchange_runs(model):
    sampled = sample_interchange_pairs(PATTERN, 16, tokenizers=(model.tokenizer,), seed=0)
    return run_interchange_pairs(model, sampled)


def exchanged(model):
    runs = interchange_runs(model)
    return interchange_intervention(runs, [Site(2, "resid", "op"), Site(1, 0, "x")]).logits[0]


def fitted_direction(model):
    site = Site(2, "resid", "op")
    objective = interchange_objective(interchange_runs(model), site, "operation")
    return das(objective, site, dims=1, settings=DASSettings(steps=3)).basis


def similarity(model):
    texts = [question.text for question in questions(model, 8).questions]
    settings = TokenSimilaritySettings(blocks=2, permutations=1)
    return token_similarity(model, model, texts, settings=settings).matrix


def logits(model):
    batch = questions(model)
    return model.logits(batch.ids.to(model.device), batch.mask.to(model.device))


def divergence(model):
    reference = answer_as_reference(model, PATTERN, count=5, seed=1)
    return answer_as_relative(reference, random_init(model, seed=1)).text_kl


MEASUREMENTS = {
    "logits": logits,
    "residual stream": lambda model: capture(model, questions(model), ("resid",))["resid"],
    "attention": lambda model: capture(model, questions(model), ("attention",))["attention"],
    "states at roles": lambda model: capture_role_states(model, questions(model).questions).states,
    "logit lens": lambda model: logit_lens(model, questions(model)).per_prompt,
    "answers": lambda model: evaluate_behavior(model, questions(model)).logit_diff,
    "divergence": divergence,
    "activation patching": lambda model: activation_patching(model, pairs(model)).per_prompt,
    "attribution patching": lambda model: attribution_patching(model, pairs(model)).per_prompt,
    "screened patching": lambda model: screened_patching(model, pairs(model)).per_prompt,
    "joint patching": lambda model: joint_effects(
        model, {"operation": pairs(model)}, [("L0.H0", "L1.H2")], ("op", "x")
    )["operation"],
    "role paths": lambda model: contrast_effects(model, pairs(model, "x")),
    "EAP": lambda model: edge_attribution(model, task(model), method=EAP()).per_prompt,
    "EAP-IG by roles": lambda model: (
        edge_attribution(model, task(model), method=EAPIG(2), roles=True).per_prompt
    ),
    "effects of heads": lambda model: head_effects(model, task(model))[0],
    "path patching": lambda model: path_patching(
        model, task(model), ("L0.H1", "L1.H2.v", "logits")
    ),
    "interchange": exchanged,
    "DAS": fitted_direction,
    "token similarity": similarity,
    "a sampled continuation": lambda model: model.tokenizer.encode(
        model.generate(FOX, max_new_tokens=5, temperature=1.0, seed=3)
    ),
}
