"""Write docs/architectures.md: the contract suite on every causal architecture of transformers.

Run it from the repository root: python docs/architectures.py
"""

import logging
import warnings
from collections import Counter
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from probes.testing.contract.check_model import check_hf_model
from probes.testing.contract.check_result import ModelCheck
from probes.testing.contract.tiny_architectures import causal_architectures, tiny_architecture

HEAD = """# Architectures

The contract suite (`probes check`) on a tiny random model of every causal architecture of
transformers {version}. `python docs/architectures.py` writes this page.

- **right**: every check passes. **no circuits**: every check passes, but `edge attribution` or
  circuits are refused with a reason. **partly refused**: other checks are refused as well.
- **refused**: the kit does not load the model, and says why. **not tried**: transformers cannot
  build it this small.
- **fail**: a check found a wrong number. {failed}

{counts}

| model type | architecture | result | checks that are not passed |
|---|---|---|---|
"""


def verdict(result: ModelCheck) -> str:
    """Result of one architecture in a word."""
    states = {one.check: one.state for one in result.outcomes if one.check != "roles"}
    if "fail" in states.values():
        return "fail"
    if "load" in states:
        return "refused"
    refused = {check for check, state in states.items() if state == "refused"}
    if not refused:
        return "right"
    return "no circuits" if refused <= {"edge attribution", "circuits"} else "partly refused"


def main() -> None:
    """Check every architecture and write the page."""
    import transformers

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    rows = []
    for kind, name in sorted(causal_architectures().items()):
        try:
            hf_model = tiny_architecture(kind)
        except Exception as error:  # transformers raises many kinds of error.
            rows.append((kind, name, "not tried", type(error).__name__))
            continue
        result = check_hf_model(hf_model, name=kind)
        left = [
            f"{one.check} ({one.state})"
            for one in result.outcomes
            if one.state != "pass" and one.check not in ("roles", "load")
        ]
        rows.append((kind, name, verdict(result), ", ".join(left)))
        print(*rows[-1], flush=True)
    counts = Counter(row[2] for row in rows)
    text = HEAD.format(
        version=transformers.__version__,
        failed="None does." if not counts["fail"] else f"{counts['fail']} do.",
        counts=", ".join(f"{count} {word}" for word, count in counts.most_common()) + ".",
    )
    text += "".join(f"| `{kind}` | {name} | {word} | {left} |\n" for kind, name, word, left in rows)
    (Path(__file__).parent / "architectures.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
