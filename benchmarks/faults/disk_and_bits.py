"""Trials of `kills` without a signal: a full disk, and a flipped bit in a stored unit."""

import random
import shutil
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.kept import faults, kept, made, store_of
from benchmarks.faults.killed_commands import fill_folder, new_folder, start

Harms = Generator[tuple[bool, list[str]], None, None]
"""Of each run: whether it was harmed, and what is wrong."""

_ROOMY = "256m"
_PAGE = 4096  # Bytes; a tmpfs counts pages.


class NoDiskError(Exception):
    """A small disk cannot be mounted here."""


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Folder on a disk of its own, in memory."""
    place.mkdir(exist_ok=True)
    told = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_ROOMY}", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        raise NoDiskError(told.stderr.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def fill_disk(words: tuple[str, ...], place: Path, moments: random.Random, *, fork: bool) -> Harms:
    """Yield what is wrong after a run on a disk that becomes full, and its rerun on a larger one.

    The room is drawn anew for each: between that of the inputs, and that of a whole run.

    Raises:
        NoDiskError: A small disk cannot be mounted.
    """
    with small_disk(place / "disk") as disk:
        folder = disk / "work"
        fill_folder(folder)
        first = shutil.disk_usage(disk).used
        if start(words, folder, fork=fork).wait(None):
            raise SystemExit(f"{' '.join(words)} fails on a disk in memory")
        last, expected = shutil.disk_usage(disk).used, made(folder)
        while True:
            shutil.rmtree(folder)
            fill_folder(folder)
            _resize(disk, str(int(moments.uniform(first + 2 * _PAGE, last))))
            process = start(words, folder, fork=fork)
            code, text = process.wait(None), process.log.read_text(errors="replace")
            found, was_full = [], code != 0
            if code not in (0, 1):
                found.append(f"a full disk ends with code {code}")
            if was_full and ("Traceback" in text or "Error: " not in process.last_line()):
                found.append(f"a full disk ends without a line of error: {text[-800:]}")
            _resize(disk, _ROOMY)
            found += faults(folder)
            before = kept(folder)
            if start(words, folder, fork=fork).wait(None):
                found.append("the rerun after a full disk fails")
            found += before.lost_in(kept(folder))
            if made(folder) != expected:
                found.append("other bytes after a full disk")
            yield was_full, found


def flip_bits(words: tuple[str, ...], place: Path, moments: random.Random, *, fork: bool) -> Harms:
    """Yield what is wrong after a rerun, before which a bit of a random unit was flipped.

    The unit of the whole command is removed, so that the rerun reads all others.
    """
    folder = new_folder(place, "flipped")
    if start(words, folder, fork=fork).wait(None):
        raise SystemExit(f"{' '.join(words)} fails")
    expected, store = made(folder), store_of(folder)
    if store is None:
        raise SystemExit(f"{' '.join(words)} keeps no units")
    while True:
        *parts, whole = store.ledger.units()
        chosen = moments.choice(parts or [whole])
        path = store.path(chosen.key)
        content = bytearray(path.read_bytes())
        content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
        path.write_bytes(content)
        if parts:
            store.remove([whole])
        for result in (*folder.glob("*.json"), *folder.glob("*.html")):
            result.unlink()
        before, found = kept(folder), []
        store.ledger.close()
        if start(words, folder, fork=fork).wait(None):
            found.append("the rerun after a flipped bit fails")
        after = kept(folder)
        if after.units[chosen.key].created == before.units[chosen.key].created:
            found.append(f"the flipped bit of {chosen.label} is not noticed")
        changed = before.lost_in(after)
        if len(changed) > 1:
            found += changed
        if made(folder) != expected:
            found.append(f"other bytes after a flipped bit of {chosen.label}")
        yield True, [*found, *faults(folder)]
