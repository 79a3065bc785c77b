"""Verdicts on role paths as blocks of a page."""

from probes.comparison.result import Comparison
from probes.viz.blocks import Block, Note, Table
from probes.viz.reports.tables.verdicts import tests_text, verdict_cell

PATH_INTRO = (
    "A role path says by way of which words a contrast reaches the answer: “x → op → answer” means "
    "that op reads x, and the answer reads op, in any heads and layers. Only attention moves "
    "information between words, so that models of any size have the same possible paths. The "
    "paths are found on other prompts than those of the tests."
)


def path_blocks(comparison: Comparison) -> list[Block]:
    """Verdicts on role paths, and the circuits that they form."""
    full, other = comparison.full.name, comparison.other.name
    if not comparison.paths:
        reason = "No contrast changes an answer of both models with equal numbers of tokens."
        return [Note(f"No role path was tested. {reason}", "muted")]
    verdicts = {v.subject or v.counterpart: v for v in comparison.verdicts if v.kind == "path"}
    shown = [path for path in comparison.paths if path.subject in verdicts]
    rows = [
        [
            path.contrast,
            " → ".join(path.roles),
            verdict_cell(verdicts[path.subject], hover=tests_text(verdicts[path.subject])),
            path.full,
            path.other,
            path.other_seed,
            path.logits,
            path.random_init,
        ]
        for path in shown
    ]
    columns = ("contrast", "path", "verdict", full, other, "other seed", "logits", "null")
    notes = (
        f"{full}, {other}, other seed: fraction of the effect of the contrast, when only this path "
        f"is patched. Logits: the effect in {other}. Null: threshold of the absolute effect "
        f"{comparison.method.path_null}. “after y” are the words between y and the next role.",
    )
    blocks: list[Block] = [Table(columns, rows, align="lllrrrrr", notes=notes)]
    circuits = [
        [
            one.contrast,
            len(one.paths),
            one.full,
            one.other,
            one.other_seed,
            one.random,
            one.rest_full,
            one.rest_other,
        ]
        for one in comparison.path_circuits
    ]
    if circuits:
        columns = (
            "contrast", "paths", full, other, "other seed", "random", f"rest, {full}",
            f"rest, {other}",
        )  # fmt: skip
        caption = f"All paths of {full} together: faithfulness in each model"
        notes = (
            f"Random: mean of as many other paths in {other}. Rest: all edges but those of the "
            "circuit are patched; 0 where the circuit is complete.",
        )
        blocks.append(Table(columns, circuits, caption, "lrrrrrrr", notes))
    return blocks
