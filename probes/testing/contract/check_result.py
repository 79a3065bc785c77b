"""Results of the contract suite, without torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from probes.errors import SiteError
from probes.result import Result

if TYPE_CHECKING:
    import pandas as pd

CheckState = Literal["pass", "refused", "fail"]


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """Outcome of one check; `detail` gives the number or the reason."""

    check: str
    state: CheckState
    detail: str


@dataclass(frozen=True, slots=True, repr=False)
class ModelCheck(Result):
    """Outcomes of the contract suite on one model."""

    model: str
    architecture: str
    outcomes: tuple[CheckOutcome, ...]

    @property
    def is_loaded(self) -> bool:
        """Whether the model could be loaded, so that checks were run."""
        return all(one.check != "load" or one.state == "pass" for one in self.outcomes)

    @property
    def failed(self) -> tuple[CheckOutcome, ...]:
        """Checks that failed."""
        return tuple(one for one in self.outcomes if one.state == "fail")

    def state(self, check: str) -> CheckState:
        """State of one check.

        Raises:
            SiteError: There is no such check.
        """
        for outcome in self.outcomes:
            if outcome.check == check:
                return outcome.state
        names = ", ".join(one.check for one in self.outcomes)
        raise SiteError(f"There is no check {check!r}: there are {names}")

    def summary(self) -> tuple[str, ...]:
        """Counts, then every check that did not pass."""
        counts = {s: sum(one.state == s for one in self.outcomes) for s in ("pass", "refused")}
        head = (
            f"{self.model} ({self.architecture}): {counts['pass']} of {len(self.outcomes)} checks "
            f"pass, {counts['refused']} are refused with a reason, {len(self.failed)} fail."
        )
        lines = (
            f"{one.check}: {one.state}. {one.detail}"
            for one in self.outcomes
            if one.state != "pass"
        )
        return (head, *lines)

    def table(self) -> "pd.DataFrame":
        """One row for each check."""
        import pandas as pd

        rows = [(one.check, one.state, one.detail) for one in self.outcomes]
        return pd.DataFrame(rows, columns=["check", "state", "detail"])

    def __repr__(self) -> str:
        return f"<{self.summary()[0]}>"


@dataclass(frozen=True, slots=True, repr=False)
class ModelChecks(Result):
    """The contract suite on several models.

    Attributes:
        checks: One for each model.
    """

    checks: tuple[ModelCheck, ...]

    def summary(self) -> tuple[str, ...]:
        """Summaries, model by model."""
        return tuple(line for check in self.checks for line in check.summary())

    def table(self) -> "pd.DataFrame":
        """One row for each model and check."""
        import pandas as pd

        tables = [check.table().assign(model=check.model) for check in self.checks]
        table = pd.concat(tables, ignore_index=True)
        return table.reindex(columns=["model", "check", "state", "detail"])

    def __repr__(self) -> str:
        return f"<ModelChecks of {', '.join(check.model for check in self.checks)}>"
