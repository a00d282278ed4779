"""The command line: every mistake answered in words, with the exit status of its kind, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import pytest
import torch
from command_line import last_line
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from run_samples import doll, write_views

from charengine.adapter.files import load_adapter, save_adapter
from charengine.cli.inspection import adapter_facts
from charengine.machine.home import Home
from charengine.machine.ledger import write_own

Charengine = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def named_server(prefect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's Prefect server, named as a user names one."""
    monkeypatch.setenv("PREFECT_API_URL", prefect)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", ""], ["prompt is empty"]),
        (["run", "x" * 5000], ["5000 characters", "at most 2000"]),
        (["run", "an orc", "--name", "../../etc/passwd"], ["'../../etc/passwd' is not allowed"]),
        (["run", "an orc", "--name", "a/b"], ["'a/b' is not allowed"]),
        (["run", "an orc", "--trigger", "Two Words"], ["'Two Words' is not allowed"]),
        (["run", "an orc", "--seed", "-1"], ["seed", "-1"]),
        (["run", "an orc", "--profile", "sdxl-12gbb"], ["unknown profile 'sdxl-12gbb'", "did you mean sdxl-12gb"]),
        (["run", "an orc", "--set", "trian.steps=3"], ["trian.steps", "did you mean train.steps"]),
        (["run", "an orc", "--set", "train.rank=0"], ["train.rank", "got 0"]),
        (["run", "an orc", "--set", "train.rank=129"], ["train.rank", "got 129"]),
        (["run", "an orc", "--set", "train.rank"], ["section.key=value"]),
        (["run", "an orc", "--set", "sweep.strengths=0.5"], ["sweep.strengths: got 0.5", "a list in brackets"]),
        (["run", "an orc", "--set", "sweep.strengths=[]"], ["strengths [] has none above 0"]),
        (["run", "an orc", "--set", "sweep.strengths=[0]"], ["strengths [0.0] has none above 0"]),
        (["run", "an orc", "--sheet", "nowhere.png"], ["nowhere.png", "no such file"]),
        (["run", "an orc", "--out", "/proc/1/runs"], ["/proc/1/runs", "cannot be written"]),
        (["run", "an orc", "--refresh", "trian"], ["'trian'", "sheet, crop, expand, caption, train, sweep, report"]),
        (["sheet", "an orc", "--out", "."], ["--out", "is a folder", "name of a file"]),
        (["sheet", "an orc", "--out", "a.jpg"], ["--out a.jpg", "let the name end in .png"]),
        (["report", "nowhere", "--out", "."], ["--out", "is a folder", "name of a file"]),
        (["compare", "nowhere", "nowhere", "--out", "."], ["--out", "is a folder", "name of a file"]),
        (["crop", "nowhere.png"], ["nowhere.png"]),
        (["caption", __file__, "--name", "A", "--prompt", "an orc"], ["is not a folder; give one with front"]),
        (["train", "nowhere"], ["nowhere"]),
        (["report", "nowhere"], ["nowhere"]),
        (["compare", "nowhere", "nowhere"], ["nowhere"]),
        (["inspect", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["batch", "nowhere.yaml"], ["nowhere.yaml"]),
        (["run"], ["prompt is empty", "--reference"]),
        (["run", "--reference", "nowhere.png"], ["--reference", "nowhere.png", "no such file"]),
        (["fly"], ["No such command"]),
    ],
)
def test_bad_input_is_status_2_and_says_what_is_wrong(
    cli: Charengine, home: Home, arguments: list[str], told: list[str]
) -> None:
    done = cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert all(words in done.stderr for words in told), done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("train: {steps: 3}", "name is missing; a profile without it needs the line `extends"),
        ("extends: embedded\ntrain: 5", "train: got 5; give a section"),
    ],
)
def test_a_profile_of_another_form_is_answered_in_plain_words(
    cli: Charengine, tmp_path: Path, profile: str, told: str
) -> None:
    (tmp_path / "mine.yaml").write_text(profile)
    done = cli("doctor", "--profile", "mine.yaml")
    assert done.returncode == 2 and told in done.stderr


def test_all_mistakes_are_reported_together_and_nothing_is_left(cli: Charengine, tmp_path: Path) -> None:
    done = cli(
        "run", "", "--name", "a/b", "--set", "train.rank=0", "--set", "x.y=1", "--sheet", "no.png", "--out", "made"
    )
    assert done.returncode == 2
    assert done.stderr.count("  - ") == 5
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "runs").exists()


def test_every_character_of_a_cast_is_checked_before_the_first_is_made(cli: Charengine, tmp_path: Path) -> None:
    (tmp_path / "cast.yaml").write_text(
        "- {name: A, prompt: an orc}\n- {name: B, prompt: an elf, overrides: [train.rank=0]}\n"
        "- {name: C/D, prompt: a robot, sheet: nowhere.png}\n"
    )
    done = cli("batch", "cast.yaml")
    assert done.returncode == 2
    assert "cast.yaml, entry 2 (B): train.rank" in done.stderr
    assert "'C/D' is not allowed" in done.stderr and "nowhere.png" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "told"), [(["--seed", "-1"], "seed: got -1"), (["--prompt", "x" * 5000], "5000 characters")]
)
def test_what_a_stage_alone_is_told_of_a_character_is_checked_as_a_runs(
    cli: Charengine, tmp_path: Path, arguments: list[str], told: str
) -> None:
    write_views(tmp_path, "zorgax, orc, {view} view")
    done = cli("train", ".", *arguments)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_is_no_picture_is_refused_before_anything_starts(cli: Charengine, tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"broken")
    (tmp_path / "text.png").write_text("hello")
    for name, told in (("sheet.png", "is damaged: how it begins"), ("text.png", "not a readable PNG")):
        done = cli("run", "an orc", "--sheet", name)
        assert (done.returncode, told in done.stderr) == (2, True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--reference", "blank.png"], "no figure stands out"),
        (["an orc", "--reference", "blank.png"], "no figure stands out"),
        (["--reference", "two.png"], "2 figures"),
        (["an orc", "--reference", "one.png", "--sheet", "one.png"], "leave one out"),
    ],
    ids=["nobody", "nobody with a sentence", "several", "a sheet too"],
)
def test_a_reference_from_which_nobody_can_be_made_is_refused_before_anything_starts(
    cli: Charengine, tmp_path: Path, arguments: list[str], told: str
) -> None:
    Image.new("RGB", (128, 128), "white").save(tmp_path / "blank.png")
    doll().save(tmp_path / "one.png")
    two = Image.new("RGB", (300, 220), "white")
    two.paste(doll(), (20, 10))
    two.paste(doll(), (180, 10))
    two.save(tmp_path / "two.png")
    done = cli("run", *arguments)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert done.stdout == "" and not (tmp_path / "runs").exists()


def test_a_full_disk_is_refused_before_anything_starts(
    cli: Charengine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=100 * 2**20))
    done = cli("run", "an orc")
    assert done.returncode == 2
    assert "0.10 GiB free; a run needs 0.5" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_missing_model_is_status_3_and_says_how_to_get_it(cli: Charengine, named_server: None) -> None:
    done = cli("run", "an orc", "--profile", "sdxl-12gb")
    assert done.returncode == 3, done.stderr
    assert "huggingface.co" in done.stderr
    assert cli("doctor", "--profile", "sdxl-12gb").returncode == 3


def test_pickles_are_refused(cli: Charengine, tmp_path: Path) -> None:
    (tmp_path / "adapter.pt").write_bytes(b"\x80\x04K\x01.")
    done = cli("inspect", "adapter.pt")
    assert done.returncode == 2
    assert "can run code" in done.stderr


def test_a_defect_of_ours_is_status_4_with_the_traceback_in_a_file(
    cli: Charengine, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("charengine.profiles.loading.profile_names", broken)
    done = cli("profiles")
    assert done.returncode == 4
    assert "ZeroDivisionError: a defect" in done.stderr and "Traceback" not in done.stderr
    [log] = home.logs.glob("error-*.log")
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    ("code", "address", "expected"), [(503, "", True), (0, "", True), (422, "", False), (0, "elsewhere", False)]
)
def test_a_prefect_that_does_not_answer_is_no_defect_of_ours(
    cli: Charengine, home: Home, monkeypatch: pytest.MonkeyPatch, code: int, address: str, expected: bool
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4999/api")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4999/api"}):
        request = httpx.Request("POST", f"http://127.0.0.1:4999/{address or 'api'}/task_runs/")

        def broken() -> list[str]:
            if code:
                raise PrefectHTTPStatusError("Busy", request=request, response=httpx.Response(code))
            raise httpx.ConnectError("refused", request=request)

        monkeypatch.setattr("charengine.profiles.loading.profile_names", broken)
        done = cli("profiles")
    assert done.returncode == 4
    assert ("Prefect's server at http://127.0.0.1:4999/api did not answer" in done.stderr) == expected
    assert ("this is a defect" in done.stderr) != expected and len([*home.logs.glob("error-*.log")]) == (not expected)


def test_profiles_are_listed(cli: Charengine) -> None:
    done = cli("profiles")
    assert done.returncode == 0
    assert {line.split()[0] for line in done.stdout.splitlines()} >= {"embedded", "sdxl-12gb", "origin"}


def test_the_stages_one_at_a_time_make_an_adapter_and_a_pick(
    cli: Charengine, tiny_settings: tuple[str, ...], drawn_sheet: Path, tmp_path: Path
) -> None:
    sets = [part for setting in tiny_settings for part in ("--set", setting)]
    notes = PngInfo()
    notes.add_text("prompt", "x" * 3_000_000, zip=True)
    Image.open(drawn_sheet).save(tmp_path / "sheet.png", pnginfo=notes)
    done = cli("crop", "sheet.png", "--out", "views")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "views" / "overlay.png").exists()

    done = cli("caption", "views", "--name", "Aya", "--prompt", "an orc woman in blue", "--trigger", "ohwaya", *sets)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "views" / "back.txt").read_text().startswith("ohwaya, orc woman")

    earlier = [tmp_path / "adapters" / f"{name}.safetensors" for name in ("ohwaya-000777", "ohwaya-000778")]
    write_own(tmp_path, {earlier[0]: b"of an earlier training"})
    earlier[1].write_bytes(b"mine")
    done = cli("train", "views", "--out", "adapters", *sets)
    assert done.returncode == 0, done.stderr
    assert f"warning: {earlier[0]} is of an earlier training" in done.stderr and "000778" not in done.stderr
    adapter = tmp_path / "adapters" / "ohwaya.safetensors"
    facts = json.loads(cli("inspect", adapter, "--json").stdout)
    assert facts["recipe"]["profile"]["train"]["steps"] == 6 and "diffusers" in facts["loads_in"]

    # as other programs write one: in float8, without an alpha, with what is no layer
    tensors, metadata = load_adapter(adapter.read_bytes())
    alpha = next(key for key in tensors if key.endswith(".alpha"))
    others = {key: value.to(torch.float8_e4m3fn) for key, value in tensors.items() if key != alpha}
    others |= {"bundle_emb.x.clip_g": torch.ones(2, 64), "lora_unet_out_0.w_norm": torch.ones(16)}
    adapter.write_bytes(save_adapter(others, metadata))
    done = cli("sweep", adapter, "--views", "views", "--out", "swept", *sets)
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert all(any(words in line for line in warned) for words in ("embeddings", "trained norms"))
    assert not adapter_facts(tmp_path / "swept" / "adapters" / "ohwaya_recommended.safetensors")["problems"]
    assert "pick: step 6 at strength" in done.stdout
    with Image.open(tmp_path / "swept" / "contact_sheet.png") as sheet:
        assert sheet.width > 100


def test_a_sweep_of_a_loose_file_asks_for_pictures_to_compare_with(
    cli: Charengine, tiny_settings: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "a.safetensors").write_bytes(save_adapter({"x.alpha": torch.ones(1)}, {}))
    done = cli("sweep", "a.safetensors", *(part for setting in tiny_settings for part in ("--set", setting)))
    assert (done.returncode, "--views FOLDER or --sheet FILE" in done.stderr) == (2, True)


def test_a_photo_instead_of_a_sheet_is_bad_input_with_a_picture_and_no_traceback(
    cli: Charengine, named_server: None, tiny_settings: tuple[str, ...], tmp_path: Path
) -> None:
    from sheet_samples import photo

    photo().save(tmp_path / "photo.png")
    sets = [part for setting in tiny_settings for part in ("--set", setting)]
    done = cli("run", "an orc", "--sheet", tmp_path / "photo.png", *sets)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [told] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert ".png" in told


def test_json_is_the_last_line_and_one_object(
    cli: Charengine, named_server: None, tiny_settings: tuple[str, ...], drawn_sheet: Path, tmp_path: Path
) -> None:
    sets = [part for setting in tiny_settings for part in ("--set", setting)]
    done = cli("run", "an orc woman", "--sheet", drawn_sheet, "--json", *sets)
    assert done.returncode == 0, done.stderr
    result = last_line(done)
    assert result["name"] == "orc-woman"
    assert Path(result["report"]).is_relative_to(tmp_path / "runs" / "orc-woman")
    assert list(result["seconds"]) == ["sheet", "crop", "caption", "train", "sweep", "report"]
    assert result["prefect_flow_run_id"] and result["mlflow_run_id"]


def test_a_sheet_of_the_users_with_a_missing_figure_is_bad_input(
    cli: Charengine, drawn_sheet: Path, tmp_path: Path
) -> None:
    sheet = Image.open(drawn_sheet).convert("RGB")
    third = sheet.width // 3
    sheet.paste((255, 255, 255), (third, 0, 2 * third, sheet.height))
    sheet.save(tmp_path / "two.png")
    done = cli("crop", str(tmp_path / "two.png"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "the side box is empty" in done.stderr
