"""Models whose circuit is known, as every weight was set by hand: what methods are judged by.

They are ordinary Llamas. One dimension of the residual stream holds a large constant, so that the
scale of a norm is the same for every input, and each norm passes on what it reads as it is. All
other dimensions have one meaning each. Heads look for a place by the rotary frequencies that turn
fast, and for a token by those that hardly turn. `planted_gates` and `compiled` hold more of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from probes.circuits.attribution import edge_attribution
from probes.circuits.graph import EMBED, LOGITS, ComputationGraph, Edge
from probes.circuits.task import Task
from probes.models.model import Model, wrap

CONSTANT = 1000.0  # Its square is 100,000 times that of all else together.
ANSWER_LOGIT = 8.0  # Logit of an answer that is wholly there.
POSITION_SCORE = 50.0  # Score of the place that a head looks for; the next best lies 24 below.

# Rotary pairs 0 to 2 turn by 1, 0.18 and 0.03 a token; those from 4 on by 0.001 and less.
D_HEAD, THETA, FAST_PAIRS, SLOW_DIMENSIONS = 32, 1e12, (0, 1, 2), (*range(4, 16), *range(20, 32))

MIN_EFFECT_FRACTION = (
    0.05  # Of the whole change of the lead: what a true edge carries where none was set.
)

BOS, KEYS, VALUES, PAIRS = 0, range(1, 7), range(7, 13), 4


@dataclass(frozen=True, eq=False)
class PlantedModel:
    """A model, what it is asked, and the circuit that answers.

    Attributes:
        wiring: The model's wires, not resolved by roles.
        truth: The edges of the working path.
        dead: Writers that never write: the edges from them and into them score exactly 0.
        distractors: Writers that tell the runs apart and make no difference.
        note: What was planted.
    """

    model: Model
    task: Task
    graph: ComputationGraph
    truth: frozenset[Edge]
    dead: frozenset[str]
    distractors: frozenset[str]
    note: str


def induction(seed: int, *, distractors: int = 4, sharpness: float = 6.0) -> PlantedModel:
    """Plant a previous-token head and an induction head that reads it, among distractors.

    A prompt is four keys, each with its value behind it, and one of the keys again; the answer is
    its value. A third of the counterfactuals each exchange two keys, ask for another key, or hold
    another value. In both layers, `distractors` heads write tokens into dimensions of their own;
    those of the second are twins of the induction head, or pass on what the first wrote. From a
    `sharpness` of about 20 the induction head is so sure that gradients in one run do not see it.
    """
    made, task, note = _build_induction(seed, distractors, sharpness)
    return made.build(task, note)


def noisy_induction(seed: int, snr: float, *, distractors: int = 4) -> PlantedModel:
    """Plant `induction` under Gaussian weights everywhere; `snr` compares the two in norm.

    The truth is what `by_patching` finds.
    """
    made, task, note = _build_induction(seed, distractors, 6.0)
    draw = torch.Generator().manual_seed(seed)
    kinds: dict[str, list[Tensor]] = {}
    for name, weight in made.hf_model.named_parameters():
        if "norm" not in name:
            kinds.setdefault(name.split(".")[-2], []).append(weight.data)
    for weights in kinds.values():
        planted = torch.stack([w[w < CONSTANT].norm() for w in weights]).max()
        for weight in weights:
            scale = planted / (snr * math.sqrt(weight.numel()))
            weight += scale * torch.randn(weight.shape, generator=draw)
    found = made.build(task, f"{note} Random weights everywhere, {snr} times smaller in norm.")
    truth = find_true_edges(found.model, task)
    return replace(found, truth=truth, dead=frozenset(), distractors=frozenset())


def find_true_edges(model: Model, task: Task) -> frozenset[Edge]:
    """Find every edge that, patched alone, counts: the truth of a model that nobody set by hand.

    It takes 5% or more of the lead that the counterfactual takes, in either direction.
    """
    task, wiring = task.to(model), task.computation_graph(model)
    here, there = (
        task.logit_diff(model.logits(ids, task.mask)[torch.arange(len(task)), task.readout])
        for ids in (task.clean, task.counterfactual)
    )
    size = edge_attribution(model, task, method="exact", per_prompt=False).mean.abs()
    true = size >= MIN_EFFECT_FRACTION * float((here - there).mean().abs())
    return frozenset(wiring.edge(int(number)) for number in true.nonzero()[:, 0])


# Setting the weights.


class LlamaBuilder:
    """A Llama of two layers that is being filled in, and what is known of it."""

    def __init__(
        self, tokens: int, heads: int, *, act: str = "silu", neurons: int = 24, context: int = 16
    ) -> None:
        from transformers import AutoModelForCausalLM, LlamaConfig

        width = heads * D_HEAD
        config = LlamaConfig(
            vocab_size=tokens, hidden_size=width, intermediate_size=neurons, num_hidden_layers=2,
            num_attention_heads=heads, head_dim=D_HEAD, max_position_embeddings=context,
            hidden_act=act, rope_parameters={"rope_type": "default", "rope_theta": THETA},
            tie_word_embeddings=False, bos_token_id=BOS, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # It draws weights, which are then overwritten.
            self.hf_model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self.free = iter(range(width))
        self.constant, self.token = self.allocate(1)[0], self.allocate(tokens)
        self.truth: set[Edge] = set()
        self.dead: set[str] = set()
        self.distractors: set[str] = set()
        for name, weight in self.hf_model.named_parameters():
            weight.data.fill_(CONSTANT / math.sqrt(width) if "norm" in name else 0)
            if "norm" in name:
                weight.data[self.constant] = 1 / math.sqrt(width)
        embedding = self.hf_model.model.embed_tokens.weight.data
        embedding[:, self.constant] = CONSTANT
        embedding[range(tokens), self.token] = 1

    def allocate(self, count: int) -> list[int]:
        """Claim dimensions of the residual stream."""
        return [next(self.free) for _ in range(count)]

    def attend_back(self, layer: int, head: int, steps: int) -> None:
        """Attend to the token that stands so many places before."""
        query, key = (self._head_weight(port, layer, head) for port in "qk")
        size = math.sqrt(POSITION_SCORE * math.sqrt(D_HEAD))
        for pair in FAST_PAIRS:
            angle = steps * THETA ** (-2 * pair / D_HEAD)
            query[pair, self.constant] = size * math.cos(angle)
            query[pair + D_HEAD // 2, self.constant] = -size * math.sin(angle)
            key[pair, self.constant] = size

    def attend_to_match(
        self,
        layer: int,
        head: int,
        query_dimensions: Sequence[int],
        key_dimensions: Sequence[int],
        sharpness: float,
    ) -> None:
        """Attend to where a dimension of `held` says what that of `asked` says here."""
        query, key = (self._head_weight(port, layer, head) for port in "qk")
        slots = SLOW_DIMENSIONS[: len(query_dimensions)]
        query[slots, query_dimensions] = key[slots, key_dimensions] = math.sqrt(
            sharpness * math.sqrt(D_HEAD)
        )

    def copy_dimensions(
        self, layer: int, head: int, read: Sequence[int], write: Sequence[int]
    ) -> None:
        """Copy some dimensions from where a head attends into others."""
        slots = range(len(read))
        self._head_weight("v", layer, head)[slots, read] = 1
        self._head_weight("o", layer, head)[slots, write] = 1

    def set_neurons(
        self, layer: int, gates: Sequence[dict[int, float]], ups: Sequence[int], downs: Tensor
    ) -> None:
        """Fill in neurons of an MLP: what opens each, what it passes on, and where to."""
        mlp = self.hf_model.model.layers[layer].mlp
        for neuron, (gate, up) in enumerate(zip(gates, ups, strict=True)):
            for dimension, weight in gate.items():
                mlp.gate_proj.weight.data[neuron, dimension] = weight
            mlp.up_proj.weight.data[neuron, up] = 1
        mlp.down_proj.weight.data[:, : len(ups)] = downs

    def add_mlp_distractor(self, layer: int, read: Sequence[int]) -> None:
        """Let an MLP copy some dimensions to where nothing reads."""
        write, width = self.allocate(len(read)), self.hf_model.config.hidden_size
        downs = torch.zeros(width, len(read))
        opened = self.hf_model.model.layers[layer].mlp.act_fn(torch.tensor(4.0))
        downs[write, range(len(read))] = 1 / float(opened)
        self.set_neurons(layer, [{self.constant: 4.0}] * len(read), read, downs)
        self.distractors.add(f"L{layer}.MLP")

    def _head_weight(self, port: str, layer: int, head: int) -> Tensor:
        attention = self.hf_model.model.layers[layer].self_attn
        weight = getattr(attention, f"{port}_proj").weight.data
        return (weight.T if port == "o" else weight)[head * D_HEAD : (head + 1) * D_HEAD]

    def build(self, task: Task, note: str) -> PlantedModel:
        """Wrap the model, and say what it holds."""
        model = wrap(self.hf_model, name="planted", origin="set by hand")
        facts = (frozenset(self.truth), frozenset(self.dead), frozenset(self.distractors))
        return PlantedModel(model, task, task.computation_graph(model), *facts, note)


def _build_induction(
    seed: int, distractors: int, sharpness: float
) -> tuple[LlamaBuilder, Task, str]:
    draw = torch.Generator().manual_seed(seed)
    heads = distractors + 2
    made = LlamaBuilder(13, heads)
    (previous, dead, *rest), (finder, idle, *twins) = (
        torch.randperm(heads, generator=draw).tolist() for _ in range(2)
    )
    keys, values = made.token[KEYS.start : KEYS.stop], made.token[VALUES.start : VALUES.stop]
    before, found = made.allocate(6), made.allocate(6)
    made.attend_back(0, previous, 1)
    made.copy_dimensions(0, previous, keys, before)
    made.attend_to_match(1, finder, keys, before, sharpness)
    made.copy_dimensions(1, finder, values, found)
    made.hf_model.lm_head.weight.data[list(VALUES), found] = ANSWER_LOGIT
    copies = []
    for steps, head in enumerate(rest):
        copies.append(made.allocate(12))
        made.attend_back(0, head, steps)
        made.copy_dimensions(0, head, keys + values, copies[-1])
    for number, head in enumerate(twins):
        if number % 2 == 0:
            made.attend_to_match(1, head, keys, before, sharpness)
            made.copy_dimensions(1, head, values, made.allocate(6))
        else:
            made.attend_back(1, head, number)
            made.copy_dimensions(1, head, copies[number], made.allocate(12))
    made.add_mlp_distractor(1, values + found)
    made.dead |= {f"L0.H{dead}", "L0.MLP", f"L1.H{idle}"}
    made.distractors |= {f"L0.H{head}" for head in rest} | {f"L1.H{head}" for head in twins}
    first, second = f"L0.H{previous}", f"L1.H{finder}"
    wires = [(EMBED, f"{first}.v"), (first, f"{second}.k"), (EMBED, f"{second}.q")]
    wires += [(EMBED, f"{second}.v"), (second, LOGITS)]
    made.truth |= {Edge(*wire) for wire in wires}
    note = f"{first} says what stood before each value; {second} finds the key asked for by it."
    return made, _induction_task(draw, 24), note


def _induction_task(draw: torch.Generator, count: int) -> Task:
    """Ask for values by their keys; counterfactuals exchange keys, the question, or the value."""
    rows = []
    for number in range(count):
        keys, values = (torch.randperm(6, generator=draw).tolist() for _ in range(2))
        here, there = torch.randperm(PAIRS, generator=draw)[:2].tolist()
        clean = (keys, values, keys[here])
        if number % 3 == 0:
            swapped = list(keys)
            swapped[here], swapped[there] = keys[there], keys[here]
            rows.append((clean, (swapped, values, keys[here]), values[here], values[there]))
        elif number % 3 == 1:
            rows.append((clean, (keys, values, keys[there]), values[here], values[there]))
        else:
            replaced = list(values)
            replaced[here] = values[PAIRS]  # Some value that the prompt has not.
            rows.append((clean, (keys, replaced, keys[here]), values[here], values[PAIRS]))
    clean, other = (
        torch.tensor([_induction_prompt(*row[side]) for row in rows]) for side in (0, 1)
    )
    answer, foil = (torch.tensor([VALUES[row[side]] for row in rows]) for side in (2, 3))
    return Task.from_tokens(clean, other, answer, foil[:, None])


def _induction_prompt(keys: Sequence[int], values: Sequence[int], query: int) -> list[int]:
    pairs = zip(keys[:PAIRS], values[:PAIRS], strict=True)
    inside = [token for key, value in pairs for token in (KEYS[key], VALUES[value])]
    return [BOS, *inside, KEYS[query]]
