"""Edges of a full model and a relative of the same graph, from one attribution pass each."""

from collections.abc import Sequence

from probes.circuits.edges.edge_attribution import EAP
from probes.circuits.task import Task
from probes.comparison.circuits.compare import CircuitComparisonSettings, compare_circuits
from probes.comparison.circuits.edge_result import EdgeCircuits, EdgeComparison
from probes.comparison.circuits.result import SizeComparison
from probes.comparison.setup.prompts import ComparisonPrompts
from probes.errors import BatchError, CircuitError, GateError
from probes.models.files.memory import release_memory
from probes.models.model import Model
from probes.prompts.question import Pair
from probes.prompts.tokens.pair_batch import tokenize_pairs

_SIZES = (0.001, 0.003, 0.01)  # Circuits of one behavior have few of the edges of a large model.
_PAIRS, _RANDOM_CIRCUITS, _DRAWS = 32, 2, 200
_MOST_CHANGED = 10


def compare_edges(full: Model, other: Model, prompts: ComparisonPrompts) -> EdgeComparison:
    """Compare the circuits of two models edge by edge, on pairs that change the first answer.

    Edges are scored by one gradient, halfway between the embeddings of both runs, instead of five,
    and there are fewer pairs and random circuits than `compare_circuits` has by default. The
    gradient at the clean run would miss edges behind saturated attention.
    """
    # Screened models are large: what stages leave behind as free blocks would be gigabytes.
    release_memory()
    answer = prompts.pattern.answers[0][0] if prompts.pattern.answers else ""
    pairs = _changing_pairs([*prompts.pairs.values()], answer)
    settings = CircuitComparisonSettings(
        sizes=_SIZES, method=EAP(gradient_at=0.5), draws=_DRAWS, random_circuits=_RANDOM_CIRCUITS,
        seed=prompts.seed,
    )  # fmt: skip
    try:
        if not pairs:
            raise CircuitError(f"no contrast changes {answer!r}")
        batch = tokenize_pairs(full.tokenizer, pairs, max_length=full.shape.context)
        task = Task.from_pairs(batch, answer, skip_unequal=True)
        found = compare_circuits(full, other, task, settings)
    except (BatchError, CircuitError, GateError) as error:
        return EdgeComparison(skip_reason=str(error))
    finally:
        release_memory()
    held_out = int(dict(found.protocol)["held-out prompts"])
    return EdgeComparison(
        all_edges=len(found.edge_scores[0]),
        pairs=len(task) - held_out,
        held_out=held_out,
        circuits=tuple(map(_circuits, found.sizes)),
        changed=len(found.edge_changes),
        most_changed=tuple((c.edge, c.difference) for c in found.edge_changes[:_MOST_CHANGED]),
        min_detectable=found.min_detectable_edges,
    )


def _changing_pairs(by_contrast: Sequence[Sequence[Pair]], answer: str) -> list[Pair]:
    """The first pairs that change the answer, as many of each contrast."""
    changing = [
        pairs
        for pairs in ([p for p in own if p.changes_answer(answer)] for own in by_contrast)
        if pairs
    ]
    count = _PAIRS // max(len(changing), 1)
    return [pair for pairs in changing for pair in pairs[: max(count, 1)]]


def _circuits(at: SizeComparison) -> EdgeCircuits:
    return EdgeCircuits(
        edges=at.overlap.edges,
        jaccard=at.overlap.same_prompts,
        chance=at.overlap.chance,
        excess=at.overlap.excess,
        own_full=at.in_a.own,
        other_in_full=at.in_a.transferred,
        full_in_other=at.in_b.transferred,
        own_other=at.in_b.own,
        label_full=at.in_a.label,
        label_other=at.in_b.label,
        random=at.in_b.chance_high,
    )


def has_same_graph(full: Model, other: Model) -> bool:
    """Whether two models have the same shape, vocabulary and so the same edges."""
    tokens = full.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    return full.shape == other.shape and tokens and full.bridge is not other.bridge
