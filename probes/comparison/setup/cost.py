"""Cost of exact patching and of random-init models, by which large models are measured in less.

Costs are counted in floating-point operations, not in seconds, so that a result does not depend on
the machine.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from probes.models.model import Model
from probes.prompts.tokens.pair_batch import PairBatch

ScreenChoice = Literal["auto", "never", "always"]
NullChoice = Literal["auto", "random-init", "permuted"]

MAX_OPERATIONS = 1e13
"""Operations of exact patching, or of all random-init models, above which "auto" takes the cheaper
way: one to two minutes of one CPU core for each model."""

_NULL_PASSES = 8  # Passes of a random-init model over all pairs, with those of role paths.


def sweep_operations(model: Model, pairs: Mapping[str, PairBatch], roles: Sequence[str]) -> float:
    """Operations of patching every head and MLP at every role of every prompt.

    A run restarts behind the patched site: half of the layers and half of the tokens on average.
    """
    shape = model.shape
    cells = shape.layers * (shape.heads + 1) * len(roles)
    return cells * _pass_operations(model, pairs) / 4


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
