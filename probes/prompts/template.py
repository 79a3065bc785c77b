"""Sentence templates: filled from slots, and matched to texts.

`data/patterns.toml` describes the template language.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from probes.errors import MatchError, PatternError
from probes.prompts.question import Span

_SLOT_REGEX = re.compile(
    r"\{(?:(?P<role>\w+)=)?(?P<slot>\w+)(?::(?P<form>\w+))?\}|\[(?P<fixed>\w+)\|(?P<text>[^\[\]{}]+)\]"
)


@dataclass(frozen=True, slots=True)
class TemplatePart:
    """Part of a template: fixed text (slot is "") or a slot in one form."""

    text: str
    role: str
    slot: str
    form: str


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words of a pattern, and the kind of each slot.

    Attributes:
        slot_kinds: Kind of each slot: number, noun, name, verb or filler.
        verbs: Pairs of opposites; each side maps a form to its words.
        choices: Words of the kinds noun, name and filler.
        number_range: Smallest and largest number in questions and answers.
        number_words: Numbers from 0 in words.
        numerals: How questions write numbers: "digits", "words" or either.
    """

    slot_kinds: tuple[tuple[str, str], ...]
    verbs: tuple[tuple[tuple[str, tuple[tuple[str, str], ...]], ...], ...]
    choices: tuple[tuple[str, tuple[str, ...]], ...]
    number_range: tuple[int, int]
    number_words: tuple[str, ...]
    numerals: tuple[str, ...] = ("digits", "words")

    def kind_of(self, slot: str) -> str:
        """Kind of a slot."""
        for name, kind in self.slot_kinds:
            if name == slot:
                return kind
        known = [name for name, _ in self.slot_kinds]
        raise PatternError(f"Slot {slot!r} is unknown: declare it under [slots], next to {known}")

    def words(self, kind: str) -> tuple[str, ...]:
        """Words of a kind of slot."""
        return dict(self.choices)[kind]

    def values(self, slot: str) -> Sequence[int | str]:
        """Possible values of a number slot, or of a slot with words other than verbs."""
        low, high = self.number_range
        kind = self.kind_of(slot)
        return range(low, high + 1) if kind == "number" else self.words(kind)

    def verb_forms(self, base: str) -> tuple[str, dict[str, str]]:
        """Operation and forms of a verb, by its base form."""
        for pair in self.verbs:
            for side, forms in pair:
                if dict(forms)["base"] == base:
                    return side, dict(forms)
        raise PatternError(f"Verb {base!r} is unknown: known are {self.all_verbs()}")

    def opposite_verb(self, base: str) -> str:
        """Base form of the opposite verb."""
        for pair in self.verbs:
            bases = [dict(forms)["base"] for _, forms in pair]
            if base in bases:
                return bases[1 - bases.index(base)]
        raise PatternError(f"Verb {base!r} is unknown: known are {self.all_verbs()}")

    def verbs_of(self, operation: str) -> tuple[str, ...]:
        """Base forms of the verbs of an operation."""
        return tuple(dict(dict(pair)[operation])["base"] for pair in self.verbs)

    def all_verbs(self) -> tuple[str, ...]:
        """Base forms of all verbs."""
        return tuple(dict(forms)["base"] for pair in self.verbs for _, forms in pair)

    def render(self, slot: str, value: int | str, form: str, numerals: str) -> str:
        """Text of a slot's value."""
        kind = self.kind_of(slot)
        if kind == "verb":
            forms = self.verb_forms(str(value))[1]
            if form not in forms:
                raise PatternError(f"Verb {value!r} has no form {form!r}: it has {sorted(forms)}")
            return forms[form]
        if isinstance(value, int):
            in_words = numerals == "words" and 0 <= value < len(self.number_words)
            return self.number_words[value] if in_words else str(value)
        return value


NO_WORDS = Lexicon((), (), (), (0, 0), ())
"""Lexicon of a pattern of given pairs."""


@dataclass(frozen=True)
class Template:
    """Sentence template in parts; `swapped_template` names the one with swapped clauses, or ""."""

    name: str
    parts: tuple[TemplatePart, ...]
    swapped_template: str

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """Slots, each once, in the order of the text."""
        return tuple(dict.fromkeys(part.slot for part in self.parts if part.slot))

    def fill(
        self, slots: Mapping[str, int | str], lexicon: Lexicon, numerals: str
    ) -> tuple[str, tuple[Span, ...]]:
        """Filled text with the character span of every role."""
        return self.render(
            lambda part: lexicon.render(part.slot, slots[part.slot], part.form, numerals)
        )

    def render(self, words_of: Callable[[TemplatePart], str]) -> tuple[str, tuple[Span, ...]]:
        """Text with the character span of every role, from the words of each slot's part."""
        text, spans = "", []
        for part in self.parts:
            words = words_of(part) if part.slot else part.text
            if part.role:
                spans.append((part.role, len(text), len(text) + len(words)))
            text += words
        return text, tuple(spans)


def parse_template(name: str, template: str, swapped_template: str = "") -> Template:
    """Parse a template.

    Raises:
        PatternError: A bracket does not close, or a role occurs twice.
    """
    parts, at = [], 0
    for token in _SLOT_REGEX.finditer(template):
        parts.append(TemplatePart(template[at : token.start()], "", "", ""))
        if token["fixed"]:
            parts.append(TemplatePart(token["text"], token["fixed"], "", ""))
        else:
            role = token["role"] or token["slot"]
            parts.append(TemplatePart("", role, token["slot"], token["form"] or "base"))
        at = token.end()
    parts.append(TemplatePart(template[at:], "", "", ""))
    parts = [part for part in parts if part.text or part.slot]
    loose = "".join(part.text for part in parts if not part.role)
    if any(mark in loose for mark in "{}[]"):
        raise PatternError(
            f"Template {name!r} has a bracket that does not close: close it in {template!r:.200}"
        )
    roles = [part.role for part in parts if part.role]
    twice = {role for role in roles if roles.count(role) > 1}
    if twice:
        raise PatternError(
            f"Template {name!r} uses role {sorted(twice)} twice: name each occurrence, "
            "as in {thing_asked=thing}"
        )
    return Template(name, tuple(parts), swapped_template)


@dataclass(frozen=True, slots=True)
class TemplateMatch:
    """Match of a template with a text; `expected` is "" for a full match, else what is missing."""

    slots: dict[str, int | str]
    numerals: str
    end: int
    expected: str


def match_template(
    template: Template, text: str, lexicon: Lexicon, operation: str
) -> TemplateMatch:
    """Match a text part by part."""
    slots: dict[str, int | str] = {}
    numerals, at = "digits", 0
    # A user may omit the last part ("Answer:").
    optional_tail = template.parts[-1].role == "answer" and not template.parts[-1].slot
    for index, part in enumerate(template.parts):
        if (
            optional_tail
            and at >= len(text.rstrip())
            and not _has_required_part(template.parts[index:])
        ):
            return TemplateMatch(slots, numerals, at, "")
        pattern, expected = _part_regex(part, slots, lexicon, operation)
        hit = re.compile(pattern, re.IGNORECASE if not part.slot else 0).match(text, at)
        if hit is None:
            return TemplateMatch(slots, numerals, at, expected)
        if part.slot and part.slot not in slots:
            value, number_form = _slot_value(part, hit[0], lexicon)
            slots[part.slot] = value
            numerals = number_form or numerals
        at = hit.end()
    rest = text[at:].strip()
    return TemplateMatch(slots, numerals, at, "the end of the text" if rest else "")


def _has_required_part(parts: tuple[TemplatePart, ...]) -> bool:
    return any(part.slot or part.text.strip() for part in parts[:-1])


def _part_regex(
    part: TemplatePart, slots: Mapping[str, int | str], lexicon: Lexicon, operation: str
) -> tuple[str, str]:
    """Regular expression of one part, and its description in errors."""
    if not part.slot:
        return r"\s*".join(re.escape(word) for word in re.split(r"\s+", part.text)), repr(part.text)
    kind = lexicon.kind_of(part.slot)
    if part.slot in slots:
        known = lexicon.render(part.slot, slots[part.slot], part.form, "digits")
        return rf"{re.escape(known)}\b", f"{known!r} again, for {part.role}"
    if kind == "number":
        words = "|".join(sorted(lexicon.number_words, key=len, reverse=True))
        # Python reads at most 4,300 digits.
        return rf"(?:\d{{1,1000}}|(?i:{words}))\b", f"a number for {part.slot}"
    if kind == "verb":
        forms = [lexicon.verb_forms(base)[1][part.form] for base in lexicon.verbs_of(operation)]
        return "(?:" + "|".join(map(re.escape, forms)) + r")\b", f"one of {forms} for {part.slot}"
    if kind == "filler":
        return r"[A-Z][^.?!]*[.?!]", "a sentence for filler"
    if kind == "name":
        return r"[A-Z][\w'-]*", f"a name for {part.slot}"
    return r"[^\W\d][\w'-]*", f"a {kind} for {part.slot}"


def _slot_value(part: TemplatePart, words: str, lexicon: Lexicon) -> tuple[int | str, str]:
    """Value of a slot, and "digits" or "words" for a number."""
    kind = lexicon.kind_of(part.slot)
    if kind == "number":
        if words.isdigit():
            return int(words), "digits"
        return lexicon.number_words.index(words.lower()), "words"
    if kind == "verb":
        for base in lexicon.all_verbs():
            if lexicon.verb_forms(base)[1][part.form] == words:
                return base, ""
    return words, ""


def best_match(
    templates: tuple[Template, ...], text: str, lexicon: Lexicon, operation: str
) -> tuple[Template, TemplateMatch]:
    """First template that matches the whole text.

    Raises:
        MatchError: None matches; the message names the longest match.
    """
    matches = [(frame, match_template(frame, text, lexicon, operation)) for frame in templates]
    for frame, match in matches:
        if not match.expected:
            return frame, match
    frame, longest = max(matches, key=lambda candidate: candidate[1].end)
    raise MatchError(
        f"{text[:200]!r} matches no template. Nearest is {frame.name!r}: after "
        f"{text[: longest.end][-200:]!r} it expects {longest.expected}, and finds "
        f"{text[longest.end : longest.end + 30]!r}"
    )


def parse_templates(table: Mapping[str, object]) -> Iterator[Template]:
    """Templates of one TOML table."""
    for name, entry in table.items():
        match entry:
            case str(text):
                yield parse_template(name, text)
            case {"text": str(text), "order": str(order)}:
                yield parse_template(name, text, order)
            case _:
                raise PatternError(f"Template {name!r} must be text, or a table of text and order")
