"""Answers after interchange interventions, and what they say of each variable."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import SiteError
from probes.prompts.interchange_pairs import BASE, OTHER
from probes.stats.intervals import Estimate, proportion

SourceObject = Literal["same", "other"]
"""Whether the source is about the base's object or about another one."""

NUMBER_READOUT, OBJECT_READOUT = 0, 1
"""Answers of an interchange pair, in the order of their read-outs."""


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
        return replace(self, outcome_index=tuple(map(index_of, tokens, self.predicted_tokens)))

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


def index_of(
    tokens: Int[Tensor, "prompt outcome"], predicted: Int[Tensor, "site prompt"]
) -> Int[Tensor, "site prompt"]:
    """Index of the outcome that was predicted, -1 for none of them."""
    hit = tokens == predicted[..., None]
    return torch.where(hit.any(-1), hit.int().argmax(-1), -1)
