"""Texts of the "My name is" study: the teacher's distribution at each token, and KL to a student.

Each text opens with "My name is …". Its first token is not trained on: few texts of the teacher's
corpus open so, and the teacher would be wrong there. After "My name is" the true distribution is
known: the corpus samples each name of the lexicon with the same probability.
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
from probes.prompts.catalog import pattern as load_pattern
from probes.prompts.template import Lexicon

OPENING = "My name is"
MAX_CERTAIN_ENTROPY, MIN_AMBIGUOUS_ENTROPY = 0.1, 1.0
"""Teacher's entropy in bits below which a token is certain, and from which it is ambiguous."""

TOKEN_CLASSES = (
    "my name", "name", "noun", "number", "verb", "again", "answer number", "answer noun", "rest",
)  # fmt: skip
"""Classes of tokens: the name after the opening; the first occurrence of a name, noun, number or
verb in the prompt; a repeated name or noun; the two words of the answer; all else, such as the
later tokens of a word."""

_SKIPPED_TOKENS = 2
_STATEMENT_FRACTION = 0.3
_CHUNK = 64
_NATS_PER_BIT = float(np.log(2.0))


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """Texts with the teacher's distribution at each trained token.

    Attributes:
        ids: Token ids, padded on the right.
        mask: 1 where there is text.
        scored: Trained tokens, without the first column of `ids`.
        token_ids: Token of the text at each scored position.
        classes: Class of that token, an index of `TOKEN_CLASSES`.
        log_probs: Log probabilities of the teacher there, in nats.
        entropy: Entropy of the teacher there, in bits.
    """

    ids: Int[Tensor, "prompt position"]
    mask: Int[Tensor, "prompt position"]
    scored: Bool[Tensor, "prompt next"]
    token_ids: Int[Tensor, " token"]
    classes: Int[Tensor, " token"]
    log_probs: Float[Tensor, "token vocab"]
    entropy: Float[Tensor, " token"]

    def in_class(self, name: str) -> Bool[Tensor, " token"]:
        """Tokens of a class."""
        return self.classes == TOKEN_CLASSES.index(name)


@dataclass(frozen=True, slots=True)
class StudentScores:
    """Scores of a student on test texts.

    Attributes:
        name_kl: KL(truth || student) after "My name is", in bits.
        ambiguous_kl: KL(teacher || student) in bits, mean over ambiguous tokens.
        all_kl: The same over all trained tokens.
        certain: Accuracy on certain tokens: the most likely token is the text's.
        noun: Accuracy on the first token of the answer's noun.
        number: Accuracy on the answer's number.
    """

    name_kl: float
    ambiguous_kl: float
    all_kl: float
    certain: float
    noun: float
    number: float


@dataclass(frozen=True, slots=True)
class LabelInformation:
    """Bits in the labels of one class of tokens.

    Attributes:
        name: Class, or "all".
        tokens: Mean number of such tokens in a text.
        entropy: Teacher's entropy at them in bits, summed over a text, mean over texts.
        surprise: -log2 of the teacher's probability of the text's tokens, summed alike; equal to
            the entropy for a calibrated teacher. It is the part of a hard label that no student
            can predict: which token was sampled.
    """

    name: str
    tokens: float
    entropy: float
    surprise: float


def sample_name_texts(count: int, *, seed: int) -> list[CorpusText]:
    """Texts that open with "My name is", three statements to seven questions."""
    statements, settings = round(_STATEMENT_FRACTION * count), CorpusSettings(ambiguous=1.0)
    texts = [*sample_texts("statements", statements, seed=seed, settings=settings)]
    texts += sample_texts("questions", count - statements, seed=seed, settings=settings)
    order = np.random.default_rng(seed).permutation(count)
    return [texts[at] for at in order]


def tokenize_name_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[CorpusText]
) -> list[TrainingText]:
    """Tokenized texts between <bos> and <eos>; their first token is not trained on."""
    ids = tokenizer([item.text for item in texts], add_special_tokens=False).input_ids
    return [TrainingText((BOS, *row, EOS), _SKIPPED_TOKENS) for row in ids]


def true_name_distribution(
    tokenizer: PreTrainedTokenizerBase, lexicon: Lexicon | None = None
) -> Float[Tensor, " vocab"]:
    """Distribution of the corpus over the token after "My name is"."""
    names = (lexicon or load_pattern("take-away").lexicon).words("name")
    opening = tokenizer(OPENING, add_special_tokens=False).input_ids
    truth = torch.zeros(len(tokenizer))
    for name in names:
        ids = tokenizer(f"{OPENING} {name}.", add_special_tokens=False).input_ids
        assert ids[: len(opening)] == opening, "the opening is tokenized apart from the name"
        truth[ids[len(opening)]] += 1 / len(names)
    return truth


def token_classes(tokenizer: PreTrainedTokenizerBase, item: CorpusText) -> list[str]:
    """Class of each token of a text and of the <eos> after it."""
    word_classes = _word_classes(load_pattern("take-away").lexicon)
    starts = {m.start(): m.group() for m in re.finditer(r"[^\s.,?]+", item.text)}
    answer_starts = [at for at in starts if at >= len(item.prompt)][:2]
    answers = dict(zip(answer_starts, ("answer number", "answer noun"), strict=True))
    classes, seen = [], set()
    spans = tokenizer(item.text, add_special_tokens=False, return_offsets_mapping=True)
    for start, end in spans.offset_mapping:
        at = start + len(item.text[start:end]) - len(item.text[start:end].lstrip())
        word = starts.get(at, "")
        kind = answers.get(at) or word_classes.get(word, "rest")
        if at >= len(item.prompt) and at not in answers:
            kind = "rest"
        if kind in ("name", "noun"):
            kind = "again" if word in seen else kind
            seen.add(word)
        if at == len(OPENING) + 1 and item.text.startswith(OPENING):
            kind = "my name"
        classes.append(kind)
    return [*classes, "rest"]


def _word_classes(lexicon: Lexicon) -> dict[str, str]:
    low, high = lexicon.number_range
    classes = dict.fromkeys((str(n) for n in range(low, high + 1)), "number")
    classes |= dict.fromkeys(lexicon.number_words, "number")
    for kind in ("name", "noun"):
        classes |= dict.fromkeys(lexicon.words(kind), kind)
    for pair in lexicon.verbs:
        for _, forms in pair:
            classes |= {text.split(" ")[0]: "verb" for _, text in forms}
    return classes


@torch.no_grad()
def teacher_targets(
    teacher: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[CorpusText]
) -> TeacherTargets:
    """Teacher's distribution at each trained token of some texts."""
    rows = tokenize_name_texts(tokenizer, texts)
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    scored = torch.zeros((len(rows), width), dtype=torch.bool)
    mask, classes = torch.zeros_like(ids), torch.zeros_like(ids)
    for at, (row, item) in enumerate(zip(rows, texts, strict=True)):
        size = len(row.ids)
        ids[at, :size], mask[at, :size] = torch.tensor(row.ids), 1
        scored[at, row.ignored_prefix : size] = True
        own = [TOKEN_CLASSES.index(kind) for kind in token_classes(tokenizer, item)]
        classes[at, 1:size] = torch.tensor(own)
    scored = scored[:, 1:]
    log_probs = _log_probs(teacher, ids, mask, scored)
    entropy = -(log_probs.exp() * log_probs).sum(-1) / _NATS_PER_BIT
    tokens = ids[:, 1:][scored]
    return TeacherTargets(ids, mask, scored, tokens, classes[:, 1:][scored], log_probs, entropy)


def _log_probs(
    model: nn.Module,
    ids: Int[Tensor, "prompt position"],
    mask: Int[Tensor, "prompt position"],
    scored: Bool[Tensor, "prompt next"],
) -> Float[Tensor, "token vocab"]:
    parts = []
    for at in range(0, len(ids), _CHUNK):
        rows = slice(at, at + _CHUNK)
        logits = model(input_ids=ids[rows], attention_mask=mask[rows]).logits[:, :-1]
        parts.append(functional.log_softmax(logits[scored[rows]].float(), dim=-1))
    return torch.cat(parts)


@torch.no_grad()
def evaluate_student(
    student: nn.Module, targets: TeacherTargets, truth: Float[Tensor, " vocab"]
) -> StudentScores:
    """Scores of a student; `truth` is the true distribution after "My name is"."""
    student.eval()
    log_probs = _log_probs(student, targets.ids, targets.mask, targets.scored)
    kl = (targets.log_probs.exp() * (targets.log_probs - log_probs)).sum(-1) / _NATS_PER_BIT
    correct = (log_probs.argmax(-1) == targets.token_ids).float()
    # The opening is the same in all texts, and so is the distribution after it.
    after_opening = log_probs[targets.in_class("my name")][0]
    return StudentScores(
        name_kl=kl_bits(truth, after_opening),
        ambiguous_kl=float(kl[targets.entropy >= MIN_AMBIGUOUS_ENTROPY].mean()),
        all_kl=float(kl.mean()),
        certain=float(correct[targets.entropy < MAX_CERTAIN_ENTROPY].mean()),
        noun=float(correct[targets.in_class("answer noun")].mean()),
        number=float(correct[targets.in_class("answer number")].mean()),
    )


def kl_bits(truth: Float[Tensor, " vocab"], log_probs: Float[Tensor, " vocab"]) -> float:
    """KL(truth || model) in bits, from the model's log probabilities in nats."""
    known = truth > 0
    return float((truth[known] * (truth[known].log() - log_probs[known])).sum()) / _NATS_PER_BIT


def label_information(targets: TeacherTargets) -> tuple[LabelInformation, ...]:
    """Bits of the labels in each class of tokens, and in all."""
    texts = len(targets.ids)
    surprise = -targets.log_probs.gather(1, targets.token_ids[:, None])[:, 0] / _NATS_PER_BIT
    information = []
    for name in (*TOKEN_CLASSES, "all"):
        own = targets.in_class(name) if name != "all" else torch.ones_like(targets.classes).bool()
        sums = (values.sum() for values in (own.float(), targets.entropy[own], surprise[own]))
        information.append(LabelInformation(name, *(float(total) / texts for total in sums)))
    return tuple(information)
