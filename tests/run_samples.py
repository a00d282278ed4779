"""A made-up run with small drawn pictures, for tests of the report and of comparisons."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from charengine.charts.canvas import PilCanvas
from charengine.charts.plots import contact_sheet, trade_off
from charengine.config import SweepSettings
from charengine.records import (
    VIEWS,
    AdapterRecord,
    CaptionRecord,
    CellMetrics,
    CheckpointRecord,
    DatasetRecord,
    ExtraView,
    LossPoint,
    PickRecord,
    Ref,
    RunRecord,
    SheetRecord,
    StageFact,
    SweepRecord,
    ViewRecord,
    ViewsRecord,
    Words,
    picture_name,
)
from charengine.store import Store

WHITE = (255, 255, 255)
PROMPTS = ("{subject}, front view, plain white background", "{subject}, running, desert", "{subject}, waving, city")
STRENGTHS = (0.4, 0.6, 0.8, 1.0)
STEPS = (100, 200, 300)


def doll(size: tuple[int, int] = (96, 192), coat: tuple[int, int, int] = (40, 90, 180), ground=WHITE) -> Image.Image:
    """A head, a coat and two legs on a plain ground."""
    image = Image.new("RGB", size, ground)
    draw, (w, h) = ImageDraw.Draw(image), size
    draw.ellipse((w * 0.38, h * 0.06, w * 0.62, h * 0.2), fill=(120, 150, 80))
    draw.rectangle((w * 0.3, h * 0.2, w * 0.7, h * 0.62), fill=coat)
    draw.rectangle((w * 0.34, h * 0.62, w * 0.47, h * 0.94), fill=(60, 40, 30))
    draw.rectangle((w * 0.53, h * 0.62, w * 0.66, h * 0.94), fill=(60, 40, 30))
    return image


def doll_mask(size: tuple[int, int] = (96, 192)) -> Image.Image:
    """Where `doll` is not ground."""
    return doll(size).convert("L").point([255 * (level < 250) for level in range(256)])


def write_views(folder: Path, caption: str) -> Path:
    """Three dolls as a user has them: front, side and back with captions, in which `{view}` is the view."""
    folder.mkdir(parents=True, exist_ok=True)
    for view, coat in zip(VIEWS, ((40, 90, 180), (180, 60, 40), (40, 170, 60)), strict=True):
        doll(coat=coat).save(folder / f"{view}.png")
        (folder / f"{view}.txt").write_text(caption.format(view=view), encoding="utf-8")
    return folder


def png(image: Image.Image) -> bytes:
    """Encoded without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sample_dataset(store: Store, trigger: str = "zorgax", class_noun: str = "orc") -> DatasetRecord:
    """Three views in three coats and their captions."""
    coats = ((40, 90, 180), (40, 80, 160), (30, 70, 150))
    views = tuple(
        ViewRecord(
            view=view,
            image=store.put(png(doll(coat=coat)), f"{view}.png"),
            alpha=store.put(png(doll_mask()), f"{view}-alpha.png"),
            width=96,
            height=192,
            source_box=(index * 100, 0, index * 100 + 96, 192),
        )
        for index, (view, coat) in enumerate(zip(VIEWS, coats, strict=True))
    )
    overlay = store.put(png(doll((300, 192))), "overlay.png")
    captions = tuple(
        CaptionRecord(
            view=view, text=f"{trigger}, {class_noun}, {view} view, full body", pruned=("blue coat", "green skin")
        )
        for view in VIEWS
    )
    digest = hashlib.sha256(f"{trigger} {class_noun}".encode()).hexdigest()
    found = ViewsRecord(views=views, background=WHITE, overlay=overlay, warnings=("the side figure touches the edge",))
    return DatasetRecord(trigger=trigger, class_noun=class_noun, views=found, captions=captions, digest=digest)


def sample_extra(picture: Ref, **changed: Any) -> ExtraView:
    """One further view, refused for its identity unless something else is said."""
    values: dict[str, Any] = {"view": "pose-1", "kind": "pose", "instruction": "walking", "tags": (), "seed": 9}
    values |= {"fate": "refused", "identity": 0.61234, "threshold": 0.7, "copying": 0.1, "background": None}
    values |= {"image": picture, "alpha": picture, "width": 64, "height": 64}
    return ExtraView(**(values | changed))


def sample_cell(step: int, strength: float) -> CellMetrics:
    """Identity grows with strength and steps; adherence is lost, faster for later checkpoints."""
    push = strength * (0.6 + 0.5 * step / 300)
    gain = 1 - math.exp(-2.2 * push)
    kept = 1 - 0.22 * push**2.4
    score = 2 * gain * kept / max(gain + kept, 1e-6)
    variety = 1 - 0.4 * push**2
    extra = {"background_leak": 0.3 * push**3, "score_low": score - 0.05, "score_high": score + 0.04}
    return CellMetrics(
        checkpoint_step=step,
        strength=strength,
        identity=0.42 + 0.38 * gain,
        adherence=0.31 * kept,
        diversity=0.2 * variety,
        copying=0.2 + 0.4 * push,
        score=score,
        images=len(PROMPTS) * 2,
        gain=gain,
        kept=kept,
        diversity_kept=variety,
        **(extra if strength else {"ceiling": 0.8, "margin": 0.15}),
    )


def with_words(run: RunRecord, store: Store) -> RunRecord:
    """The run with what its trigger brings: the coat always, boots never, the hook in a third of twelve pictures."""
    scenes = ("{subject}, facing the viewer, meadow", "{subject}, facing the viewer, desert")
    drawn = tuple(store.put(png(doll((64, 64), coat=(10 * n, 90, 180))), f"scene-{n}.png") for n in (1, 2))
    base = tuple(store.put(png(doll((64, 64), coat=(200, 10 * n, 40))), f"scene-base-{n}.png") for n in (1, 2))
    words = Words(
        shares={"blue coat": 1.0, "black boots": 0.0, "hook for a right hand": 0.33},
        pictures=12,
        said=("black boots", "hook for a right hand"),
        recommended_prompt="zorgax orc, black boots, hook for a right hand",
        scenes=scenes,
        drawn=drawn,
        base=base,
        shown=0.83,
        base_shown=0.5,
    )
    return run.model_copy(update={"sweep": run.sweep.model_copy(update={"words": words})})


def sample_run(
    store: Store, name: str = "Zorga", drawn: Callable[[int, float, int, int], Image.Image] | None = None
) -> RunRecord:
    """A finished run; `drawn(step, strength, prompt, seed)` may replace the sweep's pictures."""
    dataset = sample_dataset(store)
    pictures = drawn or (
        lambda step, strength, prompt, seed: doll((64, 64), coat=(40 + 40 * prompt, 90, int(180 * strength)))
    )
    sheet = SheetRecord(
        image=dataset.views.overlay, width=300, height=192, prompt="three views of <an orc>", source="drawn", seed=42
    )
    sweep = _sample_sweep(store, pictures)
    adapters = [CheckpointRecord(step=step, adapter=sweep.adapter, loss=0.2 - step / 2500) for step in STEPS]
    thirds = {"low": 0.03, "mid": 0.1, "high": 0.3}
    points = tuple(
        LossPoint(
            step=step,
            loss=0.12 * math.exp(-step / 200),
            by_view={view: (0.1 + 0.02 * i) * math.exp(-step / 200) for i, view in enumerate(VIEWS)},
            by_third={third: level * math.exp(-step / 250) for third, level in thirds.items()},
        )
        for step in range(50, 301, 50)
    )
    rows = [
        f"{s},{0.19 * math.exp(-s / 160) + 0.03 + 0.02 * math.sin(s * 7):.5f},{0.19 * math.exp(-s / 160) + 0.03:.5f},0.001"
        for s in range(1, 301)
    ]
    training = AdapterRecord(
        checkpoints=tuple(adapters),
        steps=300,
        trigger="zorgax",
        class_noun="orc",
        dataset_digest=dataset.digest,
        curve=store.put(("step,loss,smoothed,learning_rate\n" + "\n".join(rows)).encode(), "loss.csv"),
        validation=points,
        base_validation=LossPoint(step=0, loss=0.13, by_view=dict.fromkeys(VIEWS, 0.12), by_third=thirds),
        facts={"step_ms": 210.0, "peak_gib": 1.4},
    )
    seconds = {"sheet": 31.0, "crop": 0.4, "caption": 6.1, "train": 92.0, "sweep": 75.5, "report": 0.8}
    return RunRecord(
        name=name,
        prompt="an orc in a blue coat & <b>boots</b>",
        trigger="zorgax",
        class_noun="orc",
        seed=42,
        profile="embedded",
        config={
            "character": {"name": "Grisha", "seed": 42},
            "profile": {"models": {"family": "embedded"}, "train": {"steps": 300}, "sweep": {"adherence_floor": 0.9}},
        },
        sheet=sheet,
        views=dataset.views,
        dataset=dataset,
        training=training,
        sweep=sweep,
        stages=tuple(
            StageFact(stage=k, key="0" * 64, cached=k == "sheet", seconds=s, peak_rss_gib=2.1)
            for k, s in seconds.items()
        ),
        mlflow_run_id="abc123",
        warnings=("the word 'cutlass' is unknown to the embedded family",),
    )


def _sample_sweep(store: Store, drawn: Callable[[int, float, int, int], Image.Image]) -> SweepRecord:
    cells = [sample_cell(0, 0.0), *(sample_cell(step, strength) for step in STEPS for strength in STRENGTHS)]
    passing = [cell for cell in cells if cell.strength and cell.kept >= 0.9]
    picked = max(passing, key=lambda cell: cell.score)
    images: dict[str, Ref] = {}
    columns = []
    for cell in cells:
        row = {
            (p, s): drawn(cell.checkpoint_step, cell.strength, p, 42 + s) for p in range(len(PROMPTS)) for s in (0, 1)
        }
        columns.append((f"step {cell.checkpoint_step}\n{cell.strength:g}", row))
        for (p, s), image in row.items():
            images[picture_name(cell.checkpoint_step, cell.strength, p, 42 + s)] = store.put(png(image), "cell.png")
    grid = contact_sheet(columns, PROMPTS, 2, cells.index(picked))
    canvas = PilCanvas(640, 420)
    trade_off(canvas, cells, picked, SweepSettings().adherence_floor)
    return SweepRecord(
        cells=tuple(cells),
        prompts=PROMPTS,
        seeds=(42, 43),
        contact_sheet=store.put(png(grid), "contact-sheet.png"),
        plot=store.put(png(canvas.image), "trade-off.png"),
        images=images,
        pick=PickRecord(
            checkpoint_step=picked.checkpoint_step,
            strength=picked.strength,
            reasons=("strength 0.6 of step 300: identity 0.77 of the way", "strength 1 of step 300: adherence 71%"),
            metrics=picked,
            baseline=cells[0],
            overbaked=cells[-1],
        ),
        adapter=store.put(b"adapter", "zorgax.safetensors"),
        recommended_adapter=store.put(b"recommended", "zorgax_recommended.safetensors"),
    )


def plain_cell(step: int, strength: float, tenth: int) -> CellMetrics:
    """A cell no two numbers of which are alike: with tenth 2, identity is 0.21, adherence 0.22, … as listed here."""
    one = tenth / 10
    return CellMetrics(
        checkpoint_step=step,
        strength=strength,
        identity=round(one + 0.01, 2),
        adherence=round(one + 0.02, 2),
        diversity=round(one + 0.03, 2),
        copying=round(one + 0.04, 2),
        score=round(one + 0.05, 2),
        images=6,
        gain=round(one + 0.06, 2),
        kept=round(one + 0.07, 2),
        diversity_kept=round(one + 0.08, 2),
        background_leak=round(one + 0.09, 2),
        score_low=round(one, 2),
        score_high=round(one + 0.1, 2),
    )


def told_apart(run: RunRecord) -> RunRecord:
    """The run with a pick whose numbers cannot be taken for each other: 0.1x base model, 0.2x pick, 0.3x overbaked."""
    base, picked, overbaked = plain_cell(0, 0.0, 1), plain_cell(200, 0.6, 2), plain_cell(300, 1.0, 3)
    pick = PickRecord(
        checkpoint_step=200,
        strength=0.6,
        reasons=("it keeps both",),
        metrics=picked,
        baseline=base,
        overbaked=overbaked,
    )
    return run.model_copy(
        update={"sweep": run.sweep.model_copy(update={"cells": (base, picked, overbaked), "pick": pick})}
    )
