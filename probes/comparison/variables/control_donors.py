"""Controls in place of a donor: a label of the word, and states of other questions."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import one_hot

from probes.comparison.variables.donors import AnyDonor, Donor
from probes.comparison.variables.held_out_folds import HeldOutFolds
from probes.observe.activations import Activations


def label_donor(donor: AnyDonor, folds: HeldOutFolds, variable: str) -> Donor:
    """Control whose states are the one-hot code of the variable's word."""
    words = sorted({*folds.question_forms(variable), *folds.source_forms(variable)})

    def labeled(states: Activations, forms: tuple[str, ...]) -> Activations:
        codes = one_hot(torch.tensor([words.index(form) for form in forms]), len(words)).float()
        everywhere = codes[None, :, None].expand(1, -1, states["resid"].shape[2], -1)
        return replace(states, model="label", tensors={"resid": everywhere})

    return Donor(
        "label",
        labeled(donor.train_states, folds.question_forms(variable)),
        labeled(donor.source_states, folds.source_forms(variable)),
    )


def shuffled_donor(donor: AnyDonor, folds: HeldOutFolds, *, seed: int) -> Donor:
    """Control whose training states are permuted among the questions of each template."""
    order = np.arange(len(folds.questions))
    rng = np.random.default_rng(seed)
    templates = np.array([question.template for question in folds.questions])
    for template in np.unique(templates):
        rows = np.flatnonzero(templates == template)
        order[rows] = rng.permutation(rows)
    return Donor("shuffled", donor.train_states, donor.source_states, torch.from_numpy(order))
