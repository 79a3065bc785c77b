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

from probes.comparison.heads.head_sets import ModelHeads, active_heads
from probes.comparison.heads.measurements import NullModels
from probes.comparison.heads.profiles import affected_answers, effect_fractions, profile_heads
from probes.comparison.heads.verdicts import head_verdicts
from probes.comparison.verdict import Verdict
from probes.models.model import Model, load, random_init
from probes.prompts.catalog import pattern
from probes.prompts.pair_batch import sample_pairs, tokenize_pairs
from probes.testing.equivalent_heads import (
    duplicate_heads,
    permute_heads,
    split_heads,
    swap_direction,
    zero_heads,
)
from probes.testing.equivalent_layers import insert_silent_layer, permute_neurons, rotate_residual
from probes.testing.llama_weights import EquivalentModel

PROMISED = 0.05


@dataclass(frozen=True)
class Ground:
    """A model, what it was asked, and its untrained nets by the number of their heads."""

    view: ModelHeads
    roles: tuple[str, ...]
    busy: tuple[str, ...]
    weakest: tuple[str, ...]
    nulls: dict[tuple[int, int], list]


def ground(name: str, pairs: int, seed: int) -> Ground:
    """Draw prompts and measure a model."""
    chosen, model = pattern("take-away"), load(name)
    words = model.tokenizer
    batches = {
        contrast: tokenize_pairs(
            words, sample_pairs(chosen, contrast, pairs, tokenizers=[words], seed=seed)
        )
        for contrast in chosen.contrasts
    }
    found = {role for batch in batches.values() for role in batch.clean.roles}
    roles = tuple(sorted(found - {"reply_noun"}))
    view = ModelHeads(model, batches, profile_heads(model, batches, roles)[0])
    own = view.profiles
    where = affected_answers(own)
    able = [int(number) for number in active_heads(own, where).nonzero()[0]]
    every = {contrast: np.ones((1, pairs)) for contrast in own.total_effects}
    length = np.linalg.norm(
        effect_fractions(own.effects, own.total_effects, where, every)[0], axis=1
    )
    weakest = sorted(able, key=lambda number: length[number])[:2]
    strong, weak = (tuple(own.heads[k] for k in some) for some in (able, weakest))
    return Ground(view, roles, strong, weak, {})


def measured(found: Ground, model: Model) -> ModelHeads:
    """Measure a twin on the same prompts."""
    batches = found.view.batches
    return ModelHeads(model, batches, profile_heads(model, batches, found.roles)[0])


def chance(found: Ground, model: Model, nulls: int) -> NullModels:
    """Measure untrained nets of a twin's shape, once for each shape."""
    key = (model.shape.layers, model.shape.heads)
    if key not in found.nulls:
        nets = (random_init(model, seed=k) for k in range(nulls))
        found.nulls[key] = [profile_heads(net, found.view.batches, found.roles)[0] for net in nets]
    return NullModels(found.nulls[key])


def surgeries(found: Ground, seed: int) -> Iterator[tuple[str, Callable[[], EquivalentModel]]]:
    """Name the surgeries on a model; one busy head after the other is split, or a weak one dies."""
    model, head = found.view.model, found.busy[seed % len(found.busy)]
    # Without a strong head the behavior is gone, and there is no word for anything.
    dead = found.weakest[seed % len(found.weakest)]
    yield "permuted heads", lambda: permute_heads(model, seed)
    yield "rotated", lambda: rotate_residual(model, seed)
    yield "permuted neurons", lambda: permute_neurons(model, seed)
    yield "idle layer", lambda: insert_silent_layer(model, seed % (model.shape.layers + 1), seed)
    yield "split heads", lambda: split_heads(model, [head], seed)
    yield "merged heads", lambda: swap_direction(split_heads(model, [head], seed), model)
    yield "doubled heads", lambda: duplicate_heads(model, 0.5, seed)
    yield "dead head", lambda: zero_heads(model, [dead])


def wanted(twin: EquivalentModel, head: str) -> tuple[str, frozenset[str]]:
    """Return the true word for a head, and the heads that go with it."""
    there = frozenset(twin.head_map[head])
    if len(there) != 1:
        return ("split" if there else "lost"), there
    shared = [name for name, other in twin.head_map.items() if frozenset(other) == there]
    return ("merged" if len(shared) > 1 else "kept"), there


def judged(twin: EquivalentModel, verdicts: tuple[Verdict, ...]) -> Counter[str]:
    """Count right, open and wrong words."""
    count: Counter[str] = Counter()
    for verdict in verdicts:
        if not verdict.subject:
            count["wrong: new"] += verdict.label == "new"
            continue
        if verdict.label == "no reliable effect":
            continue
        count["heads"] += 1
        right = wanted(twin, verdict.subject)
        if verdict.label == "cannot tell":
            count["open"] += 1
        elif (verdict.label, frozenset(verdict.counterpart.split(" + ")) - {""}) == right:
            count["right"] += 1
        else:
            count[f"wrong: {right[0]} called {verdict.label}"] += 1
    return count


def main() -> None:
    """Run all surgeries and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--nulls", type=int, default=20)
    parser.add_argument("--models", nargs="+", default=["full", "distilled"])
    parser.add_argument("--only", nargs="+", default=[])
    settings = parser.parse_args()
    set_num_threads(1)
    total: Counter[str] = Counter()
    for name in settings.models:
        found = ground(name, settings.pairs, 0)
        counts: dict[str, Counter[str]] = {}
        for seed in range(settings.seeds):
            for surgery, make in surgeries(found, seed):
                if settings.only and surgery not in settings.only:
                    continue
                twin = make()
                whole = surgery == "merged heads"
                # Turned round, the split model is the full one, and this model its relative.
                full = measured(found, _split(found, seed)) if whole else found.view
                other = found.view if whole else measured(found, twin.model)
                verdicts = head_verdicts(
                    full, other, chance(found, other.model, settings.nulls), seed=seed
                )
                counts[surgery] = counts.get(surgery, Counter()) + judged(twin, verdicts)
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
