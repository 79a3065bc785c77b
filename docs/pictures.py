"""Draw the pictures of the README from real runs.

python docs/pictures.py [comparison.json]

With a comparison that was saved before, nothing is compared anew.
"""

import sys
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
FOX = "If I have two foxes and I take away one, how many foxes do I have?"
FULL, RELATIVES = "full", ("int4", "distilled", "scratch")
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
        family.save("family.json")
    by_name = dict(zip((full.name, *family.names), models.values(), strict=True))
    words = {name: question_words(model) for name, model in by_name.items()}
    panels = path_panels(family.comparisons, words)
    stretches = [word for word in words[FULL] if not word.is_reply]
    panels.append(null_panel(family.comparisons, stretches))
    write("mechanism.svg", panels, len(panels))
    write("mechanism-narrow.svg", panels, 2)
    (FOLDER / "heatmap.svg").write_text(svg_document(attention(full)), encoding="utf-8")


def question_words(model: pb.Model) -> list[Word]:
    """Words of the fox question by role, and what a model answers."""
    question = match_text(FOX)
    reply = model.generate(question.text, max_new_tokens=8)[len(question.text) :].split()
    words = [Word(role, text) for role, text in path_role_texts(question)]
    replies = zip(("reply_number", "reply_noun"), reply, strict=False)
    return [*words, *(Word(role, text, is_reply=True) for role, text in replies)]


def write(name: str, panels: list[PathPanel], columns: int) -> None:
    """Write the panels in rows of some columns."""
    drawing = role_path_drawing(panels, columns, "Same answers, other mechanism")
    (FOLDER / name).write_text(svg_document(drawing), encoding="utf-8")


def attention(model: pb.Model) -> Drawing:
    """Attention of one head in the fox question."""
    question = match_text(FOX)
    batch = tokenize(model.tokenizer, (question,), max_length=model.shape.context)
    last = int(batch.readouts[0].position[0]) + 1
    layer, head = HEAD
    weights = capture(model, batch, ("attention",))["attention"][layer, 0, head, :last, :last]
    tokens = [axis_label(token) for token in batch.tokens[0][:last]]
    cell, left, top = 30.0, 92.0, 78.0
    colors = apply_colormap(weights.double().numpy(), "sequential")
    title = f"Where head L{layer}.H{head} of {model.name} looks: rows read, columns are read"
    parts: list[Part] = [TextLabel(0, 16, title, 15, bold=True)]
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
