"""Factorial interchange: put a site of a source's run into a base's, and see what it then says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import BatchError, SiteError
from probes.interventions.activation_patching import CachedRun, patch_sites, run_with_cache
from probes.models.model import Model
from probes.models.site import Site
from probes.prompts.batch import Batch
from probes.prompts.interchange_pairs import BASE, OTHER, InterchangePairs
from probes.prompts.pair_batch import tokenize_pairs
from probes.stats.intervals import Estimate, proportion

SourceObject = Literal["same", "other"]
"""Whether the source is about the base's object, or about another."""

NUMBER_READOUT, OBJECT_READOUT = 0, 1
"""The answers of a crossing, in the order of their read-outs."""


@dataclass(frozen=True, eq=False)
class InterchangeRuns:
    """The runs of one model on crossings, made once for all interventions to come.

    Attributes:
        batch: The bases, as the model sees them.
        clean: The bases' run.
        sources: The sources' runs, moved so that each base position holds its counterpart.
        where: For every role the positions that have a counterpart.
        tokens: For each answer the tokens of its outcomes, in the order of the labels.
    """

    model: Model
    interchange_pairs: InterchangePairs
    batch: Batch
    clean: CachedRun
    sources: Mapping[str, CachedRun]
    role_masks: Mapping[str, Bool[Tensor, "prompt position"]]
    outcome_tokens: tuple[Int[Tensor, "prompt _"], ...]

    def __len__(self) -> int:
        return len(self.interchange_pairs)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the bases, in the order of the texts; the tail that is not read left out."""
        last = int(self.batch.readouts[OBJECT_READOUT].position.max())
        found = {}
        for role in self.batch.roles:
            places = self.role_masks[role][:, : last + 1].nonzero()[:, 1]
            if len(places):
                found[role] = float(places.float().mean())
        return tuple(sorted(found, key=lambda role: found[role]))

    def states(
        self, site: Site, source_object: SourceObject | None = None
    ) -> Float[Tensor, "prompt d_model"]:
        """Return the residual at the last token of a cell's role; of the bases by default.

        Raises:
            SiteError: A prompt lacks the role, or the cell is no residual.
        """
        if site.component != "resid" or site.role not in self.role_masks:
            raise SiteError(
                f"No states are kept for {site}: ask for the 'resid' of one of the roles "
                f"{', '.join(self.role_masks)}"
            )
        here = self.role_masks[site.role]
        if not bool(here.any(-1).all()):
            raise SiteError(f"Some prompts have no role {site.role!r}: choose one that all have")
        run = self.clean if source_object is None else self.sources[source_object]
        last = here.shape[1] - 1 - here.flip(-1).int().argmax(-1)
        return run.resid[site.layer][torch.arange(len(last), device=last.device), last]


def run_interchange_pairs(
    model: Model,
    interchange_pairs: InterchangePairs,
    *,
    joined_roles: Mapping[str, str] | None = None,
) -> InterchangeRuns:
    """Run a model on bases and sources, once.

    Args:
        model: Any decoder.
        crossings: What it reads.
        roles: Names for several roles joined, such as {"op+y": "op y"}.

    Raises:
        BatchError: A text is longer than the model takes.
        OutcomeError: The model's tokenizer cannot tell outcomes apart.
        SiteError: A role to be joined is in no prompt.
    """
    pairs = {
        name: tokenize_pairs(
            model.tokenizer, list(getattr(interchange_pairs, name)), max_length=limit
        )
        for name, limit in (("same", model.shape.context), ("other", model.shape.context))
    }
    first = pairs["same"]
    if not bool(first.clean.ids.equal(pairs["other"].clean.ids)):
        raise BatchError("Sources about the same object and another read unlike bases: draw anew")
    runs = {name: _run_batch(model, found.counterfactual) for name, found in pairs.items()}
    runs = {
        name: run.realigned(pairs[name].source_positions.to(model.device))
        for name, run in runs.items()
    }
    shared = first.has_counterpart & pairs["other"].has_counterpart
    where = {role: first.clean.role_mask(role) & shared for role in first.clean.roles}
    for name, parts in (joined_roles or {}).items():
        if strange := set(parts.split()) - set(where):
            raise SiteError(f"No role {sorted(strange)} to join: there are {', '.join(where)}")
        where[name] = torch.stack([where[part] for part in parts.split()]).any(0)
    return InterchangeRuns(
        model=model,
        interchange_pairs=interchange_pairs,
        batch=first.clean,
        clean=_run_batch(model, first.clean),
        sources=runs,
        role_masks={role: mask.to(model.device) for role, mask in where.items()},
        outcome_tokens=tuple(
            torch.tensor(readout.outcomes).to(model.device) for readout in first.clean.readouts
        ),
    )


def _run_batch(model: Model, batch: Batch) -> CachedRun:
    ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
    return run_with_cache(model, ids, mask, batch.positions.to(model.device))


@dataclass(frozen=True, eq=False)
class InterchangeOutcomes:
    """What the bases said after each site was put in from the sources.

    Attributes:
        sites: "L1.resid@op" and the like; "none" where nothing was put in.
        labels: For number and noun, what an outcome means; see `Crossings`.
        said: For number and noun the index of the label whose token is the likeliest of the whole
            vocabulary, -1 for any other token.
        logits: For number and noun the logits of all outcomes, where the answer is read.
        elsewhere: The same logits where the other answer is read.
        tokens: For number and noun the likeliest token.
    """

    model: str
    source_object: SourceObject
    site_names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    outcome_index: tuple[Int[Tensor, "site prompt"], ...]
    logits: tuple[Float[Tensor, "site prompt _"], ...]
    other_readout_logits: tuple[Float[Tensor, "site prompt _"], ...]
    predicted_tokens: tuple[Int[Tensor, "site prompt"], ...]

    def site_index(self, site: str) -> int:
        """Return the place of a site on the first axis."""
        if site not in self.site_names:
            raise SiteError(f"{site!r} was not patched: there are {', '.join(self.site_names)}")
        return self.site_names.index(site)

    def is_outcome(
        self, label: str, answer: int = NUMBER_READOUT
    ) -> Bool[np.ndarray, "site prompt"]:
        """Mark where an answer means just this: "operation", "base", "thing", "other", …"""
        if label == OTHER:
            return (self.outcome_index[answer] < 0).cpu().numpy()
        return (self.outcome_index[answer] == self._label_index(label, answer)).cpu().numpy()

    def _label_index(self, label: str, answer: int) -> int:
        if label not in self.labels[answer]:
            known = ", ".join((*self.labels[answer], OTHER))
            raise SiteError(f"No outcome is called {label!r}: there are {known}")
        return self.labels[answer].index(label)

    def takes_variable(self, variable: str) -> Bool[np.ndarray, "site prompt"]:
        """Mark where the number takes up a variable of the source, alone or with others."""
        self._label_index(variable, NUMBER_READOUT)
        holding = [
            n for n, text in enumerate(self.labels[NUMBER_READOUT]) if variable in text.split(" + ")
        ]
        return torch.isin(self.outcome_index[NUMBER_READOUT], torch.tensor(holding)).cpu().numpy()

    def proportion(self, site: str, label: str, answer: int = NUMBER_READOUT) -> Estimate:
        """Return how often an answer means this after a site was put in, with its interval."""
        return proportion(self.is_outcome(label, answer)[self.site_index(site)])

    def table(self, site: str) -> pd.DataFrame:
        """Return the share of every outcome of one site, number and noun."""
        rows = []
        for answer, name in ((NUMBER_READOUT, "number"), (OBJECT_READOUT, "noun")):
            for label in (*self.labels[answer], OTHER):
                found = self.proportion(site, label, answer)
                rows.append((name, label, found.value, found.low, found.high))
        return pd.DataFrame(rows, columns=["answer", "outcome", "fraction", "low", "high"])

    def logit_shift(
        self, label: str, answer: int = NUMBER_READOUT, *, at_other_readout: bool = False
    ) -> Float[np.ndarray, "site prompt"]:
        """Return how far an outcome's logit stands above the base's."""
        found = (self.other_readout_logits if at_other_readout else self.logits)[answer]
        place, base = (self._label_index(name, answer) for name in (label, BASE))
        return (found[..., place] - found[..., base]).cpu().numpy()


@torch.no_grad()
def interchange_intervention(
    runs: InterchangeRuns,
    sites: Sequence[Site],
    *,
    source_object: SourceObject = "other",
    source: CachedRun | None = None,
) -> InterchangeOutcomes:
    """Put each site of the sources' runs into the bases', one at a time.

    Args:
        crossed: The runs.
        cells: The sites. None is put in where this is empty.
        objects: Which sources.
        source: A run to take states from in place of the sources', such as one that was changed.

    Raises:
        SiteError: A cell does not exist.
    """
    sizes = [tokens.shape[1] for tokens in runs.outcome_tokens]

    def measure(
        logits: Float[Tensor, "row answer vocab"], prompt: Int[Tensor, " row"]
    ) -> Float[Tensor, "row measure"]:
        # Token numbers ride along with the logits: single precision holds them exactly.
        likeliest, logits = logits.argmax(-1), logits.float()
        asked = [tokens[prompt] for tokens in runs.outcome_tokens]
        found = [likeliest.to(logits)]
        for answer, tokens in enumerate(asked):
            hit = tokens == likeliest[:, answer, None]
            found.append(torch.where(hit.any(-1), hit.int().argmax(-1), -1)[:, None].to(logits))
            found += [logits[:, place].gather(1, tokens) for place in (answer, 1 - answer)]
        return torch.cat(found, 1)

    if sites:
        theirs = runs.sources[source_object] if source is None else source
        found = patch_sites(runs.clean, theirs, sites, runs.role_masks, measure)
    else:
        every = torch.arange(len(runs), device=runs.clean.ids.device)
        found = measure(runs.clean.logits, every)[None]
    widths = [2, *(n for size in sizes for n in (1, size, size))]
    likeliest, *parts = found.cpu().split(widths, dim=-1)
    return InterchangeOutcomes(
        model=runs.model.name,
        source_object=source_object,
        site_names=tuple(map(str, sites)) or ("none",),
        labels=(runs.interchange_pairs.number_labels, runs.interchange_pairs.object_labels),
        outcome_index=tuple(part[..., 0].round().long() for part in parts[0::3]),
        logits=tuple(parts[1::3]),
        other_readout_logits=tuple(parts[2::3]),
        predicted_tokens=tuple(likeliest.round().long().unbind(-1)),
    )


def with_residual(
    runs: InterchangeRuns, layer: int, resid: Float[Tensor, "prompt position d_model"]
) -> CachedRun:
    """Return the bases' run with other residuals before one block, to be put in as a source."""
    every = runs.clean.resid.clone()
    every[layer] = resid
    return replace(runs.clean, resid=every)
