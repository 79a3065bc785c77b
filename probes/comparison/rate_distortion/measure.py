"""The curve: what each relative of a model stores, against what is left of behavior and mechanism.

parent → questions, crossings, sites, circuit, once → each relative → noise as far from the parent
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from probes.comparison.compare import compare_family
from probes.comparison.rate_distortion.mechanism import interchange_outcome, record_runs
from probes.comparison.rate_distortion.point import (
    KEPT_FRACTION,
    ParentReference,
    measure_point,
    prepare_reference,
)
from probes.comparison.rate_distortion.result import RateDistortionCurve
from probes.comparison.rate_distortion.weight_noise import noisy_model
from probes.comparison.variables.transfer import with_unique_names
from probes.compression.derived_model import DerivedModel
from probes.errors import ModelError
from probes.models.model import Model, load, random_init
from probes.observe.divergence import answer_as_relative, best_heuristic_accuracy
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern

_NAN = float("nan")

AnyModelSpec = str | Path | Model | DerivedModel


def rate_distortion(  # noqa: PLR0913 (the job has its dials)
    parent: AnyModelSpec,
    relatives: Sequence[AnyModelSpec],
    pattern: str | Pattern = "take-away",
    *,
    bases: int = 200,
    prompts: int = 32,
    noise_copies: int = 3,
    nulls: int = 3,
    verdicts: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> RateDistortionCurve:
    """Measure what each relative of a model stores, and what is left of behavior and mechanism.

    The mechanism is judged by interchange: a variable of one text, put into another, must turn the
    answer as foretold. It is put in at the parent's site where the relative has the parent's graph,
    else at the relative's own. As a crossing fails wherever the answer fails anyway, it is judged
    on the items that both models solve when nothing is put in. What a relative may lose without
    it is shown by copies of the parent with plain noise on the matrices of its layers, as far from
    the parent in KL.

    Where the graph is the same, the parent's states are put into the relative as they are, and the
    parent's circuit is run alone in it. For another graph neither is done: maps between two
    spaces take minutes, see `transplant` and `lift`. There the relative's own circuit that keeps
    as much of the lead stands beside the parent's, by its number of edges.

    Args:
        parent: A model, or a name that `load` takes.
        relatives: Models made of it, or any others of the same vocabulary.
        pattern: What they are asked: a pattern with an opposite, or pairs, such as a .jsonl file.
        bases: Questions that behavior is judged by, and crossings (or pairs of each contrast)
            that the mechanism is judged by; half as many find the sites.
        prompts: Pairs of each contrast that the circuit is found by; as many judge it.
        noise: Copies with plain noise for each relative of the parent's graph that is quantized,
            pruned or a ticket, or does not say what it is; 0 for none.
        nulls: Fresh nets of the parent's shape that say what chance gives; 0 for none.
        verdicts: Whether to count the words of `compare_family`, which takes minutes.
        seed: Of questions, noise, nets and the bootstrap.
        progress: Whether to show a bar.

    Raises:
        PatternError: The pattern is unknown or has too few prompts.
        ModelError: A model is unknown or broken, has another vocabulary or no tokenizer, or the
            parent has one block.
    """
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    first, models = _load_models(parent, relatives)
    side = prepare_reference(first, asked, (bases, prompts, seed))
    noisy = noisy_model(first) if noise_copies else None
    words: Sequence[Mapping[str, int]] = [{}] * len(models)
    if verdicts:
        found = compare_family(first, models, asked, prompts=prompts, seed=seed)
        words = [Counter(verdict.label for verdict in one.verdicts) for one in found.comparisons]
    points = [
        measure_point(model, side, noisy, (noise_copies, seed), word)
        for model, word in zip(
            tqdm(models, desc="relatives", disable=not progress), words, strict=True
        )
    ]
    return RateDistortionCurve(
        parent=measure_point(first, side, None, (0, seed), {}),
        points=tuple(points),
        pattern=asked.name,
        pairs=len(side.mechanism_test.evaluation),
        heuristic_accuracy=best_heuristic_accuracy(side.sitting),
        random_init=_random_init_best(side, nulls, seed),
        protocol=tuple(_protocol(side, (bases, prompts, noise_copies, nulls, seed))),
    )


def _load_models(
    parent: AnyModelSpec, relatives: Sequence[AnyModelSpec]
) -> tuple[Model, list[Model]]:
    """Load all models, and refuse those whose words are others."""
    if not relatives:
        raise ModelError("There is no relative to measure: name at least one")
    first, *others = (
        one.to_model() if isinstance(one, DerivedModel) else load(one)
        for one in (parent, *relatives)
    )
    for model in (first, *others):
        if model.tokenizer is None:
            raise ModelError(f"{model.name} comes without a tokenizer: give it one")
        same = model.tokenizer.get_vocab() == first.tokenizer.get_vocab()
        if not same or model.shape.d_vocab != first.shape.d_vocab:
            raise ModelError(
                f"{model.name} and {first.name} have different vocabularies "
                f"({model.shape.d_vocab} and {first.shape.d_vocab} tokens): what they say of the "
                "next token cannot be compared. Choose relatives of one vocabulary."
            )
    return first, with_unique_names(others, [first.name])


def _random_init_best(reference: ParentReference, nulls: int, seed: int) -> tuple[float, float]:
    """Return the best of some fresh nets: all answers right, and crossings turned as foretold."""
    right, hits = [], []
    for number in range(nulls):
        net = random_init(reference.model, seed=seed + number)
        right.append(
            float(
                answer_as_relative(reference.sitting, net).behavior.correct.all(-1).float().mean()
            )
        )
        hits.append(
            float(
                interchange_outcome(
                    record_runs(net, reference.mechanism_test.evaluation), reference.sites
                ).mean_hits.mean()
            )
        )
    return max(right, default=_NAN), max(hits, default=_NAN)


def _protocol(reference: ParentReference, settings: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    bases, prompts, noise, nulls, seed = settings
    yield "questions", str(len(reference.sitting.batch))
    yield "items", f"{len(reference.mechanism_test.evaluation)} ({bases} bases asked for)"
    yield "copies with noise", str(noise)
    yield "untrained nets", str(nulls)
    if reference.circuit is not None:
        edges = f"{len(reference.circuit)} of {len(reference.circuit.graph)} edges"
        yield "circuit", f"{edges}, {prompts} pairs a contrast, asked to keep {KEPT_FRACTION}"
    yield "seed", str(seed)
