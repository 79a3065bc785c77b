"""Count wrong verdicts on variables and role paths of planted models, whose mechanism is known.

    python -m benchmarks.planted_verdicts [--draws 2] [--seeds 1]

The full model is the planted "template": one state at the verb codes the operation, whatever the
verb and the noun. Each relative is hand-built as well: the same in other heads or with the residual
stream rotated, or another mechanism with the same answers. A verdict is wrong if it is decided for
a label that the mechanism does not allow. Fails if any is.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import set_num_threads

from benchmarks.judged import JudgedVerdict
from probes.comparison.compare import compare_family
from probes.comparison.setup.references import ComparisonSettings
from probes.models.model import Model, random_init
from probes.testing.equivalent_heads import duplicate_heads, permute_heads, split_heads
from probes.testing.equivalent_layers import insert_silent_layer, permute_neurons, rotate_residual
from probes.testing.planted_patterns import fox_pattern, planted_fox

SAME = {variable: {"kept"} for variable in ("operation", "x", "y", "thing")}
NUMBERS = {variable: {"kept"} for variable in ("x", "y", "thing")}
ABSENT = {variable: {"behavior absent"} for variable in ("operation", "x", "y", "thing")}
ANY = {"kept", "moved", "split", "merged"}
_SAME_PATH = ("kept", "cannot tell")


@dataclass(frozen=True)
class Relative:
    """A relative with the labels that its mechanism allows; "cannot tell" is never wrong."""

    name: str
    model: Model
    allowed: dict[str, set[str]]


def relatives(seed: int) -> list[Relative]:
    """Equivalent models first, then models with another mechanism, then one without any."""
    full = planted_fox("template", seed=seed).model
    other = {
        kind: planted_fox(kind, seed=seed + 1).model
        for kind in ("template", "lexical", "mixed", "lookup", "rotated", "joint")
    }
    equivalent = {
        "rotated residual stream": rotate_residual(full, seed=seed),
        "permuted heads": permute_heads(full, seed=seed),
        "split heads": split_heads(full, seed=seed),
        "doubled heads": duplicate_heads(full, seed=seed),
        "permuted neurons": permute_neurons(full, seed=seed),
        "a silent layer": insert_silent_layer(full, at=1, seed=seed),
    }
    return [
        *(Relative(name, made.model, SAME) for name, made in equivalent.items()),
        Relative("the same in other heads", other["template"], SAME),
        Relative("one state per verb", other["lexical"], NUMBERS | {"operation": set()}),
        Relative("a rule for one pair of verbs", other["mixed"], NUMBERS | {"operation": set()}),
        Relative("a table of answers", other["lookup"], {"operation": {"kept"}, "thing": {"kept"}}),
        Relative("one code per noun", other["rotated"], NUMBERS | {"operation": set()}),
        Relative("state at the answer", other["joint"], NUMBERS | {"operation": ANY - {"kept"}}),
        Relative("random weights", random_init(full, seed=seed + 50), ABSENT),
    ]


def judged_verdicts(seeds: int = 1, draws: int = 2) -> Iterator[JudgedVerdict]:
    """Compare, and judge the verdicts on variables and role paths of each relative."""
    for seed in range(seeds):
        tried = relatives(seed)
        full = planted_fox("template", seed=seed).model
        settings = ComparisonSettings(
            prompts=8,
            draws=draws,
            seed=seed,
            nulls=2,
            other_seed=planted_fox("template", seed=seed + 7).model,
            negative_controls=[],
        )
        named = [replace(one.model, name=one.name) for one in tried]
        family = compare_family(full, named, fox_pattern(), settings)
        for one in tried:
            for variable, allowed in one.allowed.items():
                label = family[one.name].verdict(variable).label
                wrong = label != "cannot tell" and label not in allowed
                yield JudgedVerdict(one.name, "variable", variable, label, wrong, seed)
            for verdict in family[one.name].verdicts:
                if verdict.kind == "path":
                    # All but these contradicts what is the same computation.
                    wrong = one.allowed is SAME and verdict.label not in _SAME_PATH
                    subject, known = verdict.subject or verdict.counterpart, one.allowed is SAME
                    yield JudgedVerdict(
                        one.name, "path", subject, verdict.label, wrong, seed, known
                    )


def main() -> None:
    """Print a row for each relative, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    set_num_threads(1)
    judged = list(judged_verdicts(options.seeds, options.draws))
    for seed, name in dict.fromkeys((one.seed, one.relative) for one in judged):
        own = [one for one in judged if (one.seed, one.relative) == (seed, name)]
        cells = [
            f"{one.subject} {one.label}{' (WRONG)' * one.wrong}"
            for one in own
            if one.kind == "variable"
        ]
        paths = Counter(one.label for one in own if one.kind == "path")
        cells.append("paths " + ", ".join(f"{n} {label}" for label, n in paths.items()))
        print(f"{name}: {', '.join(cells)}")
    known = [one for one in judged if one.known]
    decided = sum(one.label != "cannot tell" for one in known)
    wrong = sum(one.wrong for one in known)
    print(f"{len(known)} verdicts, {decided} decided, {wrong} wrong")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
