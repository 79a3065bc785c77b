"""Results of interventions other than hotspots: plain numbers, so that they load without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from probes.interventions.screening.check import ScreenCheck
from probes.models.site import Site
from probes.result import not_saved
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    from probes.interventions.subspaces.das import Subspace
else:
    Subspace = Any  # Such fields are not saved; `load_result` needs a type that exists.


@dataclass(frozen=True, slots=True)
class IntrinsicDimension:
    """Intrinsic dimension of a set of states, by two measures.

    Attributes:
        participation_ratio: Of the variances along the principal components: 1 for a line, d_model
            for a ball; linear.
        two_nn: Dimension of the manifold that nearest neighbors lie on, which may be curved.
        n_distinct: Number of different states.
    """

    participation_ratio: float
    two_nn: float
    n_distinct: int


@dataclass(frozen=True, slots=True)
class UnseenVerbs:
    """Interchange accuracy of an operation direction on verbs that it was not fitted on.

    Attributes:
        site: At the hotspot.
        embedding: At the token embedding of the same tokens, or of the verb where the hotspot is
            elsewhere.
        gain: `site` minus `embedding`, paired by base.
        verb_groups: The groups of verbs, each left out in turn.
        by_pair: At the hotspot, for each pair of opposite verbs, such as "lose / find"; pairs with
            few prompts in `site` have further ones.
    """

    site: Estimate
    embedding: Estimate
    gain: Estimate
    verb_groups: tuple[tuple[str, ...], ...]
    by_pair: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class ControlAccuracy:
    """Accuracy under a control, in the prompts that are answered right without it.

    A prompt that the model gets wrong anyway says nothing about the control.

    Attributes:
        accuracy: In these prompts; NaN where there are none.
        right: Prompts that are answered right without the control.
        asked: All prompts.
    """

    accuracy: Estimate
    right: int
    asked: int


@dataclass(frozen=True, eq=False)
class DASResult:
    """Distributed alignment search for the operation at one site, with its controls.

    Accuracies are those of interchange on prompts on which nothing was searched or chosen.

    Attributes:
        full_state: Of the whole state at the site.
        dimensions_tried, accuracies: Of the subspace found, for each number of dimensions.
        min_dimensions: Fewest dimensions that reach 0.9 of the whole state's accuracy on the
            prompts that the choice depends on, see `left_out`; None if none do.
        mean_difference: Of the direction between the class means (baseline).
        permuted_labels: Of a subspace searched with permuted answers.
        control_site: Of a subspace searched at the tokens of the layer where an interchange does
            least; None where no other tokens differ.
        random_init: Of a subspace searched in a random-init model of the same shape.
        off_manifold_distance: Median distance of patched states from natural ones; natural states
            have 1.
        state_dimension: Intrinsic dimension of the site's states.
        subspace: The smallest subspace that was enough, or the last that was tried; None in a
            loaded result.
        left_out: Prompts on which the number of dimensions was chosen; the subspaces were searched
            on the other prompts of the search. 0 where they would be too few, and the number was
            chosen on the prompts that the subspaces were searched on.
    """

    full_state: Estimate
    dimensions_tried: tuple[int, ...]
    accuracies: tuple[Estimate, ...]
    min_dimensions: int | None
    mean_difference: Estimate
    permuted_labels: Estimate
    control_site: Estimate | None
    random_init: Estimate
    off_manifold_distance: float
    state_dimension: IntrinsicDimension
    subspace: Subspace = not_saved()
    left_out: int = 0


@dataclass(frozen=True, eq=False)
class DirectionComparison:
    """Transfer of the operation's direction between objects.

    Attributes:
        own_direction: Interchange accuracy of an object's own direction on its bases.
        other_direction: The same with the direction of another object.
        rotated_direction: The same with the other object's direction after the orthogonal map
            between the two objects' states.
        difference: `own_direction` minus `other_direction`, paired by base.
        rotation_gain: `rotated_direction` minus `other_direction`, paired by base.
        angles: Angle between the two directions in degrees, for each pair of objects.
        object_pairs: The pairs of objects.
    """

    own_direction: Estimate
    other_direction: Estimate
    rotated_direction: Estimate
    difference: Estimate
    rotation_gain: Estimate
    angles: tuple[float, ...]
    object_pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class InterchangeEffect:
    """Effect of an interchange at one hotspot on both answers.

    Attributes:
        variable: Variable of the hotspot: "operation" or "thing".
        number, object: Fraction of bases whose answer changes, of those right in both.
    """

    variable: str
    number: Estimate
    object: Estimate


@dataclass(frozen=True, eq=False)
class Dissociation:
    """Double dissociation of the operation's site and the object's site.

    Attributes:
        operation, object: Effects of an interchange at the two sites.
        crossover: Interaction of site and answer. An effect is the change of the logit difference
            between the source's and the base's answer, as a fraction of the base's own: 1 makes
            the two equally likely. The crossover is (number - noun) at the operation's site minus
            the same at the object's: 2 for a perfect dissociation that just ties, below 0 where
            each site does the other's work.
        crossover_at_number: The same with both answers read where the number is read.
    """

    operation: InterchangeEffect
    object: InterchangeEffect
    crossover: Estimate
    crossover_at_number: Estimate


@dataclass(frozen=True, eq=False)
class Necessity:
    """Resample ablation of a subspace: loss of the number beyond the loss of the noun.

    Attributes:
        number, object: Mean drop of the log odds of the right answer, as a fraction of their mean
            before; 1 where the answer is as likely as all foils together.
        excess: `number` minus `object`, paired by prompt.
        null_excesses: The same for random orthogonal subspaces with as much variance (or of all
            dimensions, where all hold less).
    """

    number: Estimate
    object: Estimate
    excess: Estimate
    null_excesses: tuple[float, ...] = field(repr=False)

    @property
    def null_percentile(self) -> float:
        """Fraction of random subspaces with a smaller excess."""
        return float(np.mean([self.excess.value > one for one in self.null_excesses]))


@dataclass(frozen=True, eq=False)
class OutputHeads:
    """Heads that write each answer where it is read, and the accuracy when they are patched.

    Attributes:
        number_heads, object_heads: Heads whose interchange at the readout moves the logit
            difference by at least a tenth of the way to the source's answer.
        without_number, without_object: Accuracy of number and noun when these heads are patched
            from the source at the readout; other prompts, where both answers were right.
        without_object_everywhere: The same when the noun's heads are patched at every token.
        head_fractions: Fraction of the way for every head: number and noun.
        screens: Error of gradients, if these gave the fractions of most heads; else empty.
    """

    number_heads: tuple[str, ...]
    object_heads: tuple[str, ...]
    without_number: tuple[Estimate, Estimate]
    without_object: tuple[Estimate, Estimate]
    without_object_everywhere: tuple[Estimate, Estimate]
    head_fractions: Mapping[str, tuple[float, float]] = field(repr=False)
    screens: tuple[ScreenCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class BindingSwap:
    """Swap of the binding vectors of two objects before one block (Feng and Steinhardt 2023).

    Attributes:
        layer: The block.
        swapped: Fraction of bases whose number becomes that of the other object, of those where it
            is not below 0.
        unchanged: Fraction whose number and noun stay.
        random_swapped: `swapped` with random vectors of the same norm.
    """

    layer: int
    swapped: Estimate
    unchanged: Estimate
    random_swapped: Estimate


@dataclass(frozen=True, slots=True)
class DecodingResult:
    """Linear decoding of a label from states.

    Attributes:
        accuracy: Balanced accuracy on held-out states, 0 to 1.
        threshold: Threshold of the same with shuffled labels.
        n_classes: Number of labels.
    """

    accuracy: float
    threshold: float
    n_classes: int

    @property
    def is_decodable(self) -> bool:
        """Whether the accuracy is above the threshold."""
        return self.accuracy > self.threshold


LabelValues = tuple[str | int, ...]


@dataclass(frozen=True, eq=False)
class StateProjection:
    """Two-dimensional projections of the states of one site: all bases, then all sources.

    Coordinates are centered and in the states' own units. Signs are chosen so that sources lie to
    the right of bases and larger answers above smaller ones, on average.

    Attributes:
        model, site: The model, and the site whose states are projected.
        prompts: The texts.
        labels: For each prompt "operation" (such as "minus"), "number" (the answer), and "verb",
            "x", "y" and "object" where its pattern has them.
        principal_xy: Coordinates on the first two principal components.
        principal_fractions: Fraction of variance on each, 0 to 1.
        direction_xy: Coordinates on the operation's direction, and on the first principal
            component orthogonal to it.
        direction_fractions: Fraction of variance on each, 0 to 1.
    """

    model: str
    site: Site
    prompts: tuple[str, ...] = field(repr=False)
    labels: Mapping[str, LabelValues] = field(repr=False)
    principal_xy: Float[np.ndarray, "prompt 2"] = field(repr=False)
    principal_fractions: tuple[float, float]
    direction_xy: Float[np.ndarray, "prompt 2"] = field(repr=False)
    direction_fractions: tuple[float, float]
