"""The five claims, each with the tests that its verdict reads; pure rules, no models."""

from collections.abc import Mapping, Sequence

from probes.claims.base_model import Lineage
from probes.interventions.confounds import Unseen
from probes.interventions.das_search import CAPACITY, Search
from probes.interventions.directions import Alignment
from probes.interventions.dissociation import Branch, Dissociation, Necessity
from probes.interventions.geometry import Decoded
from probes.interventions.hotspots import MARGIN, Hotspots, Spot
from probes.interventions.interchange import NOUN, NUMBER
from probes.models.site import site_name
from probes.prompts.interchange_pairs import OBJECT, OPERATION
from probes.stats.evidence import Evidence, Verdict, above, below, judged, untested, within
from probes.stats.intervals import Estimate

MOSTLY = 0.5
"""A site hands a variable over where it does so more often than not."""

_LEVEL = 0.95

TITLES = {
    "H1": "one state codes the operation and the numbers, whatever the object",
    "H2": "the noun travels a path of its own",
    "H3": "the operation lies in the same direction for every object",
    "H4": "tuning took over what was there before it",
    "H5": "the template was learned from many objects",
}


def template(  # noqa: PLR0913 (one argument for each test)
    hot: Hotspots, object_there: Decoded, unseen: Unseen | None, search: Search | None,
    asked_back: Estimate | None, loud_filler: Estimate | None,
) -> Verdict:  # fmt: skip
    """H1: some state codes the operation and which number is which, whatever the object.

    Args:
        hot: The hotspots.
        object_there: Whether the object can be read at the operation's site.
        unseen: Directions tried on verbs that they were not fitted on.
        search: The searched subspace, for the capacity of the search.
        asked_back: How often "how many did I take away?" keeps its answer when the operation is
            put in at the same site.
        loud_filler: How often it is right behind a sentence that has the opposite verb in vain.
    """
    spot = hot.spot(OPERATION)
    tests = [_has_site(hot, found) for found in hot.spots if found.variable != OBJECT]
    tests.append(_same_object(spot, object_there))
    tests += _held_out(spot)
    tests += _verbs(unseen)
    if asked_back is None:
        tests.append(untested("asked for y", "the model does not answer it", decides=False))
    else:
        says = "the state turns the answer to 'how many did I take away?' too: a detector of words"
        tests.append(above("asked for y, the answer stays", says, asked_back, 1 - 2 * MARGIN))
    if loud_filler is None:
        tests.append(untested("a verb in vain", "no such sentence in the pattern", decides=False))
    else:
        says = (
            "a sentence with the verb that has nothing to do with it misleads: a detector of words"
        )
        tests.append(above("a verb in vain", says, loud_filler, 1 - 2 * MARGIN))
    if search is not None:
        says = "a search finds as much in an untrained model: it can find anything"
        tests.append(below("search in an untrained model", says, search.untrained, CAPACITY))
    return judged("H1", TITLES["H1"], tests)


def _verbs(unseen: Unseen | None) -> list[Evidence]:
    if unseen is None:
        return [untested("verbs not fitted on", "too few verbs to leave some out")]
    says = (
        "a direction fitted on some verbs does not turn others: it tells words, not the operation"
    )
    site = above("verbs not fitted on", says, unseen.site, MOSTLY)
    name = "gain over the token embedding"
    if site.passed is False:
        return [site, untested(name, "nothing to gain on", decides=False)]
    says = (
        f"directions in the verbs' embeddings already do as much ({unseen.embedding}): the words "
        "hold the operation, no circuit makes it"
    )
    return [site, above(name, says, unseen.gain, 0.0)]


def _has_site(hot: Hotspots, spot: Spot) -> Evidence:
    bar = max(MOSTLY, hot.bars[spot.variable])
    return above(
        f"{spot.variable} at {site_name(spot.cell)}",
        f"no site hands over {spot.variable} and nothing else",
        spot.same,
        bar,
    )


def _same_object(spot: Spot, there: Decoded) -> Evidence:
    if not there.accuracy > there.chance + MARGIN:
        return untested(
            "same and other objects alike",
            f"no object can be read at {site_name(spot.cell)} ({there.accuracy:.2f}, chance up to "
            f"{there.chance:.2f}): that it does not matter there says nothing",
        )
    return within(
        "same and other objects alike",
        "the state hands over the operation only, or less, between sentences about one object",
        spot.difference,
        MARGIN,
    )


def _held_out(spot: Spot) -> list[Evidence]:
    says = {
        "new objects": "it fails with objects that the site was not found by",
        "untrained objects": "it fails with objects that the family's training held out",
        "untrained cells": "it fails for sums that the family's training held out: a table, not a "
        "circuit",
    }
    return [
        above(name, says[name], spot.groups[name], MOSTLY)
        if name in spot.groups
        else untested(name, "the pattern has none", decides=False)
        for name in says
    ]


def branch(
    parted: Dissociation, two: Dissociation | None, needed: Necessity, heads: Branch
) -> Verdict:
    """H2: the noun travels another path, which decides the noun and nothing else.

    Args:
        parted: Swaps of operation and object.
        two: The same where two things are spoken of; None where the model cannot do that.
        needed: What resampling the operation's directions costs.
        heads: Heads that bring each answer to where it is read.
    """
    operation, thing = parted.operation, parted.thing
    says = "the object's site moves the number"
    tests = [
        above("the object's site moves the noun", "nothing moves the noun", thing.noun, MOSTLY),
        below("it leaves the number", says, thing.number, MARGIN),
    ]
    says = "the operation's site moves the noun"
    tests.append(below("the operation leaves the noun", says, operation.noun, MARGIN))
    says = "the sites do each other's work"
    tests.append(above("crossover (shares of the lead)", says, parted.crossover, 0.0))
    says = "the two are told apart only by where they are read"
    tests.append(above("crossover, read at one place", says, parted.one_place, 0.0))
    if two is None:
        tests.append(untested("two things spoken of", "the model cannot do it", decides=False))
    else:
        says = "with two things in the text, the object's site moves the number"
        tests.append(below("two things: it leaves the number", says, two.thing.number, MARGIN))
        says = "with two things in the text, the sites do each other's work"
        tests.append(above("two things: crossover", says, two.crossover, 0.0))
    says = "resampling the operation's directions hurts the noun as much as the number"
    tests.append(above("needed by the number more (shares of log-odds)", says, needed.excess, 0.0))
    tests.append(
        Evidence(
            "needed more than directions beside it",
            "resampling random directions of as much variance does the same",
            Estimate(needed.percentile, needed.percentile, needed.percentile),
            f"above more than 0.95 of {len(needed.chance)} random subspaces",
            needed.percentile > _LEVEL,
        )
    )
    tests += _heads(heads)
    return judged("H2", TITLES["H2"], tests)


def _heads(heads: Branch) -> list[Evidence]:
    names = ", ".join(heads.noun_heads) or "none"
    if not heads.noun_heads or not heads.number_heads:
        return [untested("heads knocked out", f"heads of the noun: {names}; too few stand out")]
    cost = "knocking out the heads that bring the noun costs the number as well"
    alike = {*heads.noun_heads} & {*heads.number_heads}
    if alike:
        cost += f", as {', '.join(sorted(alike))} brings both"
    return [
        below(
            f"without {names}: the noun breaks",
            "the noun survives without its heads",
            heads.without_noun[NOUN],
            MOSTLY,
        ),
        above(f"without {names}: the number stays", cost, heads.without_noun[NUMBER], 1 - MARGIN),
    ]


def direction(found: Alignment) -> Verdict:
    """H3: the same place and direction across objects, not merely up to a rotation."""
    says = "another object's direction turns less than its own"
    if found.gain.low > MARGIN:
        says += f", and as much once it is rotated ({found.rotated}): the same up to a rotation"
    tests = [
        above("own direction", "one direction does not carry it", found.own, MOSTLY),
        within("own less another object's", says, found.difference, MARGIN),
    ]
    return judged("H3", TITLES["H3"], tests)


def hijack(found: Lineage | None, why: str = "") -> Verdict:
    """H4: instruct tuning takes over what was there: same sites, same direction, new reader."""
    if found is None:
        return judged("H4", TITLES["H4"], [untested("the model before", why)])
    tests = [
        within(
            "own direction less the former one",
            f"the direction of {found.before} does not serve {found.after}",
            found.difference,
            MARGIN,
        ),
        above("the former state, put in", "the state is not the same", found.state, MOSTLY),
        below("an untrained model's direction", "any direction does", found.stranger, MARGIN),
        untested("a new reader", "no heads stand out")
        if not (found.heads_before and found.heads_after)
        else Evidence(
            "a new reader",
            f"the same heads read it out: {', '.join(found.heads_before)} before, "
            f"{', '.join(found.heads_after)} after",
            Estimate(found.shared, found.shared, found.shared),
            "heads shared below 0.50 (Jaccard, no interval)",
            found.shared < MOSTLY,
        ),
    ]
    return judged("H4", TITLES["H4"], tests)


def learned(rows: Sequence[Mapping[str, float | str]]) -> Verdict:
    """H5: the template exists because training was full of it with other objects.

    Args:
        rows: For models trained on few and on many objects, "nouns", and how often the operation
            of sentences about objects that none of them was trained on is taken up, as "strange",
            "strange_low" and "strange_high"; see `series`.
    """
    if len(rows) < 2:
        why = "no relatives of this model that were trained on few objects are measured"
        return judged("H5", TITLES["H5"], [untested("dose and response", why)])
    rows = sorted(rows, key=lambda row: float(row["nouns"]))
    few, *_, many = rows
    gain = float(many["strange"]) - float(few["strange"])
    # The two are separate models: errors add in squares (Newcombe 1998, method 10).
    low = gain - _length(many, "low", few, "high")
    high = gain + _length(many, "high", few, "low")
    shown = ", ".join(f"{row['nouns']:.0f}: {float(row['strange']):.2f}" for row in rows)
    tests = [
        above(
            f"{many['nouns']:.0f} objects rather than {few['nouns']:.0f}",
            f"trained on few objects, the operation is taken up as well ({shown})",
            Estimate(gain, low, high),
            MARGIN,
        ),
        untested("over seeds", "one model for each number of objects", decides=False),
    ]
    return judged("H5", TITLES["H5"], tests)


def _length(
    one: Mapping[str, float | str], side: str, other: Mapping[str, float | str], far: str
) -> float:
    ends = ((one, side), (other, far))
    steps = [float(row["strange"]) - float(row[f"strange_{end}"]) for row, end in ends]
    return sum(step**2 for step in steps) ** 0.5
