"""Error of a screen: how far gradients are from exact patching."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScreenCheck:
    """Agreement of attribution patching with exact patching of the same cells.

    A cell is a component at a role. Effects are means over the first 8 pairs.

    Attributes:
        model, contrast: What was patched.
        cells: Number of cells whose activation differs between the runs.
        exact: Number of them that were patched exactly.
        random: Number of them in the random sample.
        spearman: Rank correlation of the two effects over the random sample (-1 to 1).
        mean_absolute_error, mean_absolute_effect: Over the random sample (logits).
        top: Number of strongest cells that are compared.
        top_recall: Fraction of the strongest exact cells that are among the strongest of the
            screen, over all exact cells (0 to 1).
    """

    model: str
    contrast: str
    cells: int
    exact: int
    random: int
    spearman: float
    mean_absolute_error: float
    mean_absolute_effect: float
    top: int
    top_recall: float

    def __str__(self) -> str:
        return (
            f"{self.model}, {self.contrast}: {self.exact} of {self.cells} cells patched exactly; "
            f"screen against exact, {self.random} random cells: Spearman {self.spearman:.2f}, mean "
            f"absolute error {self.mean_absolute_error:.3f} logits (mean effect "
            f"{self.mean_absolute_effect:.3f}), recall of the strongest {self.top} "
            f"{self.top_recall:.2f}"
        )
