"""Models with a planted circuit, the ground truth for circuit discovery.

Induction, and gates that some attribution methods cannot see. `tracr` holds a compiled program.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.graph import EMBED, LOGITS, ComputationGraph, Edge
from probes.circuits.task import Task
from probes.models.model import Model, wrap
from probes.testing.llama_builder import ANSWER_LOGIT, BOS, CONSTANT, D_HEAD, LlamaBuilder

MIN_EFFECT_FRACTION = 0.05
"""Smallest effect of a true edge in `find_true_edges`, relative to the whole effect."""

KEYS, VALUES, PAIRS = range(1, 7), range(7, 13), 4
QUERY, ON, OFF, YES, NO = 1, range(2, 5), range(5, 8), 8, 9


@dataclass(frozen=True, eq=False)
class PlantedModel:
    """A model, its task and the circuit that solves it.

    Attributes:
        graph: Computation graph without roles.
        truth: Edges of the planted circuit.
        dead: Writers that always write 0; edges from and into them score exactly 0.
        distractors: Writers that differ between the runs but do not affect the answer.
        note: Description of the circuit.
    """

    model: Model
    task: Task
    graph: ComputationGraph
    truth: frozenset[Edge]
    dead: frozenset[str]
    distractors: frozenset[str]
    note: str


def induction(seed: int, *, distractors: int = 4, sharpness: float = 6.0) -> PlantedModel:
    """Previous-token head and induction head among distractors.

    A prompt has four pairs of key and value, then one of the keys; the answer is its value. Each
    third of the counterfactuals swaps two keys, asks for another key, or replaces the value. Both
    layers have `distractors` heads that write tokens into unused dimensions. Those of layer 1
    imitate the induction head or copy what layer 0 wrote. From a `sharpness` of about 20 the
    attention saturates, so gradients of one run miss the induction head.
    """
    builder, task, note = _build_induction(seed, distractors, sharpness)
    return _planted(builder, task, note)


def noisy_induction(seed: int, snr: float, *, distractors: int = 4) -> PlantedModel:
    """`induction` plus Gaussian noise on all weights; `snr` is the ratio of the norms.

    The truth is that of `find_true_edges`.
    """
    builder, task, note = _build_induction(seed, distractors, 6.0)
    generator = torch.Generator().manual_seed(seed)
    by_kind: dict[str, list[Tensor]] = {}
    for name, weight in builder.hf_model.named_parameters():
        if "norm" not in name:
            by_kind.setdefault(name.split(".")[-2], []).append(weight.data)
    for weights in by_kind.values():
        norm = torch.stack([w[w < CONSTANT].norm() for w in weights]).max()
        for weight in weights:
            scale = norm / (snr * math.sqrt(weight.numel()))
            weight += scale * torch.randn(weight.shape, generator=generator)
    note = f"{note} All weights have random noise, {snr} times smaller in norm."
    planted = _planted(builder, task, note)
    truth = find_true_edges(planted.model, task)
    return replace(planted, truth=truth, dead=frozenset(), distractors=frozenset())


def find_true_edges(model: Model, task: Task) -> frozenset[Edge]:
    """Edges whose exact effect, patched alone, is at least 5 % of the whole effect in size."""
    task, graph = task.to(model), task.computation_graph(model)
    clean, counterfactual = (
        task.logit_diff(model.logits(ids, task.mask, task.readout[:, None])[:, 0])
        for ids in (task.clean, task.counterfactual)
    )
    effects = edge_attribution(model, task, method="exact", per_prompt=False).mean.abs()
    is_true = effects >= MIN_EFFECT_FRACTION * float((clean - counterfactual).mean().abs())
    return frozenset(graph.edge(int(index)) for index in is_true.nonzero()[:, 0])


def or_gate(seed: int = 0, *, steepness: float = 2.0) -> PlantedModel:
    """Two heads of which one is enough, so patching a single edge changes nothing.

    Each head detects whether one token is "on". The MLP of layer 1 answers yes once their sum
    exceeds 1/2, on a ramp of width 1 / `steepness`. All tokens are on in clean prompts, off in
    counterfactual ones.
    """
    note = "Either head is enough, so no single edge from or into one head has an effect."
    return _plant_gate(seed, 0.5, steepness, note)


def and_gate(seed: int = 0, *, steepness: float = 2.0) -> PlantedModel:
    """Two heads that are both needed; the gradient is 0 in both runs.

    As `or_gate` with the threshold at 3/2.
    """
    note = "Both heads are needed, and the gate is flat in the clean and the counterfactual run."
    return _plant_gate(seed, 1.5, steepness, note)


def decoy(seed: int = 0) -> PlantedModel:
    """One head that answers, and a decoy head with a gradient but no effect.

    The logit difference rises and falls again with the output of the decoy. Its gradient exceeds
    that of the true head in both runs, but the runs do not differ by it.
    """
    note = "The logit difference rises and falls with the decoy: a slope without an effect."
    return _plant_gate(seed, 0.5, 0.5, note, tent=True)


def _planted(builder: LlamaBuilder, task: Task, note: str) -> PlantedModel:
    model = wrap(builder.hf_model, name="planted", origin="set by hand")
    sets = (frozenset(builder.truth), frozenset(builder.dead), frozenset(builder.distractors))
    return PlantedModel(model, task, task.computation_graph(model), *sets, note)


def _build_induction(
    seed: int, distractors: int, sharpness: float
) -> tuple[LlamaBuilder, Task, str]:
    generator = torch.Generator().manual_seed(seed)
    heads = distractors + 2
    builder = LlamaBuilder(13, heads)
    (previous, dead_0, *copiers), (finder, dead_1, *others) = (
        torch.randperm(heads, generator=generator).tolist() for _ in range(2)
    )
    keys, values = builder.token[KEYS.start : KEYS.stop], builder.token[VALUES.start : VALUES.stop]
    key_before, answer = builder.allocate(6), builder.allocate(6)
    builder.attend_back(0, previous, 1)
    builder.copy_dimensions(0, previous, keys, key_before)
    builder.attend_to_match(1, finder, (keys, key_before), sharpness)
    builder.copy_dimensions(1, finder, values, answer)
    builder.hf_model.lm_head.weight.data[list(VALUES), answer] = ANSWER_LOGIT
    copies = []
    for steps, head in enumerate(copiers):
        copies.append(builder.allocate(12))
        builder.attend_back(0, head, steps)
        builder.copy_dimensions(0, head, keys + values, copies[-1])
    for number, head in enumerate(others):
        if number % 2 == 0:
            builder.attend_to_match(1, head, (keys, key_before), sharpness)
            builder.copy_dimensions(1, head, values, builder.allocate(6))
        else:
            builder.attend_back(1, head, number)
            builder.copy_dimensions(1, head, copies[number], builder.allocate(12))
    builder.add_mlp_distractor(1, values + answer)
    builder.dead |= {f"L0.H{dead_0}", "L0.MLP", f"L1.H{dead_1}"}
    builder.distractors |= {f"L0.H{head}" for head in copiers} | {f"L1.H{h}" for h in others}
    first, second = f"L0.H{previous}", f"L1.H{finder}"
    edges = [(EMBED, f"{first}.v"), (first, f"{second}.k"), (EMBED, f"{second}.q")]
    edges += [(EMBED, f"{second}.v"), (second, LOGITS)]
    builder.truth |= {Edge(*edge) for edge in edges}
    note = f"{first} copies the key before each value; {second} attends to the queried key by it."
    return builder, _induction_task(generator, 24), note


def _induction_task(generator: torch.Generator, count: int) -> Task:
    rows = []
    for number in range(count):
        keys, values = (torch.randperm(6, generator=generator).tolist() for _ in range(2))
        queried, other = torch.randperm(PAIRS, generator=generator)[:2].tolist()
        clean = (keys, values, keys[queried])
        if number % 3 == 0:
            swapped = list(keys)
            swapped[queried], swapped[other] = keys[other], keys[queried]
            corrupt, foil = (swapped, values, keys[queried]), values[other]
        elif number % 3 == 1:
            corrupt, foil = (keys, values, keys[other]), values[other]
        else:
            replaced = list(values)
            replaced[queried] = values[PAIRS]  # a value that the prompt does not have
            corrupt, foil = (keys, replaced, keys[queried]), values[PAIRS]
        rows.append((clean, corrupt, values[queried], foil))
    clean, counterfactual = (
        torch.tensor([_induction_prompt(*row[side]) for row in rows]) for side in (0, 1)
    )
    answer, foil = (torch.tensor([VALUES[row[side]] for row in rows]) for side in (2, 3))
    return Task.from_tokens(clean, counterfactual, answer, foil[:, None])


def _induction_prompt(keys: Sequence[int], values: Sequence[int], query: int) -> list[int]:
    pairs = zip(keys[:PAIRS], values[:PAIRS], strict=True)
    inside = [token for key, value in pairs for token in (KEYS[key], VALUES[value])]
    return [BOS, *inside, KEYS[query]]


def _plant_gate(
    seed: int, threshold: float, steepness: float, note: str, *, tent: bool = False
) -> PlantedModel:
    generator = torch.Generator().manual_seed(seed)
    builder = LlamaBuilder(10, 4, act="relu")
    (first, second, copier, dead), (copier_1, reader, *idle) = (
        torch.randperm(4, generator=generator).tolist() for _ in range(2)
    )
    on, off = builder.token[ON.start : ON.stop], builder.token[OFF.start : OFF.stop]
    bits, answer, copies = builder.allocate(2), builder.allocate(1)[0], builder.allocate(6)
    for steps, head, bit in ((2, first, bits[0]), (1, second, bits[1])):
        builder.attend_back(0, head, steps)
        builder.copy_dimensions(0, head, on, [bit] * len(on))
    _set_gate_neurons(builder, bits, answer, (threshold, steepness), tent=tent)
    builder.hf_model.lm_head.weight.data[YES, answer] = ANSWER_LOGIT
    builder.hf_model.lm_head.weight.data[NO, [builder.constant, answer]] = torch.tensor(
        [ANSWER_LOGIT, -ANSWER_LOGIT]
    )
    builder.attend_back(0, copier, 1)
    builder.copy_dimensions(0, copier, on + off, copies)
    builder.attend_back(1, copier_1, 0)
    builder.copy_dimensions(1, copier_1, copies, builder.allocate(6))
    builder.attend_back(1, reader, 0)
    builder.copy_dimensions(1, reader, bits, builder.allocate(2))
    builder.add_mlp_distractor(0, on + off)
    builder.dead |= {f"L0.H{dead}", *(f"L1.H{head}" for head in idle)}
    builder.distractors |= {f"L0.H{copier}", f"L1.H{copier_1}", f"L1.H{reader}"}
    if tent:
        builder.distractors.add(f"L0.H{second}")
    for head in (f"L0.H{first}",) if tent else (f"L0.H{first}", f"L0.H{second}"):
        builder.truth |= {Edge(EMBED, f"{head}.v"), Edge(head, "L1.MLP")}
    builder.truth.add(Edge("L1.MLP", LOGITS))
    return _planted(builder, _gate_task(generator, 12), note)


def _set_gate_neurons(
    builder: LlamaBuilder, bits: list[int], answer: int, ramp: tuple[float, float], *, tent: bool
) -> None:
    """Ramp from 0 to 1, made of two rectifiers; `tent` adds a tent over the second bit.

    Args:
        ramp: Threshold and steepness.
    """
    threshold, steepness = ramp
    slopes = dict.fromkeys(bits[:1] if tent else bits, steepness)
    gates = [slopes | {builder.constant: 0.5 - steepness * threshold - late} for late in (0, 1)]
    sizes = [1.0, -1.0]
    if tent:  # 0 at both ends, 1/2 in the middle
        gates += [{bits[1]: 1.0, builder.constant: 0.5}, {bits[1]: 1.0, builder.constant: -0.5}]
        gates.append({builder.constant: 1.0})
        sizes += [1.0, -2.0, -0.5]
    downs = torch.zeros(4 * D_HEAD, len(gates))
    downs[answer] = torch.tensor(sizes)
    builder.set_neurons(1, gates, [builder.constant] * len(gates), downs)


def _gate_task(generator: torch.Generator, count: int) -> Task:
    def prompts(tokens: range) -> Int[Tensor, "prompt position"]:
        inside = torch.randint(tokens.start, tokens.stop, (count, 2), generator=generator)
        bos, query = torch.tensor([[BOS], [QUERY]]).expand(-1, count)
        return torch.cat([bos[:, None], inside, query[:, None]], dim=1)

    answer, foil = torch.full((count,), YES), torch.full((count, 1), NO)
    return Task.from_tokens(prompts(ON), prompts(OFF), answer, foil)
