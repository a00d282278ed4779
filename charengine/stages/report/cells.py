"""Every cell of the sweep as pictures: a table with the pick always in view, and sliders over it."""

from __future__ import annotations

from charengine.likeness.prompts import SweepPrompt
from charengine.records import CellMetrics, Ref, RunRecord, picture_name
from charengine.stages.report.parts import Pictures, figure, section, text, wide

CELL_WIDTH, MANY, SMALL = 420, 120, 256  # pixels encoded of a picture; the smaller width where there are many


def every_cell(run: RunRecord, pictures: Pictures) -> str:
    """A row a prompt, a column a cell, the first seed that was drawn; strength 0 first."""
    record = run.sweep
    width = CELL_WIDTH if len(record.cells) * len(record.prompts) <= MANY else SMALL
    heads = "".join(
        f"<th scope='col'{_place(run, cell)} data-numbers='{text(numbers(cell))}'>{_name(cell)}</th>"
        for cell in record.cells
    )
    rows = []
    for index, template in enumerate(record.prompts):
        words = drawn_prompt(run, template)
        cells = "".join(_cell(run, cell, index, words, width, pictures) for cell in record.cells)
        title = f"<td class='words' colspan='{len(record.cells)}'><span>{text(words)}</span></td>"
        rows.append(f"<tbody><tr>{title}</tr><tr>{cells}</tr></tbody>")
    caption = (
        "<caption class='hidden'>Every checkpoint at every strength, one prompt a row; the pick is outlined</caption>"
    )
    return wide("every cell", f"<table class='cells'>{caption}<thead><tr>{heads}</tr></thead>{''.join(rows)}</table>")


def sliders(run: RunRecord) -> str:
    """Strength and checkpoint, chosen; the page's script fills in the pictures of the table."""
    places = "".join(
        f"<figure data-prompt='{index}'><img alt='' data-about='' src='{EMPTY}'><p class='none' hidden>not drawn</p>"
        f"<figcaption>{text(drawn_prompt(run, template))}</figcaption></figure>"
        for index, template in enumerate(run.sweep.prompts)
    )
    return (
        "<div class='script-only'><h3>Slide over strength and checkpoint</h3><div class='choose'>"
        "<label>Strength <b id='said-strength'></b><input type='range' id='slide-strength' min='0' value='0'/></label>"
        "<label>Checkpoint <b id='said-step'></b><input type='range' id='slide-step' min='0' value='0'/></label></div>"
        f"<p class='chosen view-words' id='chosen' aria-live='polite'></p><div class='strip' id='slid'>{places}</div></div>"
    )


def over_training(run: RunRecord, pictures: Pictures) -> str:
    """What the trigger alone drew at each checkpoint; nothing when no samples were drawn."""
    shown = [(point, ref) for point in run.training.checkpoints for ref in point.samples[:1]]
    if not shown:
        return ""
    figures = [
        figure(
            pictures.image(
                ref, f"sample at step {point.step}", width=CELL_WIDTH,
                about=f"{run.recommended_prompt}. Seed {run.seed}, step {point.step} at strength 1, while training.",
            ),
            f"step {point.step}",
        )
        for point, ref in shown
    ]  # fmt: skip
    lead = "The trigger and the class noun alone, from the same noise, at strength 1: when the character comes, and when it stiffens."
    return section("Samples over training", lead, f'<div class="strip">{"".join(figures)}</div>')


def drawn_prompt(run: RunRecord, template: str) -> str:
    """A prompt of the sweep as it was drawn."""
    return SweepPrompt(template, "scene").to_draw(run.trigger, run.class_noun)


def about(run: RunRecord, cell: CellMetrics, prompt: int, seed: int) -> str:
    """How a picture of the sweep was drawn: prompt, seed and settings."""
    return how_drawn(run, drawn_prompt(run, run.sweep.prompts[prompt]), cell, seed)


def how_drawn(run: RunRecord, words: str, cell: CellMetrics, seed: int) -> str:
    """The same of a picture that was told these words."""
    settings = run.config["profile"].get("sweep", {})
    names = {"steps": "denoising steps", "guidance": "guidance"}
    told = [f"{label} {settings[name]:g}" for name, label in names.items() if name in settings]
    at = (
        "base model, strength 0"
        if cell.strength == 0
        else f"checkpoint step {cell.checkpoint_step}, strength {cell.strength:g}"
    )
    return f"{words}. {', '.join([f'Seed {seed}', at, *told])}."


def first_drawn(run: RunRecord, cell: CellMetrics, prompt: int) -> tuple[Ref, int] | None:
    """A cell's picture of a prompt on the first seed that was drawn, and that seed; None when there is none."""
    for seed in run.sweep.seeds:
        if ref := run.sweep.images.get(picture_name(cell.checkpoint_step, cell.strength, prompt, seed)):
            return ref, seed
    return None


def numbers(cell: CellMetrics) -> str:
    """A cell's measures in one line."""
    best = cell.known
    return f"likeness gained {best.gain:.0%}, adherence kept {best.kept:.0%}, score {best.score:.2f}; {cell.images} pictures"


def _cell(run: RunRecord, cell: CellMetrics, prompt: int, words: str, width: int, pictures: Pictures) -> str:
    found = first_drawn(run, cell, prompt)
    shown = "<span class='none'>not drawn</span>"
    if found:
        ref, seed = found
        shown = pictures.image(ref, f"{_said(cell)}: {words}", width=width, about=about(run, cell, prompt, seed))
    return f"<td{_place(run, cell)} data-prompt='{prompt}'>{shown}</td>"


def _place(run: RunRecord, cell: CellMetrics) -> str:
    pick = run.sweep.pick
    picked = (cell.checkpoint_step, cell.strength) == (pick.checkpoint_step, pick.strength)
    step = cell.checkpoint_step if cell.strength else 0
    return f"{' class=pinned' if picked else ''} data-step='{step}' data-strength='{cell.strength:g}'"


def _said(cell: CellMetrics) -> str:
    return "base model" if cell.strength == 0 else f"step {cell.checkpoint_step} at {cell.strength:g}"


def _name(cell: CellMetrics) -> str:
    return "base model<br>0" if cell.strength == 0 else f"step {cell.checkpoint_step}<br>{cell.strength:g}"


EMPTY = (
    "data:image/webp;base64,UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA=="  # one pixel, until the script fills it in
)
