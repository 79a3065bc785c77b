"""Coverage of the kit's intervals, and stability of its verdicts on variables.

    python -m benchmarks.interval_coverage [--draws 100] [--repeats 5] [--page FILE]

Interchange accuracies of two shipped models are measured in many independent draws of prompts,
held-out words, folds and sites. Every five draws are pooled as `compare` pools them. Printed are
how often the interval of a single draw, and of five, contains the mean of the other draws, and how
stable the verdicts are. Draws are kept in a file, so that a run that is cut off goes on.
"""

import argparse
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import set_num_threads

from benchmarks import verdict_calibration
from benchmarks.verdict_calibration import Table, markdown
from probes.comparison.variables.donors import find_recipient, find_variable_sites
from probes.comparison.variables.draws import (
    MeasuredDraw,
    pool_sites,
    pool_transfers,
    settle_verdict,
    shared_roles,
)
from probes.comparison.variables.held_out_folds import sample_held_out_folds
from probes.comparison.variables.result import CrossModelTransfer
from probes.comparison.variables.transfer import evaluate_donor
from probes.comparison.variables.verdicts import variable_site, variable_verdict
from probes.comparison.verdict import Verdict
from probes.models.model import Model, load
from probes.observe.gate import gate
from probes.prompts.catalog import pattern
from probes.stats.intervals import Estimate, bootstrap_mean, pool_draws, proportion
from probes.stats.null_threshold import conformal_threshold, exceedance_rate

_POOLED = 5
_FIRST_SEED = 50_000
_BASES, _QUESTIONS = 150, 400
_SIMULATIONS = 1000


@dataclass(frozen=True)
class Draw:
    """One draw: transfers back into the full model, and measurements there, by variable."""

    back: dict[str, CrossModelTransfer]
    there: dict[str, MeasuredDraw]


@dataclass(frozen=True)
class Setting:
    """The two models, the gates of the relative, and the other-seed model's roles."""

    full: Model
    other: Model
    gates: Sequence
    roles: dict[str, frozenset[str]]

    @classmethod
    def of(cls, relative: str) -> "Setting":
        """Load the models and measure what all draws share."""
        full, other, seed_model = load("full"), load(relative), load("full-b")
        folds = _folds(full, _FIRST_SEED - 1)
        sites = find_variable_sites(seed_model, folds, seed=0)
        roles = {name: frozenset(site.role.split("+")) for name, site in sites.items()}
        return cls(full, other, gate(other, pattern("take-away"), seed=0), roles)

    def measure(self, seed: int) -> Draw:
        """Transfers in both directions and the verdict of one draw."""
        folds = _folds(self.full, seed)
        a, b = (find_recipient(model, folds, seed=seed) for model in (self.full, self.other))
        names = folds.variables
        there = evaluate_donor(b, a.self_donor, names, None, seed=seed)
        back = evaluate_donor(a, b.self_donor, names, None, seed=seed)
        measured = {}
        for name, transfer in zip(names, there, strict=True):
            sites = variable_site(a, name), variable_site(b, name)
            verdict = variable_verdict(
                *sites, transfer, self.gates, other_seed_roles=self.roles[name]
            )
            measured[name] = MeasuredDraw(seed, *sites, transfer, verdict)
        return Draw(dict(zip(names, back, strict=True)), measured)

    def verdict(self, draws: Sequence[MeasuredDraw]) -> Verdict:
        """Verdict by several draws, as `compare` gives it, but without random-init models."""
        same_roles = shared_roles(draws)
        transfer = pool_transfers([draw.transfer for draw in draws])
        pooled = variable_verdict(
            pool_sites([draw.full for draw in same_roles]),
            pool_sites([draw.other for draw in same_roles]),
            transfer,
            self.gates,
            other_seed_roles=self.roles[transfer.variable],
        )
        return settle_verdict(pooled, draws)


def _folds(model: Model, seed: int):  # noqa: ANN202
    return sample_held_out_folds(
        pattern("take-away"),
        tokenizers=(model.tokenizer,),
        bases=_BASES,
        prompts=_QUESTIONS,
        seed=seed,
    )


def measure_draws(setting: Setting, count: int, kept: Path) -> list[Draw]:
    """Measure draws, or read those that an earlier run kept."""
    draws: list[Draw] = pickle.loads(kept.read_bytes()) if kept.is_file() else []
    while len(draws) < count:
        draws.append(setting.measure(_FIRST_SEED + 17 * len(draws)))
        kept.write_bytes(pickle.dumps(draws))
        print(f"draw {len(draws)} of {count}", flush=True)
    return draws[:count]


def coverage_table(draws: Sequence[Draw]) -> tuple[Table, dict[str, list[list[bool]]]]:
    """Coverage of the mean of the other draws, by quantity, variable and direction."""
    rows, covered = [], {"one draw": [], "five draws": []}
    get: dict[str, Callable[[CrossModelTransfer], Estimate]] = {
        "interchange accuracy": lambda transfer: transfer.interchange_accuracy,
        "shortfall": lambda transfer: transfer.shortfall,
    }
    for what, value_of in get.items():
        for name in draws[0].there:
            for direction in ("into the relative", "into the full model"):
                estimates = [
                    value_of(draw.back[name] if "full" in direction else draw.there[name].transfer)
                    for draw in draws
                ]
                values = np.array([estimate.value for estimate in estimates])
                cells = []
                for label, size in (("one draw", 1), ("five draws", _POOLED)):
                    hits, widths = _coverage(estimates, values, size)
                    covered[label].append(hits)
                    cells += [f"{np.mean(hits):.2f}", f"{np.median(widths):.2f}"]
                mean, deviation = values.mean(), values.std(ddof=1)
                rows.append([what, name, direction, f"{mean:.2f}", f"{deviation:.2f}", *cells])
    return rows, covered


def _coverage(
    estimates: Sequence[Estimate], values: np.ndarray, size: int
) -> tuple[list[bool], list[float]]:
    hits, widths = [], []
    for start in range(0, len(estimates) - size + 1, size):
        pooled = pool_draws(estimates[start : start + size])
        others = np.delete(values, slice(start, start + size)).mean()
        hits.append(bool(pooled.low <= others <= pooled.high))
        widths.append(pooled.high - pooled.low)
    return hits, widths


def stability_table(setting: Setting, draws: Sequence[Draw]) -> Table:
    """Verdicts of single draws and of five draws together, by variable."""
    rows = []
    for name in draws[0].there:
        measured = [draw.there[name] for draw in draws]
        single = Counter(draw.verdict.label for draw in measured)
        groups = [measured[k : k + _POOLED] for k in range(0, len(measured), _POOLED)]
        pooled = Counter(setting.verdict(group).label for group in groups)
        rows.append([name, *(_counts(labels) for labels in (single, pooled))])
        rows[-1].append(f"{max(pooled.values()) / pooled.total():.2f}")
    return rows


def _counts(labels: Counter[str]) -> str:
    return ", ".join(f"{label} {count}" for label, count in labels.most_common())


def simulated_table() -> Table:
    """Coverage of the intervals of a mean and of a proportion on simulated prompts."""
    rng = np.random.default_rng(0)
    samplers: dict[str, tuple[Callable[[int], np.ndarray], float]] = {
        "normal": (lambda n: rng.normal(1, 1, n), 1.0),
        "heavy tails (t, 3 degrees)": (lambda n: rng.standard_t(3, n), 0.0),
        "lognormal": (lambda n: rng.lognormal(0, 1, n), float(np.exp(0.5))),
        "one prompt in 20 has an effect": (
            lambda n: (rng.random(n) < 0.05) * rng.normal(5, 1, n),
            0.25,
        ),
    }
    rows = [
        [name, *(f"{_mean_coverage(sample, mean, n):.2f}" for n in (8, 16, 32, 64))]
        for name, (sample, mean) in samplers.items()
    ]
    for rate in (0.5, 0.9, 0.99):
        cells = []
        for n in (8, 16, 32, 64):
            found = [proportion(rng.random(n) < rate) for _ in range(_SIMULATIONS)]
            cells.append(f"{np.mean([e.low <= rate <= e.high for e in found]):.2f}")
        rows.append([f"proportion of {rate} (Wilson)", *cells])
    return rows


def _mean_coverage(sample: Callable[[int], np.ndarray], mean: float, n: int) -> float:
    found = [bootstrap_mean(sample(n), seed=0) for _ in range(_SIMULATIONS)]
    return float(np.mean([estimate.low <= mean <= estimate.high for estimate in found]))


def null_table() -> Table:
    """How often a further random-init model exceeds the threshold of n of them."""
    rng, rows = np.random.default_rng(0), []
    for n in (5, 10, 20, 40):
        draws = rng.normal(size=(n + 1, 20_000))
        percentile = (draws[-1] > np.quantile(draws[:-1], 0.95, axis=0)).mean()
        threshold = (draws[-1] > conformal_threshold(draws[:-1])).mean()
        rows.append([str(n), f"{exceedance_rate(n):.3f}", f"{threshold:.3f}", f"{percentile:.3f}"])
    return rows


def page(setting: Setting, draws: Sequence[Draw], repeats: int, *, measure: bool = True) -> str:
    """The page docs/calibration.md."""
    rows, covered = coverage_table(draws)
    # The cells of one draw share its prompts: the mean over cells is one value for each draw.
    one, five = (
        bootstrap_mean(np.mean(covered[label], axis=0), seed=0, bounds=(0, 1))
        for label in ("one draw", "five draws")
    )
    accuracy = ("quantity", "variable", "direction", "mean", "deviation between draws",
                "one draw: coverage", "width", "five draws: coverage", "width")  # fmt: skip
    groups = len(draws) // _POOLED
    return (
        "\n\n".join(
            [
                "# Calibration",
                "How often the intervals contain what they estimate, how stable the verdicts are, "
                "and how many prompts they take. How verdicts are made: "
                "[method](method.md#verdicts). "
                f"Written by `python -m benchmarks.interval_coverage --draws {len(draws)} "
                f"--repeats {repeats}{'' if measure else ' --as-kept'} "
                "--page docs/calibration.md`.",
                "## Interchange accuracy, over draws of prompts and words",
                f"`full` and `{setting.other.name}` on `take-away`, {len(draws)} independent "
                "draws of prompts, held-out words, folds and sites (n = 1 model each). An "
                "interval covers if it contains the mean of all other draws. One draw: the "
                f"interval over its own prompts. Five draws: what `compare` reports ({groups} "
                f"groups). The intervals of five draws cover in {five} of the cases; those of one "
                f"draw in {one}. Random-init models are not run here.",
                markdown(accuracy, rows),
                "## Verdicts on variables",
                "Number of draws, and of groups of five draws, with each verdict; stability is the "
                "fraction of groups with the most frequent one.",
                markdown(
                    ("variable", "single draws", "five draws", "stability"),
                    stability_table(setting, draws),
                ),
                *verdict_calibration.sections(repeats=repeats, measure=measure),
                "## Means and proportions of few prompts",
                f"Coverage of the 95 % interval in {_SIMULATIONS} simulated samples, by number of "
                "prompts. Means: the union of bootstrap-t and Student's t. No interval covers a "
                "mean that rests on events which the prompts do not show: with one prompt in 20, "
                "take more than 64 prompts.",
                markdown(("values", "8", "16", "32", "64"), simulated_table()),
                "## Thresholds of a null",
                "Fraction of further random-init models above the threshold of n of them: stated, "
                "simulated, and simulated for the 95th percentile, which the kit does not use.",
                markdown(("n", "stated", "simulated", "95th percentile"), null_table()),
            ]
        )
        + "\n"
    )


def main() -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--relative", default="distilled")
    parser.add_argument("--kept", type=Path, help="file of draws; default: one for each relative")
    parser.add_argument("--repeats", type=int, default=verdict_calibration.REPEATS)
    parser.add_argument("--as-kept", action="store_true", help="verdicts of earlier runs only")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    set_num_threads(1)
    kept = options.kept or Path(f"runs/interval_coverage-{options.relative}.pickle")
    kept.parent.mkdir(parents=True, exist_ok=True)
    setting = Setting.of(options.relative)
    draws = measure_draws(setting, options.draws, kept)
    text = page(setting, draws, options.repeats, measure=not options.as_kept)
    if options.page:
        options.page.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
