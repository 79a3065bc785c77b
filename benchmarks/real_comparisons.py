"""Screens, nulls and comparisons of real models with their quantized relatives.

    python -m benchmarks.real_comparisons FOLDER [screen] [compare] [exact]
    python -m benchmarks.real_comparisons FOLDER compare --model qwen --pattern simple-take-away

FOLDER holds the models, as for `benchmarks.real_models`. "screen" holds attribution patching
against exact patching on random cells; "compare" compares a model with its int4 relative; "exact"
compares it without a screen, and counts the verdicts that agree. Beside random-init models
(`--exact-null random-init`) the exact comparison takes hours of CPU time.
"""

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from probes.comparison.compare import compare
from probes.comparison.result import Comparison
from probes.comparison.setup.references import ComparisonSettings
from probes.compression.quantization.quantize import quantize
from probes.interventions.attribution_patching import attribution_patching
from probes.interventions.screening.patching import ExactCells, screened_patching
from probes.models.model import Model, load
from probes.models.shared_weights import share_weights
from probes.prompts.catalog import pattern
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.stats.intervals import proportion


def screen_error(model: Model, on: str, *, pairs: int = 8, seed: int = 0) -> str:
    """Screened patching with 300 random cells and the 60 strongest patched exactly."""
    query = pattern(on)
    contrast = query.contrasts[0]
    drawn = sample_pairs(query, contrast, pairs, tokenizers=(model.tokenizer,), seed=seed)
    batch = tokenize_pairs(model.tokenizer, drawn, max_length=model.shape.context)
    times = [time.process_time()]
    attribution_patching(model, batch)
    times.append(time.process_time())
    check = screened_patching(model, batch, cells=ExactCells(60, 300, seed)).screen
    times.append(time.process_time())
    one, both = np.diff(times)
    return (
        f"{check}. One gradient {one:.1f} CPU-s, with two more screens and exact cells {both:.0f}."
    )


def save_quantized(source: Path, folder: Path) -> Path:
    """Write the int4 relative of a model, as `probes make quantized` does."""
    return quantize(source, "int4").save(folder / f"{source.name}-int4")


def compare_timed(
    models: tuple[Model, Model], on: str, settings: ComparisonSettings
) -> tuple[Comparison, float]:
    """Comparison of two models, and its CPU seconds."""
    start = time.process_time()
    found = compare(*models, on, settings)
    return found, time.process_time() - start


def agreement(screened: Comparison, exact: Comparison, top: int = 20) -> list[str]:
    """Equal verdicts, and the others: role paths, and the heads with the largest exact effects."""
    data = exact.plot_data[exact.full.name]
    strength = np.max([np.abs(np.nan_to_num(e)).max((1, 2)) for e in data.effects.values()], axis=0)
    heads = [data.components[k] for k in np.argsort(-strength) if ".H" in data.components[k]][:top]
    labels = [{(v.kind, v.subject): v.label for v in one.verdicts} for one in (screened, exact)]
    groups = {
        "role paths": [key for key in labels[1] if key[0] == "path"],
        f"{top} strongest heads": [("head", head) for head in heads],
        "all heads": [key for key in labels[1] if key[0] == "head"],
    }
    lines = []
    for name, keys in groups.items():
        pairs = {key[1]: (labels[0].get(key), labels[1][key]) for key in keys}
        differ = [f"{key}: {a} / {b}" for key, (a, b) in pairs.items() if a != b]
        equal = proportion(np.array([a == b for a, b in pairs.values()]))
        lines.append(f"{name}: {equal} of {len(keys)} as in the exact run. {'; '.join(differ)}")
    return lines


def main() -> None:
    """Print each measurement with CPU seconds and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", nargs="*", default=["screen", "compare"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pattern", default="ioi")
    parser.add_argument("--prompts", type=int, default=32, help="pairs of each contrast")
    parser.add_argument("--exact-null", choices=["permuted", "random-init"], default="permuted")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load(given.folder / given.model)
    if "screen" in given.jobs:
        print(screen_error(model, given.pattern))
    if {"compare", "exact"} & {*given.jobs}:
        with TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as other:
            # In a process of its own, whose memory is not that of the comparison.
            made = other.submit(save_quantized, given.folder / given.model, Path(folder)).result()
            models = (model, load(made))
        # As `compare` does with models that it loads itself.
        share_weights(models)
        settings = ComparisonSettings(prompts=given.prompts, screen="always", null="permuted")
        screened, seconds = compare_timed(models, given.pattern, settings)
        print(*screened.summary(), f"{seconds:.0f} CPU-s", sep="\n")
        if "exact" in given.jobs:
            settings = replace(settings, screen="never", null=given.exact_null)
            exact, seconds = compare_timed(models, given.pattern, settings)
            print(*agreement(screened, exact), f"exact: {seconds:.0f} CPU-s", sep="\n")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
