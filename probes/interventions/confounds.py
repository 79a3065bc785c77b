"""Counter-evidence: what would make a hotspot a matter of words and not of the operation."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import PatternError
from probes.interventions.activation_patching import CachedRun, patch_sites, run_with_cache
from probes.interventions.directions import operation_direction, patch_direction
from probes.interventions.interchange import run_interchange_pairs
from probes.interventions.result import UnseenVerbs
from probes.models.model import Model
from probes.models.site import Site, joined_roles
from probes.observe.gate import answer_questions
from probes.prompts.batch import Batch
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.pair_batch import sample_pairs, tokenizable_by, tokenize_pairs
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, proportion
from probes.stats.paired import mcnemar_test


def unseen_verbs(
    model: Model, pattern: Pattern, operation_site: Site, *, bases: int = 40, seed: int = 0
) -> UnseenVerbs:
    """Fit the operation's direction without some verbs, and flip the operation of just these.

    Patching a whole embedding succeeds by construction; a direction that serves unseen verbs there
    shows that the embeddings hold the operation already. Verbs that share a word go together.

    Raises:
        PatternError: There are fewer than two groups of verbs, or too few prompts.
    """
    verbs = verb_groups(pattern)
    if len(verbs) < 2:
        raise PatternError(
            f"{pattern.name!r} has one group of verbs, {verbs}: none can be left out. Give it "
            "verbs that share no word"
        )
    early = Site(
        0, "resid", operation_site.role if "op" in operation_site.role.split("+") else "op"
    )
    hits: dict[Site, list[Bool[np.ndarray, " prompt"]]] = {operation_site: [], early: []}
    for n, left_out in enumerate(verbs):
        others = [verb for group in verbs if group != left_out for verb in group]
        fit, judged = (
            run_interchange_pairs(
                model,
                sample_interchange_pairs(
                    pattern,
                    count,
                    tokenizers=(model.tokenizer,),
                    seed=seed + 2 * n + k,
                    allowed_words={"op": words},
                ),
                joined_roles=joined_roles(operation_site),
            )
            for k, (count, words) in enumerate(((2 * bases, others), (bases, left_out)))
        )
        for place, found in hits.items():
            found.append(patch_direction(judged, operation_direction(fit, place), "same"))
    site, embedding = (np.concatenate(hits[place]) for place in (operation_site, early))
    gain = mcnemar_test(embedding, site).difference
    return UnseenVerbs(proportion(site), proportion(embedding), gain, tuple(map(tuple, verbs)))


def verb_groups(pattern: Pattern) -> list[list[str]]:
    """Group the pairs of opposite verbs: those that share a word belong together."""
    groups: list[list[str]] = []
    for pair in pattern.lexicon.verbs:
        own = [dict(forms)["base"] for _, forms in pair]
        words = {word for verb in own for word in verb.split()}
        near = [g for g in groups if words & {word for verb in g for word in verb.split()}]
        groups = [g for g in groups if g not in near]
        groups.append([verb for g in near for verb in g] + own)
    return groups


def operation_free_question(
    model: Model, pattern: Pattern, site: Site, *, pairs: int = 64, seed: int = 0
) -> Estimate:
    """Say how often a number that does not hang on the operation stays when a site is put in.

    Args:
        model: Any decoder.
        pattern: One whose operation changes no number, as in "How many did I take away?".
        cell: The operation's site in another pattern.
        pairs: How many pairs that differ in the operation alone.
        seed: Of the draw.
    """
    drawn = sample_pairs(pattern, "operation", pairs, tokenizers=(model.tokenizer,), seed=seed)
    found = tokenize_pairs(model.tokenizer, drawn, max_length=model.shape.context)
    clean, source = (_run_batch(model, side) for side in (found.clean, found.counterfactual))
    parts = [role for role in site.role.split("+") if role in found.clean.roles]
    where = {
        site.role: torch.stack([found.role_mask(role) for role in parts]).any(0).to(model.device)
    }
    answer = found.clean.readouts[0].answer.to(model.device)

    def right(
        logits: Float[Tensor, "row answer vocab"], prompt: Int[Tensor, " row"]
    ) -> Float[Tensor, "row 1"]:
        return (logits[:, 0].argmax(-1) == answer[prompt]).to(logits)[:, None]

    theirs = source.realigned(found.source_positions.to(model.device))
    return proportion(
        patch_sites(clean, theirs, [site], where, right)[0, :, 0].cpu().bool().numpy()
    )


def _run_batch(model: Model, batch: Batch) -> CachedRun:
    ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
    return run_with_cache(model, ids, mask, batch.positions.to(model.device))


def distractor_sentence(
    model: Model, pattern: Pattern, *, prompts: int = 64, seed: int = 0
) -> Estimate | None:
    """Say how often a question is right behind a sentence that has the opposite verb in vain.

    None where no filler of the pattern has such a verb.

    Raises:
        PatternError: There are fewer such questions.
    """
    turned = pattern.flipped()
    verbs = pattern.lexicon.verbs_of(pattern.operation)
    fillers = [
        f for f in dict(pattern.lexicon.choices).get("filler", ()) if any(v in f for v in verbs)
    ]
    if not fillers or not any("filler" in frame.slots for frame in turned.templates):
        return None
    tells = tokenizable_by(model.tokenizer)
    asked = turned.sample_questions(
        prompts, seed=seed, keep=lambda q: dict(q.slots).get("filler") in fillers and tells(q)
    )
    right: Bool[np.ndarray, " prompt"] = answer_questions(model, asked).correct[:, 0].numpy()
    return proportion(right)
