"""CPU time of a patching sweep: this kit against transformer_lens on the same cells.

Every head and every MLP is patched at every role from the first differing token on, in a batch
of prompts of equal length. Run with `python -m benchmarks.patching_vs_transformer_lens`.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from statistics import median

import pandas as pd
import torch
from torch import Tensor
from transformer_lens import patching
from transformers import LlamaConfig, LlamaForCausalLM

from probes.interventions.activation_patching import patch_sites, run_with_cache
from probes.models.model import Model, load, wrap
from probes.models.site import Site

PROMPTS, LENGTH = 64, 30
ENDS = (3, 6, 8, 10, 11, 14, 17, 19, 22, 25, 28, 30)
DIFFERS = slice(10, 11)


@dataclass(frozen=True, eq=False)
class Sweep:
    """One model, two batches of ids that differ in one span, and the cells to patch."""

    model: Model
    clean: Tensor
    source: Tensor
    answers: Tensor
    spans: dict[str, tuple[int, int]]
    cells: list[Site]


def random_llama() -> Model:
    """Build a Llama of 4 layers and 4 heads with random weights."""
    config = LlamaConfig(
        vocab_size=700,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.08,
    )
    torch.manual_seed(0)
    return wrap(LlamaForCausalLM(config), name="random Llama")


def prepare(model: Model) -> Sweep:
    """Draw the prompts and list every head and MLP at the roles that the difference reaches."""
    draw = torch.Generator().manual_seed(1)
    low, high = 4, model.shape.d_vocab
    clean = torch.randint(low, high, (PROMPTS, LENGTH), generator=draw)
    source = clean.clone()
    source[:, DIFFERS] = (clean[:, DIFFERS] - low + 1) % (high - low) + low
    answers = torch.randint(low, high, (PROMPTS, 2), generator=draw)
    starts = (0, *ENDS)
    spans = {f"role {n}": (starts[n], end) for n, end in enumerate(ENDS)}
    late = [role for role, (start, _) in spans.items() if start >= DIFFERS.start]
    parts = [*range(model.shape.heads), "mlp"]
    cells = [Site(n, c, r) for n in range(model.shape.layers) for c in parts for r in late]
    return Sweep(model, clean, source, answers, spans, cells)


def ours(sweep: Sweep) -> Tensor:
    """Sweep with this kit, recording included."""
    mask = torch.ones_like(sweep.clean, dtype=torch.bool)
    readout = torch.full((PROMPTS, 1), LENGTH - 1)
    clean, source = (
        run_with_cache(sweep.model, ids, mask, readout) for ids in (sweep.clean, sweep.source)
    )
    where = {}
    for role, (start, end) in sweep.spans.items():
        where[role] = torch.zeros_like(mask)
        where[role][:, start:end] = True

    def difference(logits: Tensor, rows: Tensor) -> Tensor:
        right, wrong = sweep.answers[rows].unbind(-1)
        row = torch.arange(len(rows))
        return (logits[row, 0, right] - logits[row, 0, wrong])[:, None]

    return patch_sites(clean, source, sweep.cells, where, difference)[..., 0]


def theirs(sweep: Sweep) -> Tensor:
    """Sweep with transformer_lens, recording included: one call for heads, one for MLPs."""
    bridge = sweep.model.bridge
    row = torch.arange(PROMPTS)

    def difference(logits: Tensor) -> Tensor:
        right, wrong = sweep.answers.unbind(-1)
        return logits[row, -1, right] - logits[row, -1, wrong]

    def put(value: Tensor, index: Sequence[int], other: Tensor) -> Tensor:
        _, start, end, *head = index
        at = (slice(None), slice(start, end), *head)
        value[at] = other[at]
        return value

    result = torch.empty(len(sweep.cells), PROMPTS)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(
            sweep.source, names_filter=lambda n: n.endswith(("attn.hook_z", "hook_mlp_out"))
        )
        for point, is_mlp in (("z", False), ("mlp_out", True)):
            chosen = [n for n, c in enumerate(sweep.cells) if (c.component == "mlp") == is_mlp]
            table = pd.DataFrame(_index(sweep.cells[n], sweep.spans) for n in chosen)
            values = patching.generic_activation_patch(
                bridge,
                sweep.clean,
                cache,
                difference,
                put,
                point,
                index_df=table,
                reduce="none",
            )
            result[chosen] = values.values
    return result


def _index(cell: Site, spans: dict[str, tuple[int, int]]) -> dict[str, int]:
    start, end = spans[cell.role]
    head = {"head": cell.component} if isinstance(cell.component, int) else {}
    return {"layer": cell.layer, "start": start, "end": end, **head}


def cpu(run: Callable[[Sweep], Tensor], sweep: Sweep) -> float:
    """Return the CPU seconds of one sweep, its progress bar kept off the screen."""
    begin = time.process_time()
    with redirect_stderr(StringIO()):
        run(sweep)
    return time.process_time() - begin


def main() -> None:
    """Print the ratio of CPU times, interleaving the two kits."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--model", help="a family model, a folder or a hub id")
    given = options.parse_args()
    torch.set_num_threads(1)
    sweep = prepare(load(given.model) if given.model else random_llama())
    with redirect_stderr(StringIO()):
        mine, other = ours(sweep), theirs(sweep)
    # Logits of a trained model are ten times those of a random one: rounding grows with them.
    scale = max(1.0, other.abs().max().item())
    gap = (mine - other).abs().max().item() / scale
    pairs = [(cpu(ours, sweep), cpu(theirs, sweep)) for _ in range(given.repeats)]
    mine, other = (median(times) for times in zip(*pairs, strict=True))
    ratio = median(b / a for a, b in pairs)
    print(
        f"{sweep.model.name}: {len(sweep.cells)} cells x {PROMPTS} prompts, greatest gap "
        f"{gap:.1e} of the greatest value, {scale:.1f}"
    )
    print(f"ours {mine:.2f} CPU-s, transformer_lens {other:.2f} CPU-s, ratio {ratio:.1f}")
    # The random model's logits are of scale 1, so there the gap itself is held to the bound.
    assert (gap if given.model else gap * scale) < 1e-5, "the two sweeps disagree"


if __name__ == "__main__":
    main()
