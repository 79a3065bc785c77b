"""Donors, whose states are mapped, and recipients, which receive them; models run when needed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Int
from torch import Tensor

from probes.comparison.variables.held_out_folds import HeldOutFolds
from probes.interventions.interchange import InterchangeRuns, run_interchange_pairs
from probes.interventions.site_search import find_sites, search_words
from probes.models.model import Model
from probes.models.site import Site, joined_roles
from probes.observe.activations import Activations, capture
from probes.prompts.interchange_pairs import BaseFilter, sample_interchange_pairs
from probes.prompts.tokens.batch import Batch, tokenize
from probes.result import not_saved

TokenizedTexts = tuple[Batch, Batch]
"""Tokenized questions, and tokenized sources of the interchange pairs with the bases' answers."""


@dataclass(frozen=True, eq=False)
class Donor:
    """States of a control in the place of a model.

    Attributes:
        name: Name of the control.
        train_states: States on the questions.
        source_states: States on the sources of the interchange pairs.
        train_order: Question whose states are paired with each question of the recipient; None
            pairs each question with itself.
    """

    name: str
    train_states: Activations
    source_states: Activations
    train_order: Int[Tensor, " question"] | None = None


@dataclass(frozen=True, eq=False)
class ModelDonor:
    """A model whose states are those of a donor; it runs when they are first read.

    Attributes:
        model: The model.
        folds: What it reads.
        tokenized: The same, tokenized; by default with its own tokenizer.
    """

    model: Model
    folds: HeldOutFolds
    tokenized: TokenizedTexts | None = not_saved()
    _kept: dict[str, Activations] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @property
    def train_states(self) -> Activations:
        """States on the questions."""
        return self._states("train")

    @property
    def source_states(self) -> Activations:
        """States on the sources of the interchange pairs."""
        return self._states("source")

    @property
    def train_order(self) -> None:
        """Each question is paired with itself."""

    def _states(self, kind: str) -> Activations:
        with self.model.turn:  # Another thread may need the same states.
            if not self._kept:
                texts = self.tokenized or tokenize_texts(self.model, self.folds)
                for name, batch in zip(("train", "source"), texts, strict=True):
                    self._kept[name] = capture(self.model, batch, ("resid",))
        return self._kept[kind]


AnyDonor = Donor | ModelDonor
"""States from a control or from a model."""


@dataclass(frozen=True, eq=False)
class Recipient:
    """A model that receives states; it runs when its runs are first read.

    Attributes:
        folds: Prompts and their splits.
        model: The model.
        sites: Site of each variable, found on other prompts.
        self_donor: Its own states.
    """

    folds: HeldOutFolds
    model: Model
    sites: Mapping[str, Site]
    _kept: list[InterchangeRuns] = field(default_factory=list, init=False, repr=False)
    self_donor: ModelDonor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "self_donor", ModelDonor(self.model, self.folds))

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @property
    def runs(self) -> InterchangeRuns:
        """Its runs on the interchange pairs."""
        with self.model.turn:  # Another thread may need the same runs.
            if not self._kept:
                roles = joined_roles(*self.sites.values())
                self._kept.append(
                    run_interchange_pairs(
                        self.model, self.folds.interchange_pairs, joined_roles=roles
                    )
                )
        return self._kept[0]


def tokenize_texts(model: Model, folds: HeldOutFolds) -> TokenizedTexts:
    """Tokenize what a donor reads; models with the same tokenizer can share it."""
    pairs, context = folds.interchange_pairs.other, model.shape.context
    sources, bases = ([getattr(p, side) for p in pairs] for side in ("counterfactual", "clean"))
    return (
        tokenize(model.tokenizer, folds.questions, max_length=context),
        tokenize(model.tokenizer, sources, answers_from=bases, max_length=context),
    )


def find_variable_sites(model: Model, folds: HeldOutFolds, *, seed: int = 0) -> dict[str, Site]:
    """Find the site of each variable on interchange pairs that are not in the test set."""
    test_texts = {pair.clean.text for pair in folds.interchange_pairs.other}
    pairs = sample_interchange_pairs(
        folds.pattern,
        max(len(folds.interchange_pairs) // 2, 8),
        tokenizers=(model.tokenizer,),
        seed=seed + 2,
        base_filter=BaseFilter(
            allowed_words=search_words(folds.pattern), keep=lambda base: base.text not in test_texts
        ),
    )
    sites = find_sites(model, pairs, folds.variables, shared_roles_only=True)
    return dict(zip(folds.variables, sites, strict=True))


def find_recipient(model: Model, folds: HeldOutFolds, *, seed: int = 0) -> Recipient:
    """Find the sites of a model that receives states."""
    return Recipient(folds, model, find_variable_sites(model, folds, seed=seed))
