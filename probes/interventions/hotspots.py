"""Hotspots: where a model holds the operation, the operands and the object, and how sure that is.

bases and sources → every role × layer put in → what was taken up, beside untrained nets
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from probes.errors import ModelError, PatternError, SiteError
from probes.interventions.interchange import (
    NOUN,
    NUMBER,
    Crossed,
    Interchange,
    Objects,
    cross,
    exchange,
)
from probes.models.model import Model, untrained
from probes.models.site import Cell, join, site_name
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import OBJECT, OPERATION, Crossings, crossings
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, share
from probes.stats.paired import paired

MARGIN = 0.1
"""How far two shares may differ and still count as the same."""

Draw = dict[str, Any]
"""What `crossings` is to be told."""

_LEVEL = 0.95
_PART = 0.03  # A role that takes this share of a variable may belong to a site of two roles.


@dataclass(frozen=True, eq=False)
class Spot:
    """The site where a variable is taken up most surely, found on other prompts than it is judged.

    Attributes:
        variable: "operation", an operand such as "x", or "thing".
        cell: The site.
        other: How often just this variable is taken up from sources about another object.
        same: The same from sources about the base's object.
        difference: `same` less `other`, paired by base; near 0: the object does not matter.
        groups: `same` among bases with words or numbers that were not met before (of an object:
            `other`); see `strange_draws`.
    """

    variable: str
    cell: Cell
    other: Estimate
    same: Estimate
    difference: Estimate
    groups: Mapping[str, Estimate]


@dataclass(frozen=True, eq=False)
class Hotspots:
    """What every site of a model hands over.

    Attributes:
        crossed: The runs that it was judged on.
        accuracy: How often the bases themselves are answered right: number and noun.
        other, same: The outcome of putting in each site, by the object of the source.
        cells: The sites, role by role within each layer; layer 0 is the token embedding.
        spots: One for each variable, in the order asked for.
        bars: For each variable what the best site of 95 % of untrained nets stays below; NaN
            where none was asked.
    """

    model: str
    pattern: str
    crossed: Crossed
    accuracy: tuple[Estimate, Estimate]
    other: Interchange
    same: Interchange
    cells: tuple[Cell, ...]
    spots: tuple[Spot, ...]
    bars: Mapping[str, float]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles, in the order of the text; roles that were joined come last."""
        return tuple(dict.fromkeys(cell.role for cell in self.cells))

    def spot(self, variable: str) -> Spot:
        """Return the hotspot of a variable."""
        for found in self.spots:
            if found.variable == variable:
                return found
        raise SiteError(
            f"{variable!r} was not looked for: found {[s.variable for s in self.spots]}"
        )

    def map(self, variable: str) -> Float[np.ndarray, "role layer"]:
        """Return how often each site hands over just one variable, of the bases that have it."""
        layers = 1 + max(cell.layer for cell in self.cells)
        found = np.full((len(self.roles), layers), np.nan)
        taken = alone(self.other, variable)
        for cell, some in zip(self.cells, taken, strict=True):
            here = self.crossed.where[cell.role].any(-1).cpu().numpy()
            found[self.roles.index(cell.role), cell.layer] = some[here].mean()
        return found


def alone(found: Interchange, variable: str) -> Bool[np.ndarray, "site prompt"]:
    """Mark where a variable and nothing else was taken up."""
    if variable == OBJECT:
        return found.says(OBJECT, NOUN) & found.says("base", NUMBER)
    return found.says(variable) & found.says("base", NOUN)


def all_cells(crossed: Crossed) -> list[Cell]:
    """List the residual of every role that all bases can hand over, before each block and after."""
    layers = range(crossed.model.shape.layers + 1)
    return [Cell(layer, "resid", role) for layer in layers for role in crossed.roles]


def inner_cells(crossed: Crossed) -> list[Cell]:
    """List the residuals that a block reads and another has written: where hotspots may be."""
    last = crossed.model.shape.layers
    return [cell for cell in all_cells(crossed) if 0 < cell.layer < last]


def hotspots(  # noqa: PLR0913 (what is looked for, how hard, and beside what)
    model: Model,
    pattern: Pattern,
    *,
    variables: Sequence[str] = (),
    bases: int = 200,
    seed: int = 0,
    nulls: int = 20,
    null_bases: int = 24,
) -> Hotspots:
    """Find where a model holds each variable, on some prompts, and judge it on others.

    Args:
        model: Any decoder.
        pattern: A pattern with an opposite, whose outcomes are all different tokens.
        variables: "operation", operands, "thing"; all of the pattern's by default.
        bases: How many bases to judge on; half as many find the sites.
        seed: Of prompts and nets.
        nulls: How many untrained nets of the same shape say what chance gives.
        null_bases: How many bases each of them is given.

    Raises:
        PatternError: The pattern's outcomes collide, or there are too few bases.
        ModelError: The model has one block.
    """
    if model.shape.layers < 2:
        raise ModelError(
            f"{model.name} has one block: there is no site between it and the embedding or the "
            "answer. Choose a model of two blocks or more."
        )
    tokenizers = (model.tokenizer,)
    words = finding_words(pattern)
    finding = crossings(
        pattern, max(bases // 2, 8), tokenizers=tokenizers, seed=seed + 1, words=words
    )
    seen = {pair.clean.text for pair in finding.same}
    judging = crossings(
        pattern, bases, tokenizers=tokenizers, seed=seed, keep=lambda base: base.text not in seen
    )
    known = variables_of(judging)
    wanted = tuple(variables) or known
    if strange := set(wanted) - set(known):
        raise PatternError(
            f"{pattern.name!r} has no variable {sorted(strange)}: it has {', '.join(known)}"
        )
    sites = find_sites(model, finding, wanted)
    joined = join(*sites)
    crossed = cross(model, judging, roles=joined)
    cells = all_cells(crossed)
    every = [*cells, *(site for site in sites if site.role in joined)]
    other, same = _both(crossed, every)
    plain = exchange(crossed, [])
    strange = _strange(model, pattern, sites, (max(bases // 4, 20), seed))
    return Hotspots(
        model=model.name,
        pattern=pattern.name,
        crossed=crossed,
        accuracy=(plain.share("none", "base", NUMBER), plain.share("none", "base", NOUN)),
        other=other,
        same=same,
        cells=tuple(every),
        spots=tuple(
            _spot(variable, cell, (other, same), strange, seed)
            for variable, cell in zip(wanted, sites, strict=True)
        ),
        bars=_bars(model, judging, wanted, (nulls, null_bases, seed)),
    )


def variables_of(found: Crossings) -> tuple[str, ...]:
    """Return the variables of crossings: the operation, the operands, the object."""
    single = [text for text in found.number if text != "base" and " " not in text]
    return (*single, OBJECT)


def finding_words(pattern: Pattern) -> dict[str, list[str]]:
    """Return the words that sites are found by: every second noun, wherever nouns stand."""
    slots = {slot for frame in pattern.frames for slot in frame.slots}
    nouns = list(pattern.lexicon.words("noun")[::2])
    return {slot: nouns for slot in sorted(slots) if pattern.lexicon.kind(slot) == "noun"}


def strange_draws(pattern: Pattern) -> dict[str, Draw]:
    """Say how to draw bases whose sources hand over what was not met before.

    "new objects" stand in no prompt that the sites were found by; "untrained objects" and
    "untrained cells" in no such text of the embedded family's corpus (the cell is the sum that the
    base must do once the operation is put in).
    """
    split, turned = family_split(), pattern.turned().operation
    nouns = pattern.lexicon.words("noun")
    found_by = finding_words(pattern)[OBJECT]
    groups: dict[str, Draw] = {
        "new objects": {"words": {OBJECT: [noun for noun in nouns if noun not in found_by]}}
    }
    if len(held := [noun for noun in nouns if noun in split.nouns]) > 1:
        groups["untrained objects"] = {"words": {OBJECT: held}}
    if all({"x", "y"} <= set(frame.slots) for frame in pattern.frames):
        groups["untrained cells"] = {
            "keep": lambda base: (turned, base["x"], base["y"]) in split.cells
        }
    return groups


def _strange(
    model: Model, pattern: Pattern, sites: Sequence[Cell], dials: tuple[int, int]
) -> dict[str, Crossed]:
    """Run the bases that hold what was not met before; a group that cannot be drawn is left out."""
    bases, seed = dials
    joined = join(*sites)
    found = {}
    for n, (name, draw) in enumerate(strange_draws(pattern).items()):
        with suppress(PatternError):
            drawn = crossings(
                pattern, bases, tokenizers=(model.tokenizer,), seed=seed + 20 + n, **draw
            )
            found[name] = cross(model, drawn, roles=joined)
    return found


def find_sites(
    model: Model, finding: Crossings, variables: Sequence[str], *, everywhere: bool = False
) -> list[Cell]:
    """Return, past the embedding, where each variable and no other is handed over most.

    Sources about the same object count as much as those about another: a state that serves one
    object only must be found, too. `everywhere`: only at roles that every prompt has.
    """
    crossed = cross(model, finding)
    cells = inner_cells(crossed)
    if everywhere:
        cells = [cell for cell in cells if bool(crossed.where[cell.role].any(-1).all())]
    found = _both(crossed, cells)
    sites = []
    for variable in variables:
        shares = _handed(found, variable)
        best = int(shares.argmax())
        if shares[best] < MARGIN:  # Nowhere: so look at its own tokens, behind the first block.
            own = "op" if variable == OPERATION else variable
            sites.append(Cell(1, "resid", own if own in crossed.roles else cells[best].role))
            continue
        part = found[0].takes(variable).mean(1) if variable != OBJECT else shares
        some = [cell for cell, share in zip(cells, part, strict=True) if share > _PART]
        joined = None
        if shares[best] <= 1 - MARGIN:
            joined = _joined(model, finding, variable, some, float(shares[best]))
        sites.append(joined or cells[best])
    return sites


def _joined(
    model: Model, finding: Crossings, variable: str, cells: Sequence[Cell], alone_best: float
) -> Cell | None:
    """Return two roles of one layer that together hand over more by the margin, if any do."""
    couples = [(a, b) for a, b in combinations(cells, 2) if a.layer == b.layer]
    if not couples:
        return None
    both = [Cell(a.layer, "resid", f"{a.role}+{b.role}") for a, b in couples]
    crossed = cross(model, finding, roles=join(*both))
    together = _handed(_both(crossed, both), variable)
    more = int(together.argmax())
    return both[more] if together[more] > alone_best + MARGIN else None


def _both(crossed: Crossed, cells: Sequence[Cell]) -> tuple[Interchange, Interchange]:
    """Put sites in from sources about another object, and about the same."""
    return exchange(crossed, cells), exchange(crossed, cells, objects="same")


def _handed(found: tuple[Interchange, Interchange], variable: str) -> Float[np.ndarray, " site"]:
    """Return how often sites hand over just a variable; an object, from another object only."""
    other, same = (alone(one, variable).mean(1) for one in found)
    return other if variable == OBJECT else (other + same) / 2


def _spot(
    variable: str, cell: Cell, found: tuple[Interchange, Interchange],
    strange: Mapping[str, Crossed], seed: int,
) -> Spot:  # fmt: skip
    row = found[0].row(site_name(cell))
    kind: Objects = "other" if variable == OBJECT else "same"
    other, same = (alone(one, variable)[row] for one in found)
    if variable == OBJECT:  # From a source about the same object there is none to take up.
        same = found[1].says("base", NOUN)[row] & found[1].says("base", NUMBER)[row]
    return Spot(
        variable=variable,
        cell=cell,
        other=share(other),
        same=share(same),
        difference=paired(other, same).difference,
        groups={
            name: share(alone(exchange(crossed, [cell], objects=kind), variable)[0])
            for name, crossed in strange.items()
        },
    )


def _bars(
    model: Model, judging: Crossings, variables: Sequence[str], dials: tuple[int, int, int]
) -> dict[str, float]:
    """Say what the best single site of untrained nets reaches, searched and judged on one set."""
    nulls, bases, seed = dials
    few, best = judging.take(range(min(bases, len(judging)))), []
    for n in range(nulls):
        crossed = cross(untrained(model, seed=seed + n), few)
        found = exchange(crossed, inner_cells(crossed))
        best.append([alone(found, variable).mean(1).max() for variable in variables])
    if not best:
        return dict.fromkeys(variables, float("nan"))
    levels = np.quantile(np.array(best), _LEVEL, axis=0)
    return dict(zip(variables, map(float, levels), strict=True))
