"""Relative paths start in the work folder, not where the process of a worker happens to stand."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path

import pytest

from charengine.cli.main import app
from charengine.config import Profile
from charengine.errors import ConfigError
from charengine.machine import home as home_module
from charengine.machine.home import STARTED_BY_WORKER, WORK_FOLDER, Home, work_folder
from charengine.run.cast import check_cast
from charengine.run.paths import absolute_override, profile_as_named
from charengine.run.request import RunRequest, check


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder with files in it; this process stands in another, as a worker's does."""
    folder, elsewhere = tmp_path / "work", tmp_path / "worker"
    elsewhere.mkdir()
    for name in ("sdxl", "classes", "more"):
        (folder / name).mkdir(parents=True)
    (folder / "start.safetensors").write_bytes(b"")
    (folder / "mine.yaml").write_text("extends: common.yaml\ntrain: {steps: 17}\n")
    (folder / "common.yaml").write_text("extends: embedded\nname: mine\ntrain: {continue_from: start.safetensors}\n")
    monkeypatch.setenv(WORK_FOLDER, str(folder))
    monkeypatch.setenv(STARTED_BY_WORKER, "a run")
    monkeypatch.chdir(elsewhere)
    return folder


def test_a_cast_from_the_page_names_files_of_the_work_folder(work: Path, drawn_sheet: Path) -> None:
    (work / "sheet.png").write_bytes(drawn_sheet.read_bytes())
    entry = {
        "prompt": "an orc",
        "name": "Aya",
        "sheet": "sheet.png",
        "out": "mine/aya",
        "profile": "mine.yaml",
        "overrides": [
            "train.steps=9",
            "train.regularisation=classes",
            "models.sdxl=sdxl",
            "models.edit=Qwen/Qwen-Image-Edit-2511",
            "models.folders=[more, /elsewhere]",
        ],
    }
    [request] = check_cast([entry])
    assert request.as_parameters() == {
        "prompt": "an orc",
        "name": "Aya",
        "class_noun": "",
        "trigger": "",
        "seed": 42,
        "sheet": f"{work}/sheet.png",
        "out": f"{work}/mine/aya",
        "profile": f"{work}/mine.yaml",
        "overrides": [
            "train.steps=9",
            f"train.regularisation={work}/classes",
            f"models.sdxl={work}/sdxl",
            "models.edit=Qwen/Qwen-Image-Edit-2511",
            f'models.folders=["{work}/more", "/elsewhere"]',
        ],
        "refresh": [],
        "reference": "",
    }


def test_a_run_from_the_page_names_files_of_the_work_folder(
    work: Path, home: Home, drawn_sheet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charengine.run.request.starting_problems", lambda profile: [])  # not what is in the files
    (work / "sheet.png").write_bytes(drawn_sheet.read_bytes())
    settings = ("models.sdxl=sdxl", "models.folders=[more]", "train.regularisation=classes")
    checked = check(RunRequest("an orc", "Aya", profile="mine.yaml", sheet="sheet.png", overrides=settings), home)
    assert (checked.sheet, checked.out) == (work / "sheet.png", work / "runs" / "aya")
    assert checked.profile.train.steps == 17
    assert checked.profile.train.continue_from == f"{work}/start.safetensors"
    assert checked.profile.train.regularisation == f"{work}/classes"
    assert (checked.profile.models.sdxl, checked.profile.models.folders) == (f"{work}/sdxl", (f"{work}/more",))


def test_what_names_no_file_stays_as_it_was_written(work: Path) -> None:
    settings = (
        "train.continue_from=",
        "models.device=cpu",
        "models.clip=",
        "models.folders=[{a: b}]",
        "train.steps",
        "=",
    )
    assert RunRequest("an orc", overrides=settings).as_parameters()["overrides"] == list(settings)
    assert RunRequest("an orc").as_parameters()["profile"] == "embedded"


def test_without_a_work_folder_a_worker_keeps_results_in_the_home_folder_and_says_so(
    work: Path, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(WORK_FOLDER)
    home_module._home_as_work_folder.cache_clear()
    with caplog.at_level(logging.WARNING, "charengine"):
        assert check(RunRequest("an orc", "Aya"), home).out == home.root / "runs" / "aya"
        assert check(RunRequest("an orc", "Aya", out="mine"), home).out == home.root / "mine"
        [request] = check_cast([{"prompt": "an orc", "name": "Aya"}])
    assert request.out == str(home.root / "runs" / "aya")
    [told] = caplog.messages
    assert WORK_FOLDER in told and str(home.root / "runs") in told


def test_a_command_starts_where_the_user_stands(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORK_FOLDER)
    monkeypatch.delenv(STARTED_BY_WORKER)
    assert work_folder() == Path.cwd() != work


class Asked(Exception):
    """Carries what a sweep or a training was about to be made with."""


def test_a_sweep_from_the_page_names_its_profile_and_the_files_in_it_in_the_work_folder(
    work: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.sweep as flow

    def stop(place: Path, store: object, profile: Profile, **_: object) -> None:
        raise Asked(place, profile)

    monkeypatch.setattr(flow, "sweep_inputs", stop)
    with pytest.raises(Asked) as asked:
        flow._swept("runs/aya", "", "", "", "", 42, "mine.yaml", ["models.sdxl=sdxl"], "")
    place, profile = asked.value.args
    assert place == work / "runs/aya"
    assert (profile.train.steps, profile.train.continue_from) == (17, f"{work}/start.safetensors")
    assert profile.models.sdxl == f"{work}/sdxl"


def test_a_stage_by_command_finds_the_same_files_as_a_run(
    work: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from charengine.cli import stages

    (work / "ours.safetensors").write_bytes(b"")
    monkeypatch.setenv("HOME", str(work))
    monkeypatch.setattr(stages, "listen", lambda: None)
    profile, _ = stages._opened("mine.yaml", ["train.continue_from=~/ours.safetensors"], work / "adapters")
    assert (profile.train.steps, profile.train.continue_from) == (17, f"{work}/ours.safetensors")


def test_a_lora_of_the_edit_model_may_be_named_from_the_work_folder_or_by_its_name_alone(
    work: Path, home: Home
) -> None:
    (work / "hair.safetensors").write_bytes(b"")
    named = "models.edit_loras=[hair.safetensors, {file: elsewhere.safetensors, strength: 0.5}]"
    loras = profile_as_named("embedded", [named]).models.edit_loras
    assert [(lora.file, lora.strength) for lora in loras] == [
        (f"{work}/hair.safetensors", 1.0),
        ("elsewhere.safetensors", 0.5),  # in a loras folder
    ]


@pytest.mark.parametrize(("named", "lies"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_a_file_is_found_however_its_accents_were_written(
    named: str, lies: str, tmp_path: Path, drawn_sheet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / unicodedata.normalize(lies, "Zoë/Müller 한.png")
    file.parent.mkdir()
    file.write_bytes(drawn_sheet.read_bytes())
    name = unicodedata.normalize(named, "Zoë/Müller 한.png")
    assert check(RunRequest("an orc", sheet=name), Home(tmp_path / "home")).sheet == file
    told: list[Path] = []
    monkeypatch.setattr("charengine.cli.stages._must_exist", told.append)
    with pytest.raises(ConfigError):
        app(["crop", name, "--set", "no.such=1"], standalone_mode=False)
    assert [path.absolute() for path in told] == [file]
    new = unicodedata.normalize(named, "Zoë/né")
    assert check(RunRequest("an orc", out=new), Home(tmp_path / "home")).out == file.with_name(Path(new).name)


@pytest.mark.parametrize("written", ["classes #2", '"classes #2"', "'classes #2'"])
def test_a_path_with_a_number_sign_is_that_path_and_no_other(work: Path, written: str) -> None:
    (work / "classes #2").mkdir()
    override = absolute_override(f"train.regularisation={written}")
    assert profile_as_named("embedded", [override]).train.regularisation == f"{work}/classes #2"
    assert absolute_override(override) == override, "a second time changes nothing"


@pytest.mark.parametrize(
    ("written", "taken"),
    [("ugly #1", "ugly #1"), ("#1", "#1"), ("'#1'", "#1"), ("''", ""), ('"\\ud83d\\ude00 #"', "😀 #")],
)
def test_a_text_of_a_single_setting_is_taken_whole(written: str, taken: str) -> None:
    assert profile_as_named("embedded", [f"sheet.negative_prompt={written}"]).sheet.negative_prompt == taken


@pytest.mark.parametrize("setting", ["sweep.strengths=[0.5] # one", "train.steps=7 # few", "train.continue_from='x' y"])
def test_what_would_be_left_unread_of_a_single_setting_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        profile_as_named("embedded", [absolute_override(setting)])


def test_null_in_quotes_is_a_text_and_without_them_nothing(tmp_path: Path) -> None:
    def said(setting: str) -> str | None:
        return profile_as_named("embedded", [f"models.negative_prompt={setting}"]).models.negative_prompt

    assert [said("null"), said("'null'"), said('""')] == [None, "null", ""]
    profile = tmp_path / "p.yaml"
    profile.write_text("extends: embedded\nmodels: {negative_prompt: 'null', prompt_prefix: null}\n")
    models = profile_as_named(str(profile)).models
    assert (models.negative_prompt, models.prompt_prefix) == ("null", None)
    with pytest.raises(ConfigError, match=r"caption.keep: got None \(item 2\)"):
        profile_as_named("embedded", ["caption.keep=[hat, null]"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train:\n  <<: foo\n  steps: 3\n", "line 3: << takes in a section"),
        ("train.steps: 3\n", "a setting stands in its section: write train: {steps: ...}"),
    ],
)
def test_what_a_profile_says_in_vain_is_refused(tmp_path: Path, text: str, told: str) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text(f"extends: embedded\n{text}")
    with pytest.raises(ConfigError) as refused:
        profile_as_named(str(profile))
    assert told in str(refused.value)
