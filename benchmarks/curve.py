"""The curve of `full` over its rounded, pruned and trained relatives: how long it takes.

Asked: ten relatives or more in ten minutes, on two cores without an accelerator, once they exist.
Run with `python benchmarks/curve.py [OUT]`; it prints seconds of processor time and of the clock.
"""

import sys
import time
from pathlib import Path

import torch

from probes.comparison.rate_distortion.measure import rate_distortion
from probes.compression.pruning.prune import prune
from probes.compression.quantization.quantize import quantize

SCHEMES = ("int8", "rtn-6", "int4", "nf4", "rtn-3", "int2")
SHARES = (0.3, 0.5, 0.8)
TRAINED = ("ticket", "distilled", "distilled-narrow", "scratch", "regrown")


def main() -> None:
    """Make the relatives, time the curve, and print its words."""
    torch.set_num_threads(1)
    relatives = [quantize("full", scheme) for scheme in SCHEMES]
    relatives += [prune("full", share) for share in SHARES]
    busy, clock = time.process_time(), time.perf_counter()
    found = rate_distortion("full", [*relatives, *TRAINED])
    busy, clock = time.process_time() - busy, time.perf_counter() - clock
    if len(sys.argv) > 1:
        Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
        found.save(sys.argv[1])
    columns = ["name", "kB", "kl", "right", "mechanism", "circuit", "word", "noise word"]
    print(found.table()[columns].round(4).to_string(index=False))
    print(f"{len(found.points)} relatives: {busy:.0f} CPU-s, {clock:.0f} s by the clock")


if __name__ == "__main__":
    main()
