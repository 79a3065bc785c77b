"""Odd inputs that people have: each gives the right value, or one clear line of an error.

    python -m benchmarks.faults.odd_inputs [AREA ...] [--verbose]

Prints how many were tried and what came of them. Exits with code 1 if an error is vague, a value is
wrong, or anything crashes.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.faults.trial import Judgment, judge

AREAS = ("prompts", "patterns", "models", "results", "interventions", "command_line")
FAULTS = ("vague", "wrong", "crash")


def main() -> None:
    """Try the inputs of some areas, and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("areas", nargs="*", default=AREAS, metavar="AREA", help=" ".join(AREAS))
    parser.add_argument("--verbose", action="store_true", help="Print every message.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    outcomes: Counter[str] = Counter()
    for area in given.areas:
        start = time.process_time()
        judged = try_area(area)
        counts = Counter(one.outcome for one in judged)
        print(f"{area}: {describe(counts)} ({time.process_time() - start:.1f} CPU-s)", flush=True)
        for one in judged:
            if given.verbose or one.outcome in FAULTS:
                print(f"  {one.outcome}: {one.name}: {one.detail}", flush=True)
        outcomes += counts
    print(describe(outcomes))
    sys.exit(any(outcomes[word] for word in FAULTS))


def try_area(area: str) -> list[Judgment]:
    """Try each input of an area in a folder of its own, which is the working directory."""
    here, judged = Path.cwd(), []
    for odd in import_module(f"benchmarks.faults.{area}").inputs():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                judged.append(judge(odd, Path(folder)))
            finally:
                os.chdir(here)
    return judged


def describe(outcomes: Counter[str]) -> str:
    """Counts in one line."""
    words = ("right", "clear", "vague", "wrong", "crash")
    return f"{outcomes.total()} tried: " + ", ".join(f"{outcomes[word]} {word}" for word in words)


if __name__ == "__main__":
    main()
