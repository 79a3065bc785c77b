"""Words and sentences of a text, with their characters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\d[\d,]*(?:\.\d+)?|\w+(?:['\u2019-]\w+)*|[^\w\s]")
_ENDS = frozenset(".?!;:")


@dataclass(frozen=True, slots=True)
class Word:
    """Word or mark of a text with its characters, end exclusive."""

    text: str
    start: int
    end: int

    @property
    def lower(self) -> str:
        """Lower case."""
        return self.text.lower()


def split_words(text: str) -> tuple[Word, ...]:
    """Words and marks of a text."""
    return tuple(Word(hit[0], *hit.span()) for hit in _WORD.finditer(text))


def split_sentences(words: Sequence[Word]) -> list[list[Word]]:
    """Words of each sentence, without its last mark."""
    sentences: list[list[Word]] = [[]]
    for word in words:
        if word.text in _ENDS:
            sentences.append([])
        else:
            sentences[-1].append(word)
    return [sentence for sentence in sentences if sentence]
