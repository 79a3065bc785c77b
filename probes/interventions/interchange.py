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
from probes.interventions.activation_patching import Recording, patch, record
from probes.models.model import Model
from probes.models.site import Cell, site_name
from probes.prompts.batch import Batch
from probes.prompts.interchange_pairs import BASE, OTHER, Crossings
from probes.prompts.pair_batch import encode_pairs
from probes.stats.intervals import Estimate, share

Objects = Literal["same", "other"]
"""Whether the source is about the base's object, or about another."""

NUMBER, NOUN = 0, 1
"""The answers of a crossing, in the order of their read-outs."""


@dataclass(frozen=True, eq=False)
class Crossed:
    """The runs of one model on crossings, made once for all interventions to come.

    Attributes:
        batch: The bases, as the model sees them.
        clean: The bases' run.
        sources: The sources' runs, moved so that each base position holds its counterpart.
        where: For every role the positions that have a counterpart.
        tokens: For each answer the tokens of its outcomes, in the order of the labels.
    """

    model: Model
    crossings: Crossings
    batch: Batch
    clean: Recording
    sources: Mapping[str, Recording]
    where: Mapping[str, Bool[Tensor, "prompt position"]]
    tokens: tuple[Int[Tensor, "prompt _"], ...]

    def __len__(self) -> int:
        return len(self.crossings)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the bases, in the order of the texts; the tail that is not read left out."""
        last = int(self.batch.readouts[NOUN].position.max())
        found = {}
        for role in self.batch.roles:
            places = self.where[role][:, : last + 1].nonzero()[:, 1]
            if len(places):
                found[role] = float(places.float().mean())
        return tuple(sorted(found, key=lambda role: found[role]))

    def states(self, cell: Cell, objects: Objects | None = None) -> Float[Tensor, "prompt d_model"]:
        """Return the residual at the last token of a cell's role; of the bases by default.

        Raises:
            SiteError: A prompt lacks the role, or the cell is no residual.
        """
        if cell.component != "resid" or cell.role not in self.where:
            raise SiteError(
                f"No states are kept for {cell}: ask for the 'resid' of one of the roles "
                f"{', '.join(self.where)}"
            )
        here = self.where[cell.role]
        if not bool(here.any(-1).all()):
            raise SiteError(f"Some prompts have no role {cell.role!r}: choose one that all have")
        run = self.clean if objects is None else self.sources[objects]
        last = here.shape[1] - 1 - here.flip(-1).int().argmax(-1)
        return run.resid[cell.layer][torch.arange(len(last), device=last.device), last]


def cross(model: Model, crossings: Crossings, *, roles: Mapping[str, str] | None = None) -> Crossed:
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
        name: encode_pairs(model.tokenizer, list(getattr(crossings, name)), limit=limit)
        for name, limit in (("same", model.shape.context), ("other", model.shape.context))
    }
    first = pairs["same"]
    if not bool(first.clean.ids.equal(pairs["other"].clean.ids)):
        raise BatchError("Sources about the same object and another read unlike bases: draw anew")
    runs = {name: _record(model, found.counterfactual) for name, found in pairs.items()}
    runs = {name: run.aligned(pairs[name].source.to(model.device)) for name, run in runs.items()}
    shared = first.exchanged & pairs["other"].exchanged
    where = {role: first.clean.where(role) & shared for role in first.clean.roles}
    for name, parts in (roles or {}).items():
        if strange := set(parts.split()) - set(where):
            raise SiteError(f"No role {sorted(strange)} to join: there are {', '.join(where)}")
        where[name] = torch.stack([where[part] for part in parts.split()]).any(0)
    return Crossed(
        model=model,
        crossings=crossings,
        batch=first.clean,
        clean=_record(model, first.clean),
        sources=runs,
        where={role: mask.to(model.device) for role, mask in where.items()},
        tokens=tuple(
            torch.tensor(readout.outcomes).to(model.device) for readout in first.clean.readouts
        ),
    )


def _record(model: Model, batch: Batch) -> Recording:
    ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
    return record(model, ids, mask, batch.positions.to(model.device))


@dataclass(frozen=True, eq=False)
class Interchange:
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
    objects: Objects
    sites: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    said: tuple[Int[Tensor, "site prompt"], ...]
    logits: tuple[Float[Tensor, "site prompt _"], ...]
    elsewhere: tuple[Float[Tensor, "site prompt _"], ...]
    tokens: tuple[Int[Tensor, "site prompt"], ...]

    def row(self, site: str) -> int:
        """Return the place of a site on the first axis."""
        if site not in self.sites:
            raise SiteError(f"{site!r} was not patched: there are {', '.join(self.sites)}")
        return self.sites.index(site)

    def says(self, label: str, answer: int = NUMBER) -> Bool[np.ndarray, "site prompt"]:
        """Mark where an answer means just this: "operation", "base", "thing", "other", …"""
        if label == OTHER:
            return (self.said[answer] < 0).cpu().numpy()
        return (self.said[answer] == self._place(label, answer)).cpu().numpy()

    def _place(self, label: str, answer: int) -> int:
        if label not in self.labels[answer]:
            known = ", ".join((*self.labels[answer], OTHER))
            raise SiteError(f"No outcome is called {label!r}: there are {known}")
        return self.labels[answer].index(label)

    def takes(self, variable: str) -> Bool[np.ndarray, "site prompt"]:
        """Mark where the number takes up a variable of the source, alone or with others."""
        self._place(variable, NUMBER)
        holding = [n for n, text in enumerate(self.labels[NUMBER]) if variable in text.split(" + ")]
        return torch.isin(self.said[NUMBER], torch.tensor(holding)).cpu().numpy()

    def share(self, site: str, label: str, answer: int = NUMBER) -> Estimate:
        """Return how often an answer means this after a site was put in, with its interval."""
        return share(self.says(label, answer)[self.row(site)])

    def table(self, site: str) -> pd.DataFrame:
        """Return the share of every outcome of one site, number and noun."""
        rows = []
        for answer, name in ((NUMBER, "number"), (NOUN, "noun")):
            for label in (*self.labels[answer], OTHER):
                found = self.share(site, label, answer)
                rows.append((name, label, found.value, found.low, found.high))
        return pd.DataFrame(rows, columns=["answer", "outcome", "share", "low", "high"])

    def pull(
        self, label: str, answer: int = NUMBER, *, elsewhere: bool = False
    ) -> Float[np.ndarray, "site prompt"]:
        """Return how far an outcome's logit stands above the base's."""
        found = (self.elsewhere if elsewhere else self.logits)[answer]
        place, base = (self._place(name, answer) for name in (label, BASE))
        return (found[..., place] - found[..., base]).cpu().numpy()


@torch.no_grad()
def exchange(
    crossed: Crossed,
    cells: Sequence[Cell],
    *,
    objects: Objects = "other",
    source: Recording | None = None,
) -> Interchange:
    """Put each site of the sources' runs into the bases', one at a time.

    Args:
        crossed: The runs.
        cells: The sites. None is put in where this is empty.
        objects: Which sources.
        source: A run to take states from in place of the sources', such as one that was changed.

    Raises:
        SiteError: A cell does not exist.
    """
    sizes = [tokens.shape[1] for tokens in crossed.tokens]

    def measure(
        logits: Float[Tensor, "row answer vocab"], prompt: Int[Tensor, " row"]
    ) -> Float[Tensor, "row measure"]:
        # Token numbers ride along with the logits: single precision holds them exactly.
        likeliest, logits = logits.argmax(-1), logits.float()
        asked = [tokens[prompt] for tokens in crossed.tokens]
        found = [likeliest.to(logits)]
        for answer, tokens in enumerate(asked):
            hit = tokens == likeliest[:, answer, None]
            found.append(torch.where(hit.any(-1), hit.int().argmax(-1), -1)[:, None].to(logits))
            found += [logits[:, place].gather(1, tokens) for place in (answer, 1 - answer)]
        return torch.cat(found, 1)

    if cells:
        theirs = crossed.sources[objects] if source is None else source
        found = patch(crossed.clean, theirs, cells, crossed.where, measure)
    else:
        every = torch.arange(len(crossed), device=crossed.clean.ids.device)
        found = measure(crossed.clean.logits, every)[None]
    widths = [2, *(n for size in sizes for n in (1, size, size))]
    likeliest, *parts = found.cpu().split(widths, dim=-1)
    return Interchange(
        model=crossed.model.name,
        objects=objects,
        sites=tuple(map(site_name, cells)) or ("none",),
        labels=(crossed.crossings.number, crossed.crossings.noun),
        said=tuple(part[..., 0].round().long() for part in parts[0::3]),
        logits=tuple(parts[1::3]),
        elsewhere=tuple(parts[2::3]),
        tokens=tuple(likeliest.round().long().unbind(-1)),
    )


def with_states(
    crossed: Crossed, layer: int, resid: Float[Tensor, "prompt position d_model"]
) -> Recording:
    """Return the bases' run with other residuals before one block, to be put in as a source."""
    every = crossed.clean.resid.clone()
    every[layer] = resid
    return replace(crossed.clean, resid=every)
