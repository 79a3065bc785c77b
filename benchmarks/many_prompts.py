"""Memory of edge attribution as prompts grow: sums over many prompts need that of one batch.

Scores are streamed, and with `each=False` only their moments are kept. Each count runs in a fresh
process. Run with `python -m benchmarks.many_prompts`.
"""

import argparse
import json
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peers.measure import Run, alone, one
from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.task import Task
from probes.models.model import wrap

COUNTS = ("100", "1000", "10000")
LENGTH, VOCAB = 24, 700


def prepare(_: object, count: str) -> Run:
    """Set up a random Llama of 4 layers and 4 heads, and as many pairs of prompts."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = wrap(LlamaForCausalLM(config), name="random Llama")
    clean, other = torch.randint(4, VOCAB, (2, int(count), LENGTH))
    answer, foil = torch.randint(4, VOCAB, (2, int(count)))
    task = Task.from_tokens(clean, other, answer, foil[:, None])
    edge_attribution(model, task[:100], method="eap", per_prompt=False)
    return lambda: edge_attribution(model, task, method="eap", per_prompt=False)


def main() -> None:
    """Print the growth of the peak for each count of prompts."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--job", help="measure this count alone, in this very process")
    options.add_argument("--repeats", type=int, default=0)
    given, _ = options.parse_known_args()
    torch.set_num_threads(1)
    if given.job:
        print(json.dumps(one(prepare, None, given.job, given.repeats)))
        return
    for count in COUNTS:
        cost = alone([sys.executable, "-m", "benchmarks.many_prompts"], count, 0)
        if cost is not None:
            print(f"{int(count):>6,} prompts: peak grows by {cost.growth:.0f} MB")


if __name__ == "__main__":
    main()
