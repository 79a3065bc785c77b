"""Page of a walk-through: one question, one step at a time, for readers who never trained a model.

Without scripts, and on paper, all steps stand below one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from probes.comparison.walkthrough.result import Look, ModelWalk, Swap, Walkthrough
from probes.viz.drawing import scrollable_svg
from probes.viz.html_text import escape, escape_lines, show_invisible
from probes.viz.picture import Picture
from probes.viz.plots.role_path_map import Word
from probes.viz.plots.walkthrough_scene import (
    LABELS,
    Line,
    Scene,
    legend_drawing,
    scene_drawing,
)
from probes.viz.registry import report
from probes.viz.reports.walkthrough.paths import path_part
from probes.viz.reports.walkthrough.texts import STRONG, Texts, percent

_MIN_LOOK = 0.3
_MEETING = "Where the parts of the number meet"
_ORDER = ("x", "y", "operation", "x and y", "thing")


@dataclass(frozen=True, slots=True)
class Part:
    """What one step shows of one model: a sentence, a drawing as HTML, and interventions."""

    model: str
    text: str
    drawing: str = ""
    swaps: Sequence[Swap] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the page."""

    heading: str
    lead: str
    parts: Sequence[Part]
    rest: str = ""


@report.register
def walkthrough_page(walk: Walkthrough) -> Picture:
    """Page of a walk-through."""
    names = " and ".join(one.model for one in walk.models)
    steps, texts = _steps(walk), Texts(walk)
    body = "".join(_step_html(walk, at, step) for at, step in enumerate(steps, 1))
    skipped = f'<div class="pv-note" data-tone="bad">{escape(walk.skipped)}</div>' * bool(
        walk.skipped
    )
    question = walk.text.removesuffix("Answer:").strip()
    return Picture(
        show_invisible(f"{question} – {names}"),
        f"<header><h1>{escape(question)}</h1>"
        f'<p class="pv-sub">How {escape(names)} get{"s" * (len(walk.models) == 1)} to the answer: '
        f"each claim is an experiment on the model, with its number.</p>{texts.in_short()}"
        f"{skipped}{_too_few(walk)}</header>"
        f'<div class="pv-walk" data-steps="{len(steps)}">{body}</div>{_method(walk)}',
    )


def _steps(walk: Walkthrough) -> list[Step]:
    texts = Texts(walk)
    steps = [
        Step(
            "The question and the answer",
            texts.reading(),
            [Part(one.model, texts.reply(one), _scene(walk, one)) for one in walk.models],
            texts.how_to_read(),
        ),
        Step(
            "Does the answer follow a changed word?",
            "A word of the question is exchanged. Click one to see what the model says then.",
            [
                Part(one.model, "", _scene(walk, one, rings=_rings(one.words)), one.words)
                for one in walk.models
            ],
        ),
        Step(
            "Which words look where",
            texts.looking(),
            [
                Part(one.model, texts.strongest_look(one), _scene(walk, one, lines=_lines(one)))
                for one in walk.models
            ],
        ),
        Step("Which words pass it on", texts.passing(), [], path_part(walk)),
        Step(
            _MEETING,
            texts.meeting_lead(),
            [
                Part(
                    one.model,
                    texts.meeting(one),
                    _scene(walk, one, states=True, rings=_rings(one.meeting)),
                    one.meeting,
                )
                for one in walk.models
            ],
            _legend(walk),
        ),
        Step(
            "Where the answer is fetched",
            texts.fetching_lead(),
            [_fetch_part(walk, one, texts) for one in walk.models],
            _legend(walk),
        ),
    ]
    if len(texts.parts(walk.models[0])) < 2:  # A single part has nothing to meet.
        steps = [step for step in steps if step.heading != _MEETING]
    if len(walk.answers) > 1:
        steps.append(
            Step(
                "Which way the noun goes",
                texts.noun_lead(),
                [_noun_part(walk, one, texts) for one in walk.models],
                _legend(walk),
            )
        )
    return [*steps, Step("In short", "", [], texts.in_short())]


def _fetch_part(walk: Walkthrough, one: ModelWalk, texts: Texts) -> Part:
    found = [fetch for fetch in one.fetch if not fetch.is_object]
    lines = [_line(fetch.look) for fetch in found if fetch.rate >= STRONG]
    swaps = [swap for fetch in found for swap in fetch.swaps]
    scene = _scene(walk, one, states=True, lines=lines, rings=_rings(one.meeting))
    return Part(one.model, texts.fetching(one), scene, swaps)


def _noun_part(walk: Walkthrough, one: ModelWalk, texts: Texts) -> Part:
    found = [fetch for fetch in one.fetch if fetch.is_object]
    swaps = [*([one.noun] if one.noun else ()), *(swap for fetch in found for swap in fetch.swaps)]
    scene = _scene(
        walk,
        one,
        states=True,
        lines=[_line(fetch.look) for fetch in found if fetch.rate >= STRONG],
        rings=_rings([one.noun] if one.noun else ()),
    )
    return Part(one.model, texts.noun(one), scene, swaps)


def _words(walk: Walkthrough, one: ModelWalk) -> list[Word]:
    replies = zip(walk.answers, one.reply.split(), strict=False)
    stretches = [Word(role, text) for role, text in walk.stretches]
    return [*stretches, *(Word(f"reply_{name}", word, True) for (name, _), word in replies)]


def _scene(
    walk: Walkthrough,
    one: ModelWalk,
    lines: Sequence[Line] = (),
    rings: Sequence[tuple[str, int]] = (),
    *,
    states: bool = False,
) -> str:
    maps = one.maps if states else {}
    name = f"{one.model}: words and layers"
    scene = Scene(name, _words(walk, one), walk.roles, one.layers, maps, lines, rings)
    return scrollable_svg(scene_drawing(scene), "pv-scene")


def _rings(swaps: Sequence[Swap]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((r, s.layer) for s in swaps for r in s.role.split("+")))


def _lines(one: ModelWalk) -> list[Line]:
    """Strongest look of each word in each layer."""
    best: dict[tuple[int, str], Line] = {}
    for look in one.looks:
        if look.weight < _MIN_LOOK:
            continue
        line, key = _line(look), (look.layer, look.query)
        if key not in best or best[key].weight < line.weight:
            best[key] = line
    return list(best.values())


def _line(look: Look) -> Line:
    label = (
        f"{look.head}: {look.query} looks at {look.key}, {percent(look.weight)} of its attention"
    )
    return Line(look.layer, look.query, look.key, look.weight, label)


def _legend(walk: Walkthrough) -> str:
    swaps = {swap.variable: swap.old for swap in walk.models[0].words}
    variables = [name for name in LABELS if name in swaps]
    return scrollable_svg(legend_drawing(variables, swaps), "pv-scene")


def _step_html(walk: Walkthrough, at: int, step: Step) -> str:
    texts = Texts(walk)
    parts = "".join(_part_html(part, texts) for part in step.parts)
    lead = f'<p class="pv-lead">{escape_lines(step.lead)}</p>' if step.lead else ""
    return (
        f'<section class="pv-step" aria-labelledby="pv-step-{at}"><h2 id="pv-step-{at}" '
        f'tabindex="-1">{at}. {escape(step.heading)}</h2>{lead}'
        f'{step.rest}<div class="pv-pair">{parts}</div></section>'
    )


def _part_html(part: Part, texts: Texts) -> str:
    text = f"<p>{escape_lines(part.text)}</p>" if part.text else ""
    ranked = sorted(part.swaps, key=lambda swap: _ORDER.index(swap.variable))
    tries = "".join(_swap_html(swap, texts) for swap in ranked)
    tries = f'<ul class="pv-tries">{tries}</ul>' if tries else ""
    return (
        f'<div class="pv-model"><h3>{escape(part.model)}</h3>{text}'
        f'<div class="pv-try-it">{part.drawing}{tries}</div></div>'
    )


def _swap_html(swap: Swap, texts: Texts) -> str:
    """One intervention: what is put where, what the model says, and how often with others."""
    tone = "good" if swap.says == swap.expected else "bad"
    place = texts.place(swap)
    where = f' <span class="pv-soft">{escape(place)}</span>' if place else ""
    index = 1 if swap.variable == "thing" else 0
    return (
        f'<li><button type="button" class="pv-try" data-says="{escape(swap.says)}" '
        f'data-reply="{index}" aria-pressed="false">put <b>{escape(swap.new)}</b> for '
        f'“{escape(swap.old)}”{where}</button> <span class="pv-said">{escape(texts.model_says)} '
        f'<b class="pv-tone" data-tone="{tone}">{escape(swap.says)}</b></span>'
        f'<span class="pv-soft">{escape(texts.numbers(swap))}</span></li>'
    )


def _too_few(walk: Walkthrough) -> str:
    """Note on variables with fewer pairs than were asked for; "" without any."""
    found = [f"{count} for the {_label(name)}" for name, count in walk.too_few.items()]
    found += [f"too few to test for the {_label(name)}" for name in walk.left_out]
    if not found:
        return ""
    text = f"Fewer {walk.others} than the {walk.prompts} asked for: {', '.join(found)}."
    return f'<div class="pv-note">{escape(text)}</div>'


def _label(variable: str) -> str:
    return " and the ".join(LABELS[name] for name in variable.split(" and "))


def _method(walk: Walkthrough) -> str:
    form, ends = "questions of this form", ", whose fraction is given with its 95 % interval"
    if walk.same_question:
        form = "numbers in this same question, which fits no known form,"
        ends = ". These are no sample of questions, so fractions have no interval"
    return (
        '<section class="pv-part"><h2>How it was measured</h2><p class="pv-lead">'
        + escape(
            f"Each experiment exchanges one state for that of a changed question with as many "
            f"words. Places were chosen on some {form} and measured on up to "
            f"{walk.prompts} others{ends}. Other words of this layer, other heads: the best of "
            f"them. Untrained models: "
            f"the best of {walk.nulls} with random weights. One model of each kind, seed "
            f"{walk.seed}: another training may give another way."
        )
        + "</p></section>"
    )
