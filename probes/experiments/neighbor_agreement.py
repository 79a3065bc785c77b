"""Agreement of the texts nearest to a site's states with the questions of these states."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange

from probes.errors import BatchError, MatchError, SiteError
from probes.experiments.family.corpus import CorpusSettings, sample_texts
from probes.experiments.nearest_texts import capture_token_states, max_per_text
from probes.interventions.interchange import InterchangeRuns
from probes.interventions.subspaces.projection import operation_name
from probes.models.site import Site
from probes.prompts.catalog import list_patterns
from probes.prompts.interchange_pairs import OBJECT
from probes.prompts.question import Question
from probes.stats.intervals import Estimate, bootstrap_mean

VARIABLES = ("operation", "verb", "object", "x", "y")
"""Variables that are compared between a question and a text."""


@dataclass(frozen=True, slots=True)
class ParsedText:
    """Text with its variables, such as "minus", "take away", "foxes", 5 and 2."""

    text: str
    operation: str
    verb: str
    object: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class NeighborAgreement:
    """How often the texts nearest to a question agree with it in one variable.

    Attributes:
        variable: One of `VARIABLES`.
        neighbor_rate: Fraction of the nearest texts that agree, mean over questions.
        base_rate: Fraction of all candidate texts that agree.
        difference: `neighbor_rate` minus `base_rate`, paired by question.
    """

    variable: str
    neighbor_rate: Estimate
    base_rate: Estimate
    difference: Estimate


def sample_corpus_texts(count: int, *, seed: int) -> tuple[ParsedText, ...]:
    """Training texts of the shipped models with answers, half statements and half questions.

    They have no context sentences.
    """
    plain = CorpusSettings(recheck=0.0, ambiguous=0.0, context=0.0)
    texts: dict[str, ParsedText] = {}
    for kind, total in (("statements", count // 2), ("questions", count)):
        for item in sample_texts(kind, 4 * count, seed=seed, settings=plain):
            if len(texts) == total:
                break
            texts[item.text] = _parse_corpus_text(
                item.prompt, item.text, declarative=kind == "statements"
            )
    return tuple(texts.values())


@dataclass(frozen=True, slots=True)
class NeighborSettings:
    """Settings of the agreement.

    Attributes:
        count: Number of nearest texts.
        other_verbs: Whether to leave out texts whose verb shares a word with the question's: the
            same word is similar to itself. Compare the result with layer 0.
        seed: Seed of the intervals.
    """

    count: int = 10
    other_verbs: bool = False
    seed: int = 0


def neighbor_agreement(
    runs: InterchangeRuns,
    site: Site,
    texts: Sequence[ParsedText],
    settings: NeighborSettings | None = None,
) -> tuple[NeighborAgreement, ...]:
    """How often the texts nearest to a site's states agree with their questions.

    The states are those of bases and sources (about other objects); intervals are over their
    pairs. A text that begins with a question is no neighbor of it.

    Raises:
        SiteError: The site is not in the residual stream, or a prompt lacks its role.
        BatchError: A question has `count` candidates or fewer.
    """
    settings = settings or NeighborSettings()
    if site.component != "resid":
        raise SiteError(f"The site is {site!s}: give one of the residual stream ('resid')")
    texts, count = tuple({text.text: text for text in texts}.values()), settings.count
    pairs = runs.interchange_pairs.other
    questions = [
        *(_parsed_text(pair.clean) for pair in pairs),
        *(_parsed_text(pair.counterfactual) for pair in pairs),
    ]
    is_candidate = np.array(
        [[_is_candidate(text, q, settings.other_verbs) for text in texts] for q in questions]
    )
    least = is_candidate.sum(1).min() if texts else 0
    if least <= count:
        raise BatchError(
            f"A question has {least} of {len(texts)} texts as candidates for the nearest {count}: "
            "give more texts, or a smaller count"
        )
    known = capture_token_states(runs.model, [text.text for text in texts], site.layer)
    states = torch.cat([runs.states(site), runs.states(site, "other")])
    best = max_per_text(known, known.cosines(states)).cpu().numpy()
    order = np.where(is_candidate, best, -np.inf).argsort(1, kind="stable")[:, ::-1][:, :count]
    results = []
    for variable in VARIABLES:
        own, others = (
            np.array([str(getattr(one, variable)) for one in some]) for some in (questions, texts)
        )
        agrees = own[:, None] == others
        neighbor_rate = np.take_along_axis(agrees, order, 1).mean(1)
        base_rate = (agrees & is_candidate).sum(1) / is_candidate.sum(1)
        rates = [
            rearrange(rate, "(side pair) -> side pair", side=2).mean(0)
            for rate in (neighbor_rate, base_rate)
        ]
        values = (*rates, rates[0] - rates[1])
        estimates = (bootstrap_mean(value, seed=settings.seed) for value in values)
        results.append(NeighborAgreement(variable, *estimates))
    return tuple(results)


def _is_candidate(text: ParsedText, question: ParsedText, other_verbs: bool) -> bool:
    if text.text.startswith(question.text):
        return False
    return not (other_verbs and set(text.verb.split()) & set(question.verb.split()))


def _parse_corpus_text(prompt: str, text: str, *, declarative: bool) -> ParsedText:
    """Variables of a text of the corpus, from the pattern that it matches."""
    for name, pattern in list_patterns().items():
        if name.endswith("-told") == declarative:
            try:
                question = pattern.match(prompt)
            except MatchError:
                continue
            return _parsed_text(question, text)
    raise MatchError(f"{prompt!r} matches no shipped pattern: use `sample_corpus_texts`")


def _parsed_text(question: Question, text: str = "") -> ParsedText:
    return ParsedText(
        text=text or question.text,
        operation=operation_name(question),
        verb=str(question["op"]),
        object=str(question[OBJECT]),
        x=int(question["x"]),
        y=int(question["y"]),
    )
