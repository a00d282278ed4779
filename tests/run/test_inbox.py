"""The inbox: each file is taken once and ends in `done` or `failed`; what is wrong with one does not touch the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from run_samples import doll

from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.run import inbox


@pytest.fixture
def put(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHARENGINE_WORK_FOLDER", str(tmp_path))
    monkeypatch.setattr(inbox, "QUIET", 0.05)
    home.inbox.mkdir()
    return home.inbox


def opened(home: Home) -> inbox.Inbox:
    with inbox.opened(home, "embedded", ()) as box:
        return box


def lying(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).parts[-1] for path in folder.rglob("*") if not path.is_dir())


def test_casts_pictures_and_sentences_are_taken_once_and_lie_in_done_when_they_are_made(home: Home, put: Path) -> None:
    (put / "cast.yaml").write_text("- {name: Aya, prompt: an orc}\n- {name: Bo, prompt: a robot}\n")
    (put / "two.txt").write_text("an elf with red hair\n\na knight in blue\n")
    doll().save(put / "Lady Grey.png")
    box = opened(home)
    assert [one.name for one in box.requests] == ["lady-grey", "Aya", "Bo", "elf-red-hair", "knight-blue"]
    assert box.refused == [] and Path(box.requests[0].reference).is_relative_to(home.store)
    assert opened(home).requests == box.requests, "what a killed batch took is taken again"
    box.settle({0: "", 1: "", 3: "", 4: "no figure"})
    assert lying(put / "done") == ["Lady Grey.png"] and lying(put / "taken") == ["cast.yaml"]
    assert lying(put / "failed") == ["two.txt", "two.txt.txt"]
    [why] = (put / "failed").glob("*/two.txt.txt")
    assert why.read_text().startswith("knight-blue: no figure\n\nMend it and put it")
    assert [one.name for one in opened(home).requests] == ["Aya", "Bo"]


def test_what_is_hostile_or_wrong_is_put_aside_with_the_reason_and_the_others_go_on(home: Home, put: Path) -> None:
    (put / "good.csv").write_text("name,prompt\nAya,an orc\n")
    (put / "same name.csv").write_text("name,prompt\naya,a robot\n")
    (put / "a\n| b |\x1b[2J.yaml").write_text("- {prompt: an orc, overrides: [train.rank=0]}\n")
    (put / ("x" * 251 + ".csv")).write_text("prompt\n" + "a" * 5_000_000)
    (put / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"broken")
    (put / "secret.txt").symlink_to("/etc/passwd")
    (put / "loop.yaml").symlink_to(put / "loop.yaml")
    os.mkfifo(put / "pipe.txt")
    (put / "run.exe").write_text("")
    box = opened(home)
    assert [one.name for one in box.requests] == ["Aya"] and len(box.refused) == 8
    notes = [path for path in (put / "failed").glob("*/*.txt") if not path.is_symlink() and path.is_file()]
    told = {path.name[:6]: path.read_text() for path in notes}
    assert len(told) == 8 and "5.0 MB" in told["xxxxxx"] and "not a plain file" in told["secret"]
    assert "train.rank: got 0" in told["a\n| b "] and "'aya'" in told["same n"] and ".exe" in told["run.ex"]
    assert not any("\n" in name or "|" in name for name, _ in box.refused)


@pytest.mark.parametrize("out", ["", "inbox", "inbox/x", "inbox/../store/x", "logs", "link/x"])
def test_what_would_be_written_into_the_home_or_over_another_cast_is_put_aside(
    home: Home, put: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "link").symlink_to(home.state)
    place = tmp_path / out if out.startswith("link") else home.root / out
    (put / "home.yaml").write_text(f"- {{prompt: an orc, out: {place}}}\n")
    (put / "one.csv").write_text("name,prompt,out\nAya,an elf,both\n")
    (put / "two.csv").write_text("name,prompt,out\nBo,a robot,./x/../both/\n")
    (put / "usual.txt").write_text("a robot")
    with pytest.raises(BadInput, match="--out .* is no UTF-8"):
        inbox.check(inbox.RunRequest("an orc", out="caf\udce9"), home)
    (put / "with.csv").write_text("name,prompt,out\nCy,a cat,runs/robot\n")
    box = opened(home)
    assert [one.name for one in box.requests] == ["Aya", "robot"]
    home_said, *others = [why for _, why in box.refused]
    assert "own folders" in home_said and len(others) == 2 and all("has the out" in why for why in others)


def test_what_is_still_written_or_hidden_is_left_for_the_next_time(
    home: Home, put: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("growing.txt", ".hidden.txt", "night.csv.part"):
        (put / name).write_text("an orc")
    monkeypatch.setattr(inbox.time, "sleep", lambda _: (put / "growing.txt").write_text("an orc woman"))
    assert opened(home).requests == [] and lying(put) == [".hidden.txt", "growing.txt", "night.csv.part"]


def test_a_file_that_changes_after_it_was_taken_is_not_called_done(home: Home, put: Path) -> None:
    (put / "a.txt").write_text("an orc")
    box = opened(home)
    (put / "taken" / "a.txt").write_text("an orc woman")
    box.settle({0: ""})
    assert lying(put / "failed") == ["a.txt", "a.txt.txt"]


def test_nothing_is_moved_through_a_link(home: Home, put: Path, tmp_path: Path) -> None:
    (put / "done").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="done is a link"):
        opened(home)


def test_a_mistake_in_what_holds_for_all_touches_no_file(home: Home, put: Path) -> None:
    (put / "a.txt").write_text("an orc")
    with pytest.raises(BadInput, match="sdxl-12g"), inbox.opened(home, "sdxl-12g", ()):
        pass
    assert lying(put) == ["a.txt"]


@pytest.mark.parametrize("out", ["runs", "runs/aya/x", "runs/AYA"])
def test_no_file_of_the_inbox_has_a_folder_in_around_or_like_that_of_another(home: Home, put: Path, out: str) -> None:
    (put / "a.csv").write_text("name,prompt\nAya,an orc\n")
    (put / "b.csv").write_text(f"name,prompt,out\nBo,a robot,{out}\n")
    box = opened(home)
    assert [one.name for one in box.requests] == ["Aya"] and "another file of the inbox" in box.refused[0][1]
