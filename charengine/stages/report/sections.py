"""The sections of the report, in reading order; each takes the run's record and gives HTML."""

from __future__ import annotations

import json

import yaml

from charengine.charts.canvas import SvgCanvas
from charengine.charts.plots import trade_off
from charengine.records import CellMetrics, ExtraView, RunRecord, SweepRecord, ViewRecord
from charengine.stages.report.cells import about, drawn_prompt, every_cell, first_drawn, sliders
from charengine.stages.report.parts import (
    Pictures,
    code,
    duration,
    figure,
    fold,
    items,
    loss_charts,
    loss_text,
    number,
    section,
    text,
    validation_charts,
    variety_text,
    wide,
)
from charengine.stages.report.take import copied_block
from charengine.store import Store

CONTACT_WIDTH = 2400  # pixels of the sweep grid in the page


def heading(run: RunRecord) -> str:
    """Who this is."""
    facts = [
        ("trigger", run.trigger),
        ("class noun", run.class_noun),
        ("profile", run.profile),
        ("seed", str(run.seed)),
        ("run time", duration(sum(stage.seconds for stage in run.stages))),
    ]
    chips = "".join(f"<li><b>{label}</b>{text(value)}</li>" for label, value in facts)
    return (
        f'<div class="eyebrow">Character Engine report</div><h1>{text(run.name)}</h1>'
        f'<div class="prompt">{text(run.prompt)}</div><ul class="facts">{chips}</ul>'
    )


def pick(run: RunRecord, pictures: Pictures) -> str:
    """The recommendation, its reasons, its numbers and what it draws."""
    chosen, base = run.sweep.pick, run.sweep.pick.baseline
    cell = chosen.metrics
    ceiling, known = base.ceiling, cell.known
    numbers = [
        number(
            f"{known.gain:.0%}",
            f"likeness: identity from the base model ({base.identity:.2f}) towards the sheet's own views"
            + (f" ({ceiling:.2f})" if ceiling is not None else "")
            + f"; this is {cell.identity:.2f}"
            + ("" if cell.shown is None or base.shown is None else _traits_seen(cell.shown, base)),
            known.gain,
        ),
        number(f"{known.kept:.0%}", "prompt adherence kept of the base model's", known.kept),
    ]
    if known.diversity_kept is not None:
        numbers.append(number(f"{known.diversity_kept:.0%}", "variety between seeds kept", known.diversity_kept))
    verdict = f"<p>{text(run.sweep.verdict.line)}</p>" if run.sweep.verdict else ""
    found = [(prompt, first_drawn(run, cell, prompt)) for prompt in range(len(run.sweep.prompts))]
    shown = [(prompt, *drawn) for prompt, drawn in found if drawn][:4]
    mosaic = "".join(
        pictures.image(
            ref,
            f"drawn at the pick: {drawn_prompt(run, run.sweep.prompts[prompt])}",
            about=about(run, cell, prompt, seed),
        )
        for prompt, ref, seed in shown
    )
    return (
        f'<div class="card pick"><div><h2>Use strength {chosen.strength:g} of step {chosen.checkpoint_step}</h2>'
        f"{verdict}{items(chosen.reasons, '')}<div class='numbers'>{''.join(numbers)}</div></div>"
        f"<div class='mosaic'>{mosaic}</div></div>"
    )


def warnings(run: RunRecord) -> str:
    """Everything any stage warned about, once."""
    records = (run, run.sheet, run.views, run.expansion, run.dataset, run.training, run.sweep)
    found = list(dict.fromkeys(line for record in records if record for line in record.warnings))
    return f'<div class="warn"><p>Look at these first</p>{items(found)}</div>' if found else ""


def usage(run: RunRecord) -> str:
    """How to use the recommended file."""
    name = run.sweep.recommended_adapter.name
    stem = name.removesuffix(".safetensors")
    prompt = f"{run.recommended_prompt}, walking through a forest"
    lead = (
        f"<code>{text(name)}</code> is rescaled: its strength 1.0 is strength {run.sweep.pick.strength:g} of step "
        f"{run.sweep.pick.checkpoint_step}. <code>{text(run.sweep.adapter.name)}</code> is the last checkpoint as trained. "
        f"Always write the trigger <code>{text(run.trigger)}</code>, and the class noun after it."
    )
    if run.config["profile"]["models"]["family"] == "embedded":
        lead += (
            " This one was trained on the embedded toy family and fits only that; an adapter from an "
            "<code>sdxl</code> profile is used in the same way, on any SDXL checkpoint."
        )
    comfy = f"models/loras/{name}\n\nLoad LoRA (model only)\n  strength_model 1.0\n\n{prompt}"
    webui = f"models/Lora/{name}\n\n<lora:{stem}:1> {prompt}"
    diffusers = f'pipe.load_lora_weights(\n  "{name}")\n\npipe("{prompt}")'
    uses = [("ComfyUI", comfy), ("AUTOMATIC1111, Forge", webui), ("diffusers", diffusers)]
    blocks = "".join(
        f"<div><h3>{title}</h3>{copied_block(f'use-{index}', text(words))}</div>"
        for index, (title, words) in enumerate(uses)
    )
    return section("Using it", lead, f'<div class="uses">{blocks}</div>')


def sheet_and_views(run: RunRecord, pictures: Pictures) -> str:
    """The sheet, where it was cut, and the three views with their captions."""
    captions = {caption.view: caption for caption in run.dataset.captions}
    origin = "drawn by the edit model" if run.sheet.source == "drawn" else "given by you"
    pair = ""
    if run.sheet.reference:
        origin = "drawn by the edit model from the reference"
        share = min(100, round(100 * pictures.shape(run.sheet.reference)))  # no taller than the sheet beside it
        given = figure(pictures.image(run.sheet.reference, "the reference", width=520), "The reference, given by you.")
        pair = f'<div style="max-width:{share}%">{given}</div>'
    pair += figure(
        pictures.image(run.sheet.image, "the sheet"), f"The sheet, {run.sheet.width}×{run.sheet.height}, {origin}."
    )
    if run.views.overlay:
        pair += figure(
            pictures.image(run.views.overlay, "where the views were cut"), "The figures that were found on it."
        )
    cards = []
    for view in run.views.views:
        caption = captions.get(view.view)
        words = f'<div class="caption">{text(caption.text)}</div>' if caption else ""
        if caption and caption.edited:
            words += '<div class="pruned">edited by hand</div>'
        if caption and caption.pruned:
            words += f'<div class="pruned">left to the trigger: <s>{text(", ".join(caption.pruned))}</s></div>'
        cards.append(figure(pictures.image(view.image, f"{view.view} view", width=520), _view_words(view)) + words)
    lead = (
        f"One picture, three views of the same character. {_learnt_from(run)} What a caption names "
        "stays changeable by prompt; traits struck out were left to the trigger, so that the word alone recalls them."
    )
    cells = "".join(f"<div>{card}</div>" for card in cards)
    prompt = fold("The full sheet prompt", code(run.sheet.prompt)) if run.sheet.prompt else ""
    return section("Sheet and views", lead, f'<div class="pair">{pair}</div><div class="views">{cells}</div>', prompt)


def more_views(run: RunRecord, pictures: Pictures) -> str:
    """What the edit model drew besides, and what became of each picture; nothing when no more views were asked for."""
    if run.expansion is None:
        return ""
    captions = {caption.view: caption.text for caption in run.dataset.captions}
    cells = "".join(
        f"<div>{figure(pictures.image(extra.image, extra.view, width=420), _extra_words(extra))}"
        + (f'<div class="caption">{text(captions[extra.view])}</div>' if extra.view in captions else "")
        + "</div>"
        for extra in sorted(run.expansion.views, key=lambda extra: extra.fate == "refused")
    )
    kept, held_out = len(run.expansion.kept), len(run.dataset.held_out)
    lead = (
        f"The edit model drew {len(run.expansion.views)} pictures from the views above; {kept} were kept, {held_out} of them "
        "held out: never trained on, but in the validation loss. A picture is kept if its identity, measured as in the sweep, "
        "is not below that of the sheet's own two least alike views (close-ups: of their heads). Unchanged: how much of the "
        "picture it was drawn from is still there, as a correlation of small pictures."
    )
    return section("More views", lead, f'<div class="strip" style="margin-top:18px">{cells}</div>')


def _extra_words(extra: ExtraView) -> str:
    compared = "below" if extra.fate == "refused" else "at least"
    return (
        f"{text(extra.view)}: <b>{extra.fate}</b>, identity {extra.identity:.3f}, {compared} {extra.threshold:.3f}; "
        f"unchanged {extra.copying:.2f}"
    )


def _learnt_from(run: RunRecord) -> str:
    count = len(run.dataset.trained_extras)
    if not count:
        return "They are all that the adapter learns from."
    return f"The adapter learns from them and from the {count} more {'view' if count == 1 else 'views'} below."


def training(run: RunRecord, store: Store) -> str:
    """Loss, learning rate and fixed-noise validation."""
    record = run.training
    last = record.checkpoints[-1]
    lead = (
        f"{record.steps} steps on {len(run.views.views) + len(run.dataset.trained_extras)} views; smoothed loss at the end {loss_text(last.loss)}. The shaded zones "
        "are the ones the origin's README gives. Their numbers depend on the loss weighting (theirs: min-SNR 5, running "
        "average) and on the model, so take them for orientation only. The validation loss below uses the same noise and "
        "timesteps every time: it can be compared from step to step, and with the base model (dashed)."
    )
    first = "".join(f"<figure>{chart}</figure>" for chart in loss_charts(record, store))
    second = "".join(f"<figure>{chart}</figure>" for chart in validation_charts(record))
    facts = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in record.facts.items() if value)
    note = f'<p class="lead" style="margin-top:14px;font-size:14px">{text(facts)}</p>' if facts else ""
    return section("Training", lead, f'<div class="charts">{first}{second}</div>', note)


def sweep(run: RunRecord, pictures: Pictures) -> str:
    """All cells: the trade-off, what strength 1 costs, the grid, the table."""
    record = run.sweep
    lead = (
        f"{len(record.cells)} cells: the base model as control, then checkpoints × strengths, each drawing the same "
        f"{len(record.prompts)} prompts with the same seeds, up to {len(record.seeds)} of them; "
        f"{sum(cell.images for cell in record.cells)} pictures in all. Identity is the likeness to the sheet's "
        "views by an image model, traits seen what a reader finds of the description, adherence the match of picture and prompt with the trigger replaced by the class noun."
    )
    chart = SvgCanvas(760, 440, "likeness against adherence")
    floor = run.config["profile"]["sweep"]["adherence_floor"]
    trade_off(chart, record.cells, record.pick.metrics, floor)
    grid = pictures.image(
        record.contact_sheet, "all cells and seeds, the pick outlined", width=CONTACT_WIDTH, natural=True
    )
    return section(
        "Finding the strength",
        lead,
        f'<div class="card" style="margin-top:18px">{chart.to_svg()}</div>',
        f"<p style='margin-top:18px'>{text(towards_full_strength(record))}</p>",
        _side_by_side(run, pictures),
        sliders(run),
        f"<h3>Every cell</h3>{every_cell(run, pictures)}",
        fold("All seeds", wide("every cell and seed", grid)),
        fold("All numbers", f"{wide('the numbers of every cell', cell_table(record))}{_what_the_numbers_mean()}"),
    )


def _traits_seen(shown: float, base: CellMetrics) -> str:
    """What was read of the described traits, beside the base model's and the sheet's."""
    own = "" if base.sheet_shown is None else f", the sheet's own views {base.sheet_shown:.0%}"
    return f"; described traits seen: {shown:.0%} (base model {base.shown:.0%}{own})"


def towards_full_strength(record: SweepRecord) -> str:
    """What identity and adherence do from strength 0 to the pick and on to strength 1 of the last checkpoint, as measured."""
    pick, base, full = record.pick.metrics, record.pick.baseline, record.pick.overbaked
    change = full.kept - pick.kept
    verb = "falls" if change < -0.005 else "rises" if change > 0.005 else "stays"
    return (
        f"Measured, not smoothed as above: from strength 0 to the pick, identity goes from {base.identity:.3f} to {pick.identity:.3f} "
        f"({pick.identity - base.identity:+.3f}) while adherence goes from {base.adherence:.3f} to {pick.adherence:.3f}. "
        f"At strength {full.strength:g} of the last checkpoint (step {full.checkpoint_step}) identity is "
        f"{full.identity:.3f} and adherence {verb} {'at' if verb == 'stays' else 'to'} {full.kept:.0%} of the "
        f"base model's by how much better the own prompt fits (pick: {pick.kept:.0%}); variety between seeds is {variety_text(full)} "
        f"(pick: {variety_text(pick)})."
    )


def cell_table(record: SweepRecord) -> str:
    """Every cell with its numbers; the pick marked."""
    heads = (
        "checkpoint", "strength", "identity", "traits seen", "gained", "adherence", "kept", "variety kept", "copying", "white leak",
        "score", "90 % bounds",
    )  # fmt: skip
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><tr>{head}</tr>{''.join(_row(cell, record) for cell in record.cells)}</table>"


def appendix(run: RunRecord) -> str:
    """Times, configuration and identifiers."""
    longest = max((stage.seconds for stage in run.stages), default=1.0) or 1.0
    rows = "".join(
        f"<tr><td>{text(stage.stage)}</td><td>{'from cache' if stage.cached else duration(stage.seconds)}</td>"
        f"<td style='width:55%'><div class='bar'><i style='width:{0 if stage.cached else 100 * stage.seconds / longest:.0f}%'></i></div></td>"
        f"<td>{'' if stage.peak_rss_gib is None else f'{stage.peak_rss_gib:.1f} GiB'}</td></tr>"
        for stage in run.stages
    )
    ids = {
        "dataset": run.dataset.digest,
        "adapter as trained (sha256)": run.sweep.adapter.sha256,
        "recommended adapter (sha256)": run.sweep.recommended_adapter.sha256,
        "MLflow run": run.mlflow_run_id,
        "MLflow training run": run.training.mlflow_run_id,
        "MLflow sweep run": run.sweep.mlflow_run_id,
        "Prefect flow run": run.prefect_flow_run_id,
    }
    listed = "\n".join(f"{name}: {value}" for name, value in ids.items() if value)
    config = yaml.safe_dump(json.loads(json.dumps(run.config)), sort_keys=False, allow_unicode=True)
    return section(
        "How it was made",
        "Everything needed to make it again.",
        f"<table>{rows}</table>",
        fold("Configuration", code(config)),
        fold("Identifiers", code(listed)),
    )


def _side_by_side(run: RunRecord, pictures: Pictures) -> str:
    """Base model, pick and strength 1 of the last checkpoint, prompt by prompt, on the first seed."""
    record = run.sweep
    columns = [
        ("base model", record.pick.baseline),
        (f"pick: strength {record.pick.strength:g}, step {record.pick.checkpoint_step}", record.pick.metrics),
        (
            f"strength {record.pick.overbaked.strength:g}, step {record.pick.overbaked.checkpoint_step}",
            record.pick.overbaked,
        ),
    ]
    heads = "".join(f"<th style='text-align:left'>{text(words)}</th>" for words, _ in columns)
    rows = []
    for index, template in enumerate(record.prompts):
        prompt, seed = drawn_prompt(run, template), record.seeds[0]
        found = [record.picture(cell, index) for _, cell in columns]
        cells = "".join(
            "<td>"
            + (pictures.image(ref, f"{words}: {prompt}", width=640, about=about(run, cell, index, seed)) if ref else "")
            + "</td>"
            for ref, (words, cell) in zip(found, columns, strict=True)
        )
        rows.append(f"<tr><td>{text(prompt)}</td>{cells}</tr>")
    return f"<h3>Same prompt, same noise</h3><table class='side'><tr><td></td>{heads}</tr>{''.join(rows)}</table>"


def _row(cell: CellMetrics, record: SweepRecord) -> str:
    picked = (cell.checkpoint_step, cell.strength) == (record.pick.checkpoint_step, record.pick.strength)
    bounds = "" if cell.score_low is None else f"{cell.score_low:.2f} to {cell.score_high:.2f}"
    values = [
        "base model" if cell.strength == 0 else f"step {cell.checkpoint_step}",
        f"{cell.strength:g}",
        f"{cell.identity:.3f}",
        "" if cell.shown is None else f"{cell.shown:.0%}",
        f"{cell.gain:.2f}",
        f"{cell.adherence:.3f}",
        f"{cell.kept:.0%}",
        variety_text(cell),
        f"{cell.copying:.2f}",
        "" if cell.background_leak is None else f"{cell.background_leak:+.2f}",
        f"{cell.score:.2f}",
        bounds,
    ]
    return f"<tr{' class=picked' if picked else ''}>" + "".join(f"<td>{text(value)}</td>" for value in values) + "</tr>"


def _what_the_numbers_mean() -> str:
    return items(
        [
            "identity: cosine to the view of the sheet that the prompt asks for (else the most similar one), pasted on the "
            "picture's own border colour",
            "traits seen: share of the traits in the description that a reader sees, of those that a picture can tell",
            "gained: likeness, 0 = base model, 1 = the sheet's own views; seven tenths traits seen, three tenths identity, and identity "
            "alone where no traits were read",
            "adherence: CLIP cosine of picture and prompt with the class noun for the trigger; kept: how much better a "
            "picture fits its own prompt than the other prompts, as a share of the base model's (a picture that fits all "
            "prompts alike keeps nothing)",
            "variety kept: how different the seeds of one scene prompt look at 24×24 pixels, share of the base model's; it "
            "falls somewhat by itself, because every seed now shows the same character",
            "copying: correlation of scene pictures with the training view they resemble most, at 24×24 pixels",
            "white leak: how much more of the scenes' border has the sheet's background colour than at strength 0",
            "score: harmonic mean of likeness gained and adherence kept, each 0 to 1, of the cell's own pictures; bounds: of the "
            "score smoothed over strength and step, from the pictures of all cells",
        ]
    )


def _view_words(view: ViewRecord) -> str:
    return f"{view.view}, {view.width}×{view.height}"
