"""Verdicts on role paths: how many are decided, how many stay at other prompts, how many are wrong.

    python -m benchmarks.path_verdicts [--seeds 5] [--prompts 32 8] [--page docs/path_verdicts.md]

The same comparison is repeated with other prompts. A verdict is stable if it has one label at every
seed at which the path has a decided verdict. Equivalent models (residual stream rotated, heads
permuted, int8) must keep every path: all else is wrong. So it is on hand-built relatives with the
same paths. Negative controls must have no verdict on a mechanism. Fails if any verdict is wrong.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import set_num_threads

from benchmarks.judged import JudgedVerdict
from probes.comparison.paths.measure import (
    measure_null_paths,
    measure_paths,
    plan_paths,
    search_paths,
)
from probes.comparison.paths.verdicts import path_effects, path_verdicts
from probes.comparison.setup.prompts import sample_path_prompts
from probes.comparison.setup.references import ComparisonSettings
from probes.comparison.variables.held_out_folds import distinct_tokenizers
from probes.comparison.verdict import UNDECIDED, Verdict
from probes.compression.quantization.quantize import quantize
from probes.models.model import Model, load, random_init
from probes.observe.gate import answer_questions, gate_behavior
from probes.prompts.catalog import pattern
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.pair_batch import tokenizable_by
from probes.testing.equivalent_heads import permute_heads
from probes.testing.equivalent_layers import insert_silent_layer, rotate_residual
from probes.testing.planted_patterns import planted_fox

RELATIVES = ("distilled", "distilled-narrow", "scratch", "full-b", "ticket", "regrown")
NEGATIVE = ("copying", "permuted")


@dataclass(frozen=True)
class Group:
    """A full model, its relatives by name, and the names of those that must keep every path."""

    full: Model
    other_seed: Model | None
    relatives: Mapping[str, Model]
    equivalent: Sequence[str]
    on: Pattern


def groups() -> list[Group]:
    """The embedded family, and hand-built models."""
    full = load("full")
    family = {name: load(name) for name in (*RELATIVES, *NEGATIVE)}
    family |= {
        "full, rotated": rotate_residual(full, seed=1).model,
        "full, heads permuted": permute_heads(full, seed=1).model,
        "full, int8": load(quantize("full", "int8")),
    }
    planted = planted_fox("template", seed=0)
    made = {
        "planted, rotated": rotate_residual(planted.model, seed=1).model,
        "planted, a silent layer": insert_silent_layer(planted.model, at=1, seed=1).model,
        "planted, in other heads": planted_fox("template", seed=1).model,
    }
    same = ("full, rotated", "full, heads permuted", "full, int8")
    return [
        Group(full, family["full-b"], family, same, pattern("take-away")),
        Group(planted.model, None, made, tuple(made), planted.pattern),
    ]


def verdicts_of(group: Group, settings: ComparisonSettings) -> dict[str, tuple[Verdict, ...]]:
    """Verdicts on the paths of each relative."""
    models = {"": group.full, **group.relatives}
    tokenizers = distinct_tokenizers([model.tokenizer for model in models.values()])
    few = {c: group.on.sample_pairs(c, 4, seed=settings.seed) for c in group.on.contrasts}
    prompts = sample_path_prompts(group.on, few, tokenizers, settings)
    keep = tokenizable_by(*tokenizers)
    questions = group.on.sample_questions(200, seed=settings.seed, keep=keep)
    gates = {
        name: gate_behavior(answer_questions(model, questions), questions, seed=settings.seed)
        for name, model in models.items()
    }
    found = {
        name: search_paths(model, prompts) if all(gate.has_behavior for gate in gates[name]) else {}
        for name, model in models.items()
    }
    plan = plan_paths(found[""], found.values(), prompts, seed=settings.seed)
    runs = {name: measure_paths(model, plan) for name, model in models.items()}
    nulls = {}
    for model in group.relatives.values():
        if model.shape not in nulls:
            drawn = (random_init(model, seed=settings.seed + k) for k in range(settings.nulls))
            nulls[model.shape] = [measure_null_paths(one, plan) for one in drawn]
    other_seed = next((n for n, m in group.relatives.items() if m is group.other_seed), None)
    found_verdicts = {}
    for name, model in group.relatives.items():
        seed_runs = runs[other_seed] if other_seed and other_seed != name else None
        effects = path_effects(
            plan,
            (found[""], found[name]),
            (runs[""], runs[name], seed_runs),
            nulls[model.shape],
            seed=settings.seed,
        )
        found_verdicts[name] = path_verdicts(effects, gates[name])
    return found_verdicts


def is_wrong(name: str, verdict: Verdict, group: Group) -> bool:
    """Whether a verdict contradicts what is known of the relative."""
    if name in group.equivalent:
        return verdict.label not in ("kept", "cannot tell")
    return name in NEGATIVE and verdict.label not in UNDECIDED


def judged_verdicts(group: Group, seeds: int, prompts: int) -> Iterator[JudgedVerdict]:
    """Judge the verdicts on the paths of each relative, at each seed of the prompts."""
    for seed in range(seeds):
        for name, verdicts in verdicts_of(
            group, ComparisonSettings(prompts=prompts, seed=seed)
        ).items():
            for verdict in verdicts:
                yield JudgedVerdict(
                    name,
                    "path",
                    verdict.subject or verdict.counterpart,
                    verdict.label,
                    is_wrong(name, verdict, group),
                    seed,
                    known=name in group.equivalent or name in NEGATIVE,
                )


def main() -> None:
    """Repeat the comparison, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--prompts", type=int, nargs="*", default=[32])
    parser.add_argument("--page", type=Path, help="Markdown page of the table.")
    given = parser.parse_args()
    set_num_threads(1)
    lines, wrong = [], 0
    for prompts in given.prompts:
        rows, wrong_here = table(given.seeds, prompts)
        lines += [*rows, ""]
        wrong += wrong_here
        print(*rows, sep="\n", flush=True)
    if given.page:
        intro = _INTRO.format(prompts=" ".join(map(str, given.prompts)))
        given.page.write_text(intro + "\n".join(lines).rstrip() + "\n", encoding="utf-8")
    raise SystemExit(bool(wrong))


def table(seeds: int, prompts: int) -> tuple[list[str], int]:
    """Rows of the table for one number of prompts, and the number of wrong verdicts."""
    labels: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    wrong: dict[str, int] = defaultdict(int)
    for group in groups():
        for one in judged_verdicts(group, seeds, prompts):
            labels[one.relative][one.subject].append(one.label)
            wrong[one.relative] += one.wrong
    rows = [
        f"## {5 * prompts // 2 - prompts // 2} test pairs for each contrast, {seeds} seeds",
        "",
        "| relative | verdicts | decided | paths with one label at all seeds | wrong |",
        "|---|---|---|---|---|",
    ]
    total = [0, 0, 0, 0]
    for name, by_path in labels.items():
        every = [label for found in by_path.values() for label in found]
        decided = [label for label in every if label not in UNDECIDED]
        kept = [{*found} - {*UNDECIDED} for found in by_path.values()]
        paths, stable = sum(map(bool, kept)), sum(len(found) == 1 for found in kept)
        absent = " (behavior absent)" if {*every} <= {"behavior absent"} else ""
        rows.append(
            f"| `{name}`{absent} | {len(every)} | {len(decided)} | {stable} of {paths} | "
            f"{wrong[name]} |"
        )
        if not absent and name in RELATIVES:
            counts = len(every), len(decided), stable, paths
            total = [a + b for a, b in zip(total, counts, strict=True)]
    rows.append(
        f"| the {len(RELATIVES)} trained relatives | {total[0]} | {total[1]} "
        f"({total[1] / max(total[0], 1):.0%}) | {total[2]} of {total[3]} "
        f"({total[2] / max(total[3], 1):.0%}) | |"
    )
    return rows, sum(wrong.values())


_INTRO = """# Verdicts on role paths at other prompts

`python -m benchmarks.path_verdicts --prompts {prompts} --page docs/path_verdicts.md` writes
this page.

The comparison with `full` is repeated with other prompts, words and numbers. Decided: neither
"cannot tell" nor "behavior absent". Wrong: a relative that is known to have the same paths (a copy
with the residual stream rotated or the heads permuted, int8, a hand-built model in other heads)
has a verdict other than "kept" or "cannot tell", or a negative control has a decided one.

"""


if __name__ == "__main__":
    main()
