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
from key_rows import (
    CAPTION_ROWS,
    CHECKPOINT,
    DATASET_ROWS,
    EXTRA,
    LOSS_POINT,
    REF,
    RUN_ROWS,
    SHEET_ROWS,
    TABLES,
    TRAINING_ROWS,
    VIEW,
    VIEWS_ROWS,
    Rows,
    under,
)
from key_samples import GRISHA, INPUTS, MODELS, PROFILE, SHEET_RECORD, VIEWS_RECORD, key, made_again, ref
from key_values import NOT_OF_ITS_SECTION, OTHER_VALUES, changed_profile

from charengine.config import Character, Profile
from charengine.profiles.loading import setting_names
from charengine.records import (
    AdapterRecord,
    CaptionRecord,
    CheckpointRecord,
    DatasetRecord,
    ExtraView,
    LossPoint,
    Record,
    Ref,
    RunRecord,
    SheetRecord,
    ViewRecord,
    ViewsRecord,
)
from charengine.run.keys import stage_key, stage_recipe
from charengine.stage import Stage
from charengine.stages.sheet.given import GIVEN_SHEET
from charengine.stages.sheet.reference import ReferenceRecord

# --- the sample's keys ------------------------------------------------------------------------------------------------


def test_the_sample_runs_keys_are_these() -> None:
    """Others mean that everybody's results are made again, once: then that has to be worth it, and told."""
    assert {name: key(name) for name in INPUTS} == {
        "reference": "reference-ea71db4f1875db852a8e2be1bbaea86481510c5b",
        "sheet": "sheet-30281d3333e26508e475d263858d3c313c96b959",
        "crop": "crop-e9c2d56de3a65aeccfdec94b8325092650cfc72f",
        "expand": "expand-fbc960f1acecc13401121828c3cec7de671b4338",
        "caption": "caption-f0797ae3e408d12aa7197e565467d2e835b2bca4",
        "train": "train-3856b73d80dd93c50bd011dccb44d277d1aa73d4",
        "sweep": "sweep-aeac531b9e7c2758d22c632a9f6b9936f8245258",
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
