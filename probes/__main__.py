"""Run the command line: `python -m probes`."""

import sys

from probes.cli.interrupts import exit_code, interrupt_line, terminable


def main() -> None:
    """Run a command; an interrupt before it begins is one line, too."""
    try:
        with terminable():
            from probes.cli.app import app

            app(prog_name="probes")
    except KeyboardInterrupt as interrupt:
        _end(interrupt)
    except SystemExit as ended:
        # Typer ends silently where an interrupt comes before or behind the command itself.
        cause = getattr(ended.__context__, "__cause__", None)
        if isinstance(cause, KeyboardInterrupt):
            _end(cause)
        raise


def _end(interrupt: KeyboardInterrupt) -> None:
    """End with the line of an interrupt."""
    sys.stderr.write(interrupt_line(interrupt, {}) + "\n")
    sys.exit(exit_code(interrupt))


if __name__ == "__main__":
    main()
