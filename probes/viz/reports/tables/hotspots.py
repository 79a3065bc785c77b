"""Blocks on hotspots: an example of base and source, the maps, the sites and the outcomes."""

import numpy as np

from probes.interventions.hotspots.result import Hotspots
from probes.viz.blocks import Block, Table
from probes.viz.plots.hotspot_map import display_variable, merged_roles
from probes.viz.plots.stacked_bars import OutcomeBlock

HOTSPOTS_INTRO = (
    "Interchange intervention: the residual stream at one site, taken from the run on another text "
    "(source), replaces the state of the run on the base text. Base and source differ in "
    "everything, and each mixture of the two has an answer of its own: the number that the model "
    "gives shows which variables the state carries. L1.resid@op is the residual stream before "
    "layer 1 at the role op; roles joined by + are interchanged together. A cell is the fraction "
    "of prompts in which this variable changed and no other. The null is the best site of "
    "random-init models (or, where the method says so, with the answers of other bases), or half a "
    "prompt if that is more. Column 0 holds token embeddings: their "
    "interchange changes the text itself, so 1.00 is trivial there. Rings mark the hotspots, which "
    "were selected on other prompts."
)

_MAX_BARS = 8
_MAX_READOUT_BARS = 4
_ROLE_TEXTS = {"bos": "(beginning-of-text token)", "rest": "(all other tokens)"}


def example_table(hotspots: Hotspots) -> Table:
    """One base and one source by role, with the answer of each outcome."""
    example = hotspots.example
    texts = {role: words for role, *words in example.role_texts}
    rows = [
        [role, *(words or _missing_role(role) for words in texts.get(role, ("", "")))]
        for role in merged_roles([hotspots])
        if "+" not in role
    ]
    mixed = [f"{label} → {text}" for label, text in example.answers if label[:4] != "copi"]
    notes = (
        f"Base: {example.base}",
        f"Source: {example.source}",
        f"Answer of the base with these variables from the source: {'; '.join(mixed)}. Copies: the "
        "answer repeats a number of the text.",
    )
    caption = f"One of {hotspots.prompts} prompts of {hotspots.pattern!r}"
    return Table(("role", "base text", "source text"), rows, caption, "lll", notes)


def hotspot_blocks(hotspots: Hotspots) -> list[Block]:
    """Interchange accuracy at the hotspots of one model, and the outcomes there."""
    return [_hotspots_table(hotspots), _outcome_block(hotspots)]


def _missing_role(role: str) -> str:
    if role.startswith("reply_"):
        return f"(answer: {role.removeprefix('reply_')})"
    return _ROLE_TEXTS.get(role, "(not in this text)")


def _hotspots_table(hotspots: Hotspots) -> Table:
    rows = [
        [
            display_variable(hotspot.variable), str(hotspot.site), hotspot.other_object,
            hotspot.same_object, hotspot.difference, hotspots.thresholds[hotspot.variable],
        ]
        for hotspot in hotspots.hotspots
    ]  # fmt: skip
    columns = ("variable", "hotspot", "other object", "same object", "difference", "null")
    note = (
        "Other object: base and source are about different objects; same object: about the same. "
        "Row of the object: how often the answer names the source's object; with the same object, "
        "how often nothing changes."
    )
    return Table(columns, rows, "Interchange accuracy at the hotspots", "llrrrr", (note,))


def _outcome_block(hotspots: Hotspots) -> OutcomeBlock:
    """Outcomes of the number answer at the hotspots, and at the last sites of its readout."""
    labels = {str(h.site): f"{display_variable(h.variable)}: {h.site!s}" for h in hotspots.hotspots}
    readout = [str(site) for site in hotspots.sites if site.role == hotspots.readout_role]
    count = min(max(0, _MAX_BARS - len(labels)), _MAX_READOUT_BARS)
    labels |= {name: name for name in readout[len(readout) - count :] if name not in labels}
    names = list(labels)[:_MAX_BARS]
    outcomes = list(hotspots.number_outcomes[names[0]])
    fractions = np.array([[hotspots.number_outcomes[n][o] for o in outcomes] for n in names])
    present = [at for at, column in enumerate(fractions.T) if column.any()]
    return OutcomeBlock(
        [labels[name] for name in names],
        [outcomes[at] for at in present],
        fractions[:, present],
        [hotspots.prompts] * len(names),
        "Outcomes of the number answer at the hotspots, then at the last sites of its readout",
    )
