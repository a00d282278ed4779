"""A character handed over: everything in one folder or zip, or nothing."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from run_samples import sample_run
from safetensors.torch import save_file
from sweep_samples import adapter_file

from charengine.adapter.files import save_adapter
from charengine.cli import housekeeping
from charengine.errors import BadInput, EngineError
from charengine.machine.home import Home
from charengine.machine.known_runs import note_run
from charengine.machine.ledger import write_own
from charengine.machine.places import check_file, check_folder
from charengine.run.export import contents, export, find_run
from charengine.store import Store

NAMES = {
    "README.md",
    "recipe.json",
    "report.html",
    "zorgax.civitai.info",
    "zorgax.json",
    "zorgax.preview.png",
    "zorgax.safetensors",
    "zorgax_recommended.civitai.info",
    "zorgax_recommended.json",
    "zorgax_recommended.preview.png",
    "zorgax_recommended.safetensors",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path / "home").create()


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.store)


def finished(home: Home, store: Store, folder: Path, name: str = "Zorga") -> Path:
    run = sample_run(store, name)
    (folder / "adapters").mkdir(parents=True)
    for stem in (run.trigger, f"{run.trigger}_recommended"):
        (folder / "adapters" / f"{stem}.safetensors").write_bytes(adapter_file(200))
    (folder / "run.json").write_text(run.model_dump_json())
    (folder / "report.html").write_text("<html>")
    note_run(home, folder)
    return folder


def test_a_folder_and_a_zip_hold_the_same_and_an_equal_zip_is_equal_to_the_byte(home, store, tmp_path) -> None:
    folder = finished(home, store, tmp_path / "far" / "zorga")
    assert contents(folder, store).keys() == NAMES
    place = export(folder, tmp_path / "given", store)
    assert {path.name for path in place.iterdir()} == NAMES
    first, second = (export(folder, tmp_path / name / "zorga.zip", store) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"zorga/{path.name}": path.read_bytes() for path in place.iterdir()
        }


def test_a_run_of_an_earlier_version_gets_its_sidecars_with_the_strength_of_their_own_file(
    home, store, tmp_path
) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    run = sample_run(store)
    found = contents(folder, store)
    trained, recommended = (json.loads(found[f"zorgax{end}.json"]) for end in ("", "_recommended"))
    assert trained["preferred weight"] == run.sweep.pick.strength
    assert trained["activation text"] and recommended["activation text"]
    assert json.loads(found["recipe.json"]) == {"class_noun": "orc"}
    card = found["README.md"].decode()
    assert run.recommended_prompt in card and "zorgax_recommended.safetensors" in card


@pytest.mark.parametrize("recipe", ["", "not json", "7"])
def test_an_adapter_whose_recipe_cannot_be_read_is_handed_over_without(home, store, tmp_path, recipe: str) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    damaged = save_adapter({"lora_unet_x.alpha": torch.tensor(8.0)}, {"charengine.recipe": recipe})
    (folder / "adapters/zorgax_recommended.safetensors").write_bytes(damaged)
    assert contents(folder, store)["recipe.json"] == b"{}"


def test_what_lies_beside_the_adapters_already_is_handed_over_as_it_is(home, store, tmp_path) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    (folder / "adapters" / "README.md").write_text("my own card")
    (folder / "adapters" / "zorgax.json").write_text("{}")
    found = contents(folder, store)
    assert found["README.md"] == b"my own card" and found["zorgax.json"] == b"{}"


def test_an_earlier_triggers_adapters_stay_where_they_are_and_what_is_the_users_goes_along(
    home, store, tmp_path, caplog
) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    place = folder / "adapters"
    (place / "zorgax_best.safetensors").write_bytes(adapter_file(200))  # the user's, as are the next two
    (place / "notes.txt").write_text("mine")
    earlier = ("griqul.safetensors", "griqul_recommended.safetensors", "griqul.json", "griqul.civitai.info")
    write_own(folder, {place / name: adapter_file(100) for name in earlier})
    (place / "griqul.json").write_text("mine")
    found = contents(folder, store)
    assert {name for name in found if name.startswith(("griqul", "notes")) or "best" in name} == {
        "griqul.json",
        "notes.txt",
        "zorgax_best.safetensors",
    }
    [said] = [record.message for record in caplog.records if "earlier trigger" in record.message]
    assert said.endswith(
        f"{place}/griqul.civitai.info, {place}/griqul.safetensors, {place}/griqul_recommended.safetensors"
    )


def test_a_run_is_found_by_its_name_or_its_folder_and_of_several_none_is_chosen(home, store, tmp_path) -> None:
    first = finished(home, store, tmp_path / "elsewhere" / "zorga")
    assert find_run(home, "Zorga") == first
    (tmp_path / "link").symlink_to(first)
    note_run(home, tmp_path / "link")  # the same run
    assert find_run(home, "Zorga") == first
    second = finished(home, store, tmp_path / "elsewhere" / "zorga-2")
    with pytest.raises(BadInput, match="2 runs: .*zorga, .*zorga-2; give the folder"):
        find_run(home, "Zorga")
    assert find_run(home, "zorga-2") == find_run(home, str(second)) == second
    assert find_run(home, "zorga") == first
    with pytest.raises(BadInput, match="known here: Zorga"):
        find_run(home, "Grisha")


def test_nothing_is_overwritten_and_nothing_half_written_is_left(home, store, tmp_path, monkeypatch) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    (tmp_path / "mine").mkdir()
    with pytest.raises(BadInput, match="exists already"):
        export(folder, tmp_path / "mine", store)

    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if (tmp_path / "out") in Path(target).parents:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    for name in ("x.zip", "x"):
        with pytest.raises(BadInput, match="No space"):
            export(folder, tmp_path / "out" / name, store)
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_written_into_the_homes_own_folders(home, store, tmp_path, monkeypatch) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    monkeypatch.setenv("CHARENGINE_HOME", str(home.root))
    for write in (
        lambda: housekeeping.export(str(folder), home.inbox / "x.zip"),
        lambda: check_file(home.store / "x.html", "--out"),
        lambda: check_folder(home.inbox, "--out"),
    ):
        with pytest.raises(BadInput, match="is one of the home's own folders"):
            write()
    assert check_file(home.root / "x.html", "--out") and list(home.inbox.glob("*")) == []


def test_a_run_without_its_adapters_says_which(home, store, tmp_path) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    (folder / "adapters" / "zorgax.safetensors").unlink()
    with pytest.raises(BadInput, match=r"lacks zorgax\.safetensors"):
        contents(folder, store)


@pytest.mark.parametrize("name", ["zorgax", "zorgax_recommended"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-9], lambda data: data[:-2] + b"\xff\x7f"])
def test_a_damaged_adapter_is_not_handed_over(home, store, tmp_path, name: str, damage) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    path = folder / "adapters" / f"{name}.safetensors"
    save_file({f"x.lora_{part}.weight": torch.ones(1, 1).half() for part in ("down", "up")}, path)
    contents(folder, store)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EngineError, match=name):
        export(folder, tmp_path / "x.zip", store)
    assert not (tmp_path / "x.zip").exists()


def test_what_is_left_out_is_said_and_a_place_that_cannot_be_meant_is_refused(home, store, tmp_path, caplog) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    contents(folder, store)
    assert "has no sheet.png any more" in caplog.text and "report" not in caplog.text
    (folder / "report.html").unlink()
    (folder / "sheet.webp").write_bytes(b"webp")
    caplog.clear()
    contents(folder, store)
    assert "has no report.html any more" in caplog.text and "sheet" not in caplog.text
    for target, told in (
        (folder / "views.zip", "lies in the folder of the run"),
        (tmp_path / ".zip", "an ending without a name"),
    ):
        with pytest.raises(BadInput, match=told):
            export(folder, target, store)
        assert not target.exists()


def test_a_path_that_cannot_be_written_is_told_and_no_defect(home, store, tmp_path) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file" / "x", tmp_path / f"{'x' * 238}.zip"):
        with pytest.raises(BadInput, match="cannot write .*name another place with --to"):
            export(folder, target, store)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_to_nothing_is_not_written_over_and_what_is_no_file_is_named(home, store, tmp_path, caplog) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    link = tmp_path / "mine.zip"
    link.symlink_to(tmp_path / "a disk that is away")
    with pytest.raises(BadInput, match="exists already"):
        export(folder, link, store)
    assert link.is_symlink()
    (folder / "adapters" / "old").mkdir()
    (folder / "adapters" / "dead.png").symlink_to(tmp_path / "nowhere")
    export(folder, tmp_path / "whole", store)
    assert "left out, since they are no files" in caplog.text
    assert f"{folder / 'adapters' / 'dead.png'}, {folder / 'adapters' / 'old'}" in caplog.text


def test_a_run_is_named_by_its_record_too(home, store, tmp_path) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    assert find_run(home, str(folder / "run.json")) == folder


def test_a_link_of_the_users_to_a_file_elsewhere_is_named_and_left(
    home, store, tmp_path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARENGINE_HOME", str(home.root))
    folder = finished(home, store, tmp_path / "zorga")
    adapters, disk = folder / "adapters", tmp_path / "disk"
    disk.mkdir()
    (disk / "secret.txt").write_text("not meant for others")
    (adapters / "notes.txt").symlink_to(disk / "secret.txt")
    (adapters / "twice.txt").symlink_to(adapters / "notes.txt")
    (adapters / "page.html").symlink_to(folder / "report.html")
    (home.root / "of-the-home.txt").write_text("kept")
    (adapters / "kept.txt").symlink_to(home.root / "of-the-home.txt")
    (adapters / "zorgax.safetensors").rename(disk / "moved.safetensors")
    (adapters / "zorgax.safetensors").symlink_to(disk / "moved.safetensors")
    out = export(folder, tmp_path / "out", store)
    names = {path.name for path in out.iterdir()}
    assert not names & {"notes.txt", "twice.txt"} and names >= {"page.html", "kept.txt", "zorgax.safetensors"}
    assert (out / "zorgax.safetensors").read_bytes() == (disk / "moved.safetensors").read_bytes()
    [told] = [record.getMessage() for record in caplog.records if "links to files elsewhere" in record.getMessage()]
    assert f"{adapters / 'notes.txt'} (to {(disk / 'secret.txt').resolve()})" in told and "twice.txt" in told


def test_a_folder_of_adapters_on_another_disk_is_handed_over_whole(home, store, tmp_path, caplog) -> None:
    folder = finished(home, store, tmp_path / "zorga")
    (folder / "adapters" / "notes.txt").write_text("mine")
    (folder / "adapters").rename(tmp_path / "disk")
    (folder / "adapters").symlink_to(tmp_path / "disk")
    out = export(folder, tmp_path / "out", store)
    assert (out / "notes.txt").read_text() == "mine" and "links" not in caplog.text
