"""Controls for verb detectors: unseen verbs, a question without the operation, distractors."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import PatternError
from probes.interventions.activation_patching import patch_sites, run_batch_with_cache
from probes.interventions.interchange import InterchangeRuns, run_interchange_pairs
from probes.interventions.result import ControlAccuracy, UnseenVerbs
from probes.interventions.subspaces.das import Subspace
from probes.interventions.subspaces.directions import operation_direction, patch_direction
from probes.models.model import Model
from probes.models.site import Site, joined_roles
from probes.observe.gate import answer_questions
from probes.prompts.interchange_pairs import BaseFilter, sample_interchange_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.pair_batch import sample_pairs, tokenizable_by, tokenize_pairs
from probes.stats.intervals import Estimate, proportion
from probes.stats.paired import mcnemar_test

MIN_PAIR_BASES = 24
"""Fewest bases of a pair of opposite verbs; 24 hits of 24 have a 95 % interval above 0.86."""


def unseen_verbs(
    model: Model, pattern: Pattern, operation_site: Site, *, bases: int = 40, seed: int = 0
) -> UnseenVerbs:
    """Patch the operation of held-out verbs by a direction fitted on the other verbs.

    The token embedding is the baseline: a direction that works there shows that the embeddings of
    the verbs already determine the operation. Each group of verbs has `bases` prompts, and each
    pair of opposite verbs as many and at least `MIN_PAIR_BASES`, if there are so many.

    Raises:
        PatternError: The pattern has fewer than two groups of verbs, or too few prompts.
    """
    groups = verb_groups(pattern)
    if len(groups) < 2:
        raise PatternError(
            f"{pattern.name!r} has one group of verbs, {groups}, so that none can be held out: add "
            "verbs that share no word"
        )
    embedding_role = operation_site.role if "op" in operation_site.role.split("+") else "op"
    embedding_site = Site(0, "resid", embedding_role)
    hits: dict[Site, list[Bool[np.ndarray, " prompt"]]] = {operation_site: [], embedding_site: []}
    by_pair: dict[str, Estimate] = {}
    for n, held_out in enumerate(groups):
        others = [verb for group in groups if group != held_out for verb in group]
        fit, test = (
            run_interchange_pairs(
                model,
                sample_interchange_pairs(
                    pattern,
                    count,
                    tokenizers=(model.tokenizer,),
                    seed=seed + 2 * n + k,
                    base_filter=BaseFilter(allowed_words={"op": verbs}),
                ),
                joined_roles=joined_roles(operation_site),
            )
            for k, (count, verbs) in enumerate(((2 * bases, others), (bases, held_out)))
        )
        directions = {site: operation_direction(fit, site) for site in hits}
        for site, direction in directions.items():
            hits[site].append(patch_direction(test, direction, "same"))
        fold = _Fold(
            test,
            directions[operation_site],
            hits[operation_site][-1],
            seed + 2 * len(groups) + n,
        )
        by_pair |= {
            " / ".join(pair): proportion(_pair_hits(pattern, fold, pair))
            for pair in _opposite_verbs(pattern)
            if pair[0] in held_out
        }
    site, embedding = (np.concatenate(hits[site]) for site in (operation_site, embedding_site))
    gain = mcnemar_test(embedding, site).difference
    verbs = tuple(map(tuple, groups))
    return UnseenVerbs(proportion(site), proportion(embedding), gain, verbs, by_pair)


def _opposite_verbs(pattern: Pattern) -> list[tuple[str, str]]:
    """Base forms of each pair of opposite verbs, the pattern's own operation first."""
    sides = (pattern.operation, pattern.flipped().operation)
    pairs = [{side: dict(forms)["base"] for side, forms in pair} for pair in pattern.lexicon.verbs]
    return [(pair[sides[0]], pair[sides[1]]) for pair in pairs]


@dataclass(frozen=True, eq=False)
class _Fold:
    """Prompts of one held-out group of verbs, and the direction fitted on the other verbs."""

    runs: InterchangeRuns
    direction: Subspace
    hits: Bool[np.ndarray, " prompt"]
    seed: int


def _pair_hits(pattern: Pattern, fold: _Fold, pair: tuple[str, str]) -> Bool[np.ndarray, " prompt"]:
    """Hits of the bases of one pair of verbs, with further bases where these are few."""
    runs, direction, wanted = fold.runs, fold.direction, max(len(fold.runs), MIN_PAIR_BASES)
    bases = [one.clean for one in runs.interchange_pairs.same]
    own, known = fold.hits[[base["op"] == pair[0] for base in bases]], {b.text for b in bases}
    if len(own) >= wanted:
        return own
    with suppress(PatternError):
        further = sample_interchange_pairs(
            pattern,
            wanted - len(own),
            tokenizers=(runs.model.tokenizer,),
            seed=fold.seed,
            base_filter=BaseFilter(
                allowed_words={"op": pair}, keep=lambda base: base.text not in known
            ),
        )
        roles = joined_roles(Site(direction.layer, "resid", direction.role))
        more = run_interchange_pairs(runs.model, further, joined_roles=roles)
        own = np.concatenate([own, patch_direction(more, direction, "same")])
    return own


def verb_groups(pattern: Pattern) -> list[list[str]]:
    """Pairs of opposite verbs, merged where they share a word."""
    groups: list[list[str]] = []
    for pair in pattern.lexicon.verbs:
        verbs = [dict(forms)["base"] for _, forms in pair]
        words = {word for verb in verbs for word in verb.split()}
        sharing = [g for g in groups if words & {word for verb in g for word in verb.split()}]
        groups = [g for g in groups if g not in sharing]
        groups.append([verb for g in sharing for verb in g] + verbs)
    return groups


def operation_free_question(
    model: Model, pattern: Pattern, site: Site, *, pairs: int = 64, seed: int = 0
) -> ControlAccuracy:
    """Accuracy of a number that does not depend on the operation, after interchange at a site.

    Prompts count that are answered right without the interchange.

    Args:
        model: Any decoder.
        pattern: Pattern whose operation changes no number, as in "How many did I take away?".
        site: Site of the operation in another pattern.
        pairs: Number of pairs that differ only in the operation.
        seed: Of the pairs.
    """
    sampled = sample_pairs(pattern, "operation", pairs, tokenizers=(model.tokenizer,), seed=seed)
    batch = tokenize_pairs(model.tokenizer, sampled, max_length=model.shape.context)
    clean, source = (run_batch_with_cache(model, b) for b in (batch.clean, batch.counterfactual))
    parts = [role for role in site.role.split("+") if role in batch.clean.roles]
    mask = torch.stack([batch.role_mask(role) for role in parts]).any(0).to(model.device)
    answer = batch.clean.readouts[0].answer.to(model.device)

    def is_correct(
        logits: Float[Tensor, "row answer vocab"], prompt: Int[Tensor, " row"]
    ) -> Float[Tensor, "row 1"]:
        return (logits[:, 0].argmax(-1) == answer[prompt]).to(logits)[:, None]

    source = source.realigned(batch.source_positions.to(model.device))
    every = torch.arange(len(answer), device=answer.device)
    before = is_correct(clean.logits, every)[:, 0].cpu().bool().numpy()
    correct = patch_sites(clean, source, [site], {site.role: mask}, is_correct)
    return _control_accuracy(correct[0, :, 0].cpu().bool().numpy(), before)


def distractor_sentence(
    model: Model, pattern: Pattern, *, prompts: int = 64, seed: int = 0
) -> ControlAccuracy | None:
    """Accuracy when a distractor sentence with the opposite verb precedes the question.

    Questions count that are answered right with a sentence without a verb of the pattern in its
    place. None where no filler of the pattern contains such a verb, or each contains one.

    Raises:
        PatternError: There are fewer such questions.
    """
    opposite, lexicon = pattern.flipped(), pattern.lexicon
    every = dict(lexicon.choices).get("filler", ())
    fillers = _naming(every, lexicon.verbs_of(pattern.operation))
    named = _naming(every, lexicon.all_verbs())
    neutral = [filler for filler in every if filler not in named]
    has_slot = any("filler" in template.slots for template in opposite.templates)
    if not fillers or not neutral or not has_slot:
        return None
    tokenizable = tokenizable_by(model.tokenizer)
    questions = opposite.sample_questions(
        prompts,
        seed=seed,
        keep=lambda question: (
            dict(question.slots).get("filler") in fillers and tokenizable(question)
        ),
    )
    plain = [
        next(
            other
            for other in opposite.counterfactuals(question, "filler", seed=seed + n)
            if other["filler"] in neutral
        )
        for n, question in enumerate(questions)
    ]
    hits, before = (
        answer_questions(model, each).correct[:, 0].numpy() for each in (questions, plain)
    )
    return _control_accuracy(hits, before)


def _naming(fillers: Sequence[str], verbs: Sequence[str]) -> list[str]:
    """Sentences that contain one of these verbs as a word: "closed" does not contain "lose"."""
    words = re.compile(rf"\b({'|'.join(map(re.escape, verbs))})\b")
    return [filler for filler in fillers if words.search(filler)]


def _control_accuracy(
    hits: Bool[np.ndarray, " prompt"], before: Bool[np.ndarray, " prompt"]
) -> ControlAccuracy:
    """Accuracy in the prompts that are right without the control."""
    return ControlAccuracy(proportion(hits[before]), int(before.sum()), len(before))
