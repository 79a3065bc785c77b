"""Stop commands at random moments: nothing half-made is left, and resumed work ends the same.

    python -m benchmarks.faults.kills [--times 10] [--signal KILL|INT|TERM] [--engine processes|ray]
        [--victim worker] [--trial full-disk|flipped-bit] [--fork]
        [--commands distilled quantized compare trace study]

Each command runs once whole. Then it is stopped at random moments of its run, and after each stop
every listed model must load and have its recorded hashes, every unit of the store must have its
own, and every file of results and every table must be whole. What was noted as finished before a
stop, units and rows, must be there unchanged after the rerun: at most the units in work are
measured again. After INT and TERM the last line must say what is kept and how to go on. A command
that was stopped is started again in the same folder; once it ends, its folder is compared with
that of the whole run, byte by byte, and it begins anew.

With `--victim worker` a random worker of the engine is killed, and the command must end as if
nothing had been. `--trial full-disk` runs on a disk in memory that becomes full; `--trial
flipped-bit` changes a bit of a stored unit. `--fork` starts commands from a process that has loaded
the libraries, so that more kills fall into the work.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.faults.disk_and_bits import NoDiskError, fill_disk, flip_bits
from benchmarks.faults.kept import Kept, faults, kept, made
from benchmarks.faults.killed_commands import (
    COMMANDS,
    LOG,
    ON_ENGINES,
    Started,
    command,
    new_folder,
    start,
)

_STOP_SECONDS = 120  # After which a command that was asked to stop hangs.
_HANG_SECONDS = 900
_OUTLIVING_SECONDS = 120  # Agents of Ray notice after a minute that their node is gone.
_MOST_KILLS = 4  # Of one run: its last start has all the time it needs.
_INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
_EXISTS = "exists: choose another name"
_LAST_LINE = re.compile(r"(Interrupted|Terminated)\. .* kept.*: give the same command again to ")


@dataclass(frozen=True)
class Trial:
    """How a command is stopped.

    Attributes:
        name: Command.
        times: Kills.
        stop: Signal.
        engine: Engine that runs its units.
        fork: Whether it starts from a process that has loaded the libraries.
    """

    name: str
    times: int
    stop: signal.Signals
    engine: str
    fork: bool

    @property
    def words(self) -> tuple[str, ...]:
        """The command line."""
        return command(self.name, self.engine)


@dataclass
class Count:
    """What came of the kills of one command."""

    kills: int = 0
    finished: int = 0
    wrong: int = 0
    late: int = 0
    acknowledged: int = 0

    def note(self, name: str, found: list[str]) -> None:
        """Count and print faults."""
        self.wrong += len(found)
        for fault in found:
            print(f"  {name}, after kill {self.kills}: {fault}", flush=True)

    def line(self, name: str, what: str) -> str:
        """Summary."""
        return (
            f"{name}: {self.kills} times {what}, {self.late} times too late, "
            f"{self.finished} runs ended, "
            f"{self.acknowledged} finished units and rows found again, {self.wrong} wrong"
        )


def run_whole(trial: Trial, place: Path) -> tuple[float, dict[str, bytes]]:
    """Seconds and results of a run that nothing stops."""
    whole = new_folder(place, f"{trial.name}-whole")
    seconds = 0.0
    for _ in range(2 if trial.fork else 1):  # The first fork loads the libraries.
        whole, begun = new_folder(place, f"{trial.name}-whole"), time.monotonic()
        process = start(trial.words, whole, fork=trial.fork)
        if process.wait(None):
            raise SystemExit(f"{trial.name} fails without a kill: {process.last_line()}")
        seconds = time.monotonic() - begun
    print(f"  {trial.name}: a whole run takes {seconds:.1f} s", flush=True)
    return seconds, made(whole)


def stop_at_random(trial: Trial, place: Path) -> Count:
    """Stop a command some times, and compare what its runs have made."""
    count, moments = Count(), random.Random(f"{trial.name} {trial.stop.name}")
    seconds, expected = run_whole(trial, place)
    folder, kills_of_run = new_folder(place, trial.name), 0
    before = kept(folder)
    while count.kills < trial.times or kills_of_run:
        process, found, stopped = start(trial.words, folder, fork=trial.fork), [], False
        is_last = kills_of_run >= _MOST_KILLS or count.kills >= trial.times
        code = process.wait(_HANG_SECONDS if is_last else moments.uniform(0, 1.1) * seconds)
        if code is None and not is_last:
            code, found = _stop(process, trial.stop)
            stopped = code != 0  # It may have ended before the signal came.
            count.late += code == 0
            count.kills, kills_of_run = count.kills + stopped, kills_of_run + 1
        if code is None:
            raise SystemExit(f"{trial.name} hangs in {folder}")
        before = _compare(before, folder, count, found)
        if not stopped:
            count.finished += 1
            # A model that was saved before the kill is not made again.
            if code != 0 and _EXISTS not in process.last_line():
                found.append(f"it fails with code {code}: {process.last_line()}")
            if made(folder) != expected:
                found.append(f"other bytes after {kills_of_run} kills")
            folder, kills_of_run = new_folder(place, trial.name), 0
            before = kept(folder)
        count.note(trial.name, found)
        print(f"  {trial.name}: {count.kills} kills, {count.wrong} wrong", flush=True)
    return count


def _compare(before: Kept, folder: Path, count: Count, found: list[str]) -> Kept:
    """What is kept now; adds what is half-made, and what was kept before and is not now."""
    now = kept(folder)
    count.acknowledged += before.finished
    found += [*faults(folder), *before.lost_in(now)]
    return now


def _stop(process: Started, stop: signal.Signals) -> tuple[int | None, list[str]]:
    """Exit code of a command that is told to stop, and what is wrong with its end."""
    is_listening, found = process.is_listening(), []
    process.send(stop)
    code = process.wait(_STOP_SECONDS)
    if code is None:
        return None, []
    outliving = process.outliving(_OUTLIVING_SECONDS)
    if outliving:
        found.append(f"processes outlive the command: {', '.join(outliving)}")
    if code == 0:
        return code, found  # It had ended, or was about to.
    if stop is signal.SIGKILL or not is_listening:  # Nothing had begun that could say a line.
        return code, found
    if code != _INTERRUPTED[stop]:
        found.append(f"{stop.name} ends with code {code}: {process.last_line()}")
    elif not _LAST_LINE.match(process.last_line()):
        found.append(f"{stop.name} ends without a line: {process.last_line()}")
    return code, found


def kill_workers(trial: Trial, place: Path) -> Count:
    """Kill a random worker in each run; the command ends as if nothing had been."""
    count, moments = Count(), random.Random(f"{trial.name} worker")
    seconds, expected = run_whole(trial, place)
    while count.kills < trial.times:
        folder, found = new_folder(place, trial.name), []
        process = start(trial.words, folder, fork=trial.fork)
        code = process.wait(moments.uniform(0, 1) * seconds)
        while code is None and not (workers := process.workers()):
            code = process.wait(0.05)
        if code is None:
            moments.choice(workers).kill()
            count.kills += 1
            code = process.wait(_HANG_SECONDS)
        count.finished += 1
        if code != 0:
            found.append(f"it ends with code {code}: {process.last_line()}")
        if made(folder) != expected:
            found.append("other bytes after a killed worker")
        count.note(trial.name, [*found, *faults(folder)])
        print(f"  {trial.name}: {count.kills} kills, {count.wrong} wrong", flush=True)
    return count


def harm(trial: Trial, kind: str, place: Path) -> Count:
    """Fill the disk of a command, or flip a bit of its store, some times."""
    trials = {"full-disk": fill_disk, "flipped-bit": flip_bits}[kind]
    count = Count()
    each = trials(trial.words, place, random.Random(f"{trial.name} {kind}"), fork=trial.fork)
    for is_harmed, found in islice(each, trial.times):
        count.kills, count.finished = count.kills + is_harmed, count.finished + 1
        count.note(trial.name, found)
    each.close()
    return count


def main() -> None:
    """Stop each command, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="Kills of each command.")
    parser.add_argument("--commands", nargs="*", default=None, choices=[*COMMANDS])
    parser.add_argument("--signal", default="KILL", choices=["KILL", "INT", "TERM"])
    parser.add_argument("--engine", default="inprocess", choices=["inprocess", "processes", "ray"])
    parser.add_argument("--victim", default="driver", choices=["driver", "worker"])
    parser.add_argument("--trial", default="kill", choices=["kill", "full-disk", "flipped-bit"])
    parser.add_argument("--fork", action="store_true", help="Libraries are loaded before.")
    given = parser.parse_args()
    if given.victim == "worker" and given.engine == "inprocess":
        parser.error("workers are processes of --engine processes or ray")
    # A shell lets what it starts in the background ignore Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop, wrong = signal.Signals[f"SIG{given.signal}"], 0
    names = given.commands or [*(COMMANDS if given.engine == "inprocess" else ON_ENGINES)]
    what = stop.name if given.trial == "kill" else given.trial
    what = "a worker killed" if given.victim == "worker" else what
    # Ray's sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as place:
        os.environ["RAY_TMPDIR"] = str(Path(place, "ray"))
        for name in names:
            trial = Trial(name, given.times, stop, given.engine, given.fork)
            try:
                if given.trial != "kill":
                    count = harm(trial, given.trial, Path(place))
                else:
                    run = kill_workers if given.victim == "worker" else stop_at_random
                    count = run(trial, Path(place))
            except NoDiskError as error:
                print(f"{name}: skipped, no small disk can be mounted ({error})", flush=True)
                continue
            wrong += count.wrong
            print(count.line(name, f"{what}, engine {given.engine}"), flush=True)
    LOG.unlink(missing_ok=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
