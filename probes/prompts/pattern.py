"""The query pattern: draws questions and counterfactuals, and reads free text back."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from probes.errors import MatchError, PatternError
from probes.prompts.pairs_file import read_pairs
from probes.prompts.question import CONTRASTS, Pair, Question, evaluate_expression
from probes.prompts.template import Lexicon, Template, best_match

QuestionFilter = Callable[[Question], bool]

_MAX_TRIES = 400


@dataclass(frozen=True, slots=True)
class OppositePattern:
    """What the operation contrast turns a pattern into; the frames stay."""

    name: str
    title: str
    operation: str
    answers: tuple[tuple[str, str], ...]
    remainder: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """A family of questions: frames with typed slots, and answers worked out from the slots.

    Attributes:
        name: What it is called by.
        title: What it says, in a few words.
        operation: The side of each verb pair it uses, "minus" or "plus".
        opposite: What the operation contrast turns it into, or None.
        frames: Its sentence templates.
        answers: Each read-out's name with its expression over the slots.
        result: What is left after the operation; it must be a number in range.
        lexicon: The words that fill its slots.
        given: Pairs of the user's own, for a pattern read from a file; else empty.
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

    @classmethod
    def from_pairs(cls, path: str | Path) -> "Pattern":
        """Read contrast pairs from JSON lines, one pair to a line.

        A line holds `clean` and `counterfactual` (texts), `answer` and `counterfactual_answer`,
        and, if wanted, `contrast` (a name, "given" by default), `outcomes` (other possible
        answers) and `roles` (role to the words that play it in `clean`, and the same under
        `counterfactual_roles` where they differ). Text without a role is `rest`.

        Raises:
            PatternError: The file is missing or empty, or a line does not hold this.
        """
        pairs = read_pairs(Path(path))
        return cls(
            name=Path(path).stem,
            title=f"pairs of {Path(path).name}",
            operation="",
            opposite=None,
            templates=(),
            answers=tuple((name, "") for name, _ in pairs[0].clean.answers),
            remainder="",
            lexicon=Lexicon((), (), (), (0, 0), ()),
            user_pairs=pairs,
        )

    @property
    def contrasts(self) -> tuple[str, ...]:
        """The contrasts that this pattern can form."""
        if self.user_pairs:
            return tuple(dict.fromkeys(pair.contrast for pair in self.user_pairs))
        return tuple(name for name in CONTRASTS if self._templates_for(name))

    def sample_questions(
        self, count: int, *, seed: int, keep: QuestionFilter | None = None
    ) -> tuple[Question, ...]:
        """Draw questions, each at most once; of given pairs both sides, and all there are at most.

        Raises:
            PatternError: Fewer than `count` different questions pass `keep`.
        """
        if self.user_pairs:
            # Both sides: where all clean prompts have one answer, saying it always would do.
            sides = [side for pair in self.user_pairs for side in (pair.clean, pair.counterfactual)]
            return tuple(q for q in dict.fromkeys(sides) if keep is None or keep(q))[:count]
        rng, found = random.Random(f"{seed}:{self.name}"), {}
        for _ in range(max(count, 1) * _MAX_TRIES):
            if len(found) == count:
                break
            question = self.sample_question(rng)
            if question is not None and (keep is None or keep(question)):
                found[question] = None
        if len(found) < count:
            raise PatternError(
                f"{self.name!r} yielded {len(found)} of {count} questions: ask for fewer, or "
                "loosen what is kept"
            )
        return tuple(found)

    def sample_pairs(
        self, contrast: str, count: int, *, seed: int, keep: QuestionFilter | None = None
    ) -> tuple[Pair, ...]:
        """Draw pairs that differ in one contrast alone, all of whose answers are told apart."""
        self._check_contrast(contrast)
        if self.user_pairs:
            pairs = [pair for pair in self.user_pairs if pair.contrast == contrast]
            if len(pairs) < count:
                raise PatternError(
                    f"{self.name!r} has {len(pairs)} pairs of contrast {contrast!r}: "
                    f"{count} were asked"
                )
            return tuple(pairs[:count])
        rng, found = random.Random(f"{seed}:{self.name}:{contrast}"), {}
        frames = self._templates_for(contrast)
        for _ in range(max(count, 1) * _MAX_TRIES):
            if len(found) == count:
                break
            question = self.sample_question(rng, frames)
            if question is None or question in found or not _has_distinct_outcomes(question):
                continue
            if keep is not None and not keep(question):
                continue
            other = next(self.counterfactuals(question, contrast, seed=rng.randrange(2**31)), None)
            if other is not None:
                found[question] = self.make_pair(contrast, question, other)
        if len(found) < count:
            raise PatternError(
                f"{self.name!r} yielded {len(found)} of {count} pairs for {contrast!r}: "
                "ask for fewer"
            )
        return tuple(found.values())

    def counterfactuals(
        self, question: Question, contrast: str, *, seed: int
    ) -> Iterator[Question]:
        """Yield, in a seeded order, questions that differ from one in a contrast alone."""
        self._check_contrast(contrast)
        rng = random.Random(seed)
        frame = self._find_template(question.template)
        slots = dict(question.slots)
        for target, frame_to, changed in self._contrast_changes(frame, slots, contrast, rng):
            other = target.make_question(frame_to, {**slots, **changed}, question.numerals)
            if other is None or (
                contrast in ("operation", "x", "y") and not _has_distinct_outcomes(other)
            ):
                continue
            if other.text != question.text:
                yield other

    @staticmethod
    def make_pair(contrast: str, question: Question, other: Question) -> Pair:
        """Pair a question with its counterfactual; each is read among the outcomes of both."""
        clean, changed = _share_outcomes(question, other), _share_outcomes(other, question)
        return Pair(contrast, clean, changed)

    def sample_question(
        self,
        rng: random.Random,
        templates: tuple[Template, ...] = (),
        fixed: Mapping[str, int | str] | None = None,
    ) -> Question | None:
        """Draw one question, or None when the drawn slots have no answer to ask for."""
        frame = rng.choice(templates or self.templates)
        low, high = self.lexicon.number_range
        slots: dict[str, int | str] = dict(fixed or {})
        for slot in frame.slots:
            if slot in slots:
                continue
            kind = self.lexicon.kind_of(slot)
            if kind == "number":
                slots[slot] = rng.randint(low, high)
            elif kind == "verb":
                slots[slot] = rng.choice(self.lexicon.verbs_of(self.operation))
            else:
                free = [word for word in self.lexicon.words(kind) if word not in slots.values()]
                slots[slot] = rng.choice(free)
        return self.make_question(frame, slots, rng.choice(("digits", "words")))

    def make_question(
        self, template: Template, slots: Mapping[str, int | str], numerals: str
    ) -> Question | None:
        """Write the question for these slots, or return None when its answer is out of range."""
        low, high = self.lexicon.number_range
        answers = tuple((name, evaluate_expression(text, slots)) for name, text in self.answers)
        numbers = [evaluate_expression(self.remainder, slots), *(value for _, value in answers)]
        if not all(low <= value <= high for value in numbers if isinstance(value, int)):
            return None
        return self._build_question(template, slots, numerals, answers)

    def match(self, text: str) -> Question:
        """Read a text as a question of this pattern: its slots, roles and answers.

        Raises:
            MatchError: The text fits no frame, or its answer would be below nought.
        """
        if self.user_pairs:
            raise MatchError(f"{self.name!r} holds pairs, not frames: it matches no text")
        frame, found = best_match(self.templates, text, self.lexicon, self.operation)
        answers = tuple(
            (name, evaluate_expression(rule, found.slots)) for name, rule in self.answers
        )
        for name, value in answers:
            if isinstance(value, int) and value < 0:
                raise MatchError(
                    f"{text!r} has no {name}: {dict(self.answers)[name]} is {value}. "
                    "Take away no more than there is"
                )
        return self._build_question(frame, found.slots, found.numerals, answers)

    def _build_question(
        self,
        template: Template,
        slots: Mapping[str, int | str],
        numerals: str,
        answers: tuple[tuple[str, int | str], ...],
    ) -> Question:
        text, roles = template.fill(slots, self.lexicon, numerals)
        return Question(
            text=text,
            pattern=self.name,
            template=template.name,
            slots=tuple((slot, slots[slot]) for slot in template.slots),
            numerals=numerals,
            answers=tuple((name, str(value)) for name, value in answers),
            outcomes=tuple(
                (name, self._possible_outcomes(template, slots, value)) for name, value in answers
            ),
            roles=roles,
        )

    def _possible_outcomes(
        self, template: Template, slots: Mapping[str, int | str], answer: int | str
    ) -> tuple[str, ...]:
        """List what a reader might give: the answer, the other operation, the words copied."""
        if isinstance(answer, int):
            x, y = int(slots["x"]), int(slots["y"])
            copied = [int(slots[slot]) for slot in template.slots if isinstance(slots[slot], int)]
            found = [answer, x - y, x + y, *copied]
            return tuple(dict.fromkeys(str(value) for value in found if int(value) >= 0))
        nouns = [str(slots[s]) for s in template.slots if self.lexicon.kind_of(s) == "noun"]
        others = [word for word in self.lexicon.words("noun") if word not in nouns]
        # Any noun serves as the one that was not spoken of; which one hangs on the slots alone.
        spare = random.Random(str(sorted(slots.items()))).choice(others)
        return tuple(dict.fromkeys([str(answer), *nouns, spare]))

    def _contrast_changes(
        self, template: Template, slots: dict[str, int | str], contrast: str, rng: random.Random
    ) -> Iterator[tuple["Pattern", Template, Mapping[str, int | str]]]:
        """Yield (pattern, frame, changed slots) for each way to form a contrast."""
        match contrast:
            case "operation":
                yield self.flipped(), template, {"op": self.lexicon.opposite_verb(str(slots["op"]))}
            case "order":
                yield self, self._find_template(template.swapped_template), {}
            case "paraphrase":
                others = [f for f in self.templates if f.slots == template.slots and f != template]
                ways = list(product(others, self.lexicon.verbs_of(self.operation)))
                for other, verb in rng.sample(ways, len(ways)):
                    if verb != slots["op"]:
                        yield self, other, {"op": verb}
            case _:
                values = self._slot_values(contrast)
                for value in rng.sample(values, len(values)):
                    if value not in slots.values() or isinstance(value, int):
                        yield self, template, {contrast: value}

    def _slot_values(self, slot: str) -> Sequence[int | str]:
        """List what may fill a slot."""
        kind = self.lexicon.kind_of(slot)
        low, high = self.lexicon.number_range
        return range(low, high + 1) if kind == "number" else self.lexicon.words(kind)

    def flipped(self) -> "Pattern":
        """Return the pattern with the opposite operation."""
        if self.opposite is None:
            raise PatternError(f"Pattern {self.name!r} has no opposite: it forms no such contrast")
        own = OppositePattern(self.name, self.title, self.operation, self.answers, self.remainder)
        there = self.opposite
        return replace(
            self,
            name=there.name,
            title=there.title,
            operation=there.operation,
            answers=there.answers,
            remainder=there.remainder,
            opposite=own,
        )

    def _templates_for(self, contrast: str) -> tuple[Template, ...]:
        """Return the frames in which a contrast can be formed."""
        if contrast == "operation":
            return self.templates if self.opposite else ()
        if contrast == "order":
            return tuple(frame for frame in self.templates if frame.swapped_template)
        if contrast == "paraphrase":
            kinds = [frame.slots for frame in self.templates]
            return tuple(frame for frame in self.templates if kinds.count(frame.slots) > 1)
        return tuple(frame for frame in self.templates if contrast in frame.slots)

    def _find_template(self, name: str) -> Template:
        for frame in self.templates:
            if frame.name == name:
                return frame
        raise PatternError(
            f"Pattern {self.name!r} has no frame {name!r}: "
            f"it has {[frame.name for frame in self.templates]}"
        )

    def _check_contrast(self, contrast: str) -> None:
        if contrast not in self.contrasts:
            raise PatternError(
                f"Pattern {self.name!r} has no contrast {contrast!r}: it has {self.contrasts}"
            )


def _has_distinct_outcomes(question: Question) -> bool:
    """Say whether a question tells its outcomes apart: something moves, and not to 1."""
    answers = dict(question.answers)
    numbers = dict(question.outcomes).get("number", ())
    slots = dict(question.slots)
    return answers.get("number") != "1" and slots.get("y") != 0 and len(numbers) >= 3


def _share_outcomes(other: Question, question: Question) -> Question:
    """Let a counterfactual share the outcomes of its question, its own answer first."""
    shared = {
        name: tuple(dict.fromkeys((*texts, *dict(question.outcomes)[name])))
        for name, texts in other.outcomes
    }
    return replace(other, outcomes=tuple(shared.items()))
