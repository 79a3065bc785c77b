"""Winning tickets: which few weights of a trained model, set back to where they began, do it again.

Iterative magnitude pruning with rewinding (Frankle & Carbin 2019, arXiv 1803.03635; Frankle et
al. 2020, arXiv 1912.05671): train, leave out the smallest weights, set the rest back to what they
were early on, train again.

    early weights + masks of the trained ones → train → smaller masks → … → the ticket
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from probes.compression.derived_model import DerivedModel, load_parent
from probes.compression.distillation.texts import load_texts, pad_token
from probes.compression.distillation.trainer import TrainingConfig, TrainingText, fit
from probes.compression.pruning.masks import (
    Masks,
    apply_masks,
    density,
    magnitude_masks,
    masked_storage,
    random_masks_like,
)
from probes.errors import ModelError
from probes.models.provenance import Provenance

ControlKind = Literal["random", "reinitialized"]

TrainFunction = Callable[[Any, Masks, str], nn.Module]
"""Trains a model in place under masks; it is told the name, and returns the model."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """A trained ticket and the masks that make it.

    Attributes:
        relative: The model, whose weights outside the masks are exactly zero.
        masks: What is kept.
        round: How often it was pruned, from 1.
    """

    model: DerivedModel
    masks: Masks
    n_rounds: int


def lottery_ticket(  # noqa: PLR0913 (from where to where, and how)
    model: str | Path | DerivedModel,
    early: str | Path | DerivedModel,
    settings: TrainingConfig,
    *,
    texts: Path | Sequence[TrainingText],
    folder: Path,
    rounds: int = 3,
    fraction: float = 0.5,
    progress: bool = False,
) -> DerivedModel:
    """Find a winning ticket by iterative magnitude pruning with rewinding; see `tickets`.

    Args:
        model: The trained model.
        early: What it was early in training.
        dials: How it is trained again, in every round.
        folder: Where the checkpoints of the rounds go.
        rounds, share: How often, and the share of the weights left to leave out each time.
        texts: As in `distill`.
        progress: Whether to show bars.

    Raises:
        ModelError: The early weights are those of another model, or the trained ones.
    """
    trained = load_parent(model)
    begun = load_parent(early)
    rows = load_texts(trained, texts)

    def train(hf_model: Any, masks: Masks, name: str) -> nn.Module:  # noqa: ANN401
        place = folder.with_name(f"{folder.name}-{name}")
        fit(
            hf_model,
            rows,
            settings,
            folder=place,
            pad_token=pad_token(trained),
            masks=masks,
            progress=progress,
        )
        return hf_model

    *_, last = iterative_pruning(begun, trained, train, rounds=rounds, fraction=fraction)
    told = {
        **last.model.provenance.settings,
        "rounds": rounds,
        "share": fraction,
        **asdict(settings),
    }
    return replace(last.model, provenance=replace(last.model.provenance, settings=told))


def iterative_pruning(  # noqa: PLR0913 (from where to where, and how fast)
    early: DerivedModel,
    trained: DerivedModel,
    train: TrainFunction,
    *,
    rounds: int = 3,
    fraction: float = 0.5,
    scope: str = "global",
) -> Iterator[Ticket]:
    """Prune, rewind and train again, round by round.

    Args:
        early: The weights to go back to.
        trained: What training made of them.
        train: Trains again, as the full model was.
        rounds: How often.
        share: Share of the weights still there to leave out in each round, 0 to 1.
        scope: Whether weights are ranked together or matrix by matrix.

    Raises:
        ModelError: The two are not the same model at two times.
    """
    _check_early(early, trained)
    masks: Masks | None = None
    last: nn.Module = trained.hf_model
    for number in range(1, rounds + 1):
        masks = magnitude_masks(last, fraction, scope=scope, within=masks)
        found = _train_ticket(early, trained, train, masks, f"{trained.name}-ticket-{number}")
        last = found.hf_model
        yield Ticket(found, masks, number)


def train_control(  # noqa: PLR0913 (as above)
    ticket: Ticket,
    early: DerivedModel,
    trained: DerivedModel,
    train: TrainFunction,
    kind: ControlKind,
    *,
    seed: int,
) -> Ticket:
    """Train what a ticket has to beat, with as many weights in every matrix.

    Args:
        ticket: Whose masks are matched.
        early: The weights that the ticket went back to.
        trained: The full model.
        train: As for the ticket.
        kind: "random" keeps weights drawn anywhere and goes back to the same ones;
            "reinitialized" keeps the ticket's and goes back to `early` itself, which is to be a
            model of other early weights.
        seed: Of what is drawn.
    """
    masks = random_masks_like(ticket.masks, seed=seed) if kind == "random" else ticket.masks
    name = f"{ticket.model.name}-{kind}"
    return Ticket(_train_ticket(early, trained, train, masks, name), masks, ticket.n_rounds)


def _train_ticket(
    early: DerivedModel, trained: DerivedModel, train: TrainFunction, masks: Masks, name: str
) -> DerivedModel:
    start = copy.deepcopy(early.hf_model)
    apply_masks(masks, start)
    done = train(start, masks, name)
    apply_masks(
        masks, done
    )  # Zero whatever was trained: a rounding of -0.0 is no zero weight kept.
    settings = {"early": early.name, "density": density(masks)}
    made = Provenance("ticket", trained.name, masked_storage(done, masks), settings)
    return DerivedModel(name, done, trained.tokenizer, made)


def _check_early(early: DerivedModel, trained: DerivedModel) -> None:
    ours = {name: tuple(w.shape) for name, w in early.hf_model.named_parameters()}
    theirs = {name: tuple(w.shape) for name, w in trained.hf_model.named_parameters()}
    if ours != theirs:
        odd = next(n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n))
        raise ModelError(
            f"{early.name} holds no early weights of {trained.name}: {odd} is {ours.get(odd)} "
            f"there and {theirs.get(odd)} here. Give the same model as it was early in training."
        )
    same = all(
        torch.equal(a, b)
        for a, b in zip(early.hf_model.parameters(), trained.hf_model.parameters(), strict=True)
    )
    if same:
        raise ModelError(
            f"The early weights of {trained.name} are its trained ones: there is nothing to go "
            "back to. Give the model as it was early in training."
        )
