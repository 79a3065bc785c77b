"""Odd options, files and terminals of the command line."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from benchmarks.faults.trial import OddInput, is_clear
from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.cli.app import app

FOX = "If I have two foxes and I take away one, how many foxes do I have?"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    output: str


def run(*words: str) -> Ended:
    """Run a command in this process."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.output)


def process(*words: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment |= options.pop("env", {})  # pyright: ignore[reportArgumentType, reportCallIssue]
    command = [sys.executable, "-m", "probes", *words]
    return subprocess.run(command, env=environment, capture_output=True, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]


def refused(ended: object) -> bool:
    """Whether a command ended with code 1 and one clear line, or with code 2 and its usage."""
    assert isinstance(ended, Ended)
    lines = ended.output.strip().splitlines()
    if "Traceback" in ended.output:
        return False
    if ended.code == 2:
        return "Error" in ended.output or "Usage" in ended.output
    return ended.code == 1 and len(lines) == 1 and "Error: " in lines[0] and is_clear(lines[0])


REFUSED = {
    "no command": (),
    "an unknown command": ("compair", "full", "full"),
    "a misspelt option": ("trace", "full", "--promts", "8"),
    "an option without a value": ("trace", "full", "--prompts"),
    "one model to compare": ("compare", "full"),
    "an unknown model": ("compare", "ful", "full"),
    "an empty name of a model": ("trace", ""),
    "a name of 5,000 letters": ("trace", "x" * 5000),
    "an unknown pattern": ("trace", "full", "--pattern", "fox"),
    "a missing pairs file": ("trace", "full", "--pattern", "no.jsonl"),
    "a pattern that is a folder": ("trace", "full", "--pattern", "folder.jsonl"),
    "3 prompts": ("trace", "full", "--prompts", "3"),
    "-1 prompts": ("trace", "full", "--prompts", "-1"),
    "4.5 prompts": ("trace", "full", "--prompts", "4.5"),
    "10**30 prompts": ("trace", "full", "--prompts", "1" + "0" * 30),
    "a seed of -1": ("trace", "full", "--seed", "-1"),
    "a huge seed": ("trace", "full", "--seed", "9" * 30),
    "a seed in words": ("trace", "full", "--seed", "one"),
    "a keep of 0": ("trace", "full", "--keep", "0"),
    "a keep of 2": ("trace", "full", "--keep", "2"),
    "a keep of NaN": ("trace", "full", "--keep", "nan"),
    "an unknown method": ("trace", "full", "--method", "guess"),
    "an unknown answer": ("trace", "full", "--answer", "verb", "--prompts", "4"),
    "a page that is no .html": ("trace", "full", "--out", "page.pdf"),
    "a page in a folder that is absent": ("trace", "full", "--out", "no/page.html"),
    "a page that is a folder": ("trace", "full", "--out", "folder.html"),
    "a page without a name": ("trace", "full", "--out", ""),
    "a page with a null in its name": ("trace", "full", "--out", "a\0.html"),
    "a page with a name of 5,000 letters": ("trace", "full", "--out", "x" * 5000 + ".html"),
    "numbers that are no .json": ("trace", "full", "--json", "numbers.txt"),
    "too few nulls": ("compare", "full", "full", "--nulls", "3"),
    "a margin of 2": ("compare", "full", "full", "--assert-equivalent", "2"),
    "0 workers": ("compare", "full", "full", "--workers", "0"),
    "too few bases": ("claims", "full", "--bases", "10"),
    "claims on an unknown pattern": ("claims", "full", "--pattern", "fox"),
    "claims on pairs": ("claims", "full", "--pattern", "pairs.jsonl"),
    "a claim of an unknown base model": ("claims", "full", "--base-model", "bass"),
    "a heatmap of no text": ("heatmap", "full", ""),
    "a heatmap of 1 MB": ("heatmap", "full", "fox " * 250_000),
    "a heatmap of a lone surrogate": ("heatmap", "full", "a \udcff fox"),
    "a heatmap of an unknown head": ("heatmap", "full", FOX, "--head", "L9.H9"),
    "a heatmap of no head": ("heatmap", "full", FOX, "--head", "nine"),
    "a heatmap as .bmp": ("heatmap", "full", FOX, "--out", "h.bmp"),
    "a heatmap of a text that fits no pattern": ("heatmap", "full", "Hi.", "--pattern", "copy"),
    "an unknown scheme": ("make", "quantized", "scratch", "--scheme", "int3"),
    "a group of -1": ("make", "quantized", "scratch", "--group", "-1"),
    "a group that does not divide": ("make", "quantized", "scratch", "--group", "7"),
    "a fraction of 2": ("make", "pruned", "scratch", "--fraction", "2"),
    "a fraction of NaN": ("make", "pruned", "scratch", "--fraction", "nan"),
    "an unknown scope": ("make", "pruned", "scratch", "--scope", "moon"),
    "growth by nothing": ("make", "grown", "scratch"),
    "growth by both": ("make", "grown", "scratch", "--layers", "3", "--width", "9"),
    "growth to a width of -5": ("make", "grown", "scratch", "--method", "wider", "--width", "-5"),
    "unknown labels": ("make", "distilled", "scratch", "--labels", "loud"),
    "a temperature of 0": ("make", "distilled", "scratch", "--temperature", "0"),
    "a temperature of NaN": ("make", "distilled", "scratch", "--temperature", "nan"),
    "a rate of NaN": ("make", "distilled", "scratch", "--rate", "nan", "--texts", "texts.txt"),
    "a rate of -1": ("make", "distilled", "scratch", "--rate", "-1"),
    "0 steps": ("make", "distilled", "scratch", "--steps", "0", "--texts", "texts.txt"),
    "0 texts in a step": ("make", "distilled", "scratch", "--batch", "0"),
    "999 layers": ("make", "distilled", "scratch", "--layers", "999", "--texts", "texts.txt"),
    "a width of 3": (
        "make",
        "distilled",
        "scratch",
        "--start",
        "fresh",
        "--width",
        "3",
        "--texts",
        "texts.txt",
    ),
    "a device that is none": (
        "make",
        "distilled",
        "scratch",
        "--steps",
        "1",
        "--device",
        "gpu",
        "--texts",
        "texts.txt",
    ),
    "a missing file of texts": ("make", "distilled", "scratch", "--texts", "no.txt"),
    "a folder of texts": ("make", "distilled", "scratch", "--texts", "."),
    "an empty file of texts": ("make", "distilled", "scratch", "--texts", "empty.txt"),
    "a binary file of texts": ("make", "distilled", "scratch", "--texts", "binary.txt"),
    "a student of an unknown model": (
        "make",
        "distilled",
        "scratch",
        "--start",
        "fox",
        "--texts",
        "texts.txt",
    ),
    "a name above": ("make", "quantized", "scratch", "--name", "../up"),
    "a name of a shipped model": ("make", "quantized", "scratch", "--name", "full"),
    "a ticket without early weights": ("make", "ticket", "distilled"),
    "a ticket of 0 rounds": ("make", "ticket", "full", "--rounds", "0"),
    "an unknown member": ("make", "family", "fulll"),
    "an unknown study": ("study", "luck"),
    "a curve of one": ("curve", "full"),
    "a curve of an unknown model": ("curve", "full", "ful"),
    "noise of -1": ("curve", "full", "distilled", "--noise", "-1"),
    "a result that is absent": ("show", "no.json"),
    "a result that is a folder": ("show", "."),
    "a result that is text": ("show", "texts.txt"),
    "a result that is empty": ("show", "empty.txt"),
    "a page of a result that is .pdf": ("show", "circuit.json", "--out", "c.pdf"),
    "a number format that is none": ("check", "full", "--dtype", "int8"),
    "a folder to verify that is absent": ("verify", "no"),
}


def prepared(folder: Path) -> Path:
    """Write the files that commands name."""
    (folder / "texts.txt").write_text("I have two foxes.\nThe cat has a hat.\n")
    (folder / "empty.txt").write_text("")
    (folder / "folder.html").mkdir()
    (folder / "folder.jsonl").mkdir()
    (folder / "binary.txt").write_bytes(bytes(range(256)))
    (folder / "pairs.jsonl").write_text(
        '{"clean": "a", "counterfactual": "b", "answer": "c", "counterfactual_answer": "d"}\n'
    )
    edge = (Edge.parse("embed->L0.H1.q"),)
    Circuit("m", ComputationGraph(1, 2, 2), edge, (0.5,), (0.1,)).save(folder / "circuit.json")
    return folder


def _refusal(folder: Path, words: tuple[str, ...]) -> Ended:
    files = {path for path in prepared(folder).rglob("*") if path.is_file()}
    ended = run(*words)
    left = {path for path in folder.rglob("*") if path.is_file()} - files
    # Nothing is left but the beginnings of a checkpoint folder.
    left = {path.name for path in left if "work" not in path.parts}
    return Ended(ended.code, ended.output + (f"\nleft {left}" if left else ""))


def _closed_pipe(_: Path) -> bool:
    """Whether `probes list | head -1` ends without a traceback."""
    script = f"{sys.executable} -m probes list | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True)
    return b"Traceback" not in done.stderr and done.stdout != b""


# Runs the command line, and prints a line when its work begins.
_TRACE = """
import runpy
import probes.circuits.trace as module
real = module.trace
def trace(*words, **options):
    print("begun", flush=True)
    return real(*words, **options)
module.trace = trace
runpy.run_module("probes", run_name="__main__")
"""


def _interrupted(folder: Path) -> bool:
    """Whether Ctrl-C during the work ends a command without a traceback and without a file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _TRACE, "trace", "full", "--prompts", "512"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as begun:  # pyright: ignore[reportCallIssue, reportArgumentType]
        has_begun = begun.stdout is not None and begun.stdout.readline() == b"begun\n"
        begun.send_signal(signal.SIGINT)
        _, errors = begun.communicate(timeout=60)
    ended = b"Traceback" not in errors and begun.returncode != 0
    return has_begun and ended and not any(folder.iterdir())


def inputs() -> list[OddInput]:
    """All odd commands."""
    found = [
        OddInput(f"command: {name}", lambda f, w=words: _refusal(f, w), check=refused)
        for name, words in REFUSED.items()
    ]
    right = {
        "a saved circuit": ("show", "circuit.json"),
        "models that have their hashes": ("verify", "full", "base"),
    }
    found += [
        OddInput(
            f"command: {name}",
            lambda f, w=words: bool(prepared(f)) and run(*w).code == 0,
        )
        for name, words in right.items()
    ]
    absent = ("check", "no-model", "no-model-either", "--json", "c.json")
    found += [
        OddInput(
            "command: a check of two models that do not exist", lambda _: run(*absent).code == 4
        ),
        OddInput(
            "terminal: ASCII only",
            lambda _: process("list", env={"PYTHONIOENCODING": "ascii"}).returncode == 0,
        ),
        OddInput(
            "terminal: one column", lambda _: process("list", env={"COLUMNS": "1"}).returncode == 0
        ),
        OddInput("terminal: a closed pipe", _closed_pipe),
        OddInput("terminal: bytes that are no UTF-8", _bytes, check=refused),
        OddInput("terminal: Ctrl-C", _interrupted),
    ]
    return found


def _bytes(_: Path) -> Ended:
    done = process("trace", os.fsdecode(b"f\xffll"))
    return Ended(done.returncode, (done.stdout + done.stderr).decode(errors="replace"))
