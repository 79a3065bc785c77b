"""Compile a RASP program into the weights of a transformer, which `probes.testing.tracr` reads.

    python benchmarks/compile_rasp.py data/planted/frac_prevs.npz

The compiler, Tracr (Lindner et al. 2023, 2301.05062), needs an environment of its own:
`pip install tracr-pypi==1.0.0`. Before anything is written, what the compiled model computes is
held against what the program says. The file holds no more than numbers and names of dimensions.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from tracr.compiler import assemble, compiling, lib
from tracr.rasp import rasp

VOCAB, COUNTED, LENGTH = "wxyz", "x", 6
OUTPUT = "frac_prevs_1"


def arrays(model: assemble.AssembledTransformerModel) -> dict[str, np.ndarray]:
    """Return the weights by short names, and the names of the residual stream's dimensions."""
    named = {"labels": np.array(model.residual_labels)}
    for module, weights in model.params.items():
        for kind, weight in weights.items():
            named[f"{module.removeprefix('transformer/')}/{kind}"] = np.asarray(weight)
    return named


def worst(model: assemble.AssembledTransformerModel) -> float:
    """Return how far the output is from the share of counted tokens so far, at most."""
    column, gaps = model.residual_labels.index(OUTPUT), []
    for text in itertools.islice(itertools.product(VOCAB, repeat=LENGTH), 0, None, 41):
        found = np.asarray(model.apply(["BOS", *text]).residuals[-1])[0, 1:, column]
        seen = np.cumsum([token == COUNTED for token in text])
        gaps.append(np.abs(found - seen / np.arange(1, LENGTH + 1)).max())
    return float(max(gaps))


def main() -> None:
    """Compile, check, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    given = parser.parse_args()
    model = compiling.compile_rasp_to_model(
        lib.make_frac_prevs(rasp.tokens == COUNTED),
        vocab=set(VOCAB),
        max_seq_len=LENGTH,
        compiler_bos="BOS",
        causal=True,
    )
    gap = worst(model)
    if gap > 1e-3:
        raise SystemExit(f"The compiled model is off by {gap:.2g}: nothing was written")
    given.path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(given.path, **arrays(model))
    print(f"{given.path}: {given.path.stat().st_size} bytes, off by {gap:.1g} at most")


if __name__ == "__main__":
    main()
