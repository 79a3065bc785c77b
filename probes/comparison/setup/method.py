"""How the effects and the null of a comparison were measured: exact or screened, models or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from probes.interventions.screening.check import ScreenCheck
from probes.plan import budget_lines

NullKind = Literal["random-init", "permuted"]
NullChoice = Literal["auto", "random-init", "permuted"]  # Here, as results load without torch.


@dataclass(frozen=True, slots=True)
class ComparisonMethod:
    """How a comparison was measured.

    Attributes:
        null: What gives the thresholds: "random-init" models of the relative's shape, or the
            relative's own measurements, "permuted": each head at random roles, and paths with
            clean and counterfactual prompts exchanged at random.
        screens: Error of the effects of each model and contrast that attribution patching gave;
            empty where every component was patched exactly at every role.
        null_screens: The same for heads of one of the random-init models.
        left_out: What a budget left out, in words; empty for the whole comparison.
        missing_draws: Which draws of prompts for variables are missing, and why; "" for none.
        command: Command line that repeats the comparison; "" where models or settings have none.
        version: Version of this package.
        null_choice: Null that was asked for; "auto" chooses by cost.
    """

    null: NullKind = "random-init"
    screens: tuple[ScreenCheck, ...] = ()
    null_screens: tuple[ScreenCheck, ...] = ()
    left_out: tuple[str, ...] = ()
    missing_draws: str = ""
    command: str = ""
    version: str = ""
    null_choice: NullChoice = "auto"

    @property
    def null_name(self) -> str:
        """What a draw of the null is called in sentences."""
        return "random-init models" if self.null == "random-init" else "permuted profiles"

    @property
    def path_null(self) -> str:
        """Where paths of the null are measured, in sentences."""
        if self.null == "random-init":
            return "in random-init models"
        return "with clean and counterfactual prompts exchanged at random"

    def lines(self) -> tuple[str, ...]:
        """What is left out, error of the screens, and the null where it is not the usual one."""
        lines = [*budget_lines(self.left_out)]
        if self.missing_draws:
            lines.append(self.missing_draws)
        if self.screens:
            checks = "; ".join(map(str, self.screens))
            lines.append(f"Effects are screened by attribution patching. {checks}.")
        if self.null == "permuted":
            why = ""
            if self.null_choice == "auto":
                why = (
                    ", as random-init models of this size cost too much: null='random-init' "
                    "measures them"
                )
            lines.append(
                "The null permutes the relative's own measurements (roles of each head, signs of "
                f"paths){why}. Against the permuted null no head is found to have moved, because "
                "it leaves sums over roles as they are, and variables are held against labels and "
                "shuffled states only."
            )
        return tuple(lines)

    def null_lines(self) -> tuple[str, ...]:
        """How heads of random-init models were measured: a detail, which a summary leaves out."""
        if not self.null_screens:
            return ()
        exact = sum(check.exact for check in self.null_screens)
        return (
            "Heads of random-init models are measured by attribution patching. In one of them "
            f"{exact} random cells were also patched exactly: {_agreement(self.null_screens)}.",
        )


def _agreement(checks: Sequence[ScreenCheck]) -> str:
    """Rank correlation and relative error over the random cells of all contrasts."""
    count, error, effect = (
        sum(weights)
        for weights in zip(
            *(
                (c.random, c.random * c.mean_absolute_error, c.random * c.mean_absolute_effect)
                for c in checks
            ),
            strict=True,
        )
    )
    # Effects of one size have no ranks.
    ranked = [check for check in checks if not np.isnan(check.spearman)]
    if not ranked or not effect:
        return f"mean absolute error {error / count:.3f} logits"
    spearman = np.average([c.spearman for c in ranked], weights=[c.random for c in ranked])
    return f"mean Spearman {spearman:.2f}, mean absolute error {error / effect:.0%} of the effect"
