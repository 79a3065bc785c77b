"""Draw the pictures of the README from real runs.

python docs/pictures.py [runs/pictures.json]

With the comparison that it saved before, nothing is compared anew.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import probes as pb
from probes.comparison.setup.references import ComparisonSettings
from probes.interventions.role_paths.graph import path_role_texts
from probes.observe.activations import capture
from probes.prompts.english.match import match_text
from probes.prompts.tokens.batch import tokenize
from probes.viz.colors import apply_colormap, text_color, to_hex
from probes.viz.drawing import Drawing, Part, TextLabel, rectangle, svg_document
from probes.viz.html_text import axis_label
from probes.viz.plots.role_path_map import PathPanel, Word, role_path_drawing
from probes.viz.reports.path_panels import null_panel, path_panels

FOLDER = Path(__file__).parent
KEPT = Path("runs") / "pictures.json"
FOX = "If I have two foxes and I take away one, how many foxes do I have?"
FULL, RELATIVES = "full", ("int4", "distilled", "scratch")
NOTES = (
    "{layers} layers: the teacher",
    "weights in 4 bits",
    "{layers} layers, taught by full",
    "{layers} layers, not taught",
)
CAPTION = (
    "A line is a way by which a change of a word\nreaches the answer (path patching). Width: the\n"
    "fraction of the change that it carries alone.\nTested: those found in full or in the relative."
    "|One model of each kind; {pairs} pairs of questions\nfor each changed word; right: numbers in "
    "{questions}\nquestions. Null: what a path of a random-init\nmodel exceeds with p = 0.05."
)
HEAD = (1, 0)


def main() -> None:
    """Compare `full` with three relatives, and draw their role paths and one attention map."""
    full = pb.load(FULL)
    int4 = pb.quantize(full, "int4").to_model()
    models = {FULL: full, "int4": int4} | {name: pb.load(name) for name in RELATIVES[1:]}
    if len(sys.argv) > 1:
        family = pb.FamilyComparison.load(sys.argv[1])
    else:
        family = pb.compare_family(
            full,
            [models[n] for n in RELATIVES],
            "take-away",
            ComparisonSettings(draws=1, workers=2),
        )
        KEPT.parent.mkdir(exist_ok=True)
        family.save(KEPT)
    by_name = dict(zip((full.name, *family.names), models.values(), strict=True))
    words = {name: question_words(model) for name, model in by_name.items()}
    layers = [model.shape.layers for model in models.values()]
    notes = [note.format(layers=n) for note, n in zip(NOTES, layers, strict=True)]
    panels = [
        replace(panel, lines=(note, *panel.lines))
        for panel, note in zip(path_panels(family.comparisons, words), notes, strict=True)
    ]
    stretches = [word for word in words[FULL] if not word.is_reply]
    panels.append(null_panel(family.comparisons, stretches))
    first = family.comparisons[0]
    caption = CAPTION.format(questions=first.gates[0].n_questions, pairs=first.paths[0].pairs)
    write("mechanism.svg", panels, len(panels), caption.replace("\n", " ").split("|"))
    write("mechanism-narrow.svg", panels, 2, caption.replace("|", "\n").split("\n"))
    (FOLDER / "heatmap.svg").write_text(svg_document(attention(full)), encoding="utf-8")


def question_words(model: pb.Model) -> list[Word]:
    """Words of the fox question by role, and what a model answers."""
    question = match_text(FOX)
    reply = model.generate(question.text, max_new_tokens=8)[len(question.text) :].split()
    reply = [word.strip(".") for word in reply]
    words = [Word(role, text) for role, text in path_role_texts(question)]
    replies = zip(("reply_number", "reply_noun"), reply, strict=False)
    return [*words, *(Word(role, text, is_reply=True) for role, text in replies)]


def write(name: str, panels: list[PathPanel], columns: int, lines: list[str]) -> None:
    """Write the panels in rows of some columns."""
    drawing = role_path_drawing(panels, columns, "Same answers, other mechanism", lines)
    (FOLDER / name).write_text(svg_document(drawing), encoding="utf-8")


def attention(model: pb.Model) -> Drawing:
    """Attention of one head in the fox question."""
    question = match_text(FOX)
    batch = tokenize(model.tokenizer, (question,), max_length=model.shape.context)
    last = int(batch.readouts[0].position[0]) + 1
    layer, head = HEAD
    weights = capture(model, batch, ("attention",))["attention"][layer, 0, head, :last, :last]
    tokens = [axis_label(token) for token in batch.tokens[0][:last]]
    cell, left, top = 27.0, 88.0, 82.0
    colors = apply_colormap(weights.double().numpy(), "sequential")
    best = int(weights[-1].argmax())
    title = (
        f"Attention of one head (L{layer}.H{head} of {model.name}): at the end it looks at "
        f"“{tokens[best].strip('␣')}” ({float(weights[-1, best]):.2f})"
    )
    parts: list[Part] = [
        TextLabel(0, 16, title, 15, bold=True),
        TextLabel(left + 12 * cell, top + 40, "A row is a word that reads,", 12, color="soft"),
        TextLabel(left + 12 * cell, top + 57, "a column is a word that is read.", 12, color="soft"),
    ]
    for at, token in enumerate(tokens):
        middle = cell * (at + 0.5)
        parts.append(TextLabel(left - 6, top + middle + 4, token, 12, "end"))
        parts.append(TextLabel(left + middle + 4, top - 6, token, 12, rotated=True))
    for (query, key), weight in np.ndenumerate(weights.double().numpy()):
        if key > query:
            continue
        color = colors[query, key]
        box = (left + cell * key, top + cell * query, cell - 1, cell - 1)
        parts.append(rectangle(box, to_hex(color)))
        if weight >= 0.05:
            x, y = box[0] + cell / 2 - 0.5, box[1] + cell / 2 + 4
            text = f"{weight:.2f}".removeprefix("0").replace("1.00", "1")
            parts.append(TextLabel(x, y, text, 11, "middle", text_color(color)))
    size = cell * len(tokens)
    return Drawing(
        left + size, top + size, tuple(parts), title, f"Attention over {' '.join(tokens)}"
    )


if __name__ == "__main__":
    main()
