"""Run the command line: `python -m probes`."""

from probes.cli.app import app

if __name__ == "__main__":
    app(prog_name="probes")
