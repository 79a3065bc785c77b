"""Planted models whose circuit is a gate: cases that one method or another cannot see.

Two heads find out whether one token each is "on", and an MLP combines what they say. See `planted`.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from probes.circuits.graph import EMBED, LOGITS, Edge
from probes.circuits.task import Task
from probes.testing.planted_circuits import ANSWER_LOGIT, BOS, D_HEAD, LlamaBuilder, PlantedModel

QUERY, ON, OFF, YES, NO = 1, range(2, 5), range(5, 8), 8, 9


def or_gate(seed: int = 0, *, steepness: float = 2.0) -> PlantedModel:
    """Plant two heads either of which is enough: patched alone, neither changes anything.

    Each finds out whether one token is "on"; the MLP of the second layer answers yes once the sum
    passes a half, over a range of 1 / `steep`. All are on in clean prompts and off in the others.
    """
    note = "Either head is enough, so that no edge into or out of one alone has an effect."
    return _plant_gate(seed, 0.5, steepness, note)


def and_gate(seed: int = 0, *, steepness: float = 2.0) -> PlantedModel:
    """Plant two heads that are both needed: in neither run does the lead have a gradient there.

    As `or_gate`, with the step at one and a half.
    """
    note = "Both heads are needed, and the gate is flat in the clean and the other run."
    return _plant_gate(seed, 1.5, steepness, note)


def decoy(seed: int = 0) -> PlantedModel:
    """Plant one head that answers, and one whose gradient alone says that it does.

    What the second adds to the lead first rises and then falls, back to where it began: steep in
    either run, and steeper than the first, it makes no difference between them.
    """
    note = "The lead rises with the decoy's head and falls again: a slope without an effect."
    return _plant_gate(seed, 0.5, 0.5, note, tent=True)


def _plant_gate(
    seed: int, threshold: float, steepness: float, note: str, *, tent: bool = False
) -> PlantedModel:
    draw = torch.Generator().manual_seed(seed)
    made = LlamaBuilder(10, 4, act="relu")
    (one, other, copier, dead), (passer, reader, *idle) = (
        torch.randperm(4, generator=draw).tolist() for _ in range(2)
    )
    on, off = made.token[ON.start : ON.stop], made.token[OFF.start : OFF.stop]
    bits, (answer,), copies = made.allocate(2), made.allocate(1), made.allocate(6)
    for steps, head, bit in ((2, one, bits[0]), (1, other, bits[1])):
        made.attend_back(0, head, steps)
        made.copy_dimensions(0, head, on, [bit] * len(on))
    # A ramp from 0 to 1, as wide as 1 / steep: two rectifiers, the second one step later.
    asked = dict.fromkeys(bits[:1] if tent else bits, steepness)
    gates = [asked | {made.constant: 0.5 - steepness * threshold - late} for late in (0, 1)]
    sizes = [1.0, -1.0]
    if tent:  # 0 at either end, a half in between.
        gates += [{bits[1]: 1.0, made.constant: 0.5}, {bits[1]: 1.0, made.constant: -0.5}]
        gates.append({made.constant: 1.0})
        sizes += [1.0, -2.0, -0.5]
    downs = torch.zeros(4 * D_HEAD, len(gates))
    downs[answer] = torch.tensor(sizes)
    made.set_neurons(1, gates, [made.constant] * len(gates), downs)
    made.hf_model.lm_head.weight.data[YES, answer] = ANSWER_LOGIT
    made.hf_model.lm_head.weight.data[NO, [made.constant, answer]] = torch.tensor(
        [ANSWER_LOGIT, -ANSWER_LOGIT]
    )
    made.attend_back(0, copier, 1)
    made.copy_dimensions(0, copier, on + off, copies)
    made.attend_back(1, passer, 0)
    made.copy_dimensions(1, passer, copies, made.allocate(6))
    made.attend_back(1, reader, 0)
    made.copy_dimensions(1, reader, bits, made.allocate(2))
    made.add_mlp_distractor(0, on + off)
    made.dead |= {f"L0.H{dead}", *(f"L1.H{head}" for head in idle)}
    made.distractors |= {f"L0.H{copier}", f"L1.H{passer}", f"L1.H{reader}"}
    if tent:
        made.distractors.add(f"L0.H{other}")
    for head in (f"L0.H{one}",) if tent else (f"L0.H{one}", f"L0.H{other}"):
        made.truth |= {Edge(EMBED, f"{head}.v"), Edge(head, "L1.MLP")}
    made.truth.add(Edge("L1.MLP", LOGITS))
    return made.build(_gate_task(draw, 12), note)


def _gate_task(draw: torch.Generator, count: int) -> Task:
    def prompts(tokens: range) -> Int[Tensor, "prompt position"]:
        chosen = torch.randint(tokens.start, tokens.stop, (count, 2), generator=draw)
        ends = torch.tensor([[BOS], [QUERY]]).expand(-1, count)
        return torch.cat([ends[0][:, None], chosen, ends[1][:, None]], dim=1)

    answer, foil = torch.full((count,), YES), torch.full((count, 1), NO)
    return Task.from_tokens(prompts(ON), prompts(OFF), answer, foil)
