"""What Prefect's and MLflow's pages show of a stage: pictures, captions, tables, links."""

from __future__ import annotations

import io

from prefect.artifacts import create_table_artifact

from charengine.records import AdapterRecord, DatasetRecord, ExpansionRecord, Ref, RunRecord, SweepRecord
from charengine.run.workspace import Workspace
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
