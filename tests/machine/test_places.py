"""What a user has written replaces nothing that is not its own kind: no device, no pipe, no link, no file of a run."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from shutil import disk_usage
from subprocess import CompletedProcess

import pytest
from run_samples import sample_run

from charengine.errors import BadInput
from charengine.machine import places
from charengine.machine.home import Home
from charengine.machine.places import check_file, check_folder, folder_problems
from charengine.store import Store
from charengine.writing import write_atomically

Cli = Callable[..., CompletedProcess[str]]
PAGES = (["compare", "RUN", "RUN", "--out"], ["report", "RUN", "--out"])


@pytest.fixture
def run(home: Home, tmp_path: Path) -> Path:
    """A finished run's folder."""
    folder = tmp_path / "runs" / "zorga"
    for name in ("adapters", "views"):
        (folder / name).mkdir(parents=True)
    (folder / "run.json").write_text(sample_run(Store(home.store)).model_dump_json())
    for own in ("adapters/x.safetensors", "views/front.png", "sheet.png", "report.html"):
        (folder / own).write_bytes(own.encode())
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("command", PAGES, ids=lambda command: command[0])
def test_a_page_never_replaces_a_pipe_or_a_device(cli: Cli, run: Path, tmp_path: Path, command: list[str]) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.html")
    (link := tmp_path / "link.html").symlink_to(pipe)
    for out in (pipe, link):
        done = cli(*(word.replace("RUN", str(run)) for word in command), out)
        assert done.returncode == 2 and f"--out {out} is a device, a pipe or a socket" in done.stderr, done.stderr
    with pytest.raises(BadInput, match="is a device, a pipe or a socket"):
        write_atomically(pipe, b"x")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and link.is_symlink()


@pytest.mark.parametrize("own", ["adapters/x.safetensors", "views/front.png", "run.json", "sheet.png"])
@pytest.mark.parametrize("command", [*PAGES, ["sheet", "an orc", "--out"]], ids=lambda command: command[0])
def test_a_file_of_a_run_is_never_overwritten(cli: Cli, run: Path, command: list[str], own: str) -> None:
    before = content(run)
    done = cli(*(word.replace("RUN", str(run)) for word in command), run / own)
    assert done.returncode == 2 and str(run / own) in done.stderr, done.stderr
    assert content(run) == before


def test_a_run_gets_its_own_report_again_and_no_other_page_in_its_place(cli: Cli, run: Path) -> None:
    assert cli("report", run, "--out", run / "report.html").returncode == 0
    report = (run / "report.html").read_bytes()
    assert b"Zorga" in report
    for _ in range(2):
        assert cli("compare", run, run, "--out", run / "compare.html").returncode == 0
    done = cli("compare", run, run, "--out", run / "report.html")
    assert done.returncode == 2 and "would be lost" in done.stderr
    (run / "compare.html").unlink()
    (run / "compare.html").symlink_to(run / "report.html")
    assert cli("compare", run, run, "--out", run / "compare.html").returncode == 2
    assert (run / "report.html").read_bytes() == report


@pytest.mark.parametrize("command", PAGES, ids=lambda command: command[0])
def test_a_link_stays_and_what_it_names_is_written(cli: Cli, run: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "shown").mkdir()
    (link := tmp_path / "page.html").symlink_to(tmp_path / "shown" / "page.html")
    for _ in range(2):  # made, and replaced
        assert cli(*(word.replace("RUN", str(run)) for word in command), link).returncode == 0
        assert link.is_symlink() and b"<!doctype html>" in (tmp_path / "shown" / "page.html").read_bytes()


def test_no_stage_writes_into_the_folders_that_a_run_keeps_its_files_in(run: Path, tmp_path: Path) -> None:
    for out in (run, run / "views", run / "adapters" / "new"):
        with pytest.raises(BadInput, match="has its own files there"):
            check_folder(out, "--out")
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "sweep.json").write_text("{}")
    for out in (run / "second", run.parent, tmp_path / "swept"):
        assert check_folder(out, "--out") == out
    assert check_file(run / "new.html", "--out") == run / "new.html"


@pytest.mark.parametrize("command", [["crop", "x.png"], ["train", "x"], ["sweep", "x"]], ids=lambda command: command[0])
def test_a_full_disk_is_said_before_anything_is_made(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    (tmp_path / command[1]).touch()
    monkeypatch.setattr(places.shutil, "disk_usage", lambda place: disk_usage(place)._replace(free=2**20))
    done = cli(*command)
    assert done.returncode == 2 and "GiB free; a run needs 0.5" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "command", [["compare", "RUN", "RUN"], ["report", "RUN"], ["sweep", "RUN"]], ids=lambda words: words[0]
)
def test_a_run_of_another_home_is_said_to_be_one_and_leaves_a_fresh_home_that_is_no_earlier_one(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("CHARENGINE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("charengine.run.running.run", None)  # no model is loaded for it
    done = cli(*(word.replace("RUN", str(run)) for word in command))
    assert done.returncode == 3 and str(run) in done.stderr and "set CHARENGINE_HOME" in done.stderr, done.stderr
    assert str(tmp_path / "elsewhere" / "store") in done.stderr and "defect" not in done.stderr
    again = cli("report", run)
    assert "earlier version" not in done.stderr + again.stderr


def test_whatever_fails_at_a_full_disk_is_told_as_that(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("Server error '500 Internal Server Error'")

    monkeypatch.setattr("charengine.services.prune.leftovers", failing)
    assert cli("prune").returncode == 4
    monkeypatch.setattr(places.shutil, "disk_usage", lambda place: disk_usage(place)._replace(free=2**20))
    done = cli("prune")
    assert done.returncode == 2 and "is full: free some space" in done.stderr and "500" not in done.stderr


def test_a_folder_behind_a_link_to_nothing_is_told_before_anything_is_made(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "away")
    for folder in (link, link / "in" / "it"):
        [told] = folder_problems(folder, "--out")
        assert told.startswith(f"--out {folder}: {link} is a link to {tmp_path / 'away'}, where nothing is")
    (tmp_path / "away").mkdir()
    assert folder_problems(link / "in", "--out") == []
