"""Files that are replaced, removed or changed while a stage works: what is made of them is kept under no key but their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stage_samples import workspace_in

from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.machine.locks import single_flight
from charengine.records import ReportRecord
from charengine.run.running import key_of, run
from charengine.run.workspace import Workspace
from charengine.stage import Given, Stage


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return workspace_in(Home(tmp_path / "home"))


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"checked")
    return path


def reading(meanwhile: Callable[[], object] = lambda: None, **declared: Any) -> Stage[ReportRecord]:
    """A stage whose record holds the file's bytes; `meanwhile` happens before it reads them."""

    def work(given: Given, file: Path) -> ReportRecord:
        meanwhile()
        return ReportRecord(html=given.store.put(file.read_bytes(), "page.html"))

    return Stage(**{"name": "sheet", "version": 1, "makes": ReportRecord, "work": work, **declared})


def test_what_is_made_of_a_file_replaced_meanwhile_is_never_taken_for_what_the_first_file_makes(
    workspace: Workspace, sheet: Path
) -> None:
    with pytest.raises(BadInput, match=r"sheet\.png was changed or removed .*give the same command again"):
        run(reading(lambda: sheet.write_bytes(b"another")), workspace, sheet)
    sheet.write_bytes(b"checked")
    assert workspace.store.get(run(reading(), workspace, sheet).html) == b"checked"


def test_a_file_replaced_while_another_process_was_waited_for_is_refused_before_the_work_begins(
    workspace: Workspace, sheet: Path
) -> None:
    worked: list[str] = []
    stage = reading(lambda: worked.append("work"))
    key, told = key_of(stage, workspace, sheet), []

    def ask() -> None:
        try:
            run(stage, workspace, sheet)
        except BadInput as error:
            told.append(str(error))

    with single_flight(workspace.home.locks / f"{key}.lock", "x"):
        waiting = threading.Thread(target=ask)
        waiting.start()
        time.sleep(0.3)  # its key is made
        sheet.write_bytes(b"another")
    waiting.join()
    assert [str(sheet) in one for one in told] == [True]
    assert worked == [] and not workspace.store.has_result(key)


def test_a_file_removed_meanwhile_is_told_by_its_name(workspace: Workspace, sheet: Path) -> None:
    def work(given: Given, file: Path) -> ReportRecord:
        made = ReportRecord(html=given.store.put(file.read_bytes(), "page.html"))
        file.unlink()
        return made

    with pytest.raises(BadInput, match=r"sheet\.png was changed or removed"):
        run(reading(work=work), workspace, sheet)


@pytest.mark.parametrize("name", ["continue_from", "regularisation"])
def test_files_that_settings_name_count_as_they_were_when_the_work_read_them(tmp_path: Path, name: str) -> None:
    named = tmp_path / name
    named.mkdir()
    (named / "one.png").write_bytes(b"checked")
    declared = {"name": "train", "settings": "train", "files": ("continue_from", "regularisation"), "long": True}
    moments: dict[str, Callable[[], object]] = {}

    def work(given: Given) -> ReportRecord:
        moments.get("before", lambda: None)()
        given.files_read()
        moments.get("after", lambda: None)()  # hours of training
        return ReportRecord(html=given.store.put(b"page", "page.html"))

    workspace = workspace_in(Home(tmp_path / "home"), f"train.{name}={named}")
    stage: Stage[ReportRecord] = Stage(version=1, makes=ReportRecord, work=work, **declared)  # type: ignore[arg-type]
    moments["before"] = lambda: (named / "two.png").write_bytes(b"added")
    with pytest.raises(BadInput, match=rf"train\.{name}=.* was changed or removed"):
        run(stage, workspace)
    moments.pop("before")
    moments["after"] = lambda: (named / "three.png").write_bytes(b"added later")
    run(stage, workspace)
    assert [fact.cached for fact in workspace.facts] == [False]
