"""CKA of two models over a million tokens of generated texts: time, memory, and exactness.

Each part runs in a fresh process. Run with `python -m benchmarks.streamed_similarity`.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.peers.measure import peak_memory
from probes.comparison.representations.token_chunks import read_states
from probes.comparison.representations.tokens import TokenSimilaritySettings, token_similarity
from probes.models.model import load

TOKENS, PART = 1_000_000, 5_000
MODELS = ("full", "distilled")

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily")
THINGS = ("dogs", "books", "foxes", "cups", "apples", "cards", "birds", "boxes")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SENTENCES = (
    "{name} has {number} {thing}.",
    "If I have {number} {thing} and I take away {other}, how many {thing} do I have?",
    "{name} gives {other} {thing} away.",
    "Before that {name} had {number} {thing}.",
    "How many {thing} does {name} have now?",
)


def texts(tokens: int, seed: int = 0) -> Iterator[str]:
    """Yield texts of one to six sentences until they have so many tokens, start tokens left out."""
    draw, tokenizer, count = random.Random(seed), load(MODELS[0]).tokenizer, 0
    while count < tokens:
        text = " ".join(
            draw.choice(SENTENCES).format(
                name=draw.choice(NAMES),
                thing=draw.choice(THINGS),
                number=draw.choice(NUMBERS),
                other=draw.choice(NUMBERS),
            )
            for _ in range(draw.randint(1, 6))
        )
        count += len(tokenizer(text, add_special_tokens=False)["input_ids"])
        yield text


def measure(tokens: int) -> dict[str, object]:
    """Stream so many tokens, and measure CPU seconds and the peak of memory."""
    first, second = (load(name) for name in MODELS)
    before, begin = peak_memory(), time.process_time()
    result = token_similarity(first, second, texts(tokens))
    seconds = time.process_time() - begin
    return {
        "texts": result.texts,
        "tokens": result.tokens,
        "seconds": seconds,
        "loaded": before,
        "peak": peak_memory(),
        "summary": result.summary(),
    }


def compare(tokens: int) -> dict[str, object]:
    """Compare the stream with Gram matrices of the same tokens, which fit into memory."""
    first, second = (load(name) for name in MODELS)
    part = list(texts(tokens))
    # Chunks of one pass would round otherwise in single precision: the same ones, put together.
    settings = TokenSimilaritySettings(chunk_tokens=1024)
    found = token_similarity(first, second, part, settings=settings).matrix
    chunks = [chunk.states for chunk in read_states([first, second], part, 1024)]
    a, b = (np.concatenate(states, axis=1) for states in zip(*chunks, strict=True))
    whole = token_similarity(
        first, second, part, settings=TokenSimilaritySettings(chunk_tokens=10**9)
    )
    grams = [[_gram(layer) for layer in side] for side in (a, b)]
    norms = [[float(np.vdot(gram, gram)) for gram in side] for side in grams]
    wanted = np.array(
        [
            [np.vdot(x, y) / np.sqrt(norms[0][i] * norms[1][j]) for j, y in enumerate(grams[1])]
            for i, x in enumerate(grams[0])
        ]
    )
    return {
        "tokens": a.shape[1],
        "gram": float(np.abs(found - wanted).max()),
        "one_pass": float(np.abs(found - whole.matrix).max()),
    }


def _gram(rows: np.ndarray) -> np.ndarray:
    """U-centered Gram matrix (Székely & Rizzo 2014), whose inner products are unbiased HSIC."""
    rows = rows - rows.mean(0)
    gram, n = rows @ rows.T, len(rows)
    np.fill_diagonal(gram, 0)
    sums = gram.sum(0) / (n - 2)
    gram += sums.sum() / (n - 1) - sums[:, None] - sums[None]
    np.fill_diagonal(gram, 0)
    return gram


def main() -> None:
    """Print tokens, CPU seconds, peak of memory, and the largest differences."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=TOKENS)
    options.add_argument("--part", type=int, default=PART, help="tokens that fit into memory")
    options.add_argument("--job", choices=("measure", "compare"), help="in this very process")
    given = options.parse_args()
    if given.job:
        torch.set_num_threads(1)
        job, tokens = (measure, given.tokens) if given.job == "measure" else (compare, given.part)
        print(json.dumps(job(tokens)))
        return
    streamed, part = (_alone(job, given) for job in ("measure", "compare"))
    print(f"{' and '.join(MODELS)}, {streamed['tokens']:,} tokens of {streamed['texts']:,} texts:")
    print(f"  {streamed['seconds']:.0f} CPU-s, peak {streamed['peak']:,.0f} MB")
    print(f"  ({streamed['loaded']:,.0f} MB with the models loaded; goal: at most 2,000 MB)")
    print(f"Largest difference over {part['tokens']:,} tokens:")
    print(f"  {part['gram']:.1e} from the Gram form of the same states")
    print(f"  {part['one_pass']:.1e} from one chunk, whose passes round otherwise in float32")
    print("\n".join(streamed["summary"]))


def _alone(job: str, given: argparse.Namespace) -> dict:
    command = [sys.executable, "-m", "benchmarks.streamed_similarity", "--job", job]
    sizes = ["--tokens", str(given.tokens), "--part", str(given.part)]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
