"""Run the main job as a user does, and print its time, memory and page size.

    python benchmarks/main_job.py [FULL OTHER]

To show that it needs no network, start it without one: `unshare -n python benchmarks/main_job.py`.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Time one comparison, from the start of the process to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["full", "distilled"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        command = [str(Path(sys.executable).parent / "probes"), "compare", *given.models]
        start = time.perf_counter()
        subprocess.run([*command, "--out", str(page)], check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"wall {wall:.1f} s, CPU {used.ru_utime + used.ru_stime:.1f} s, ", end="")
        print(f"peak memory {used.ru_maxrss / 2**20:.2f} GB, ", end="")
        print(f"page {page.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
