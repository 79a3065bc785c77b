"""Are relatives told apart from nets that merely look like them? Ours beside the published score.

Each net is put into the full model, gate or no gate: how much do its states turn the full model's
answers, for words that no map has seen? Beside it the alignment score of Haskins & Adams 2025
(2505.10822), for nets of the same shapes. More models may be named, such as those that
`probes make series` leaves behind.

    python -m benchmarks.separation [--folder runs/work] [--nulls 20] [--out separation.csv]
"""

import argparse
import csv
from pathlib import Path

import torch

import probes as pb
from probes.comparison.variables.donors import ModelDonor, find_recipient
from probes.comparison.variables.held_out_folds import sample_held_out_folds
from probes.comparison.variables.transfer import donor_hits
from probes.experiments.distilled_circuits.score import ScoreSettings, distilled_circuits_score
from probes.models.model import Model
from probes.stats.auroc import group_auroc

RELATIVES = ("full-b", "distilled", "distilled-narrow", "scratch")
STRANGERS = ("copying", "permuted")


def main() -> None:
    """Print the scores, and how well either measure tells the groups apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="Where more models are.")
    parser.add_argument("--nulls", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    full, pattern = pb.load("full"), pb.pattern("take-away")
    trials = sample_held_out_folds(pattern, tokenizers=(full.tokenizer,), bases=200, prompts=400)
    recipient = find_recipient(full, trials)
    rows = []
    for kind, model in models(args.folder, args.nulls):
        (hits,) = donor_hits(recipient, [ModelDonor(model, trials)]).values()
        shares = {variable: float(hit.mean()) for variable, hit in hits.items()}
        mean_interchange_accuracy = sum(shares.values()) / len(shares)
        rows.append(
            {"model": model.name, "kind": kind, "kinship": mean_interchange_accuracy, **shares}
        )
        print(
            kind,
            model.name,
            {k: f"{v:.2f}" for k, v in rows[-1].items() if k not in ("model", "kind")},
        )
    settings = ScoreSettings(nulls=args.nulls)
    published = distilled_circuits_score(full, pb.load("distilled"), pattern, settings)
    print("\nPublished score:", *published.summary(), sep="\n- ")
    report(rows, trials.variables)
    if args.out:
        with args.out.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(
                {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()}
                for row in rows
            )


def models(folder: Path | None, nulls: int) -> list[tuple[str, Model]]:
    """Return relatives, strangers and untrained nets of the relatives' shapes."""
    found = [("relative", pb.load(name)) for name in RELATIVES]
    found += [(name, pb.load(name)) for name in STRANGERS]
    for place in sorted(folder.glob("*/config.json")) if folder else ():
        model = pb.load(place.parent)
        kind = model.name.rsplit("-", 1)[0]
        if model.tokenizer is not None and kind in (*RELATIVES, *STRANGERS):
            found.append((kind if kind in STRANGERS else "relative", model))
    shapes = [model for kind, model in found[: len(RELATIVES)]]
    for number in range(nulls):
        like = shapes[number % len(shapes)]
        found.append(("random-init", pb.random_init(like, seed=number)))
    return found


def report(rows: list[dict], variables: tuple[str, ...]) -> None:
    """Print the separation of relatives from each kind of net, by each measure."""
    related = [row for row in rows if row["kind"] == "relative"]
    for kind in ("random-init", *STRANGERS):
        others = [row for row in rows if row["kind"] == kind]
        print(f"\nrelatives (n = {len(related)}) against {kind} (n = {len(others)})")
        for measure in ("kinship", *variables):
            found = group_auroc([row[measure] for row in related], [row[measure] for row in others])
            print(f"  {measure}: {found.summary()}")


if __name__ == "__main__":
    main()
