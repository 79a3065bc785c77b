"""How the effects and the null of a comparison were measured: exact or screened, models or not."""

from dataclasses import dataclass
from typing import Literal

from probes.interventions.result import ScreenCheck
from probes.plan import budget_lines

NullKind = Literal["random-init", "permuted"]


@dataclass(frozen=True, slots=True)
class ComparisonMethod:
    """How a comparison was measured.

    Attributes:
        null: What gives the thresholds: "random-init" models of the relative's shape, or the
            relative's own measurements, "permuted": each head at random roles, and paths with
            clean and counterfactual prompts exchanged at random.
        screens: Error of the effects of each model and contrast that attribution patching gave;
            empty where every component was patched exactly at every role.
        left_out: What a budget left out, in words; empty for the whole comparison.
        command: Command line that repeats the comparison; "" where models or settings have none.
        version: Version of this package.
    """

    null: NullKind = "random-init"
    screens: tuple[ScreenCheck, ...] = ()
    left_out: tuple[str, ...] = ()
    command: str = ""
    version: str = ""

    @property
    def null_name(self) -> str:
        """What a draw of the null is called in sentences."""
        return "random-init models" if self.null == "random-init" else "permuted profiles"

    def lines(self) -> tuple[str, ...]:
        """What is left out, error of the screens, and the null where it is not the usual one."""
        lines = [*budget_lines(self.left_out)]
        if self.screens:
            checks = "; ".join(map(str, self.screens))
            lines.append(f"Effects are screened by attribution patching. {checks}.")
        if self.null == "permuted":
            lines.append(
                "The null permutes the relative's own measurements (roles of each head, signs of "
                "paths), as random-init models of this size cost too much: null='random-init' "
                "measures them."
            )
        return tuple(lines)
