"""Cost of exact patching, of random-init models and of memory, by which a comparison is planned.

Costs are counted in floating-point operations, not in seconds, so that a result does not depend on
the machine.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from probes.comparison.setup.method import NullChoice as NullChoice
from probes.interventions.screening.patching import ExactCells
from probes.models.model import Model
from probes.prompts.tokens.pair_batch import PairBatch

ScreenChoice = Literal["auto", "never", "always"]

MAX_OPERATIONS = 1e13
"""Operations of exact patching, or of all random-init models, above which "auto" takes the cheaper
way: one to two minutes of one CPU core for each model."""

_EXACT_OPERATIONS = 2e13
"""Operations of the cells of one model that are patched exactly after a screen, unless these are
very few: at most three to four minutes of one CPU core, as random cells take 8 pairs only."""

# Kept per token, layer and unit of width, per pair of a contrast, and of gradients and others.
_FLOATS_PER_UNIT, _FLOATS_PER_PAIR, _FIXED_FLOATS = 5, 500_000, 200_000_000

_LEAST_CELLS = 10  # Strongest and random cells of each contrast.
_NULL_PASSES = 8  # Passes of a random-init model over all pairs, with those of role paths.


def sweep_operations(model: Model, pairs: Mapping[str, PairBatch], roles: Sequence[str]) -> float:
    """Operations of patching every head and MLP at every role of every prompt.

    A run restarts behind the patched site: half of the layers and half of the tokens on average.
    """
    shape = model.shape
    cells = shape.layers * (shape.heads + 1) * len(roles)
    return cells * _pass_operations(model, pairs) / 4


def exact_cells(
    models: Sequence[tuple[Model, Mapping[str, PairBatch]]], *, seed: int = 0, scale: float = 1.0
) -> ExactCells:
    """Cells of each contrast that are patched exactly after a screen; fewer of a large model.

    `models` have their pairs with them; `scale` is how often as many will be measured.
    """
    most = ExactCells(seed=seed)
    operations = max(_pass_operations(*one) for one in models) * scale / 4  # Of a cell.
    share = min(1.0, _EXACT_OPERATIONS / (operations * (most.top + most.random)))
    top, random = (max(_LEAST_CELLS, round(share * n)) for n in (most.top, most.random))
    return ExactCells(top, random, seed)


def null_operations(model: Model, pairs: Mapping[str, PairBatch], nulls: int) -> float:
    """Operations of measuring as many random-init models of the shape."""
    return nulls * _NULL_PASSES * _pass_operations(model, pairs)


def _pass_operations(model: Model, pairs: Mapping[str, PairBatch]) -> float:
    """Operations of one pass over the clean prompts: two for each weight of a block and token."""
    tokens = sum(int(batch.clean.mask.sum()) for batch in pairs.values())
    weights = sum(weight.numel() for weight in model.bridge.blocks.parameters())
    return 2.0 * weights * tokens


def is_cheaper(choice: str, cheap: str, operations: Sequence[float]) -> bool:
    """Whether a setting takes the cheaper way; "auto" does above `MAX_OPERATIONS`."""
    return choice == cheap or (choice == "auto" and max(operations) > MAX_OPERATIONS)


def extra_memory(model: Model, batches: Mapping[str, PairBatch], share: float) -> int:
    """Bytes that measuring a model takes beside its weights, for `share` times as many pairs."""
    pairs = sum(map(len, batches.values()))
    tokens = sum(batch.clean.ids.numel() for batch in batches.values())
    kept = tokens * model.shape.layers * model.shape.d_model * _FLOATS_PER_UNIT
    floats = share * (kept + pairs * _FLOATS_PER_PAIR) + _FIXED_FLOATS
    return round(floats) * model.dtype.itemsize
