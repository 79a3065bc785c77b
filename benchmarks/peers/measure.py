"""What the peers' scripts share: the shapes, the tokens, and one measurement a process.

Runs inside the environment of each peer, so torch and the standard library are all it imports.
"""

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

STEPS = 5
JOBS = ("eap", "eap_ig", "circuit_all", "circuit_1pct")

Run = Callable[[], object]
# From a shape and a job to what is timed, set up before; None where the peer has no such thing.
Prepare = Callable[["Shape", str], Run | None]


@dataclass(frozen=True)
class Shape:
    """How large the random GPT-2 is, and how many prompts of how many tokens it reads."""

    layers: int
    width: int
    heads: int
    vocab: int
    prompts: int
    length: int = 24

    @property
    def edges(self) -> int:
        """How many wires run from embedding, heads and MLPs to q, k, v, MLPs and logits."""
        parts = self.heads + 1
        seen = range(1, 1 + self.layers * parts, parts)
        inside = sum(3 * self.heads * n + n + self.heads for n in seen)
        return inside + 1 + self.layers * parts


SHAPES = {
    "gpt2s": Shape(layers=12, width=768, heads=12, vocab=1000, prompts=8),
    "toy": Shape(layers=4, width=128, heads=8, vocab=256, prompts=64),
}


@dataclass(frozen=True)
class Cost:
    """CPU seconds, the median of the repeats, and by how many MB the peak of memory grew."""

    seconds: float
    growth: float
    repeats: int


@dataclass(frozen=True, eq=False)
class Tokens:
    """Prompts beside counterfactuals that differ at every position, and what is scored last."""

    clean: Tensor
    corrupt: Tensor
    answer: Tensor
    foil: Tensor


def tokens(shape: Shape) -> Tokens:
    """Draw the prompts: the same ones in every environment."""
    draw = torch.Generator().manual_seed(1)
    size = (shape.prompts, shape.length)
    clean = torch.randint(0, shape.vocab, size, generator=draw)
    other = torch.randint(1, shape.vocab, size, generator=draw)
    answer = torch.randint(0, shape.vocab, (shape.prompts,), generator=draw)
    foil = (answer + torch.randint(1, shape.vocab, (shape.prompts,), generator=draw)) % shape.vocab
    return Tokens(clean, (clean + other) % shape.vocab, answer, foil)


def cpu(run: Run) -> float:
    """Return the CPU seconds of one call, whatever it prints kept off the screen."""
    begin = time.process_time()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        run()
    return time.process_time() - begin


def measure(run: Run, repeats: int, patience: float = 60.0) -> Cost:
    """Take memory from a first call and time from the later ones, while patience lasts.

    A first call of more CPU seconds than the patience is timed itself, and not repeated.
    """
    before = _settle()
    first = cpu(run)
    growth = peak_memory() - before
    times: list[float] = []
    while len(times) < repeats and first + sum(times) < patience:
        times.append(cpu(run))
    times = times or [first]
    return Cost(median(times), growth, len(times))


def alone(command: Sequence[str], job: str, repeats: int) -> Cost | None:
    """Measure one job in a process of its own."""
    call = [*command, "--job", job, "--repeats", str(repeats)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job} failed: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found and Cost(**found)


def report(prepare: Prepare, *, prompts: int | None = None) -> None:
    """Be the command line of a peer's script: one JSON line of all jobs, each run alone.

    Args:
        prepare: Sets up one job.
        prompts: How many prompts are timed, where that is not all of them.
    """
    options = argparse.ArgumentParser()
    options.add_argument("--shape", choices=SHAPES, default="gpt2s")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--job", choices=JOBS, help="this one alone, in this very process")
    given = options.parse_args()
    shape = SHAPES[given.shape]
    if given.job:
        print(json.dumps(one(prepare, shape, given.job, given.repeats)))
        return
    command = [sys.executable, sys.argv[0], "--shape", given.shape]
    costs = {job: alone(command, job, given.repeats) for job in JOBS}
    found: dict[str, object] = {job: cost and cost.seconds for job, cost in costs.items()}
    found["growth_mb"] = {job: cost and cost.growth for job, cost in costs.items()}
    found["repeats"] = {job: cost and cost.repeats for job, cost in costs.items()}
    print(json.dumps(found | {"prompts": prompts or shape.prompts}))


def one(prepare: Prepare, shape: Shape, job: str, repeats: int) -> Mapping[str, float] | None:
    """Set up one job in this process, in one thread, and measure it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with redirect_stdout(StringIO()):
        run = prepare(shape, job)
    return run and asdict(measure(run, repeats))


def _settle() -> float:
    """Give free memory back and start the peak anew, where the system can; return it, in MB."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> float:
    """Return the peak of memory of this process, in MB."""
    # Not ru_maxrss where there is a choice: a child inherits that from the process that began it.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    units = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units
