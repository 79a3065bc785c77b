"""Heads of random-init models by attribution patching and by exact patching: does the null differ?

    python -m benchmarks.null_heads [SHAPE] [--nulls 20] [--seeds 0 1]

For each seed of the prompts, random-init models of the shape of SHAPE are matched with the heads of
`full`, as `probes compare` does. Printed are the best match of a model (mean and standard deviation
over models), the threshold, and CPU seconds of a model.
"""

import argparse
import time

import numpy as np
import torch

from probes.comparison.heads.matching import family_wise_threshold, pair_heads
from probes.comparison.heads.profiles import HeadProfiles, profile_heads
from probes.comparison.setup.prompts import sample_comparison_prompts, tokenize_contrasts
from probes.comparison.setup.references import ComparisonSettings
from probes.interventions.screening.patching import ExactCells
from probes.models.model import load, random_init
from probes.prompts.catalog import pattern
from probes.prompts.tokens.once import tokenize_once

WAYS = {"exact": None, "attribution": ExactCells(0, 0)}


def measure(shape: str, nulls: int, seed: int) -> None:
    """Print what both ways give on the prompts of one seed."""
    full, relative = load("full"), load(shape)
    settings = ComparisonSettings(draws=1, seed=seed)
    prompts = sample_comparison_prompts(pattern("take-away"), [full, relative], settings)
    own, _ = profile_heads(full, tokenize_contrasts(full, prompts.pairs), prompts.roles)
    pairs = tokenize_contrasts(relative, prompts.pairs)
    for way, screen in WAYS.items():
        profiles, began = list[HeadProfiles](), time.process_time()
        for number in range(nulls):
            model = random_init(relative, seed=1000 * seed + number)
            profiles.append(profile_heads(model, pairs, prompts.roles, screen=screen)[0])
        seconds = (time.process_time() - began) / nulls
        scores = np.stack([pair_heads(own, profile).scores for profile in profiles])
        best = np.nanmax(scores, 1)
        print(
            f"{shape}, prompts of seed {seed}, {way}: best match {best.mean():.3f} (SD "
            f"{best.std():.3f}), threshold {family_wise_threshold(scores):.3f}, {seconds:.2f} "
            "CPU-s a model"
        )


def main() -> None:
    """Run all seeds on one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="distilled")
    parser.add_argument("--nulls", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tokenize_once():
        for seed in given.seeds:
            measure(given.shape, given.nulls, seed)


if __name__ == "__main__":
    main()
