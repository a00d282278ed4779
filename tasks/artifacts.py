"""What Prefect's and MLflow's pages show of a stage: pictures, captions, tables, links."""

from __future__ import annotations

import io

from prefect.artifacts import create_table_artifact

from charengine.records import AdapterRecord, DatasetRecord, ExpansionRecord, Ref, RunRecord, SweepRecord, Words
from charengine.run.workspace import Workspace
from charengine.stages.report.cast import as_text
from tasks.page import current_page


def show_picture(workspace: Workspace, name: str, ref: Ref) -> None:
    """A picture in MLflow, and from there in Prefect, which hosts none itself."""
    from PIL import Image

    workspace.tracker.log_image(Image.open(io.BytesIO(workspace.store.get(ref))).convert("RGB"), name)
    url = workspace.tracker.picture_url(f"images/{name}.png")
    page = current_page()
    if url and page:
        page.picture(name, url)


def show_expansion(workspace: Workspace, expansion: ExpansionRecord) -> None:
    """The kept pictures, and every attempt as a table."""
    for extra in expansion.kept:
        show_picture(workspace, extra.view, extra.image)
    rows = [
        {
            "view": extra.view,
            "seed": extra.seed,
            "identity": round(extra.identity, 3),
            "at least": round(extra.threshold, 3),
            "fate": extra.fate,
        }
        for extra in expansion.views
    ]
    create_table_artifact(table=rows, key=f"{workspace.slug}-more-views", description="more views, kept and refused")


def show_captions(workspace: Workspace, dataset: DatasetRecord) -> None:
    """The captions as a table."""
    rows = [
        {"view": caption.view, "caption": caption.text, "bound to the trigger": ", ".join(caption.pruned)}
        for caption in dataset.captions
    ]
    create_table_artifact(table=rows, key=f"{workspace.slug}-captions", description="captions of the views")
    text = "".join(f"{caption.view}: {caption.text}\n" for caption in dataset.captions)
    workspace.tracker.log_bytes(text.encode(), "captions.txt")


def show_training(workspace: Workspace, training: AdapterRecord) -> None:
    """The checkpoints as a table."""
    rows = [
        {
            "step": point.step,
            "loss": None if point.loss is None else round(point.loss, 4),
            "validation loss": point.validation_loss,
        }
        for point in training.checkpoints
    ]
    create_table_artifact(table=rows, key=f"{workspace.slug}-checkpoints", description="checkpoints")


def show_sweep(workspace: Workspace, sweep: SweepRecord) -> None:
    """The cells as a table, and the contact sheet."""
    show_picture(workspace, "contact-sheet", sweep.contact_sheet)
    if sweep.plot and sweep.plot.media_type == "image/png":
        show_picture(workspace, "trade-off", sweep.plot)
    rows = [
        {
            "step": cell.checkpoint_step,
            "strength": cell.strength,
            "identity": round(cell.identity, 3),
            "adherence": round(cell.adherence, 3),
            "diversity": round(cell.diversity, 3) if cell.diversity else None,  # None: a single seed
            "copying": round(cell.copying, 3),
            "score": round(cell.score, 3),
        }
        for cell in sweep.cells
    ]
    create_table_artifact(table=rows, key=f"{workspace.slug}-sweep", description="every checkpoint at every strength")


def show_run(workspace: Workspace, run: RunRecord) -> None:
    """The pick, its reasons and the warnings, on the character's page."""
    page = current_page()
    if page:
        page.done(run)


def summary(run: RunRecord) -> str:
    """The run in Markdown, with the same numbers as the report."""
    pick = run.sweep.pick
    lines = [
        f"# {as_text(run.name)}",
        f"> {as_text(run.prompt)}",
        "",
        f"Begin a prompt with **{as_text(run.recommended_prompt)}**.",
        "",
        f"Trigger **{run.trigger}** ({as_text(run.class_noun)}). Use step **{pick.checkpoint_step}** at strength **{pick.strength:g}**.",
        "",
        *(f"- {as_text(reason)}" for reason in pick.reasons),
        *([f"- **{as_text(run.sweep.verdict.line)}**"] if run.sweep.verdict else []),
        "",
        "| | identity | adherence | diversity | copying |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {label} | {cell.identity:.3f} | {cell.adherence:.3f} | {cell.diversity:.3f} | {cell.copying:.3f} |"
            for label, cell in (
                ("without the adapter", pick.baseline),
                ("the pick", pick.metrics),
                ("last checkpoint, strength 1", pick.overbaked),
            )
        ),
        "",
        *_traits(run.sweep.words),
        *(f"- Warning: {as_text(warning)}" for warning in run.warnings),
    ]
    return "\n".join(lines)


def _traits(words: Words | None) -> list[str]:
    """How often the trigger alone shows each trait, as a table; nothing when there are none."""
    if words is None or not words.shares:
        return []
    rows = [f"| {as_text(trait)} | {share:.0%} |" for trait, share in words.shares.items()]
    return [f"| trait | shown in {words.pictures} pictures by the trigger alone |", "| --- | --- |", *rows, ""]
