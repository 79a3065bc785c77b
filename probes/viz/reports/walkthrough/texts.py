"""Sentences of a walk-through, in plain words, each with its numbers."""

from collections import Counter
from collections.abc import Iterator, Sequence

from probes.comparison.paths.result import PathEffect
from probes.comparison.walkthrough.result import Fetch, Look, ModelWalk, Swap, Walkthrough
from probes.stats.intervals import Estimate
from probes.viz.html_text import escape
from probes.viz.plots.walkthrough_scene import LABELS

STRONG = 0.5
"""Rate from which a head is said to bring an answer."""

_TRICKS = {"copy x": "repeat the first number", "copy y": "repeat the second number"}


def percent(value: float) -> str:
    """Fraction as a percentage, with a no-break space."""
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


class Texts:
    """Sentences about one walk-through."""

    def __init__(self, walk: Walkthrough) -> None:
        self.walk, self.others = walk, walk.others
        # One question with other numbers is not a sample of questions.
        self.case, self.by = ("number", "with") if walk.same_question else ("question", "in")
        self.words = dict(walk.stretches)
        replies = zip(walk.answers, walk.models[0].reply.split(), strict=False)
        self.words |= {f"reply_{name}": word for (name, _), word in replies}
        self.which = dict(_which_of_equal(walk.stretches))

    def quoted(self, role: str) -> str:
        """Words of a role in quotes, and which of equal ones they are."""
        return f"“{self.words.get(role, role)}”{self.which.get(role, '')}"

    model_says = "the model says"

    def place(self, swap: Swap) -> str:
        """Where a swap is made; "" where the word itself is changed."""
        if "resid" not in swap.site:
            return f"in the output of head {swap.site.split('@')[0]} at {self.quoted(swap.role)}"
        if swap.layer == 0:
            return ""
        return f"in the state of {self.quoted(swap.role)} after layer {swap.layer}"

    def numbers(self, swap: Swap) -> str:
        """How often a swap works with others, and its controls."""
        works = round(swap.rate.value * swap.prompts)
        ends = f" (interval {100 * swap.rate.low:.0f}–{percent(swap.rate.high)})"
        texts = [f"right {self.by} {works} of {swap.prompts} {self.others}"]
        texts[0] += "" if self.walk.same_question else ends
        if self.place(swap):
            is_state = "resid" in swap.site
            elsewhere = "other words of this layer" if is_state else "other heads"
            texts.append(f"{elsewhere}: at most {percent(swap.elsewhere)}")
        texts.append(f"untrained models: {percent(swap.null)}")
        if swap.other_kept is not None:
            other = "number" if swap.variable == "thing" else "noun"
            texts.append(f"the {other} stays in {percent(swap.other_kept.value)}")
        return "; ".join(texts)

    def reading(self) -> str:
        """What a language model does."""
        return (
            "A language model reads a text word by word and says which word comes next. Here the "
            f"text ends in {self.quoted(self.walk.stretches[-1][0])}, and the next words are its "
            f"answer. Right is “{' '.join(text for _, text in self.walk.answers)}”."
        )

    def reply(self, one: ModelWalk) -> str:
        """What a model answers, and how often it is right."""
        gate = one.gates[0]
        return (
            f"{one.layers} layers. It answers “{one.reply}”. In {gate.n_questions} other questions "
            f"its {gate.answer} is right in {_interval(gate.accuracy)}; the best simple trick "
            f"({_TRICKS.get(gate.heuristic, gate.heuristic)}) is right in "
            f"{percent(gate.heuristic_accuracy)}."
        )

    def how_to_read(self) -> str:
        """How the picture is read."""
        return (
            '<p class="pv-lead">Each row of the picture is a part of the question, from top to '
            "bottom. Between a word and the answer there are layers, from left to right. In each "
            "layer a word has a <b>state</b>: a list of numbers that the model computes from this "
            "word and from words before it. To find out what a state holds, we take the state from "
            "a <b>changed question</b>, put it in the place of the old one, and look at what the "
            "model says.</p>"
        )

    def looking(self) -> str:
        """What attention is."""
        return (
            "Words take up information from earlier words by attention. A head is one of several "
            "readers in a layer: it gives each earlier word a weight, and the weights sum to "
            "100 %. Names count from 0: L1.H3 is the fourth head of the second layer. A line leads "
            "from the word that is read "
            "to the word that reads it, one layer on; the thicker, the more weight. Looking is not "
            "yet using: the next steps test what is used."
        )

    def strongest_look(self, one: ModelWalk) -> str:
        """Strongest attention of the last word, beside equal attention."""
        own = [look for look in one.looks if look.query == self.walk.stretches[-1][0]]
        texts = [self._look(look) for look in sorted(own, key=lambda each: -each.weight)[:2]]
        return "At the end of the question " + ", and ".join(texts) + "."

    def _look(self, look: Look) -> str:
        return (
            f"head {look.head} gives {percent(look.weight)} to {self.quoted(look.key)} (if it "
            f"looked at all words so far equally: {percent(look.uniform)})"
        )

    def passing(self) -> str:
        """What a role path is."""
        return (
            "Now only one chain of words may see a changed word; all others still read the old "
            "question. The number is how much of the change of the answer arrives by this chain "
            "alone."
        )

    def meeting_lead(self) -> str:
        """What it takes for variables to meet."""
        return (
            "A shape marks what a state holds: exchange the state, and the answer changes as if "
            "this word had been changed. The larger the shape, the more often. A ring marks the "
            f"place, chosen on {self.others}, that holds all of them."
        )

    def meeting(self, one: ModelWalk) -> str:
        """Where the variables of the number meet."""
        parts = self.parts(one)
        if len(parts) < 2:
            return ""
        together = f"{', '.join(parts[:-1])} and {parts[-1]}"
        if not one.meeting:
            return (
                f"No single state apart from the words themselves holds {together} {self.by} half "
                f"of the {self.case}s: they do not meet in one place that could be exchanged."
            )
        first = one.meeting[0]
        least = min(swap.rate.value for swap in one.meeting)
        works = (
            f"each of these exchanges works {self.by} at least {percent(least)} of the "
            f"{self.others}"
        )
        if first.layer == one.layers:
            return (
                f"No meeting place before the answer was found. Only in the output of the last "
                f"layer at {self.quoted(first.role)}, where the answer is ready, are {together} "
                f"held together: {works}."
            )
        return (
            f"{together[0].upper()}{together[1:]} meet at {self.quoted(first.role)} after layer "
            f"{first.layer} of {one.layers}: {works}."
        )

    def parts(self, one: ModelWalk) -> list[str]:
        """Variables of the number that were changed one at a time, in words."""
        changed = [swap.variable for swap in one.words]
        return [f"the {LABELS[name]}" for name in ("x", "y", "operation") if name in changed]

    def fetching_lead(self) -> str:
        """What fetching is."""
        return (
            "At the word before the answer a head can fetch what other words have computed. The "
            "output of one head at this word is exchanged, and nothing else."
        )

    def fetching(self, one: ModelWalk) -> str:
        """Head that brings the number, if one does."""
        return " ".join(self._bring(f, "number") for f in one.fetch if not f.is_object)

    def _bring(self, fetch: Fetch, answer: str) -> str:
        look = fetch.look
        name = f"head {look.head} (in layer {look.layer + 1}) at {self.quoted(look.query)}"
        if fetch.rate < STRONG:
            return (
                f"No head alone brings the {answer}: {name}, the best on the {self.case}s of "
                f"the search, sets it {self.by} {percent(fetch.rate)} of the {self.others}."
            )
        return (
            f"H{name[1:]} brings the {answer}. It gives {percent(look.weight)} of its attention to "
            f"{self.quoted(look.key)} (if it looked at all words equally: "
            f"{percent(look.uniform)})."
        )

    def noun_lead(self) -> str:
        """Why the noun is looked at."""
        return (
            "The answer has a second word, the noun. These exchanges change the noun alone; below "
            "each stands how often the number stays as it was."
        )

    def noun(self, one: ModelWalk) -> str:
        """Where the noun is held, and who brings it."""
        texts = []
        if one.noun:
            start = (
                "The noun goes another way than the number: it" if _is_apart(one) else "The noun"
            )
            texts.append(
                f"{start} waits at {self.quoted(one.noun.role)}; after layer {one.noun.layer} of "
                f"{one.layers} its state there still sets the answer."
            )
        texts += [self._bring(fetch, "noun") for fetch in one.fetch if fetch.is_object]
        chains = [effect for effect in self.walk.paths if effect.contrast == "thing"]
        if chains:
            share = [self._share(effect, one) for effect in chains]
            best = max(range(len(chains)), key=lambda at: share[at])
            texts.append(
                f"The chain {self.chain(chains[best].roles)} alone carries {percent(share[best])} "
                "of the change of the noun."
            )
        return " ".join(texts)

    def _share(self, effect: PathEffect, one: ModelWalk) -> float:
        return (effect.full if one is self.walk.models[0] else effect.other).value

    def chain(self, roles: Sequence[str]) -> str:
        """Words along a path."""
        return " → ".join(self.quoted(role) for role in roles)

    def chains(self, one: ModelWalk) -> str:
        """How many chains of words the relative has of those of the model; "" for the model."""
        if one is self.walk.models[0]:
            return ""
        full, counts = self.walk.models[0].model, Counter(self.walk.path_labels.values())
        has = sum(counts[label] for label in ("kept", "weaker", "stronger"))
        seed = self.walk.other_seed
        texts = [
            f"of {sum(counts.values()) - counts['new']} chains of {full} it has {has}",
            *([f"lost {counts['lost']}"] if counts["lost"] else []),
            *(
                [f"lacks {n}, as does {seed}, another seed of {full}"]
                if (n := counts["not shared between seeds"])
                else []
            ),
            *([f"cannot be told about {counts['cannot tell']}"] if counts["cannot tell"] else []),
            *([f"has {counts['new']} of its own"] if counts["new"] else []),
        ]
        return f"Ways of the words: {', '.join(texts)}."

    def in_short(self) -> str:
        """Places of all models in a list."""
        return (
            "<ul>" + "".join(f"<li>{self._short(one)}</li>" for one in self.walk.models) + "</ul>"
        )

    def _short(self, one: ModelWalk) -> str:
        texts = [self._short_meeting(one)]
        for fetch in one.fetch:
            if not fetch.is_object and fetch.rate >= STRONG:
                place, source = self.quoted(fetch.look.query), self.quoted(fetch.look.key)
                texts.append(f"At {place} the number is read, mostly from {source}.")
        if one.noun:
            way = "goes another way, from" if _is_apart(one) else "is read from"
            texts.append(f"The noun {way} {self.quoted(one.noun.role)}.")
        return escape(" ".join(filter(None, (f"{one.model}:", *texts, self.chains(one)))))

    def _short_meeting(self, one: ModelWalk) -> str:
        parts = self.parts(one)
        if len(parts) < 2:
            return ""
        together = f"{', '.join(parts[:-1])} and {parts[-1]}"
        if not one.meeting or one.meeting[0].layer == one.layers:
            return f"No place before the answer was found where {together} come together."
        rates, null = [s.rate.value for s in one.meeting], max(s.null for s in one.meeting)
        return (
            f"{together[0].upper()}{together[1:]} come together at "
            f"{self.quoted(one.meeting[0].role)}: what is put there sets the answer {self.by} "
            f"{percent(min(rates))} to {percent(max(rates))} of {self.others} (untrained models: "
            f"at most {percent(null)})."
        )


def _is_apart(one: ModelWalk) -> bool:
    """Whether the noun has a place of its own: exchanges there keep the number, and back."""
    if not one.noun or not one.meeting or one.noun.role == one.meeting[0].role:
        return False
    kept = [swap.other_kept for swap in (*one.meeting, one.noun)]
    return all(each is not None and each.value >= STRONG for each in kept)


def _which_of_equal(stretches: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Roles whose words stand several times in the question, with the number of each."""
    count, seen = Counter(text for _, text in stretches), Counter[str]()
    for role, text in stretches:
        seen[text] += 1
        if count[text] > 1:
            yield role, f" (no. {seen[text]})"


def _interval(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} ({percent(estimate.low)} to {percent(estimate.high)})"
