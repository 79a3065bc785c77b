"""Kill commands at random moments: nothing half-made is left, and resumed work ends the same.

    python -m benchmarks.faults.kills [--times 10] [--signal KILL|INT|TERM]
        [--commands distilled quantized compare trace study]

Each command runs once whole. Then it is stopped at random moments of its run, and after each stop
every listed model must load and have its recorded hashes, every unit of the store must have its
own, and every file of results and every table must be whole. A command that was stopped is started
again in the same folder; once it ends, its folder is compared with that of the whole run, byte by
byte, and it begins anew.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from probes.errors import ProbeError
from probes.experiments.studies.tables import read_study
from probes.files import TableRow, data_folder, write_rows
from probes.models.files.provenance import changed_files
from probes.models.model import load
from probes.prompts.catalog import pattern
from probes.prompts.question import Pair
from probes.result import load_result
from probes.scale.store import Store

ROOT = Path(__file__).resolve().parents[2]
_QUICK = ("--steps", "6", "--batch", "2", "--texts", "texts.txt")
COMMANDS = {
    "distilled": ("make", "distilled", "scratch", *_QUICK, "--name", "mine"),
    "quantized": ("make", "quantized", "scratch", "--scheme", "rtn-3", "--name", "mine"),
    # A pairs file has no variables to measure, which would take most of the time.
    "compare": (
        *("compare", "scratch", "distilled", "--draws", "1", "--prompts", "4", "--seed", "0"),
        *("--pattern", "pairs.jsonl", "--out", "c.html", "--json", "c.json"),
    ),
    "trace": (
        *("trace", "scratch", "--prompts", "8", "--pattern", "take-away"),
        *("--out", "t.html", "--json", "t.json"),
    ),
    # The table lacks two rows, and the parent is as small as the models of these rows.
    "study": ("study", "growing", "--folder", "family"),
}
_STUDY = "growing"
_UNMEASURED = ("distilled", "scratch")
_STOP_SECONDS = 120  # After which a command that was asked to stop hangs.
_INTERRUPTED = 130  # Exit code after SIGINT.
_MODELS = {"full": "scratch", "distilled": "distilled", "scratch": "scratch"}


@dataclass
class Count:
    """What came of the kills of one command."""

    kills: int = 0
    finished: int = 0
    wrong: int = 0


def start(words: tuple[str, ...], folder: Path) -> subprocess.Popen:
    """Start a command in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-m", "probes", *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env=environment, **quiet)


def new_folder(parent: Path, name: str) -> Path:
    """Folder with training texts, pairs, models and a table, and nothing made of them."""
    folder = parent / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "runs").mkdir(parents=True)
    (folder / "family").mkdir()
    (folder / "texts.txt").write_text("I have two foxes.\nThe cat has a hat.\n")
    pairs = pattern("take-away").sample_pairs("operation", 4, seed=0)
    (folder / "pairs.jsonl").write_text("".join(map(_pair_line, pairs)))
    for name, source in _MODELS.items():
        (folder / "family" / name).symlink_to(data_folder() / "models" / source)
    write_rows(_known_rows(), folder / "runs" / f"{_STUDY}.csv")
    return folder


def _known_rows() -> list[TableRow]:
    return [row for row in read_study(_STUDY) if row["model"] not in _UNMEASURED]


def _pair_line(pair: Pair) -> str:
    texts = {"clean": pair.clean.text, "counterfactual": pair.counterfactual.text}
    answers = (dict(side.answers)["number"] for side in (pair.clean, pair.counterfactual))
    line = texts | dict(zip(("answer", "counterfactual_answer"), answers, strict=True))
    return json.dumps(line) + "\n"


def made(folder: Path) -> dict[str, bytes]:
    """Bytes of the models and numbers that a command has made."""
    models = folder / "runs" / "relatives"
    results = (p for ends in ("*.json", "*.html", "runs/*.csv") for p in folder.glob(ends))
    paths = [*models.glob("[!.]*/*"), *results]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def faults(folder: Path) -> list[str]:
    """What is half-made in a folder: nothing, if all is right."""
    found = []
    for model in (folder / "runs" / "relatives").glob("[!.]*/config.json"):
        try:
            load(model.parent)
            changed = changed_files(model.parent)
            if changed is None:
                found.append(f"{model.parent} records no hashes")
            found += [f"{name} has another hash" for name in changed or ()]
        except ProbeError as error:
            found.append(str(error))
    if (folder / "runs" / "ledger.sqlite").is_file():
        broken = Store(folder / "runs").broken()
        found += [f"the unit {unit.label} of the store is broken" for unit in broken]
    for path in folder.glob("*.json"):
        try:
            load_result(path)
        except ProbeError as error:
            found.append(str(error))
    found += [str(p) for p in folder.glob("*.html") if not p.read_bytes().rstrip().endswith(b">")]
    for path in folder.glob("runs/*.csv"):
        text = path.read_text()
        rows = list(csv.reader(text.splitlines()))
        uneven = len({len(row) for row in rows}) > 1
        if uneven or len(rows) <= len(_known_rows()) or not text.endswith("\n"):
            found.append(f"{path} is not whole")
    for path in folder.glob("runs/work/**/checkpoint-*/trainer_state.json"):
        with suppress(FileNotFoundError):
            json.loads(path.read_text())
    return found


def stop_at_random(name: str, times: int, place: Path, stop: signal.Signals) -> Count:
    """Stop a command some times, and compare what its runs have made."""
    words, count, moments = COMMANDS[name], Count(), random.Random(name)
    whole = new_folder(place, f"{name}-whole")
    begun = time.monotonic()
    if start(words, whole).wait():
        raise SystemExit(f"{name} fails without a kill")
    seconds, expected = time.monotonic() - begun, made(whole)
    folder, kills_of_run = new_folder(place, name), 0
    while count.kills < times:
        process = start(words, folder)
        # A run that is killed often must still end: its last start has all the time it needs.
        limit = moments.uniform(0, 1.1) * seconds if kills_of_run < 4 else None
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit)
        if process.poll() is None:
            process.send_signal(stop)
            process.wait(_STOP_SECONDS)
            count.kills, kills_of_run = count.kills + 1, kills_of_run + 1
        for fault in faults(folder):
            count.wrong += 1
            print(f"  {name}, after kill {count.kills}: {fault}", flush=True)
        if process.returncode not in (-stop, _INTERRUPTED):
            count.finished += 1
            if made(folder) != expected:
                count.wrong += 1
                print(f"  {name}: other bytes after {kills_of_run} kills", flush=True)
            folder, kills_of_run = new_folder(place, name), 0
            print(f"  {name}: {count.kills} kills so far, {count.wrong} wrong", flush=True)
    return count


def main() -> None:
    """Kill each command, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="Kills of each command.")
    parser.add_argument("--commands", nargs="*", default=[*COMMANDS], choices=[*COMMANDS])
    parser.add_argument("--signal", default="KILL", choices=["KILL", "INT", "TERM"])
    given = parser.parse_args()
    stop = signal.Signals[f"SIG{given.signal}"]
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for name in given.commands:
            count = stop_at_random(name, given.times, Path(place), stop)
            wrong += count.wrong
            print(
                f"{name}: {count.kills} times {stop.name}, {count.finished} runs ended, "
                f"{count.wrong} wrong",
                flush=True,
            )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
