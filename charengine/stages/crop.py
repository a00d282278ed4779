"""Cuts the three views out of a sheet: finds the figures, pads them to one training bucket, never cuts a figure."""

from __future__ import annotations

import io

from PIL import Image

from charengine.config import CropSettings
from charengine.errors import SheetRejected
from charengine.figures.alike import alike_figures
from charengine.figures.cut import View, cut_views, examine_sheet
from charengine.figures.measure import measure_sheet
from charengine.figures.overlay import draw_overlay, keep_picture
from charengine.pictures import png
from charengine.records import Ref, SheetRecord, ViewRecord, ViewsRecord
from charengine.stage import Given, Stage
from charengine.store import Store


def crop_views(sheet: SheetRecord, settings: CropSettings, store: Store) -> ViewsRecord:
    """Cut the front, side and back view out of a sheet.

    Raises:
        SheetRejected: a figure is missing, doubled or merged; carries an annotated picture and the box to blame.
    """
    image = Image.open(io.BytesIO(store.get(sheet.image)))
    backdrop, found = examine_sheet(image, settings.threshold)
    overlay = draw_overlay(image, found)
    if found.problem:
        given = sheet.source == "given"
        raise SheetRejected(found.problem, keep_picture(overlay, store), found.blamed, given=given)
    views = cut_views(backdrop, found.figures, settings)
    return ViewsRecord(
        views=tuple(_stored(view, store) for view in views),
        background=backdrop.colour,
        overlay=store.put(png(overlay), "views.png"),
        facts=measure_sheet(backdrop, found),
        warnings=found.warnings + alike_figures(image, found.figures) + _upscale_warning(views, settings),
        added=sheet.added,
    )


def _upscale_warning(views: tuple[View, ...], settings: CropSettings) -> tuple[str, ...]:
    scale = views[0].facts["scale"]
    if not settings.upscale or scale < 2.5:
        return ()
    return (f"the figures are small and were enlarged {scale:.1f} times: a larger sheet would train sharper pictures",)


def _stored(view: View, store: Store) -> ViewRecord:
    image: Ref = store.put(png(view.image), f"{view.name}.png")
    alpha: Ref = store.put(png(view.alpha), f"{view.name}_mask.png")
    return ViewRecord(
        view=view.name,
        image=image,
        alpha=alpha,
        width=view.image.width,
        height=view.image.height,
        source_box=view.source_box,
        scale=view.facts["scale"],
        facts=view.facts,
    )


def _work(given: Given, sheet: SheetRecord) -> ViewsRecord:
    return crop_views(sheet, given.settings, given.store)


CROP = Stage(name="crop", version=2, makes=ViewsRecord, work=_work, settings="crop")
