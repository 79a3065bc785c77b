"""Steps of a walk-through in one model: places are chosen on some questions, measured on others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.comparison.walkthrough.measure import (
    attention_looks,
    head_sites,
    rate_map,
    state_sites,
    swap_states,
)
from probes.comparison.walkthrough.prompts import BOTH, WalkthroughPrompts
from probes.comparison.walkthrough.result import Fetch, Look, ModelWalk, Swap
from probes.interventions.role_paths.graph import path_roles, readout_role
from probes.models.model import Model
from probes.models.site import Site
from probes.observe.result import Gate
from probes.prompts.question import Question
from probes.prompts.tokens.pair_batch import PairBatch, tokenize_pairs
from probes.prompts.tokens.tokenization import BOS
from probes.stats.intervals import proportion

NUMBER, NOUN = 0, 1
OWN_ROLES = {
    "x": ("x",),
    "y": ("y",),
    "operation": ("op",),
    BOTH: ("x", "y"),
    "thing": ("thing", "thing_moved", "thing_asked"),
}
"""Roles whose words a variable changes, where the question has them."""
MIN_RATE = 0.5
"""Fraction of questions below which no place counts as holding a variable."""
_NEW_TOKENS = 8

RateMap = Float[np.ndarray, "role layer"]


@dataclass(frozen=True, eq=False)
class WalkRuns:
    """Tokenized pairs of one model: of the question itself, and of others for search and test."""

    model: Model
    nulls: Sequence[Model]
    question: Question
    own: Mapping[str, PairBatch]
    search: Mapping[str, PairBatch]
    test: Mapping[str, PairBatch]

    @classmethod
    def of(cls, model: Model, nulls: Sequence[Model], prompts: WalkthroughPrompts) -> "WalkRuns":
        """Tokenize the prompts for a model."""
        own = {name: [pair] for name, pair in prompts.own.items()}
        own, search, test = (
            {
                name: tokenize_pairs(model.tokenizer, pairs, max_length=model.shape.context)
                for name, pairs in side.items()
            }
            for side in (own, prompts.others.search, prompts.others.test)
        )
        return cls(model, nulls, prompts.question, own, search, test)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the question up to the last read-out, in the order of the text."""
        batch = next(iter(self.own.values())).clean
        first = {role: int(mask[0].int().argmax()) for role, mask in path_roles(batch).items()}
        read = [r for r in first if r != BOS and first[r] <= int(batch.positions.max())]
        return tuple(sorted(read, key=lambda role: first[role]))

    @property
    def number_variables(self) -> list[str]:
        """Variables of the number that were changed, one at a time."""
        return [name for name in self.search if name != "thing"]

    def own_roles(self, variable: str) -> tuple[str, ...]:
        """Roles whose words a variable changes in the question."""
        return tuple(role for role in OWN_ROLES[variable] if role in self.roles)

    def words(self, variable: str) -> tuple[str, str]:
        """Words of a variable in the question and in its changed version."""
        pair = self.own[variable].pairs[0]
        roles = self.own_roles(variable)[: 2 if variable == BOTH else 1]
        old, new = (
            " … ".join(side.role_text(role) for role in roles)
            for side in (pair.clean, pair.counterfactual)
        )
        return old, new

    def reading_role(self, answer: int) -> str:
        """Role at which an answer is read."""
        return readout_role(next(iter(self.own.values())), answer)


def walk_model(runs: WalkRuns, gates: tuple[Gate, ...]) -> ModelWalk:
    """All steps of one model."""
    model, sites = runs.model, state_sites(runs.model, runs.roles)
    searched = _rates(runs, runs.search, sites)
    number = {name: searched[name] for name in runs.number_variables}
    own = {role for name in number for role in runs.own_roles(name)}
    # Where only one variable was changed, nothing can meet.
    meeting = _best_place(runs, number, own) if len(number) > 1 else None
    thing = {"thing": searched["thing"]} if "thing" in searched else {}
    noun = _last_own_place(runs, thing["thing"]) if thing else None
    looks = attention_looks(model, runs.question)
    text = model.generate(runs.question.text, max_new_tokens=_NEW_TOKENS)
    return ModelWalk(
        model=model.name,
        layers=model.shape.layers,
        heads=model.shape.heads,
        reply=text[len(runs.question.text) :].strip(),
        gates=gates,
        words=tuple(_swap(runs, name, _word_site(runs, name), sites) for name in runs.test),
        looks=looks,
        maps={n: rates for n, rates in _rates(runs, runs.test, sites).items() if n != BOTH},
        meeting=tuple(
            _swap(runs, name, meeting, sites)
            for name in runs.test
            if meeting is not None and name != "thing"
        ),
        noun=None if noun is None else _swap(runs, "thing", noun, sites),
        fetch=tuple(
            _fetch(runs, names, runs.reading_role(answer), looks)
            for answer, names in ((NUMBER, runs.number_variables), (NOUN, list(thing)))
            if names
        ),
    )


def _rates(
    runs: WalkRuns, pairs: Mapping[str, PairBatch], sites: Sequence[Site]
) -> dict[str, RateMap]:
    """Fraction of prompts whose answer changes, by role and layer, for each variable."""
    return {
        name: rate_map(swap_states(runs.model, batch, sites), _answer(name), runs.roles)
        for name, batch in pairs.items()
    }


def _answer(variable: str) -> int:
    return NOUN if variable == "thing" else NUMBER


def _word_site(runs: WalkRuns, variable: str) -> Site:
    """Embeddings of the words of a variable."""
    return Site(0, "resid", "+".join(runs.own_roles(variable)))


def _best_place(runs: WalkRuns, maps: Mapping[str, RateMap], own: set[str]) -> Site | None:
    """State apart from the words themselves at which the rarest variable is held most often.

    The earliest layer of equals; the output of the last layer only where no other place does, as it
    is the answer itself. None where no place holds all of them in half of the questions.
    """
    layers, roles = runs.model.shape.layers, runs.roles
    least = np.min(list(maps.values()), axis=0).round(2)
    least[[at for at, role in enumerate(roles) if role in own]] = -1
    for part in (least[:, 1:layers], least[:, 1:]):
        layer, role = np.unravel_index(int(part.T.argmax()), part.T.shape) if part.size else (0, 0)
        if part.size and part[role, layer] >= MIN_RATE:
            return Site(int(layer) + 1, "resid", roles[int(role)])
    return None


def _last_own_place(runs: WalkRuns, rates: RateMap) -> Site | None:
    """State of the object's own words in the latest layer in which it still sets the answer."""
    own = [at for at, role in enumerate(runs.roles) if role in runs.own_roles("thing")]
    for layer in range(runs.model.shape.layers - 1, 0, -1):
        best = max(own, key=lambda at: rates[at, layer])
        if rates[best, layer] >= MIN_RATE:
            return Site(layer, "resid", runs.roles[best])
    return None


def _swap(runs: WalkRuns, variable: str, site: Site, sites: Sequence[Site]) -> Swap:
    """One swap, with its control at the other sites of the layer, and its null."""
    answer, test = _answer(variable), runs.test[variable]
    words = set(runs.own_roles(variable))
    # Places of the same words hold the same, so they are no control.
    rivals = [
        one
        for one in sites
        if (one.layer == site.layer or site.component != "resid")
        and one != site
        and not (
            site.component == "resid" and {*site.role.split("+")} & words and one.role in words
        )
    ]
    replies = swap_states(runs.model, test, [site, *rivals])
    takes = replies.takes(answer)
    nulls = [swap_states(null, test, [site]).takes(answer)[0].mean() for null in runs.nulls]
    own = swap_states(runs.model, runs.own[variable], [site])
    other = 1 - answer if len(test.clean.readouts) > 1 else None
    name, (old, new) = runs.question.answers[answer][0], runs.words(variable)
    return Swap(
        variable=variable,
        site=str(site),
        role=site.role,
        layer=site.layer,
        old=old,
        new=new,
        expected=runs.own[variable].pairs[0].counterfactual.answer(name),
        says=runs.model.tokenizer.decode([int(own.tokens[0, 0, answer])]).strip(),
        rate=proportion(takes[0]),
        other_kept=None if other is None else proportion(replies.keeps(other)[0]),
        elsewhere=float(max(takes[1:].mean(1), default=0.0)),
        null=float(max(nulls, default=0.0)),
        prompts=len(test),
    )


def _fetch(runs: WalkRuns, variables: Sequence[str], role: str, looks: Sequence[Look]) -> Fetch:
    """Head that brings an answer most often to the role where it is read."""
    heads = head_sites(runs.model, role)
    rates = np.mean(
        [
            swap_states(runs.model, runs.search[name], heads).takes(_answer(name)).mean(1)
            for name in variables
        ],
        axis=0,
    )
    best = heads[int(rates.argmax())]
    look = next(one for one in looks if one.head == best.component_name and one.query == role)
    return Fetch(look, tuple(_swap(runs, name, best, heads) for name in variables))
