"""Commands: what another command will do, and how it keeps to a budget."""

from typing import Annotated, Any

import click
import typer

from probes.cli.common import open_console, print_line, reports_errors
from probes.errors import ProbeError

plan_app = typer.Typer()

PLANNED = ("compare", "trace")
"""Commands that have a plan."""


@plan_app.command(
    "plan", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
@reports_errors
def plan(
    context: typer.Context,
    command: Annotated[str, typer.Argument(help=f"One of {', '.join(PLANNED)}.")],
) -> None:
    """Print what a command would do, given its arguments, and do nothing: passes, time, memory."""
    if command not in PLANNED:
        raise ProbeError(f"{command!r} has no plan: choose one of {', '.join(PLANNED)}")
    group: Any = context.find_root().command
    own = group.commands[command]
    with own.make_context(command, list(context.args), parent=context.parent) as inner:
        inner.obj = _PlanOnly()
        own.invoke(inner)


class _PlanOnly:
    """Mark of a command that ends when its plan is printed."""


def announce(plan: Any) -> None:  # noqa: ANN401 (a Plan: importing it is not worth the time)
    """Print the plan of a command on stderr, or on stdout and end where only the plan is wanted."""
    context = click.get_current_context(silent=True)
    is_all = context is not None and isinstance(context.obj, _PlanOnly)
    if plan.is_short and not plan.left_out and not is_all:
        return
    console = open_console(stderr=not is_all)
    for line in plan.lines():
        print_line(console, line)
    if is_all:
        raise typer.Exit
