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
        sys.stderr.write(interrupt_line(interrupt, {}) + "\n")
        sys.exit(exit_code(interrupt))


if __name__ == "__main__":
    main()
