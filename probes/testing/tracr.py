"""A model compiled from a RASP program: the weights of Tracr in a GPT-2.

Models compiled by Tracr (Lindner et al. 2023, arXiv:2301.05062) have no norms. In this GPT-2 every
dimension occurs twice, once negated, so the mean is 0, and two constants fix the scale: each layer
norm passes its input on unchanged. `benchmarks/compile_rasp.py` writes the weights.
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
from probes.models.process_state import seeded_init
from probes.testing.llama_builder import BOS, CONSTANT
from probes.testing.planted_circuits import PlantedModel

OUTPUT = "frac_prevs_1"
# Token ids; FRACTION and NOTHING are outputs only.
X, WORDS, FRACTION, NOTHING = 3, range(2, 6), 6, 7
LENGTH = 6


def frac_prevs(seed: int = 0, *, count: int = 24) -> PlantedModel:
    """Model whose logit of FRACTION is the fraction of X among the words so far.

    L0.MLP marks each X; L1.H0 takes the mean of the marks. Clean prompts have more X than their
    counterfactuals, because effects of both signs would cancel in the mean.
    """
    generator = torch.Generator().manual_seed(seed)
    clean, counterfactual = _sample_unequal_pairs(generator, count)
    answer, foil = torch.full((count,), FRACTION), torch.full((count, 1), NOTHING)
    task = Task.from_tokens(clean, counterfactual, answer, foil)
    model = wrap(_build_gpt2(), name="frac-prevs", origin="compiled by Tracr")
    graph = task.computation_graph(model)
    truth = {Edge(EMBED, "L0.MLP"), Edge("L0.MLP", "L1.H0.v"), Edge("L1.H0", LOGITS)}
    return PlantedModel(
        model=model,
        task=task,
        graph=graph,
        truth=frozenset(truth),
        dead=frozenset(graph.writers) - {edge.source for edge in truth},
        distractors=frozenset(),
        note="L0.MLP marks each X; L1.H0 takes the mean of the marks so far.",
    )


def _sample_unequal_pairs(
    generator: torch.Generator, count: int
) -> Int[Tensor, "side prompt position"]:
    """Pairs of prompts, the one with more X first."""
    pairs = []
    while len(pairs) < count:
        pair = torch.randint(WORDS.start, WORDS.stop, (2, LENGTH), generator=generator)
        counts = (pair == X).sum(1)
        # Without any X all logits are 0 up to rounding.
        if counts.all() and counts[0] != counts[1]:
            pairs.append(pair[counts.argsort(descending=True)])
    words = torch.stack(pairs, 1)
    return torch.cat([torch.full((2, count, 1), BOS), words], -1)


def _build_gpt2() -> Any:  # noqa: ANN401 (a transformers class)
    """GPT-2 with the compiled weights; only the first head of each layer is used."""
    from transformers import AutoModelForCausalLM, GPT2Config

    with np.load(data_folder() / "planted" / "frac_prevs.npz") as file:
        labels = file["labels"].tolist()
        tracr = {name: torch.from_numpy(file[name]) for name in file.files if name != "labels"}
    size, width = len(labels), 2 * len(labels) + 2
    d_head = tracr["layer_0/attn/query/w"].shape[1]
    config = GPT2Config(
        vocab_size=NOTHING + 1, n_positions=LENGTH + 1, n_embd=width, n_layer=2,
        n_head=width // d_head, n_inner=tracr["layer_0/mlp/linear_1/w"].shape[1],
        activation_function="relu", tie_word_embeddings=False,
        bos_token_id=BOS, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with seeded_init(0):  # The weights are overwritten below.
        hf_model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    hf_model.eval()
    for name, weight in hf_model.named_parameters():
        is_scale = name.endswith("weight") and ".ln_" in name
        weight.data.fill_(CONSTANT * math.sqrt(2 / width) if is_scale else 0)
    body = hf_model.transformer
    body.wte.weight.data[:, [size, -1]] = torch.tensor([CONSTANT, -CONSTANT])
    body.wte.weight.data[:FRACTION] += _mirrored(tracr["token_embed/embeddings"])
    body.wpe.weight.data[:] = _mirrored(tracr["pos_embed/embeddings"])
    for number, block in enumerate(body.h):
        layer = f"layer_{number}"
        for index, port in enumerate(("query", "key", "value")):
            columns = slice(index * width, index * width + d_head)
            block.attn.c_attn.weight.data[:size, columns] = tracr[f"{layer}/attn/{port}/w"]
            block.attn.c_attn.bias.data[columns] = tracr[f"{layer}/attn/{port}/b"]
        block.attn.c_proj.weight.data[:d_head] = _mirrored(tracr[f"{layer}/attn/linear/w"])
        block.attn.c_proj.bias.data[:] = _mirrored(tracr[f"{layer}/attn/linear/b"])
        block.mlp.c_fc.weight.data[:size] = tracr[f"{layer}/mlp/linear_1/w"]
        block.mlp.c_fc.bias.data[:] = tracr[f"{layer}/mlp/linear_1/b"]
        block.mlp.c_proj.weight.data[:] = _mirrored(tracr[f"{layer}/mlp/linear_2/w"])
        block.mlp.c_proj.bias.data[:] = _mirrored(tracr[f"{layer}/mlp/linear_2/b"])
    hf_model.lm_head.weight.data[FRACTION, labels.index(OUTPUT)] = 1
    return hf_model


def _mirrored(weight: Float[Tensor, "*rows dimension"]) -> Float[Tensor, "*rows twice"]:
    """Weights followed by their negative, each with a 0 for the constant."""
    # Half the width apart, both meet in one lane of a vectorized sum, so rounding cancels.
    half = torch.nn.functional.pad(weight, (0, 1))
    return torch.cat([half, -half], -1)
