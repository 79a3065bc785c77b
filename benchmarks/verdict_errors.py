"""Errors of head verdicts on function-preserving rewrites, whose verdicts are known.

    python -m benchmarks.verdict_errors [--seeds 5] [--pairs 16] [--models full distilled]

An equivalent model computes the same function as the model that it was made of, so the true verdict
of each head is known: the same head elsewhere, two halves, a half, or no head. Rows are rewrites;
columns are heads with a reliable effect, heads with the right verdict and the right counterparts,
heads with "cannot tell", and wrong verdicts by kind. Heads that only the equivalent model has have
no effect; any that is called new is wrong too. Fails if more than one head in twenty has a wrong
verdict.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import set_num_threads

from benchmarks.judged import JudgedVerdict
from probes.comparison.heads.head_sets import ModelHeads, active_heads
from probes.comparison.heads.measurements import NullModels
from probes.comparison.heads.profiles import affected_answers, effect_fractions, profile_heads
from probes.comparison.heads.verdicts import head_verdicts
from probes.comparison.verdict import Verdict
from probes.models.model import Model, load, random_init
from probes.prompts.catalog import pattern
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.testing.equivalent_heads import (
    duplicate_heads,
    permute_heads,
    split_heads,
    swap_direction,
    zero_heads,
)
from probes.testing.equivalent_layers import insert_silent_layer, permute_neurons, rotate_residual
from probes.testing.llama_weights import EquivalentModel

MAX_ERROR_RATE = 0.05


@dataclass(frozen=True)
class Original:
    """A model with its heads, and random-init models by numbers of layers and heads.

    Attributes:
        heads: Measured heads.
        roles: Roles of the prompts.
        active: Names of the heads with a reliable effect.
        weakest: Names of the two active heads with the smallest effects.
        nulls: Random-init models; filled as they are needed.
    """

    heads: ModelHeads
    roles: tuple[str, ...]
    active: tuple[str, ...]
    weakest: tuple[str, ...]
    nulls: dict[tuple[int, int], list]


def measure_original(name: str, pairs: int, seed: int) -> Original:
    """Sample prompts and measure a model."""
    chosen, model = pattern("take-away"), load(name)
    tokenizer = model.tokenizer
    batches = {
        contrast: tokenize_pairs(
            tokenizer, sample_pairs(chosen, contrast, pairs, tokenizers=[tokenizer], seed=seed)
        )
        for contrast in chosen.contrasts
    }
    all_roles = {role for batch in batches.values() for role in batch.clean.roles}
    roles = tuple(sorted(all_roles - {"reply_noun"}))
    heads = ModelHeads(model, batches, profile_heads(model, batches, roles)[0])
    profiles = heads.profiles
    answers = affected_answers(profiles)
    active = [int(number) for number in active_heads(profiles, answers).nonzero()[0]]
    weights = {contrast: np.ones((1, pairs)) for contrast in profiles.total_effects}
    fractions = effect_fractions(profiles.effects, profiles.total_effects, answers, weights)[0]
    size = np.linalg.norm(fractions, axis=1)
    weakest = sorted(active, key=lambda number: size[number])[:2]
    active_names, weakest_names = (
        tuple(profiles.heads[k] for k in some) for some in (active, weakest)
    )
    return Original(heads, roles, active_names, weakest_names, {})


def measure(original: Original, model: Model) -> ModelHeads:
    """Measure an equivalent model on the same prompts."""
    batches = original.heads.batches
    return ModelHeads(model, batches, profile_heads(model, batches, original.roles)[0])


def null_models(original: Original, model: Model, count: int) -> NullModels:
    """Measure random-init models of a model's shape, once for each shape."""
    key = (model.shape.layers, model.shape.heads)
    if key not in original.nulls:
        batches, roles = original.heads.batches, original.roles
        models = (random_init(model, seed=k) for k in range(count))
        original.nulls[key] = [profile_heads(null, batches, roles)[0] for null in models]
    return NullModels(original.nulls[key])


def rewrites(original: Original, seed: int) -> Iterator[tuple[str, Callable[[], EquivalentModel]]]:
    """Rewrites of a model by name; the seed chooses the head that is split or zeroed."""
    model, head = original.heads.model, original.active[seed % len(original.active)]
    # Without a strong head the behavior is absent, and there are no verdicts.
    weak = original.weakest[seed % len(original.weakest)]
    yield "permuted heads", lambda: permute_heads(model, seed)
    yield "rotated", lambda: rotate_residual(model, seed)
    yield "permuted neurons", lambda: permute_neurons(model, seed)
    yield "silent layer", lambda: insert_silent_layer(model, seed % (model.shape.layers + 1), seed)
    yield "split heads", lambda: split_heads(model, [head], seed)
    yield "merged heads", lambda: swap_direction(split_heads(model, [head], seed), model)
    yield "duplicated heads", lambda: duplicate_heads(model, 0.5, seed)
    yield "zeroed head", lambda: zero_heads(model, [weak])


def true_verdict(equivalent: EquivalentModel, head: str) -> tuple[str, frozenset[str]]:
    """The true verdict of a head, and its counterparts."""
    counterparts = frozenset(equivalent.head_map[head])
    if len(counterparts) != 1:
        return ("split" if counterparts else "lost"), counterparts
    shared = [h for h, other in equivalent.head_map.items() if frozenset(other) == counterparts]
    return ("merged" if len(shared) > 1 else "kept"), counterparts


def judge_heads(
    rewrite: str, equivalent: EquivalentModel, verdicts: tuple[Verdict, ...], seed: int
) -> Iterator[tuple[JudgedVerdict, str]]:
    """Judge the verdicts on reliable heads, and on heads called new; with the right label."""
    for verdict in verdicts:
        if verdict.label == "no reliable effect" or not (verdict.subject or verdict.label == "new"):
            continue
        truth, found = ("none", frozenset()), frozenset(verdict.counterpart.split(" + ")) - {""}
        if verdict.subject:
            truth = true_verdict(equivalent, verdict.subject)
        wrong = verdict.label != "cannot tell" and (verdict.label, found) != truth
        subject = verdict.subject or verdict.counterpart
        yield JudgedVerdict(rewrite, "head", subject, verdict.label, wrong, seed), truth[0]


def count_verdicts(judged: Iterable[tuple[JudgedVerdict, str]]) -> Counter[str]:
    """Counts of right, open and wrong verdicts."""
    count: Counter[str] = Counter()
    for one, truth in judged:
        count["heads"] += truth != "none"  # Heads that only the equivalent model has do not count.
        if one.label == "cannot tell":
            count["open"] += 1
        elif one.wrong:
            count["wrong: new" if truth == "none" else f"wrong: {truth} called {one.label}"] += 1
        else:
            count["right"] += 1
    return count


Judged = list[tuple[JudgedVerdict, str]]


def judged_verdicts(
    name: str, *, seeds: int = 5, pairs: int = 16, nulls: int = 20, only: Collection[str] = ()
) -> dict[str, Judged]:
    """Verdicts on the rewrites of a model, each with the right label, by rewrite."""
    original = measure_original(name, pairs, 0)
    found: dict[str, Judged] = {}
    for seed in range(seeds):
        for rewrite, make in rewrites(original, seed):
            if only and rewrite not in only:
                continue
            equivalent = make()
            is_merged = rewrite == "merged heads"
            # For merged heads the split model is the full one, and this model its relative.
            full = measure(original, _split(original, seed)) if is_merged else original.heads
            other = original.heads if is_merged else measure(original, equivalent.model)
            null = null_models(original, other.model, nulls)
            verdicts = head_verdicts(full, other, null, seed=seed)
            found.setdefault(rewrite, []).extend(judge_heads(rewrite, equivalent, verdicts, seed))
    return found


def main() -> None:
    """Run all rewrites and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--nulls", type=int, default=20)
    parser.add_argument("--models", nargs="+", default=["full", "distilled"])
    parser.add_argument("--only", nargs="+", default=[])
    args = parser.parse_args()
    set_num_threads(1)
    total: Counter[str] = Counter()
    for name in args.models:
        judged = judged_verdicts(
            name, seeds=args.seeds, pairs=args.pairs, nulls=args.nulls, only=args.only
        )
        for rewrite, found in judged.items():
            count = count_verdicts(found)
            total.update(count)
            wrong = {key: n for key, n in count.items() if key.startswith("wrong") and n}
            print(
                f"{name:10} {rewrite:18} heads {count['heads']:4}  right {count['right']:4}  "
                f"cannot tell {count['open']:3}  {wrong or ''}"
            )
    wrong = sum(n for key, n in total.items() if key.startswith("wrong"))
    print(f"{wrong} of {total['heads']} verdicts are wrong, {total['open']} open")
    if wrong > MAX_ERROR_RATE * total["heads"]:
        raise SystemExit(f"More than {MAX_ERROR_RATE:.0%} of the verdicts are wrong.")


def _split(original: Original, seed: int) -> Model:
    """The split model again: `swap_direction` names the model that it was made of."""
    head = original.active[seed % len(original.active)]
    return split_heads(original.heads.model, [head], seed).model


if __name__ == "__main__":
    main()
