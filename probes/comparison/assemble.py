"""Comparison of two measured models: their verdicts, matches, transfers and failing prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.comparison.failing_prompts import head_failing_prompts, variable_failing_prompts
from probes.comparison.heads.matching import HeadPairing, match_heads, pair_heads
from probes.comparison.heads.profiles import HeadProfiles, similarity_draws
from probes.comparison.heads.result import MeanPairScore
from probes.comparison.heads.verdicts import NullModels, head_verdicts
from probes.comparison.measurements import (
    ModelMeasurements,
    RandomInitNull,
    ReferenceModel,
    model_facts,
)
from probes.comparison.model_facts import SolvedLogitDiff
from probes.comparison.prompts import ComparisonPrompts
from probes.comparison.references import ComparisonSettings
from probes.comparison.result import Comparison
from probes.comparison.variables.draws import (
    MeasuredDraw,
    pool_sites,
    pool_transfers,
    settle_verdict,
)
from probes.comparison.variables.result import CrossModelTransfer, VariableDraw
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
from probes.stats.null_threshold import conformal_threshold
from probes.stats.paired import mcnemar_test

_PROVENANCE_KEYS = ("_name_or_path", "transformers_version")


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """Models that a pair of models is compared against.

    Attributes:
        nulls: Random-init models, by architecture.
        other_seed: The full model trained from another seed.
        same_shape: By name of the relative, a control of its shape trained without the full model.
        negative_controls: Models trained on another task.
        negative_control_hits: By name of the recipient and of the negative control, the prompts
            whose answer an interchange from that control changes to the source's.
    """

    nulls: Mapping[object, Sequence[RandomInitNull]]
    other_seed: ReferenceModel | None
    same_shape: Mapping[str, ReferenceModel]
    negative_controls: Sequence[ReferenceModel]
    negative_control_hits: Mapping[str, Mapping[str, Hits]]


def architecture_key(model: Model) -> object:
    """Key of the random-init models that serve a model: its config without its provenance."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _PROVENANCE_KEYS}
    return (model.shape, str(sorted(config.items())))


def assemble_comparison(
    shared: ComparisonPrompts,
    a: ModelMeasurements,
    b: ModelMeasurements,
    references: ReferenceSet,
    settings: ComparisonSettings,
) -> Comparison:
    """Comparison of a full model `a` and a relative `b` from what was measured on both."""
    seed = settings.seed
    random_init = references.nulls[architecture_key(b.model)]
    other_seed = references.other_seed
    profiles = [null.profiles for null in random_init if null.profiles]
    pairings = [pair_heads(a.profiles, null) for null in profiles]
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
            other_seed=other_seed.profiles if other_seed else None,
        ),
        gate=_worst_gate_state((*a.gates, *b.gates)),
        seed=seed,
    )
    draws_to_other = _transfer_draws(shared, a, b, references)
    draws_to_full = _transfer_draws(shared, b, a, references)
    transfers_to_other, transfers_to_full = (
        tuple(pool_transfers(draws) for draws in zip(*by_draw, strict=True))
        for by_draw in (draws_to_other, draws_to_full)
    )
    variables, draws = _variable_verdicts(shared, (a, b), other_seed, draws_to_other)
    failing_prompts = {
        verdict.subject: head_failing_prompts(a, b, verdict) for verdict in heads if verdict.subject
    }
    failing_prompts |= {
        transfer.variable: variable_failing_prompts(transfer, shared.folds)
        for transfer in transfers_to_other
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
        prompts=settings.prompts,
        seed=seed,
        nulls=settings.nulls,
        other_seed=references.other_seed.name if references.other_seed else "",
        gates=(*a.gates, *b.gates),
        random_init_accuracy=tuple(
            float(x)
            for x in np.mean([n.accuracy for n in random_init if n.accuracy is not None], axis=0)
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
        draws=draws,
        transfers_to_other=transfers_to_other,
        transfers_to_full=transfers_to_full,
        transfer_skip_reason=shared.transfer_skip_reason,
        failing_prompts=failing_prompts,
    )


def _worst_gate_state(gates: Sequence[Gate]) -> GateState:
    states = {gate.state for gate in gates}
    return next(state for state in reversed(GATE_STATES) if state in states)


def _transfer_draws(
    shared: ComparisonPrompts,
    donor: ModelMeasurements,
    recipient: ModelMeasurements,
    references: ReferenceSet,
) -> tuple[tuple[CrossModelTransfer, ...], ...]:
    """Cross-model interchange of each variable, by draw.

    The first draw has random-init models of the donor's shape and negative controls; the further
    draws are compared with the best random-init model of the first.
    """
    if shared.folds is None or recipient.recipient is None or donor.donor is None:
        return ()
    random_init = references.nulls[architecture_key(donor.model)]
    control_hits = references.negative_control_hits[recipient.name].items()
    baselines = TransferBaselines(
        nulls={str(n): null.hits[recipient.name] for n, null in enumerate(random_init)},
        negative_controls={
            name: hits for name, hits in control_hits if name not in (donor.name, recipient.name)
        },
    )
    variables = shared.folds.variables
    first = evaluate_donor(recipient.recipient, donor.donor, variables, baselines, seed=shared.seed)
    rates = {transfer.variable: transfer.controls["random-init"] for transfer in first}
    further = TransferBaselines(nulls={}, negative_controls={}, random_init=rates)
    return (
        first,
        *(
            evaluate_donor(receiving, states, variables, further, seed=seed)
            for seed, (_, states), (receiving, _) in zip(
                shared.further_folds, donor.draws, recipient.draws, strict=True
            )
            if receiving is not None
        ),
    )


def _variable_verdicts(
    shared: ComparisonPrompts,
    models: tuple[ModelMeasurements, ModelMeasurements],
    other_seed: ReferenceModel | None,
    transfers: Sequence[Sequence[CrossModelTransfer]],
) -> tuple[tuple[Verdict, ...], tuple[VariableDraw, ...]]:
    """Verdict on each variable by all draws, and what each draw gave."""
    a, b = models
    if shared.folds is None or a.recipient is None:
        return (), ()
    if b.recipient is None:
        names = shared.folds.variables
        return tuple(absent_variable_verdict(name, b.gates) for name in names), ()
    seeds = (shared.seed, *shared.further_folds)
    recipients = [
        (a.recipient, b.recipient),
        *((x, y) for (x, _), (y, _) in zip(a.draws, b.draws, strict=True)),
    ]
    verdicts, results = [], []
    for number, variable in enumerate(shared.folds.variables):
        roles = _other_seed_roles(other_seed, variable)
        draws = []
        for seed, pair, by_variable in zip(seeds, recipients, transfers, strict=True):
            full, other = (variable_site(one, variable) for one in pair if one)
            transfer = by_variable[number]
            verdict = variable_verdict(full, other, transfer, b.gates, other_seed_roles=roles)
            draws.append(MeasuredDraw(seed, full, other, transfer, verdict))
        pooled = variable_verdict(
            pool_sites([draw.full for draw in draws]),
            pool_sites([draw.other for draw in draws]),
            pool_transfers([draw.transfer for draw in draws]),
            b.gates,
            other_seed_roles=roles,
        )
        verdicts.append(settle_verdict(pooled, [draw.verdict for draw in draws]))
        results += [draw.result() for draw in draws]
    return tuple(verdicts), tuple(results)


def _other_seed_roles(other_seed: ReferenceModel | None, variable: str) -> frozenset[str] | None:
    """Roles at which the other-seed model codes a variable; None where it was not found there."""
    if other_seed is None or variable not in other_seed.sites:
        return None
    return frozenset(other_seed.sites[variable].role.split("+"))


def _logit_diffs_on_solved(
    behaviors: Mapping[str, Behavior], seed: int
) -> tuple[SolvedLogitDiff, ...]:
    both = np.logical_and.reduce([b.correct.numpy().all(1) for b in behaviors.values()])
    rows = []
    for name, behavior in behaviors.items():
        for k, answer in enumerate(behavior.answers):
            values = behavior.logit_diff[:, k].double().numpy()[both]
            logit_diff = bootstrap_mean(values, seed=seed) if len(values) > 1 else None
            rows.append(SolvedLogitDiff(name, answer, int(both.sum()), logit_diff))
    return tuple(rows)


def _mean_pair_score(
    a: HeadProfiles,
    b: HeadProfiles,
    nulls: Sequence[HeadPairing],
    other_seed: HeadPairing | None,
    seed: int,
) -> MeanPairScore:
    pairing = pair_heads(a, b)
    draws = similarity_draws(a, b, seed=seed)[1:]
    rows = [k for k, partner in enumerate(pairing.partners) if partner >= 0]
    columns = [pairing.partners[k] for k in rows]
    chance = [null.mean_score for null in nulls]
    return MeanPairScore(
        score=percentile_interval(pairing.mean_score, draws[:, rows, columns].mean(1)),
        chance=float(np.mean(chance)),
        chance_high=float(conformal_threshold(chance)),
        # The best pairs of the other seed, as many as these models have: a mean over more is lower.
        other_seed=float(np.sort(other_seed.scores)[::-1][: len(rows)].mean())
        if other_seed
        else np.nan,
    )
