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

from probes.compression.distillation.trainer import Row
from probes.experiments.family.corpus import Dials, Item, items
from probes.experiments.family.tokenizer import BOS, EOS, PAD
from probes.prompts.catalog import all_patterns
from probes.prompts.template import Lexicon

OPENING = "My name is"
CERTAIN, AMBIGUOUS = 0.1, 1.0
"""Bits of the teacher's entropy below which a token is certain, and from which it is ambiguous."""

CLASSES = (
    "my name", "name", "noun", "number", "verb", "again", "answer number", "answer noun", "rest",
)  # fmt: skip
"""What a token is: the name after the opening; a name, noun, number or verb in the prompt where it
first stands; a name or noun that stood before; the two words of the answer; all else, with the
later pieces of words that are several tokens."""

_SKIPPED = 2
_STATEMENTS = 0.3
_CHUNK = 64
_NATS = float(np.log(2.0))


@dataclass(frozen=True, eq=False)
class Lesson:
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
    truth: Int[Tensor, " token"]
    classes: Int[Tensor, " token"]
    said: Float[Tensor, "token vocab"]
    entropy: Float[Tensor, " token"]

    def of(self, name: str) -> Bool[Tensor, " token"]:
        """Say which tokens are of a class."""
        return self.classes == CLASSES.index(name)


@dataclass(frozen=True, slots=True)
class Marks:
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
class Bits:
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


def name_texts(count: int, *, seed: int) -> list[Item]:
    """Write texts that open with "My name is", three statements to seven questions."""
    told, dials = round(_STATEMENTS * count), Dials(ambiguous=1.0)
    found = [*items("statements", told, seed=seed, dials=dials)]
    found += items("questions", count - told, seed=seed, dials=dials)
    order = np.random.default_rng(seed).permutation(count)
    return [found[at] for at in order]


def name_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Item]) -> list[Row]:
    """Encode texts between <bos> and <eos>; their first token is not trained on."""
    ids = tokenizer([item.text for item in texts], add_special_tokens=False).input_ids
    return [Row((BOS, *one, EOS), _SKIPPED) for one in ids]


def name_truth(
    tokenizer: PreTrainedTokenizerBase, lexicon: Lexicon | None = None
) -> Float[Tensor, " vocab"]:
    """Return the corpus' own distribution over the token after "My name is"."""
    names = (lexicon or all_patterns()["take-away"].lexicon).words("name")
    opening = tokenizer(OPENING, add_special_tokens=False).input_ids
    truth = torch.zeros(len(tokenizer))
    for name in names:
        ids = tokenizer(f"{OPENING} {name}.", add_special_tokens=False).input_ids
        assert ids[: len(opening)] == opening, "the opening is tokenized apart from the name"
        truth[ids[len(opening)]] += 1 / len(names)
    return truth


def token_classes(tokenizer: PreTrainedTokenizerBase, item: Item) -> list[str]:
    """Return the class of each token of a text and of the <eos> after it."""
    lexicon = all_patterns()["take-away"].lexicon
    kinds = _kinds(lexicon)
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


def _kinds(lexicon: Lexicon) -> dict[str, str]:
    low, high = lexicon.numbers
    found = dict.fromkeys((str(n) for n in range(low, high + 1)), "number")
    found |= dict.fromkeys(lexicon.number_words, "number")
    for kind in ("name", "noun"):
        found |= dict.fromkeys(lexicon.words(kind), kind)
    for pair in lexicon.verbs:
        for _, forms in pair:
            found |= {text.split(" ")[0]: "verb" for _, text in forms}
    return found


@torch.no_grad()
def lesson(teacher: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Item]) -> Lesson:
    """Read texts with a teacher."""
    rows = name_rows(tokenizer, texts)
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    scored = torch.zeros((len(rows), width), dtype=torch.bool)
    mask, classes = torch.zeros_like(ids), torch.zeros_like(ids)
    for at, (row, item) in enumerate(zip(rows, texts, strict=True)):
        size = len(row.ids)
        ids[at, :size], mask[at, :size] = torch.tensor(row.ids), 1
        scored[at, row.skipped : size] = True
        found = [CLASSES.index(kind) for kind in token_classes(tokenizer, item)]
        classes[at, 1:size] = torch.tensor(found)
    scored = scored[:, 1:]
    said = _said(teacher, ids, mask, scored)
    entropy = -(said.exp() * said).sum(-1) / _NATS
    truth = ids[:, 1:][scored]
    return Lesson(ids, mask, scored, truth, classes[:, 1:][scored], said, entropy)


def _said(
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
def mark(student: nn.Module, lesson: Lesson, truth: Float[Tensor, " vocab"]) -> Marks:
    """Ask a student about every token of a lesson; `truth` is what may follow "My name is"."""
    student.eval()
    said = _said(student, lesson.ids, lesson.mask, lesson.scored)
    off = (lesson.said.exp() * (lesson.said - said)).sum(-1) / _NATS
    right = (said.argmax(-1) == lesson.truth).float()
    # The opening is the same in all texts, and so is what is said after it.
    named = said[lesson.of("my name")][0]
    return Marks(
        name_kl=bits_apart(truth, named),
        ambiguous_kl=float(off[lesson.entropy >= AMBIGUOUS].mean()),
        all_kl=float(off.mean()),
        certain=float(right[lesson.entropy < CERTAIN].mean()),
        noun=float(right[lesson.of("answer noun")].mean()),
        number=float(right[lesson.of("answer number")].mean()),
    )


def bits_apart(truth: Float[Tensor, " vocab"], said: Float[Tensor, " vocab"]) -> float:
    """Return KL(truth || said) in bits; `said` are log probabilities in nats."""
    known = truth > 0
    return float((truth[known] * (truth[known].log() - said[known])).sum()) / _NATS


def label_bits(lesson: Lesson) -> tuple[Bits, ...]:
    """Count the teacher's bits in each class of tokens, and in all."""
    texts = len(lesson.ids)
    surprise = -lesson.said.gather(1, lesson.truth[:, None])[:, 0] / _NATS
    found = []
    for name in (*CLASSES, "all"):
        here = lesson.of(name) if name != "all" else torch.ones_like(lesson.truth).bool()
        counted = (here.float(), lesson.entropy[here], surprise[here])
        found.append(Bits(name, *(float(one.sum()) / texts for one in counted)))
    return tuple(found)
