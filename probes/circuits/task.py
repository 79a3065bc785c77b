"""What is traced: pairs of prompts, token for token alike, and the one answer that is scored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.circuits.graph import ComputationGraph
from probes.errors import BatchError
from probes.models.model import Model
from probes.observe.behavior import logit_diff, pair_foils
from probes.prompts.pair_batch import PairBatch

_TENSOR_FIELDS = ("clean", "counterfactual", "mask", "readout", "answer", "foils", "role_of")


@dataclass(frozen=True, eq=False)
class Task:
    """Clean prompts beside their counterfactuals, and where and by what they are scored.

    Attributes:
        clean, counterfactual: Token ids; each position stands for the same place in both.
        mask: True where there is a token, in both.
        readout: The position whose logits are read.
        answer: The answer's token there.
        foils: The tokens it is held against, padded with -1: the counterfactual's answer, or all
            other outcomes where the answer is the same.
        roles: The roles that occur.
        role_of: Index into `roles` of every token, -1 for padding.
        name: What was asked, for the record: pattern, contrast and answer.
    """

    clean: Int[Tensor, "prompt position"]
    counterfactual: Int[Tensor, "prompt position"]
    mask: Bool[Tensor, "prompt position"]
    readout: Int[Tensor, " prompt"]
    answer: Int[Tensor, " prompt"]
    foils: Int[Tensor, "prompt outcome"]
    roles: tuple[str, ...]
    role_of: Int[Tensor, "prompt position"]
    name: str = "a task"

    def __post_init__(self) -> None:
        if len(self.clean) == 0:
            raise BatchError("A task needs at least one pair of prompts: none was given")
        if self.clean.shape != self.counterfactual.shape:
            raise BatchError(
                f"The contrasts are unequal: clean prompts are {tuple(self.clean.shape)}, their "
                f"counterfactuals {tuple(self.counterfactual.shape)}. Give pairs of equal length."
            )

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, rows: slice | Int[Tensor, " row"]) -> "Task":
        """Take some of the pairs."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _TENSOR_FIELDS})

    def to(self, model: Model) -> "Task":
        """Move it to where a model's weights are."""
        moved = {name: getattr(self, name).to(model.device) for name in _TENSOR_FIELDS}
        return replace(self, **moved)

    @property
    def first_difference(self) -> int:
        """The first position at which some pair differs: before it, both runs are the same."""
        differs = ((self.clean != self.counterfactual) & self.mask).any(0)
        return int(differs.int().argmax()) if bool(differs.any()) else differs.shape[0] - 1

    def logit_diff(self, logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
        """Score logits at the read-out: the answer's less the mean of its foils'."""
        foils, answer = self.foils.to(logits.device), self.answer.to(logits.device)
        return logit_diff(logits, foils, answer)

    def computation_graph(self, model: Model, *, roles: bool = False) -> ComputationGraph:
        """List the wires that a model has for this task, resolved by roles or not."""
        shape = model.shape
        plain = ComputationGraph(shape.layers, shape.heads, shape.kv_heads, shape.parallel)
        if not roles:
            return plain
        known = range(len(self.roles))
        first = torch.stack(
            [_first_or_last_position(self.role_of == role, last=False) for role in known]
        )
        last = torch.stack(
            [_first_or_last_position(self.role_of == role, last=True) for role in known]
        )
        passages = (first[:, None] <= last[None]).any(-1)
        found = [(self.roles[a], self.roles[b]) for a, b in passages.nonzero().tolist()]
        read = self.role_of.gather(1, self.readout[:, None])[:, 0].unique().tolist()
        readouts = tuple(self.roles[role] for role in read)
        return replace(plain, roles=self.roles, role_pairs=tuple(found), readouts=readouts)


def task_from_pairs(pairs: PairBatch, answer: str = "", *, skip_unequal: bool = False) -> Task:
    """Prepare pairs of a pattern for tracing one answer, the first of the pattern by default.

    Raises:
        BatchError: A pair has unequal token counts in some role; with `exact`, such pairs are
            left out, and the error is raised only if none is left.
        SiteError: The pairs have no such answer.
    """
    name = answer or pairs.clean.readouts[0].name
    readout = pairs.clean.readout(name)
    column = [found.name for found in pairs.clean.readouts].index(name)
    foils = pair_foils(pairs)[column]
    keep = pairs.fully_aligned
    if not bool(keep.all()) and (not skip_unequal or not bool(keep.any())):
        bad = pairs.pairs[int((~keep).int().argmax())]
        raise BatchError(
            f"{int((~keep).sum())} of {len(keep)} contrasts are unequal: "
            f"{bad.clean.text!r} and {bad.counterfactual.text!r} differ in the number of tokens "
            "of some role. Trace contrasts whose words have equal token counts."
        )
    found = Task(
        clean=pairs.clean.ids,
        counterfactual=pairs.counterfactual.ids.gather(1, pairs.source_positions),
        mask=pairs.clean.mask,
        readout=readout.position,
        answer=readout.answer,
        foils=foils,
        roles=pairs.clean.roles,
        role_of=pairs.clean.role_of,
        name=f"{pairs.pairs[0].clean.pattern}: {pairs.contrast}, {name}",
    )
    return found[keep.nonzero()[:, 0]]


def task_from_tokens(
    clean: Int[Tensor, "prompt position"],
    counterfactual: Int[Tensor, "prompt position"],
    answer: Int[Tensor, " prompt"],
    foils: Int[Tensor, "prompt outcome"],
    *,
    roles: Sequence[str] = (),
) -> Task:
    """Prepare ids of equal length, read at the last position; each position is a role."""
    width = clean.shape[1]
    if roles and len(roles) != width:
        raise BatchError(
            f"{len(roles)} roles were given for {width} positions: name one for each, or none"
        )
    return Task(
        clean=clean,
        counterfactual=counterfactual,
        mask=torch.ones_like(clean, dtype=torch.bool),
        readout=torch.full((len(clean),), width - 1),
        answer=answer,
        foils=foils,
        roles=tuple(roles) or tuple(f"p{place}" for place in range(width)),
        role_of=torch.arange(width).repeat(len(clean), 1),
    )


def _first_or_last_position(
    is_role: Bool[Tensor, "prompt position"], *, last: bool
) -> Int[Tensor, " prompt"]:
    """Return the first or last place of a role, or one that passes no comparison if it has none."""
    width = is_role.shape[1]
    place = torch.arange(width, device=is_role.device)
    return (
        torch.where(is_role, place, -1).amax(1)
        if last
        else torch.where(is_role, place, width).amin(1)
    )
