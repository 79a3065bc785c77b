"""Two paths or one: what moves the number, what moves the noun, and what breaks either alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import SiteError
from probes.interventions.hotspots import Hotspots
from probes.interventions.interchange import (
    NOUN,
    NUMBER,
    Crossed,
    Interchange,
    exchange,
    with_states,
)
from probes.interventions.subspace import Subspace, random_subspace
from probes.models.model import Edit
from probes.models.site import Cell
from probes.prompts.interchange_pairs import BASE, OBJECT, OPERATION
from probes.stats.intervals import Estimate, mean, share

CARRIES = 0.1
"""Share of the whole fall of a lead from which a head counts as one of its carriers."""


@dataclass(frozen=True, slots=True)
class Swap:
    """What putting in one hotspot does to both answers.

    Attributes:
        variable: Whose hotspot it is: "operation" or "thing".
        number, noun: How often each answer becomes another, of the bases that were right in both.
    """

    variable: str
    number: Estimate
    noun: Estimate


@dataclass(frozen=True, eq=False)
class Dissociation:
    """Whether the operation moves the number alone, and the object the noun alone.

    Attributes:
        operation, thing: The two swaps.
        crossover: How much more the operation's site pulls the number than the noun, less the
            same of the object's site. Each pull is in shares of the base's own lead, so that 1
            makes the two outcomes equally likely; 2 for a perfect crossover that just ties, below
            0 where the sites do each other's work.
        one_place: The same with both answers read where the number is read: by logits alone.
    """

    operation: Swap
    thing: Swap
    crossover: Estimate
    one_place: Estimate


def dissociate(hot: Hotspots, *, seed: int = 0) -> Dissociation:
    """Hold the two swaps against each other, on the prompts that the hotspots were judged on."""
    crossed, plain = hot.crossed, exchange(hot.crossed, [])
    cells = [hot.spot(OPERATION).cell, hot.spot(OBJECT).cell]
    found = exchange(crossed, cells)
    swaps, right = [], plain.says(BASE, NUMBER)[0] & plain.says(BASE, NOUN)[0]
    for row, variable in enumerate((OPERATION, OBJECT)):
        moved = [~found.says(BASE, answer)[row][right] for answer in (NUMBER, NOUN)]
        swaps.append(Swap(variable, share(moved[NUMBER]), share(moved[NOUN])))
    return Dissociation(
        *swaps,
        crossover=mean(_crossover(plain, found, elsewhere=False), seed=seed),
        one_place=mean(_crossover(plain, found, elsewhere=True), seed=seed),
    )


def _crossover(
    plain: Interchange, found: Interchange, *, elsewhere: bool
) -> Float[np.ndarray, " prompt"]:
    """Return the interaction of site and answer, prompt by prompt."""
    gains, scale = [], 0.0
    for answer, label in ((NUMBER, OPERATION), (NOUN, OBJECT)):
        there = elsewhere and answer == NOUN
        before = plain.pull(label, answer, elsewhere=there)[0]
        # At one place both are measured by the number's lead: the noun's is next to nothing there.
        scale = scale if there else np.abs(before).mean()
        gains.append((found.pull(label, answer, elsewhere=there) - before) / scale)
    number, noun = gains
    return (number[0] - noun[0]) - (number[1] - noun[1])


@dataclass(frozen=True, eq=False)
class Necessity:
    """What resampling a subspace costs the number, beyond what it costs the noun.

    Attributes:
        number, noun: Mean fall of the log-odds of the right answer, as a share of their mean
            before: 1 where the answer is no likelier than all its rivals together.
        excess: Number less noun, paired by prompt.
        chance: The same excess of random subspaces beside it, at right angles to it and of as
            many dimensions as hold as much variance (or of all there are, where all hold less).
    """

    number: Estimate
    noun: Estimate
    excess: Estimate
    chance: tuple[float, ...]

    @property
    def percentile(self) -> float:
        """The share of random subspaces that the excess is above."""
        return float(np.mean([self.excess.value > one for one in self.chance]))


def necessity(
    crossed: Crossed, space: Subspace, *, draws: int = 20, seed: int = 0
) -> Necessity:  # fmt: skip
    """Give each base another base's or source's part in a subspace, whatever that one asks.

    Args:
        crossed: The runs.
        space: Directions at one site.
        draws: How many random subspaces of equal variance to hold it against.
        seed: Of the resampling and the draws.
    """
    cell = Cell(space.layer, "resid", space.role)
    states = torch.cat([crossed.states(cell), crossed.states(cell, "other")])
    rng, count = np.random.default_rng(seed), len(crossed)
    # Another row, and its base or its source: never a base's own state.
    order = (np.arange(count) + rng.integers(1, count, count)) % count
    order = torch.from_numpy(order + count * rng.integers(0, 2, count))
    donor = states[order.to(states.device)][:, None]
    before = exchange(crossed, [])

    def falls(used: Subspace) -> Float[np.ndarray, "answer prompt"]:
        clean = crossed.clean.resid[space.layer]
        source = with_states(crossed, space.layer, used.mix(clean, donor.expand_as(clean)))
        after = exchange(crossed, [cell], source=source)
        odds = [(_odds(before, k)[0], _odds(after, k)[0]) for k in (NUMBER, NOUN)]
        return np.stack([(here - there) / abs(here.mean()) for here, there in odds])

    own = falls(space)
    chance = []
    for draw in range(draws):
        basis = _rival(space.basis, states, seed=seed + draw)
        number, noun = falls(replace(space, method="random", basis=basis))
        chance.append(float((number - noun).mean()))
    number, noun, excess = (mean(v, seed=seed) for v in (own[0], own[1], own[0] - own[1]))
    return Necessity(number, noun, excess, tuple(chance))


def _rival(
    basis: Float[Tensor, "dimension d_model"], states: Float[Tensor, "row d_model"], *, seed: int
) -> Float[Tensor, "_ d_model"]:
    """Draw directions at right angles to a subspace until they hold as much variance as it does.

    In one dimension that holds most of the variance, directions of as much are nearly the same
    direction; so the rival may be wider, but holds nothing of the subspace.
    """
    size = states.shape[1]
    drawn = random_subspace(size, size, seed=seed).to(basis).double()
    own = basis.double()
    rest = drawn - drawn @ own.T @ own
    rest = torch.linalg.qr(rest[: size - len(own)].T).Q.T
    centred = states.double() - states.double().mean(0)
    held = (centred @ rest.T).square().sum(0).cumsum(0)
    wanted = (centred @ own.T).square().sum()
    return rest[: 1 + int((held < wanted).sum())].to(basis.dtype)


def _odds(found: Interchange, answer: int) -> Float[np.ndarray, "site prompt"]:
    """Return the log-odds of the base's answer among the outcomes."""
    logits = found.logits[answer].double()
    place = found.labels[answer].index(BASE)
    rest = torch.cat([logits[..., :place], logits[..., place + 1 :]], -1)
    return (logits[..., place] - rest.logsumexp(-1)).numpy()


@dataclass(frozen=True, eq=False)
class Branch:
    """The heads that bring each answer to where it is read, and what knocking them out costs.

    Attributes:
        number_heads, noun_heads: Heads that, put in where the answer is read, take a tenth or more
            of the way to the source's answer, found on some prompts.
        without_number, without_noun: How often number and noun are still right, on other prompts
            where both were, when those heads write there what the source made them write.
        everywhere: The same two when the noun's heads write the source's at every token.
        share: Every head's share of the way, number and noun.
    """

    number_heads: tuple[str, ...]
    noun_heads: tuple[str, ...]
    without_number: tuple[Estimate, Estimate]
    without_noun: tuple[Estimate, Estimate]
    everywhere: tuple[Estimate, Estimate]
    share: Mapping[str, tuple[float, float]]


def branches(finding: Crossed, judging: Crossed) -> Branch:
    """Find the heads that bring number and noun to where they are read, and knock each set out."""
    shape, shares = finding.model.shape, []
    heads = [(layer, head) for layer in range(shape.layers) for head in range(shape.heads)]
    plain, read = exchange(finding, []), _read(finding)
    for answer, label in ((NUMBER, finding.crossings.whole), (NOUN, OBJECT)):
        role = f"read {answer}"
        cells = [Cell(layer, head, role) for layer, head in heads]
        before = plain.pull(label, answer)
        gain = exchange(read, cells).pull(label, answer) - before
        shares.append(gain.mean(1) / (2 * np.abs(before).mean()))
    names = [f"L{layer}.H{head}" for layer, head in heads]
    chosen = [
        tuple(name for name, share in zip(names, found, strict=True) if share >= CARRIES)
        for found in shares
    ]
    return Branch(
        number_heads=chosen[0],
        noun_heads=chosen[1],
        without_number=knocked_out(judging, chosen[0]),
        without_noun=knocked_out(judging, chosen[1]),
        everywhere=knocked_out(judging, chosen[1], everywhere=True),
        share={n: (float(a), float(b)) for n, a, b in zip(names, *shares, strict=True)},
    )


def _read(crossed: Crossed) -> Crossed:
    """Name the positions where answers are read, as if they were roles."""
    position = torch.arange(crossed.clean.ids.shape[1], device=crossed.clean.ids.device)
    places = crossed.clean.readout
    masks = {f"read {k}": position == places[:, k, None] for k in (NUMBER, NOUN)}
    return replace(crossed, where={**crossed.where, **masks})


@torch.no_grad()
def knocked_out(
    crossed: Crossed, heads: Sequence[str], *, everywhere: bool = False
) -> tuple[Estimate, Estimate]:
    """Let heads write what the other object's sources made them write: where answers are read.

    Returns:
        How often number and noun are right then, of the bases where both were.
    """
    model, theirs = crossed.model, crossed.sources["other"].z
    named: dict[int, list[int]] = {}
    for name in heads:
        layer, head = name.removeprefix("L").split(".H")
        named.setdefault(int(layer), []).append(int(head))
    where = torch.ones_like(crossed.clean.mask)
    if not everywhere:
        masks = _read(crossed).where
        where = masks[f"read {NUMBER}"] | masks[f"read {NOUN}"]

    def edit(layer: int) -> Edit:
        chosen = torch.zeros(model.shape.heads, dtype=torch.bool, device=where.device)
        chosen[named[layer]] = True
        swap = (where[..., None] & chosen)[..., None]
        return lambda value: torch.where(swap, theirs[layer], value)

    with model.editing({f"blocks.{layer}.attn.hook_z": edit(layer) for layer in named}):
        logits = model.logits(crossed.clean.ids, crossed.clean.mask)
    said = logits.take_along_dim(crossed.clean.readout[..., None], dim=1).argmax(-1)
    right = [(said[:, k] == crossed.tokens[k][:, 0]).cpu().numpy() for k in (NUMBER, NOUN)]
    plain = exchange(crossed, [])
    before = plain.says(BASE, NUMBER)[0] & plain.says(BASE, NOUN)[0]
    return share(right[NUMBER][before]), share(right[NOUN][before])


@dataclass(frozen=True, slots=True)
class Binding:
    """What exchanging the mean difference between two things' tokens does to the number.

    Attributes:
        layer: The block before which it was exchanged.
        swapped: How often the number becomes that of the other thing.
        stayed: How often it stays, and the noun with it.
        chance: How often random vectors as long make it the other thing's.
    """

    layer: int
    swapped: Estimate
    stayed: Estimate
    chance: Estimate


def binding(crossed: Crossed, *, seed: int = 0) -> tuple[Binding, ...]:
    """Exchange what binds each of two things to its number, layer by layer.

    The mean difference between the tokens of the two is added to one and taken from the other;
    nouns cancel in the mean (Feng and Steinhardt 2023, 2310.17191). The number should become what
    the operation leaves of the other thing's.

    Raises:
        SiteError: The pattern speaks of one thing only.
    """
    roles = (OBJECT, f"other_{OBJECT}")
    if lacking := [role for role in roles if role not in crossed.where]:
        raise SiteError(f"Bindings need two things: no role {', '.join(lacking)} in these prompts")
    sign = 1 if crossed.crossings.pattern.endswith("-more") else -1
    asked = [pair.clean for pair in crossed.crossings.other]
    texts = [f" {int(q['d']) + sign * int(q['y'])}" for q in asked]
    encoded = crossed.model.tokenizer(texts, add_special_tokens=False).input_ids
    token: Int[Tensor, " prompt"] = torch.tensor([ids[-1] for ids in encoded])
    here = [crossed.where[role] for role in roles]
    both = replace(crossed, where={**crossed.where, "both": here[0] | here[1]})
    draw = torch.Generator().manual_seed(seed)
    found = []
    for layer in range(crossed.model.shape.layers):
        states = [crossed.states(Cell(layer, "resid", role)).mean(0) for role in roles]
        step = states[1] - states[0]
        lot = torch.randn(step.shape, generator=draw).to(step)
        outcomes = []
        for shift in (step, lot * step.norm() / lot.norm()):
            moved = crossed.clean.resid[layer] + torch.where(here[0][..., None], shift, 0.0)
            moved = moved - torch.where(here[1][..., None], shift, 0.0)
            source = with_states(crossed, layer, moved)
            outcomes.append(exchange(both, [Cell(layer, "resid", "both")], source=source))
        swapped, chance = (one.tokens[NUMBER][0] == token for one in outcomes)
        stayed: Bool[np.ndarray, " prompt"] = (
            outcomes[0].says(BASE)[0] & outcomes[0].says(BASE, NOUN)[0]
        )
        found.append(Binding(layer, share(swapped.numpy()), share(stayed), share(chance.numpy())))
    return tuple(found)
