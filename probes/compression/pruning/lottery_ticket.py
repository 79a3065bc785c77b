"""Lottery tickets: iterative magnitude pruning with rewinding to early weights.

Frankle & Carbin 2019, arXiv 1803.03635; Frankle et al. 2020, arXiv 1912.05671. Each round prunes
the smallest trained weights, resets the others to their early values, and trains again.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probes.compression.derived_model import DerivedModel, load_parent
from probes.compression.distillation.plan import TrainingConfig, TrainingPlan
from probes.compression.distillation.texts import Texts, load_texts, pad_token
from probes.compression.distillation.trainer import TrainingReport, fit
from probes.compression.pruning.masks import (
    Masks,
    apply_masks,
    density,
    magnitude_masks,
    masked_storage,
)
from probes.errors import ModelError
from probes.models.files.provenance import Provenance

TrainFunction = Callable[[Any, Masks, str], nn.Module]
"""Trains a Hugging Face model in place under masks and returns it; also given the ticket's name."""


@dataclass(frozen=True, slots=True)
class TicketSettings:
    """Settings of `lottery_ticket`.

    Attributes:
        rounds: Number of rounds.
        fraction: Fraction of the remaining weights to prune in each round, 0 to 1.
        training: Settings of the training in each round.
        progress: Whether to show progress bars, or a function to call after every step.
    """

    rounds: int = 3
    fraction: float = 0.5
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(1500, 0))
    progress: bool | TrainingReport = False


@dataclass(frozen=True, eq=False)
class Ticket:
    """A trained ticket.

    Attributes:
        model: The model; weights outside of the masks are exactly zero.
        masks: The kept weights.
        n_rounds: Number of pruning rounds, from 1.
    """

    model: DerivedModel
    masks: Masks
    n_rounds: int


def lottery_ticket(
    model: str | Path | DerivedModel,
    early: str | Path | DerivedModel,
    texts: Texts,
    settings: TicketSettings | None = None,
    *,
    folder: Path,
) -> DerivedModel:
    """Find a winning ticket by iterative magnitude pruning with rewinding.

    Args:
        model: The trained model.
        early: The same model early in its training.
        texts: File with one text per line, or tokenized texts.
        settings: Rounds, fraction and training.
        folder: Folder of checkpoints; each round has its own in it.

    Raises:
        ModelError: The early weights belong to another model or are the trained ones, there are
            no texts, or the folder has checkpoints of another run.
    """
    settings = settings or TicketSettings()
    trained, start = load_parent(model), load_parent(early)
    rows, pad = load_texts(trained, texts), pad_token(trained)

    def train(hf_model: Any, masks: Masks, name: str) -> nn.Module:  # noqa: ANN401
        plan = TrainingPlan(rows, settings.training, pad, masks=masks)
        return fit(hf_model, plan, folder=folder / name, progress=settings.progress)

    *_, last = iterative_pruning(
        start, trained, train, rounds=settings.rounds, fraction=settings.fraction
    )
    record = {
        **last.model.provenance.settings,
        "rounds": settings.rounds,
        "share": settings.fraction,
        **asdict(settings.training),
    }
    return replace(last.model, provenance=replace(last.model.provenance, settings=record))


def iterative_pruning(
    early: DerivedModel,
    trained: DerivedModel,
    train: TrainFunction,
    *,
    rounds: int = 3,
    fraction: float = 0.5,
) -> Iterator[Ticket]:
    """Prune, rewind and train again, and yield the ticket of each round.

    Args:
        early: Weights to rewind to.
        trained: The trained model.
        train: Trains a ticket.
        rounds: Number of rounds.
        fraction: Fraction of the remaining weights of all matrices to prune in each round, 0 to 1.

    Raises:
        ModelError: The early weights belong to another model, or are the trained ones.
    """
    _check_early(early, trained)
    masks: Masks | None = None
    last: nn.Module = trained.hf_model
    for number in range(1, rounds + 1):
        masks = magnitude_masks(last, fraction, within=masks)
        name = f"{trained.name}-ticket-{number}"
        start = copy.deepcopy(early.hf_model)
        apply_masks(masks, start)
        last = train(start, masks, name)
        apply_masks(masks, last)  # Training may leave -0.0.
        settings = {"early": early.name, "density": density(masks)}
        made = Provenance("ticket", trained.name, masked_storage(last, masks), settings)
        yield Ticket(DerivedModel(name, last, trained.tokenizer, made), masks, number)


def _check_early(early: DerivedModel, trained: DerivedModel) -> None:
    shapes, trained_shapes = (
        {name: tuple(weight.shape) for name, weight in model.hf_model.named_parameters()}
        for model in (early, trained)
    )
    if shapes != trained_shapes:
        names = {**shapes, **trained_shapes}
        odd = next(name for name in names if shapes.get(name) != trained_shapes.get(name))
        raise ModelError(
            f"{early.name} has no early weights of {trained.name}: {odd} has shape "
            f"{shapes.get(odd)} there and {trained_shapes.get(odd)} here. Give the same model as "
            "it was early in training."
        )
    pairs = zip(early.hf_model.parameters(), trained.hf_model.parameters(), strict=True)
    if all(torch.equal(one, other) for one, other in pairs):
        raise ModelError(
            f"The early weights of {trained.name} are its trained ones: there is nothing to "
            "rewind to. Give the model as it was early in training."
        )
