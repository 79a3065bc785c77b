"""Patterns in a prompt format, with few-shot examples that share nothing with the questions."""

import random
from collections.abc import Iterator
from dataclasses import replace

from probes.errors import PatternError
from probes.prompts.draws import tries
from probes.prompts.format.prompt_format import PLAIN, PromptFormat
from probes.prompts.format.wrapper import UNWRAPPED, Wrapper
from probes.prompts.outcomes import has_distinct_outcomes
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair, Question, expression_slots
from probes.prompts.template import Lexicon

_FRACTION = 3  # A third of the verbs, and at most a third of the other words, is for examples.


def formatted(pattern: Pattern, format: str | PromptFormat) -> Pattern:
    """Pattern whose questions and pairs are in a prompt format.

    Few-shot examples are questions of the pattern and, in turn, of its opposite. Their numbers,
    and the verbs, nouns and names in them, occur in no question. All questions have the same
    examples, so that pairs stay aligned. Examples from a pairs file are pairs left out of it.

    Args:
        pattern: Pattern in plain text.
        format: Format, or its name.

    Raises:
        PatternError: The format is unknown, the pattern has a format already, or it has too few
            words or pairs for examples.
    """
    if pattern.wrapper != UNWRAPPED:
        raise PatternError(
            f"{pattern.name!r} is in the format {pattern.wrapper.format} already: give the plain "
            "pattern"
        )
    chosen = PromptFormat.parse(format) if isinstance(format, str) else format
    if chosen == PLAIN:
        return pattern
    if pattern.user_pairs:
        return _format_pairs(pattern, chosen)
    if chosen.numbers is not None:
        lexicon = replace(pattern.lexicon, number_range=chosen.numbers)
        pattern = replace(pattern, lexicon=lexicon)
    if chosen.is_short:
        opposite = pattern.opposite and replace(
            pattern.opposite, answers=pattern.opposite.answers[:1]
        )
        pattern = replace(pattern, answers=pattern.answers[:1], opposite=opposite)
    wrapper = Wrapper(chosen)
    if chosen.shots:
        lexicon, others = _split_words(pattern, chosen)
        examples = tuple(_draw_examples(replace(pattern, lexicon=others), chosen))
        wrapper = Wrapper(chosen, examples, _operands(pattern))
        pattern = replace(pattern, lexicon=lexicon)
    return replace(pattern, wrapper=wrapper)


def _format_pairs(pattern: Pattern, format: PromptFormat) -> Pattern:
    """Pattern of a pairs file whose prompts are all in one format."""
    if format.numbers is not None:
        raise PatternError(
            f"{pattern.name!r} is a pairs file, whose numbers are given: leave out "
            f"@{format.numbers[0]}-{format.numbers[1]}"
        )
    pairs, examples = pattern.user_pairs, list[Question]()
    if format.shots:
        if len(pairs) <= format.shots:
            raise PatternError(
                f"{pattern.name!r} has {len(pairs)} pairs, and {format.shots} examples need as "
                "many more that are not tested: add pairs, or use fewer examples"
            )
        taken = random.Random(f"{format.seed}:examples").sample(pairs, format.shots)
        sides = [(pair.clean, pair.counterfactual) for pair in taken]
        examples = [side[n % 2] for n, side in enumerate(sides)]
        texts = {question.text for side in sides for question in side}
        pairs = [p for p in pairs if not {p.clean.text, p.counterfactual.text} & texts]
    wrapper = Wrapper(format, tuple(examples))
    wrapped = tuple(
        Pair(pair.contrast, wrapper.wrap(pair.clean), wrapper.wrap(pair.counterfactual))
        for pair in pairs
    )
    return replace(pattern, user_pairs=wrapped, wrapper=wrapper)


def _operands(pattern: Pattern) -> tuple[str, ...]:
    """Number slots that the operation or an answer is computed from."""
    rules = (pattern.remainder, *(rule for _, rule in pattern.answers))
    slots = dict.fromkeys(slot for rule in rules for slot in expression_slots(rule))
    return tuple(slot for slot in slots if pattern.lexicon.kind_of(slot) == "number")


def _split_words(pattern: Pattern, format: PromptFormat) -> tuple[Lexicon, Lexicon]:
    """Words of the questions, and other words for the examples."""
    lexicon = pattern.lexicon
    rng = random.Random(f"{format.seed}:words")
    most = {
        kind: max(
            sum(lexicon.kind_of(slot) == kind for slot in template.slots)
            for template in pattern.templates
        )
        for _, kind in lexicon.slot_kinds
    }
    choices = [dict[str, tuple[str, ...]](), dict[str, tuple[str, ...]]()]
    for kind, words in lexicon.choices:
        # An example has one outcome with a noun that does not occur in it.
        needed = most.get(kind, 0) + (kind == "noun")
        count = min(max(format.shots, needed), len(words) // _FRACTION)
        if most.get(kind) and count < needed:
            raise _too_few(pattern, kind, len(words))
        kept = {*rng.sample(words, count)}
        for side, is_example in zip(choices, (False, True), strict=True):
            side[kind] = tuple(word for word in words if (word in kept) == is_example)
    verbs = lexicon.verbs
    if most.get("verb") and len(verbs) < 2:
        raise _too_few(pattern, "verb", len(verbs))
    at = {*rng.sample(range(len(verbs)), max(1, round(len(verbs) / _FRACTION)))} if verbs else set()
    for_examples = tuple(verb for n, verb in enumerate(verbs) if n in at)
    for_questions = tuple(verb for n, verb in enumerate(verbs) if n not in at)
    return (
        replace(lexicon, verbs=for_questions or verbs, choices=tuple(choices[0].items())),
        replace(lexicon, verbs=for_examples, choices=tuple(choices[1].items())),
    )


def _too_few(pattern: Pattern, kind: str, count: int) -> PatternError:
    return PatternError(
        f"{pattern.name!r} has {count} of the kind {kind!r}, too few to keep those of few-shot "
        "examples apart: add words, or use plain or chat"
    )


def _draw_examples(pattern: Pattern, format: PromptFormat) -> Iterator[Question]:
    """Draw examples of both operations in turn, with different numbers and answers.

    Two in a row have one template and one form of numbers, so that their operations stand out.
    """
    sides = [pattern, pattern.flipped()] if pattern.opposite else [pattern]
    sides.sort(key=lambda side: side.name)  # A pattern and its opposite have the same examples.
    rng = random.Random(f"{format.seed}:{sides[0].name}:examples")
    templates = rng.sample(pattern.templates, len(pattern.templates))
    operands, found = _operands(pattern), dict[Question, None]()
    for _ in tries(format.shots, found):
        side, n = sides[len(found) % len(sides)], len(found) // len(sides)
        template = templates[n % len(templates)]
        drawn = side.sample_question(rng, (template,))
        numerals = "words" if n % 2 and not format.digits else "digits"
        question = drawn and side.make_question(template, dict(drawn.slots), numerals)
        if question is None or not _is_telling(question):
            continue
        used = Wrapper(format, tuple(found), operands)
        answers = [example.answers for example in found]
        firsts = [own[0] for own in answers]
        if used.reserves(dict(question.slots)) or question.answers[0] in firsts:
            continue
        if answers and {*answers[-1][1:]} & {*question.answers[1:]}:  # The same object twice.
            continue
        found[question] = None
    if len(found) < format.shots:
        raise PatternError(
            f"{pattern.name!r} yielded {len(found)} of {format.shots} examples with different "
            "answers: use fewer examples, or a wider range of numbers"
        )
    yield from found


def _is_telling(question: Question) -> bool:
    """Whether numbers differ, none is 0 or 1, and neither a copy nor another operation is right."""
    numbers = [value for _, value in question.slots if isinstance(value, int)]
    if min(numbers, default=2) < 2 or len({*numbers}) < len(numbers):
        return False
    return "number" not in dict(question.outcomes) or has_distinct_outcomes(question)
