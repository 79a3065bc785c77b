"""Tokenizer of a GGUF file, with what transformers' reader leaves out put right."""

import json
from pathlib import Path
from typing import Any

from probes.errors import ModelError
from probes.models.files.gguf_header import GGUFHeader
from probes.prompts.tokens.special_tokens import set_bos

_CONTROL, _USER_DEFINED = 3, 4

# llama.cpp takes a whole word that is a token without merging, and writes BOS if the file does
# not say otherwise, for these.
_WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
_DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")


def load_gguf_tokenizer(header: GGUFHeader) -> Any:  # noqa: ANN401
    """Tokenizer of a GGUF file with its chat template; None where the file holds no vocabulary.

    Control tokens keep their ids and are never split, the digits of a number are separated where
    the vocabulary was learned so, and BOS is written where llama.cpp writes it.

    Raises:
        ModelError: The tokenizer gives a token another id than the file.
    """
    from transformers import PreTrainedTokenizerFast

    data = header.metadata
    if "tokenizer.ggml.tokens" not in data:
        return None
    path = header.path
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name)
    kind, split = data.get("tokenizer.ggml.model"), str(data.get("tokenizer.ggml.pre", ""))
    if kind == "gpt2":
        _correct_byte_level(tokenizer, header, split)
    if split in _WHOLE_WORDS and "tokenizer.ggml.add_bos_token" not in data:
        set_bos(tokenizer, True)
    _check_ids(tokenizer, header)
    return tokenizer


def _added_tokens(header: GGUFHeader) -> dict[int, tuple[str, bool]]:
    """Control and user-defined tokens by id, and whether each is special."""
    tokens = header.metadata["tokenizer.ggml.tokens"]
    kinds = header.metadata.get("tokenizer.ggml.token_type", ())
    return {
        at: (token, kind == _CONTROL)
        for at, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind in (_CONTROL, _USER_DEFINED)
    }


def _correct_byte_level(tokenizer: Any, header: GGUFHeader, split: str) -> None:  # noqa: ANN401
    """Correct a byte-level tokenizer in place.

    The reader spells control tokens with characters outside of the byte alphabet, such as
    those of DeepSeek, as bytes: they would be split in a text, and BOS would get an id that
    the model does not have.
    """
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = content["model"]["vocab"]
    spelled = {at: token for token, at in vocab.items()}
    added = _added_tokens(header)
    for at, (token, _) in added.items():
        if spelled.get(at, token) != token:
            vocab.pop(spelled[at])
        vocab[token] = at
    rows = {row["id"]: row for row in content["added_tokens"] if row["id"] in spelled}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for at, (token, special) in added.items():
        rows[at] = {"id": at, "content": token, "special": special} | flags
    content["added_tokens"] = [rows[at] for at in sorted(rows)]
    if split in _WHOLE_WORDS:
        content["model"]["ignore_merges"] = True
    if split in _DIGIT_BY_DIGIT:
        digits = {"type": "Digits", "individual_digits": True}
        content["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [digits, content["pre_tokenizer"]],
        }
    bos = tokenizer.add_bos_token
    # Where the BOS template held a wrong id, it is written again below.
    content["post_processor"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True
    }  # fmt: skip
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    if bos:
        set_bos(tokenizer, True)


def _check_ids(tokenizer: Any, header: GGUFHeader) -> None:  # noqa: ANN401
    tokens = header.metadata["tokenizer.ggml.tokens"]
    wrong = [
        (at, token)
        for at, (token, _) in _added_tokens(header).items()
        if tokenizer.convert_tokens_to_ids(token) != at
    ]
    if wrong or len(tokenizer) > len(tokens):
        at, token = (
            wrong[0] if wrong else (len(tokens), tokenizer.convert_ids_to_tokens(len(tokens)))
        )
        raise ModelError(
            f"The tokenizer of {_name(header.path)} cannot be read from GGUF: {token!r} would not "
            f"be token {at} of {len(tokens)}. Load the model's original folder instead"
        )


def _name(path: Path) -> str:
    return repr(str(path))
