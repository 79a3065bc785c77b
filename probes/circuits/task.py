"""Tasks: token-aligned prompt pairs, and the answer whose logit difference is measured."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.circuits.graph import ComputationGraph
from probes.errors import BatchError, CircuitError, GateError, PatternError
from probes.models.model import Model
from probes.observe.behavior import logit_diff, pair_foils
from probes.observe.gate import gate
from probes.observe.result import Gate, GateCriterion
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair
from probes.prompts.splits import TextDisjointHalves
from probes.prompts.tokens.pair_batch import (
    PairBatch,
    UnreadableTextsWarning,
    sample_pairs,
    tokenize_pairs,
)

_TENSOR_FIELDS = ("clean", "counterfactual", "mask", "readout", "answer", "foils", "role_of")


@dataclass(frozen=True, eq=False)
class Task:
    """Clean and counterfactual prompts, aligned token by token, with the answer to score.

    Attributes:
        clean, counterfactual: Token ids.
        mask: True where there is a token, in both.
        readout: The position whose logits are read.
        answer: The answer's token at the readout.
        foils: Tokens that the answer is compared with, padded with -1: the counterfactual's
            answer, or all other outcomes where the answer does not change.
        roles: The roles that occur.
        role_of: Index into `roles` of every token, -1 for padding.
        name: Pattern, contrasts and answer, for the protocol.
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
            raise BatchError("A task needs at least one pair of prompts, and none was given")
        if self.clean.shape != self.counterfactual.shape:
            raise BatchError(
                f"The prompts are unequal: clean prompts are {tuple(self.clean.shape)}, their "
                f"counterfactuals {tuple(self.counterfactual.shape)}. Give pairs of equal length."
            )

    @classmethod
    def from_pairs(
        cls, pairs: PairBatch, answer: str = "", *, skip_unequal: bool = False
    ) -> "Task":
        """Task of a pattern's tokenized pairs, for one answer (by default the first).

        Raises:
            BatchError: A pair has unequal token counts in some role; with `skip_unequal`, such
                pairs are left out, and the error means that none remains.
            SiteError: The pairs have no such answer.
        """
        if not isinstance(pairs, PairBatch):
            raise BatchError(
                f"{type(pairs).__name__!r} found: give tokenized pairs, as of "
                "`tokenize_pairs(model, pairs)`"
            )
        name = answer or pairs.clean.readouts[0].name
        readout = pairs.clean.readout(name)
        column = [each.name for each in pairs.clean.readouts].index(name)
        foils = pair_foils(pairs)[column]
        keep = pairs.fully_aligned
        if not bool(keep.all()) and (not skip_unequal or not bool(keep.any())):
            unequal = pairs.pairs[int((~keep).int().argmax())]
            raise BatchError(
                f"{int((~keep).sum())} of {len(keep)} pairs are unequal: "
                f"{unequal.clean.text!r} and {unequal.counterfactual.text!r} differ in the number "
                "of tokens of some role. Use contrasts whose words have equal token counts, or "
                "leave such pairs out with skip_unequal=True."
            )
        if not bool(keep.all()):
            warnings.warn(
                f"{pairs.pairs[0].clean.pattern}: {int((~keep).sum())} of {len(keep)} pairs are "
                "left out, as their prompts differ in the number of tokens of some role",
                UnreadableTextsWarning,
                stacklevel=2,
            )
        task = cls(
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
        return task[keep.nonzero()[:, 0]]

    @classmethod
    def from_tokens(
        cls,
        clean: Int[Tensor, "prompt position"],
        counterfactual: Int[Tensor, "prompt position"],
        answer: Int[Tensor, " prompt"],
        foils: Int[Tensor, "prompt outcome"],
        *,
        roles: Sequence[str] = (),
    ) -> "Task":
        """Task of token ids of equal length, read at the last position; each position is a role."""
        width = clean.shape[1]
        if roles and len(roles) != width:
            raise BatchError(
                f"{len(roles)} roles were given for {width} positions: name one for each, or none"
            )
        return cls(
            clean=clean,
            counterfactual=counterfactual,
            mask=torch.ones_like(clean, dtype=torch.bool),
            readout=torch.full((len(clean),), width - 1),
            answer=answer,
            foils=foils,
            roles=tuple(roles) or tuple(f"p{position}" for position in range(width)),
            role_of=torch.arange(width).repeat(len(clean), 1),
        )

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, rows: slice | Int[Tensor, " row"]) -> "Task":
        """The task of some of the pairs."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _TENSOR_FIELDS})

    def to(self, model: Model) -> "Task":
        """The task on the model's device."""
        moved = {name: getattr(self, name).to(model.device) for name in _TENSOR_FIELDS}
        return replace(self, **moved)

    @property
    def first_difference(self) -> int:
        """First position at which some pair differs; up to there both runs are identical."""
        differs = ((self.clean != self.counterfactual) & self.mask).any(0)
        return int(differs.int().argmax()) if bool(differs.any()) else differs.shape[0] - 1

    def logit_diff(self, logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
        """Logit difference at the readout: the answer's logit minus the mean of its foils."""
        foils, answer = self.foils.to(logits.device), self.answer.to(logits.device)
        return logit_diff(logits, foils, answer)

    def computation_graph(self, model: Model, *, roles: bool = False) -> ComputationGraph:
        """The model's computation graph, resolved by the roles of these prompts or not."""
        shape = model.shape
        graph = ComputationGraph(shape.layers, shape.heads, shape.kv_heads, shape.parallel)
        if not roles:
            return graph
        has_role = torch.stack([self.role_of == role for role in range(len(self.roles))])
        width = self.role_of.shape[1]
        position = torch.arange(width, device=has_role.device)
        # A role that a prompt lacks satisfies no comparison.
        first = torch.where(has_role, position, width).amin(-1)
        last = torch.where(has_role, position, -1).amax(-1)
        precedes = (first[:, None] <= last[None]).any(-1)
        pairs = [(self.roles[a], self.roles[b]) for a, b in precedes.nonzero().tolist()]
        read = self.role_of.gather(1, self.readout[:, None])[:, 0].unique().tolist()
        readouts = tuple(self.roles[role] for role in read)
        return replace(graph, roles=self.roles, role_pairs=tuple(pairs), readouts=readouts)


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """How a pattern's pairs are drawn.

    Attributes:
        answer: The answer to score; by default the pattern's first.
        contrasts: What the counterfactuals change; by default all contrasts that change the answer.
        prompts: Pairs of each contrast in each half.
        seed: Seed of the draw.
    """

    answer: str = ""
    contrasts: tuple[str, ...] = ()
    prompts: int = 32
    seed: int = 0


def require_task(task: object) -> Task:
    """Return a task as it is.

    Raises:
        CircuitError: It is none, such as pairs, of which a task scores one answer.
    """
    if not isinstance(task, Task):
        raise CircuitError(
            f"{type(task).__name__!r} found in place of a task: give `Task.from_pairs(pairs)` of "
            "tokenized pairs"
        )
    return task


def sample_tasks(
    model: Model, pattern: Pattern, settings: TaskSettings | None = None
) -> tuple[Task, Task]:
    """Two tasks without a common text: one to find a circuit with, one to evaluate it on.

    Raises:
        CircuitError: No contrast changes the answer, or too few texts remain for one half.
        PatternError: The pattern has too few pairs.
    """
    settings = settings or TaskSettings()
    prompts, answer = settings.prompts, settings.answer or pattern.answers[0][0]
    if prompts < 1:
        raise CircuitError(f"{prompts} prompts were requested: request at least one a contrast")
    contrasts = settings.contrasts or pattern.contrasts
    halves = TextDisjointHalves(prompts)
    for contrast in contrasts:
        try:
            pairs = sample_pairs(
                pattern, contrast, 2 * prompts, tokenizers=(model.tokenizer,), seed=settings.seed
            )
        except PatternError as error:
            raise PatternError(
                f"{error}: {prompts} pairs find the circuit and {prompts} others evaluate it. "
                "Request at most half as many prompts as there are pairs (--prompts, or "
                "TraceSettings), or name contrasts that have more"
            ) from error
        names = [name for name, _ in pairs[0].clean.answers]
        if answer not in names:
            raise CircuitError(f"{pattern.name!r} has no answer {answer!r}: it has {names}")
        if settings.contrasts or not any(_has_same_answer(pair, answer) for pair in pairs):
            halves.add(pairs)
    discovery, evaluation = halves.halves
    if not discovery:
        raise CircuitError(
            f"No contrast of {pattern.name!r} changes {answer!r}: found {', '.join(contrasts)}. "
            "Name contrasts that do, or another answer."
        )
    if not evaluation:
        raise CircuitError(
            f"All texts of {pattern.name!r} are used to find the circuit, and none remains to "
            "evaluate it on. Add pairs with other texts, or request fewer prompts."
        )
    batches = (
        tokenize_pairs(model.tokenizer, half, max_length=model.shape.context)
        for half in (discovery, evaluation)
    )
    first, second = (Task.from_pairs(batch, answer, skip_unequal=True) for batch in batches)
    return first, second


def require_open_gate(
    model: Model,
    pattern: Pattern,
    answer: str = "",
    *,
    seed: int,
    criterion: GateCriterion | None = None,
) -> Gate:
    """Gate of one answer of a pattern (by default the first), with the criterion of `gate`.

    Raises:
        GateError: The gate is closed, or the pattern has no such answer.
    """
    gates = gate(model, pattern, seed=seed, criterion=criterion)
    names = [each.answer for each in gates]
    if answer and answer not in names:
        raise GateError(f"{pattern.name!r} has no answer {answer!r}: it has {', '.join(names)}")
    chosen = gates[names.index(answer)] if answer else gates[0]
    if chosen.state == "too few to tell":
        raise GateError(chosen.too_few_reason)
    if chosen.state == "closed":
        raise GateError(
            f"{chosen.closed_reason} There is no circuit to trace; choose a model or a pattern "
            "whose gate is open, or the gate none."
        )
    return chosen


def _has_same_answer(pair: Pair, answer: str) -> bool:
    return pair.clean.answer(answer) == pair.counterfactual.answer(answer)
