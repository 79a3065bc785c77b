"""CPU seconds of edge attribution on IOI in SmolLM2-135M: this kit beside its peers.

    python -m benchmarks.smollm2_vs_peers FOLDER [--peers tl circuitkit]

FOLDER holds the model as `smollm2`. All score the edges of the same 32 pairs, in one thread. The
peers want keys and values of each head: they get a copy with repeated keys and values, whose
logits are the same and whose graph has more edges. The seconds of a peer that takes one prompt at a
time are those of one, times the number of pairs. A peer that does not install or run is left out
with the reason. EAP-IG (hannamw) asks for a GPU by name; CircuitKit has the same algorithm.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.attribution_vs_peers import ENVS, PEERS, environment
from benchmarks.peers.measure import STEPS, cpu
from probes.circuits.edges.edge_attribution import EAP, EAPIG, edge_attribution
from probes.circuits.task import Task, TaskSettings, sample_tasks
from probes.models.model import Model, load
from probes.prompts.catalog import pattern

SCRIPTS = {"tl": "ioi_with_transformer_lens.py", "circuitkit": "ioi_with_circuitkit.py"}
TITLES = {"eap": "EAP", "eap_ig": f"EAP-IG, {STEPS} steps"}
LOGIT_TOLERANCE = 1e-3


def own_seconds(model: Model, task: Task, repeats: int) -> dict[str, float]:
    """CPU seconds of this kit, median of the repeats."""
    methods = {"eap": EAP(), "eap_ig": EAPIG(steps=STEPS)}
    edge_attribution(model, task[:1], method="eap")  # Checks of the gradients are made once.
    return {
        job: median(
            cpu(lambda method=method: edge_attribution(model, task, method=method))
            for _ in range(repeats)
        )
        for job, method in methods.items()
    }


def repeat_keys_and_values(hf_model: nn.Module) -> nn.Module:
    """The same function with keys and values of each head."""
    config = hf_model.config
    groups, size = config.num_key_value_heads, config.num_attention_heads
    state = hf_model.state_dict()
    for name in [name for name in state if name.endswith(("k_proj.weight", "v_proj.weight"))]:
        by_group = state[name].unflatten(0, (groups, -1))
        state[name] = by_group.repeat_interleave(size // groups, 0).flatten(0, 1)
    config = type(config)(**{**config.to_dict(), "num_key_value_heads": size})
    repeated = type(hf_model)(config).eval()
    repeated.load_state_dict(state)
    return repeated


def write_inputs(source: Path, task: Task, folder: Path) -> None:
    """Write what the peers read: the repeated model, and the pairs by length."""
    hf_model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    repeated = repeat_keys_and_values(hf_model)
    rows = {}
    for n, mask in enumerate(task.mask):
        rows.setdefault(int(mask.sum()), []).append(n)
    batches = []
    for length, numbers in rows.items():
        clean, other = (ids[numbers][:, -length:] for ids in (task.clean, task.counterfactual))
        batches.append((clean, other, task.answer[numbers], task.foils[numbers, 0]))
        with torch.no_grad():
            gap = (repeated(clean).logits - hf_model(clean).logits)[:, -1].abs().max()
        assert float(gap) < LOGIT_TOLERANCE, "the copy is another function"
    repeated.save_pretrained(folder)
    torch.save(batches, folder / "batches.pt")


def peer_seconds(name: str, folder: Path, envs: Path) -> dict[str, float | None] | str:
    """CPU seconds of a peer for all pairs, or why there are none."""
    peer = PEERS[name]
    try:
        python = environment(peer, envs / name, "")
    except (subprocess.CalledProcessError, OSError) as error:
        return f"it does not install: {str(error)[:200]}"
    script = Path(__file__).parent / "peers" / SCRIPTS[name]
    command = [str(python), str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"its script failed: {done.stderr.strip().splitlines()[-1][:200]}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Print the seconds of each library and job, and their ratio to this kit's."""
    known = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known.add_argument("folder", type=Path)
    known.add_argument("--peers", nargs="*", choices=SCRIPTS, default=list(SCRIPTS))
    known.add_argument("--envs", type=Path, default=ENVS, help="where peers are installed")
    known.add_argument("--pairs", type=int, default=32)
    known.add_argument("--repeats", type=int, default=3)
    given = known.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    source = given.folder / "smollm2"
    if not source.is_dir():
        print(f"Skipped: there is no folder {str(source)!r}", file=sys.stderr)
        return
    model = load(source)
    settings = TaskSettings(contrasts=("s2",), prompts=given.pairs)
    task = sample_tasks(model, pattern("ioi"), settings)[0]
    own = own_seconds(model, task, given.repeats)
    print(f"{len(task)} pairs of IOI in {model.name}, CPU seconds in one thread")
    for job, title in TITLES.items():
        print(f"  {title:18} this kit {own[job]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(source, task, Path(folder))
        del model
        for name in given.peers:
            found = peer_seconds(name, Path(folder), given.envs.expanduser())
            if isinstance(found, str):
                print(f"  {PEERS[name].name}: skipped, {found}")
                continue
            for job, title in TITLES.items():
                seconds = found[job]
                shown = (
                    "has none" if seconds is None else f"{seconds:.1f}, {_ratio(seconds, own[job])}"
                )
                print(f"  {title:18} {PEERS[name].name} {shown}")


def _ratio(seconds: float, own: float) -> str:
    return f"{seconds / own:.1f} times this kit's"


if __name__ == "__main__":
    main()
