"""What lies near a state: tokens of many lines, at the same layer, and what those lines say.

lines → states of all their tokens at one layer → the nearest to a site's states → shares
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import BatchError, MatchError, ModelError, SiteError
from probes.experiments.family.corpus import CorpusSettings, sample_texts
from probes.interventions.activation_patching import TOKENS_PER_BATCH
from probes.interventions.interchange import InterchangeRuns
from probes.interventions.projection import operation_name
from probes.models.model import Model
from probes.models.site import RESID, RESID_OUT, Site
from probes.prompts.batch import pad_token_id
from probes.prompts.catalog import list_patterns
from probes.prompts.interchange_pairs import OBJECT
from probes.prompts.question import Question
from probes.prompts.special_tokens import special_prefix
from probes.stats.intervals import Estimate, bootstrap_mean

VARIABLES = ("operation", "verb", "object", "x", "y")
"""What is compared between a question and a line."""


@dataclass(frozen=True, slots=True)
class ParsedText:
    """A text, and what it says: "minus", "take away", "foxes", 5 and 2."""

    text: str
    operation: str
    verb: str
    object: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class NearestToken:
    """The token of a line that lies nearest to a state.

    Attributes:
        text: The line.
        token: The token, as it stands in the line.
        similarity: The cosine of both states less the mean state of all lines' tokens, -1 to 1.
    """

    text: str
    token: str
    similarity: float


@dataclass(frozen=True, eq=False)
class TokenStates:
    """The states of all tokens of many lines at one layer.

    Attributes:
        texts: The lines, all different.
        line: The number of each token's line.
        tokens: The tokens, line by line; <bos> is none of them.
        mean: The mean state.
        unit: The states less the mean, at length 1.
    """

    texts: tuple[str, ...]
    text_index: Int[Tensor, " row"]
    tokens: tuple[str, ...]
    mean: Float[Tensor, " d_model"]
    normalized: Float[Tensor, "row d_model"]

    def cosines(self, states: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt row"]:
        """Return the cosine of each state and each token."""
        return _normalize(states.to(self.mean) - self.mean) @ self.normalized.T


@dataclass(frozen=True, slots=True)
class NeighborAgreement:
    """How often the lines nearest to a question agree with it in one thing.

    Attributes:
        variable: "operation", "verb", "object", "x" or "y".
        near: The share of the nearest lines that agree, 0 to 1, mean over questions.
        base: The share of all lines that might have been nearest.
        gain: `near` less `base`, paired by question.
    """

    variable: str
    neighbor_rate: Estimate
    base_rate: Estimate
    difference: Estimate


def sample_corpus_texts(count: int, *, seed: int) -> tuple[ParsedText, ...]:
    """Draw lines of the embedded family's corpus, half statements and half questions.

    They hold their answers; what stands around them in the corpus is left out. Nothing that the
    family was not trained on is among them.
    """
    plain = CorpusSettings(recheck=0.0, ambiguous=0.0, context=0.0)
    found: dict[str, ParsedText] = {}
    for kind, upto in (("statements", count // 2), ("questions", count)):
        for item in sample_texts(kind, 4 * count, seed=seed, settings=plain):
            if len(found) == upto:
                break
            found[item.text] = _parse_corpus_text(
                item.prompt, item.text, declarative=kind == "statements"
            )
    return tuple(found.values())


@torch.no_grad()
def capture_token_states(model: Model, texts: Sequence[str], layer: int) -> TokenStates:
    """Run a model on lines, and keep what a block reads at every token; no text counts twice.

    Args:
        model: Any decoder with a fast tokenizer.
        texts: The lines.
        layer: The block, from 0; the number of blocks for what the last one writes.

    Raises:
        SiteError: The model has no such layer.
        BatchError: There is no text.
        ModelError: The model has no tokenizer, or a line is too long for it.
    """
    texts = tuple(dict.fromkeys(texts))
    if not 0 <= layer <= model.shape.layers:
        raise SiteError(f"{model.name} has layers 0 to {model.shape.layers}: {layer} was asked for")
    if not any(text.strip() for text in texts):
        raise BatchError(f"{len(texts)} lines hold no text: write something for the model to read")
    ids, tokens = _tokenize(model, texts)
    order = sorted(range(len(texts)), key=lambda n: len(ids[n]))
    kept: dict[int, Tensor] = {}
    while order:
        # Lines of about one length go together, so that little is padding.
        some, order = order[: _batch_size(ids, order)], order[_batch_size(ids, order) :]
        for n, states in zip(
            some, _layer_states(model, [ids[n] for n in some], layer), strict=True
        ):
            kept[n] = states[len(states) - len(tokens[n]) :]
    states = torch.cat([kept[n] for n in range(len(texts))]).float()
    sizes = torch.tensor([len(some) for some in tokens], device=states.device)
    every = torch.arange(len(texts), device=states.device).repeat_interleave(sizes)
    middle = states.mean(0)
    flat = tuple(token for some in tokens for token in some)
    return TokenStates(texts, every, flat, middle, _normalize(states - middle))


def nearest_texts(
    model: Model,
    texts: Sequence[str] | TokenStates,
    layer: int,
    state: Float[Tensor, " d_model"],
    *,
    count: int = 5,
) -> tuple[NearestToken, ...]:
    """Return the lines that have a token nearest to a state of the same layer, the nearest first.

    A line counts once, by its nearest token. Give `line_states` in place of texts where there are
    many states to look at; errors as there.
    """
    read = texts if isinstance(texts, TokenStates) else capture_token_states(model, texts, layer)
    cosines = read.cosines(rearrange(state, "d_model -> 1 d_model"))
    best = _max_per_text(read, cosines)[0]
    found = []
    for line in best.argsort(descending=True, stable=True)[:count].tolist():
        token = int(torch.where(read.text_index == line, cosines[0], -torch.inf).argmax())
        found.append(NearestToken(read.texts[line], read.tokens[token], float(best[line])))
    return tuple(found)


def neighbor_agreement(  # noqa: PLR0913 (what is near to what, and of how many)
    runs: InterchangeRuns,
    site: Site,
    texts: Sequence[ParsedText],
    *,
    count: int = 10,
    other_verbs: bool = False,
    seed: int = 0,
) -> tuple[NeighborAgreement, ...]:
    """Say how often the lines nearest to a site's states agree with their questions.

    Bases and sources (about other objects) are looked up; intervals are over pairs of them. A
    line that opens with a question's whole text is none of its neighbors. As the same word is
    near itself for that alone, `other_verbs` leaves out the lines whose verb shares a word with
    the question's: then what remains of the gain is not the word's. Compare it with layer 0.

    Raises:
        SiteError: The cell is no residual, or a prompt lacks its role.
        BatchError: A question is left with `count` lines or fewer.
    """
    if site.component != "resid":
        raise SiteError(f"Lines are near a residual: {site!s} found. Give a 'resid' cell.")
    texts = tuple({line.text: line for line in texts}.values())
    pairs = runs.interchange_pairs.other
    asked = [_parsed_text(p.clean) for p in pairs] + [_parsed_text(p.counterfactual) for p in pairs]
    open_ = np.array([[_is_candidate(line, one, other_verbs) for line in texts] for one in asked])
    if len(texts) == 0 or open_.sum(1).min() <= count:
        raise BatchError(
            f"A question is left with {open_.sum(1).min() if len(texts) else 0} of {len(texts)} "
            f"lines, and the nearest {count} are asked for: give more lines, or ask for fewer"
        )
    read = capture_token_states(runs.model, [line.text for line in texts], site.layer)
    states = torch.cat([runs.states(site), runs.states(site, "other")])
    best = _max_per_text(read, read.cosines(states)).cpu().numpy()
    order = np.where(open_, best, -np.inf).argsort(1, kind="stable")[:, ::-1][:, :count]
    found = []
    for variable in VARIABLES:
        own, theirs = (
            np.array([str(getattr(one, variable)) for one in some]) for some in (asked, texts)
        )
        alike = own[:, None] == theirs
        near = np.take_along_axis(alike, order, 1).mean(1)
        base = (alike & open_).sum(1) / open_.sum(1)
        both = [rearrange(v, "(side pair) -> side pair", side=2).mean(0) for v in (near, base)]
        each = (bootstrap_mean(v, seed=seed) for v in (*both, both[0] - both[1]))
        found.append(NeighborAgreement(variable, *each))
    return tuple(found)


def _is_candidate(text: ParsedText, question: ParsedText, other_verbs: bool) -> bool:
    if text.text.startswith(question.text):
        return False
    return not (other_verbs and set(text.verb.split()) & set(question.verb.split()))


def _max_per_text(
    states: TokenStates, cosines: Float[Tensor, "prompt row"]
) -> Float[Tensor, "prompt line"]:
    """Return the greatest cosine of each line."""
    none = cosines.new_full((len(cosines), len(states.texts)), -torch.inf)
    place = repeat(states.text_index, "row -> prompt row", prompt=len(cosines))
    return none.scatter_reduce(1, place, cosines, "amax")


def _normalize(states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    return torch.nn.functional.normalize(states, dim=-1)


def _parse_corpus_text(prompt: str, text: str, *, declarative: bool) -> ParsedText:
    """Read what a text of the corpus says, by the one pattern that it fits."""
    for name, pattern in list_patterns().items():
        if name.endswith("-told") == declarative:
            try:
                question = pattern.match(prompt)
            except MatchError:
                continue
            return _parsed_text(question, text)
    raise MatchError(f"{prompt!r} fits no shipped pattern: draw lines by corpus_lines")


def _parsed_text(question: Question, text: str = "") -> ParsedText:
    return ParsedText(
        text=text or question.text,
        operation=operation_name(question),
        verb=str(question["op"]),
        object=str(question[OBJECT]),
        x=int(question["x"]),
        y=int(question["y"]),
    )


def _tokenize(model: Model, texts: Sequence[str]) -> tuple[list[list[int]], list[list[str]]]:
    """Return the ids of each text, behind the tokenizer's own special tokens, and its tokens without."""
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{model.name} has no fast tokenizer: load it with one to read lines")
    whole = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    start = list(special_prefix(tokenizer))
    cut = [
        [text[a:b] for a, b in offsets]
        for text, offsets in zip(texts, whole["offset_mapping"], strict=True)
    ]
    return [start + ids for ids in whole["input_ids"]], cut


def _batch_size(ids: list[list[int]], order: list[int]) -> int:
    """How many of the shortest lines fit one batch; lengths rise."""
    fit = 1
    while fit < len(order) and (fit + 1) * len(ids[order[fit]]) <= TOKENS_PER_BATCH:
        fit += 1
    return fit


def _layer_states(
    model: Model, rows: list[list[int]], layer: int
) -> list[Float[Tensor, "row d_model"]]:
    width = max(map(len, rows))
    pad = pad_token_id(model.tokenizer)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    short = torch.tensor([width - len(row) for row in rows], device=model.device)
    mask = torch.arange(width, device=model.device) >= short[:, None]
    kept: list[Tensor] = []
    last = layer == model.shape.layers
    name = f"blocks.{layer - 1}.{RESID_OUT}" if last else f"blocks.{layer}.{RESID}"
    with model.editing({name: kept.append}):
        model.logits(ids, mask)
    return [states[seen] for states, seen in zip(kept[0], mask, strict=True)]
