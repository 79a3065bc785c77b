"""Interchange interventions: sites of a base run take the source run's activation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import BatchError, SiteError
from probes.interventions.activation_patching import CachedRun, patch_sites, run_batch_with_cache
from probes.interventions.interchange_outcomes import (
    OBJECT_READOUT,
    InterchangeOutcomes,
    SourceObject,
    index_of,
)
from probes.models.model import Model
from probes.models.site import Site
from probes.prompts.interchange_pairs import InterchangePairs
from probes.prompts.tokens.answer_tokens import require_distinct_outcomes
from probes.prompts.tokens.batch import Batch
from probes.prompts.tokens.pair_batch import PairBatch, tokenize_pairs


class LazyRuns(Mapping[str, CachedRun]):
    """Runs by name. Each is recorded when it is first read, so that an unread one costs nothing."""

    def __init__(self, recorders: Mapping[str, Callable[[], CachedRun]]) -> None:
        self._recorders, self._runs = recorders, dict[str, CachedRun]()

    def __getitem__(self, name: str) -> CachedRun:
        if name not in self._runs:
            self._runs[name] = self._recorders[name]()
        return self._runs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._recorders)

    def __len__(self) -> int:
        return len(self._recorders)


@dataclass(frozen=True, eq=False)
class InterchangeRuns:
    """Runs of one model on interchange pairs, shared by all interventions.

    Attributes:
        model: The model.
        interchange_pairs: The pairs.
        batch: Tokenized bases.
        clean: Run of the bases.
        sources: Runs of the sources by `SourceObject`, aligned to the bases' positions, recorded
            when they are first read.
        role_masks: Positions of each role that have a counterpart.
        outcome_tokens: For each answer, the tokens of its outcomes in the order of the labels.
    """

    model: Model
    interchange_pairs: InterchangePairs = field(repr=False)
    batch: Batch
    clean: CachedRun = field(repr=False)
    sources: Mapping[str, CachedRun] = field(repr=False)
    role_masks: Mapping[str, Bool[Tensor, "prompt position"]] = field(repr=False)
    outcome_tokens: tuple[Int[Tensor, "prompt _"], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.interchange_pairs)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the bases up to the last read-out, by mean position."""
        last = int(self.batch.readouts[OBJECT_READOUT].position.max())
        mean_position = {}
        for role in self.batch.roles:
            positions = self.role_masks[role][:, : last + 1].nonzero()[:, 1]
            if len(positions):
                mean_position[role] = float(positions.float().mean())
        return tuple(sorted(mean_position, key=lambda role: mean_position[role]))

    def with_joined_roles(self, joined_roles: Mapping[str, str]) -> "InterchangeRuns":
        """The same runs with more roles, each several together, as in {"op+y": "op y"}.

        Raises:
            SiteError: A role that is to be joined is unknown.
        """
        masks = dict(self.role_masks)
        for name, parts in joined_roles.items():
            if unknown := set(parts.split()) - set(self.role_masks):
                known = ", ".join(self.role_masks)
                raise SiteError(f"Roles {sorted(unknown)} are unknown: known are {known}")
            masks[name] = torch.stack([masks[part] for part in parts.split()]).any(0)
        return replace(self, role_masks=masks)

    def states(
        self, site: Site, source_object: SourceObject | None = None
    ) -> Float[Tensor, "prompt d_model"]:
        """Residual stream at the last token of a site's role; of the bases by default.

        Raises:
            SiteError: A prompt lacks the role, or the site is not in the residual stream.
        """
        if site.component != "resid" or site.role not in self.role_masks:
            raise SiteError(
                f"{site} has no states: give a 'resid' site with one of the roles "
                f"{', '.join(self.role_masks)}"
            )
        mask = self.role_masks[site.role]
        if not bool(mask.any(-1).all()):
            raise SiteError(
                f"Some prompts lack the role {site.role!r}: choose a role that all prompts have"
            )
        run = self.clean if source_object is None else self.sources[source_object]
        last = mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1)
        return run.resid[site.layer][torch.arange(len(last), device=last.device), last]


def run_interchange_pairs(
    model: Model,
    interchange_pairs: InterchangePairs,
    *,
    joined_roles: Mapping[str, str] | None = None,
) -> InterchangeRuns:
    """Run a model on bases and sources.

    Args:
        model: Any decoder.
        interchange_pairs: Bases and sources.
        joined_roles: Names of several roles together, such as {"op+y": "op y"}.

    Raises:
        BatchError: A text is longer than the model's context.
        OutcomeError: The tokenizer maps two outcomes to one token.
        SiteError: No prompt has a role that is to be joined.
    """
    pairs = {
        name: tokenize_pairs(model.tokenizer, sampled, max_length=model.shape.context)
        for name, sampled in (("same", interchange_pairs.same), ("other", interchange_pairs.other))
    }
    batch = pairs["same"].clean
    for question, *tokens in zip(
        batch.questions, *(r.outcomes for r in batch.readouts), strict=True
    ):
        require_distinct_outcomes(question, tokens)
    if not bool(batch.ids.equal(pairs["other"].clean.ids)):
        raise BatchError(
            "The bases of `same` and `other` have different tokens: sample the pairs again"
        )
    sources = LazyRuns({name: partial(_run_sources, model, pair) for name, pair in pairs.items()})
    aligned = pairs["same"].has_counterpart & pairs["other"].has_counterpart
    masks = {role: batch.role_mask(role) & aligned for role in batch.roles}
    runs = InterchangeRuns(
        model=model,
        interchange_pairs=interchange_pairs,
        batch=batch,
        clean=run_batch_with_cache(model, batch),
        sources=sources,
        role_masks={role: mask.to(model.device) for role, mask in masks.items()},
        outcome_tokens=tuple(
            torch.tensor(readout.outcomes).to(model.device) for readout in batch.readouts
        ),
    )
    return runs.with_joined_roles(joined_roles or {})


def _run_sources(model: Model, pairs: PairBatch) -> CachedRun:
    run = run_batch_with_cache(model, pairs.counterfactual)
    return run.realigned(pairs.source_positions.to(model.device))


@torch.no_grad()
def interchange_intervention(
    runs: InterchangeRuns,
    sites: Sequence[Site],
    *,
    source_object: SourceObject = "other",
    source: CachedRun | None = None,
) -> InterchangeOutcomes:
    """Replace each site of the bases' run by the sources' activation, one site at a time.

    Args:
        runs: Runs of bases and sources.
        sites: Sites to patch; the clean run is read out where this is empty.
        source_object: Which sources.
        source: Run to take activations from instead, such as a modified one.

    Raises:
        SiteError: A site does not exist.
    """
    tokens = torch.cat(runs.outcome_tokens, 1)

    def measure(
        logits: Float[Tensor, "row answer vocab"], prompt: Int[Tensor, " row"]
    ) -> Float[Tensor, "row answer measure"]:
        # Token ids below 2**24 are exact in single precision.
        predicted = logits.argmax(-1, keepdim=True).float()
        wanted = tokens[prompt][:, None].expand(-1, logits.shape[1], -1)
        return torch.cat([predicted, logits.float().gather(-1, wanted)], -1)

    if sites:
        source = runs.sources[source_object] if source is None else source
        measured = patch_sites(runs.clean, source, sites, runs.role_masks, measure)
    else:
        every = torch.arange(len(runs), device=runs.clean.ids.device)
        measured = measure(runs.clean.logits, every)[None]
    measured = measured.cpu()
    predicted = measured[..., 0].long().unbind(-1)
    sizes = [tokens.shape[1] for tokens in runs.outcome_tokens]
    logits = measured[..., 1:].split(sizes, -1)
    return InterchangeOutcomes(
        model=runs.model.name,
        source_object=source_object,
        site_names=tuple(map(str, sites)) or ("none",),
        labels=(runs.interchange_pairs.number_labels, runs.interchange_pairs.object_labels),
        outcome_index=tuple(
            index_of(tokens.cpu(), predicted[k]) for k, tokens in enumerate(runs.outcome_tokens)
        ),
        logits=tuple(part[:, :, k] for k, part in enumerate(logits)),
        other_readout_logits=tuple(part[:, :, 1 - k] for k, part in enumerate(logits)),
        predicted_tokens=predicted,
    )


def with_residual(
    runs: InterchangeRuns, layer: int, resid: Float[Tensor, "prompt position d_model"]
) -> CachedRun:
    """The bases' run with another residual stream before one block, as a source."""
    every = runs.clean.resid.clone()
    every[layer] = resid
    return replace(runs.clean, resid=every)
