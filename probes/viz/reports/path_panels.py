"""Panels of role paths from comparisons: the full model first, then each relative."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from probes.comparison.paths.measure import MIN_PATH_FRACTION
from probes.comparison.paths.result import PathEffect
from probes.comparison.result import Comparison
from probes.errors import MatchError
from probes.interventions.role_paths.graph import path_role_texts
from probes.observe.result import Gate
from probes.prompts.catalog import list_patterns
from probes.viz.blocks import Block
from probes.viz.drawing import scrollable_svg
from probes.viz.plots.role_path_map import Mark, MarkedPath, PathPanel, Word, role_path_drawing
from probes.viz.reports.tables.capability import counted_score, counts_foils

_MARKS: dict[str, Mark] = {
    "kept": "kept",
    "weaker": "kept",
    "stronger": "kept",
    "new": "new",
    "lost": "lost",
    "not shared between seeds": "unshared",
    "cannot tell": "open",
}
_WHOLE = 0.995  # From here on a fraction is printed as the whole effect.
NUMBER = "number"


def path_panels(
    comparisons: Sequence[Comparison], words: Mapping[str, Sequence[Word]]
) -> list[PathPanel]:
    """Panel of the full model, then of each relative.

    Args:
        comparisons: Comparisons of one model.
        words: Words of a question by model, with its reply.
    """
    first = comparisons[0]
    panels = [_full_panel(comparisons, words[first.full.name])]
    return [*panels, *(_relative_panel(one, words[one.other.name]) for one in comparisons)]


@dataclass(frozen=True, eq=False)
class PathPicture(Block):
    """Role paths of some models side by side, without the words of a question."""

    panels: Sequence[PathPanel]

    @property
    def body(self) -> str:
        """Drawing that scrolls where it is too wide."""
        return scrollable_svg(role_path_drawing(self.panels, len(self.panels), ""), "pv-paths")


def path_picture(comparisons: Sequence[Comparison]) -> list[PathPicture]:
    """Paths of the full model and of its relatives; empty where none was tested."""
    if not any(one.paths for one in comparisons):
        return []
    words = example_words(comparisons[0])
    names = (comparisons[0].full.name, *(one.other.name for one in comparisons))
    panels = path_panels(comparisons, dict.fromkeys(names, words))
    return [PathPicture((*panels, null_panel(comparisons, words)))]


def example_words(comparison: Comparison) -> list[Word]:
    """Words of the example by role; a role of the paths that it lacks has its name in brackets."""
    present = dict(_example_texts(comparison))
    order, used = list(present), [r for effect in comparison.paths for r in effect.roles]
    for role in sorted(dict.fromkeys(used), key=lambda role: _position(role, comparison.roles)):
        if role not in order:
            place = _position(role, comparison.roles)
            before = [at for at, r in enumerate(order) if _position(r, comparison.roles) < place]
            order.insert(max(before, default=-1) + 1, role)
    replies = [role for role in order if role.startswith("reply_")]
    names = [*(role for role in order if role not in replies), *replies]
    return [Word(r, present.get(r, f"({r.removeprefix('reply_')})"), r in replies) for r in names]


def _example_texts(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    own = list_patterns().get(comparison.pattern)
    prompt = comparison.example.rsplit(" ", len(comparison.answers))[0]
    with suppress(MatchError):
        return path_role_texts(own.match(prompt)) if own else ()
    return ()


def _position(role: str, roles: Sequence[str]) -> float:
    name = role.removeprefix("after ")
    return (roles.index(name) if name in roles else len(roles)) + 0.5 * (name != role)


def short_answer(comparison: Comparison) -> str:
    """What both models do rightly, and how many role paths the relative has, in a sentence."""
    full, other = comparison.full.name, comparison.other.name
    gates = (comparison.gates[0], comparison.gates[len(comparison.answers)])
    scores = [_percent(counted_score(gate).value) for gate in gates]
    does = "has the answer above its foils" if counts_foils(gates[0]) else "is right"
    right = f"{full} {does} in {scores[0]}, {other} in {scores[1]}"
    if comparison.behavior_absent:
        return f"{right}: the behavior is absent, so nothing can be said about its mechanism."
    verdicts = [v for v in comparison.verdicts if v.kind == "path"]
    if not verdicts:
        return f"{right}; no role path could be tested."
    in_full = {effect.subject for effect in comparison.paths if _is_in_full(effect)}
    labels = Counter(v.label for v in verdicts if v.subject in in_full)
    others = Counter(v.label for v in verdicts if v.subject not in in_full)
    total = labels.total()
    texts = [f"{right}; of {total} role path{_s(total)} {other} keeps {labels['kept']}"]
    for label, how in (("stronger", "more"), ("weaker", "less")):
        texts += [f"uses {labels[label]} {how} than {full}"] if labels[label] else []
    texts += [f"lost {labels['lost']}"] if labels["lost"] else []
    if unshared := labels["not shared between seeds"]:
        texts.append(f"lacks {unshared} that another seed of {full} lacks as well")
    texts += [f"has {others['new']} of its own"] if others["new"] else []
    texts += [f"cannot be told about {labels['cannot tell']}"] if labels["cannot tell"] else []
    more = others["cannot tell"]
    open_text = f"; it is open whether {full} has {more} more" if more else ""
    return f"{', '.join(texts)}{open_text}."


def null_panel(comparisons: Sequence[Comparison], words: Sequence[Word]) -> PathPanel:
    """Panel of the null: the largest threshold of any path that was tested."""
    first = comparisons[0]
    accuracy = first.random_init_accuracy
    return PathPanel(
        "null",
        f"{_percent(accuracy[0])} {_counted(first.gates[0])}" if accuracy else "",
        (f"{first.nulls} {first.method.null_name}",),
        tuple(words),
        (),
        _null_note([effect for one in comparisons for effect in one.paths]),
    )


def _null_note(effects: Sequence[PathEffect]) -> str:
    """What the null says about all paths, in short lines; "" where no threshold is known."""
    effect = max(effects, key=null_fraction)
    largest = null_fraction(effect)
    if largest >= _WHOLE:
        of = f"with {effect.pairs} pairs\nthe null"
        return f"{of}\nreaches the\nwhole effect:\nno path can\nexceed it"
    text = f"no path\nabove {largest:.1%}\nof the effect".replace("%", "\N{NO-BREAK SPACE}%")
    return text if largest else ""


def null_fraction(effect: PathEffect) -> float:
    """Threshold of the null of a path, as a fraction of the effect in the relative, or 0."""
    known = effect.logits.value > 0 and effect.other.value > 0
    return effect.random_init * effect.other.value / effect.logits.value if known else 0.0


def _full_panel(comparisons: Sequence[Comparison], words: Sequence[Word]) -> PathPanel:
    """All paths that the full model has, whatever the verdicts on the relatives are."""
    first = comparisons[0]
    # Each comparison tests what was found in the full model or in its own relative.
    own = {
        effect.subject: _marked(effect, "own", effect.full.value)
        for one in comparisons
        for effect in one.paths
        if _is_in_full(effect)
    }
    absent = any(gate.state == "closed" for gate in first.gates[: len(first.answers)])
    return PathPanel(
        first.full.name,
        _score(first, 0),
        ("behavior absent" if absent else f"{len(own)} role path{_s(len(own))}",),
        tuple(words),
        () if absent else tuple(own.values()),
    )


def _relative_panel(one: Comparison, words: Sequence[Word]) -> PathPanel:
    """Paths of the full model in a relative, and those that are new there."""
    verdicts = {v.subject or v.counterpart: v.label for v in one.verdicts if v.kind == "path"}
    paths = [
        _marked(
            effect, mark, effect.full.value if mark in ("lost", "unshared") else effect.other.value
        )
        for effect in one.paths
        if (mark := path_mark(verdicts.get(effect.subject, ""))) is not None
    ]
    counts = Counter(path.mark for path in paths)
    # A path of which it is open whether the full model has it is none of its paths.
    total = sum(_is_in_full(effect) for effect in one.paths)
    texts = [f"has {counts['kept']} of {total} path{_s(total)}"]
    texts += [f"{counts[mark]} {mark}" for mark in ("new", "open") if counts[mark]]
    absent = one.behavior_absent
    return PathPanel(
        one.other.name,
        _score(one, len(one.answers)),
        ("behavior absent",) if absent else (", ".join(texts),),
        tuple(words),
        () if absent else tuple(paths),
    )


def _is_in_full(effect: PathEffect) -> bool:
    """Whether the full model has a path, by the rule of the verdicts."""
    return effect.full.low > MIN_PATH_FRACTION


def path_mark(label: str) -> Mark | None:
    """Mark of a verdict; None where the behavior is absent."""
    return _MARKS.get(label)


def _marked(effect: PathEffect, mark: Mark, fraction: float) -> MarkedPath:
    return MarkedPath(effect.roles, mark, fraction, effect.answer != NUMBER)


def _score(comparison: Comparison, at: int) -> str:
    gate = comparison.gates[at]
    return f"{_percent(counted_score(gate).value)} {_counted(gate)}"


def _counted(gate: Gate) -> str:
    return "above foils" if counts_foils(gate) else "right"


def _s(count: int) -> str:
    """Ending of a plural."""
    return "" if count == 1 else "s"


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}".replace("%", "\N{NO-BREAK SPACE}%")
