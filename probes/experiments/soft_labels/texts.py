"""The texts of "My name is ⟨?⟩", what the teacher says at each of their tokens, and how far off.

Every text opens with "My name is …". Its first token is not trained on: the teacher was raised
on texts of which few open so, and would be wrong about that token alone. From there on the texts
are what the teacher was raised on, and after "My name is" the truth is known exactly: the corpus
draws each name of the lexicon as often as any other.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from probes.compression.distillation.plan import TrainingText
from probes.experiments.family.corpus import CorpusSettings, CorpusText, sample_texts
from probes.experiments.family.tokenizer import BOS, EOS, PAD
from probes.prompts.catalog import list_patterns
from probes.prompts.template import Lexicon

OPENING = "My name is"
MAX_CERTAIN_ENTROPY, MIN_AMBIGUOUS_ENTROPY = 0.1, 1.0
"""Bits of the teacher's entropy below which a token is certain, and from which it is ambiguous."""

TOKEN_CLASSES = (
    "my name", "name", "noun", "number", "verb", "again", "answer number", "answer noun", "rest",
)  # fmt: skip
"""What a token is: the name after the opening; a name, noun, number or verb in the prompt where it
first stands; a name or noun that stood before; the two words of the answer; all else, with the
later pieces of words that are several tokens."""

_SKIPPED_TOKENS = 2
_STATEMENT_FRACTION = 0.3
_CHUNK = 64
_NATS_PER_BIT = float(np.log(2.0))


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """Texts with what a teacher says at each token that is trained on.

    Attributes:
        ids: The texts, padded on the right.
        mask: Where there is text.
        scored: Tokens that are trained on, as places in `ids` without the first column.
        truth: The token of the text at each scored place.
        classes: The class of that token, as its place in `CLASSES`.
        said: The teacher's log probabilities there, in nats.
        entropy: The teacher's entropy there, in bits.
    """

    ids: Int[Tensor, "prompt position"]
    mask: Int[Tensor, "prompt position"]
    scored: Bool[Tensor, "prompt next"]
    token_ids: Int[Tensor, " token"]
    classes: Int[Tensor, " token"]
    log_probs: Float[Tensor, "token vocab"]
    entropy: Float[Tensor, " token"]

    def in_class(self, name: str) -> Bool[Tensor, " token"]:
        """Say which tokens are of a class."""
        return self.classes == TOKEN_CLASSES.index(name)


@dataclass(frozen=True, slots=True)
class StudentScores:
    """How a student does on a lesson.

    Attributes:
        name_kl: KL(truth || student) after "My name is", in bits.
        ambiguous_kl: KL(teacher || student) in bits, the mean over ambiguous tokens.
        all_kl: The same over all trained tokens.
        certain: Share of certain tokens whose greatest probability is the text's token.
        noun: The same for the first piece of the answer's noun.
        number: The same for the answer's number.
    """

    name_kl: float
    ambiguous_kl: float
    all_kl: float
    certain: float
    noun: float
    number: float


@dataclass(frozen=True, slots=True)
class LabelInformation:
    """What the labels of one class of tokens hold.

    Attributes:
        name: The class, or "all".
        tokens: Such tokens in a text, on average.
        entropy: Bits of the teacher's entropy at them, summed over a text, mean over texts.
        surprise: Bits of the text's own tokens under the teacher, -log2 p, summed alike. Where
            the teacher is right about its doubts, it is the entropy: what a hard label tells is
            which token was drawn, and that is the very part that a student can never foretell.
    """

    name: str
    tokens: float
    entropy: float
    surprise: float


def sample_name_texts(count: int, *, seed: int) -> list[CorpusText]:
    """Write texts that open with "My name is", three statements to seven questions."""
    told, settings = round(_STATEMENT_FRACTION * count), CorpusSettings(ambiguous=1.0)
    found = [*sample_texts("statements", told, seed=seed, settings=settings)]
    found += sample_texts("questions", count - told, seed=seed, settings=settings)
    order = np.random.default_rng(seed).permutation(count)
    return [found[at] for at in order]


def tokenize_name_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[CorpusText]
) -> list[TrainingText]:
    """Encode texts between <bos> and <eos>; their first token is not trained on."""
    ids = tokenizer([item.text for item in texts], add_special_tokens=False).input_ids
    return [TrainingText((BOS, *one, EOS), _SKIPPED_TOKENS) for one in ids]


def true_name_distribution(
    tokenizer: PreTrainedTokenizerBase, lexicon: Lexicon | None = None
) -> Float[Tensor, " vocab"]:
    """Return the corpus' own distribution over the token after "My name is"."""
    names = (lexicon or list_patterns()["take-away"].lexicon).words("name")
    opening = tokenizer(OPENING, add_special_tokens=False).input_ids
    truth = torch.zeros(len(tokenizer))
    for name in names:
        ids = tokenizer(f"{OPENING} {name}.", add_special_tokens=False).input_ids
        assert ids[: len(opening)] == opening, "the opening is tokenized apart from the name"
        truth[ids[len(opening)]] += 1 / len(names)
    return truth


def token_classes(tokenizer: PreTrainedTokenizerBase, item: CorpusText) -> list[str]:
    """Return the class of each token of a text and of the <eos> after it."""
    lexicon = list_patterns()["take-away"].lexicon
    kinds = _word_classes(lexicon)
    starts = {m.start(): m.group() for m in re.finditer(r"[^\s.,?]+", item.text)}
    after = [at for at in starts if at >= len(item.prompt)]
    answers = dict(zip(after[:2], ("answer number", "answer noun"), strict=True))
    found, seen = [], set()
    spans = tokenizer(item.text, add_special_tokens=False, return_offsets_mapping=True)
    for start, end in spans.offset_mapping:
        at = start + len(item.text[start:end]) - len(item.text[start:end].lstrip())
        word = starts.get(at, "")
        kind = answers.get(at) or kinds.get(word, "rest")
        if at >= len(item.prompt) and at not in answers:
            kind = "rest"
        if kind in ("name", "noun"):
            kind = "again" if word in seen else kind
            seen.add(word)
        if at == len(OPENING) + 1 and item.text.startswith(OPENING):
            kind = "my name"
        found.append(kind)
    return [*found, "rest"]


def _word_classes(lexicon: Lexicon) -> dict[str, str]:
    low, high = lexicon.number_range
    found = dict.fromkeys((str(n) for n in range(low, high + 1)), "number")
    found |= dict.fromkeys(lexicon.number_words, "number")
    for kind in ("name", "noun"):
        found |= dict.fromkeys(lexicon.words(kind), kind)
    for pair in lexicon.verbs:
        for _, forms in pair:
            found |= {text.split(" ")[0]: "verb" for _, text in forms}
    return found


@torch.no_grad()
def teacher_targets(
    teacher: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[CorpusText]
) -> TeacherTargets:
    """Read texts with a teacher."""
    rows = tokenize_name_texts(tokenizer, texts)
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    scored = torch.zeros((len(rows), width), dtype=torch.bool)
    mask, classes = torch.zeros_like(ids), torch.zeros_like(ids)
    for at, (row, item) in enumerate(zip(rows, texts, strict=True)):
        size = len(row.ids)
        ids[at, :size], mask[at, :size] = torch.tensor(row.ids), 1
        scored[at, row.ignored_prefix : size] = True
        found = [TOKEN_CLASSES.index(kind) for kind in token_classes(tokenizer, item)]
        classes[at, 1:size] = torch.tensor(found)
    scored = scored[:, 1:]
    said = _log_probs(teacher, ids, mask, scored)
    entropy = -(said.exp() * said).sum(-1) / _NATS_PER_BIT
    truth = ids[:, 1:][scored]
    return TeacherTargets(ids, mask, scored, truth, classes[:, 1:][scored], said, entropy)


def _log_probs(
    model: nn.Module,
    ids: Int[Tensor, "prompt position"],
    mask: Int[Tensor, "prompt position"],
    scored: Bool[Tensor, "prompt next"],
) -> Float[Tensor, "token vocab"]:
    parts = []
    for at in range(0, len(ids), _CHUNK):
        here = slice(at, at + _CHUNK)
        logits = model(input_ids=ids[here], attention_mask=mask[here]).logits[:, :-1]
        parts.append(functional.log_softmax(logits[scored[here]].float(), dim=-1))
    return torch.cat(parts)


@torch.no_grad()
def evaluate_student(
    student: nn.Module, targets: TeacherTargets, truth: Float[Tensor, " vocab"]
) -> StudentScores:
    """Ask a student about every token of a lesson; `truth` is what may follow "My name is"."""
    student.eval()
    said = _log_probs(student, targets.ids, targets.mask, targets.scored)
    off = (targets.log_probs.exp() * (targets.log_probs - said)).sum(-1) / _NATS_PER_BIT
    right = (said.argmax(-1) == targets.token_ids).float()
    # The opening is the same in all texts, and so is what is said after it.
    named = said[targets.in_class("my name")][0]
    return StudentScores(
        name_kl=kl_bits(truth, named),
        ambiguous_kl=float(off[targets.entropy >= MIN_AMBIGUOUS_ENTROPY].mean()),
        all_kl=float(off.mean()),
        certain=float(right[targets.entropy < MAX_CERTAIN_ENTROPY].mean()),
        noun=float(right[targets.in_class("answer noun")].mean()),
        number=float(right[targets.in_class("answer number")].mean()),
    )


def kl_bits(truth: Float[Tensor, " vocab"], log_probs: Float[Tensor, " vocab"]) -> float:
    """Return KL(truth || said) in bits; `said` are log probabilities in nats."""
    known = truth > 0
    return float((truth[known] * (truth[known].log() - log_probs[known])).sum()) / _NATS_PER_BIT


def label_information(targets: TeacherTargets) -> tuple[LabelInformation, ...]:
    """Count the teacher's bits in each class of tokens, and in all."""
    texts = len(targets.ids)
    surprise = -targets.log_probs.gather(1, targets.token_ids[:, None])[:, 0] / _NATS_PER_BIT
    found = []
    for name in (*TOKEN_CLASSES, "all"):
        here = (
            targets.in_class(name) if name != "all" else torch.ones_like(targets.token_ids).bool()
        )
        counted = (here.float(), targets.entropy[here], surprise[here])
        found.append(LabelInformation(name, *(float(one.sum()) / texts for one in counted)))
    return tuple(found)
