"""Builder of two-layer Llamas whose weights are set by hand.

One dimension of the residual stream holds a large constant, so the scale of every norm is the same
for all inputs and each norm passes its input on unchanged. Every other dimension has one meaning.
Heads find a position by the fast rotary frequencies and a token by the slow ones.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probes.circuits.graph import Edge
from probes.models.process_state import seeded_init

BOS = 0
CONSTANT = 1000.0  # Its square is 1e5 times that of all other dimensions together.
ANSWER_LOGIT = 8.0
POSITION_SCORE = 50.0  # Attention score of the wanted position; the next best is 24 lower.

# Rotary pairs 0 to 2 rotate by 1, 0.18 and 0.03 per token; those from 4 on by at most 0.001.
D_HEAD, THETA, FAST_PAIRS, SLOW_DIMENSIONS = 32, 1e12, (0, 1, 2), (*range(4, 16), *range(20, 32))


class LlamaBuilder:
    """A two-layer Llama with zero weights, to be filled in part by part.

    Attributes:
        hf_model: The Hugging Face model.
        constant: Dimension of the constant.
        token: For each token the dimension that is 1 where it is read.
        truth, dead, distractors: As in `PlantedModel`.
    """

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
        with seeded_init(0):  # The weights are overwritten below.
            self.hf_model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self._free = iter(range(width))
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
        """Claim unused dimensions of the residual stream."""
        return [next(self._free) for _ in range(count)]

    def attend_back(self, layer: int, head: int, steps: int) -> None:
        """Attend to the position `steps` tokens earlier."""
        query, key = (self._head_weight(port, layer, head) for port in "qk")
        size = math.sqrt(POSITION_SCORE * math.sqrt(D_HEAD))
        for pair in FAST_PAIRS:
            angle = steps * THETA ** (-2 * pair / D_HEAD)
            query[pair, self.constant] = size * math.cos(angle)
            query[pair + D_HEAD // 2, self.constant] = -size * math.sin(angle)
            key[pair, self.constant] = size

    def attend_to_match(
        self, layer: int, head: int, dimensions: tuple[Sequence[int], Sequence[int]], score: float
    ) -> None:
        """Attend where the key dimensions match the query dimensions, given as (query, key)."""
        query, key = (self._head_weight(port, layer, head) for port in "qk")
        slots = SLOW_DIMENSIONS[: len(dimensions[0])]
        size = math.sqrt(score * math.sqrt(D_HEAD))
        query[slots, dimensions[0]] = key[slots, dimensions[1]] = size

    def copy_dimensions(
        self, layer: int, head: int, read: Sequence[int], write: Sequence[int]
    ) -> None:
        """Copy dimensions of the attended position to others of the current one."""
        slots = range(len(read))
        self._head_weight("v", layer, head)[slots, read] = 1
        self._head_weight("o", layer, head)[slots, write] = 1

    def set_neurons(
        self, layer: int, gates: Sequence[dict[int, float]], ups: Sequence[int], downs: Tensor
    ) -> None:
        """Set MLP neurons: gate weights by dimension, the dimension read by `up`, and `down`."""
        mlp = self.hf_model.model.layers[layer].mlp
        for neuron, (gate, up) in enumerate(zip(gates, ups, strict=True)):
            for dimension, weight in gate.items():
                mlp.gate_proj.weight.data[neuron, dimension] = weight
            mlp.up_proj.weight.data[neuron, up] = 1
        mlp.down_proj.weight.data[:, : len(ups)] = downs

    def add_mlp_distractor(self, layer: int, read: Sequence[int]) -> None:
        """Let an MLP copy dimensions to others that nothing reads."""
        write, width = self.allocate(len(read)), self.hf_model.config.hidden_size
        downs = torch.zeros(width, len(read))
        activation = self.hf_model.model.layers[layer].mlp.act_fn(torch.tensor(4.0))
        downs[write, range(len(read))] = 1 / float(activation)
        self.set_neurons(layer, [{self.constant: 4.0}] * len(read), read, downs)
        self.distractors.add(f"L{layer}.MLP")

    def _head_weight(self, port: str, layer: int, head: int) -> Tensor:
        attention = self.hf_model.model.layers[layer].self_attn
        weight = getattr(attention, f"{port}_proj").weight.data
        return (weight.T if port == "o" else weight)[head * D_HEAD : (head + 1) * D_HEAD]
