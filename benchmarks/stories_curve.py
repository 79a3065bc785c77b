"""The curve of a real model: She or He after a little girl or boy, quantized and pruned.

The model is Karpathy's stories260K, trained on TinyStories (Eldan & Li 2023, 2305.07759); its
folder is looked for in ../shared/data. Run with `python -m benchmarks.stories_curve [OUT]`.
"""

import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from probes.comparison.rate_distortion.measure import rate_distortion
from probes.compression.pruning.prune import prune
from probes.compression.quantization.quantize import quantize

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260K"
OPENINGS = (
    "One day, a {who}", "Once upon a time, a {who}", "A {who}", "One sunny day, a {who}",
    "One morning, a {who}", "There was a {who} who", "The next day, the {who}",
)  # fmt: skip
ACTS = (
    "went to the park", "was very sad", "saw a big dog", "found a red ball", "had a new toy",
    "went for a walk", "wanted to play", "saw a bird", "went to the store", "was very happy",
    "lost a toy", "liked to run", "played in the garden", "had a big box", "went outside",
    "wanted a cookie", "sat on the grass", "went to the beach",
)  # fmt: skip
BITS, SHARES = (8, 6, 5, 4, 3, 2), (0.1, 0.2, 0.5, 0.8)


def write_pairs(path: Path) -> None:
    """Write girls beside boys, one pair to a line, both ways round."""
    lines = []
    for opening, act in product(OPENINGS, ACTS):
        sides = [("little girl", "She"), ("little boy", "He")]
        for (one, answer), (other, another) in (sides, sides[::-1]):
            line: dict[str, Any] = {"contrast": "gender"}
            line |= {"answer": answer, "counterfactual_answer": another}
            for name, who in (("clean", one), ("counterfactual", other)):
                line[name] = f"{opening.format(who=who)} {act}."
                roles = {"who": who.split()[1], "act": act, "stop": "."}
                line["roles" if name == "clean" else "counterfactual_roles"] = roles
            lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Print the table of the curve, and save its page and picture."""
    if not FOLDER.is_dir():
        print(f"skipped: there is no folder {str(FOLDER)!r}")
        return
    torch.set_num_threads(1)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/stories_curve.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    relatives = [quantize(FOLDER, f"rtn-{bits}") for bits in BITS]
    relatives += [prune(FOLDER, share) for share in SHARES]
    with tempfile.TemporaryDirectory() as place:
        pairs = Path(place) / "she-he.jsonl"
        write_pairs(pairs)
        found = rate_distortion(FOLDER, relatives, str(pairs), progress=sys.stderr.isatty())
    columns = ["name", "kB", "kl", "right", "agreement", "items", "gender", "circuit", "word"]
    beyond = ["gender, parent's states", "mechanism beyond noise", "noise right", "noise word"]
    print(found.table()[columns + beyond].round(4).to_string(index=False))
    print("\n".join(found.summary()))
    for path in (out, out.with_suffix(".svg"), out.with_suffix(".csv")):
        found.save(path)


if __name__ == "__main__":
    main()
