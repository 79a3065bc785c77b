"""Tokenizer of the shipped models: byte-level BPE; numbers are one token, some words several.

Added tokens would detach the space before a word, so the splits come from training: words that
should split are left out of the training text, which has only their pieces.
"""

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from probes.experiments.family.corpus import sample_texts
from probes.prompts.catalog import list_patterns

PAD, BOS, EOS = 0, 1, 2
"""Ids of the special tokens."""

SPLIT_WORDS = (
    "rain coats",
    "butter flies",
    "sun flowers",
    "corn fields",
    "tea spoons",
    "straw ber ries",
    "paint brushes",
    "note pads",
    "hand bags",
    "foot balls",
    "tooth picks",
    "pea cocks",
    "door bells",
    "light houses",
    "water mel ons",
    "lady bugs",
    "Chris topher",
    "Alex andra",
    "Jona than",
    "Fred erick",
    "Isa bella",
    "Will iam",
    "Gab riel",
    "Theo dora",
)
"""Nouns and names of two or three tokens, a third of all, with spaces between tokens."""

_MAX_NUMBER = 99


def train_tokenizer(*, seed: int, count: int = 20_000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the corpus without the words that should split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, count), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def _texts(seed: int, count: int) -> Iterator[str]:
    whole = {split.replace(" ", "") for split in SPLIT_WORDS}
    for kind in ("statements", "questions"):
        for item in sample_texts(kind, count // 2, seed=seed):
            yield " ".join(w for w in item.text.split(" ") if w.strip(".,?") not in whole)
    lexicon = list_patterns()["take-away"].lexicon
    for kind in ("noun", "name"):
        words = [word for word in lexicon.words(kind) if word not in whole]
        # A name may open a text, without a space before it.
        forms = [form for word in words for form in (f" {word}", word)]
        yield from (forms if kind == "name" else [f" {word}" for word in words]) * 20
    for split in SPLIT_WORDS:
        first, *rest = split.split(" ")
        forms = [f" {first}", first] if first[0].isupper() else [f" {first}"]
        yield from (forms + rest) * 20
    yield from [f" {number}" for number in range(_MAX_NUMBER + 1)] * 20
