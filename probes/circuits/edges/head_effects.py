"""Effect of heads between roles: what each head carries from the keys of one role to another.

    effect(q, k) = Σ_{t in q, s in k} <A_ts v_s - A'_ts v'_s, gradient at z_t>

A, v: attention and values of the clean run; A', v': of the counterfactual one. The gradient is that
of the logit difference. The sum over k is the attribution of the head at role q. A head that
attends mostly to the first token carries nothing from there where both runs agree, so that a mean
attention alone would name the wrong role.
"""

from collections.abc import Iterable

import torch
from einops import einsum, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from probes.circuits.edges.gradients import GradientRecorder
from probes.circuits.head_roles import HeadRole
from probes.circuits.task import Task
from probes.models.layers.decoder import decompose
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.model import Model
from probes.models.site import parse_head

_PROMPTS, _BATCH = 32, 8

RoleMatrix = Float[Tensor, "layer head role role_key"]


def head_effects(model: Model, task: Task) -> tuple[RoleMatrix, RoleMatrix]:
    """Mean effect (logits) of each head between roles, and its mean attention in the clean runs.

    The gradient is taken halfway between the embeddings of both runs, as EAP-IG with one step does.
    Attention is summed over keys and averaged over queries, NaN for roles that do not occur.
    """
    weights, count = decompose(model), len(task.roles)
    size = (model.shape.layers, model.shape.heads, count, count)
    task = task.to(model)

    def run(rows: Int[Tensor, " row"]) -> tuple[Tensor, Tensor, Tensor]:
        part, effects, attention = task[rows], torch.zeros(size), torch.zeros(size)
        member = one_hot(part.role_of.clamp(min=0), count).float()
        member = member * (part.role_of >= 0)[..., None]
        recorder = GradientRecorder(model, weights, part, by_role=True, clean=None)
        clean, other = (recorder.outputs(ids) for ids in (part.clean, part.counterfactual))
        grads = recorder.gradients(part.clean, other.embed.lerp(clean.embed, 0.5)).grads["z"]
        runs = [
            _attention_and_values(model, part, ids) for ids in (part.clean, part.counterfactual)
        ]
        for layer, grad in enumerate(grads):
            carried = [
                pattern * einsum(grad.float(), v, "b q h e, b k h e -> b h q k")
                for pattern, v in (run[layer] for run in runs)
            ]
            ends = (carried[0] - carried[1], runs[0][layer][0])
            for total, values in zip((effects, attention), ends, strict=True):
                by_role = einsum(values, member, member, "b h q k, b q r, b k s -> h r s")
                total[layer] += by_role.cpu()
        return effects, attention, member.sum((0, 1)).cpu()

    batches = MicroBatches("effects of heads", _BATCH, task.clean.shape[1])
    parts = run_micro_batches(model, torch.arange(len(task)), run, batches)
    effects, attention, queries = (torch.stack(each).sum(0) for each in zip(*parts, strict=True))
    return effects / len(task), attention / queries[:, None]


def label_heads(model: Model, task: Task, heads: Iterable[str]) -> tuple[HeadRole, ...]:
    """Role that each head writes for and role that it reads from: its largest effect between two.

    Args:
        model, task: The model and pairs of prompts; at most 32 of them, evenly spaced, are run.
        heads: Names of heads, such as "L2.H3".
    """
    names = list(dict.fromkeys(heads))
    if not names:
        return ()
    rows = torch.linspace(0, len(task) - 1, min(_PROMPTS, len(task))).round().long()
    effects, attention = head_effects(model, task[rows])
    found = []
    for name in names:
        own = effects[parse_head(name)]
        query, key = divmod(int(own.abs().argmax()), len(task.roles))
        share = own[query, key].abs() / own.abs().sum().clamp(min=1e-12)
        weight = attention[parse_head(name)][query, key].nan_to_num()
        roles = (task.roles[query], task.roles[key])
        found.append(HeadRole(name, *roles, round(float(share), 4), round(float(weight), 4)))
    return tuple(found)


@torch.no_grad()
def _attention_and_values(
    model: Model, task: Task, ids: Tensor
) -> list[tuple[Float[Tensor, "prompt head query key"], Float[Tensor, "prompt key head d_head"]]]:
    """Attention and values of each head in a run of token ids, layer by layer."""
    heads = model.shape.heads
    names = [
        [f"blocks.{layer}.attn.{hook}" for hook in ("hook_pattern", "hook_v")]
        for layer in range(model.shape.layers)
    ]
    with model.recording([name for pair in names for name in pair]) as kept:
        model.forward(ids, task.mask, task.readout[:, None])
    found = []
    for pattern, v in names:
        value = kept[v].float()
        if value.ndim == 3:
            value = value.unflatten(-1, (-1, model.shape.d_head))
        value = repeat(value, "b k g e -> b k (g h) e", h=heads // value.shape[2])
        found.append((kept[pattern].float(), value))
    return found
