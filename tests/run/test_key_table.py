"""What makes a stage run again: a table of everything a user can change, against every stage.

A change that a key does not know hands a user somebody else's sheet; one that a key knows for nothing costs a training. So each
field of the character, each setting, each model and each part of an input is changed alone, and the tables below say which
stages are made again for it. A new setting or field of a record has to be put into them.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from charengine.config import Character, Profile
from charengine.profiles.loading import setting_names
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
from charengine.run.keys import stage_key, stage_recipe
from charengine.stage import Stage
from charengine.stages.caption import CAPTION
from charengine.stages.crop import CROP
from charengine.stages.expand.stage import EXPAND
from charengine.stages.report.page import REPORT
from charengine.stages.sheet.draw import DRAWN_SHEET
from charengine.stages.sheet.given import GIVEN_SHEET
from charengine.stages.sheet.reference import LOOK, ReferenceRecord
from charengine.stages.sweep.stage import SWEEP
from charengine.stages.train.stage import TRAIN

# --- one sample run ---------------------------------------------------------------------------------------------------


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


# --- the sample's keys ------------------------------------------------------------------------------------------------


def test_the_sample_runs_keys_are_these() -> None:
    """Others mean that everybody's results are made again, once: then that has to be worth it, and told."""
    assert {name: key(name) for name in INPUTS} == {
        "reference": "reference-98abd409f97c822a4e8040e3589ad08063aa4ca6",
        "sheet": "sheet-30281d3333e26508e475d263858d3c313c96b959",
        "crop": "crop-e9c2d56de3a65aeccfdec94b8325092650cfc72f",
        "expand": "expand-fbc960f1acecc13401121828c3cec7de671b4338",
        "caption": "caption-f0797ae3e408d12aa7197e565467d2e835b2bca4",
        "train": "train-3856b73d80dd93c50bd011dccb44d277d1aa73d4",
        "sweep": "sweep-2b25448db4ad8af24203a354b78f9ba761b88677",
        "report": "report-97a2c6e47eba7b4b47fef135840de8645d079da2",
    }


def test_a_given_sheet_counts_by_its_pixels_alone(tmp_path: Path) -> None:
    for name, content in (("one.png", b"pixels"), ("two.png", b"pixels"), ("three.png", b"others")):
        (tmp_path / name).write_bytes(content)

    def given(file: str, character: Character = GRISHA, profile: Profile = PROFILE) -> str:
        return stage_key(GIVEN_SHEET, character, profile, SimpleNamespace(), [tmp_path / file])  # type: ignore[arg-type]

    assert given("one.png") == "sheet-73e3fc9f0ecaf97f164ee5fd4966543149d0d38b"
    other = GRISHA.model_copy(update={"prompt": "a robot", "seed": 7})
    assert given("two.png", other, changed_profile("sheet.steps", 17)) == given("one.png")
    assert given("three.png") != given("one.png")


# --- who, and with which models ---------------------------------------------------------------------------------------

CHARACTER: dict[str, tuple[Any, set[str]]] = {
    "name": ("Bea", {"train", "sweep"}),  # an MLflow run of its own
    "prompt": (
        "an orc man",
        {"sheet", "expand", "caption", "train", "sweep"},
    ),  # its traits are taught, and looked for in the pictures
    "class_noun": ("orc", {"sheet", "expand", "caption"}),
    "trigger": ("beaxi", {"caption"}),
    "seed": (43, {"sheet", "expand", "train", "sweep"}),
}
USED_BY = {
    "editor": {"sheet", "expand"},
    "captioner": {"caption"},
    "diffusion": {"train", "sweep"},
    "embedder": {"expand", "sweep"},
    "reader": {"sweep"},
    "onlooker": {"reference"},
}


@pytest.mark.parametrize("field", CHARACTER)
def test_a_field_of_the_character_makes_the_stages_again_that_read_it(field: str) -> None:
    value, wanted = CHARACTER[field]
    assert made_again(character=GRISHA.model_copy(update={field: value})) == wanted


@pytest.mark.parametrize("model", USED_BY)
def test_another_model_makes_the_stages_again_that_use_it(model: str) -> None:
    another = SimpleNamespace(fingerprint="another", sampling_fingerprint="another")
    other = SimpleNamespace(**{**vars(MODELS), model: another})
    assert made_again(models=other) == USED_BY[model]


def test_another_way_to_prompt_and_sample_the_same_weights_is_swept_again_and_trains_nothing() -> None:
    other = SimpleNamespace(fingerprint="diffusion-1", sampling_fingerprint="another")
    models = SimpleNamespace(**{**vars(MODELS), "diffusion": other})
    assert made_again(models=models) == {"sweep"}
    teaching = changed_profile("train.distill", 8)
    assert key("train", profile=teaching, models=models) != key("train", profile=teaching)


@pytest.mark.parametrize("setting", ["ask_model", "rewrite"])
def test_a_sheet_depends_on_the_captioner_where_it_is_asked(setting: str) -> None:
    other = SimpleNamespace(**{**vars(MODELS), "captioner": SimpleNamespace(fingerprint="another")})
    asking = changed_profile(f"sheet.{setting}", True)
    assert key("sheet", profile=asking, models=other) != key("sheet", profile=asking)


def test_the_tables_name_every_field_of_the_character_and_every_model() -> None:
    from charengine.models import Models

    assert set(CHARACTER) == set(Character.model_fields)
    assert set(USED_BY) == set(Models.__dataclass_fields__)


# --- settings ---------------------------------------------------------------------------------------------------------

OTHER_VALUES: dict[str, Any] = {
    "name": "another",
    "description": "another",
    "budget_gib": 13.0,
    "retrain": 2,
    "models.family": "sdxl",
    "models.edit": "x",
    "models.edit_config": "x",
    "models.vl": "x",
    "models.vae": "x",
    "models.lightning": "x",
    "models.edit_loras": ("x",),
    "models.prediction_type": "v_prediction",
    "models.zero_terminal_snr": True,
    "models.prompt_prefix": "masterpiece",
    "models.negative_prompt": "blurry",
    "models.sdxl": "x",
    "models.sdxl_config": "x",
    "models.sdxl_vae": "x",
    "models.tagger": "x",
    "models.clip": "x",
    "models.dino": "x",
    "models.folders": ("x",),
    "models.allow_downloads": True,
    "models.device": "cpu",
    "models.cuda_graphs": "off",
    "sheet.width": 400,
    "sheet.height": 400,
    "sheet.steps": 17,
    "sheet.guidance": 3.5,
    "sheet.guided_above": 0.5,
    "sheet.negative_prompt": "blurry",
    "sheet.conditioning": "vision",
    "sheet.candidates": 3,
    "sheet.draft_steps": 4,
    "sheet.gate": False,
    "sheet.ask_model": True,
    "sheet.repair": True,
    "sheet.rewrite": True,
    "crop.margin": 0.06,
    "crop.threshold": 25,
    "crop.bucket_area": 128 * 320,
    "crop.bucket_step": 32,
    "crop.upscale": False,
    "expand.count": 4,
    "expand.kinds": ("pose",),
    "expand.candidates": 3,
    "expand.margin": 0.1,
    "expand.holdout": 0.3,
    "expand.steps": 17,
    "expand.guidance": 3.5,
    "expand.guided_above": 0.5,
    "expand.negative_prompt": "blurry",
    "caption.captioner": "wd14",
    "caption.prune": False,
    "caption.keep": ("smile",),
    "caption.drop": ("smile",),
    "caption.threshold": 0.4,
    "caption.max_tags": 41,
    "train.algorithm": "lora",
    "train.rank": 17,
    "train.alpha": 9.0,
    "train.conv_rank": 9,
    "train.conv_alpha": 5.0,
    "train.dropout": 0.1,
    "train.steps": 301,
    "train.batch": 1,
    "train.accumulate": 2,
    "train.optimizer": "adamw",
    "train.learning_rate": 2e-3,
    "train.schedule": "cosine",
    "train.warmup": 1,
    "train.weight_decay": 0.1,
    "train.max_grad_norm": 2.0,
    "train.min_snr_gamma": 0.0,
    "train.noise_offset": 0.1,
    "train.precision": "fp32",
    "train.flips": "off",
    "train.caption_dropout": 0.1,
    "train.square": 64,
    "train.distill": 8,
    "train.distill_batch": 2,
    "train.distill_size": 512,
    "train.distill_emphasis": 0.5,
    "train.masked_loss": 0.5,
    "train.random_backgrounds": 0.5,
    "train.resample_latents": False,
    "train.regularisation": "classes",  # a folder in the test
    "train.regularisation_weight": 0.5,
    "train.continue_from": "classes/a.png",  # a file in the test
    "train.checkpoints": 5,
    "train.save_state_every": 51,
    "train.validate_every": 51,
    "train.sample_every": 1,
    "train.early_stop": 1,
    "train.budget_gib": 11.0,
    "train.checkpointing": "full",
    "train.fp8_base": True,
    "train.cuda_graph": "off",
    "train.deterministic": True,
    "train.compile": True,
    "sweep.design": "grid",
    "sweep.pictures": 57,
    "sweep.strengths": (0.5,),
    "sweep.checkpoints": 4,
    "sweep.prompts": ("{subject} waving",),
    "sweep.prompt_set": "full",
    "sweep.seeds": 3,
    "sweep.width": 320,
    "sweep.height": 320,
    "sweep.steps": 13,
    "sweep.guidance": 4.5,
    "sweep.solver": "dpm++",
    "sweep.guided_above": 0.3,
    "sweep.guided_below": 5.0,
    "sweep.merge": False,
    "sweep.traits": "end",
    "sweep.adherence_floor": 0.8,
    "sweep.diversity_floor": 0.4,
}
NOT_OF_ITS_SECTION = {
    "name": set[str](),
    "description": set[str](),
    "budget_gib": {"train"},  # what training must fit in, too
    "retrain": set[str](),  # each training has settings of its own
}


def changed_profile(setting: str, value: Any) -> Profile:
    section, _, name = setting.rpartition(".")
    return Profile.model_validate(
        {"name": "sample", section: {name: value}} if section else {"name": "sample", name: value}
    )


@pytest.fixture
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder and the file that settings of the table name, where one stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes/a.png").write_bytes(b"a woman")


@pytest.mark.parametrize("setting", OTHER_VALUES)
@pytest.mark.usefixtures("classes")
def test_a_setting_makes_its_own_stage_again_and_no_other(setting: str) -> None:
    section = setting.partition(".")[0]
    wanted = NOT_OF_ITS_SECTION.get(setting, set() if section == "models" else {section})  # models: by fingerprint
    profile = changed_profile(setting, OTHER_VALUES[setting])
    assert profile != PROFILE
    assert made_again(profile=profile) == wanted


@pytest.mark.parametrize("setting", ["train.continue_from", "train.regularisation"])
def test_what_a_setting_names_counts_by_its_content(setting: str, tmp_path: Path) -> None:
    for name, content in (("one", b"a"), ("two", b"a"), ("three", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.png").write_bytes(content)
    ending = "file.png" if setting == "train.continue_from" else ""
    one, two, three = (
        key("train", profile=changed_profile(setting, str(tmp_path / name / ending)))
        for name in ("one", "two", "three")
    )
    assert one == two != three
    assert key("train") not in (one, three)


def test_the_table_names_every_setting() -> None:
    assert sorted(OTHER_VALUES) == sorted(setting_names())


# --- what a stage's own files say of how they were made ---------------------------------------------------------------


def recipe(name: str, *, character: Character = GRISHA, profile: Profile = PROFILE, models: Any = MODELS) -> Any:
    return stage_recipe(INPUTS[name][0], character, profile, models)


@pytest.mark.parametrize("setting", sorted(set(OTHER_VALUES) - {"models.family"}))  # goes with the models' fingerprints
@pytest.mark.usefixtures("classes")
def test_a_setting_that_makes_a_stage_again_stands_in_its_files_and_another_does_not(setting: str) -> None:
    """What a file says counts in its digest, and so in the key of whatever reads it: equal keys must make equal files."""
    profile = changed_profile(setting, OTHER_VALUES[setting])
    assert {name for name in INPUTS if recipe(name, profile=profile) != recipe(name)} == made_again(profile=profile)


@pytest.mark.parametrize("field", CHARACTER)
def test_a_field_of_the_character_stands_in_the_files_of_the_stages_that_read_it(field: str) -> None:
    other = GRISHA.model_copy(update={field: CHARACTER[field][0]})
    assert {name for name in INPUTS if recipe(name, character=other) != recipe(name)} == made_again(character=other)


@pytest.mark.parametrize("model", USED_BY)
def test_a_model_stands_in_the_files_of_the_stages_that_use_it(model: str) -> None:
    another = SimpleNamespace(fingerprint="another", sampling_fingerprint="another")
    other = SimpleNamespace(**{**vars(MODELS), model: another})
    assert {name for name in INPUTS if recipe(name, models=other) != recipe(name)} == USED_BY[model]


def test_a_file_of_the_user_s_stands_there_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "start.safetensors").write_bytes(b"adapter")
    one, two = (
        recipe("train", profile=changed_profile("train.continue_from", str(tmp_path / name / "start.safetensors")))
        for name in ("one", "two")
    )
    assert one == two != recipe("train")


def test_a_recipe_says_settings_models_seed_and_engine_by_stage() -> None:
    told = recipe("train")
    assert told["character"] == {"name": "Grisha", "prompt": "an orc woman"}
    assert set(told["profile"]) == {"models", "train"} and told["profile"]["models"] == {"family": "embedded"}
    assert told["profile"]["train"]["steps"] == 300
    assert (told["models"], told["seeds"]) == ({"train": {"diffusion": "diffusion-1"}}, {"train": 42})
    assert told["engine_version"] == "0.1.0"
    assert recipe("report")["profile"] == {"models": {"family": "embedded"}}


# --- what a stage takes from the one before ---------------------------------------------------------------------------

Rows = dict[str, tuple[Any, bool]]  # place in a record -> another value, and whether the stage after it is made again


def under(place: str, rows: Rows) -> Rows:
    return {f"{place}.{inside}": row for inside, row in rows.items()}


REF: Rows = {
    "sha256": ("9" * 64, True),
    "size": (2, False),
    "media_type": ("image/webp", False),
    "name": ("other.png", False),
}
SHEET_ROWS: Rows = {
    **under("image", REF),
    "width": (301, True),
    "height": (193, True),
    "source": ("given", True),
    "prompt": ("other", False),
    "seed": (7, False),
    "candidates": (2, False),
    "gate": ({"score": 0.5}, False),
    "warnings": (("odd",), False),
    "reference": (ref("e"), False),
    "added": (("green skin",), True),
}
VIEW: Rows = {
    "view": ("back", True),
    **under("image", REF),
    **under("alpha", REF),
    "width": (72, True),
    "height": (136, True),
    "source_box": ((0, 0, 16, 32), True),  # training tells the model how large the figure was on the sheet
    "scale": (3.0, True),
    "facts": ({"sharpness": 3.0}, False),
}
VIEWS_ROWS: Rows = {
    **under("views.0", VIEW),
    "background": ((0, 0, 0), True),
    **under("overlay", {name: (value, False) for name, (value, _) in REF.items()}),
    "facts": ({"pieces": 4.0}, False),
    "warnings": (("odd",), False),
    "added": (("green skin",), True),
}
EXTRA: Rows = {
    "view": ("pose-9", True),
    "kind": ("expression", True),
    "instruction": ("running", True),
    "tags": (("from behind",), True),
    "seed": (10, True),
    "fate": ("held out", True),
    "identity": (0.95, True),
    "threshold": (0.85, True),
    "copying": (0.2, True),
    **under("image", REF),
    **under("alpha", REF),
    "width": (72, True),
    "height": (72, True),
    "background": ((0, 0, 0), True),
}
CAPTION_ROWS: Rows = {
    "view": ("pose-9", True),
    "text": ("griqul, smiling", True),
    "tags": (("smiling",), False),
    "pruned": (("green skin",), False),
    "edited": (True, False),
}
DATASET_ROWS: Rows = {
    "trigger": ("beaxi", True),
    "class_noun": ("orc", True),
    **under("views", VIEWS_ROWS),
    **under("captions.0", CAPTION_ROWS),
    "digest": ("e" * 64, True),
    "side_bound": (True, True),
    "warnings": (("odd",), False),
    **under("extras.0", EXTRA),
}
LOSS_POINT: Rows = {
    "step": (2, True),
    "loss": (0.25, True),
    "by_view": ({"front": 0.3}, True),
    "by_third": ({"low": 0.3}, True),
}
CHECKPOINT: Rows = {
    "step": (3, True),
    **under("adapter", REF),
    "loss": (0.25, True),
    "validation_loss": (0.35, True),
    "samples": ((), False),
    "logged_model_id": ("model", False),
}
TRAINING_ROWS: Rows = {
    **under("checkpoints.0", CHECKPOINT),
    "steps": (3, True),
    "trigger": ("beaxi", True),
    "class_noun": ("orc", True),
    "dataset_digest": ("e" * 64, True),
    **under("curve", REF),
    **under("validation.0", LOSS_POINT),
    **under("base_validation", LOSS_POINT),
    "facts": ({"seconds": 9.0}, False),
    "plan": ({"precision": "bf16"}, False),
    "mlflow_run_id": ("another", False),
    "warnings": (("odd",), False),
}
RUN_ROWS: Rows = {  # its page shows how everything inside was made
    "name": ("Bea", True),
    "prompt": ("an orc man", True),
    "trigger": ("beaxi", True),
    "class_noun": ("orc", True),
    "seed": (43, True),
    "profile": ("other", True),
    "config": ({}, True),
    "sheet.prompt": ("other", True),
    "sheet.warnings": (("odd",), True),
    "dataset.captions.0.pruned": (("green skin",), True),
    "dataset.captions.0.edited": (True, True),
    "training.mlflow_run_id": ("another", True),
    "training.facts": ({"step_ms": 9.0}, True),
    "sweep.pick.strength": (0.8, True),
    "sweep.cells.0.identity": (0.6, True),
    "sweep.images.0/0/0/42.sha256": ("9" * 64, True),
    "expansion": ({"views": (extra(3),)}, True),
    "stages": ((), False),
    "mlflow_run_id": ("another", False),
    "prefect_flow_run_id": ("another", False),
    "warnings": (("odd",), True),
}
TABLES: dict[str, tuple[int, Rows]] = {
    "crop": (0, SHEET_ROWS),
    "expand": (0, VIEWS_ROWS),
    "caption": (0, VIEWS_ROWS),
    "caption: more views": (1, EXTRA),
    "train": (0, DATASET_ROWS),
    "sweep": (0, TRAINING_ROWS),
    "sweep: data set": (1, DATASET_ROWS),
    "report": (0, RUN_ROWS),
}


def changed(record: Record, place: str, value: Any) -> Record:
    """The record with one place of it changed."""
    data = record.model_dump()
    *way, last = place.split(".")
    inside: Any = data
    for step in way:
        inside = inside[int(step)] if step.isdigit() else inside[step]
    inside[last] = value
    return type(record).model_validate(data)


@pytest.mark.parametrize("table", TABLES)
def test_each_part_of_an_input_makes_the_stage_again_or_does_not(table: str) -> None:
    name, (index, rows) = table.partition(":")[0], TABLES[table]
    inputs = INPUTS[name][1]
    found = {}
    for place, (value, _) in rows.items():
        other = changed(inputs[index], place, value)
        assert other != inputs[index], place
        found[place] = key(name, *inputs[:index], other, *inputs[index + 1 :]) != key(name)
    assert found == {place: wanted for place, (_, wanted) in rows.items()}


REFERENCE = ReferenceRecord(image=ref("a"), box=None, background=None, class_noun="orc", description="an orc woman")
REFERENCE_ROWS: Rows = {
    **under("image", REF),
    "box": ((0, 0, 8, 8), True),
    "background": ((255, 255, 255), True),
    "class_noun": ("elf", True),
    "description": ("an elf", True),
    "warnings": (("odd",), False),
}


def test_each_part_of_a_reference_makes_its_sheet_again_or_does_not() -> None:
    assert key("sheet", REFERENCE) != key("sheet")
    found = {
        place: key("sheet", changed(REFERENCE, place, value)) != key("sheet", REFERENCE)
        for place, (value, _) in REFERENCE_ROWS.items()
    }
    assert found == {place: wanted for place, (_, wanted) in REFERENCE_ROWS.items()}


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (Ref, REF),
        (ReferenceRecord, REFERENCE_ROWS),
        (SheetRecord, SHEET_ROWS),
        (ViewRecord, VIEW),
        (ViewsRecord, VIEWS_ROWS),
        (ExtraView, EXTRA),
        (CaptionRecord, CAPTION_ROWS),
        (DatasetRecord, DATASET_ROWS),
        (LossPoint, LOSS_POINT),
        (CheckpointRecord, CHECKPOINT),
        (AdapterRecord, TRAINING_ROWS),
        (RunRecord, RUN_ROWS),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_tables_name_every_field_of_what_is_handed_on(kind: type[Record], rows: Rows) -> None:
    assert {place.split(".")[0] for place in rows} == set(kind.model_fields)


def test_the_order_of_inputs_and_what_is_left_out_count() -> None:
    views, first, second = INPUTS["caption"][1]
    assert len({key("caption"), key("caption", views, second, first), key("caption", views, first)}) == 3
    turned = VIEWS_RECORD.model_copy(update={"views": VIEWS_RECORD.views[::-1]})
    assert key("caption", turned, first, second) != key("caption")


def test_two_stages_that_declare_the_same_differ_in_name_and_in_digest() -> None:
    def named(name: str, version: int = 1) -> str:
        return stage_key(
            Stage(name=name, version=version, makes=SheetRecord, work=lambda given: SHEET_RECORD),
            GRISHA,
            PROFILE,
            MODELS,
            [VIEWS_RECORD],
        )

    stages = ("sheet", "crop", "expand", "caption", "train", "sweep", "report")
    keys = [named(name) for name in stages]
    assert tuple(one.split("-")[0] for one in keys) == stages
    assert len({one.split("-")[1] for one in keys}) == 7
    assert named("crop", version=2) != named("crop", version=1)
