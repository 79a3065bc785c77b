"""CPU time and memory of edge attribution and circuits: this kit, a floor, and the peers.

A random GPT-2 reads prompts whose counterfactuals differ at every position, in one thread. The
floor is the plain Hugging Face eager model on the same prompts, all in one batch: a forward pass
for the counterfactual, and a forward and a backward pass for every gradient. Ratios are taken to
the backward pass that leaves out the weights' gradients, the cheaper one.

The peers run in environments of their own, made on demand; one that cannot be had is reported,
and an earlier measurement quoted. Run with `python -m benchmarks.attribution_vs_peers`.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property, partial
from io import StringIO
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    Node,
    attribution_patch,
)
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.peers.measure import JOBS, SHAPES, STEPS, Run, Shape, alone, cpu, one, tokens
from probes.circuits.edges.edge_attribution import EAP, EAPIG, edge_attribution
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.graph import Edge
from probes.circuits.runs.held import ReferenceRuns
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task
from probes.models.model import Model, wrap

HERE = Path(__file__).parent
ENVS = Path("~/.cache/probes-peers").expanduser()
TITLES = {
    "eap": "EAP",
    "eap_ig": f"EAP-IG, {STEPS} steps",
    "circuit_all": "circuit, all edges",
    "circuit_1pct": "circuit, 1 % of edges",
}
# Forward passes and passes forward and back that each job cannot do without.
PASSES = {"eap": (1, 1), "eap_ig": (1, STEPS), "circuit_all": (1, 0), "circuit_1pct": (1, 0)}
FLOORS = ("forward", "gradient", "gradient with weights")
EXTRAS = ("eap each", "eap_ig each", "circuit_all shared", "circuit_1pct shared")


@dataclass(frozen=True)
class Figures:
    """What one library costs: seconds for all prompts and MB by job; None where it has no such."""

    library: str
    seconds: dict[str, float | None]
    growth: dict[str, float | None] = field(default_factory=dict)
    remark: str = ""


@dataclass(frozen=True)
class Peer:
    """A library to compare with.

    Attributes:
        name: As it is called.
        script: What measures it, beside the other peers' scripts.
        packages: What to install, the library first; nothing where it is here already.
        quoted: Seconds measured earlier on a quiet machine, by shape and job, for all prompts.
    """

    name: str
    script: str = ""
    packages: tuple[str, ...] = ()
    quoted: dict[str, dict[str, float]] = field(default_factory=dict)


PEERS = {
    "tl": Peer(
        "TransformerLens 4.3",
        "with_transformer_lens.py",
        quoted={"gpt2s": {"eap": 72.3}, "toy": {"eap": 24.3}},
    ),
    "auto-circuit": Peer(
        "auto-circuit 1.0.1",
        "with_auto_circuit.py",
        # Its transformer-lens predates the pins of its own dependencies.
        ("auto-circuit==1.0.1", "transformer-lens<3", "pyarrow<19", "datasets<3.3", "numpy<2"),
        {"gpt2s": {"eap": 20.4}, "toy": {"eap": 1.32, "eap_ig": 5.90, "circuit_all": 0.53}},
    ),
    "circuitkit": Peer(
        "CircuitKit 0.2.0",
        "with_circuitkit.py",
        ("circuitkit==0.2.0", "transformer-lens==3.8.0"),
        {"gpt2s": {"eap": 17.3}, "toy": {"eap": 1.29, "eap_ig": 4.68, "circuit_all": 0.86}},
    ),
}
# Its code asks for a GPU by name: measured once on a CPU after changing that.
EAP_IG = Peer(
    "EAP-IG",
    quoted={
        "gpt2s": {"eap": 26.6, "eap_ig": 102.7, "circuit_all": 9.3},
        "toy": {"eap": 2.51, "eap_ig": 8.65, "circuit_all": 0.50},
    },
)


@dataclass(frozen=True, eq=False)
class Bench:
    """The plain model, the same one in this kit, and the task."""

    plain: GPT2LMHeadModel
    model: Model
    task: Task

    @cached_property
    def every(self) -> Tensor:
        """The circuit of all edges."""
        return torch.ones(1, len(self.task.computation_graph(self.model)), dtype=torch.bool)

    @cached_property
    def few(self) -> Tensor:
        """The circuit of the edges that EAP scores highest: one in a hundred."""
        scores = edge_attribution(self.model, self.task, method="eap", per_prompt=False).mean.abs()
        kept = torch.zeros(1, len(scores), dtype=torch.bool)
        kept[0, scores.topk(len(scores) // 100).indices] = True
        return kept

    @cached_property
    def staged(self) -> ReferenceRuns:
        """What all circuits share."""
        return run_references(self.model, self.task)


def build(shape: Shape) -> Bench:
    """Draw the weights and the prompts."""
    config = GPT2Config(
        vocab_size=shape.vocab,
        n_positions=64,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(config).eval()
    plain.set_attn_implementation("eager")
    drawn = tokens(shape)
    task = Task.from_tokens(drawn.clean, drawn.corrupt, drawn.answer, drawn.foil[:, None])
    return Bench(plain, wrap(plain, name="random GPT-2"), task)


def floor(bench: Bench, part: str) -> Run:
    """Return the plain model's forward pass, or its forward and backward passes."""
    plain, task = bench.plain, bench.task

    def forward() -> None:
        with torch.no_grad():
            plain(task.counterfactual, use_cache=False)

    def gradient() -> None:
        plain.requires_grad_(part == "gradient with weights")
        start = plain.get_input_embeddings()(task.clean)
        if not start.requires_grad:
            start.requires_grad_()
        logits = plain(inputs_embeds=start, use_cache=False).logits[:, -1]
        task.logit_diff(logits).sum().backward()
        plain.zero_grad(set_to_none=True)

    return forward if part == "forward" else gradient


def ours(bench: Bench, job: str) -> Run:
    """Return one job of this kit; "each" keeps every prompt's scores.

    A circuit is timed with the two runs that it needs, and "shared" without them.
    """
    model, task = bench.model, bench.task
    kind, _, extra = job.partition(" ")
    if kind in ("eap", "eap_ig"):
        method = EAP() if kind == "eap" else EAPIG(steps=STEPS)
        return partial(edge_attribution, model, task, method=method, per_prompt=extra == "each")
    kept = bench.every if kind == "circuit_all" else bench.few
    if extra == "shared":
        return partial(run_circuits, bench.staged, kept)
    return lambda: run_circuits(run_references(model, task), kept)


def part_of(bench: Bench, job: str) -> Run:
    """Return a part of the floor or a job of this kit."""
    return (floor if job in FLOORS else ours)(bench, job)


def prepare(shape: Shape, job: str) -> Run:
    """Set up one part by itself."""
    return part_of(build(shape), job)


def timed(bench: Bench, repeats: int) -> dict[str, list[float]]:
    """Time all parts by turns, once more than counted."""
    parts = {job: part_of(bench, job) for job in (*FLOORS, *JOBS, *EXTRAS)}
    rounds = [{job: cpu(call) for job, call in parts.items()} for _ in range(repeats + 1)]
    return {job: [found[job] for found in rounds[1:]] for job in parts}


def grown(shape: str) -> dict[str, float]:
    """Return by how many MB each part's first call grows the peak, each in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.attribution_vs_peers", "--shape", shape]
    costs = {job: alone(command, job, 0) for job in (*FLOORS, *JOBS, *EXTRAS)}
    return {job: cost.growth for job, cost in costs.items() if cost}


def of_floor(times: dict[str, list[float]], growth: dict[str, float]) -> list[Figures]:
    """Add up what each job cannot do without, the stricter floor first."""
    found = []
    for name in FLOORS[1:]:
        forward, back = median(times["forward"]), median(times[name])
        jobs = {job: both for job, both in PASSES.items() if both[1] or name == "gradient"}
        seconds = {job: f * forward + b * back for job, (f, b) in jobs.items()}
        most = {job: growth[name if b else "forward"] for job, (_, b) in jobs.items()}
        label = "floor" if name == "gradient" else "floor with weights"
        found.append(Figures(label, seconds, most))
    return found


def of_ours(times: dict[str, list[float]], growth: dict[str, float], extra: bool) -> Figures:
    """Take the medians, of the plain jobs or of the extra ones."""
    name = "ours, runs shared" if extra else "ours"
    names = {job: f"{job} shared" if extra else job for job in JOBS}
    names = {job: key for job, key in names.items() if key in times}
    seconds: dict[str, float | None] = {job: median(times[key]) for job, key in names.items()}
    return Figures(name, seconds, {job: growth[key] for job, key in names.items()})


def of_peer(peer: Peer, python: Path, shape: str, repeats: int) -> Figures:
    """Run a peer's script, and scale its seconds to all prompts where it takes fewer."""
    script = [python, HERE / "peers" / peer.script, "--shape", shape, "--repeats", repeats]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, check=False)
    if done.returncode:
        return quoted(peer, shape, f"its script failed: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    times = SHAPES[shape].prompts / found["prompts"]
    seconds = {job: None if found[job] is None else times * found[job] for job in JOBS}
    remark = "" if times == 1 else f"{found['prompts']} prompt timed, times {times:.0f}"
    return Figures(peer.name, seconds, found["growth_mb"], remark)


def quoted(peer: Peer, shape: str, reason: str) -> Figures:
    """Take what was measured earlier."""
    known: dict[str, float | None] = {**peer.quoted[shape]}
    return Figures(peer.name, known, remark=f"quoted ({reason})")


def environment(peer: Peer, folder: Path, torch_version: str) -> Path:
    """Return the Python of a peer's environment, made where it is not there yet.

    Raises:
        CalledProcessError: The peer does not install.
    """
    if not peer.packages:
        return Path(sys.executable)
    python = folder / "bin" / "python"
    library, _, version = peer.packages[0].partition("==")
    check = f"from importlib.metadata import version as v; assert v({library!r}) == {version!r}"
    quiet: dict = {"capture_output": True, "text": True}
    if python.exists() and not subprocess.run([python, "-c", check], **quiet).returncode:
        return python
    print(f"installing {peer.name} under {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True)
    wanted = [*peer.packages, *([f"torch=={torch_version}"] if torch_version else [])]
    subprocess.run([python, "-m", "pip", "install", *wanted], check=True, **quiet)
    return python


def gap(bench: Bench) -> tuple[float, float]:
    """Return the greatest gap of EAP on one prompt to TransformerLens, and the greatest score."""
    task, model = bench.task[:1], bench.model
    answer, foil = int(task.answer[0]), int(task.foils[0, 0])

    def lead(logits: Tensor) -> Tensor:
        return logits[0, -1, answer] - logits[0, -1, foil]

    mine = edge_attribution(model, task, method=EAP(gradient_at=0.0)).mean
    how = EdgeAttributionConfig(granularity="edge")
    # It needs weights with gradients, which this kit's models have not: a copy has them.
    bridge = wrap(bench.plain, name="a copy").bridge.requires_grad_(True)
    with redirect_stdout(StringIO()):
        found = attribution_patch(bridge, task.clean, task.counterfactual, lead, how)
    wiring = task.computation_graph(model)
    edges = list(found.edge_scores)[: len(wiring)]
    order = torch.from_numpy(wiring.indices_of(Edge(_name(a), _name(b)) for a, b in edges))
    at_places = torch.tensor(list(found.edge_scores.values()), dtype=torch.float64)
    theirs = torch.empty(len(wiring), dtype=torch.float64)
    theirs[order] = at_places.view(-1, len(wiring)).sum(0)
    return (mine.double() - theirs).abs().max().item(), theirs.abs().max().item()


def _name(node: Node) -> str:
    if node.kind in ("embed", "logits"):
        return node.kind
    if node.head is None:
        return f"L{node.layer}.MLP"
    port = "" if node.kind == "attn_head_out" else f".{node.kind[0]}"
    return f"L{node.layer}.H{node.head}{port}"


def table(figures: Sequence[Figures]) -> str:
    """Lay out every job's rows: the stricter floor first, ours the third."""
    head = ("", "CPU-s", "/ floor", "/ ours", "memory MB", "/ ours", "")
    lines = []
    for job, title in TITLES.items():
        lines += [f"\n{title}", _line(head)]
        lines += [_row(row, job, figures[0], figures[2]) for row in figures if job in row.seconds]
    return "\n".join(lines)


def _row(row: Figures, job: str, base: Figures, mine: Figures) -> str:
    seconds, growth = row.seconds[job], row.growth.get(job)
    if seconds is None:
        return _line((row.library, *[""] * 5, "has none"))
    cells = (
        row.library,
        f"{seconds:.2f}",
        _ratio(seconds, base.seconds[job]),
        _ratio(seconds, mine.seconds[job]),
        "" if growth is None else f"{growth:.0f}",
        _ratio(growth, mine.growth[job]),
        row.remark,
    )
    return _line(cells)


def _line(cells: tuple[str, ...]) -> str:
    first, *middle, last = cells
    return f"  {first:22}" + "".join(f"{cell:>11}" for cell in middle) + f"  {last}".rstrip()


def _ratio(value: float | None, to: float | None) -> str:
    return "" if value is None or not to else f"{value / to:.2f}"


def added(times: dict[str, list[float]], job: str) -> float:
    """Return what every prompt's own scores cost beside their sums, in per cent."""
    pairs = zip(times[f"{job} each"], times[job], strict=True)
    return 100 * (median(each / sums for each, sums in pairs) - 1)


def peers(given: argparse.Namespace) -> list[Figures]:
    """Measure the peers that were asked for; quote those that cannot be had."""
    found = []
    for name in given.peers:
        peer = PEERS[name]
        try:
            python = environment(peer, given.envs.expanduser() / name, given.torch)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{peer.name} does not install: {error}", file=sys.stderr)
            found.append(quoted(peer, given.shape, "it does not install"))
            continue
        found.append(of_peer(peer, python, given.shape, given.repeats))
    return [*found, quoted(EAP_IG, given.shape, "it runs on a GPU only")]


def options() -> argparse.Namespace:
    """Read the command line."""
    known = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known.add_argument("--shape", choices=SHAPES, default="gpt2s")
    known.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    known.add_argument("--envs", type=Path, default=ENVS, help="where peers are installed")
    known.add_argument("--torch", default="", help="the torch version to install with the peers")
    known.add_argument("--repeats", type=int, default=3)
    known.add_argument("--job", help="measure this one alone, in this very process")
    return known.parse_args()


def main() -> None:
    """Print all figures, the gap to TransformerLens, and what each prompt's own scores cost."""
    given = options()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    shape = SHAPES[given.shape]
    if given.job:
        print(json.dumps(one(prepare, shape, given.job, given.repeats)))
        return
    bench = build(shape)
    times, growth = timed(bench, given.repeats), grown(given.shape)
    mine = [of_ours(times, growth, extra) for extra in (False, True)]
    figures = [*of_floor(times, growth), *mine, *peers(given)]
    print(f"{given.shape}: {shape}, {shape.edges:,} edges, one thread")
    print(table(figures))
    for job in ("eap", "eap_ig"):
        more, most = added(times, job), growth[f"{job} each"]
        print(f"\n{TITLES[job]}, every prompt's own scores: {more:+.0f} % time, {most:.0f} MB")
    worst, scale = gap(bench)
    print(f"\nEAP against TransformerLens, one prompt: greatest gap {worst:.1e} of {scale:.1e}")
    assert worst < 1e-4 * scale, "the two libraries disagree"


if __name__ == "__main__":
    main()
