"""One sample run, whose keys the tests look at, and what each of its stages is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from charengine.config import Character, Profile
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
    Record,
    Ref,
    RunRecord,
    SheetRecord,
    StageFact,
    SweepRecord,
    ViewRecord,
    ViewsRecord,
)
from charengine.run.keys import stage_key
from charengine.stage import Stage
from charengine.stages.caption import CAPTION
from charengine.stages.crop import CROP
from charengine.stages.expand.stage import EXPAND
from charengine.stages.report.page import REPORT
from charengine.stages.sheet.draw import DRAWN_SHEET
from charengine.stages.sheet.reference import LOOK
from charengine.stages.sweep.stage import SWEEP
from charengine.stages.train.stage import TRAIN


def ref(letter: str) -> Ref:
    return Ref(sha256=letter * 64, size=1, media_type="image/png", name=f"{letter}.png")


def extra(number: int) -> ExtraView:
    return ExtraView(
        view=f"pose-{number}",
        kind="pose",
        instruction="walking",
        tags=("front view", "full body"),
        seed=9,
        fate="trained",
        identity=0.9,
        threshold=0.8,
        copying=0.1,
        image=ref("d"),
        alpha=ref("4"),
        width=64,
        height=64,
        background=None,
    )


def cell(step: int) -> CellMetrics:
    return CellMetrics(
        checkpoint_step=step,
        strength=0.6,
        identity=0.7,
        adherence=0.3,
        diversity=0.2,
        copying=0.1,
        score=0.5,
        images=6,
        gain=0.5,
        kept=0.9,
        diversity_kept=0.8,
        mlflow_run_id="cell",
    )


GRISHA = Character(name="Grisha", prompt="an orc woman", class_noun="orc woman", trigger="griqul", seed=42)
PROFILE = Profile(name="sample")
MODELS: Any = SimpleNamespace(
    **{
        name: SimpleNamespace(fingerprint=f"{name}-1", sampling_fingerprint=f"{name}-1")
        for name in ("editor", "captioner", "diffusion", "embedder", "reader", "onlooker")
    }
)
SHEET_RECORD = SheetRecord(image=ref("a"), width=300, height=192, prompt="three views", source="drawn", seed=42)
VIEWS_RECORD = ViewsRecord(
    views=tuple(
        ViewRecord(view=view, image=ref(image), alpha=ref(alpha), width=64, height=128, source_box=(0, 0, 32, 64))
        for view, image, alpha in zip(VIEWS, "abc", "123", strict=True)
    ),
    background=(255, 255, 255),
    overlay=ref("f"),
)
DATASET = DatasetRecord(
    trigger="griqul",
    class_noun="orc woman",
    views=VIEWS_RECORD,
    captions=tuple(
        CaptionRecord(view=view, text=f"griqul, orc woman, {view}") for view in (*VIEWS, "pose-1", "pose-2")
    ),
    digest="d" * 64,
    extras=(extra(1), extra(2)),
)
POINT = LossPoint(step=1, loss=0.2, by_view={"front": 0.2}, by_third={"low": 0.1})
TRAINING = AdapterRecord(
    checkpoints=(
        CheckpointRecord(step=1, adapter=ref("a"), loss=0.2, validation_loss=0.3, samples=(ref("b"),)),
        CheckpointRecord(step=2, adapter=ref("c"), loss=0.1),
    ),
    steps=2,
    trigger="griqul",
    class_noun="orc woman",
    dataset_digest="d" * 64,
    curve=ref("e"),
    validation=(POINT,),
    base_validation=POINT,
)
SWEPT = SweepRecord(
    cells=(cell(0), cell(2)),
    prompts=("{subject} waving",),
    seeds=(42,),
    contact_sheet=ref("a"),
    plot=ref("b"),
    images={"0/0/0/42": ref("c")},
    pick=PickRecord(
        checkpoint_step=2, strength=0.6, reasons=("it is",), metrics=cell(2), baseline=cell(0), overbaked=cell(2)
    ),
    adapter=ref("d"),
    recommended_adapter=ref("e"),
)
RUN = RunRecord(
    name="Grisha",
    prompt="an orc woman",
    trigger="griqul",
    class_noun="orc woman",
    seed=42,
    profile="sample",
    config={"profile": {"train": {"steps": 2}}},
    sheet=SHEET_RECORD,
    dataset=DATASET,
    training=TRAINING,
    sweep=SWEPT,
    stages=(StageFact(stage="crop", key="crop-1", cached=False, seconds=1.0),),
    mlflow_run_id="run",
    prefect_flow_run_id="flow",
)
INPUTS: dict[str, tuple[Stage[Any], tuple[Record, ...]]] = {
    "reference": (LOOK, (ref("a"),)),
    "sheet": (DRAWN_SHEET, ()),
    "crop": (CROP, (SHEET_RECORD,)),
    "expand": (EXPAND, (VIEWS_RECORD,)),
    "caption": (CAPTION, (VIEWS_RECORD, extra(1), extra(2))),
    "train": (TRAIN, (DATASET,)),
    "sweep": (SWEEP, (TRAINING, DATASET)),
    "report": (REPORT, (RUN,)),
}


def key(
    name: str, *inputs: Record, character: Character = GRISHA, profile: Profile = PROFILE, models: Any = MODELS
) -> str:
    """The key of a stage of the sample run, with what is given instead of the sample's."""
    stage, own = INPUTS[name]
    return stage_key(stage, character, profile, models, inputs or own)


def made_again(**changed: Any) -> set[str]:
    """The stages whose key is another one."""
    return {name for name in INPUTS if key(name, **changed) != key(name)}
