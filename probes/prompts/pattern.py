"""Query patterns: sample questions and counterfactuals, and match free text."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path

from probes.errors import MatchError, PatternError
from probes.prompts.draws import check_count, tries
from probes.prompts.format.wrapper import UNWRAPPED, Wrapper
from probes.prompts.outcomes import has_distinct_outcomes, possible_outcomes, share_outcomes
from probes.prompts.pairs_file import read_pairs
from probes.prompts.question import CONTRASTS, Pair, Question, evaluate_expression
from probes.prompts.template import NO_WORDS, Lexicon, Template, best_match

QuestionFilter = Callable[[Question], bool]
SlotValues = Mapping[str, int | str]
AnswerValues = tuple[tuple[str, int | str], ...]


@dataclass(frozen=True, slots=True)
class OppositePattern:
    """Fields of the pattern with the opposite operation; templates are shared."""

    name: str
    title: str
    operation: str
    answers: tuple[tuple[str, str], ...]
    remainder: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """Family of questions: templates with typed slots, and answers computed from the slots.

    Attributes:
        name: Name in the catalog.
        title: Description in a few words.
        operation: "minus" or "plus", the side of each verb pair.
        opposite: Pattern of the operation contrast, or None.
        templates: Sentence templates.
        answers: Name of each answer with its expression over the slots.
        remainder: Expression of the result of the operation; it must be in the number range.
        lexicon: Words of the slots.
        user_pairs: Pairs from a file, or of a word pattern; else empty.
        shuffled: Whether draws from these pairs follow the seed; else they are taken in order.
        wrapper: Prompt format of the questions; plain text by default.
        file: File of the pairs, as it was named; "" for other patterns.
    """

    name: str
    title: str
    operation: str
    opposite: OppositePattern | None
    templates: tuple[Template, ...]
    answers: tuple[tuple[str, str], ...]
    remainder: str
    lexicon: Lexicon
    user_pairs: tuple[Pair, ...] = ()
    shuffled: bool = False
    wrapper: Wrapper = UNWRAPPED
    file: str = field(default="", compare=False)

    @classmethod
    def from_pairs(cls, path: str | Path) -> "Pattern":
        """Pattern of the pairs in a `.jsonl` file; `docs/patterns.md` lists its keys.

        Raises:
            PatternError: The file is missing or empty, or a line is malformed.
        """
        (pairs, n), name = read_pairs(Path(path)), Path(path).name
        title = f"pairs of {name}" + (f" ({n} duplicates removed)" if n else "")
        return replace(cls.of_pairs(Path(path).stem, title, pairs), file=str(path))

    @classmethod
    def of_pairs(
        cls, name: str, title: str, pairs: tuple[Pair, ...], *, shuffled: bool = False
    ) -> "Pattern":
        """Pattern of given pairs, at least one."""
        answers = tuple((answer, "") for answer, _ in pairs[0].clean.answers)
        return cls(name, title, "", None, (), answers, "", NO_WORDS, pairs, shuffled)

    def __repr__(self) -> str:
        what = f"{len(self.user_pairs)} pairs" if self.user_pairs else self.operation
        contrasts, format = ", ".join(self.contrasts)[:100], str(self.wrapper.format)[:50]
        return f"Pattern({self.name[:50]!r}: {what}; contrasts {contrasts}; format {format})"

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Contrasts that the pattern can form."""
        if self.user_pairs:
            return tuple(dict.fromkeys(pair.contrast for pair in self.user_pairs))
        return tuple(name for name in CONTRASTS if self._templates_for(name))

    def sample_questions(
        self, count: int, *, seed: int, keep: QuestionFilter | None = None
    ) -> tuple[Question, ...]:
        """Sample different questions; of user pairs both prompts, at most all of them.

        Raises:
            PatternError: Fewer than `count` different questions pass `keep`.
        """
        check_count(count)
        if self.user_pairs:
            # Both prompts: a constant answer may be right for all clean ones.
            distinct: dict[str, Question] = {}
            for pair in self._given_pairs(self.user_pairs, seed):
                for side in (pair.clean, pair.counterfactual):
                    distinct.setdefault(side.text, side)
            return tuple(q for q in distinct.values() if keep is None or keep(q))[:count]
        rng, questions = random.Random(f"{seed}:{self.name}"), {}
        for _ in tries(count, questions):
            question = self.sample_question(rng)
            if question is not None and (keep is None or keep(question)):
                questions[question] = None
        if len(questions) < count:
            raise PatternError(
                f"{self.name!r} yielded {len(questions)} of {count} questions: request fewer, or "
                "filter less"
            )
        return tuple(questions)

    def sample_pairs(
        self, contrast: str, count: int, *, seed: int, keep: QuestionFilter | None = None
    ) -> tuple[Pair, ...]:
        """Sample pairs that differ in one contrast, with distinct outcomes."""
        check_count(count)
        self._check_contrast(contrast)
        if self.user_pairs:
            own_pairs = [pair for pair in self.user_pairs if pair.contrast == contrast]
            if len(own_pairs) < count:
                raise PatternError(
                    f"{self.name!r} has {len(own_pairs)} pairs of contrast {contrast!r}: "
                    f"request at most as many as there are, not {count}"
                )
            return self._given_pairs(own_pairs, seed)[:count]
        templates, pairs = self._templates_for(contrast), {}
        rng = random.Random(f"{seed}:{self.name}:{contrast}")
        for _ in tries(count, pairs):
            question = self.sample_question(rng, templates)
            if question is None or question in pairs or not has_distinct_outcomes(question):
                continue
            if keep and not keep(question):
                continue
            other = next(self.counterfactuals(question, contrast, seed=rng.randrange(2**31)), None)
            if other is not None:
                pairs[question] = self.make_pair(contrast, question, other)
        if len(pairs) < count:
            raise PatternError(
                f"{self.name!r} yielded {len(pairs)} of {count} pairs for {contrast!r}: use fewer"
            )
        return tuple(pairs.values())

    def _given_pairs(self, pairs: Sequence[Pair], seed: int) -> tuple[Pair, ...]:
        return tuple(random.Random(seed).sample(pairs, len(pairs)) if self.shuffled else pairs)

    def counterfactuals(
        self, question: Question, contrast: str, *, seed: int
    ) -> Iterator[Question]:
        """Yield questions that differ from one in a contrast alone, in a seeded order."""
        self._check_contrast(contrast)
        rng = random.Random(seed)
        template, slots = self._find_template(question.template), dict(question.slots)
        changes = self._contrast_changes(template, slots, contrast, rng)
        for target, target_template, changed in changes:
            other = target.make_question(target_template, {**slots, **changed}, question.numerals)
            if other is None or (
                contrast in ("operation", "x", "y") and not has_distinct_outcomes(other)
            ):
                continue
            if other.text != question.text:
                yield other

    @staticmethod
    def make_pair(contrast: str, question: Question, other: Question) -> Pair:
        """Pair of a question and its counterfactual; both have the outcomes of both."""
        clean, changed = share_outcomes(question, other), share_outcomes(other, question)
        return Pair(contrast, clean, changed)

    def sample_question(
        self,
        rng: random.Random,
        templates: tuple[Template, ...] = (),
        fixed: SlotValues | None = None,
    ) -> Question | None:
        """Sample one question, or None where its answer is out of range."""
        template = rng.choice(templates or self.templates)
        slots: dict[str, int | str] = dict(fixed or {})
        for slot in template.slots:
            if slot in slots:
                continue
            kind = self.lexicon.kind_of(slot)
            if kind == "number":
                slots[slot] = rng.randint(*self.lexicon.number_range)
            elif kind == "verb":
                slots[slot] = rng.choice(self.lexicon.verbs_of(self.operation))
            else:
                free = [word for word in self.lexicon.words(kind) if word not in slots.values()]
                slots[slot] = rng.choice(free)
        return self.make_question(template, slots, rng.choice(self.lexicon.numerals))

    def make_question(
        self, template: Template, slots: SlotValues, numerals: str
    ) -> Question | None:
        """Question with these slots, or None where its answer is out of range."""
        answers, (low, high) = self._evaluate_answers(slots), self.lexicon.number_range
        numbers = [evaluate_expression(self.remainder, slots), *(value for _, value in answers)]
        in_range = all(low <= value <= high for value in numbers if isinstance(value, int))
        if not in_range or self.wrapper.reserves(slots):
            return None
        return self._build_question(template, slots, self.wrapper.numerals(numerals), answers)

    def match(self, text: str) -> Question:
        """Match a text with this pattern.

        Raises:
            MatchError: The text matches no template, or its answer is below 0.
        """
        if self.user_pairs:
            raise MatchError(f"{self.name!r} has pairs, not templates: name one with templates")
        template, match = best_match(self.templates, text, self.lexicon, self.operation)
        answers = self._evaluate_answers(match.slots)
        for name, value in answers:
            if isinstance(value, int) and value < 0:
                raise MatchError(
                    f"{text!r} has no {name}: {dict(self.answers)[name]} is {value}. "
                    "Take away no more than there is"
                )
        return self._build_question(template, match.slots, match.numerals, answers)

    def _evaluate_answers(self, slots: SlotValues) -> AnswerValues:
        return tuple((name, evaluate_expression(rule, slots)) for name, rule in self.answers)

    def _build_question(
        self, template: Template, slots: SlotValues, numerals: str, answers: AnswerValues
    ) -> Question:
        lexicon = self.lexicon
        text, roles = template.fill(slots, lexicon, numerals)
        question = Question(
            text=text,
            pattern=self.name,
            template=template.name,
            slots=tuple((slot, slots[slot]) for slot in template.slots),
            numerals=numerals,
            answers=tuple((name, str(value)) for name, value in answers),
            outcomes=tuple((n, possible_outcomes(lexicon, template, slots, v)) for n, v in answers),
            roles=roles,
        )
        return self.wrapper.wrap(question)

    def _contrast_changes(
        self, template: Template, slots: SlotValues, contrast: str, rng: random.Random
    ) -> Iterator[tuple["Pattern", Template, SlotValues]]:
        """Yield (pattern, template, changed slots) for each way to form a contrast."""
        match contrast:
            case "operation":
                yield self.flipped(), template, {"op": self.lexicon.opposite_verb(str(slots["op"]))}
            case "order":
                yield self, self._find_template(template.swapped_template), {}
            case "paraphrase":
                others = [t for t in self.templates if t.slots == template.slots and t != template]
                choices = list(product(others, self.lexicon.verbs_of(self.operation)))
                for other, verb in rng.sample(choices, len(choices)):
                    if verb != slots["op"]:
                        yield self, other, {"op": verb}
            case _:
                values = self.lexicon.values(contrast)
                for value in rng.sample(values, len(values)):
                    if value not in slots.values() or isinstance(value, int):
                        yield self, template, {contrast: value}

    def flipped(self) -> "Pattern":
        """Pattern with the opposite operation."""
        if self.opposite is None:
            raise PatternError(f"Pattern {self.name!r} has no opposite: it forms no such contrast")
        names = tuple(field.name for field in fields(OppositePattern))
        own, other = ({n: getattr(side, n) for n in names} for side in (self, self.opposite))
        return replace(self, **other, opposite=OppositePattern(**own))

    def _templates_for(self, contrast: str) -> tuple[Template, ...]:
        """Templates in which a contrast can be formed."""
        if contrast == "operation":
            return self.templates if self.opposite else ()
        if contrast == "order":
            return tuple(t for t in self.templates if t.swapped_template)
        if contrast == "paraphrase":
            slots = [template.slots for template in self.templates]
            return tuple(t for t in self.templates if slots.count(t.slots) > 1)
        return tuple(t for t in self.templates if contrast in t.slots)

    def _find_template(self, name: str) -> Template:
        known = {template.name: template for template in self.templates}
        if name in known:
            return known[name]
        raise PatternError(f"Pattern {self.name!r} has no template {name!r}: it has {[*known]}")

    def _check_contrast(self, contrast: str) -> None:
        if contrast not in (own := self.contrasts):
            raise PatternError(f"Pattern {self.name!r} has no contrast {contrast!r}: it has {own}")
