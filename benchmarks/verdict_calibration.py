"""Sections of docs/calibration.md on verdicts: wrong ones, stable ones, and number of prompts.

    python -m benchmarks.verdict_calibration [--repeats 5] [--kept runs/verdict_calibration]

Prints the sections. Verdicts are kept in files, so that a run that is cut off goes on.
`python -m benchmarks.interval_coverage --page docs/calibration.md` writes them into the page.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from probes.comparison.verdict import NO_VERDICT, UNDECIDED, RepeatedVerdict
from probes.stats.intervals import proportion
from probes.stats.power import minimum_detectable_effect

KEPT = Path("runs/verdict_calibration")
REPEATS = 5
_PATH_SEEDS, _REWRITE_SEEDS, _POWER_SEEDS = 1, 1, 3
_PROMPTS = (8, 16, 32)
_RELATIVES = ("distilled", "full-b")
_ITEMS = (20, 50, 100, 200, 400, 1000)

Table = list[list[str]]


def markdown(columns: Sequence[str], rows: Table) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines)


def known_verdicts(kept: Path, *, measure: bool = True) -> dict[str, list[JudgedVerdict]]:
    """Verdicts on relatives whose mechanism is known, by a sentence on the relatives."""
    sources: dict[str, tuple[str, Callable[[], Iterable[JudgedVerdict]]]] = {
        "planted": (
            "Variables: 13 hand-built relatives of a hand-built model; role paths: those seven of "
            "them that compute the same.",
            planted_verdicts.judged_verdicts,
        ),
        "paths-known": (
            "Role paths: three copies of `full` (residual stream rotated, heads permuted, int8), "
            "three of a hand-built model, and the negative controls `copying` and `permuted` "
            f"(seeds of prompts: {_PATH_SEEDS}).",
            _known_paths,
        ),
        **{
            f"heads-{name}": (
                f"Heads: 8 rewrites of `{name}` that compute the same (of each kind: "
                f"{_REWRITE_SEEDS}).",
                partial(_rewritten, name),
            )
            for name in ("full", "distilled")
        },
    }
    return {
        sentence: [one for one in kept_verdicts(kept / f"{name}.csv", run) if one.known]
        for name, (sentence, run) in sources.items()
        if measure or (kept / f"{name}.csv").is_file()
    }


def _rewritten(name: str) -> Iterator[JudgedVerdict]:
    for found in verdict_errors.judged_verdicts(name, seeds=_REWRITE_SEEDS).values():
        yield from (one for one, _ in found)


def _known_paths() -> list[JudgedVerdict]:
    found = []
    for group in path_verdicts.groups():
        known = (*group.equivalent, *path_verdicts.NEGATIVE)
        relatives = {name: one for name, one in group.relatives.items() if name in known}
        found += path_verdicts.judged_verdicts(replace(group, relatives=relatives), _PATH_SEEDS, 32)
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


def comparisons(kept: Path, repeats: int) -> Sequence[JudgedVerdict]:
    """Verdicts of whole comparisons of `full` with `distilled`, each with other prompts."""
    return kept_verdicts(_comparisons_file(kept, repeats), lambda: _comparisons(repeats))


def _comparisons_file(kept: Path, repeats: int) -> Path:
    return kept / f"comparisons-{repeats}.csv"


def _comparisons(repeats: int) -> Iterator[JudgedVerdict]:
    settings = ComparisonSettings(repeats=repeats)
    for one in compare("full", "distilled", "take-away", settings).repeats:
        for seed, label in enumerate(one.labels):
            if label != NO_VERDICT:
                yield JudgedVerdict("distilled", one.kind, one.subject, label, False, seed, False)


def stability_table(judged: Sequence[JudgedVerdict]) -> Table:
    """By kind: decided verdicts, and how many subjects have one decided word at all seeds."""
    seeds = sorted({one.seed for one in judged})
    rows = []
    for kind in ("path", "variable", "head"):
        by_subject: dict[str, dict[int, str]] = {}
        for one in judged:
            if one.kind == kind:
                by_subject.setdefault(one.subject, {})[one.seed] = one.label
        repeated = [
            RepeatedVerdict(kind, name, tuple(labels.get(seed, NO_VERDICT) for seed in seeds))
            for name, labels in by_subject.items()
        ]
        idle = (NO_VERDICT, "no reliable effect")
        tried = [label for one in repeated for label in one.labels if label not in idle]
        decided = [one for one in repeated if one.decided]
        one_word = np.array([len({*one.decided}) == 1 for one in decided])
        everywhere = sum(one.stability == 1 for one in decided)
        rows.append(
            [
                kind,
                str(proportion(np.array([label not in UNDECIDED for label in tried]))),
                str(len(decided)),
                str(proportion(one_word)) if decided else "–",
                str(everywhere),
            ]
        )
    return rows


def path_power(kept: Path, *, measure: bool = True) -> Table:
    """Decided verdicts on paths by number of prompts."""
    family = path_verdicts.groups()[0]
    group = replace(family, relatives={name: family.relatives[name] for name in _RELATIVES})
    rows = []
    for prompts in _PROMPTS:
        path = kept / f"paths-{prompts}.csv"
        if not measure and not path.is_file():
            continue
        run = partial(path_verdicts.judged_verdicts, group, _POWER_SEEDS, prompts)
        judged = kept_verdicts(path, run)
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


def sections(kept: Path = KEPT, repeats: int = REPEATS, *, measure: bool = True) -> list[str]:
    """The sections, as paragraphs; without `measure`, those that an earlier run kept."""
    known, found = known_verdicts(kept, measure=measure), []
    if known:
        found += _wrong(known)
    if measure or _comparisons_file(kept, repeats).is_file():
        found += _stability(comparisons(kept, repeats), repeats)
    return [*found, *_power(path_power(kept, measure=measure))]


def _wrong(known: Mapping[str, Sequence[JudgedVerdict]]) -> list[str]:
    return [
        "## Wrong verdicts",
        f"Verdicts on relatives whose mechanism is known. {' '.join(known)} A label is wrong if "
        'the mechanism does not allow it; "cannot tell" is never wrong. A label without a row was '
        "given to none of them. In brackets: 95 %.",
        markdown(
            ("on", "verdict", "given", "wrong", "fraction wrong"),
            wrong_table(list(chain.from_iterable(known.values()))),
        ),
    ]


def _stability(judged: Sequence[JudgedVerdict], repeats: int) -> list[str]:
    columns = ("on", "decided", "with a decided verdict", "one word", "in all")
    return [
        "## Stability at other prompts",
        f"`full` and `distilled` on `take-away`, {repeats} whole comparisons with other prompts, "
        "words, numbers and random-init models (n = 1 model each; `probes compare full distilled "
        f'--repeats {repeats}`). Decided: neither "cannot tell" nor "no reliable effect". One '
        "word: no comparison gives another decided verdict. In all: the same verdict in every "
        "comparison.",
        markdown(columns, stability_table(judged)),
    ]


def _power(rows: Table) -> list[str]:
    paths = [
        "Role paths: fraction of verdicts that are decided (`full` with each relative, n = 1 model "
        f"each; seeds of prompts: {_POWER_SEEDS}). `compare` tests paths on 64 pairs by default; a "
        "verdict that is open says how many pairs would decide it.",
        markdown(("relative", "pairs of each contrast", "verdicts", "decided"), rows),
    ]
    return [
        "## Power against number of prompts",
        *(paths if rows else []),
        "Accuracy: smallest fall that McNemar's exact test finds with probability 0.8 at level "
        "0.05, by number of questions (computed, `probes.stats.power`). Only falls: no answer "
        "turns right. Independent: the two models' answers to a question are independent.",
        markdown(("accuracy", "answers", *map(str, _ITEMS)), accuracy_power()),
    ]


def main() -> None:
    """Print the sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--kept", type=Path, default=KEPT)
    options = parser.parse_args()
    set_num_threads(1)
    print("\n\n".join(sections(options.kept, options.repeats)))


if __name__ == "__main__":
    main()
