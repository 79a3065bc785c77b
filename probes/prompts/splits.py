"""Text-disjoint splits: halves of a set of pairs in which no text occurs in both."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from probes.prompts.question import Pair


def text_groups(texts: Sequence[tuple[object, object]]) -> Int[np.ndarray, " pair"]:
    """Group number of each pair of texts: pairs linked by shared texts have the same number."""
    import networkx

    graph = networkx.Graph(texts)
    components = networkx.connected_components(graph)
    number = {text: n for n, component in enumerate(components) for text in component}
    return np.array([number[first] for first, _ in texts], dtype=np.int64)


def split_groups(
    groups: Int[np.ndarray, " pair"], *, seed: int
) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"]]:
    """Indices of two halves, as even as whole groups allow; the order of groups is random."""
    halves: tuple[list[int], list[int]] = ([], [])
    for number in np.random.default_rng(seed).permutation(np.unique(groups)):
        smaller = min(halves, key=len)
        smaller += np.flatnonzero(groups == number).tolist()
    first, second = (torch.tensor(sorted(half), dtype=torch.int64) for half in halves)
    return first, second


def split_by_text(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Two halves of all pairs, balanced within each run of pairs of one contrast."""
    groups = iter(_pair_groups(pairs))
    halves: tuple[list[Pair], list[Pair]] = ([], [])
    half_of: dict[int, int] = {}
    for _, same_contrast in groupby(pairs, key=lambda pair: pair.contrast):
        counts = [0, 0]
        for pair in same_contrast:
            half = half_of.setdefault(next(groups), int(counts[1] < counts[0]))
            counts[half] += 1
            halves[half].append(pair)
    return halves


class TextDisjointHalves:
    """Two halves that pairs are added to, at most `max_pairs` of a contrast in each half."""

    def __init__(self, max_pairs: int) -> None:
        self.max_pairs, self.half_of_text = max_pairs, dict[str, int]()
        self.halves: tuple[list[Pair], list[Pair]] = ([], [])

    def add(self, pairs: Sequence[Pair]) -> None:
        """Add the pairs of one contrast; a pair whose texts are in both halves is left out."""
        groups = _pair_groups(pairs)
        sizes = Counter(groups)
        enough, planned, counts = min(self.max_pairs, (len(pairs) + 1) // 2), [0, 0], [0, 0]
        half_of: dict[int, int] = {}
        for pair, group in zip(pairs, groups, strict=True):
            texts = (pair.clean.text, pair.counterfactual.text)
            if group not in half_of:
                half_of[group] = int(planned[0] >= enough)
                planned[half_of[group]] += sizes[group]
            # Another contrast may have assigned the text already.
            assigned = {self.half_of_text[text] for text in texts if text in self.half_of_text}
            half = min(assigned, default=half_of[group])
            if len(assigned | {half}) > 1 or counts[half] >= self.max_pairs:
                continue
            counts[half] += 1
            self.half_of_text |= dict.fromkeys(texts, half)
            self.halves[half].append(pair)


def _pair_groups(pairs: Sequence[Pair]) -> list[int]:
    return text_groups([(pair.clean.text, pair.counterfactual.text) for pair in pairs]).tolist()
