"""Sections of docs/calibration.md on verdicts: wrong ones, stable ones, and number of prompts.

    python -m benchmarks.verdict_calibration [--seeds 20] [--kept runs/verdict_calibration]

Prints the sections. Verdicts are kept in files, so that a run that is cut off goes on.
`python -m benchmarks.interval_coverage --page docs/calibration.md` writes them into the page.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from math import inf
from pathlib import Path

import numpy as np
from torch import set_num_threads

from benchmarks import path_verdicts, planted_verdicts, verdict_errors
from benchmarks.judged import JudgedVerdict, kept_verdicts
from probes.comparison.compare import compare
from probes.comparison.setup.references import ComparisonSettings
from probes.comparison.verdict import NO_VERDICT, RepeatedVerdict
from probes.stats.intervals import proportion
from probes.stats.power import minimum_detectable_effect

KEPT = Path("runs/verdict_calibration")
SEEDS = 20
_SEED_STEP = 1_000_003  # As `compare --repeats`.
_POWER_SEEDS = 5
_PROMPTS = (4, 8, 16, 32)
_RELATIVES = ("distilled", "full-b")
_ITEMS = (20, 50, 100, 200, 400, 1000)

Table = list[list[str]]


def markdown(columns: Sequence[str], rows: Table) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines)


def known_verdicts(kept: Path) -> list[JudgedVerdict]:
    """Verdicts on relatives whose mechanism is known."""
    rewrites = [
        kept_verdicts(
            kept / f"heads-{name}.csv",
            lambda name=name: (
                one for found in verdict_errors.judged_verdicts(name).values() for one, _ in found
            ),
        )
        for name in ("full", "distilled")
    ]
    planted = kept_verdicts(kept / "planted.csv", planted_verdicts.judged_verdicts)
    paths = kept_verdicts(kept / "paths-known.csv", _known_paths)
    return [one for one in chain(planted, paths, *rewrites) if one.known]


def _known_paths() -> list[JudgedVerdict]:
    found = []
    for group in path_verdicts.groups():
        known = (*group.equivalent, *path_verdicts.NEGATIVE)
        relatives = {name: one for name, one in group.relatives.items() if name in known}
        found += path_verdicts.judged_verdicts(replace(group, relatives=relatives), 5, 32)
    return found


def wrong_table(judged: Sequence[JudgedVerdict]) -> Table:
    """How often each verdict is wrong, by what it is on."""
    rows = []
    for kind in ("path", "variable", "head"):
        own = [one for one in judged if one.kind == kind]
        for label, count in Counter(one.label for one in own if one.label != "cannot tell").items():
            wrong = np.array([one.wrong for one in own if one.label == label])
            rows.append([kind, label, str(count), str(wrong.sum()), str(proportion(wrong))])
        open_verdicts = sum(one.label == "cannot tell" for one in own)
        rows.append([kind, "cannot tell", str(open_verdicts), "–", "–"])
    return rows


def comparisons(kept: Path, seeds: int) -> list[JudgedVerdict]:
    """Verdicts of whole comparisons of `full` with `distilled`, each with other prompts.

    One draw for variables: `interval_coverage` repeats their draws a hundred times.
    """
    found: list[JudgedVerdict] = []
    for seed in range(seeds):
        path = kept / f"comparison-{seed}.csv"
        found += kept_verdicts(path, lambda seed=seed: _comparison(seed))
    return found


def _comparison(seed: int) -> list[JudgedVerdict]:
    settings = ComparisonSettings(seed=seed * _SEED_STEP, draws=1)
    return [
        JudgedVerdict(
            "distilled",
            one.kind,
            one.subject or f"(new) {one.counterpart}",
            one.label,
            wrong=False,
            seed=seed,
            known=False,
        )
        for one in compare("full", "distilled", "take-away", settings).verdicts
    ]


def stability_table(judged: Sequence[JudgedVerdict]) -> Table:
    """For paths and heads: decided verdicts, and how many have one label at all seeds."""
    seeds = list(dict.fromkeys(one.seed for one in judged))
    rows = []
    for kind in ("path", "head"):
        by_subject: dict[str, dict[int, str]] = {}
        for one in judged:
            if one.kind == kind and one.label != "no reliable effect":
                by_subject.setdefault(one.subject, {})[one.seed] = one.label
        repeated = [
            RepeatedVerdict(kind, name, tuple(labels.get(seed, NO_VERDICT) for seed in seeds))
            for name, labels in by_subject.items()
        ]
        labels = [label for one in repeated for label in one.labels if label != NO_VERDICT]
        decided = sum(len(one.decided) for one in repeated)
        with_word = [one for one in repeated if one.decided]
        agreeing = sum(len({*one.decided}) == 1 for one in with_word)
        share = [max(Counter(one.decided).values()) / len(one.decided) for one in with_word]
        rows.append(
            [
                kind,
                str(len(repeated)),
                f"{decided} of {len(labels)} ({decided / max(len(labels), 1):.2f})",
                f"{agreeing} of {len(with_word)}",
                f"{np.mean(share):.2f}" if share else "–",
                f"{np.mean([one.stability for one in repeated]):.2f}",
            ]
        )
    return rows


def path_power(kept: Path) -> Table:
    """Decided verdicts on paths by number of prompts."""
    family = path_verdicts.groups()[0]
    group = replace(family, relatives={name: family.relatives[name] for name in _RELATIVES})
    rows = []
    for prompts in _PROMPTS:
        run = partial(path_verdicts.judged_verdicts, group, _POWER_SEEDS, prompts)
        judged = kept_verdicts(kept / f"paths-{prompts}.csv", run)
        for name in _RELATIVES:
            decided = np.array([one.decided for one in judged if one.relative == name])
            pairs = 5 * prompts // 2 - prompts // 2
            rows.append([f"`{name}`", f"{pairs}", str(len(decided)), str(proportion(decided))])
    return rows


def accuracy_power() -> Table:
    """Smallest fall of accuracy that is found with probability 0.8, by number of questions."""
    rows = []
    for accuracy in (0.95, 0.7):
        for name, discordance in (("only falls", 0.0), ("independent", None)):
            found = [
                minimum_detectable_effect(n, accuracy, discordance=discordance) for n in _ITEMS
            ]
            rows.append([f"{accuracy}", name, *("–" if e == inf else f"{e:.2f}" for e in found)])
    return rows


def sections(kept: Path = KEPT, seeds: int = SEEDS) -> list[str]:
    """The sections, as paragraphs."""
    repeated = comparisons(kept, seeds)
    return [
        "## Wrong verdicts",
        "Verdicts on relatives whose mechanism is known: 13 hand-built relatives of a hand-built "
        "model (variables; role paths of the seven that compute the same), copies of `full` with "
        "the residual stream rotated, the heads permuted or int8 weights, three hand-built copies, "
        "and the negative controls `copying` and `permuted` (role paths, 5 seeds of prompts), and "
        "8 rewrites of `full` and of `distilled` that compute the same (heads, 5 seeds of "
        "rewrites). A word without a row was never said of these. Of words that no such relative "
        "deserves, such as weaker or stronger, only false use is counted.",
        markdown(("on", "verdict", "said", "wrong", "rate"), wrong_table(known_verdicts(kept))),
        "## Stability of verdicts on role paths and heads",
        f"`full` and `distilled` on `take-away`, {seeds} comparisons with other prompts, words and "
        'numbers (n = 1 model each). Decided: neither "cannot tell" nor "no reliable effect". '
        "One word: no other decided verdict at any seed. Share of the most frequent word: among "
        "decided verdicts, mean over subjects; among all comparisons, those without a verdict on "
        "it included. Variables are in the table above.",
        markdown(
            (
                "on",
                "subjects",
                "decided",
                "with one word",
                "share among decided",
                "share among all comparisons",
            ),
            stability_table(repeated),
        ),
        "## Power against number of prompts",
        f"Role paths: fraction of verdicts that are decided, {_POWER_SEEDS} seeds of prompts "
        "(`full` with each relative, n = 1 model each). `compare` tests paths on 64 pairs by "
        "default; a verdict that is open says about how many pairs would decide it.",
        markdown(("relative", "pairs of each contrast", "verdicts", "decided"), path_power(kept)),
        "Accuracy: smallest fall that McNemar's exact test finds with probability 0.8 at level "
        "0.05, by number of questions (computed, `probes.stats.power`). Only falls: no answer "
        "turns right. Independent: the two models' answers to a question are independent.",
        markdown(("accuracy", "answers", *map(str, _ITEMS)), accuracy_power()),
    ]


def main() -> None:
    """Print the sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--kept", type=Path, default=KEPT)
    options = parser.parse_args()
    set_num_threads(1)
    print("\n\n".join(sections(options.kept, options.seeds)))


if __name__ == "__main__":
    main()
