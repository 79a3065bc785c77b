"""Draw the pictures of the README and the docs from real runs.

python docs/pictures.py
"""

from pathlib import Path

import probes as pb
from probes.circuits.trace import TraceSettings

FOLDER = Path(__file__).parent
FOX = "If I have two foxes and I take away one, how many foxes do I have?"


def main() -> None:
    """Draw the attention of `full` in the fox question, and its circuit by role."""
    pb.heatmap("full", FOX, head="L1.H0").save(FOLDER / "heatmap.svg")
    result = pb.trace("full", roles=True, settings=TraceSettings(prompts=12, other_pattern=""))
    result.circuit.picture(title="The take-away circuit of `full`, by role").save(
        FOLDER / "picture.svg"
    )


if __name__ == "__main__":
    main()
