"""What became of a model's heads and variables in one relative, put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.comparison.failing_prompts import head_failing_prompts, variable_failing_prompts
from probes.comparison.heads.matching import HeadPairing, match_heads, pair_heads
from probes.comparison.heads.profiles import HeadProfiles, similarity_draws
from probes.comparison.heads.verdicts import NullModels, head_verdicts
from probes.comparison.measurements import (
    ModelMeasurements,
    RandomInitNull,
    ReferenceModel,
    model_facts,
)
from probes.comparison.prompts import ComparisonPrompts
from probes.comparison.result import Comparison, MeanPairScore, SolvedLogitDiff
from probes.comparison.variables.result import CrossModelTransfer
from probes.comparison.variables.transfer import Hits, TransferBaselines, evaluate_donor
from probes.comparison.variables.verdicts import (
    absent_variable_verdict,
    variable_site,
    variable_verdict,
)
from probes.comparison.verdict import Verdict
from probes.models.model import Model
from probes.observe.behavior import Behavior
from probes.observe.result import GATE_STATES, Gate, GateState
from probes.stats.intervals import bootstrap_mean, percentile_interval
from probes.stats.paired import mcnemar_test

_PROVENANCE_KEYS = ("_name_or_path", "transformers_version")


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """What two models are held against.

    Attributes:
        nets: Untrained nets, by shape.
        twin: Another seed of the full model.
        controls: For relatives, by name, one of their shape that never saw the full model.
        strangers: Models trained for another end.
        passed: For each recipient, by name, what the states of each stranger turn in it.
    """

    nulls: Mapping[object, Sequence[RandomInitNull]]
    other_seed: ReferenceModel | None
    same_shape: Mapping[str, ReferenceModel]
    negative_controls: Sequence[ReferenceModel]
    negative_control_hits: Mapping[str, Mapping[str, Hits]]


def architecture_key(model: Model) -> object:
    """Return what untrained nets of a model depend on: its config, but for where it came from."""
    told = {k: v for k, v in model.config.to_dict().items() if k not in _PROVENANCE_KEYS}
    return (model.shape, str(sorted(told.items())))


def assemble_comparison(
    shared: ComparisonPrompts,
    a: ModelMeasurements,
    b: ModelMeasurements,
    references: ReferenceSet,
    settings: tuple[int, int, int],
) -> Comparison:
    """Put together what was found of two models."""
    prompts, seed, nulls = settings
    nets = references.nulls[architecture_key(b.model)]
    twin = (
        references.other_seed
        if references.other_seed and references.other_seed.name != b.name
        else None
    )
    profiles = [found.profiles for found in nets if found.profiles]
    pairings = [pair_heads(a.profiles, found) for found in profiles]
    ceiling = (
        pair_heads(a.profiles, references.other_seed.profiles) if references.other_seed else None
    )
    matches = match_heads(
        a.profiles,
        b.profiles,
        null_scores=np.stack([pairing.scores for pairing in pairings]),
        other_seed=ceiling,
        seed=seed,
    )
    heads = head_verdicts(
        a.heads,
        b.heads,
        NullModels(
            random_init=profiles,
            negative_controls=[
                one.profiles for one in references.negative_controls if one.name != b.name
            ],
            same_shape=[
                one.profiles for name, one in references.same_shape.items() if name == b.name
            ],
            other_seed=twin.profiles if twin else None,
        ),
        gate=_worst_gate_state((*a.gates, *b.gates)),
        seed=seed,
    )
    transfers_to_other, back = (
        _transfers(shared, a, b, references),
        _transfers(shared, b, a, references),
    )
    variables = _variable_verdicts(shared, a, b, twin, transfers_to_other)
    items = {
        verdict.subject: head_failing_prompts(a, b, verdict) for verdict in heads if verdict.subject
    }
    items |= {
        one.variable: variable_failing_prompts(one, shared.folds)
        for one in transfers_to_other
        if shared.folds
    }
    return Comparison(
        full=model_facts(a.model),
        other=model_facts(b.model),
        pattern=shared.pattern.name,
        title=shared.pattern.title,
        example=shared.questions[0].full_text,
        contrasts={contrast: a.exact[contrast] for contrast in shared.pairs},
        roles=shared.roles,
        answers=a.behavior.answers,
        prompts=prompts,
        seed=seed,
        nulls=nulls,
        other_seed=references.other_seed.name if references.other_seed else "",
        gates=(*a.gates, *b.gates),
        random_init_accuracy=tuple(
            float(x) for x in np.mean([n.accuracy for n in nets if n.accuracy is not None], axis=0)
        ),
        solved_logit_diffs=_logit_diffs_on_solved({a.name: a.behavior, b.name: b.behavior}, seed),
        matches=matches,
        mean_pair_score=_mean_pair_score(a.profiles, b.profiles, pairings, ceiling, seed),
        plot_data={a.name: a.plot_data, b.name: b.plot_data},
        accuracy_changes=tuple(
            mcnemar_test(
                a.behavior.correct[:, k].numpy(), b.behavior.correct[:, k].numpy()
            ).difference
            for k in range(len(a.behavior.answers))
        ),
        verdicts=(*variables, *heads),
        transfers_to_other=transfers_to_other,
        transfers_to_full=back,
        transfer_skip_reason=shared.transfer_skip_reason,
        failing_prompts=items,
    )


def _worst_gate_state(gates: Sequence[Gate]) -> GateState:
    return max((gate.state for gate in gates), key=GATE_STATES.index)


def _transfers(
    shared: ComparisonPrompts,
    donor: ModelMeasurements,
    recipient: ModelMeasurements,
    references: ReferenceSet,
) -> tuple[CrossModelTransfer, ...]:
    """Judge what the donor's states turn in the host, beside nets of the donor's shape."""
    if shared.folds is None or recipient.recipient is None or donor.donor is None:
        return ()
    nets = references.nulls[architecture_key(donor.model)]
    passed = references.negative_control_hits[recipient.name].items()
    baselines = TransferBaselines(
        nulls={str(n): null.hits[recipient.name] for n, null in enumerate(nets)},
        negative_controls={
            name: hits for name, hits in passed if name not in (donor.name, recipient.name)
        },
    )
    variables = shared.folds.variables
    return evaluate_donor(recipient.recipient, donor.donor, variables, baselines, seed=shared.seed)


def _variable_verdicts(
    shared: ComparisonPrompts,
    a: ModelMeasurements,
    b: ModelMeasurements,
    other_seed: ReferenceModel | None,
    transfers_to_other: Sequence[CrossModelTransfer],
) -> tuple[Verdict, ...]:
    if shared.folds is None or a.recipient is None:
        return ()
    if b.recipient is None:
        return tuple(
            absent_variable_verdict(variable, b.gates) for variable in shared.folds.variables
        )
    return tuple(
        variable_verdict(
            variable_site(a.recipient, transfer.variable),
            variable_site(b.recipient, transfer.variable),
            transfer,
            b.gates,
            other_seed_roles=_other_seed_roles(other_seed, transfer.variable),
        )
        for transfer in transfers_to_other
    )


def _other_seed_roles(other_seed: ReferenceModel | None, variable: str) -> frozenset[str] | None:
    """Return where another seed holds a variable; nowhere, if it cannot do it itself."""
    if other_seed is None or variable not in other_seed.sites:
        return None
    return frozenset(other_seed.sites[variable].role.split("+"))


def _logit_diffs_on_solved(
    behaviors: Mapping[str, Behavior], seed: int
) -> tuple[SolvedLogitDiff, ...]:
    both = np.logical_and.reduce([b.correct.numpy().all(1) for b in behaviors.values()])
    found = []
    for name, seen in behaviors.items():
        for k, answer in enumerate(seen.answers):
            values = seen.logit_diff[:, k].double().numpy()[both]
            lead = bootstrap_mean(values, seed=seed) if len(values) > 1 else None
            found.append(SolvedLogitDiff(name, answer, int(both.sum()), lead))
    return tuple(found)


def _mean_pair_score(
    a: HeadProfiles,
    b: HeadProfiles,
    nulls: Sequence[HeadPairing],
    other_seed: HeadPairing | None,
    seed: int,
) -> MeanPairScore:
    found = pair_heads(a, b)
    drawn = similarity_draws(a, b, seed=seed)[1:]
    rows = [k for k, partner in enumerate(found.partners) if partner >= 0]
    columns = [found.partners[k] for k in rows]
    chance = [pairing.mean_score for pairing in nulls]
    return MeanPairScore(
        score=percentile_interval(found.mean_score, drawn[:, rows, columns].mean(1)),
        chance=float(np.mean(chance)),
        chance_high=float(np.quantile(chance, 0.95)),
        # The best pairs of the other seed, as many as these models have: a mean over more is lower.
        other_seed=float(np.sort(other_seed.scores)[::-1][: len(rows)].mean())
        if other_seed
        else np.nan,
    )
