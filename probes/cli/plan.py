"""Plans of commands: what they print before the work begins, and the options for it."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from probes.cli.common import open_console, print_line
from probes.errors import ProbeError

MADE = ("quantized", "pruned", "grown", "distilled", "ticket")
"""Commands of `make` that have a plan."""

PLANNED = ("compare", "trace", "claims", "curve", *(f"make {kind}" for kind in MADE))
"""Commands that have a plan."""

Budget = Annotated[
    str,
    typer.Option(
        help="Most CPU or device time, such as 90s, 10m or 1h; what is left out is printed."
    ),
]

PlanOnly = Annotated[bool, typer.Option("--plan-only", hidden=True)]


def require_planned(command: str, arguments: Sequence[str]) -> None:
    """Refuse a command that has no plan."""
    named = " ".join([command, *arguments[:1]]) if command == "make" else command
    if named not in PLANNED:
        raise ProbeError(f"{named!r} has no plan: choose one of {', '.join(PLANNED)}")


def plan_options(budget: str, plan_only: bool) -> dict[str, Any]:
    """Settings of a command that prints its plan, and keeps to a budget if it is not empty."""
    from probes.plan import parse_duration

    seconds = parse_duration(budget) if budget else None
    announce = _announcer(is_all=plan_only)
    return {"budget": seconds, "on_plan": announce, "plan_only": plan_only, "progress": True}


def make_settings(kind: str, budget: str, plan_only: bool, *, rounds: int = 0) -> Any:  # noqa: ANN401
    """Name and budget of a command of `make`, and how its plan is told."""
    options = plan_options(budget, plan_only)  # A wrong duration ends before torch is loaded.
    from probes.compression.plan import MakeSettings

    return MakeSettings(command=f"make {kind}", rounds=rounds, **options)


def _announcer(*, is_all: bool) -> Callable[[Any], None]:
    """Print a plan on stderr unless it is short; or on stdout, and end, where it is all."""

    def announce(plan: Any) -> None:  # noqa: ANN401 (a Plan)
        if plan.is_short and not plan.left_out and not is_all:
            return
        console = open_console(stderr=not is_all)
        for line in plan.lines():
            print_line(console, line)
        if is_all:
            raise typer.Exit

    return announce
