"""Panels of role paths from comparisons: the full model first, then each relative."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from probes.comparison.paths.result import PathEffect
from probes.comparison.result import Comparison
from probes.errors import MatchError
from probes.interventions.role_paths.graph import path_role_texts
from probes.prompts.catalog import list_patterns
from probes.viz.blocks import Block
from probes.viz.drawing import scrollable_svg
from probes.viz.plots.role_path_map import Mark, MarkedPath, PathPanel, Word, role_path_drawing

_MARKS: dict[str, Mark] = {
    "kept": "kept",
    "weaker": "kept",
    "stronger": "kept",
    "new": "new",
    "lost": "lost",
    "not shared between seeds": "unshared",
    "cannot tell": "open",
}
_GONE = ("lost", "unshared")
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
    # Each comparison tests what was found in the full model or in its own relative.
    own = {
        effect.subject: _marked(effect, "own", effect.full.value)
        for one in comparisons
        for effect in one.paths
        if _is_own(effect, one)
    }
    panels = [
        PathPanel(
            first.full.name,
            _score(first, 0),
            (f"{len(own)} role paths",),
            tuple(words[first.full.name]),
            tuple(own.values()),
        )
    ]
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
    """Accuracy of both models, and how many role paths the relative has, in a sentence."""
    full, other = comparison.full.name, comparison.other.name
    gates = (comparison.gates[0], comparison.gates[len(comparison.answers)])
    scores = [_percent(gate.score.value) for gate in gates]
    does = "has the answer above its foils" if gates[0].criterion == "choice" else "is right"
    right = f"{full} {does} in {scores[0]}, {other} in {scores[1]}"
    if comparison.behavior_absent:
        return f"{right}: the behavior is absent, so nothing can be said about its mechanism."
    labels = Counter(v.label for v in comparison.verdicts if v.kind == "path")
    if not labels:
        return f"{right}; no role path could be tested."
    total = sum(labels.values()) - labels["new"]
    texts = [f"{right}; of {total} role paths {other} keeps {labels['kept']}"]
    for label, how in (("stronger", "more"), ("weaker", "less")):
        texts += [f"uses {labels[label]} {how} than {full}"] if labels[label] else []
    texts += [f"lost {labels['lost']}"] if labels["lost"] else []
    if unshared := labels["not shared between seeds"]:
        texts.append(f"lacks {unshared} that another seed of {full} lacks as well")
    texts += [f"has {labels['new']} of its own"] if labels["new"] else []
    texts += [f"cannot be told about {labels['cannot tell']}"] if labels["cannot tell"] else []
    return ", ".join(texts) + "."


def null_panel(comparisons: Sequence[Comparison], words: Sequence[Word]) -> PathPanel:
    """Panel of the null: the largest threshold of any path that was tested."""
    first = comparisons[0]
    accuracy = first.random_init_accuracy
    largest = max(null_fraction(one) for one in comparisons)
    return PathPanel(
        "null",
        f"{_percent(accuracy[0])} right" if accuracy else "",
        (f"{first.nulls} {first.method.null_name}",),
        tuple(words),
        (),
        f"no path\nabove {largest:.1%}\nof the effect".replace("%", "\N{NO-BREAK SPACE}%"),
    )


def null_fraction(comparison: Comparison) -> float:
    """Largest threshold of the null of the paths, as a fraction of the effect in the relative."""
    return max(
        (
            effect.random_init * effect.other.value / effect.logits.value
            for effect in comparison.paths
            if effect.logits.value > 0 and effect.other.value > 0
        ),
        default=0.0,
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
    total = sum(counts.values()) - counts["new"]
    texts = [f"has {counts['kept']} of {total} paths"]
    texts += [f"{counts[mark]} {mark}" for mark in ("new", "open") if counts[mark]]
    absent = one.behavior_absent
    return PathPanel(
        one.other.name,
        _score(one, len(one.answers)),
        ("behavior absent",) if absent else (", ".join(texts),),
        tuple(words),
        () if absent else tuple(paths),
    )


def _is_own(effect: PathEffect, comparison: Comparison) -> bool:
    verdict = next(
        (v for v in comparison.verdicts if v.kind == "path" and v.subject == effect.subject), None
    )
    return verdict is not None and verdict.label not in ("cannot tell", "behavior absent")


def path_mark(label: str) -> Mark | None:
    """Mark of a verdict; None where the behavior is absent."""
    return _MARKS.get(label)


def _marked(effect: PathEffect, mark: Mark, fraction: float) -> MarkedPath:
    return MarkedPath(effect.roles, mark, fraction, effect.answer != NUMBER)


def _score(comparison: Comparison, at: int) -> str:
    gate = comparison.gates[at]
    what = "above foils" if gate.criterion == "choice" else "right"
    return f"{_percent(gate.score.value)} {what}"


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}".replace("%", "\N{NO-BREAK SPACE}%")
