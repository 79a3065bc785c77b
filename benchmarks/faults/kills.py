"""Kill commands at random moments: nothing half-made is left, and resumed work ends the same.

    python -m benchmarks.faults.kills [--times 10] [--commands distilled quantized compare study]

Each command runs once whole. Then it is killed (SIGKILL) at random moments of its run, and after
each kill every listed model must load and have its recorded hashes, and every file of results must
be whole. A command that was killed is started again where it stopped, in the same folder; once it
ends, its folder is compared with that of the whole run, byte by byte, and it begins anew.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from probes.errors import ProbeError
from probes.models.files.provenance import changed_files
from probes.models.model import load
from probes.result import load_result

ROOT = Path(__file__).resolve().parents[2]
_QUICK = ("--steps", "6", "--batch", "2", "--texts", "texts.txt")
COMMANDS = {
    "distilled": ("make", "distilled", "scratch", *_QUICK, "--name", "mine"),
    "quantized": ("make", "quantized", "scratch", "--scheme", "rtn-3", "--name", "mine"),
    "compare": (
        *("compare", "scratch", "distilled", "--prompts", "4", "--seed", "0"),
        *("--out", "c.html", "--json", "c.json"),
    ),
    # As a study does: several models, one after the other, each in its own folder.
    "study": ("make", "ticket", "full", "--rounds", "2", *_QUICK, "--name", "mine"),
}


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
    """Empty folder with the texts of training."""
    folder = parent / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "texts.txt").write_text("I have two foxes.\nThe cat has a hat.\n")
    return folder


def made(folder: Path) -> dict[str, bytes]:
    """Bytes of the models and numbers that a command has made."""
    models = folder / "runs" / "relatives"
    paths = [*models.glob("[!.]*/*"), *folder.glob("*.json"), *folder.glob("*.html")]
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
    for path in folder.glob("*.json"):
        try:
            load_result(path)
        except ProbeError as error:
            found.append(str(error))
    found += [str(p) for p in folder.glob("*.html") if not p.read_bytes().rstrip().endswith(b">")]
    for path in folder.glob("runs/work/**/checkpoint-*/trainer_state.json"):
        with suppress(FileNotFoundError):
            json.loads(path.read_text())
    return found


def kill_at_random(name: str, times: int, place: Path) -> Count:
    """Kill a command some times, and compare what its runs have made."""
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
            process.kill()
            process.wait()
            count.kills, kills_of_run = count.kills + 1, kills_of_run + 1
        for fault in faults(folder):
            count.wrong += 1
            print(f"  {name}, after kill {count.kills}: {fault}", flush=True)
        if process.returncode >= 0:
            count.finished += 1
            if made(folder) != expected:
                count.wrong += 1
                print(f"  {name}: other bytes after {kills_of_run} kills", flush=True)
            folder, kills_of_run = new_folder(place, name), 0
    return count


def main() -> None:
    """Kill each command, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="Kills of each command.")
    parser.add_argument("--commands", nargs="*", default=[*COMMANDS], choices=[*COMMANDS])
    given = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for name in given.commands:
            count = kill_at_random(name, given.times, Path(place))
            wrong += count.wrong
            print(
                f"{name}: {count.kills} kills, {count.finished} runs ended, {count.wrong} wrong",
                flush=True,
            )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
