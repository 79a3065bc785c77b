"""A model whose circuit is known as it was compiled from a program: Tracr's weights in a GPT-2.

What Tracr compiles (Lindner et al. 2023, 2301.05062) has no norms. In this GPT-2 every dimension
stands twice, once negated, so that the mean that a layer norm takes off is 0, and two constants
fix its scale: each norm passes on what it reads as it is. `benchmarks/compile_rasp.py` writes the
weights.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.circuits.graph import EMBED, LOGITS, Edge
from probes.circuits.task import Task
from probes.files import data_folder
from probes.models.model import wrap
from probes.testing.planted_circuits import CONSTANT, PlantedModel

OUTPUT = "frac_prevs_1"
# Tokens, in the order of the embedding; the last two are outputs that no prompt holds.
BOS, X, WORDS, FRACTION, NOTHING = 0, 3, range(2, 6), 6, 7
LENGTH = 6


def frac_prevs(seed: int = 0, *, count: int = 24) -> PlantedModel:
    """Build the model whose logit of SHARE is the share of X among the words so far.

    The first MLP marks each X, and a head of the second layer takes the mean of the marks. Prompts
    are random words with some X; each holds more than its counterfactual, as effects of either
    sign would cancel in the mean.
    """
    draw = torch.Generator().manual_seed(seed)
    clean, other = _sample_unequal_pairs(draw, count)
    answer, foil = torch.full((count,), FRACTION), torch.full((count, 1), NOTHING)
    task = Task.from_tokens(clean, other, answer, foil)
    model = wrap(_build_gpt2(), name="frac-prevs", origin="compiled by Tracr")
    wiring = task.computation_graph(model)
    truth = {Edge(EMBED, "L0.MLP"), Edge("L0.MLP", "L1.H0.v"), Edge("L1.H0", LOGITS)}
    return PlantedModel(
        model=model,
        task=task,
        graph=wiring,
        truth=frozenset(truth),
        dead=frozenset(wiring.writers) - {edge.source for edge in truth},
        distractors=frozenset(),
        note="L0.MLP marks each X, and L1.H0 takes the mean of the marks so far.",
    )


def _sample_unequal_pairs(draw: torch.Generator, count: int) -> Int[Tensor, "side prompt position"]:
    """Draw pairs of prompts, the one that holds more X first."""
    pairs = []
    while len(pairs) < count:
        pair = torch.randint(WORDS.start, WORDS.stop, (2, LENGTH), generator=draw)
        held = (pair == X).sum(1)
        # Without any X, all logits are 0 but for rounding.
        if held.all() and held[0] != held[1]:
            pairs.append(pair[held.argsort(descending=True)])
    words = torch.stack(pairs, 1)
    return torch.cat([torch.full((2, count, 1), BOS), words], -1)


def _build_gpt2() -> Any:  # noqa: ANN401 (transformers' own)
    """Fill a GPT-2 with the compiled weights: one live head a layer, as wide as Tracr made it."""
    from transformers import AutoModelForCausalLM, GPT2Config

    with np.load(data_folder() / "planted" / "frac_prevs.npz") as file:
        labels = file["labels"].tolist()
        given = {name: torch.from_numpy(file[name]) for name in file.files if name != "labels"}
    size, width = len(labels), 2 * len(labels) + 2
    d_head = given["layer_0/attn/query/w"].shape[1]
    config = GPT2Config(
        vocab_size=NOTHING + 1, n_positions=LENGTH + 1, n_embd=width, n_layer=2,
        n_head=width // d_head, n_inner=given["layer_0/mlp/linear_1/w"].shape[1],
        activation_function="relu", tie_word_embeddings=False,
        bos_token_id=BOS, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # It draws weights, which are then overwritten.
        hf_model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    hf_model.eval()
    for name, weight in hf_model.named_parameters():
        scale = name.endswith("weight") and ".ln_" in name
        weight.data.fill_(CONSTANT * math.sqrt(2 / width) if scale else 0)
    body = hf_model.transformer
    body.wte.weight.data[:, [size, -1]] = torch.tensor([CONSTANT, -CONSTANT])
    body.wte.weight.data[:FRACTION] += _mirrored(given["token_embed/embeddings"])
    body.wpe.weight.data[:] = _mirrored(given["pos_embed/embeddings"])
    for number, block in enumerate(body.h):
        here = f"layer_{number}"
        for place, port in enumerate(("query", "key", "value")):
            columns = slice(place * width, place * width + d_head)
            block.attn.c_attn.weight.data[:size, columns] = given[f"{here}/attn/{port}/w"]
            block.attn.c_attn.bias.data[columns] = given[f"{here}/attn/{port}/b"]
        block.attn.c_proj.weight.data[:d_head] = _mirrored(given[f"{here}/attn/linear/w"])
        block.attn.c_proj.bias.data[:] = _mirrored(given[f"{here}/attn/linear/b"])
        block.mlp.c_fc.weight.data[:size] = given[f"{here}/mlp/linear_1/w"]
        block.mlp.c_fc.bias.data[:] = given[f"{here}/mlp/linear_1/b"]
        block.mlp.c_proj.weight.data[:] = _mirrored(given[f"{here}/mlp/linear_2/w"])
        block.mlp.c_proj.bias.data[:] = _mirrored(given[f"{here}/mlp/linear_2/b"])
    hf_model.lm_head.weight.data[FRACTION, labels.index(OUTPUT)] = 1
    return hf_model


def _mirrored(weight: Float[Tensor, "*rows dimension"]) -> Float[Tensor, "*rows twice"]:
    """Let what writes to a dimension write the contrary to its twin."""
    # Half the width apart, the two meet in one lane of a vectorized sum: what is rounded cancels.
    here = torch.nn.functional.pad(weight, (0, 1))  # The last is the constant's.
    return torch.cat([here, -here], -1)
