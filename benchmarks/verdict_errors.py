"""Count the wrong words about twins: models whose truth is known, as surgery made them.

    python benchmarks/verdict_errors.py [--seeds 5] [--pairs 16] [--models full distilled]

A twin computes the same function as the model that it was made of, so that each head's fate is
known: the same head in another place, two halves, a half, or nothing. The rows are surgeries, the
columns: heads that are not idle, those with the right word and the right heads beside it, those
that cannot be told, and the wrong words by kind. Heads that the twin alone has should be idle; any
that is called new is wrong too. Fails if more than one head in twenty gets a wrong word.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import set_num_threads

from probes.comparison.heads.head_sets import HeadView, busy
from probes.comparison.heads.measurements import Chance
from probes.comparison.heads.profiles import live, profile, shares
from probes.comparison.heads.verdicts import head_fates
from probes.comparison.verdict import Fate
from probes.models.model import Model, load, untrained
from probes.prompts.catalog import pattern
from probes.prompts.pair_batch import draw_pairs, encode_pairs
from probes.testing.equivalent_models import (
    Twin,
    dead_heads,
    doubled_heads,
    permuted_heads,
    permuted_neurons,
    rotated,
    split_heads,
    turned,
    with_idle_layer,
)

PROMISED = 0.05


@dataclass(frozen=True)
class Ground:
    """A model, what it was asked, and its untrained nets by the number of their heads."""

    view: HeadView
    roles: tuple[str, ...]
    busy: tuple[str, ...]
    weakest: tuple[str, ...]
    nulls: dict[tuple[int, int], list]


def ground(name: str, pairs: int, seed: int) -> Ground:
    """Draw prompts and measure a model."""
    chosen, model = pattern("take-away"), load(name)
    words = model.tokenizer
    batches = {
        contrast: encode_pairs(
            words, draw_pairs(chosen, contrast, pairs, tokenizers=[words], seed=seed)
        )
        for contrast in chosen.contrasts
    }
    found = {role for batch in batches.values() for role in batch.clean.roles}
    roles = tuple(sorted(found - {"reply_noun"}))
    view = HeadView(model, batches, profile(model, batches, roles)[0])
    own = view.profiles
    where = live(own)
    able = [int(number) for number in busy(own, where).nonzero()[0]]
    every = {contrast: np.ones((1, pairs)) for contrast in own.totals}
    length = np.linalg.norm(shares(own.effects, own.totals, where, every)[0], axis=1)
    weakest = sorted(able, key=lambda number: length[number])[:2]
    strong, weak = (tuple(own.heads[k] for k in some) for some in (able, weakest))
    return Ground(view, roles, strong, weak, {})


def measured(found: Ground, model: Model) -> HeadView:
    """Measure a twin on the same prompts."""
    batches = found.view.batches
    return HeadView(model, batches, profile(model, batches, found.roles)[0])


def chance(found: Ground, model: Model, nulls: int) -> Chance:
    """Measure untrained nets of a twin's shape, once for each shape."""
    key = (model.shape.layers, model.shape.heads)
    if key not in found.nulls:
        nets = (untrained(model, seed=k) for k in range(nulls))
        found.nulls[key] = [profile(net, found.view.batches, found.roles)[0] for net in nets]
    return Chance(found.nulls[key])


def surgeries(found: Ground, seed: int) -> Iterator[tuple[str, Callable[[], Twin]]]:
    """Name the surgeries on a model; one busy head after the other is split, or a weak one dies."""
    model, head = found.view.model, found.busy[seed % len(found.busy)]
    # Without a strong head the behaviour is gone, and there is no word for anything.
    dead = found.weakest[seed % len(found.weakest)]
    yield "permuted heads", lambda: permuted_heads(model, seed)
    yield "rotated", lambda: rotated(model, seed)
    yield "permuted neurons", lambda: permuted_neurons(model, seed)
    yield "idle layer", lambda: with_idle_layer(model, seed % (model.shape.layers + 1), seed)
    yield "split heads", lambda: split_heads(model, [head], seed)
    yield "merged heads", lambda: turned(split_heads(model, [head], seed), model)
    yield "doubled heads", lambda: doubled_heads(model, 0.5, seed)
    yield "dead head", lambda: dead_heads(model, [dead])


def wanted(twin: Twin, head: str) -> tuple[str, frozenset[str]]:
    """Return the true word for a head, and the heads that go with it."""
    there = frozenset(twin.heads[head])
    if len(there) != 1:
        return ("split" if there else "lost"), there
    shared = [name for name, other in twin.heads.items() if frozenset(other) == there]
    return ("merged" if len(shared) > 1 else "kept"), there


def judged(twin: Twin, fates: tuple[Fate, ...]) -> Counter[str]:
    """Count right, open and wrong words."""
    count: Counter[str] = Counter()
    for fate in fates:
        if not fate.subject:
            count["wrong: new"] += fate.word == "new"
            continue
        if fate.word == "idle":
            continue
        count["heads"] += 1
        right = wanted(twin, fate.subject)
        if fate.word == "cannot tell":
            count["open"] += 1
        elif (fate.word, frozenset(fate.there.split(" + ")) - {""}) == right:
            count["right"] += 1
        else:
            count[f"wrong: {right[0]} called {fate.word}"] += 1
    return count


def main() -> None:
    """Run all surgeries and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--nulls", type=int, default=20)
    parser.add_argument("--models", nargs="+", default=["full", "distilled"])
    parser.add_argument("--only", nargs="+", default=[])
    dials = parser.parse_args()
    set_num_threads(1)
    total: Counter[str] = Counter()
    for name in dials.models:
        found = ground(name, dials.pairs, 0)
        counts: dict[str, Counter[str]] = {}
        for seed in range(dials.seeds):
            for surgery, make in surgeries(found, seed):
                if dials.only and surgery not in dials.only:
                    continue
                twin = make()
                whole = surgery == "merged heads"
                # Turned round, the split model is the full one, and this model its relative.
                full = measured(found, _split(found, seed)) if whole else found.view
                other = found.view if whole else measured(found, twin.model)
                fates = head_fates(full, other, chance(found, other.model, dials.nulls), seed=seed)
                counts[surgery] = counts.get(surgery, Counter()) + judged(twin, fates)
        for surgery, count in counts.items():
            total += count
            wrong = {key: n for key, n in count.items() if key.startswith("wrong") and n}
            print(
                f"{name:10} {surgery:18} heads {count['heads']:4}  right {count['right']:4}  "
                f"cannot tell {count['open']:3}  {wrong or ''}"
            )
    wrong = sum(n for key, n in total.items() if key.startswith("wrong"))
    print(f"{wrong} wrong words of {total['heads']}, {total['open']} open")
    if wrong > PROMISED * total["heads"]:
        raise SystemExit(f"More than {PROMISED:.0%} of the words are wrong.")


def _split(found: Ground, seed: int) -> Model:
    """Make the split model again: a twin turned round names the model that it was made of."""
    head = found.busy[seed % len(found.busy)]
    return split_heads(found.view.model, [head], seed).model


if __name__ == "__main__":
    main()
