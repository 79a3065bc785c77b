"""Commands that `kills` stops: what they are, their folders, and their processes."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from probes.experiments.studies.tables import read_study
from probes.files import TableRow, data_folder, write_rows
from probes.prompts.catalog import pattern
from probes.prompts.question import Pair

ROOT = Path(__file__).resolve().parents[2]
_QUICK = ("--steps", "510", "--batch", "2", "--texts", "texts.txt")
COMMANDS = {
    # A checkpoint is written after 500 steps.
    "distilled": ("make", "distilled", "scratch", *_QUICK, "--name", "mine"),
    "quantized": ("make", "quantized", "scratch", "--scheme", "rtn-3", "--name", "mine"),
    # A pairs file has no variables to measure, which would take most of the time.
    "compare": (
        *("compare", "scratch", "distilled", "--draws", "1", "--prompts", "4", "--seed", "0"),
        *("--pattern", "pairs.jsonl", "--out", "c.html", "--json", "c.json"),
    ),
    "trace": (
        *("trace", "scratch", "--prompts", "4", "--pattern", "take-away"),
        *("--out", "t.html", "--json", "t.json"),
    ),
    # The table lacks two rows, and the parent is as small as the models of these rows.
    "study": ("study", "growing", "--folder", "family"),
}
LOG = Path(tempfile.gettempdir()) / f"kills-{os.getpid()}.stderr"
"""Stderr of the command that runs; not in its folder, whose disk may be full."""

ON_ENGINES = ("compare", "trace", "study")
WORKERS = 2
_WORKERS = ("ray::_Actor", "process_engine")  # In the command lines of workers.
_STUDY = "growing"
_UNMEASURED = ("distilled", "scratch")
_MODELS = {"full": "scratch", "distilled": "distilled", "scratch": "scratch"}
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
_PRELOADED = (
    *("probes.comparison.compare", "probes.circuits.trace", "probes.viz.reports.comparison"),
    *("probes.compression.distillation.distill", "probes.experiments.studies.registry"),
)


def command(name: str, engine: str) -> tuple[str, ...]:
    """Words of a command on an engine."""
    words = COMMANDS[name]
    if engine != "inprocess":
        words += ("--engine", engine, "--workers", str(WORKERS))
    return words


@dataclass
class Started:
    """A command that runs, as the leader of a process group.

    Attributes:
        pid: Its process.
        log: File of its stderr.
        process: What waits for it.
    """

    pid: int
    log: Path
    process: subprocess.Popen | BaseProcess
    _others: list[psutil.Process] = field(default_factory=list)

    def wait(self, seconds: float | None) -> int | None:
        """Exit code; None if it still runs after so many seconds."""
        if isinstance(self.process, subprocess.Popen):
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(seconds)
            return None
        self.process.join(seconds)
        return self.process.exitcode

    def is_listening(self) -> bool:
        """Whether the command has its own handler of SIGTERM, so that it can say a last line."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
        return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal: Ctrl-C to the whole group, as terminals do, all others to the command."""
        with suppress(psutil.NoSuchProcess):
            self._others = psutil.Process(self.pid).children(recursive=True)
        with suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGINT else os.kill)(self.pid, number)

    def outliving(self, seconds: float) -> list[str]:
        """Names of its processes that still run so long after it was stopped."""
        return [
            one.name() for one in psutil.wait_procs(self._others, seconds)[1] if one.is_running()
        ]

    def workers(self) -> list[psutil.Process]:
        """Workers that run units of the command."""
        found = []
        with suppress(psutil.Error):
            for one in psutil.Process(self.pid).children(recursive=True):
                with suppress(psutil.Error):
                    words = " ".join(one.cmdline())
                    if any(name in words for name in _WORKERS):
                        found.append(one)
        return found

    def last_line(self) -> str:
        """Last line of its stderr."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def start(words: Sequence[str], folder: Path, *, fork: bool = False) -> Started:
    """Start a command in a folder; `fork`: from a process that has loaded the libraries."""
    log = LOG
    log.unlink(missing_ok=True)
    os.environ.update(_ENVIRONMENT)
    if fork:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, *_PRELOADED])
        process = context.Process(target=_run, args=(tuple(words), folder, log))
        process.start()
        while not log.is_file() and process.exitcode is None:
            time.sleep(0.01)
        return Started(process.pid or 0, log, process)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "probes", *words],
            cwd=folder,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    return Started(process.pid, log, process)


def _run(words: tuple[str, ...], folder: Path, log: Path) -> None:
    """Become the command."""
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    draft = log.with_suffix(".draft")
    os.dup2(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    draft.replace(log)
    sys.argv = ["probes", *words]
    from probes.__main__ import main

    main()


def new_folder(parent: Path, name: str) -> Path:
    """Folder with training texts, pairs, models and a table, and nothing made of them."""
    folder = parent / name
    shutil.rmtree(folder, ignore_errors=True)
    fill_folder(folder)
    return folder


def fill_folder(folder: Path) -> None:
    """Write what the commands read."""
    (folder / "runs").mkdir(parents=True)
    (folder / "family").mkdir()
    (folder / "texts.txt").write_text("I have two foxes.\nThe cat has a hat.\n")
    pairs = pattern("take-away").sample_pairs("operation", 4, seed=0)
    (folder / "pairs.jsonl").write_text("".join(map(_pair_line, pairs)))
    for name, source in _MODELS.items():
        (folder / "family" / name).symlink_to(data_folder() / "models" / source)
    write_rows(known_rows(), folder / "runs" / f"{_STUDY}.csv")


def known_rows() -> list[TableRow]:
    """Rows of the study's table that are there before the command begins."""
    return [row for row in read_study(_STUDY) if row["model"] not in _UNMEASURED]


def _pair_line(pair: Pair) -> str:
    texts = {"clean": pair.clean.text, "counterfactual": pair.counterfactual.text}
    answers = (dict(side.answers)["number"] for side in (pair.clean, pair.counterfactual))
    line = texts | dict(zip(("answer", "counterfactual_answer"), answers, strict=True))
    return json.dumps(line) + "\n"
