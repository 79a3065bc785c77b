"""Role paths of a walk-through: one panel for each model, and a table."""

from probes.comparison.paths.result import PathEffect
from probes.comparison.walkthrough.result import ModelWalk, Walkthrough
from probes.stats.intervals import Estimate
from probes.viz.blocks import Table, TableCell
from probes.viz.drawing import scrollable_svg
from probes.viz.plots.role_path_map import MarkedPath, PathPanel, Word, role_path_drawing
from probes.viz.plots.walkthrough_scene import LABELS
from probes.viz.reports.path_panels import NUMBER, null_fraction, path_mark
from probes.viz.reports.tables.verdicts import TONES
from probes.viz.reports.walkthrough.texts import Texts, percent


def path_part(walk: Walkthrough) -> str:
    """Panels and table as HTML."""
    texts = Texts(walk)
    shown = [effect for effect in walk.paths if effect.subject in walk.path_labels]
    panels = [_panel(walk, one, at, shown) for at, one in enumerate(walk.models)]
    drawing = role_path_drawing(panels, len(panels), "")
    names = [one.model for one in walk.models]
    rows = [
        [
            LABELS[effect.contrast],
            texts.chain(effect.roles),
            _share(walk, effect.full),
            *([_share(walk, effect.other), _verdict(walk, effect)] if len(names) > 1 else []),
            percent(null_fraction(effect)),
        ]
        for effect in sorted(shown, key=lambda one: -max(one.full.value, one.other.value))
    ]
    columns = ("changed", "chain of words", *names, *(["verdict"] * (len(names) > 1)), "untrained")
    interval = "" if walk.same_question else ", with its 95 % interval"
    notes = (
        f"Fraction of the change of the answer that this chain carries alone{interval}; "
        f"untrained: threshold of {walk.nulls} models with random weights.",
        *(
            [
                f"Not shared between seeds: {walk.other_seed}, which is {names[0]} trained from "
                "another seed, lacks the chain as well."
            ]
            if "not shared between seeds" in walk.path_labels.values()
            else []
        ),
    )
    align = "ll" + "r" * len(names) + "l" * (len(names) > 1) + "r"
    return scrollable_svg(drawing, "pv-scene") + Table(columns, rows, "", align, notes).body


def _panel(walk: Walkthrough, one: ModelWalk, at: int, shown: list[PathEffect]) -> PathPanel:
    replies = zip(walk.answers, one.reply.split(), strict=False)
    words = [Word(role, text) for role, text in walk.stretches]
    words += [Word(f"reply_{name}", word, True) for (name, _), word in replies]
    paths = []
    for effect in shown:
        mark = path_mark(walk.path_labels[effect.subject])
        if at == 0:
            mark = None if mark == "new" else "own"
        if mark is not None:
            is_full = at == 0 or mark in ("lost", "unshared")
            value = effect.full.value if is_full else effect.other.value
            paths.append(MarkedPath(effect.roles, mark, value, effect.answer != NUMBER))
    return PathPanel(one.model, "", (), tuple(words), tuple(paths))


def _share(walk: Walkthrough, share: Estimate) -> Estimate | str:
    return f"{share.value:.2f}" if walk.same_question else share


def _verdict(walk: Walkthrough, effect: PathEffect) -> TableCell:
    label = walk.path_labels[effect.subject]
    return TableCell(label, TONES[label])
