"""Word patterns: templates over word lists, with an answer, foils and contrasts of their own.

`docs/patterns.md` describes them. They are turned into pairs, as those of a pairs file.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from probes.errors import PatternError
from probes.prompts.question import Pair, Question, append_answer
from probes.prompts.template import Template, parse_template

WordRow = Mapping[str, str]
"""A word with its forms and attributes by name; "base" is the word itself."""

N_PAIRS = 128
"""Pairs of each contrast, or as many as the words allow."""

_DRAWS_OF_A_PAIR = 4
_KEYS = {"title", "source", "slots", "templates", "answer", "foils", "contrasts", "delimiter"}


@dataclass(frozen=True, slots=True)
class _Contrast:
    """What a counterfactual changes: slots shown in place of others, by role, or a slot's value.

    Attributes:
        redrawn: Slot that takes another value, or "".
        shown: Slot that each changed role shows.
        answer, foils: Expressions of the counterfactual.
    """

    redrawn: str
    shown: Mapping[str, str]
    answer: str
    foils: Sequence[str]

    def change(self, template: Template) -> Template:
        """Template of the counterfactual."""
        parts = (
            replace(part, slot=self.shown.get(part.role, part.slot)) for part in template.parts
        )
        return replace(template, parts=tuple(parts))


@dataclass(frozen=True, slots=True)
class WordPattern:
    """Templates whose slots are filled from word lists.

    Attributes:
        name: Name in the catalog.
        slots: Words of each slot; slots of one list never show the same word.
        templates: Sentence templates.
        answer: Slot, or `slot:form`, that is the answer.
        foils: The same for answers that are wrong.
        contrasts: What the counterfactuals of each contrast change.
        delimiter: Text between prompt and answer.
    """

    name: str
    slots: Mapping[str, Sequence[WordRow]]
    templates: Sequence[Template]
    answer: str
    foils: Sequence[str]
    contrasts: Mapping[str, _Contrast]
    delimiter: str

    def pairs(self, count: int = N_PAIRS, *, seed: str = "") -> tuple[Pair, ...]:
        """Distinct pairs of each contrast, at most `count`, drawn with a fixed seed.

        Raises:
            PatternError: A contrast yields no pair.
        """
        found: list[Pair] = []
        for name, contrast in self.contrasts.items():
            rng, drawn = random.Random(f"{self.name}:{name}{seed}"), dict[str, Pair]()
            templates = [(each, contrast.change(each)) for each in self.templates]
            for _ in range(_DRAWS_OF_A_PAIR * count):
                if len(drawn) == count:
                    break
                pair = self._draw_pair(name, contrast, rng.choice(templates), rng)
                if pair is not None:
                    drawn.setdefault(pair.clean.text, pair)
            if not drawn:
                raise PatternError(
                    f"Contrast {name!r} of {self.name!r} never changes the answer "
                    f"{contrast.answer!r}: change a slot that it names"
                )
            found += drawn.values()
        return tuple(found)

    def _draw_pair(
        self,
        name: str,
        contrast: _Contrast,
        templates: tuple[Template, Template],
        rng: random.Random,
    ) -> Pair | None:
        rows: dict[str, WordRow] = {}
        for slot in self.slots:
            rows[slot] = self._draw_row(slot, rows, rng)
        changed = dict(rows)
        if contrast.redrawn:
            changed[contrast.redrawn] = self._draw_row(contrast.redrawn, rows, rng)
        answers = _render(self.answer, rows), _render(contrast.answer, changed)
        if answers[0] == answers[1]:
            return None
        foils = [_render(foil, rows) for foil in self.foils]
        other_foils = [_render(foil, changed) for foil in contrast.foils]
        clean = self._make_question(templates[0], rows, [*answers, *foils])
        counterfactual = self._make_question(templates[1], changed, [*answers[::-1], *other_foils])
        return Pair(name, clean, counterfactual)

    def _draw_row(self, slot: str, taken: Mapping[str, WordRow], rng: random.Random) -> WordRow:
        """Row of a slot whose word no slot of the same list has yet."""
        rows = self.slots[slot]
        words = {row["base"] for other, row in taken.items() if self.slots[other] is rows}
        free = [row for row in rows if row["base"] not in words]
        if not free:
            raise PatternError(f"Slot {slot!r} of {self.name!r} has too few words: add some")
        return rng.choice(free)

    def _make_question(
        self, template: Template, rows: Mapping[str, WordRow], outcomes: Sequence[str]
    ) -> Question:
        text, roles = template.render(lambda part: _render(f"{part.slot}:{part.form}", rows))
        distinct: dict[str, str] = {}
        for outcome in outcomes:
            distinct.setdefault(append_answer(text, outcome, self.delimiter), outcome)
        return Question(
            text=text,
            pattern=self.name,
            template=template.name,
            slots=(),  # Copying a slot such as "io" is the behavior, not a simple heuristic.
            numerals="digits",
            answers=(("answer", outcomes[0]),),
            outcomes=(("answer", tuple(distinct.values())),),
            roles=roles,
            delimiter=self.delimiter,
        )


def _render(expression: str, rows: Mapping[str, WordRow]) -> str:
    """Text of `slot` or `slot:form`; a form may be a slot, whose word names the form."""
    slot, _, form = expression.partition(":")
    if slot not in rows:
        raise PatternError(f"Slot {slot!r} is unknown: declare it under slots, next to {[*rows]}")
    form = rows[form]["base"] if form in rows else form or "base"
    if form not in rows[slot]:
        raise PatternError(f"{rows[slot]['base']!r} has no form {form!r}: it has {[*rows[slot]]}")
    return rows[slot][form]


def read_word_pattern(name: str, entry: Mapping[str, Any], table: Mapping[str, Any]) -> WordPattern:
    """Word pattern of one entry of a pattern file, whose word lists are in `table`.

    Raises:
        PatternError: A key, a slot, a word list or a contrast is unknown.
    """
    if unknown := set(entry) - _KEYS:
        raise PatternError(
            f"Pattern {name!r} has the keys {sorted(unknown)}: known are {', '.join(sorted(_KEYS))}"
        )
    templates = tuple(
        parse_template(str(number), text) for number, text in enumerate(entry["templates"], 1)
    )
    lists = {**table.get("words", {}), **table.get("tables", {})}
    rows_of = {key: _word_rows(words) for key, words in lists.items()}
    slots = {
        slot: _find_rows(words, rows_of) if isinstance(words, str) else _word_rows(words)
        for slot, words in entry["slots"].items()
    }
    answer, foils = entry["answer"], tuple(entry.get("foils", ()))
    contrasts = {}
    for contrast, change in entry["contrasts"].items():
        shown = {key: slot for key, slot in change.items() if key not in ("answer", "foils")}
        if not shown and contrast not in slots:
            raise PatternError(
                f"Contrast {contrast!r} of {name!r} is no slot: name one, or say which slot a role "
                'shows, as in s2 = { s2 = "io" }'
            )
        roles = {part.role for template in templates for part in template.parts}
        if strange := set(shown) - roles:
            raise PatternError(f"{name!r} has no role {sorted(strange)}: it has {sorted(roles)}")
        contrasts[contrast] = _Contrast(
            "" if shown else contrast,
            shown,
            change.get("answer", answer),
            tuple(change.get("foils", foils)),
        )
    return WordPattern(
        name, slots, templates, answer, foils, contrasts, entry.get("delimiter", " ")
    )


def _find_rows(words: str, rows_of: Mapping[str, Sequence[WordRow]]) -> Sequence[WordRow]:
    if words not in rows_of:
        raise PatternError(f"Word list {words!r} is unknown: known are {', '.join(rows_of)}")
    return rows_of[words]


def _word_rows(words: object) -> tuple[WordRow, ...]:
    if not isinstance(words, list) or not words:
        raise PatternError(f"Words {words!r:.60} found: give a list of texts or tables")
    return tuple(row if isinstance(row, dict) else {"base": str(row)} for row in words)
