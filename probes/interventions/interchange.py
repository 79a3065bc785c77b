"""Interchange interventions: sites of a base run take the source run's activation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import BatchError, SiteError
from probes.interventions.activation_patching import CachedRun, patch_sites, run_batch_with_cache
from probes.interventions.lazy_runs import LazyRuns, join_roles
from probes.models.model import Model
from probes.models.site import Site
from probes.prompts.interchange_pairs import BASE, OTHER, InterchangePairs
from probes.prompts.tokens.answer_tokens import require_distinct_outcomes
from probes.prompts.tokens.batch import Batch
from probes.prompts.tokens.pair_batch import PairBatch, tokenize_pairs
from probes.stats.intervals import Estimate, proportion

SourceObject = Literal["same", "other"]
"""Whether the source is about the base's object or about another one."""

NUMBER_READOUT, OBJECT_READOUT = 0, 1
"""Answers of an interchange pair, in the order of their read-outs."""


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
    masks = join_roles(masks, joined_roles or {})
    return InterchangeRuns(
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


def _run_sources(model: Model, pairs: PairBatch) -> CachedRun:
    run = run_batch_with_cache(model, pairs.counterfactual)
    return run.realigned(pairs.source_positions.to(model.device))


@dataclass(frozen=True, eq=False)
class InterchangeOutcomes:
    """Answers of the bases after an interchange intervention at each site.

    Tuples hold the number answer, then the object answer.

    Attributes:
        model: Name of the model.
        source_object: Which sources were used.
        site_names: "L1.resid@op" and the like; "none" without intervention.
        labels: Meanings of the outcomes; see `InterchangePairs`.
        outcome_index: Index of the label whose token is the most likely of the whole vocabulary,
            -1 for any other token.
        logits: Logits of all outcomes at the answer's read-out.
        other_readout_logits: The same logits at the other answer's read-out.
        predicted_tokens: Most likely tokens.
    """

    model: str
    source_object: SourceObject
    site_names: tuple[str, ...] = field(repr=False)
    labels: tuple[tuple[str, ...], ...] = field(repr=False)
    outcome_index: tuple[Int[Tensor, "site prompt"], ...] = field(repr=False)
    logits: tuple[Float[Tensor, "site prompt _"], ...] = field(repr=False)
    other_readout_logits: tuple[Float[Tensor, "site prompt _"], ...] = field(repr=False)
    predicted_tokens: tuple[Int[Tensor, "site prompt"], ...] = field(repr=False)

    def site_index(self, site: str) -> int:
        """Index of a site on the first axis."""
        if site not in self.site_names:
            raise SiteError(f"{site!r} was not patched: choose one of {', '.join(self.site_names)}")
        return self.site_names.index(site)

    def is_outcome(
        self, label: str, answer: int = NUMBER_READOUT
    ) -> Bool[np.ndarray, "site prompt"]:
        """Where an answer is one outcome: "operation", "base", "thing", "other" and so on."""
        index = -1 if label == OTHER else self._label_index(label, answer)
        return (self.outcome_index[answer] == index).cpu().numpy()

    def _label_index(self, label: str, answer: int) -> int:
        if label not in self.labels[answer]:
            known = ", ".join((*self.labels[answer], OTHER))
            raise SiteError(f"Outcome {label!r} is unknown: known are {known}")
        return self.labels[answer].index(label)

    def takes_variable(self, variable: str) -> Bool[np.ndarray, "site prompt"]:
        """Where the number takes the source's value of a variable, alone or with others."""
        self._label_index(variable, NUMBER_READOUT)
        labels = self.labels[NUMBER_READOUT]
        including = [n for n, label in enumerate(labels) if variable in label.split(" + ")]
        return torch.isin(self.outcome_index[NUMBER_READOUT], torch.tensor(including)).cpu().numpy()

    def scored_by(self, tokens: Sequence[Int[Tensor, "prompt _"]]) -> "InterchangeOutcomes":
        """The same answers, scored by other tokens of the outcomes."""
        return replace(self, outcome_index=tuple(map(_index_of, tokens, self.predicted_tokens)))

    def unchanged(self) -> Bool[np.ndarray, "site prompt"]:
        """Where both answers are the base's."""
        return self.is_outcome(BASE, NUMBER_READOUT) & self.is_outcome(BASE, OBJECT_READOUT)

    def proportion(self, site: str, label: str, answer: int = NUMBER_READOUT) -> Estimate:
        """Fraction of prompts with an outcome after intervention at a site."""
        return proportion(self.is_outcome(label, answer)[self.site_index(site)])

    def table(self, site: str) -> pd.DataFrame:
        """Fraction of every outcome of both answers at one site."""
        rows = []
        for answer, name in ((NUMBER_READOUT, "number"), (OBJECT_READOUT, "noun")):
            for label in (*self.labels[answer], OTHER):
                rate = self.proportion(site, label, answer)
                rows.append((name, label, rate.value, rate.low, rate.high))
        return pd.DataFrame(rows, columns=["answer", "outcome", "fraction", "low", "high"])

    def number_fractions(self, site: str) -> dict[str, float]:
        """Fraction of each number outcome at a site."""
        labels = (*self.labels[NUMBER_READOUT], OTHER)
        return {label: self.proportion(site, label).value for label in labels}

    def logit_shift(
        self, label: str, answer: int = NUMBER_READOUT, *, at_other_readout: bool = False
    ) -> Float[np.ndarray, "site prompt"]:
        """Logit of an outcome minus the logit of the base's answer."""
        logits = (self.other_readout_logits if at_other_readout else self.logits)[answer]
        outcome, base = (self._label_index(name, answer) for name in (label, BASE))
        return (logits[..., outcome] - logits[..., base]).cpu().numpy()


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
            _index_of(tokens.cpu(), predicted[k]) for k, tokens in enumerate(runs.outcome_tokens)
        ),
        logits=tuple(part[:, :, k] for k, part in enumerate(logits)),
        other_readout_logits=tuple(part[:, :, 1 - k] for k, part in enumerate(logits)),
        predicted_tokens=predicted,
    )


def _index_of(
    tokens: Int[Tensor, "prompt outcome"], predicted: Int[Tensor, "site prompt"]
) -> Int[Tensor, "site prompt"]:
    """Index of the outcome that was predicted, -1 for none of them."""
    hit = tokens == predicted[..., None]
    return torch.where(hit.any(-1), hit.int().argmax(-1), -1)


def with_residual(
    runs: InterchangeRuns, layer: int, resid: Float[Tensor, "prompt position d_model"]
) -> CachedRun:
    """The bases' run with another residual stream before one block, as a source."""
    every = runs.clean.resid.clone()
    every[layer] = resid
    return replace(runs.clean, resid=every)
